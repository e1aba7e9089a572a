"""Bounce messages: a row for each recipient that a delivery report, a bounce in words or a complaint names.

Sources: RFC 3464 (delivery reports), RFC 5965 (complaints), RFC 3834 (automatic answers). The returned message
gives its Message-ID and, where nothing else does, whom it was for; never a code.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.errors import MessageError
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import groupby, pairwise
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from deliverkit.bounces.mail import WORDS, Fields, Mail, take_apart
from deliverkit.bounces.sources import messages
from deliverkit.classify import judged, settled
from deliverkit.errors import DeliverkitError, FormatError
from deliverkit.files import Part, Source, streams

Row = dict[str, Any]
_Message = tuple[str, int, bytes | str]  # source, number in it, the message or what is wrong with the source
_BATCH, _BYTES = 4_000, 1 << 25  # messages and bytes judged at once
_IMAP = re.compile(r"imaps?://", re.I)
_HEADER = {"from", "to", "subject", "date", "received", "return-path", "message-id"}
_SENT_TO = ("x-original-to", "envelope-to", "delivered-to", "to")  # a bounce goes to the envelope's sender
_AUTOMATIC = ("precedence", "x-autoreply", "x-autorespond", "auto-submitted")
_HOTMAIL = "x-hmxmroriginalrecipient"  # marks its complaints
_DATE = re.compile(
    r"\s{0,9}(?:[a-z]{3},)?\s{0,9}(\d{1,2})\s([a-z]{3})\s(\d{4})\s(\d\d):(\d\d):(\d\d)\s([+-])(\d\d)(\d\d)\b", re.I
)
_MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"
_OUTCOMES = {"delayed": "deferred", "delivered": "passed", "relayed": "passed", "expanded": "passed"}


def read_bounces(path: Source, *, workers: int = 1, password: str | None = None) -> pd.DataFrame:
    """ATTEMPTS from a message, an mbox, a Maildir, a folder, a zip or tar archive, a gzipped file, or an IMAP mailbox.

    A row per recipient reported; a message that reports nothing, or is none, has a row that says so in `rule`.
    `source` is the file (members as "archive.zip!name"), `line` the number of the message in it. `sender` is the
    address the bounce came back to, `field` and `matched` are what the verdict rests on. `port` is known only where
    the message states it. `workers` processes give the same rows in the same order (a script that asks for several
    starts under `if __name__ == "__main__"`). A mailbox is "imaps://user@host/folder": read over TLS, never changed;
    its password is `password`, the environment's DELIVERKIT_IMAP_PASSWORD or that of ~/.netrc. No message raises.
    Raises FormatError for a missing path, where there is no file, and for a mailbox that cannot be opened.
    """
    given: Any = path if isinstance(path, list | tuple) else [path]
    if not all(isinstance(one, Part) or (isinstance(one, str | PathLike) and str(one)) for one in given):
        raise FormatError(path, "is not a path")
    whole = [isinstance(one, Part) or _IMAP.match(str(one)) for one in given]
    files = [file for one, as_is in zip(given, whole, strict=True) for file in ([one] if as_is else _files(one))]
    alone = len(files) == 1 and given is not path and Path(str(files[0])) == Path(str(path))
    batches = _batches(_found(files, password, alone))
    try:
        return settled(map(_frame, batches) if workers < 2 else _spread(batches, workers))
    except BrokenProcessPool:
        raise DeliverkitError('several workers need a script that starts under if __name__ == "__main__":') from None


def _spread(batches: Iterable[list[_Message]], workers: int) -> Iterator[pd.DataFrame]:
    """The frames of the batches in their order, made by several processes, with few batches under way."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        under_way: deque[Future[pd.DataFrame]] = deque()
        for batch in batches:
            under_way.append(pool.submit(_frame, batch))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _batches(found: Iterable[_Message]) -> Iterator[list[_Message]]:
    """Messages by the thousand, fewer if they are large."""
    batch, size = list[_Message](), 0
    for one in found:
        batch.append(one)
        size += len(one[2])
        if len(batch) >= _BATCH or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _frame(batch: Iterable[_Message]) -> pd.DataFrame:
    made: list[Row] = []
    for name, number, message in batch:
        if isinstance(message, str):
            made.append({"hint": "unreadable", "attempted": False, "text": message, "source": name, "line": 1})
            continue
        try:
            rows = list(_rows(take_apart(message)))
        except Exception as problem:  # noqa: BLE001 - a fault of ours costs one message, not the million beside it
            rows = [{"hint": "unreadable", "attempted": False, "text": f"cannot be read: {type(problem).__name__}"}]
        for row in rows:
            row["source"], row["line"] = name, number
        made += rows
    return judged(made)


