"""One real submission as the sending system would make it: smtplib and dnspython, with deadlines and a row per step."""

from __future__ import annotations

import errno
import re
import smtplib
import socket
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd

from deliverkit.classify import classify
from deliverkit.errors import TargetError
from deliverkit.loop import why
from deliverkit.probe import IMPLICIT, cert_word, judge, safe, tls_word
from deliverkit.resolve import Answer, addresses
from deliverkit.schema import REHEARSAL
from deliverkit.targets import Job, is_ip, jobs_of, limits_of, routes_of

_STEPS = {"dns": "connect", "connect": "connect", "banner": "rules", "ehlo": "rules", "login": "rules", "mail": "relay",
          "rcpt": "relay", "data": "inbox", "quit": "rules"}  # fmt: skip  # else encryption
_REPLY = 65536  # bytes of a reply: nobody honest comes near
_WORD = r"[\w!#$%&'*+/=?^`{|}~-]+"
_ADDRESS = re.compile(rf"(?=[^@]{{1,64}}@.{{1,189}}$){_WORD}(?:\.{_WORD})*@[a-z\d-]+(?:\.[a-z\d-]+)*", re.A | re.I)


def rehearse(server: str, port: int = 587, *, security: str | None = None, user: str | None = None,
             password: str | None = None, token: str | None = None, mechanism: str | None = None,
             sender: str | None = None, to: str | None = None, trust: str | Path | None = None,
             connect_to: Mapping[Any, Any] | Iterable[str] | str | None = None, timeout: float | str = "standard",
             ehlo_name: str | None = None, vantage: str | None = None,
             resolver: Callable[[str], Answer] = addresses) -> pd.DataFrame:  # fmt: skip
    """Log in to a server and, with `to`, hand over one test message: a `REHEARSAL` frame, a row per step begun.

    `stage` is dns, connect, banner, ehlo, starttls, tls, ehlo_tls, login, mail, rcpt, data, quit; where `security` is
    "implicit" (by default on 465 and its like, else "starttls") tls comes first. After a step that failed there is only
    quit. `attempted` is True where the submission ended, so that it counts as one attempt. There is no login and no
    mail without TLS, and no message without `to`: one address of your own; `sender` is by default `user` or else `to`.
    A login takes `user` and `password` or an OAuth `token`; `mechanism` is by default the first of XOAUTH2, PLAIN and
    LOGIN that is offered. With a login or `trust` the certificate must hold for `server`; `trust` is a PEM file, or its
    text, trusted beside this machine's CAs: an own CA, a self-signed certificate, `dk.Lab().certificate`. Nothing turns
    that off. Password and token are in no row and no error: where the server repeats one, `text` has [credential].
    The rest is as in `dk.probe`. Raises TargetError for what must not be run.

    >>> from deliverkit import Lab
    >>> with Lab() as lab:
    ...     own = {"connect_to": lab.connect_to, "trust": lab.certificate}
    ...     steps = rehearse(lab.hosts[0], 465, user="me@example.com", password="secret", **own)
    >>> " ".join(steps["stage"])
    'connect tls banner ehlo login quit'
    """
    for given in (server, user, password, token, mechanism, sender, to, ehlo_name, vantage):
        if given is not None and not (isinstance(given, str) and re.fullmatch(r"[^\x00-\x1f\x7f]+", given)):
            raise TargetError("server, names, addresses and credentials are one line of text each, and not empty")
    jobs, limits = jobs_of(server, port, routes_of(connect_to)), limits_of(timeout)
    if len(jobs) != 1 or security not in ("implicit", "starttls", None) or not re.fullmatch("[!-~]*", ehlo_name or ""):
        raise TargetError("it takes one port, security 'implicit', 'starttls' or None, and one word as ehlo_name")
    sender = sender or (user if user and _ADDRESS.fullmatch(user) else to)
    for name, address in {"to": to, "sender": sender}.items():
        if address is not None and not _ADDRESS.fullmatch(address):
            raise TargetError(f"{name} should be one address in ASCII, such as me@example.com, not {address!r}")
    mode = security or ("implicit" if jobs[0].port in IMPLICIT else "starttls")
    session = _Session(jobs[0], limits, mode, _answers(user, password, token, mechanism), [password, token])
    del password, token  # a traceback that shows locals has nothing to show
    context = _context(trust, user)
    try:
        with suppress(_Ended):
            session.open(context, mode == "implicit", ehlo_name, resolver)
            if sender and to:
                session.hand_over(sender, to)
        session.rows[-1]["attempted"] = True
        if session.sock and session.rows[-1].get("reply_code") != 421:
            with suppress(_Ended):
                session.step("quit", session.docmd, "QUIT")
    finally:
        session.close()
    about = {"attempted": False, "origin": "probe", "mode": mode, "vantage": vantage}
    return classify([about | row for row in session.rows], REHEARSAL)


