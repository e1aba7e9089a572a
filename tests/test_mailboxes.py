"""Messages come out of mailboxes as they went in: mbox in all its flavours, Maildir, folders and archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mailbox
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deliverkit as dk
from deliverkit.bounces import sources
from deliverkit.bounces.sources import messages

FROM = "From a@b.example Tue Nov 24 10:00:00 2026\n"
COLUMNS = ["recipient", "category", "status_code", "reply_code", "text", "message_id", "outcome"]


def bounce(number: int, words: str = "") -> str:
    """A bounce in words, for one recipient of its own."""
    return (
        "From: MAILER-DAEMON@mx.example\nTo: me@shop.example\nSubject: Undelivered Mail\n"
        f"Message-ID: <b{number}@mx.example>\n\n{words}<x{number}@there.example>: 550 5.1.1 User unknown\n"
    )


def parted(data: str | bytes) -> list[str]:
    """The messages of an mbox."""
    found = messages(io.BytesIO(data.encode() if isinstance(data, str) else data))
    return [message.decode() for message in found]


def read(path: Path) -> pd.DataFrame:
    return dk.read_bounces(path)[COLUMNS]


# What a body may hold that looks like the line between two messages, or nearly so.
BODIES = {
    "plain": "Hello\n\n",
    "begins with From": "Hello\n\nFrom here on all is well\n\n",
    "a time, and then a field": "Hello\n\nFrom 10:30 on, by rule:\nNote: closed\n\n",
    "a person and a date": "Hello\n\nFrom John at 10:30 on 24 Nov 2026\nSubject: closed\n\n",
    "a quoted From_ line": f"Hello\n\n>{FROM}Subject: inner\n\n>>{FROM}\n",
    "a From_ line that no field follows": f"Hello\n\n{FROM}was the first line\n\n",
}


def mboxo(body: str) -> str:
    return body.replace("\nFrom ", "\n>From ")


def mboxrd(body: str) -> str:
    lines = body.split("\n")
    return "\n".join(f">{line}" if line.lstrip(">").startswith("From ") else line for line in lines)


def framed(flavour: str, numbers: range, body: str) -> str:
    """An mbox as its rules say."""
    made = ""
    for number in numbers:
        head, _, text = bounce(number, body).partition("\n\n")
        text = {"mboxo": mboxo, "mboxcl": mboxo, "mboxrd": mboxrd}.get(flavour, str)(text)
        length = f"\nContent-Length: {len(text)}" if flavour.startswith("mboxcl") else ""
        made += f"{FROM}{head}{length}\n\n{text}\n"
    return made


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("flavour", ["mboxo", "mboxrd", "mboxcl", "mboxcl2"])
def test_each_flavour_gives_its_messages(flavour: str, body: str) -> None:
    found = parted(framed(flavour, range(3), body))
    assert len(found) == 3
    for number, message in enumerate(found):
        assert f"<b{number}@mx.example>" in message
        assert message.endswith(f"<x{number}@there.example>: 550 5.1.1 User unknown\n")
    if flavour == "mboxrd":
        assert found == [bounce(number, body) for number in range(3)]


def test_a_whole_message_in_a_body_is_none_of_the_box_where_its_length_is_stated() -> None:
    inner = f"Hello\n\n{FROM}Subject: inner\n\nIt was.\n\n"
    assert len(parted(framed("mboxcl2", range(3), inner))) == 3
    assert len(parted(framed("mboxcl2", range(1), inner))) == 1
    assert len(parted(framed("mboxo", range(3), inner))) == 3


@pytest.mark.parametrize("length", [0, 1, 70, 300, 99_999, 99_999_999, 123_456_789_012])
def test_a_wrong_length_loses_no_message(length: int) -> None:
    box = framed("mboxrd", range(4), "").replace("\n\n", f"\nContent-Length: {length}\n\n", 1)
    assert [f"<b{n}@" in message for n, message in enumerate(parted(box))] == [True] * 4


def test_pythons_own_mailbox_writes_what_is_read(tmp_path: Path) -> None:
    for number, body in enumerate(BODIES.values()):
        box = mailbox.mbox(tmp_path / f"{number}.mbox")
        for n in range(3):
            box.add(bounce(n, body).encode())
        box.close()
        frame = dk.read_bounces(tmp_path / f"{number}.mbox")
        assert frame["recipient"].tolist() == [f"x{n}@there.example" for n in range(3)]
        assert frame["line"].tolist() == [1, 2, 3]


LINES = {
    "asctime": "From a@b.example Tue Nov 24 10:00:00 2026",
    "one digit": "From a@b.example Sun Nov  1 09:00:00 2026",
    "a zone": "From a@b.example Tue Nov 24 10:00:00 CET 2026",
    "an offset": "From 1234567890123456789@xxx Tue Nov 24 10:00:00 +0000 2026",
    "an offset last": "From a@b.example Tue Nov 24 10:00:00 2026 +0100",
    "no seconds": "From a!b!c Tue Nov 24 10:00 EST 1998",
    "UUCP": "From user Tue Nov 24 10:00:00 1998 remote from a.host.with.quite.a.long.name.example",
    "an RFC 5322 date": "From a@b.example Tue, 24 Nov 2026 10:00:00 +0100 (CET)",
    "a date without a day of the week": "From a@b.example 24 Nov 2026 10:00:00 +0100",
    "ISO 8601": "From a@b.example 2026-11-24T10:00:00Z",
    "a German day": "From a@b.example Di Nov 24 10:00:00 2026",
    "no domain": "From MAILER-DAEMON Tue Nov 24 10:00:00 2026",
    "no sender": "From  Tue Nov 24 10:00:00 2026",
    "a null sender": "From <> Tue Nov 24 10:00:00 2026",
    "a dash": "From - Tue Nov 24 10:00:00 2026",
    "quotes": 'From "a b"@c.example Tue Nov 24 10:00:00 2026',
    "quotes and ISO 8601": 'From "a b"@c.example 2026-11-24 10:00:00',
    "spaces": "From A B <a@b.example> Tue Nov 24 10:00:00 2026",
    "a path": "From /O=ORG/CN=first last Tue Nov 24 10:00:00 2026",
    "a trailing space": "From a@b.example Tue Nov 24 10:00:00 2026 ",
    "a long sender": f"From {'v' * 300}@b.example Tue Nov 24 10:00:00 2026",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_from_line_may_have_any_sender_and_date(line: str) -> None:
    assert parted("\n".join(f"{line}\n{bounce(n)}" for n in range(3))) == [bounce(n) for n in range(3)]


@pytest.mark.parametrize("line", [LINES["asctime"], LINES["no sender"], LINES["UUCP"], LINES["an RFC 5322 date"]])
def test_no_blank_line_is_needed_before_a_usual_from_line(line: str) -> None:
    assert parted("".join(f"{line}\n{bounce(n)}" for n in range(3))) == [bounce(n) for n in range(3)]


@pytest.mark.parametrize("start", ["", "\n", "\n\n\n", "\n" * 3000])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_blank_lines_around_a_box_are_no_messages(start: str, end: str) -> None:
    box = start + "\n".join(f"{FROM}{bounce(n)}" for n in range(2)) + end
    assert [message.rstrip("\n") for message in parted(box)] == [bounce(n).rstrip("\n") for n in range(2)]


def test_two_from_lines_together_begin_one_message() -> None:
    [one, two] = parted(f"{FROM}>{FROM}{bounce(0)}\n{FROM}{FROM}{bounce(1)}")
    assert one.endswith(bounce(0)) and two.endswith(bounce(1))


def test_a_message_in_a_file_of_its_own_is_left_as_it_is() -> None:
    data = f"Subject: x\n\n>{FROM}\n{FROM}Subject: y\n\nz\n\n"
    assert parted(data) == [data]
    assert parted(data.replace("\n", "\r\n")) == [data]


BOX = "".join(framed("mboxrd", range(n, n + 1), body) for n, body in enumerate(BODIES.values()))
BOX += framed("mboxcl2", range(8, 9), f"Hello\n\n{FROM}Subject: inner\n\nIt was.\n\n") + framed(
    "mboxo", range(9, 10), ""
)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("size", [1, 7, 100, 1 << 22])
def test_the_size_of_blocks_makes_no_difference(size: int, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box = BOX if ends == "\n" else BOX.replace("Content-Length", "X-Length")
    whole = parted(box)
    assert len(whole) == (8 if ends == "\n" else 9)
    monkeypatch.setattr(sources, "_BLOCK", size)
    assert parted(box.replace("\n", ends)) == whole


PIECES = ["\r", "\n", "\r\n", "From ", FROM, "\n" + FROM, ">", "Subject: x\n", "Content-Length: 9\n", "x", "\n\n", "\0"]


@given(st.lists(st.sampled_from(PIECES)), st.integers(1, 50))
@settings(deadline=None, max_examples=300)
def test_blocks_of_any_size_give_the_same_messages_whatever_stands_in_them(pieces: list[str], size: int) -> None:
    data, before = "".join(pieces), sources._BLOCK
    whole = parted(data)
    assert len(whole) >= 1
    sources._BLOCK = size
    try:
        assert parted(data) == whole
    finally:
        sources._BLOCK = before


def packed(box: bytes, kind: str, path: Path) -> Path:
    call: Callable[[bytes], bytes] | None = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(kind)
    if call:
        path.write_bytes(call(box))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("in/all.mbox", box)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:  # type: ignore[call-overload]
            info = tarfile.TarInfo("in/all.mbox")
            info.size = len(box)
            archive.addfile(info, io.BytesIO(box))
    return path


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_packed_mbox_gives_the_rows_of_the_plain_one(kind: str, tmp_path: Path) -> None:
    box = "".join(framed("mboxrd", range(n, n + 1), body) for n, body in enumerate(BODIES.values()))
    (tmp_path / "all.mbox").write_text(box)
    plain = read(tmp_path / "all.mbox")
    assert len(plain) == len(BODIES)
    assert read(packed(box.encode(), kind, tmp_path / f"all.{kind}")).equals(plain)


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """A Maildir as Dovecot leaves it, with a subfolder, a message on its way and Dovecot's own files."""
    top = tmp_path / "Maildir"
    for folder in (top, top / ".Bounces", top / ".Bounces.2026"):
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True)
    for number, place in enumerate(["cur", "new", ".Bounces/cur", ".Bounces/new", ".Bounces.2026/cur"]):
        flags = ":2,S" if place.endswith("cur") else ""
        name = f"{1_700_000_000 + number}.M{number}P1.mx.example,S=390,W=402{flags}"
        (top / place / name).write_bytes(bounce(number).replace("\n", "\r\n").encode())
    (top / "tmp/1700000009.M9P1.mx.example").write_text(bounce(9))
    for name in ("dovecot-uidlist", "dovecot.index.log", ".Bounces/maildirfolder", "subscriptions"):
        (top / name).write_text("3 V1 N1\n")
    return top