def _files(path: str | PathLike[str]) -> list[str]:
    """The files of a folder or Maildir, in order; a file is its own."""
    box = (Path(path) / "cur").is_dir()  # a Maildir, whose subfolders are hidden
    found = [f for f in _below(str(path), box) if not box or Path(f).parent.name in ("cur", "new")]
    return sorted(found, key=lambda name: name.split("/")) or [str(path)]


def _below(folder: str, hidden: bool) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:  # no folder, or one that may not be read
        for entry in entries:
            if hidden or not entry.name.startswith("."):
                if entry.is_dir(follow_symlinks=False):
                    yield from _below(entry.path, hidden)
                elif entry.is_file():
                    yield entry.path


def _found(files: Sequence[Any], password: str | None, alone: bool) -> Iterator[_Message]:
    """Source, number and bytes of each message; a damaged source among others is a text that says so."""
    for file in tqdm(files, unit=" files", leave=False, delay=1, disable=None):
        read = 0
        try:
            for read, one in enumerate(_parted(file, password), 1):  # noqa: B007 - the count is wanted below
                yield one
        except FormatError as problem:
            if alone and not read:
                raise
            yield str(problem.path), 1, str(problem)


def _parted(file: Any, password: str | None) -> Iterator[_Message]:
    """The messages of one source."""
    if isinstance(file, str) and _IMAP.match(file):
        from deliverkit.bounces.imap import messages_of

        for name, message in messages_of(file, password):
            yield name, 1, message.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    else:
        for name, stream in streams(file):
            for number, message in enumerate(messages(stream), 1):
                yield name, number, message


def _rows(mail: Mail) -> Iterator[Row]:
    """At least one row for a message: per recipient reported, else what kind of message it is."""
    top, subject, sender = mail.headers, *(_decoded(mail.headers.get(n, "")) for n in ("subject", "from"))
    base: Row = {"origin": "dsn", "attempted": False, "time": _time(top.get("date"), top.get("arrival-date")),
                 "text": subject or None, "message_id": _message_id(mail), "field": "Subject",
                 "sender": _sent_to(top),
                 "queue_id": next((v for k, v in top.items() if k.endswith("queue-id")), None)}  # fmt: skip
    if not top.keys() & _HEADER:
        text = "not a mail message: no header field in it, or nothing at all"
        yield base | {"hint": "unreadable", "text": text, "field": None}
    elif "feedback-type" in top or b"\nx-hmxmroriginalrecipient:" in mail.quoted:
        told = [*map(top.get, ("original-rcpt-to", "removal-recipient")), mail.returned.get(_HOTMAIL)]
        to = next((text for text in told if text), mail.returned.get("to", ""))
        base |= {"origin": "arf", "hint": "arf", "outcome": "passed", "text": top.get("feedback-type", subject)}
        base |= {"field": "Feedback-Type"} if "feedback-type" in top else {}
        yield from (base | {"recipient": address} for address in dict.fromkeys(_first(text) for text in to.split("\n")))
    elif mail.groups and not (mail.quotes and _person(mail, sender)):
        for group in mail.groups:
            named = [group.get(f"{n}-recipient", "").rpartition(";")[2].strip(" <>") for n in ("final", "original")]
            address = next(filter(None, [*filter(WORDS["whole"].match, named), *map(_first, named), *named]), None)
            if address and "@" not in address and (found := WORDS["generated"].search(mail.notice)):
                address = str(found[1])
            row = base | _row(address, group, partial(_about, mail, address))
            other = _first(named[1])
            yield row | {"original_recipient": other if other and other != address else None}
    else:
        kind, base["field"], base["matched"] = _kind(mail, subject, sender)
        if kind == "bounce":
            warned = WORDS["delayed"].search(subject) or WORDS["delayed"].search(mail.notice)
            base["queue_id"] = found[1] if (found := WORDS["queue"].search(mail.notice)) else base["queue_id"]
            base["matched"] = None
            for address, said in _named(mail, _first(sender) or ""):
                yield base | _row(address, {"action": "delayed" if warned else "failed"}, partial(str, said))
        else:
            answer = {"outcome": "passed", "recipient": _first(sender)} if kind == "auto-reply" else {}
            yield base | {"hint": kind} | answer


