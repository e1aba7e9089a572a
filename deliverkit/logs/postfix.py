"""Postfix: its delivery lines, joined with the lines around them that say more. Lines about incoming mail are left out.

Sources: https://www.postfix.org/smtp.8.html, qmgr.8.html; lines of a real Postfix 3.7, of fail2ban and of lightmeter.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

_LINE = re.compile(  # possessive all through: strangers write parts of it, and nothing is tried twice
    r"(?:<\d++>)?(\d{4}-\d\d-\d\dT\S++|[A-Z][a-z]{2} [ \d]?\d \d\d:\d\d:\d\d) (\S++) ((?:[^\s\[/]++/)*+[^\s\[/]++)"
    r"\[(\d++)\]: (?:\[ID \d++ [\w.]++\] )?(?:([0-9A-Za-z]{5,}+): )?"
    r"(to=<|message-id=|from=<|removed|connect to |(?:host \S++ (?:said|refused)|lost connection|conversation|"
    r"SASL authentication failed|TLS is required|Server certificate|Cannot start TLS)\b)(.*)"
)
_OURS = re.compile(r"[^\[]{16,200}?/(?:smtpd?|lmtp|qmgr|cleanup|master|pickup|local|bounce|error)\[\d++\]: ")
_ADDRESS = r'((?:"(?:[^"\\]|\\.)*+"[^>]*+|[^>]*+(?:>(?!, (?:orig_to|relay)=)[^>]*+)*+))>'  # a quoted one holds any text
_DELIVERY = re.compile(
    rf"{_ADDRESS}(?:, orig_to=<{_ADDRESS})?, relay=([^\s,]++)(?:, conn_use=\d++)?, delay=(\d++(?:\.\d++)?)"
    r"(?:, delays=[\d./]++)?(?:, dsn=([245]\.\d{1,3}\.\d{1,3}))?, status=(\w++) \((.*)"
)
_PEER = re.compile(r"(?:connect to )?([^\s\[]++)\[([^\]\s]++)\](?::(\d{1,5})\b)?(?:: .*\(port (\d{1,5})\)$)?")
_NAMED = re.compile(r"(?:\w++ ){0,9}?(?:host|with|server) ([^\s\[]++)\[([^\]\s]++)\]")
_SAID = re.compile(r"(?:(?:SASL authentication failed; server|host) \S++ [a-z ]++: )?([2-5]\d\d)(?=[ -]|$)")
_LOST, _REPLY = r"(?:lost connection|conversation) with \S++ (?:timed out )?while ", r".*\(in reply to "
_STEP = re.compile(
    rf"(?P<connect>connect to )|(?P<rules>host \S++ refused to|{_LOST}(?:receiving the initial|performing the [EHL]+O)|"
    rf"{_REPLY}[EHL]+O command\)$)|(?P<encryption>TLS is req|Cannot start TLS|Server cert|{_REPLY}STARTTLS command\)$|"
    rf"{_LOST}performing the TLS)|(?P<relay>{_LOST}sending (?:MAIL|RCPT|DATA)|{_REPLY}(?:MAIL|RCPT|DATA) "
    rf")|(?P<inbox>{_LOST}sending (?:end of data|message body)|{_REPLY}end of DATA command\)$)"
)
_OUTCOMES = {"sent": "passed", "deferred": "deferred", "SOFTBOUNCE": "deferred", "bounced": "failed"}
_PROBES = {"deliverable": "event", "undeliverable": None}  # address probes (sendmail -bv) hand over nothing
_HELD = "delivery temporarily suspended: "


def sniff(line: str) -> bool:
    """True if a program of Postfix wrote the line, whatever the line is about."""
    return _OURS.match(line) is not None


def rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per delivery line, per failed try of an earlier host, and per recipient given up on.

    Tries of earlier hosts stand on lines of their own, without a recipient: the next delivery line of that process says
    whom they were for, and where it repeats one, that counts once. `status=expired` ends every recipient still
    deferred; such rows and those of the error program have `attempted` False. Address probes have no outcome either,
    nor have notifications (null sender) that end in a mailbox of this machine: they are nobody's campaign.
    Held in memory: the messages in the queue, and tries not joined so far.
    """
    ids: dict[tuple[str, ...], str | None] = {}
    deferred: dict[tuple[str, ...], dict[str, None]] = {}
    tries: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    notices: set[tuple[str, ...]] = set()
    for number, line in enumerate(lines, 1):
        if not (found := _LINE.match(line)):
            continue
        stamp, host, program, pid, queue_id, what, rest = found.groups()
        name, queue = program.rpartition("/")[2], (host, program.partition("/")[0], queue_id or "")
        about = {"time": stamp, "line": number, "queue_id": queue_id, "message_id": ids.get(queue)}
        if what == "to=<" and (row := _delivery(rest, name)):
            if queue in notices and name not in ("smtp", "lmtp"):
                row |= {"outcome": None, "attempted": False, "hint": "notice"}
            earlier = tries.pop((host, program, pid), [])
            repeated = next((tried for tried in earlier if tried["text"] == row["text"]), None)
            theirs = about | {"recipient": row["recipient"], "attempted": row["attempted"]}
            for tried in earlier:  # one delivery tries its hosts on one port (smtp(8), nexthop): the line names it
                if tried is not repeated:
                    port, outcome = tried["port"] or row["port"], row["outcome"] and "deferred"
                    yield theirs | tried | {"port": port, "outcome": outcome}
            yield about | row
            still = deferred.setdefault(queue, {})
            still.pop(row["recipient"], None)
            if row["outcome"] == "deferred":
                still[row["recipient"]] = None
        elif what == "message-id=" and name == "cleanup":  # a new message: short queue ids are used again
            ids[queue] = rest if rest != "<>" else None
            deferred.pop(queue, None)
            notices.discard(queue)
        elif what == "from=<" and name == "qmgr" and rest.startswith(">, size="):
            notices.add(queue)
        elif what == "from=<" and name == "qmgr" and rest.endswith("expired, returned to sender"):
            given_up = about | {"text": "expired, returned to sender", "hint": "expired"}
            for recipient in deferred.pop(queue, ()):
                yield given_up | {"recipient": recipient, "outcome": "failed", "attempted": False}
        elif what == "removed" and name == "qmgr":
            ids.pop(queue, None)
            deferred.pop(queue, None)
            notices.discard(queue)
        elif name in ("smtp", "lmtp") and (queue_id or what == "connect to ") and what != "to=<":
            tried = {"time": stamp, "line": number, "outcome": "deferred"}
            tries.setdefault((host, program, pid), []).append(tried | _far_end(what + rest, what + rest))
    yield from (left for some in tries.values() for left in some)


