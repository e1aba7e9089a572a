"""Bounces: every kind of message gives its rows, and no bytes are too strange to give one."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import mailbox
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.bounces.mail import take_apart
from deliverkit.bounces.sources import messages

CASES = tomllib.loads((Path(__file__).parent / "cases/bounces.toml").read_text("utf-8"))["case"]
COLUMNS = ["recipient", "category", "status_code", "reply_code", "text", "message_id", "time", "outcome"]


def message(case: dict) -> bytes:
    return case["message"].lstrip("\n").encode()


def read(folder: Path, data: bytes, name: str = "one.eml") -> pd.DataFrame:
    (folder / name).write_bytes(data)
    return dk.read_bounces(folder / name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_message_gives_the_expected_row(case: dict, tmp_path: Path) -> None:
    frame = read(tmp_path, message(case))
    assert len(frame) == case.get("rows", 1)
    row = frame.astype(object).to_dict("records")[0]
    found = {name: str(row[name]) if name == "time" else row[name] for name in case["expect"]}
    assert found == case["expect"]
    assert frame["rule"].notna().all()


@pytest.mark.parametrize("ends", [b"\r\n", b"\r"], ids=["crlf", "cr"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_line_ends_make_no_difference(case: dict, ends: bytes, tmp_path: Path) -> None:
    plain = read(tmp_path, message(case))
    assert read(tmp_path, message(case).replace(b"\n", ends)).equals(plain)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bounces")
    for number, case in enumerate(CASES):
        (made / f"{number:02}.eml").write_bytes(message(case))
    return made


def pack(kind: str, folder: Path, made: Path) -> Path:
    files = sorted(folder.glob("*.eml"))
    if kind == "zip":
        with zipfile.ZipFile(made / "all.zip", "w") as archive:
            for file in files:
                archive.write(file, file.name)
    elif kind == "tar.gz":
        with tarfile.open(made / "all.tar.gz", "w:gz") as archive:
            for file in files:
                archive.add(file, file.name)
    elif kind == "mbox":
        box = mailbox.mbox(made / "all.mbox")
        for file in files:
            box.add(file.read_bytes())
        box.close()
    elif kind == "mbox.gz":
        pack("mbox", folder, made)
        (made / "all.mbox.gz").write_bytes(gzip.compress((made / "all.mbox").read_bytes()))
    else:
        for name in ("cur", "new", "tmp", ".Old/cur", ".Old/new"):
            (made / "all.maildir" / name).mkdir(parents=True)
        (made / "all.maildir/dovecot-uidlist").write_text("3 V1 N1")
        for number, file in enumerate(files):
            to = [".Old/cur", "cur", "new"][number * 3 // len(files)]
            (made / "all.maildir" / to / f"{number:02}.host:2,S").write_bytes(file.read_bytes())
    return made / f"all.{kind}"


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "mbox", "mbox.gz", "maildir"])
def test_any_container_gives_the_rows_of_its_messages(kind: str, folder: Path, tmp_path: Path) -> None:
    plain = dk.read_bounces(folder)[COLUMNS]
    packed = dk.read_bounces(pack(kind, folder, tmp_path))
    assert packed[COLUMNS].equals(plain)
    assert packed["source"].notna().all()
    if kind.startswith("mbox"):
        assert packed["line"].nunique() == len(CASES)


def test_an_mbox_is_parted_at_from_lines_only() -> None:
    data = b"From a@b.example Tue Nov 24 10:00:00 2026\nSubject: x\n\n>From here\n>>From there\n\nFrom now on\n\n"
    data += b"From c@d.example Tue Nov 24 10:00:00 2026\nSubject: y\n\nz\n"
    first, second = messages(io.BytesIO(data))
    assert b"\nFrom here\n>From there\n\nFrom now on" in first
    assert second == b"Subject: y\n\nz\n"


BAD = {
    "nothing": b"",
    "line feeds": b"\n" * 1000,
    "junk": bytes(range(256)) * 1000,
    "null bytes": bytes(100_000),
    "one long line": b"x" * 10_000_000,
    "words": b"just some words\n\nand more\n",
}
HEAD = b"From: MAILER-DAEMON@a.example\nTo: b@sender.example\nSubject: Undelivered\n"
ODD = {
    "an unknown charset": b"Content-Type: text/plain; charset=uft-8\n\n",
    "a charset that is a codec": b"Content-Type: text/plain; charset=zip\n\n",
    "a thousand parts in parts": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(1000)
    )
    + b"Content-Type: text/plain\n\n",
    "null bytes in words": b"\n\0\0\n",
    "eight-bit bytes": b"\n\xff\xfe\xe9\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_message_is_a_row_that_says_so(data: bytes, tmp_path: Path) -> None:
    row = read(tmp_path, data).iloc[0]
    assert (row["category"], row["rule"]) == ("unknown", "hint:unreadable")
    assert row["text"].startswith("not a mail message")


@pytest.mark.parametrize("middle", ODD.values(), ids=ODD)
def test_an_odd_message_is_read_all_the_same(middle: bytes, tmp_path: Path) -> None:
    frame = read(tmp_path, HEAD + middle + b"<x@y.example>: 550 5.1.1 user unknown\n")
    assert frame["recipient"].tolist() == ["x@y.example"]
    assert frame["category"].tolist() == ["invalid_recipient"]


def test_a_thousand_messages_in_messages_are_one_row(tmp_path: Path) -> None:
    assert len(read(tmp_path, HEAD + b"Content-Type: message/rfc822\n\n" * 1000)) == 1


def test_a_million_boundaries_are_read_once(tmp_path: Path) -> None:
    for line in (b"\n--", b"\n--b"):
        head = HEAD + b"Content-Type: multipart/mixed; boundary=b\n"
        assert len(read(tmp_path, head + line * 300_000 + b"\n<x@y.example>: 550 no such user\n")) == 1


def test_a_damaged_archive_loses_no_other_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(message(CASES[0]))
    (tmp_path / "b.eml.gz").write_bytes(gzip.compress(os.urandom(5000))[:3000])
    (tmp_path / "c.eml").write_bytes(message(CASES[0]))
    frame = dk.read_bounces(tmp_path)
    assert [Path(name).name for name in frame["source"]] == ["a.eml", "b.eml.gz", "c.eml"]
    assert frame["category"][1] == "unknown"


@pytest.mark.parametrize("name", ["missing.eml", "empty"])
def test_a_path_without_a_file_is_an_error_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(dk.FormatError) as error:
        dk.read_bounces(tmp_path / name)
    assert "\n" not in str(error.value)


FLOORS = {  # measured on all of ../shared minus a point
    "recognised": 0.99,
    "exact_recipients": 0.97,
    "status_code": 0.98,
    "reply_code": 0.97,
    "category_strict": 0.94,
    "kind": 0.95,
    "negatives_left_alone": 1.0,
    "mac_same_as_bsd": 1.0,
    "dos_same_as_bsd": 1.0,
}


def test_the_labelled_bounces_score_as_before(shared: Path, tmp_path: Path) -> None:
    frame = dk.read_bounces(shared / "bounces/eml")
    names = frame["source"].map(lambda source: Path(source).name)
    assert set(names) == {path.name for path in (shared / "bounces/eml").iterdir()}, "a file was lost"
    columns = ["recipient", "category", "kind", "status_code", "reply_code"]
    with (tmp_path / "readings.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["file", *columns])
        for name, values in zip(names, frame[columns].astype("string").fillna("").to_numpy(), strict=True):
            writer.writerow([name, *values])
    command = [sys.executable, shared / "bounces/score.py", tmp_path / "readings.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    scores = {name: float(share) for name, share in re.findall(r"^(\w+): ([\d.]+)", done.stdout, re.M)}
    assert {name: scores[name] for name in FLOORS if scores[name] < FLOORS[name]} == {}


def test_several_processes_give_the_same_rows_in_the_same_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliverkit.bounces._BATCH", 3)
    assert dk.read_bounces(folder, workers=2).equals(dk.read_bounces(folder))


def test_a_fault_of_the_reader_costs_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dk.read_bounces(folder)

    def breaks(message: bytes) -> object:
        if b"mailbox" in message.lower():
            raise RecursionError
        return take_apart(message)

    monkeypatch.setattr("deliverkit.bounces.take_apart", breaks)
    rest = dk.read_bounces(folder)
    broken = rest["text"].eq("cannot be read: RecursionError").fillna(False)
    assert broken.sum() >= 1 and set(rest.loc[broken, "rule"]) == {"hint:unreadable"}
    sources = set(rest.loc[~broken, "source"])
    assert whole[whole["source"].isin(sources)].reset_index(drop=True).equals(rest[~broken].reset_index(drop=True))


EVIDENCE = {  # field, matched, of a report with these lines
    "Diagnostic-Code: smtp; 550 5.1.1 Mailbox is full": ("Diagnostic-Code", "mailbox is full"),
    "Diagnostic-Code: smtp; 550 5.1.1 <a@b.example>": ("status_code", "5.1.1"),
    "Diagnostic-Code: smtp; 535": ("reply_code", "535"),
}


@pytest.mark.parametrize("lines", EVIDENCE)
def test_the_evidence_is_the_field_and_the_words_that_decided(lines: str, tmp_path: Path) -> None:
    head = "From: MAILER-DAEMON@mx.example\nTo: bounce+1@news.example\nContent-Type: message/delivery-status\n\n"
    row = read(tmp_path, f"{head}\nFinal-Recipient: rfc822; a@b.example\nAction: failed\n{lines}\n".encode()).iloc[0]
    assert (row["field"], row["matched"]) == EVIDENCE[lines]
    assert 0.3 < row["confidence"] <= 1 and row["sender"] == "bounce+1@news.example"


@pytest.mark.parametrize(
    ("head", "field", "words"),
    [
        ("Subject: Out of office\nAuto-Submitted: auto-replied", "Auto-Submitted", "auto-replied"),
        ("Subject: Automatic reply: holidays", "Subject", "Automatic reply"),
        ("Subject: minutes of the meeting", "From", "no mail system, no report: Anna <anna@a.example>"),
    ],
)
def test_what_is_no_bounce_says_why(head: str, field: str, words: str, tmp_path: Path) -> None:
    row = read(tmp_path, f"From: Anna <anna@a.example>\nTo: b@b.example\n{head}\n\nHello.\n".encode()).iloc[0]
    assert (row["category"], row["field"], row["matched"]) == ("not_a_failure", field, words)


def test_a_subject_that_is_no_base64_is_kept_as_it_is(tmp_path: Path) -> None:
    row = read(tmp_path, b"From: a@b.example\nSubject: =?utf-8?b?=QQ=?=\n\nx\n").iloc[0]
    assert row["text"] == "=?utf-8?b?=QQ=?="


@pytest.mark.parametrize(
    "sender", ["bounce+anna=gmail.example@a.example", "SRS0=ab=cd=y.example=x@a.example", "b@c.example"]
)
def test_a_verp_address_is_kept_whole(sender: str, tmp_path: Path) -> None:
    assert read(tmp_path, HEAD.replace(b"\n", f"\nTo: <{sender}>\n".encode(), 1) + b"\nx\n")["sender"][0] == sender


WORDS = "Delivery failed to these recipients:\n\npaul@u.example\n550 5.1.10 RecipientNotFound; Recipient not found\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "utf-16le"])
def test_words_in_base64_are_read_in_any_charset_and_with_any_ends(charset: str, ends: str, tmp_path: Path) -> None:
    body = base64.encodebytes(WORDS.replace("\n", ends).encode(charset))
    fields = f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: base64\n\n".encode()
    row = read(tmp_path, HEAD + fields + body).iloc[0]
    assert (row["recipient"], row["category"], row["reply_code"]) == ("paul@u.example", "invalid_recipient", 550)


def test_the_address_that_the_sender_wrote_to_is_kept_and_joined(tmp_path: Path) -> None:
    report = b"Content-Type: message/delivery-status\n\n\nFinal-Recipient: rfc822; box@inner.example\n"
    frame = read(
        tmp_path, HEAD + report + b"Original-Recipient: rfc822; sven@r.example\nAction: failed\nStatus: 5.1.1\n"
    )
    assert frame[["recipient", "original_recipient"]].iloc[0].tolist() == ["box@inner.example", "sven@r.example"]
    joined = dk.attach_sends(frame, pd.DataFrame({"recipient": ["sven@r.example"], "port": [587]}))
    assert joined[["port", "joined"]].iloc[0].tolist() == [587, "recipient"]


def test_a_newsletter_about_bounces_is_none(tmp_path: Path) -> None:
    head = b"From: Weekly <weekly@blog.example>\nSubject: Undeliverable mail\nList-Unsubscribe: <mailto:x@y.example>\n"
    frame = read(tmp_path, head + b"\n<john@doe.example>: 550 5.1.1 user unknown\n")
    assert frame["category"].tolist() == ["not_a_failure"]


def test_a_list_may_name_folders_and_nothing_is_no_path(folder: Path) -> None:
    assert len(dk.read_bounces([folder])) == len(dk.read_bounces(folder))
    for path in ("", [""], 7):
        with pytest.raises(dk.FormatError, match="is not a path"):
            dk.read_bounces(path)  # type: ignore[arg-type]