def _sent_to(top: Fields) -> str | None:
    """The envelope's sender of what bounced, whole: a VERP address has signs in it that others have not."""
    found = (WORDS["envelope"].search(top[name]) for name in _SENT_TO if name in top)
    return next((str(one[0]) for one in found if one), None)


def _message_id(mail: Mail) -> str | None:
    """Of the returned message: by its header, by a field about it, in the reporter's words."""
    top, own = mail.headers, mail.quoted.find(b"\nmessage-id:")
    named = [mail.original[own : own + 300].decode("ascii", "replace")] if own >= 0 else []
    named += [f"Message-ID: {top[n]}" for n in ("x-original-message-id", "in-reply-to") if n in top]
    for text in named:
        if found := WORDS["id"].search(text):
            return str(found[1])
    own_words = "" if mail.original else f"Message-ID: {mail.returned.get('message-id', '')}\n"
    return str(found[1]) if (found := WORDS["id"].search(own_words + mail.notice)) else None


def _kind(mail: Mail, subject: str, sender: str) -> tuple[str, str, str]:
    """What sort of message it is, and by what: the field, and its words.

    A bounce has a daemon as author, or no return path, or a subject that says so and a server's words.
    """
    top = mail.headers
    called = WORDS["failed"].search(subject) or WORDS["delayed"].search(subject)
    answered = WORDS["answer"].match(subject)
    stated = [(n, top[n]) for n in _AUTOMATIC if n in top and WORDS["automatic"].match(top[n])]
    silent = top.get("return-path", "").upper() in ("<>", "<MAILER-DAEMON>") and not (answered or stated)
    daemon = (called or not answered) and WORDS["daemon"].search(sender)
    if "x-failed-recipients" in top or silent or daemon:
        return "bounce", "text", ""
    if called and not _person(mail, sender) and any(WORDS[name].search(mail.notice) for name in ("codes", "failed")):
        return "bounce", "text", ""
    if answered or stated:
        return "auto-reply", *((stated[0][0].title(), stated[0][1][:200]) if stated else ("Subject", answered[0][:200]))
    return "not-bounce", "From", f"no mail system, no report: {sender[:150]}" if sender else "no author, no report"


def _person(mail: Mail, sender: str) -> bool:
    """True for somebody with a name who has a return path or writes to subscribers.

    A bounce has no return path (RFC 5321, section 4.5.5), or that of a gateway, which has no name.
    """
    top, name = mail.headers, sender.partition("<")[0].strip(' "')
    own = "list-unsubscribe" in top or _first(top.get("return-path", ""))
    return bool(own and name) and "@" not in name and not WORDS["daemon"].search(sender)