def _delivery(rest: str, program: str) -> dict[str, Any] | None:
    found = _DELIVERY.match(rest)
    if not found or (found[6] not in _OUTCOMES and found[6] not in _PROBES):
        return None
    recipient, _, relay, delay, status_code, status, text = found.groups()
    outcome, text = _OUTCOMES.get(status), text.removesuffix(")")
    real = outcome is not None and program not in ("error", "retry") and not text.startswith(_HELD)
    peer = text.removeprefix(_HELD) if relay == "none" else relay
    made = _far_end(text, peer, "inbox" if outcome == "passed" else None)
    if program not in ("smtp", "lmtp"):
        made["reply_code"] = None  # the text is not of a far end
    return made | {"recipient": recipient, "outcome": outcome, "attempted": real, "status_code": status_code,
                   "delay_s": float(delay), "hint": _PROBES.get(status)}  # fmt: skip


def _far_end(text: str, peer: str, step: str | None = None) -> dict[str, Any]:
    """Host, address and port as `peer` names them; reply code and step as the text tells them."""
    plain = text.removeprefix(_HELD)
    found, said, ended = _PEER.match(peer) or _NAMED.match(peer), _SAID.match(plain), step or _STEP.match(plain)
    host, address, *ports = found.groups() if found else (None, None)
    port = next((int(port) for port in ports if port and 0 < int(port) < 65536), None)
    made = {"host": host, "address": None if address is None or "/" in address else address, "port": port, "text": text}
    return made | {"reply_code": int(said[1]) if said else None, "step": getattr(ended, "lastgroup", ended)}
