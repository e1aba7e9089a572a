"""Bounce messages written to break the reader: odd bytes, deep nesting, endless headers, time that must not grow."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deliverkit as dk

_spec = importlib.util.spec_from_file_location("fuzz_bounces", Path(__file__).with_name("fuzz_bounces.py"))
assert _spec is not None and _spec.loader is not None
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)
SEEDS = fuzz.seeds(every=9)
TOKENS = [
    b"\n",
    b"\n\n",
    b"\n--",
    b"\r",
    b"\0",
    b"From ",
    b">From ",
    b": ",
    b";",
    b"<",
    b">",
    b"@",
    b"=?utf-8?b?",
    b"?=",
]
TOKENS += [b"Content-Type: message/rfc822\n\n", b"Content-Type: message/delivery-status\n\n", b"boundary=", b"\x1b$B"]
TOKENS += [
    b"Final-Recipient: rfc822; a@b.example\n",
    b"Status: 5.1.1\n",
    b"550 5.1.1 ",
    b"\xff",
    b"Content-Type: \xe9/",
]


@given(st.binary(max_size=2000))
@settings(deadline=None, max_examples=200)
def test_any_bytes_give_rows(data: bytes) -> None:
    fuzz.check(data)


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0), st.sampled_from(TOKENS) | st.binary(max_size=6),
                                                  st.integers(0, 40)), max_size=4))  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_a_damaged_message_gives_rows(message: bytes, damages: list[tuple[int, bytes, int]]) -> None:
    for place, new, gone in damages:
        place %= len(message) + 1
        message = message[:place] + new + message[place + gone :]
    fuzz.check(message)
    fuzz.judge()


MIXED = b"Content-Type: multipart/mixed; boundary=b\n"
HEAD = b"From: MAILER-DAEMON@mx.example\nSubject: Undelivered\nMIME-Version: 1.0\n"
REPORT = b"\n<x@y.example>: host mx.y.example[192.0.2.1] said: 550 5.1.1 User unknown\n"
LONG = {  # what is repeated, and what stands around it
    "headers": (b"X-Header: value of it\n", HEAD, REPORT),
    "header lines without a colon": (b"words without end\n", HEAD, REPORT),
    "folds of one header": (b" and more\n", HEAD + b"X-Long: a\n", REPORT),
    "one header": (b"a b ", HEAD + b"X-Long: ", b"\n" + REPORT),
    "received lines": (b"Received: from a.example by b.example; Mon, 1 Jan 2026 00:00:00 +0000\n", HEAD, REPORT),
    "parts": (b"\n--b\nContent-Type: text/plain\n\nwords\n", HEAD + MIXED, REPORT),
    "openings": (b"\n--b", HEAD + MIXED, REPORT),
    "messages in messages": (b"Content-Type: message/rfc822\n\n", HEAD, REPORT),
    "base64": (b"QUJD" * 19 + b"\n", HEAD + b"Content-Transfer-Encoding: base64\n\n", b""),
    "quoted-printable": (b"=41=\n", HEAD + b"Content-Transfer-Encoding: quoted-printable\n\n", b""),
    "markup": (b"<a <b ", HEAD + b"Content-Type: text/html\n\n", b""),
    "recipients": (b"Final-Recipient: rfc822; a@b.example\nAction: failed\nStatus: 5.1.1\n\n",
                   HEAD + b"Content-Type: message/delivery-status\n\n", b""),
    "addresses": (b"<a@b.example>: 550 no\n", HEAD, b""),
    "ats": (b"a@", HEAD + b"\n", b""),
    "words": (b"user mailbox address recipient host connection ", HEAD + b"\n", b""),
    "digits": (b"5.5.5.5 550 ", HEAD + b"\n", b""),
    "encoded words": (b"=?utf-8?b?QQ==?= ", HEAD + b"Subject: ", b"\n" + REPORT),
    "blank lines": (b"\n", HEAD, REPORT),
    "mbox lines": (b"From a@b.example Mon Jan  1 00:00:00 2026\nTo: x@y.example\n\n", b"", b""),
    "boundaries": (MIXED, HEAD, REPORT),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_four_times_the_bytes_take_about_four_times_as_long(name: str, tmp_path: Path) -> None:
    piece, before, behind = LONG[name]

    def seconds(size: int) -> float:
        (tmp_path / "m.eml").write_bytes(before + piece * (size // len(piece)) + behind)
        begin = time.process_time()
        assert len(dk.read_bounces(tmp_path / "m.eml")) >= 1
        return time.process_time() - begin

    seconds(1000)
    small, large = (min(seconds(size) for _ in range(2)) for size in (200_000, 800_000))
    assert large < 0.1 + 8 * small, f"{small:.3f} s, then {large:.3f} s for four times as much"


@pytest.mark.parametrize("name", ["headers", "folds of one header", "parts", "boundaries"])
def test_a_message_far_too_long_still_says_what_bounced(name: str, tmp_path: Path) -> None:
    piece, before, behind = LONG[name]
    (tmp_path / "m.eml").write_bytes(before + piece * 50 + behind)
    assert "invalid_recipient" in set(dk.read_bounces(tmp_path / "m.eml")["category"])


def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, fuzz.__file__, "-runs=3000", "-max_len=5000", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