def _row(address: str | None, stated: Fields, block: Callable[[], str]) -> Row:
    """A row for one recipient, from the fields about it and, where these are thin, the reporter's words."""
    said, field = WORDS["prefix"].sub("", stated.get("diagnostic-code", ""), count=1), "Diagnostic-Code"
    reply, code = _codes(said)
    if sum(map(str.isalpha, said[:40])) < 12:
        said, field = f"{said}\n{block()}", "text"
        reply, code = (reply, code) if reply or code else _codes(said)
    status = WORDS["status"].search(stated.get("status", ""))
    if status and (code is None or (code.endswith(".0.0") and not status[1].endswith(".0.0"))):
        code = status[1]
    action = stated.get("action", "").partition("(")[0].strip().lower()
    outcome = _OUTCOMES.get(action, "passed" if (code or "").startswith("2") or reply == 250 else "failed")
    ended = code.startswith(("4.0.", "4.4.", "5.4.7")) if code else WORDS["gave_up"].search(block())
    if outcome == "deferred" and WORDS["gave_up"].search(said):  # OpenSMTPD calls its last report delayed
        outcome = "failed"
    hint = {"deferred": "delayed", "passed": "delivered"}.get(outcome, "expired" if ended and not reply else "final")
    row: Row = {"recipient": address or None, "outcome": outcome, "hint": hint, "attempted": True, "reply_code": reply,
                "status_code": code, "text": " ".join(said.split())[:2000] or None, "field": field}  # fmt: skip
    if when := _time(stated.get("last-attempt-date")):
        row["time"] = when
    remote, peer = stated.get("remote-mta", ""), said[:500]
    places = [*WORDS["remote"].finditer(remote)] if remote else []
    if "host" in peer or WORDS["peers"].search(peer):
        places += filter(None, [WORDS["peer"].search(peer)])
    for found in places:
        row = {n.strip("_"): v for n, v in found.groupdict().items() if v} | row
    return row


def _about(mail: Mail, address: str | None) -> str:
    """The reporter's words about one recipient of a report."""
    return dict(_blocks(mail)).get((address or "").lower()) or (mail.notice if len(mail.groups) < 2 else "")


def _named(mail: Mail, sender: str) -> Iterator[tuple[str, str]]:
    """(recipient, words about it): by a header, by lines that begin with an address, by any address."""
    texts: dict[str, str] = {}
    for address, words in _blocks(mail):
        texts[address] = max(texts.get(address, ""), words, key=len)
    own = {sender.lower(), (_first(mail.headers.get("to", "")) or "").lower()}
    named = WORDS["address"].findall(mail.headers.get("x-failed-recipients", ""))
    leads = [a for a in texts if a not in own]
    if len(named) == len(leads) == 1 and named[0].lower() != leads[0]:  # an alias: the words say of whom
        named = leads
    named = named or [a for a in texts if a not in own] or [*texts][:1] or WORDS["generated"].findall(mail.notice)
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
    replies, status = WORDS["reply"].findall(said), WORDS["status"].search(said)
    refusal = next((reply for reply in replies if reply > "4"), replies[0] if replies else None)
    return int(refusal) if refusal else None, status[1] if status else None


def _decoded(value: str) -> str:
    with suppress(ValueError, LookupError, MessageError):
        return str(make_header(decode_header(value[:2000]))) if "=?" in value else value
    return value


def _time(*stated: str | None) -> datetime | None:
    for value in filter(None, stated):
        with suppress(ValueError, IndexError, TypeError, OverflowError):
            if found := _DATE.match(value):  # what nearly all say, at a tenth of the time
                day, month, year, hour, minute, second, sign, hours, minutes = found.groups()
                when = datetime(
                    int(year),
                    _MONTHS.index(month.lower()) // 3 + 1,
                    int(day),
                    int(hour),
                    int(minute),
                    int(second),
                    0,
                    UTC,
                )
                return when - timedelta(minutes=int(sign + "1") * (60 * int(hours) + int(minutes)))
            made = parsedate_to_datetime(value[:200])
            return made.replace(tzinfo=made.tzinfo or UTC).astimezone(UTC)
    return None


def _first(value: str) -> str | None:
    return str(found[0]) if (found := WORDS["address"].search(value)) else None
