"""KumoMTA: the log records in JSON lines, one row per record and recipient.

Sources: https://docs.kumomta.com/reference/log_record/ and the texts of crates/kumod/src/smtp_dispatcher.rs.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from deliverkit.logs.fields import endpoint, unfit

_TELLING = {"queue", "site", "num_attempts", "bounce_classification", "egress_pool", "peer_address", "created",
            "nodeid"}  # fmt: skip
_HELD = {"outcome": "deferred", "attempted": False}
_MEANS: dict[str, dict[str, Any] | None] = {  # None: the message goes elsewhere, nothing was tried
    "Delivery": {"outcome": "passed", "attempted": True},
    "Bounce": {"outcome": "failed", "attempted": True},
    "TransientFailure": {"outcome": "deferred", "attempted": True},
    "Reception": _HELD | {"hint": "event"},  # taken, not tried so far
    "Delayed": _HELD,
    "Delay": _HELD,  # as Delayed, in older versions
    "Expiration": {"outcome": "failed", "attempted": False, "hint": "expired"},
    "AdminBounce": {"outcome": "failed", "attempted": False},
    "OOB": {"outcome": "failed", "attempted": False},  # by mail, after a delivery: that was the attempt
    "Feedback": {"outcome": "passed", "attempted": False, "hint": "arf"},
    "Rejection": {"outcome": "failed", "attempted": True, "direction": "in"},
    **dict.fromkeys(("AdminRebind", "DeferredInjectionRebind", "XferOut", "XferIn")),
}
_STEPS = {"EHLO": "rules", "HELO": "rules", "LHLO": "rules", "AUTH": "rules", "STARTTLS": "encryption", "MAIL": "relay",
          "RCPT": "relay", "DATA": "relay", "BDAT": "inbox", ".": "inbox"}  # fmt: skip
_INSIDE, _CONNECT = "KumoMTA internal", " and read initial banner"  # words of KumoMTA, where no session came about
_QUEUE = re.compile(r"(?:([^:@!]*+):)?(?:([^:@!]*+)@)?[^@!]++(?:!.*)?")  # campaign:tenant@domain!routing_domain
_TRIED = re.compile(  # .. which alone say what was tried
    r"(?:connect to |/)(\[?[\da-fA-F.:]{3,45}\]?:\d{1,5})\b(?: and read|: )"
    r"|addr: ([\da-fA-F.:]{3,45})[^}]{0,99}\}(?: port |:)(\d{1,5})\b"
)


def sniff(line: str) -> bool:
    """True if the line is a log record as KumoMTA writes it unless told otherwise."""
    record = _record(line) if line.lstrip("\ufeff \t").startswith("{") else {}
    return str(record.get("type")) in _MEANS and len(_TELLING & record.keys()) > 1


def rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per record and recipient; what is no record is a row that says so.

    The port stands in `peer_address` of newer versions, or in the text of a connection that failed. Rejections are mail
    that others brought (`direction` in), without a port: theirs is none that was tried. Of messages moved to another
    queue or node nothing is said. `campaign` and `client` are the campaign and tenant of the queue's name.
    """
    for number, line in enumerate(lines, 1):
        record = _record(line)
        kind, means = str(record.get("type")), _MEANS.get(str(record.get("type")))
        if means:
            made = {"line": number, "direction": "out"} | _row(record, kind, means)
            yield from (made | {"recipient": recipient} for recipient in _recipients(record, kind))
        elif line.strip() and kind not in _MEANS:
            yield unfit(number, f"no log record: {f'type {kind[:40]!a}' if record else 'no JSON, or cut off'}")


def _record(line: str) -> dict[str, Any]:
    try:
        made = json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


def _get(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str | None:
    """A text or number as text; lone surrogates are none."""
    known = isinstance(value, str | int | float) and value != "" and not isinstance(value, bool)
    return str(value).encode("utf-8", "backslashreplace").decode() if known else None


def _recipients(record: dict[str, Any], kind: str) -> list[str | None]:
    given, report = record.get("recipient"), record.get("feedback_report")
    if kind == "Feedback":  # that of the record is the mailbox for feedback
        given = _get(report, "supplemental_trace", "recipient") or _get(report, "original_rcpto_to")
    found = [_text(one) for one in (given if isinstance(given, list) else [given])]
    return [one.strip("<>") for one in found if one] or [None]


def _row(record: dict[str, Any], kind: str, means: dict[str, Any]) -> dict[str, Any]:
    response, peer = record.get("response"), record.get("peer_address")
    headers = found if isinstance(found := record.get("headers"), dict) else {}
    code, content = _get(response, "code"), _text(_get(response, "content")) or ""
    code = code if type(code) is int and 200 <= code <= 599 else None
    parts = [_get(response, "enhanced_code", name) for name in ("class", "subject", "detail")]
    status = ".".join(map(str, parts)) if all(type(part) is int and 0 <= part <= 999 for part in parts) else None
    away = kind in ("Delivery", "Bounce", "TransientFailure")
    code = code if away or kind in ("Rejection", "OOB") else None  # of KumoMTA itself
    inside = content.startswith(_INSIDE)
    words = [] if inside or content.startswith(f"{code}") else [str(part) for part in (code, status) if part]
    address, port = endpoint(_text(_get(peer, "addr")) or "")
    tried = _TRIED.search(content[:4000]) if inside and port is None else None
    if tried:
        address, port = endpoint(tried[1] or f"[{tried[2]}]:{tried[3]}")
    queue = _QUEUE.fullmatch(_text(record.get("queue")) or "")
    command = (_text(_get(response, "command")) or "").partition(" ")[0].upper()
    ended, began = _time(record, "event_time", "timestamp"), _time(record, "created_time", "created")
    step = "inbox" if kind == "Delivery" else _STEPS.get(command)
    if tried:
        step = "connect" if _CONNECT in content else "encryption" if "TLS" in content else None
    known = away or kind == "Rejection"  # of another record the peer is who brought the message
    return means | {
        "outcome": "deferred" if kind == "Rejection" and code and code < 500 else means["outcome"],
        "time": ended and ended.isoformat(),
        "sender": _text(record.get("sender")),
        "host": ((_text(_get(peer, "name")) or "").rstrip(".") or None) if known else None,
        "address": address if known else None,
        "port": port if away else None,
        "step": step,
        "text": " ".join([*words, content]).strip() or None,
        "reply_code": None if inside else code,
        "status_code": status,
        "delay_s": (ended - began).total_seconds() if ended and began and away else None,
        "queue_id": _text(record.get("id")),
        "message_id": next((_text(headers[k]) for k in headers if k.lower() == "message-id"), None),
        "campaign": (queue and queue[1]) or None,
        "client": (queue and queue[2]) or None,
    }


def _time(record: dict[str, Any], *names: str) -> datetime | None:
    for value in map(record.get, names):
        with suppress(ValueError, OverflowError, OSError):
            if isinstance(value, int | float):
                return datetime.fromtimestamp(value, UTC)
            if isinstance(value, str) and (made := datetime.fromisoformat(value)).tzinfo:
                return made
    return None
