"""An IMAP mailbox as a source of messages: over TLS, read-only, with bounds on all that the server says.

Sources: RFC 5092 (URLs), RFC 3501 (EXAMINE and BODY.PEEK change no flag; names in modified UTF-7), RFC 8314 (ports).
"""

from __future__ import annotations

import base64
import imaplib
import netrc
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate, groupby
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from deliverkit.errors import FormatError

_CONNECT_S, _COMMAND_S, _SLOWEST = 30, 60, 1 << 15  # the last in bytes/s: a large reply may take longer than a command
_LARGEST, _BATCH, _COUNT = 1 << 26, 1 << 23, 100  # bytes of a message, bytes and messages fetched with one command
_WORDS = 1 << 20  # bytes of a reply without its messages; 8 times that for the list of all UIDs
_PATH = re.compile(r"/([^;]+?)/?(?:;UIDVALIDITY=(\d{1,10}))?(?:/;UID=(\d{1,10}))?", re.I)
_PORTS = {"imaps": 993, "imap": 143}
_WHERE = "give it as password=, in DELIVERKIT_IMAP_PASSWORD or in ~/.netrc"


def messages_of(url: str, password: str | None = None) -> Iterator[tuple[str, bytes]]:
    """(URL of the message, message) of each message of imaps://user@host[:port]/mailbox, in the order of UIDs.

    imap:// means STARTTLS or nothing. `password` stands before DELIVERKIT_IMAP_PASSWORD and ~/.netrc. A file named by
    DELIVERKIT_IMAP_CA has the authorities to trust instead of the system's. Of a message come at most 64 MiB. Raises
    FormatError, also in the middle: it then says how many messages had been read.
    """
    try:
        at = urlsplit(url)
        found, host, user = _PATH.fullmatch(at.path), at.hostname or "", (at.username or "").partition(";")[0]
        mailbox, port = unquote(found[1] if found else "", errors="strict"), at.port or _PORTS[at.scheme]
        user = unquote(user, errors="strict")
        if not found or not host or at.query or at.fragment or re.search(r"[\0-\x1f\x7f]", user + mailbox):
            raise ValueError
    except (ValueError, KeyError):  # what it holds may be a password, and is not repeated
        raise FormatError("imaps://…", "is no URL of the form imaps://user@host[:port]/mailbox") from None
    place = f"{f'[{host}]' if ':' in host else host}{f':{at.port}' if at.port else ''}/{quote(mailbox)}"
    if at.password is not None:
        raise FormatError(f"{at.scheme}://{place}", f"a password in a URL ends up in histories and logs: {_WHERE}")
    user, secret = _credentials(place, host, user, password or os.environ.get("DELIVERKIT_IMAP_PASSWORD"))
    server = _Server(f"{at.scheme}://{quote(user, safe='')}@{place}", secret)
    try:
        server.ask("cannot be reached", server.enter, host, port, words=_WORDS >> 6)
        server.log_in(user, mailbox)
        yield from server.messages(found[2], found[3])
    finally:
        with suppress(OSError, AttributeError):  # as there may be no connection
            server.shutdown()


def _credentials(name: str, host: str, user: str, secret: str | None) -> tuple[str, str]:
    if not (user and secret):
        try:
            login, _, known = netrc.netrc().authenticators(host) or ("", "", "")
            user, secret = (login, known) if user in ("", login) else (user, secret)
        except FileNotFoundError:
            pass
        except (netrc.NetrcParseError, OSError, ValueError):  # its text may quote a password
            raise FormatError(
                "~/.netrc", "cannot be read: it has to be private (chmod 600), yours and complete"
            ) from None
    if not (user and secret):
        raise FormatError(name, f"needs {'a password' if user else 'a user (imaps://user@…) and a password'}: {_WHERE}")
    return user, secret


def _utf7(name: str) -> str:
    """A mailbox name in modified UTF-7 (RFC 3501, section 5.1.3)."""
    runs = re.split("([^ -~]+)", name.replace("&", "&-"))
    runs[1::2] = [base64.b64encode(run.encode("utf-16be"), b"+,").decode().rstrip("=") for run in runs[1::2]]
    return "".join(f"&{run}-" if odd % 2 else run for odd, run in enumerate(runs))


