"""Bounce messages: a row for each recipient that a delivery report, a bounce in words or a complaint names.

Sources: RFC 3464 (delivery reports), RFC 5965 (complaints), RFC 3834 (automatic answers). The returned message
gives its Message-ID and, where nothing else does, whom it was for; never a code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime
from itertools import groupby, pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from deliverkit.bounces.mail import WORDS, Fields, Mail, messages, take_apart
from deliverkit.classify import classify
from deliverkit.errors import FormatError
from deliverkit.files import Part, Source, parts

Row = dict[str, Any]
_HEADER = {"from", "to", "subject", "date", "received", "return-path", "message-id"}
_OUTCOMES = {"delayed": "deferred", "delivered": "passed", "relayed": "passed", "expanded": "passed"}


def read_bounces(path: Source) -> pd.DataFrame:
    """ATTEMPTS from a message, an mbox, a Maildir, a folder, a zip or tar archive, or a gzipped file.

    A row per recipient reported; a message that reports nothing, or is none, has a row that says so in `rule`.
    `source` is the file (members as "archive.zip!name"), `line` the number of the message in it. `port` is known
    only where the message states it. Raises FormatError for a missing path and where there is no file.
    """
    place = Path(path) if isinstance(path, str | PathLike) else path
    files = _files(place) if isinstance(place, Path) else place if isinstance(place, list | tuple) else [place]
    return classify(_read(files, alone=list(files) == [place]))


def _files(path: Path) -> list[Path]:
    """The files of a folder or Maildir; a file is its own."""
    box = (path / "cur").is_dir()  # a Maildir, whose subfolders are hidden
    shown = (f for f in path.rglob("*") if box or "/." not in f"/{f.relative_to(path).as_posix()}")
    return sorted(f for f in shown if (not box or f.parent.name in ("cur", "new")) and f.is_file()) or [path]


def _read(files: Sequence[Any], alone: bool) -> Iterator[Row]:
    """The rows of all messages; a damaged file among others is a row that says so."""
    for file in tqdm(files, unit=" files", leave=False, delay=1, disable=None):
        try:
            for part in parts([file] if isinstance(file, Part) else file):
                with part.open() as stream:
                    for number, message in enumerate(messages(stream), 1):
                        yield from (row | {"source": part.name, "line": number} for row in _rows(take_apart(message)))
        except FormatError as problem:
            if alone:
                raise
            yield {"hint": "unreadable", "attempted": False, "text": str(problem), "source": problem.path, "line": 1}


def _rows(mail: Mail) -> Iterator[Row]:
    """At least one row for a message: per recipient reported, else what kind of message it is."""
    top, subject, sender = mail.headers, *(_decoded(mail.headers.get(n, "")) for n in ("subject", "from"))
    own = mail.returned.get("message-id") or top.get("x-original-message-id") or top.get("in-reply-to", "")
    number = WORDS["id"].search(f"Message-ID: {own}\n{mail.notice}")
    base: Row = {"origin": "dsn", "attempted": False, "time": _time(top.get("date"), top.get("arrival-date")),
                 "text": subject or None, "message_id": number[1] if number else None,
                 "queue_id": next((v for k, v in top.items() if k.endswith("queue-id")), None)}  # fmt: skip
    marked = mail.returned.get("x-hmxmroriginalrecipient")
    if not top.keys() & _HEADER:
        yield base | {"hint": "unreadable", "text": "not a mail message: no header field in it, or nothing at all"}
    elif "feedback-type" in top or marked:
        to = top.get("original-rcpt-to") or top.get("removal-recipient") or marked or mail.returned.get("to", "")
        base |= {"origin": "arf", "hint": "arf", "outcome": "passed", "text": top.get("feedback-type", subject)}
        yield from (base | {"recipient": address} for address in dict.fromkeys(map(_first, to.split("\n"))))
    elif mail.groups:
        blocks, lone = dict(_blocks(mail)), mail.notice if len(mail.groups) < 2 else ""
        for group in mail.groups:
            named = [group.get(f"{n}-recipient", "").rpartition(";")[2].strip(" <>") for n in ("final", "original")]
            address = next(filter(None, [*filter(WORDS["whole"].match, named), *map(_first, named), *named]), None)
            yield base | _row(address, blocks.get((address or "").lower()) or lone, group)
    elif (kind := _kind(mail, subject, sender)) == "bounce":
        warned = WORDS["delayed"].search(subject) or WORDS["delayed"].search(mail.notice)
        base["queue_id"] = found[1] if (found := WORDS["queue"].search(mail.notice)) else base["queue_id"]
        for address, said in _named(mail, _first(sender) or ""):
            yield base | _row(address, said, {"action": "delayed" if warned else "failed"})
    else:
        answer = {"outcome": "passed", "recipient": _first(sender)} if kind == "auto-reply" else {}
        yield base | {"hint": kind} | answer


def _kind(mail: Mail, subject: str, sender: str) -> str:
    """A bounce has a daemon as author, or no return path, or a subject that says so and a server's words."""
    called = WORDS["failed"].search(subject) or WORDS["delayed"].search(subject)
    answered = WORDS["answer"].match(subject)
    stated = [mail.headers.get(n, "") for n in ("precedence", "x-autoreply", "x-autorespond", "auto-submitted")]
    answer = answered or any(map(WORDS["automatic"].match, stated))
    silent = mail.headers.get("return-path", "").upper() in ("<>", "<MAILER-DAEMON>") and not answer
    daemon = (called or not answered) and WORDS["daemon"].search(sender)
    said = called and (WORDS["codes"].search(mail.notice) or WORDS["failed"].search(mail.notice))
    if "x-failed-recipients" in mail.headers or silent or daemon or said:
        return "bounce"
    return "auto-reply" if answer else "not-bounce"


