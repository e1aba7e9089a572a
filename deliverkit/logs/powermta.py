"""PowerMTA: the accounting records in CSV, one row per record. No field of them names a port.

Sources: PowerMTA User's Guide 4.5 and 5.0, "Accounting records"; its 5.5 edition at https://hackmd.io/@z3d3m0n/Pmta_records.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from deliverkit.logs.fields import endpoint, tabled, unfit

_TELLING = {"timeLogged", "timeQueued", "rcpt", "orig", "dsnStatus", "dsnDiag", "dsnMta", "bounceCat", "jobId", "vmta"}
_NONE: dict[str, Any] = {"outcome": None, "attempted": False}
_MEANS: dict[str, dict[str, Any]] = {
    "d": {"outcome": "passed", "attempted": True, "step": "inbox"},
    "b": {"outcome": "failed", "attempted": True},
    "t": {"outcome": "deferred", "attempted": True},
    "tq": {"outcome": "deferred", "attempted": False},  # of a whole queue: no recipient
    "r": {"outcome": "deferred", "attempted": False, "hint": "event"},  # taken, not tried so far
    "rb": {"outcome": "failed", "attempted": False},  # by mail, after a delivery: that was the attempt
    "rs": _NONE,
    "f": {"outcome": "passed", "attempted": False, "hint": "arf"},
}
_WORDS = {"delivery": "d", "delivered": "d", "bounce": "b", "bounced": "b", "transient": "t", "transient-queue": "tq",
          "received": "r", "remote-bounce": "rb", "remote-status": "rs", "feedback-loop": "f"}  # fmt: skip
_ACTIONS = {"delayed": ("deferred", "delayed"), "failed": ("failed", None), "relayed": ("passed", "delivered"),
            "delivered": ("passed", "delivered"), "expanded": ("passed", "delivered")}  # fmt: skip
_STATUS = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b(?:\s*\((.*)\))?")  # 5.1.1 (bad destination mailbox address)
_SAID = re.compile(r"(?:smtp\s*;\s*)?(([2-5]\d\d)(?:[ -]|$).*|.*)", re.DOTALL)
_MTA = re.compile(r"(?:dns\s*;\s*)?([^\s()\[\];]+)?\s*(?:[(\[]([\da-fA-F.:]+)[)\]])?")  # mx.x.example (192.0.2.1)
_UNIX = re.compile(r"\d{1,10}(?:\.\d{1,9})?")


def sniff(line: str) -> bool:
    """True if the line names the columns of accounting records; which there are, and their order, is configurable."""
    return bool(_names(line.split(",")))


def rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per record; each line that names columns holds for the records after it.

    `queue_id` is the envelope id if the sender gave one, else job, time of queueing, sender and recipient together.
    Received messages, feedback reports and remote reports (mail that comes back later) are no attempts. A record that
    does not fit its columns, or comes before any are named, is a row that says so.
    """
    for number, fields, record in tabled(lines, _names):
        kind = fields.get("type", record[0]).strip().lower()
        if not fields:
            yield unfit(number, f"no accounting record: its {len(record)} fields are not those named before it")
        elif means := _MEANS.get(_WORDS.get(kind, kind)):
            yield {"line": number, "direction": "out"} | _row(fields, means)
        else:
            yield unfit(number, f"no accounting record: type {kind[:40]!a}")


def _names(record: Iterable[str]) -> list[str]:
    names = [name.strip('"\ufeff \t') for name in record]
    return names if "type" in names and len(_TELLING.intersection(names)) > 1 else []


def _row(fields: dict[str, str], means: dict[str, Any]) -> dict[str, Any]:
    def has(*names: str) -> str | None:
        return next((fields[name] for name in names if fields.get(name)), None)

    status, said = _STATUS.match(fields.get("dsnStatus", "")), _SAID.match(fields.get("dsnDiag", "").strip())
    mta, category = _MTA.match(fields.get("dsnMta", "")), has("bounceCat")
    if means is _NONE:
        outcome, hint = _ACTIONS.get(fields.get("dsnAction", "").lower(), (None, "event"))
        means = means | {"outcome": outcome, "hint": hint}
    if category == "message-expired":  # the end of the retries, not another one
        means = means | {"attempted": False, "hint": "expired"}
    told = [has("jobId"), has("timeQueued", "timeImprinted"), has("orig"), has("rcpt")]  # there is no id of the queue
    logged, queued = _time(has("timeLogged")), _time(told[1])
    return {"hint": category if means["outcome"] != "passed" else None} | means | {
        "time": logged and logged.isoformat(),
        "sender": has("orig"),
        "recipient": has("rcpt"),
        "original_recipient": has("orcpt"),
        "host": mta and mta[1],
        "address": endpoint(has("dlvDestinationIp", "dlvDesintationIp") or (mta and mta[2]) or "")[0],
        "text": (said and said[1]) or (status and status[2]) or category or has("feedbackType", "dsnAction"),
        "reply_code": int(said[2]) if said and said[2] else None,
        "status_code": status and status[1],
        "delay_s": (logged - queued).total_seconds() if logged and queued else None,
        "campaign": told[0],
        "queue_id": has("envId") or (" ".join(part or "-" for part in told) if told[1] and told[3] else None),
        "message_id": has("header_Message-Id", "header_Message-ID", "header_message-id"),
    }  # fmt: skip


def _time(stamp: str | None) -> datetime | None:
    """Unix seconds, or a local time with its offset; without one it is taken as UTC."""
    try:
        if found := _UNIX.fullmatch(stamp or ""):
            return datetime.fromtimestamp(float(found[0]), UTC)
        made = datetime.fromisoformat((stamp or "").strip())
        return made if made.tzinfo else made.replace(tzinfo=UTC)
    except ValueError:
        return None