class _Server(imaplib.IMAP4):
    """A connection that takes no more bytes, and no more time, than the command at hand deserves."""

    def __init__(self, name: str, secret: str) -> None:
        self._name, self._secret, self._held, self._read, self._all = name, secret, bytearray(), 0, 0

    def enter(self, host: str, port: int) -> None:
        self._context = ssl.create_default_context(cafile=os.environ.get("DELIVERKIT_IMAP_CA"))
        super().__init__(host, port, _CONNECT_S)
        if not self._name.startswith("imaps:"):
            self.starttls(self._context)

    def log_in(self, user: str, mailbox: str) -> None:
        if self.state == "NONAUTH" and "AUTH=PLAIN" in self.capabilities:
            plain = f"\0{user}\0{self._secret}".encode()
            self.ask("refuses the login", self.authenticate, "PLAIN", lambda _: plain)
        elif self.state == "NONAUTH":
            self.ask("refuses the login", self.login, self._quote(user), self._secret)
        self.ask("cannot be opened", self.select, self._quote(_utf7(mailbox)), True)

    def messages(self, validity: str | None, uid: str | None) -> Iterator[tuple[str, bytes]]:
        known = "".join(re.findall(r"\d{1,10}", str(self.untagged_responses.get("UIDVALIDITY")))[:1])
        if validity and validity != known:
            raise self._problem(f"UIDVALIDITY is {known or 'unknown'} now: its messages have other UIDs than before")
        found = self.ask("cannot be listed", self.uid, "SEARCH", f"UID {uid}" if uid else "ALL", words=8 * _WORDS)
        uids = sorted({int(number) for number in re.findall(r"\d{1,10}", str(found))})
        if not uids:
            raise self._problem("there is no message in it")
        self._all, base = len(uids), f"{self._name}{f';UIDVALIDITY={known}' if known else ''}/;UID="
        for start in range(0, len(uids), _COUNT):
            some = uids[start : start + _COUNT]
            sizes = dict.fromkeys(some, 0) | {number: size for number, size, _ in self._fetch(some, "RFC822.SIZE", 0)}
            sums = dict(zip(some, accumulate(map(sizes.__getitem__, some)), strict=True))
            for _, group in groupby(some, key=lambda number: sums[number] // _BATCH):
                batch = [*group]
                total = sum(min(sizes[number], _LARGEST) for number in batch)
                part = f"<0.{_LARGEST}>" if total >= _LARGEST else ""
                answers = self._fetch(batch, f"BODY.PEEK[]{part}", 2 * total + _WORDS)  # some state sizes as they like
                bodies = {number: body for number, _, body in answers if body is not None}
                for number in (number for number in batch if number in bodies):
                    self._read += 1
                    yield f"{base}{number}", bodies.pop(number)
        if self._read < self._all:
            raise self._problem("some were gone, or withheld")
        with suppress(FormatError):
            self.ask("does not part", self.logout)

    def _fetch(self, uids: list[int], what: str, literals: int) -> Iterator[tuple[int, int, bytes | None]]:
        """UID, size if asked for, and message of each reply."""
        words, body = list[bytes](), None
        self.untagged_responses.clear()
        wanted = ",".join(map(str, uids)), f"({what})"
        for piece in self.ask("breaks off", self.uid, "FETCH", *wanted, literals=literals):
            if isinstance(piece, tuple):
                words.append(piece[0])
                body = piece[1] if re.search(rb"BODY\[\](?:<0>)? \{\d+\}$", piece[0]) else body
            else:
                about = dict(re.findall(rb"\b(UID|SIZE) (\d{1,12})\b", b" ".join([*words, piece or b""])))
                if b"UID" in about:
                    yield int(about[b"UID"]), int(about.get(b"SIZE", 0)), body
                words, body = [], None

    def ask(self, trouble: str, call: Callable[..., Any], *args: Any, words: int = _WORDS, literals: int = 0) -> Any:
        """What the server answers to a command, of at most so many bytes; FormatError says what came instead."""
        self._words, self._literals = words, literals
        self._ends = time.monotonic() + _COMMAND_S + (words + literals) / _SLOWEST
        try:
            said, answer = call(*args) or ("OK", None)
        except Exception as problem:  # noqa: BLE001 - odd replies make imaplib raise whatever it happens to be
            known = isinstance(problem, self.error | OSError) and (getattr(problem, "strerror", None) or str(problem))
            said, answer = "", [str(known or type(problem).__name__).encode()]
        if said == "OK":
            return answer
        last = (answer or [b""])[-1]
        raise self._problem(f"{trouble}: {str(last, 'utf-8', 'replace') if isinstance(last, bytes) else said}")

    def _problem(self, text: str) -> FormatError:
        text = "".join(c if c.isprintable() else " " for c in text.replace(self._secret, "…")[:300])
        so_far = f" ({self._read} of {self._all} messages were read)" if self._all else ""
        return FormatError(self._name, " ".join(text.split()) + so_far)

    def _create_socket(self, timeout: float | None = None) -> socket.socket:
        plain: socket.socket = super()._create_socket(timeout)  # type: ignore[misc]
        return self._context.wrap_socket(plain, server_hostname=self.host) if self._name.startswith("imaps:") else plain

    def readline(self) -> bytes:
        while not (end := self._held.find(b"\n") + 1):
            self._more(self._words - len(self._held))
        self._words -= end
        return self._take(end)

    def read(self, size: int) -> bytes:
        self._literals -= size
        while len(self._held) < size or self._literals < 0:
            self._more(self._literals)
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def _more(self, left: int) -> None:
        """Read what is there; before TLS byte by byte, so that nothing said in the clear counts for said under TLS."""
        if left < 0:
            raise self.abort("the server says more than it was asked for")
        self.sock.settimeout(max(0.001, self._ends - time.monotonic()))
        data = self.sock.recv(1 << 16 if isinstance(self.sock, ssl.SSLSocket) else 1)
        if not data:
            raise self.abort("the server closed the connection")
        self._held += data
