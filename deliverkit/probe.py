"""One SMTP port, asked politely: the dialogue without sockets, and what its certificate is worth.

A driver does what each `Ask` wants within its stage's deadline and sends back the time and an event. Nothing is
said before the greeting is whole, nothing is pipelined, no mail is begun (RFC 5321, RFC 3207).
"""

from __future__ import annotations

import re
import ssl
import warnings
from collections.abc import Generator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import verification

IMPLICIT = frozenset({465, 2465, 8465, 443})  # ports where TLS starts with the first byte
_MAX_LINE, _MAX_LINES = 4096, 512  # bytes, and lines of a reply: nobody honest comes near
_REPLY = re.compile(rb"[2-5]\d\d(?:[ -]|$)")
_WHOLE = re.compile(rb"(?:[2-5]\d\d-[^\n]*\n)*[2-5]\d\d(?: [^\n]*|\r*)\n")  # all of a reply, as it mostly comes
_PREFIX = re.compile(rb"(?:[2-5](?:\d(?:\d(?:[ -].*|\r)?)?)?)?$", re.DOTALL)  # may still become a reply
_OTHER = re.compile(rb"HTTP/|<|SSH-|\+OK|\* OK|RFB ")  # protocols that say who they are
_STATUS = re.compile(r"\d{3}[ -]([245]\.\d{1,3}\.\d{1,3})\b")
_LISTED = re.compile(
    r"blocked using|dnsbl|\brbl\b|black ?list|block ?list|spamhaus|spamcop|barracuda|uceprotect|sorbs", re.I
)
# What cryptography thinks of odd serial numbers and long names is no news to who probes strangers.
warnings.filterwarnings("ignore", module=r"deliverkit\.probe$")
_GROUPS = {23: "secp256r1", 24: "secp384r1", 25: "secp521r1", 29: "x25519", 30: "x448"}  # IANA, TLS supported groups
_GROUPS |= {256: "ffdhe2048", 257: "ffdhe3072", 258: "ffdhe4096", 4587: "secp256r1mlkem768", 4588: "x25519mlkem768"}
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Ask(NamedTuple):
    """What the dialogue wants: `read` bytes, `send` data or start `tls`, within its stage's deadline."""

    what: str
    stage: str  # banner, ehlo, starttls, tls or quit
    data: bytes = b""


_READS = {stage: Ask("read", stage) for stage in ("banner", "ehlo", "starttls", "tls", "quit")}
# Time and: bytes read; None (all sent); columns (TLS is up); or a word: eof, reset, timeout, tls_...
# Bytes in answer to `tls` are plain text that came where TLS should have begun.
Event = tuple[float, bytes | str | dict[str, Any] | None]


class _Ended(Exception):
    """The dialogue ends early: verdict and failure."""


def safe(data: bytes | str, limit: int = 512) -> str:
    """Text of a stranger, fit for a terminal and a frame: control characters become \\xNN; cut at `limit`."""
    text = data[: 4 * limit].decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    escape = "\\x{:02x}".format
    return _UNSAFE.sub(lambda c: escape(ord(c[0])) if c[0] < "\xff" else ascii(c[0])[1:-1], text)[:limit]