RECIPIENTS = [f"x{number}@there.example" for number in range(5)]


def test_a_maildir_gives_what_is_delivered_in_it_and_in_its_subfolders(maildir: Path) -> None:
    frame = dk.read_bounces(maildir)
    assert sorted(frame["recipient"]) == RECIPIENTS
    assert frame["source"].is_unique


def test_a_packed_maildir_gives_what_is_delivered_in_its_subfolders_too(maildir: Path) -> None:
    path = maildir.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(maildir, "Maildir")
    assert set(RECIPIENTS) <= set(dk.read_bounces(path)["recipient"].dropna())


def test_pythons_own_maildir_is_read(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "box")
    for number in range(3):
        box.add(bounce(number).encode())
    inner = box.add_folder("Bounces")
    for number in (3, 4):
        inner.add(bounce(number).encode())
    assert sorted(dk.read_bounces(tmp_path / "box")["recipient"]) == RECIPIENTS


def test_a_folder_may_hold_messages_and_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_text(bounce(0))
    (tmp_path / "b.mbox").write_text(framed("mboxrd", range(1, 3), ""))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/c.mbox.gz").write_bytes(gzip.compress(framed("mboxo", range(3, 5), "").encode()))
    frame = dk.read_bounces(tmp_path)
    assert frame["recipient"].tolist() == RECIPIENTS
    assert frame["line"].tolist() == [1, 1, 2, 1, 2]