def _context(trust: str | Path | None, user: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate of one's own is trusted by itself
    context.load_default_certs()
    if not user and trust is None:  # nothing to lose: the certificate is heard and judged
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        if trust is not None:
            context.load_verify_locations(**{"cadata" if "-----BEGIN" in str(trust) else "cafile": str(trust)})
    except (OSError, ValueError):
        raise TargetError("trust should be a PEM file of certificates: its path or its text") from None
    return context


def _answers(user: str | None, password: str | None, token: str | None, mechanism: str | None) -> dict[str, list[str]]:
    """Mechanism, the best first -> what to say; the empty line of XOAUTH2 asks for the verdict after an error."""
    if mechanism and mechanism.upper() not in ("XOAUTH2", "PLAIN", "LOGIN"):
        raise TargetError(f"mechanism should be XOAUTH2, PLAIN or LOGIN, not {mechanism!r}")
    made = {"XOAUTH2": [f"user={user}\1auth=Bearer {token}\1\1", ""]} if token else {}
    made |= {"PLAIN": [f"\0{user}\0{password}"] * 2, "LOGIN": [f"{user}", password]} if password else {}
    made = {name: said for name, said in made.items() if name == (mechanism or name).upper()}
    if bool(user) != bool(made) or (mechanism and not made):
        raise TargetError("a login takes a user, and a password (PLAIN, LOGIN) or a token (XOAUTH2)")
    return made


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


class _Ended(Exception):
    """The submission ends here. The argument is what its last row says."""


class _Session(smtplib.SMTP):
    """smtplib's client with a deadline per step, where smtplib has one per read, and a bound on every reply."""

    sock: Any  # plain, then in TLS

    def __init__(self, job: Job, limits: dict[str, float], mode: str, answers: dict[str, list[str]],
                 secrets: list[Any]) -> None:  # fmt: skip
        super().__init__(local_hostname="set once connected")
        self.job, self.limits, self.answers, self.rows = job, limits, answers, list[dict[str, Any]]()
        self.mode = mode
        known_address = {"address": job.dial} if is_ip(job.dial) else {}
        self.about: dict[str, Any] = {"host": job.host, "port": job.port, **known_address}
        self.due, self.ends, self.rest, self.heard = 0.0, monotonic() + limits["total"], b"", b""
        known = [secret for secret in secrets if secret]
        forms = {*known, *(_base64(text) for said in (known, *answers.values()) for text in said if text)}
        # A long one may come back cut; a short one is a word of its own, or every text would be full of it
        whole, cut = r"(?<!\w){0}(?!\w)", r"{0}|{1}[\w+/=.~-]*"
        parts = [(cut if len(f) > 7 else whole).format(re.escape(f), re.escape(f[:8])) for f in sorted(forms, key=len)]
        self.secret = re.compile("|".join(reversed(parts)) or "(?!)", re.IGNORECASE)

    def open(self, context: ssl.SSLContext, implicit: bool, ehlo_name: str | None, resolver: Any) -> None:
        if "address" not in self.about:
            self.step("dns", self.look_up, resolver)
        self.step("connect", self.dial, ehlo_name)
        if implicit:
            self.step("tls", self.encrypt, context)
        self.step("banner", self.getreply)
        self.step("ehlo", self.ehlo)
        if not implicit:
            self.step("starttls", self.ask_tls)
            self.step("tls", self.encrypt, context)
            self.step("ehlo_tls", self.ehlo)
        if self.answers:
            self.step("login", self.log_in)

    def hand_over(self, sender: str, to: str) -> None:
        letter = EmailMessage()
        letter["From"], letter["To"], letter["Date"] = sender, to, localtime()
        letter["Message-ID"] = make_msgid(domain=sender.partition("@")[2])
        letter["Subject"] = f"deliverkit rehearsal through {self.job.host}, port {self.job.port}"
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content("A rehearsal by deliverkit: did our mail leave, did it arrive?\n")
        self.about |= {"recipient": to, "message_id": letter["Message-ID"]}
        self.step("mail", self.mail, sender)
        self.step("rcpt", self.rcpt, to)
        self.step("data", self.data, letter.as_bytes())

    def step(self, stage: str, act: Callable[..., tuple[int, bytes] | None], *args: Any) -> None:
        """Do one step in its time and note it; `_Ended` unless it passed."""
        began = monotonic()
        self.due = min(began + self.limits.get(stage, self.limits["ehlo"]), self.ends)
        self.row: dict[str, Any] = {"stage": stage, "step": _STEPS.get(stage, "encryption"), "outcome": "passed"}
        self.rows.append(self.row)
        try:
            self.row |= self.meaning(act(*args))
        except smtplib.SMTPDataError as no:  # no 354: even a 2xx took no message
            self.row |= self.meaning((no.smtp_code, b""))
            self.row["outcome"] = self.row["outcome"].replace("passed", "failed")
        except _Ended as end:
            self.row |= {"outcome": "failed"} | end.args[0]
        self.row |= self.about | {"took_s": monotonic() - began, "time": datetime.now(UTC)}
        if self.row["outcome"] != "passed":
            raise _Ended

    def words(self) -> str:
        """The last reply, fit to be shown."""
        text = self.secret.sub("[credential]", self.heard.decode("utf-8", "backslashreplace"))
        return safe(" ".join(text.split()), 2000)

    def meaning(self, reply: tuple[int, bytes] | None) -> dict[str, Any]:
        if not reply:
            return {}
        text, outcome = self.words(), {2: "passed", 4: "deferred"}.get(reply[0] // 100, "failed")
        status = re.match(r"\d{3}[ -]([245]\.\d{1,3}\.\d{1,3})\b", text)
        return {"outcome": outcome, "reply_code": reply[0], "status_code": status and status[1], "text": text}

    def lost(self, word: str, text: str | None = None, **columns: Any) -> _Ended:
        """Close the connection and say why, in the failures of `PROBES` and in words that `classify` knows."""
        self.close()
        stage, late = self.row["stage"], "conversation timed out" if word == "timeout" else "lost connection"
        broken = f"Cannot start TLS: {word.replace('_', ' ')}" if stage == "tls" or word[:4] == "tls_" else None
        said = text or broken or f"{late} while waiting in {stage}"
        wrong = {("banner", "starttls"): "implicit", ("tls", "implicit"): "starttls"}.get((stage, self.mode))
        if wrong and (self.job.port in IMPLICIT) == (wrong == "implicit"):
            said += f"; port {self.job.port} usually wants security='{wrong}'"
        return _Ended({"failure": word, "text": said, **columns})

    def wire(self, act: Callable[..., Any], *args: Any) -> Any:
        """One call on the socket within the deadline of the step."""
        try:
            if (left := self.due - monotonic()) <= 0:
                raise TimeoutError
            self.sock.settimeout(left)
            return act(*args)
        except ssl.SSLCertVerificationError as bad:
            word = cert_word(bad)
            seen = {"cert_matches" if word == "name_mismatch" else "cert_trusted": False, "cert_problem": word}
            raise self.lost(f"cert_{word}", f"Server certificate not verified: {bad.verify_message}", **seen) from None
        except ssl.SSLError as problem:
            word = tls_word(problem)
        except OSError as problem:
            word = "timeout" if isinstance(problem, TimeoutError) else "reset"
        raise self.lost(word)

    def send(self, s: Any) -> None:
        self.wire(self.sock.sendall, s.encode("ascii") if isinstance(s, str) else s)

    def getreply(self) -> tuple[int, bytes]:
        self.file, self.heard = self, b""  # smtplib reads what `readline` gives
        code, said = super().getreply()
        if not 200 <= code < 600:
            raise self.lost("not_smtp", f"no SMTP reply: {self.words()}", verdict="not_smtp")
        return code, said

    def readline(self, limit: int) -> bytes:
        while b"\n" not in self.rest and len(self.rest) < limit:
            got = self.wire(self.sock.recv, 4096)
            if not got and not self.rest:
                raise self.lost("eof")
            self.rest += got or b"\n"  # last words without a line end are still words
        line, end, self.rest = self.rest.partition(b"\n")
        self.heard += line + end
        if len(line) >= limit or len(self.heard) > _REPLY:
            raise self.lost("line_too_long", "the reply is too long", verdict="not_smtp")
        return line + end

    def look_up(self, resolver: Callable[..., Answer]) -> None:
        found, failure = resolver(self.job.dial)
        if not found:
            raise _Ended({"verdict": "dns_fail", "failure": failure, "text": f"no address: {failure}"})
        self.about["address"] = found[0]

    def dial(self, ehlo_name: str | None) -> None:
        try:
            self.sock = socket.create_connection((self.about["address"], self.job.dial_port), self.due - monotonic())
        except OSError as problem:
            seen = why(problem.errno or errno.ETIMEDOUT, False, {})  # Python's own time-out has no number
            raise _Ended({name: seen[name] for name in ("verdict", "failure", "errno", "text")}) from None
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        own = self.sock.getsockname()[0]
        self.local_hostname = ehlo_name or (f"[IPv6:{own}]" if ":" in own else f"[{own}]")

    def ask_tls(self) -> tuple[int, bytes]:
        if self.has_extn("starttls"):
            return self.docmd("STARTTLS")
        masked = any(re.search(r"^220[ -]\*{4}|[ -]X{3,}A?(?: |$)", str(row.get("text"))) for row in self.rows)
        seen = {"verdict": "tampered", "failure": "starttls_stripped"} if masked else {}
        raise _Ended({"text": "STARTTLS is not offered: there is no login and no mail without TLS", **seen})

    def encrypt(self, context: ssl.SSLContext) -> None:
        if self.rest:  # said in clear, by whoever stands between: never a reply within TLS (RFC 3207, section 6)
            raise self.lost("tls_protocol", "Cannot start TLS: more than the 220 came before it")
        host = self.job.host.rstrip(".")
        name = host if is_ip(host) else host.encode("idna").decode()
        self.sock = self.wire(lambda: context.wrap_socket(self.sock, False, False, server_hostname=name))
        self.wire(self.sock.do_handshake)
        self.about |= {"tls_version": self.sock.version(), "cipher": (self.sock.cipher() or [None])[0]}
        self.row |= judge(self.sock.getpeercert(True) or b"", (), self.job.host, datetime.now(UTC))
        if context.check_hostname:  # OpenSSL has seen the chain, too
            self.row |= {"cert_trusted": True, "cert_matches": True, "cert_problem": None}

    def log_in(self) -> tuple[int, bytes]:
        offered = self.esmtp_features.get("auth", "").upper().split()
        if not (mechanism := next(filter(offered.__contains__, self.answers), "")):
            what = safe(" ".join(offered), 200) or "no login"
            raise _Ended({"text": f"authentication failed: {what} is offered, not {' or '.join(self.answers)}"})
        self.row["mechanism"], error = mechanism, b""
        first, *others = map(_base64, self.answers[mechanism])
        code, said = self.docmd("AUTH", f"{mechanism} {first}")
        for answer in others:
            if code == 334:
                error, (code, said) = said, self.docmd(answer)
        with suppress(ValueError):
            self.heard += b" " + b64decode(error) * (mechanism == "XOAUTH2")
        return code, said