class Dialogue:
    """One probe's conversation. `row` fills with columns of `PROBES`; its verdict is there when `run` ends."""

    __slots__ = ("_buffer", "_check_auth", "_implicit", "_name", "_now", "_talking", "row")

    def __init__(self, *, implicit: bool, ehlo_name: str, now: float, check_auth: bool = False) -> None:
        self.row: dict[str, Any] = {"mode": "implicit" if implicit else "starttls", "reached": "tcp"}
        self._implicit, self._name, self._now, self._check_auth = implicit, ehlo_name, now, check_auth
        self._buffer, self._talking = b"", False

    def run(self) -> Generator[Ask, Event, None]:
        """Speak until the port is judged, then say QUIT where somebody listens."""
        try:
            verdict, failure = yield from self._session()
        except _Ended as end:
            verdict, failure = end.args
        self.row |= {"verdict": verdict, "failure": failure}
        if self._talking and (yield Ask("send", "quit", b"QUIT\r\n"))[1] is None:
            yield Ask("read", "quit")  # the 221 first, so that closing sends FIN and no RST

    def _session(self) -> Generator[Ask, Event, tuple[str, str | None]]:
        row, auth = self.row, "auth_after_tls" if self._implicit else "auth_before_tls"
        if self._implicit:
            yield from self._encrypt(self._now)
        row["reached"], begun = "banner", self._now
        code, lines = yield from self._reply("banner")
        row["banner"], row["banner_s"] = safe(b" ".join(lines)), self._now - begun
        if code != 220:
            raise self._refused(code, lines)
        row["reached"], begun = "ehlo", self._now
        offers = yield from self._ehlo()
        row["ehlo_s"], row["features"] = self._now - begun, " ".join(sorted(offers))[:2000] or None
        row[auth] = offers.get("AUTH") or None
        if not self._implicit and "STARTTLS" in offers:
            row["reached"], begun = "starttls", self._now
            code, lines = yield from self._say("starttls", "STARTTLS")
            row["reached"] = "tls"
            if code != 220:
                self._refused(code, lines)
                return "open_no_tls", "starttls_refused"
            yield from self._encrypt(begun)
            row["auth_after_tls"] = (yield from self._ehlo()).get("AUTH") or None
        elif not self._implicit:
            row["mode"] = "cleartext"
            if re.match(r"220[ -]\*{4}", row["banner"]) or any(re.fullmatch("X{3,}A?", w) for w in offers):
                return "tampered", "starttls_stripped"
            # Who never had TLS says 500 or 502; who takes it had the offer taken out of its reply on the way.
            begun = self._now
            if (yield from self._aside("STARTTLS"))[0] == 220:
                yield from self._encrypt(begun)
                row["mode"], row["reached"] = "starttls", "ehlo"
                return "tampered", "starttls_stripped"
        row["reached"] = "done"
        if self._check_auth:
            code, lines = yield from self._aside("MAIL FROM:<>")
            asked = code == 530 or (code >= 500 and re.search(rb"\bauthenticat", b" ".join(lines), re.I) is not None)
            row["auth_enforced"] = True if asked else False if code == 250 else None
            yield from self._aside("RSET")
        expired = "cert_expired" if row.get("cert_problem") == "expired" else None
        return "open_no_tls" if row["mode"] == "cleartext" else "open", expired

    def _aside(self, command: str) -> Generator[Ask, Event, tuple[int, list[bytes]]]:
        """The reply to a question on the side, after which the port is judged as before: (0, []) if there was none."""
        said = dict(self.row)
        try:
            return (yield from self._say("ehlo", command)) if self._talking else (0, [])
        except _Ended:
            self.row.clear()
            self.row |= said
            return 0, []

    def _encrypt(self, begun: float) -> Generator[Ask, Event, None]:
        self.row["reached"], self._talking = "tls", False
        got: Any = self._buffer  # bytes behind the 220 are not TLS, and not lost
        if not got:
            self._now, got = yield Ask("tls", "tls")
        if isinstance(got, str):
            raise self._lost(got)
        if isinstance(got, bytes):
            while b"\n" not in got[:_MAX_LINE] and len(got) < _MAX_LINE:
                self._now, more = yield Ask("read", "tls")
                if not isinstance(more, bytes):
                    break
                got += more
            line, end, _ = got[:_MAX_LINE].partition(b"\n")
            self.row["text"] = safe(line.rstrip(b"\r"))
            if not self._implicit:
                self.row["extra_bytes"] = len(line + end)
            foreign = self._implicit and _OTHER.match(got)
            raise _Ended("not_smtp" if foreign else "open_tls_broken", "tls_protocol")
        self.row |= {**got, "tls_s": self._now - begun} | ({} if self._implicit else {"extra_bytes": 0})

    def _ehlo(self) -> Generator[Ask, Event, Mapping[str, str]]:
        """The keywords offered, with their parameters; none from a server that knows HELO only."""
        self.row["ehlo_name"] = self._name
        code, lines = yield from self._say("ehlo", f"EHLO {self._name}")
        if code in (500, 502):
            code, lines = yield from self._say("ehlo", f"HELO {self._name}")
        if code != 250:
            raise self._refused(code, lines)
        few = len(lines) < 40 and sum(map(len, lines)) < 2000  # what is long is hostile, and not kept
        return (_offers if few else _offers.__wrapped__)(tuple(lines[1:]))

    def _say(self, stage: str, command: str) -> Generator[Ask, Event, tuple[int, list[bytes]]]:
        self._now, lost = yield Ask("send", stage, f"{command}\r\n".encode("ascii"))
        if lost is not None:
            raise self._lost(str(lost))
        return (yield from self._reply(stage))

    def _reply(self, stage: str) -> Generator[Ask, Event, tuple[int, list[bytes]]]:
        """One reply, read to its last line (RFC 5321, 4.2.1); a bare LF ends a line, too."""
        lines: list[bytes] = []
        while True:
            if not lines and len(self._buffer) < 2000 and (whole := _WHOLE.match(self._buffer)):
                self._buffer, self._talking = self._buffer[whole.end() :], True
                lines = [line.rstrip(b"\r") for line in whole[0].split(b"\n")[:-1]]
                return int(lines[-1][:3]), lines
            line, end, rest = self._buffer.partition(b"\n")
            if len(line) > _MAX_LINE or len(lines) > _MAX_LINES:
                raise self._lost("line_too_long", (lines or [line[:_MAX_LINE]])[0])
            if not end:
                self._now, got = yield _READS[stage]
                if isinstance(got, bytes):
                    self._buffer += got
                elif got == "eof" and re.match(rb"[45]\d\d ", self._buffer):
                    self._buffer += b"\n"  # last words without a line end are still words
                else:
                    raise self._lost(str(got), b"\n".join([*lines, self._buffer]))
                continue
            self._buffer = rest
            lines.append(line.rstrip(b"\r"))
            if not _REPLY.match(lines[-1]):
                raise self._lost("not_smtp", lines[-1])
            if line[3:4] != b"-":
                self._talking = True
                return int(line[:3]), lines

    def _lost(self, word: str, partial: bytes = b"") -> _Ended:
        """What a line that is gone (eof, reset, timeout, tls_...) or senseless means where the dialogue stood."""
        self._talking, late, stage = False, word == "timeout", self.row["reached"]
        if word.startswith("tls_"):  # with TLS 1.3 the server's alert comes after our handshake is done
            self.row["reached"] = "tls"
            return _Ended("open_tls_broken", word)
        if stage == "banner":
            self.row["banner"] = safe(partial.replace(b"\n", b" ")) or None
        if word in ("not_smtp", "line_too_long") or not _PREFIX.match(partial.rpartition(b"\n")[2]):
            self.row["text"] = safe(partial)
            word = "wants_tls" if partial[:2] in (b"\x15\x03", b"\x16\x03") else word
            return _Ended("not_smtp", word if word in ("wants_tls", "line_too_long") else "not_smtp")
        if stage in ("starttls", "tls") and not self._implicit:
            return _Ended("open_tls_broken", "tls_timeout" if late else word)
        if stage == "ehlo":
            return _Ended("deferred", "total_timeout") if late else _Ended("closed_after_accept", word)
        if late:
            slow = "banner_slow" if partial else "banner_timeout"
            return _Ended("accepts_no_banner", "tls_timeout" if stage == "tls" else slow)
        # in TLS our hello crosses the server's close: FIN or RST is chance, so there is one word for both
        return _Ended("closed_after_accept", "reset" if stage == "tls" else word)

    def _refused(self, code: int, lines: list[bytes]) -> _Ended:
        """A reply that says no, with its words kept for `classify`."""
        text, status = safe(b" ".join(lines)), _STATUS.match(safe(lines[-1]))
        self.row |= {"text": text, "reply_code": code, "status_code": status and status[1]}
        why = status[1] if status else ""
        if _LISTED.search(text) and code >= 400:
            return _Ended("deferred" if code < 500 else "rejected", "blocklisted")
        if code in (450, 451) and (why == "4.7.1" or re.search("gr[ae]y-?list", text, re.I)):
            return _Ended("deferred", "greylisted")
        if 400 <= code < 500:
            limited = why.startswith("4.7.") or re.search("too many|rate limit", text, re.I)
            return _Ended("deferred", "rate_limited" if limited else "smtp_4xx")
        return _Ended("rejected", "smtp_5xx") if code >= 500 else _Ended("not_smtp", "not_smtp")


