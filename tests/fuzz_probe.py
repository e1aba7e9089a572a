"""Fuzz the dialogue, what is read of certificates, and of a first flight of TLS: no input may break their promises.

    python -m pip install atheris
    python tests/fuzz_probe.py dialogue -runs=10000000 -max_len=256

After the name of the target (dialogue, judge or flight) come options of libFuzzer. The seeds are made anew in a folder
that is thrown away, unless a folder of one's own is named. tests/test_hostile.py runs the same checks for seconds.
"""

from __future__ import annotations

import re
import struct
import sys
import tempfile
import warnings
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import atheris

    watched: Any = atheris.instrument_imports(include=["deliverkit.probe"])
else:
    watched = nullcontext()
with watched:
    from deliverkit.probe import Dialogue, group_of, judge

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from deliverkit import facts

BUFFER = 4096 + 16384  # bytes the dialogue may hold unread: a line, and what one read adds
LIMITS = {"text": 2000, "features": 2000, "cert_names": 2000}  # characters; every other text: 512
SPARE = 20  # asks that a dialogue may still have when the server has nothing more to say
REPLY = 513 * 4097 + 16384  # bytes that one reply may take until it is called hostile
VERDICTS = {
    "open": {None, "cert_expired"},
    "open_no_tls": {None, "starttls_refused"},
    "open_tls_broken": {"tls_protocol", "tls_timeout", "tls_version", "eof", "reset"},
    "tampered": {"starttls_stripped"},
    "rejected": {"smtp_5xx", "blocklisted"},
    "deferred": {"smtp_4xx", "rate_limited", "greylisted", "blocklisted", "total_timeout"},
    "accepts_no_banner": {"banner_timeout", "banner_slow", "tls_timeout"},
    "closed_after_accept": {"eof", "reset"},
    "not_smtp": {"not_smtp", "wants_tls", "line_too_long", "tls_protocol"},
}
REACHED = {"banner", "ehlo", "starttls", "tls", "done"}
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FINAL = re.compile(rb"^[2-5]\d\d(?: .*|\r*)$", re.M)  # the last line of a reply
WORDS = ["eof", "reset", "timeout", "tls_protocol", "tls_version", "tls_alert_internal_error"]
UP = ({"tls_version": "TLSv1.3"}, {"tls_version": "TLSv1.2", "cert_problem": "expired"})
KNOWN = set(facts.table("probe_failures")["verdict"])
Events = list[bytes | str | dict[str, Any]]