def boxes(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield f"{FROM}{bounce(number, 'Hello. ' * 20)}\n".encode()


MEASURE = """if True:
    import resource, sys, tracemalloc
    from deliverkit.bounces.sources import messages
    tracemalloc.start()
    with open(sys.argv[1], "rb") as stream:
        print(sum(1 for _ in messages(stream)), tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("what", ["many", "one", "line feeds", "carriage returns", "a box without end"])
def test_memory_stays_bounded(what: str, tmp_path: Path) -> None:
    path, mebi, count = tmp_path / "large", 1 << 20, 1
    with path.open("wb") as file:
        if what == "many":
            count = 100_000
            file.writelines(boxes(count))
        elif what == "one":
            file.write(bounce(0).encode())
            file.writelines(b"Hello again and again\n" * 50_000 for _ in range(150))
        elif what == "a box without end":
            file.writelines([FROM.encode(), b"Content-Length: 99999999\n\n", *[b"\nFrom a\n" * 130_000] * 150])
        else:
            file.writelines((b"\n" if what == "line feeds" else b"\r") * mebi for _ in range(150))
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, peak = map(int, done.stdout.split())
    assert found == count
    assert peak < (200 * mebi if path.stat().st_size > 100 * mebi else 20 * mebi)


HOSTILE = {
    "separators": FROM * 2,
    "nearly": "\n\nFrom a 10:00\n",
    "colons": "\n\nFrom " + "1:" * 400 + "\nx: y\n",
    "quotes": '\n\nFrom "' + '"a ' * 300 + "2026 10:00\nx: y\n",
    "days": "\n\nFrom " + "Mon Jan " * 100 + "\nx: y\n",
    "lengths": f"\n{FROM}Content-Length: 40000000\n\nx\n",
    "quoted": ">" * 500 + "From \n",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_twice_the_box_takes_about_twice_the_time(piece: str) -> None:
    def seconds(size: int) -> float:
        data = (FROM + "Subject: x\n\n" + piece * (size // len(piece))).encode()
        begin = time.process_time()
        list(messages(io.BytesIO(data)))
        return time.process_time() - begin

    small, large = (min(seconds(size) for _ in range(2)) for size in (1_000_000, 4_000_000))
    assert large < 0.05 + 8 * small, f"{small:.3f} s, then {large:.3f} s for four times as much"
