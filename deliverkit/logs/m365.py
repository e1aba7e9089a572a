"""Microsoft 365: the message trace as CSV: summary and extended report, Get-MessageTrace. None names a port.

Source: https://learn.microsoft.com/exchange/monitoring/trace-an-email-message/message-trace-modern-eac.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from deliverkit.logs.exchange import tracked
from deliverkit.logs.fields import endpoint, listed, tabled, unfit

_SUMMARY, _EXTENDED = {"sender_address", "recipient_status"}, {"event_id", "recipient_address", "sender_address"}
_TRACE = {"sender_address", "recipientaddress", "status"}  # Get-MessageTrace(V2) | Export-Csv
_SAME = {"received": "origin_timestamp", "senderaddress": "sender_address", "messageid": "message_id",
         "messagetraceid": "network_message_id"}  # fmt: skip
_ENDS = {"deliver": "passed", "send": "passed", "sendexternal": "passed", "defer": "deferred", "fail": "failed",
         "drop": "failed", "delivered": "passed", "failed": "failed"}  # fmt: skip


def sniff(line: str) -> bool:
    """True if the line names the columns of a report."""
    return bool(_names(line.split(",")))


def rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per recipient of a message (summary), or of a delivery, failure or delay (extended).

    Of the statuses in the summary ("Receive, Send") the last one that is an end counts; a message only received is on
    its way, and no attempt. Mail from outside has `direction` in; of Get-MessageTrace, which does not tell, none.
    """
    for number, fields, record in tabled(lines, _names):
        if not fields:
            yield unfit(number, f"no line of a message trace: its {len(record)} fields are not those named before it")
        else:
            yield from (tracked if "event_id" in fields else _summary)(fields, number)


def _names(record: Iterable[str]) -> list[str]:
    plain = [name.strip('"\ufeff ').lower().replace("-", "_") for name in record]
    names = [_SAME.get(name, name) for name in plain]
    times = {"origin_timestamp", "origin_timestamp_utc", "date_time", "date_time_utc"}.intersection(names)
    return names if times and any(some.issubset(names) for some in (_SUMMARY, _EXTENDED, _TRACE)) else []


def _summary(fields: dict[str, str], number: int) -> Iterator[dict[str, Any]]:
    trace = "recipient_status" not in fields
    given = [f"{fields['recipientaddress']}##{fields['status']}"] if trace else listed(fields["recipient_status"])
    inside = fields.get("directionality", "").lower() in ("1", "incoming", "inbound")
    for each in given or [""]:
        recipient, _, status = each.rpartition("##")
        outcome = next(
            (_ENDS[word] for word in reversed(status.lower().replace(" ", "").split(",")) if word in _ENDS), None
        )
        yield {
            "time": fields.get("origin_timestamp_utc") or fields.get("origin_timestamp") or None,
            "line": number,
            "direction": None if trace else "in" if inside else "out",
            "sender": fields["sender_address"] or None,
            "recipient": recipient or None,
            "address": endpoint(fields.get("toip", ""))[0],
            "outcome": outcome or (None if status.lower() in ("expanded", "filteredasspam") else "deferred"),
            "attempted": outcome is not None,
            "step": "inbox" if outcome == "passed" else None,
            "hint": None if outcome else "event",
            "text": status or None,
            "message_id": fields.get("message_id") or None,
            "queue_id": fields.get("network_message_id") or None,
        }