def events_of(data: bytes) -> tuple[Events, dict[str, Any]]:
    """What a server does, and how it is asked, from any bytes: parts between two 0xff, of which a first byte below 10
    says what it is (a word, TLS is up, a part without end), and all else is text."""
    script: Events = []
    for part in data[2:].split(b"\xff\xff"):
        kind = part[0] if part else 255
        if kind < 6:
            script.append(WORDS[kind])
        elif kind < 8:
            script.append(UP[kind - 6])
        elif kind == 8:
            script.append((part[1:65] or b"x") * 600)  # more lines than a reply may have
        elif part:
            script.append(part)
    how, lost = data[0] if data else 0, data[1] if len(data) > 1 else 0
    return script, {"implicit": how & 1, "check_auth": how & 2, "cut": 1 + how // 4, "lost": lost}


def converse(script: Events, *, implicit: int, check_auth: int, cut: int, lost: int) -> tuple[dict[str, Any], Any]:
    """The row of a dialogue with a server that acts the script, and what was said; with what it may never do checked.

    Bytes come in pieces of `cut`; `lost` is 0 or names a command that fails, and how.
    """
    dialogue = Dialogue(implicit=bool(implicit), ehlo_name="me.example", now=0.0, check_auth=bool(check_auth))
    feed: list[Any] = []
    for event in reversed(script):
        step = max(cut, len(event) // 24)  # long parts in longer pieces, as inputs are many
        pieces = [event[i : i + step] for i in range(0, len(event), step)] if isinstance(event, bytes) else [event]
        feed += reversed(pieces)
    run, said, heard, up, asks, left = dialogue.run(), list[bytes](), b"", not implicit, 0, len(feed) + SPARE
    answer: Any = None
    with suppress(StopIteration):
        ask = next(run)
        while True:
            asks += 1
            assert asks <= left, "the dialogue goes on without a server"
            assert len(dialogue._buffer) <= BUFFER, "the dialogue swells"
            if ask.what == "send":
                assert up, "something was said before TLS"
                assert len(FINAL.findall(heard)) > len(said), f"{ask.data!r} was not waited for"
                assert b"QUIT\r\n" not in said, "QUIT was not the last command"
                said.append(ask.data)
                answer = WORDS[lost % 6] if lost and lost // 6 % 8 == len(said) - 1 else None
            else:
                assert ask.what in ("read", "tls") and not ask.data
                while feed and ask.what == "read" and isinstance(feed[-1], dict):
                    feed.pop()
                answer = feed[-1] if feed[-1:] in (["eof"], ["reset"]) else feed.pop() if feed else "timeout"
                if isinstance(answer, bytes):
                    heard += answer
                up |= isinstance(answer, dict)
            ask = run.send((float(asks), answer))
    return dialogue.row, said


def check_row(row: dict[str, Any]) -> None:
    """Words from the tables, and texts that are fit to be shown."""
    assert row["reached"] in REACHED and row["mode"] in ("cleartext", "starttls", "implicit"), row
    failure, verdict = row["failure"], row["verdict"]
    alert = verdict == "open_tls_broken" and re.fullmatch(r"tls_alert_\w+", failure or "")
    assert verdict in KNOWN and (failure in VERDICTS[verdict] or alert), (verdict, failure)
    check_texts(row)


def check_texts(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, str):
            assert len(value) <= LIMITS.get(name, 512), (name, len(value))
            assert not CONTROL.search(value), (name, value)


def dialogue(data: bytes) -> None:
    """One input for the dialogue: twice, in one piece and in small ones."""
    script, how = events_of(data)
    whole, said = converse(script, **how | {"cut": 16384})
    check_row(whole)
    assert all(line.endswith(b"\r\n") and line.count(b"\n") == 1 for line in said)
    verbs = [line.split()[0] for line in said]
    assert set(verbs) <= {b"EHLO", b"HELO", b"STARTTLS", b"QUIT"} | ({b"MAIL", b"RSET"} if how["check_auth"] else set())
    assert len(said) <= 9, said
    parts, said_too = converse(script, **how)
    for row in (whole, parts):
        for name in [name for name in row if name.endswith("_s")]:
            del row[name]
    assert whole == parts and said == said_too, (whole, parts, said, said_too)


NOW = datetime(2026, 6, 1, tzinfo=UTC)
CERT = {"cert_trusted", "cert_matches", "cert_problem", "cert_subject", "cert_names", "cert_issuer", "cert_not_after"}
PROBLEMS = {None, "expired", "not_yet", "self_signed", "unknown_ca", "name_mismatch"}


def certificates(data: bytes) -> None:
    """One input for `judge`: the certificate, also as the one above another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = judge(data, (data, data), "mx.a.example", NOW)
        if row:
            assert set(row) == CERT | {"cert_sha256"} and row["cert_problem"] in PROBLEMS, row
            assert row["cert_trusted"] in (True, False, None) and row["cert_not_after"].tzinfo, row
            check_texts(row)
        judge(ODD["by another"], (ODD["by another"], data), "mx.a.example", NOW)


class Queue:
    """A socket whose error queue holds the bytes given."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        return b"", [(0, 11, self.data)], 0, None


def flight(data: bytes) -> None:
    """One input for `group_of`, and for what is read of an ICMP message."""
    from deliverkit.loop import icmp_of

    group = group_of(data)
    assert group is None or re.fullmatch(r"[a-z0-9]{3,20}|dh\d{1,6}|0x[0-9a-f]{4}", group), group
    message = struct.pack("4xB", 2 + len(data) % 2) + data  # ip(7): the kernel fills all of it
    if len(message) >= 40:
        assert set(icmp_of(Queue(message))) == {"family", "icmp_type", "icmp_code", "icmp_from"}  # type: ignore[arg-type]


SAYS = [
    b"220 mx.example ESMTP\r\n",
    b"250-mx\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250 SIZE 1000\r\n",
    b"220 go\r\n",
]
INSIDE = b"250-mx\r\n250-AUTH=LOGIN\r\n250 8BITMIME\r\n"
SCRIPTS = [
    [b"\x00\x00" + SAYS[0], *SAYS[1:], b"\x06", INSIDE, b"221 bye\r\n"],
    [b"\x02\x00" + SAYS[0], *SAYS[1:], b"\x07", INSIDE, b"530 5.7.0 no\r\n", b"250 ok\r\n", b"221 bye\r\n"],
    [b"\x01\x00\x06", SAYS[0], INSIDE, b"221 bye\r\n"],
    [b"\x13\x00\x06", SAYS[0], INSIDE, b"550 5.7.1 not authenticated\r\n", b"250 ok\r\n", b"221 bye\r\n"],
    [b"\x04\x00" + SAYS[0], INSIDE, b"500 what\r\n", b"221 bye\r\n"],
    [b"\x04\x00" + SAYS[0], INSIDE, b"220 go\r\n", b"\x06"],
    [b"\x08\x00" + SAYS[0], b"502 no\r\n", b"250 mx\r\n", b"\x02"],
    [b"\x00\x00220 ****\r\n", b"250-mx\r\n250 XXXXXXXA\r\n"],
    [b"\x00\x0b" + SAYS[0], *SAYS[1:], b"no tls\r\n"],
    [b"\x00\x00421 4.7.0 too many\r\n", b"\x00"],
    [b"\x00\x00554 5.7.1 listed by zen.spamhaus.org\r\n"],
    [b"\x00\x00451 4.7.1 greylisted\r\n"],
    [b"\x00\x00\x08220-endless\r\n"],
    [b"\x00\x00\x08220 endless"],
    [b"\x00\x00HTTP/1.1 400 Bad Request\r\n\r\n"],
    [b"\x01\x00\x15\x03\x03\x00\x02\x02\x28"],
    [b"\x01\x00\x05"],
]
KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
CLEAR = "\x1b]0;gone\x07\x1b[2J<script>alert(1)</script>"  # for terminals and browsers


def tlv(tag: int, *parts: bytes) -> bytes:
    """DER: a tag, the length and the value."""
    body = b"".join(parts)
    size = len(body).to_bytes(max(1, (len(body).bit_length() + 7) // 8))
    return bytes([tag]) + (size if len(body) < 128 else bytes([128 + len(size)]) + size) + body


OIDS = {"name": "550403", "san": "551d11", "constraints": "551d1e", "basic": "551d13", "ecdsa": "2a8648ce3d040302",
        "key": "2a8648ce3d0201", "nobody": "2b0601040181fd5901"}  # fmt: skip


def oid(word: str) -> bytes:
    return tlv(6, bytes.fromhex(OIDS[word]))


def name(*texts: bytes, tag: int = 12) -> bytes:
    """Common names, of any type and any bytes."""
    return tlv(0x30, *(tlv(0x31, tlv(0x30, oid("name"), tlv(tag, text))) for text in texts))


def extension(word: str, value: bytes) -> bytes:
    return tlv(0x30, oid(word), tlv(4, value))


def names(*parts: bytes) -> bytes:
    """Subject alternative names; tag 0x81 is mail, 0x82 DNS, 0x87 an address."""
    return extension("san", tlv(0x30, *parts))


def certificate(*, version: int | None = 2, serial: bytes = b"\x01", subject: bytes = name(b"mx.a.example"),
                issuer: bytes | None = None, begin: bytes = tlv(23, b"250101000000Z"), key: bytes = SPKI,
                end: bytes = tlv(23, b"350101000000Z"), more: bytes = b"", behind: bytes = b"") -> bytes:  # fmt: skip
    """A certificate with any fields at all, rightly signed by KEY."""
    kind = tlv(0x30, oid("ecdsa"))
    parts = [b"" if version is None else tlv(0xA0, tlv(2, bytes([version]))), tlv(2, serial), kind]
    parts += [subject if issuer is None else issuer, tlv(0x30, begin, end), subject, key]
    body = tlv(0x30, *parts, tlv(0xA3, tlv(0x30, more)) if more else b"")
    return tlv(0x30, body, kind, tlv(3, b"\0", KEY.sign(body, ec.ECDSA(hashes.SHA256())))) + behind


def dns(*texts: str) -> bytes:
    return names(*(tlv(0x82, text.encode()) for text in texts))


def point(curve: str) -> bytes:
    """A key on a curve that nobody has."""
    return tlv(0x30, tlv(0x30, oid("key"), oid(curve)), tlv(3, b"\0\4" + bytes(64)))


ODD = {
    "plain": certificate(more=dns("mx.a.example")),
    "version 5": certificate(version=4),
    "version 1": certificate(version=None, more=dns("a.example")),
    "negative serial": certificate(serial=b"\xff"),
    "no serial": certificate(serial=b""),
    "long serial": certificate(serial=b"\x7f" * 300),
    "name of 30 kB": certificate(subject=name(b"x" * 30_000)),
    "name of 100 kB": certificate(subject=name(b"x" * 100_000)),
    "fifty names": certificate(subject=name(*[b"a"] * 50)),
    "no name": certificate(subject=tlv(0x30)),
    "NUL in names": certificate(subject=name(b"mx.a.example\0.evil"), more=dns("mx.a.example\0.evil")),
    "escapes in names": certificate(subject=name(CLEAR.encode()), more=dns(CLEAR, "a.example")),
    "half a character": certificate(subject=name(b"\xd8\x00", tag=30), issuer=name(b"\x00", tag=30)),
    "bits as a name": certificate(subject=name(b"\x00\xff", tag=3)),
    "not UTF-8": certificate(subject=name(b"\xff\xfe"), more=names(tlv(0x82, b"\xff\xfe"))),
    "since 1950": certificate(begin=tlv(23, b"500101000000Z")),
    "until 9999": certificate(end=tlv(24, b"99991231235959Z")),
    "year 0": certificate(begin=tlv(24, b"00000101000000Z")),
    "month 13": certificate(end=tlv(23, b"251301000000Z")),
    "no date": certificate(end=tlv(23, b"")),
    "ends before it begins": certificate(begin=tlv(23, b"350101000000Z"), end=tlv(23, b"250101000000Z")),
    "no key": certificate(key=tlv(0x30)),
    "unknown curve": certificate(key=point("nobody")),
    "weak key": certificate(key=rsa.generate_private_key(65537, 1024).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)),
    "1,000 names": certificate(more=dns(*(f"mx{n}.a.example" for n in range(1000)))),
    "address of 5 bytes": certificate(more=names(tlv(0x87, b"\x7f\0\0\0\1"))),
    "address of 0 bytes": certificate(more=names(tlv(0x87, b""))),
    "empty names": certificate(more=dns("", "*", "*.", ".", "*.*.a.example")),
    "names of other kinds": certificate(more=names(tlv(0x88, b"\x2a"), tlv(0xA3, tlv(0x30)), tlv(0xA5, b""))),
    "names are no list": certificate(more=extension("san", b"\5\0")),
    "extension twice": certificate(more=dns("a.example") * 2),
    "constraints": certificate(more=extension("constraints", tlv(0x30, tlv(0xA0, tlv(0x30, tlv(0x82, b"\xff")))))),
    "path of minus one": certificate(more=extension("basic", tlv(0x30, tlv(1, b"\xff"), tlv(2, b"\xff")))),
    "more behind": certificate(behind=b"more"),
    "by another": certificate(issuer=name(b"nobody"), more=dns("mx.a.example")),
}  # fmt: skip


def fuzz(target: str, options: list[str]) -> None:
    """Hand over to libFuzzer, which ends the process."""
    acts = {"dialogue": dialogue, "judge": certificates, "flight": flight}
    with tempfile.TemporaryDirectory() as folder:
        seeds = {"dialogue": [b"\xff\xff".join(s) for s in SCRIPTS], "judge": list(ODD.values())}.get(target, [])
        for number, seed in enumerate(seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, folder], acts[target])
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2:])