@lru_cache(maxsize=4096)  # the servers of an operator say the same
def _offers(lines: tuple[bytes, ...]) -> Mapping[str, str]:
    """The keywords of an EHLO reply with their parameters."""
    offers: dict[str, str] = {}
    for line in lines:
        word, _, rest = safe(line[4:]).upper().replace("AUTH=", "AUTH ").strip().partition(" ")
        if re.fullmatch(r"[A-Z0-9][A-Z0-9-]{0,63}", word):
            offers[word] = " ".join(sorted({*offers.get(word, "").split(), *rest.split()}))[:512]
    return offers


def tls_word(problem: ssl.SSLError) -> str:
    """tls_version, tls_alert_<name> or tls_protocol, from the reason OpenSSL gives."""
    if re.search("UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|WRONG_SSL_VERSION", reason := problem.reason or ""):
        return "tls_version"
    alert = re.match(r"(?:SSLV3_ALERT|TLSV1\d?_ALERT|TLSV1)_(\w+)", reason)
    return f"tls_alert_{alert[1].lower()}" if alert else "tls_protocol"


def cert_word(problem: ssl.SSLCertVerificationError) -> str:
    """Why OpenSSL did not take a certificate, in a word of `cert_problem`."""
    words = {9: "not_yet", 10: "expired", 18: "self_signed", 62: "name_mismatch", 64: "name_mismatch"}
    return words.get(problem.verify_code, "unknown_ca")