def _row(address: str | None, block: str, stated: Fields) -> Row:
    """A row for one recipient, from the fields about it and, where these are thin, the reporter's words."""
    said = WORDS["prefix"].sub("", stated.get("diagnostic-code", ""), count=1)
    reply, code = _codes(said)
    if sum(map(str.isalpha, said[:40])) < 12:
        said = f"{said}\n{block}"
        reply, code = (reply, code) if reply or code else _codes(said)
    status = WORDS["status"].search(stated.get("status", ""))
    if status and (code is None or (code.endswith(".0.0") and not status[1].endswith(".0.0"))):
        code = status[1]
    action = stated.get("action", "").partition("(")[0].strip().lower()
    outcome = _OUTCOMES.get(action, "passed" if (code or "").startswith("2") or reply == 250 else "failed")
    ended = code.startswith(("4.0.", "4.4.", "5.4.7")) if code else WORDS["gave_up"].search(block)
    hint = {"deferred": "delayed", "passed": "delivered"}.get(outcome, "expired" if ended and not reply else "final")
    row: Row = {"time": when} if (when := _time(stated.get("last-attempt-date"))) else {}
    for found in [*WORDS["remote"].finditer(stated.get("remote-mta", "")), WORDS["peer"].search(said[:500])]:
        row = {n.strip("_"): v for n, v in (found.groupdict() if found else {}).items() if v} | row
    return row | {"recipient": address or None, "outcome": outcome, "hint": hint, "attempted": True,
                  "reply_code": reply, "status_code": code, "text": " ".join(said.split())[:2000] or None}  # fmt: skip


def _named(mail: Mail, sender: str) -> Iterator[tuple[str, str]]:
    """(recipient, words about it): by a header, by lines that begin with an address, by any address."""
    texts: dict[str, str] = {}
    for address, words in _blocks(mail):
        texts[address] = max(texts.get(address, ""), words, key=len)
    own = {sender.lower(), (_first(mail.headers.get("to", "")) or "").lower()}
    named = WORDS["address"].findall(mail.headers.get("x-failed-recipients", ""))
    named = named or [a for a in texts if a not in own] or [*texts][:1]
    near = [] if named else [a for a in WORDS["near"].findall(mail.notice) if not WORDS["daemon"].search(a)]
    last = [a for a in near if a.lower() not in own] or near or [_first(mail.returned.get("to", "")) or ""]
    for address in dict.fromkeys(named or last[:1]):
        said, reply = texts.get(address.lower(), ""), WORDS["reply"].search
        if len(named) < 2 and (sum(map(str.isalpha, said)) < 4 or (not reply(said) and reply(mail.notice))):
            said = mail.notice
        yield address, said


def _blocks(mail: Mail) -> list[tuple[str, str]]:
    """(address, words about it) of each line that begins with an address, in order."""
    leads = [next(same) for _, same in groupby(WORDS["lead"].finditer(mail.notice), lambda found: found[1].lower())]
    if leads:
        ends = [*(found.start() for found in leads[1:]), len(mail.notice)]
        return [(f[1].lower(), mail.notice[f.end(1) + 1 : end]) for f, end in zip(leads, ends, strict=True)]
    leads = [*WORDS["coded"].finditer(mail.notice)]
    ends = [0, *(found.end() for found in leads[:-1]), len(mail.notice)]
    return [(f[1].lower(), mail.notice[a:z]) for f, (a, z) in zip(leads, pairwise(ends), strict=False)]


def _codes(said: str) -> tuple[int | None, str | None]:
    """Reply code and enhanced code: the last pair, as that is what the far end said; else each alone."""
    if pairs := WORDS["codes"].findall(said):
        pair = [p for p in pairs if p[0] > "4"] or pairs
        return int(pair[-1][0]), pair[-1][1]
    reply, status = WORDS["reply"].search(said), WORDS["status"].search(said)
    return int(reply[1]) if reply else None, status[1] if status else None


def _decoded(value: str) -> str:
    with suppress(ValueError, LookupError):
        return str(make_header(decode_header(value[:2000]))) if "=?" in value else value
    return value


def _time(*stated: str | None) -> datetime | None:
    for value in filter(None, stated):
        with suppress(ValueError, IndexError, TypeError, OverflowError):
            made = parsedate_to_datetime(value[:200])
            return made.replace(tzinfo=made.tzinfo or UTC).astimezone(UTC)
    return None


def _first(value: str) -> str | None:
    return found[0] if (found := WORDS["address"].search(value)) else None
