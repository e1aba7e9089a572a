"""Exchange Server: the message tracking log, and the SMTP send protocol log, the only one that always names the port.

Sources: https://learn.microsoft.com/exchange/mail-flow/transport-logs/message-tracking and
https://learn.microsoft.com/exchange/mail-flow/connectors/protocol-logging.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from deliverkit.logs.fields import endpoint, listed, said, tabled, unfit

_SESSIONS, _WAITING = 10_000, 10_000  # sessions open at a time, recipients of a session without a reply
_TRACKED, _PROTOCOL = {"date_time", "event_id", "recipient_address"}, {"session_id", "remote_endpoint", "event", "data"}
_EVENTS = {"SEND": "passed", "SENDEXTERNAL": "passed", "DELIVER": "passed", "FAIL": "failed", "DEFER": "deferred",
           "BADMAIL": "failed", "POISONMESSAGE": "failed", "DROP": "failed"}  # fmt: skip
_ELSE = {  # on the way, as documented, and two that are not: RECIPIENTINFO, SETROUTE
    "AGENTINFO", "CLIENTSUBMISSION", "DSN", "DUPLICATEDELIVER", "DUPLICATEEXPAND", "DUPLICATEREDIRECT", "EXPAND",
    "HADISCARD", "HARECEIVE", "HAREDIRECT", "HAREDIRECTFAIL", "INITMESSAGECREATED", "LOAD", "MODERATORAPPROVE",
    "NOTIFYMAPI", "NOTIFYSHADOW", "PROCESS", "PROCESSMEETINGMESSAGE", "RECEIVE", "RECIPIENTINFO",
    "REDIRECT", "RESOLVE", "RESUBMIT", "SETROUTE", "SUBMIT", "SUSPEND", "THROTTLE", "TRANSFER"}  # fmt: skip
_PEER = re.compile(r"\{(FQDN|IP)=([^{}]{1,255})\}")
_LAST = re.compile(r"(?:last endpoint attempted was |LastAttempted(?:Server)?IP=)([\da-fA-F.:\[\]]{3,50})")
_NO_SESSION = re.compile(r"Failed to connect|Winsock|SocketError|[Cc]annot connect|[Cc]onnection (?:refused|timed out)")
_COMMAND = re.compile(r'((?i:MAIL FROM|RCPT TO)):\s*<((?:"(?:[^"\\]|\\.)*+")?[^>]*+)>|([A-Z][A-Z-]{2,19})(?= |$)')
_TLS = re.compile(r"TLS|[Cc]ertificate")
_MESSAGE = re.compile(r"InternetMessageId (<[^<>]{1,998}>)")
_TROUBLE = re.compile(r"(?i)fail|error|denied|refused|timed? ?out|could not|cannot|expired|not offered|required")
_ENDS = {"DATA": "relay", "BDAT": "inbox", "END": "inbox"}
_STEPS = {"": "rules", "EHLO": "rules", "HELO": "rules", "AUTH": "rules", "STARTTLS": "encryption",
          "X-ANONYMOUSTLS": "encryption", "MAIL FROM": "relay", "RCPT TO": "relay", "DATA": "relay"}  # fmt: skip


def sniff(line: str) -> bool:
    """True for a header line of Exchange's transport logs."""
    line = line.lstrip("\ufeff").strip('"')
    return line.startswith("#Software: Microsoft Exchange") or bool(_named([line]))


def rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per recipient of a tracked delivery, failure or delay; of the protocol one per recipient and reply.

    A connection that got nowhere is a row too, without a recipient. `direction` is in for mail from outside. Lines
    hold by the last `#Fields:` before them; what does not fit is a row that says so. Held in memory: 10,000 sessions.
    """
    sessions: dict[str, _Session] = {}
    inbound = False  # the protocol of receive connectors: strangers, and ports of theirs

    def named(record: list[str]) -> list[str]:
        nonlocal inbound
        if record and record[0].startswith("#Log-type:"):
            inbound = "Receive" in record[0]
        return _named(record)

    for number, fields, record in tabled(lines, named):
        if not fields:
            yield unfit(number, f"no line of a transport log: its {len(record)} fields are not those named before it")
        elif (name := fields.get("session_id")) is None:
            yield from tracked(fields, number)
        elif not inbound:
            if name not in sessions and len(sessions) >= _SESSIONS:
                yield from sessions.pop(next(iter(sessions))).end("")
            yield from sessions.setdefault(name, _Session()).read(fields, number)
            if fields["event"] == "-":
                del sessions[name]
    for session in sessions.values():
        yield from session.end("")


def _named(record: list[str]) -> list[str]:
    names = [name.strip().lower().replace("-", "_") for name in ",".join(record).partition("#Fields:")[2].split(",")]
    return names if _TRACKED.issubset(names) or _PROTOCOL.issubset(names) else []


def tracked(fields: dict[str, str], number: int) -> Iterator[dict[str, Any]]:
    """The rows of one tracked event; those on the way give none, one that is not known has no outcome and says so."""
    event, source = fields["event_id"].strip().upper(), fields.get("source", "").upper()
    if event in _ELSE:
        return
    recipients, given = listed(fields["recipient_address"]) or [""], fields.get("recipient_status", "")
    statuses = [given] if len(recipients) == 1 else listed(given)
    if len(recipients) > 1 and "[{LED=" in given:  # the texts hold semicolons of their own
        statuses = ["[{LED=" + one.rstrip(";") for one in given.split("[{LED=")[1:]]
    if len(statuses) != len(recipients):
        statuses = [given if len(set(statuses)) == 1 else ""] * len(recipients)
    for recipient, status in zip(recipients, statuses, strict=True):
        text = status.partition("{LED=")[2].partition("};{")[0] if "{LED=" in status else status
        text = text[1:].rstrip(" '") if text.startswith("'") else text
        peer, last = dict(_PEER.findall(status)), _LAST.search(text)
        if event in ("SEND", "SENDEXTERNAL"):
            peer = {"FQDN": fields.get("server_hostname"), "IP": fields.get("server_ip")}
        address, port = endpoint(last[1].rstrip(".") if last else peer.get("IP") or "")
        expired = event == "FAIL" and ("QUEUE.Expired" in text or "essage expired" in text)
        tried = source in ("SMTP", "STOREDRIVER") and event in ("SEND", "SENDEXTERNAL", "DELIVER", "FAIL", "DEFER")
        connect = bool(_NO_SESSION.search(text))
        made, outcome = said(text), _EVENTS.get(event)
        if connect or ("{LED=" in status and not peer.get("IP")):
            made["reply_code"] = None  # it is of Exchange itself
        if outcome is None:
            made["text"] = f"event {event[:40]!a}: {text}".rstrip(": ")
        yield made | {
            "time": fields.get("date_time") or fields.get("date_time_utc"),
            "line": number,
            "direction": "in" if fields.get("directionality", "").lower() in ("incoming", "inbound", "1") else "out",
            "sender": fields.get("sender_address") or fields.get("return_path") or None,
            "recipient": recipient or None,
            "host": peer.get("FQDN") or None,
            "address": address,
            "port": port,
            "outcome": outcome,
            "attempted": tried and not expired,
            "step": "inbox" if outcome == "passed" else "connect" if connect else None,
            "hint": "expired" if expired else None if outcome else "unreadable",
            "queue_id": fields.get("internal_message_id") or None,
            "message_id": fields.get("message_id") or None,
        }


class _Session:
    """One session of the protocol log: the commands that wait for a reply, the recipients for a verdict."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {"direction": "out", "attempted": True}
        self.waiting = deque([("", "")])  # commands with their address; the first is the wait for a greeting
        self.taken: list[str] = []
        self.trouble, self.step, self.refused = "", "connect", ""
        self.greeted = self.told = False

    def read(self, fields: dict[str, str], number: int) -> Iterator[dict[str, Any]]:
        event, data, (address, port) = fields["event"], fields["data"], endpoint(fields["remote_endpoint"])
        self.about |= {"time": fields.get("date_time"), "line": number, "queue_id": fields["session_id"]}
        self.about |= {"address": address, "port": port} if address else {}
        note = fields.get("context") or data
        if event == "+":
            self.step = "rules"
        elif event == ">" and (command := _COMMAND.match(data)):
            chunk = command[3] == "BDAT" and not data.upper().endswith("LAST")
            self.waiting.append(("CHUNK" if chunk else (command[1] or command[3]).upper(), command[2] or ""))
            if len(self.waiting) + len(self.taken) > _WAITING:
                yield from self.end("")
        elif event == "<" and data[:3].isdigit() and data[3:4] != "-":
            yield from self._reply(data)
        elif event == "*" and (found := _MESSAGE.search(note)):
            self.about["message_id"] = found[1]
        elif event == "*" and not self.greeted and _NO_SESSION.search(note):
            yield self._row(None, note, "connect")
        elif event == "*" and _TROUBLE.search(note):
            self.trouble, self.step = note, "encryption" if _TLS.search(note) else self.step
        elif event == "-":
            yield from self.end(note or "connection closed")

    def _reply(self, text: str) -> Iterator[dict[str, Any]]:
        command, whose = self.waiting.popleft() if self.waiting else ("END", "")
        self.greeted, good = True, text[0] in "23"
        if text[0] == "3" and command != "DATA":  # a login goes on
            self.waiting.appendleft((command, whose))
        elif command == "" and good:
            self.about["host"] = text[3:].split()[0] if text[3:].split() else None
        elif command == "DATA" and text[0] == "3":
            self.waiting.append(("END", ""))
        elif command == "RCPT TO" and good:
            self.taken.append(whose)
        elif command == "RCPT TO":  # if MAIL was refused, that reply says why
            yield self._row(whose, self.refused or text, "relay")
        elif command in ("MAIL FROM", "RSET", "DATA", "BDAT", "END"):
            for recipient in self.taken:
                yield self._row(recipient, text if command in _ENDS else command, _ENDS.get(command))
            self.taken, self.refused = [], text if command == "MAIL FROM" and not good else ""
        if command == "MAIL FROM":
            self.about["sender"] = whose or None
        if not good and command in _STEPS:
            self.trouble, self.step = text, _STEPS[command]

    def _row(self, recipient: str | None, text: str, step: str | None, hint: str | None = None) -> dict[str, Any]:
        self.told = True
        outcome = {"2": "passed", "5": "failed"}.get(text[:1], "deferred")
        return self.about | said(text) | {"recipient": recipient, "outcome": outcome, "step": step, "hint": hint}

    def end(self, why: str) -> Iterator[dict[str, Any]]:
        """The recipients without a verdict, or the connection itself if it got nowhere; no `why`: the log ends here."""
        commands = {command for command, _ in self.waiting}
        step = "inbox" if commands & {"BDAT", "END"} else "relay"
        for recipient in [*self.taken, *(whose for command, whose in self.waiting if command == "RCPT TO")]:
            if why:
                yield self._row(recipient, self.refused or why, step, "connect")
            else:
                yield self._row(recipient, "no reply in this log", None) | {"outcome": None}
        if why and not self.told and (self.trouble or not self.greeted):
            yield self._row(None, self.trouble or why, self.step, None if self.trouble[:3].isdigit() else "connect")
        self.taken, self.waiting = [], deque()