def group_of(flight: bytes) -> str | None:
    """The key exchange group, read from the server's first records (RFC 8446, 4.2.8; RFC 8422, 5.4; RFC 5246, 7.4.3).

    Python's ssl says it from 3.15 only. None without one: RSA key transport, or fewer bytes than needed.
    """
    said, at = b"", 0
    while flight[at : at + 1] == b"\x16" and len(said) < 65536:  # handshake records; all later ones are encrypted
        size = int.from_bytes(flight[at + 3 : at + 5])
        said, at = said + flight[at + 5 : at + 5 + size], at + 5 + size
    at, found = 0, b""
    while at + 4 <= len(said):
        body, kind = said[at + 4 : at + 4 + int.from_bytes(said[at + 1 : at + 4])], said[at]
        at += 4 + len(body)
        if kind == 2:  # ServerHello: version, random, session, cipher and compression, then extensions
            rest = body[35 + (body[34] if len(body) > 34 else 0) :][5:]
            while len(rest) >= 4:
                size = int.from_bytes(rest[2:4])
                found = rest[4:6] if rest[:2] == b"\x00\x33" else found
                rest = rest[4 + size :]
        elif kind == 12 and body[:1] == b"\x03":  # ServerKeyExchange with a named curve
            found = body[1:3]
        elif kind == 12 and len(body) > 2:  # with a prime, whose size is all that tells
            return f"dh{8 * int.from_bytes(body[:2])}"
    return _GROUPS.get(int.from_bytes(found), f"0x{found.hex()}") if len(found) == 2 else None


