"""`read` looks at the content and calls the reader that fits."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.errors import FormatError, SchemaError
from deliverkit.read import read
from deliverkit.schema import ATTEMPTS, PROBES

LOG = (
    "Nov 23 21:14:53 mail postfix/smtp[9]: DD61222EC53: to=<b@x.example>, relay=mx[192.0.2.58]:25, delay=1, "
    "delays=0/0/1/0, dsn=2.0.0, status=sent (250 ok)\n"
)
EVENT = json.dumps({"email": "c@y.example", "timestamp": 1767323046, "event": "delivered", "sg_event_id": "e1"})
BOUNCE = """Return-Path: <>
From: MAILER-DAEMON@mx.example
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; d@z.example
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user
--b--
"""
KINDS = {"log": (LOG, "b@x.example"), "export": (EVENT, "c@y.example"), "dsn": (BOUNCE, "d@z.example")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_content_says_what_a_file_is(tmp_path: Path, kind: str, pack: object) -> None:
    (tmp_path / "misleading.csv").write_bytes(pack(KINDS[kind][0].encode()))  # type: ignore[operator]
    made = read(tmp_path / "misleading.csv")
    assert list(made) == ATTEMPTS.names
    assert made[["origin", "recipient"]].to_numpy().tolist() == [[kind, KINDS[kind][1]]]


def test_an_mbox_is_mail(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"From MAILER-DAEMON Thu Jan  1 00:00:00 2026\n{BOUNCE}\n" * 2)
    assert list(read(tmp_path / "x")["origin"]) == ["dsn", "dsn"]


def test_a_mixed_folder_is_one_frame(tmp_path: Path) -> None:
    for kind, (text, _) in KINDS.items():
        (tmp_path / f"of {kind}").write_text(text)
    (tmp_path / "nothing").touch()
    made = read(tmp_path)
    assert list(made) == ATTEMPTS.names
    assert {Path(source).name for source in made["source"]} == {f"of {kind}" for kind in made["origin"]}
    assert set(made["origin"]) == set(KINDS)


def test_a_mixed_archive_is_one_frame(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for kind in ("log", "export"):
            archive.writestr(kind, KINDS[kind][0])
    made = read(tmp_path / "x")
    assert {source.partition("!")[2] for source in made["source"]} == {"log", "export"} == set(made["origin"])


@pytest.mark.parametrize("frame", [ATTEMPTS, PROBES], ids=lambda frame: frame.name)
@pytest.mark.parametrize("kind", ["csv", "csv with index", "parquet"])
def test_a_frame_that_was_written_comes_back(tmp_path: Path, frame: object, kind: str) -> None:
    rows = [{"time": pd.Timestamp("2026-01-01 10:00:00", tz="UTC"), "port": 25, "blocked": True, "text": "NA"},
            {"time": pd.Timestamp("2026-01-01 10:00:00.25", tz="UTC"), "delay_s": 0.5, "text": 'a,"b"\nc'}]  # fmt: skip
    made = frame.build(rows)  # type: ignore[attr-defined]
    if kind == "parquet":
        made.to_parquet(tmp_path / "x")
    else:
        made.to_csv(tmp_path / "x", index=kind == "csv with index")
    pd.testing.assert_frame_equal(read(tmp_path / "x"), made)


def test_probes_read_together_with_a_log_keep_what_was_probed(tmp_path: Path) -> None:
    PROBES.build([{"port": 25, "verdict": "open"}]).to_csv(tmp_path / "probes", index=False)
    (tmp_path / "log").write_text(LOG)
    both = read(tmp_path)
    assert list(both) == PROBES.names and both["verdict"].dropna().tolist() == ["open"] and len(both) > 1
    assert list(read(tmp_path / "log")) == ATTEMPTS.names
    assert list(read(tmp_path / "probes")) == PROBES.names


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"message_id,recipient,client,campaign\n<m@x>,b@x.example,ACME,spring\n", "cannot tell what this is"),
        (b"\x89PNG\r\n" + bytes(5000), "cannot tell what this is"),
        (b"x" * 10_000_000, "cannot tell what this is"),
        (b"PAR1" + bytes(100), "no frame of deliverkit"),
        (",".join(ATTEMPTS.names).encode() + b"\n" + b"yesterday" + b"," * 25 + b"\n", "no frame of deliverkit"),
    ],
)
def test_what_is_unknown_is_a_format_error_of_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(FormatError, match=says) as error:
        read(tmp_path / "list.csv")
    assert "\n" not in str(error.value)
    assert "list.csv" in str(error.value)
    if says.startswith("cannot tell"):
        assert "postfix" in str(error.value) and "ses, sendgrid" in str(error.value)


def test_a_folder_without_files_or_a_missing_path_is_a_format_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FormatError):
            read(path)


def test_a_stray_file_is_named_and_the_rest_is_read(tmp_path):
    import shutil

    import deliverkit as dk

    root = Path(__file__).resolve().parents[1]
    shutil.copy(root / "data" / "postfix" / "home.log", tmp_path / "home.log")
    (tmp_path / "notes.txt").write_text("remember the milk")
    with pytest.warns(UserWarning, match=r"not read: .*notes\.txt"):
        folder = dk.read(tmp_path)
    assert len(folder) == len(dk.read([tmp_path / "home.log"])) > 100
    assert len(dk.read([tmp_path / "home.log", root / "data" / "ses.json"])) > len(folder)


def test_a_mailbox_is_read_by_the_reader_of_bounces() -> None:
    with pytest.raises(FormatError, match="a password in a URL"):
        read(["imaps://me:secret@mail.example/INBOX"])


def test_a_damaged_archive_among_others_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "m.eml").write_bytes(
        b"From: MAILER-DAEMON@a.example\nSubject: x\n\n<a@b.example>: 550 5.1.1 user unknown\n"
    )
    for path in (tmp_path, [tmp_path / "broken.zip", tmp_path / "m.eml"]):
        with pytest.warns(UserWarning, match="broken.zip"):
            assert len(read(path)) == 1


def test_what_only_begins_like_an_export_is_a_log_or_named(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": 1}')
    (tmp_path / "mail.log").write_text(LOG)
    php = "[20-Nov-2026 10:00:01 UTC] SMTP ERROR: Failed to connect to server: Connection refused (111)"
    (tmp_path / "php.log").write_text(php + "\n")
    with pytest.warns(UserWarning, match=r"not read: .*package\.json: there is no event"):
        made = read(tmp_path)
    assert set(made["source"].str.rpartition("/")[2]) == {"mail.log", "php.log"}
    assert len(read(tmp_path / "php.log")) == 1
    with pytest.raises(FormatError, match="there is no event"):
        read(tmp_path / "package.json")


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": "2"}, {"year": "2026"}, {"year": True}])
def test_arguments_that_cannot_be_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    (tmp_path / "log").write_text(LOG)
    with pytest.raises(SchemaError, match="is no whole number"):
        dk.read_log(tmp_path / "log", **wrong)