def judge(der: bytes, chain: tuple[bytes, ...], host: str, now: datetime) -> dict[str, Any]:
    """The cert_ columns of a certificate with its chain, as if `host` had been asked at `now`.

    Trust stays missing where the chain, or what this machine trusts, is not known.
    """
    row = dict(_read(der, chain, now))
    low, names = host.lower().rstrip("."), row.pop("names", ())
    matches = low in names or f"*.{low.partition('.')[2]}" in names
    problem = row.get("cert_problem") or (None if matches else "name_mismatch")
    return row and row | {"cert_matches": matches, "cert_problem": problem}


@lru_cache(maxsize=4096)
def _read(der: bytes, chain: tuple[bytes, ...], now: datetime) -> dict[str, Any]:
    try:
        leaf = x509.load_der_x509_certificate(der)
        sans = [e.value for e in leaf.extensions if isinstance(e.value, x509.SubjectAlternativeName)]
        common, maker = x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME
        subject, issuer = leaf.subject.get_attributes_for_oid, leaf.issuer.get_attributes_for_oid
        titles, makers = subject(common), [*issuer(common), *issuer(maker)]
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc  # year 0 is an error here
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return {}  # OpenSSL could read it, a stricter parser cannot: nothing is known, nothing is said
    dns = [safe(name.lower()) for san in sans for name in san.get_values_for_type(x509.DNSName)]
    names = [*dns, *(str(address) for san in sans for address in san.get_values_for_type(x509.IPAddress))]
    own = False
    with suppress(InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        leaf.verify_directly_issued_by(leaf)
        own = True
    problem = "expired" if ends < now else "not_yet" if begins > now else None
    trusted = False if problem else _trusted(leaf, chain, dns, own)
    if problem is None and trusted is not True:
        problem = "self_signed" if own else "unknown_ca" if trusted is False else None
    return {
        "names": frozenset(names),
        "cert_subject": safe(str(titles[0].value)) if titles else None,
        "cert_names": " ".join(names)[:2000] or None,
        "cert_issuer": safe(str(makers[0].value)) if makers else None,
        "cert_not_after": leaf.not_valid_after_utc,
        "cert_trusted": trusted,
        "cert_problem": problem,
        "cert_sha256": sha256(der).hexdigest(),
    }


def _trusted(leaf: x509.Certificate, chain: tuple[bytes, ...], dns: list[str], own: bool) -> bool | None:
    roots = _roots()
    if not roots or own or leaf in roots:
        return leaf in roots if roots else None
    parts: list[x509.Certificate] = []
    for der in chain[1:]:
        with suppress(ValueError, TypeError, x509.InvalidVersion):  # names are read late, and then may be none
            if (part := x509.load_der_x509_certificate(der)).issuer != part.subject:
                parts.append(part)
    try:  # the name is judged apart, so any that the certificate has will do here; roots come from us only
        policy = verification.PolicyBuilder().store(verification.Store(roots))
        verifier = policy.build_server_verifier(x509.DNSName(dns[0].replace("*", "any")))
        verifier.verify(leaf, parts)
    except (verification.VerificationError, ValueError, IndexError) as problem:
        ends = "no interior errors" in str(problem)  # the chain ends nowhere; else a rule of form was broken
        ours = {root.subject for root in roots}
        return False if chain and (ends or not any(part.issuer in ours for part in (leaf, *parts))) else None
    return True


@cache
def _roots() -> list[x509.Certificate]:
    """What this machine trusts: 40 ms, so once a process."""
    made = []
    for der in ssl.create_default_context().get_ca_certs(binary_form=True):
        with suppress(ValueError):
            made.append(x509.load_der_x509_certificate(der))
    return made
