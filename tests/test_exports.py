"""Exports of mail providers: what an event means, and what is none."""

from __future__ import annotations

import gzip
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deliverkit import facts
from deliverkit.errors import FormatError
from deliverkit.exports import read_export
from deliverkit.outcomes import outcomes

CASES = tomllib.loads((Path(__file__).parent / "cases/exports.toml").read_text(encoding="utf-8"))["case"]
EVENT = {"email": "b@y.example", "timestamp": 1767323046, "event": "delivered", "sg_event_id": "e1"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_event_gives_the_expected_row(tmp_path: Path, case: dict[str, Any]) -> None:
    row = read_export(write(tmp_path / "x", case["text"])).to_dict("records")[-1]
    assert {column: row[column] for column in case["expect"]} == case["expect"]
    assert [column for column in case.get("missing", ()) if not pd.isna(row[column])] == []


def test_every_event_of_the_facts_has_a_case_or_is_like_one_that_has() -> None:
    for table in facts.tables("esp_exports")["provider"]:
        assert table.keys() >= {"source", "noted", "evidence"}
        text = " ".join(case["text"] for case in CASES)
        like = {str(means): False for means in table["events"].values()}
        for kind, means in table["events"].items():
            like[str(means)] |= kind in text or "always" in table
        assert all(like.values()), table["title"]


@pytest.mark.parametrize("between", ["", "\n", ",\n", "\r\n\r\n"])
def test_values_may_follow_each_other_in_any_way(tmp_path: Path, between: str) -> None:
    events = [json.dumps(EVENT | {"sg_event_id": f"e{i}"}, indent=i) for i in (1, 2, 3)]
    made = read_export(write(tmp_path / "x", "\ufeff " + between.join(events)))
    assert list(made["outcome"]) == ["passed"] * 3
    assert made["time"].eq(pd.Timestamp("2026-01-02 03:04:06", tz="UTC")).all()


def test_an_event_seen_twice_is_one_row_and_the_number_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, json.dumps([EVENT, EVENT, EVENT | {"sg_event_id": name}]))
    made = read_export(tmp_path)
    assert (len(made), made.attrs["duplicates"]) == (3, 3)


def test_a_message_sent_to_two_is_two_outcomes(tmp_path: Path) -> None:
    mail = {"messageId": "m", "destination": ["b@y.example", "c@y.example"], "timestamp": "2026-01-02T03:04:05Z"}
    done = {"timestamp": "2026-01-02T03:04:09Z", "recipients": ["b@y.example"], "smtpResponse": "250 ok"}
    events = [{"eventType": "Send", "mail": mail}, {"eventType": "Delivery", "mail": mail, "delivery": done},
              {"eventType": "Click", "mail": mail, "click": {"timestamp": "2026-01-03T03:04:09Z"}}]  # fmt: skip
    ends = outcomes(read_export(write(tmp_path / "x", json.dumps(events)))).set_index("recipient")
    assert dict(ends["final"]) == {"b@y.example": "sent", "c@y.example": "open"}
    assert dict(ends["attempts"]) == {"b@y.example": 1, "c@y.example": 0}
    assert ends["duration_s"]["b@y.example"] == 4.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        (b"recipient,client\n", "not JSON"),
        (os.urandom(100) + b"\0", "not JSON"),
        (b"{broken", "no event of a known provider"),
        (b"[" * 100_000, "no event of a known provider"),
        (b'{"event":"sent","MessageID":1}', "known: sendgrid, ses"),
        (b"[1, null, [], {}]", "known: sendgrid, ses"),
        (b"{" + b"x" * 10_000_000, "no event of a known provider"),
        (gzip.compress(json.dumps([EVENT] * 5000).encode())[:-9], "cannot be read"),
    ],
)
def test_what_is_no_export_is_a_format_error_of_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=says) as error:
        read_export(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_a_provider_is_known_and_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "x", json.dumps(EVENT))
    assert len(read_export(path, provider="sendgrid")) == 1
    with pytest.raises(FormatError, match="no event of a known provider"):
        read_export(path, provider="ses")
    with pytest.raises(FormatError, match="'pigeon'; known: sendgrid, ses"):
        read_export(path, provider="pigeon")


def test_an_empty_array_is_an_empty_frame(tmp_path: Path) -> None:
    assert len(read_export(write(tmp_path / "x", "[]"))) == 0


@pytest.mark.parametrize("value", [None, "", [], {}, "x", -1, 1e300, float("nan"), True, ["\ud800"], {"a": [{}]}])
def test_no_value_of_a_field_breaks_the_reading(tmp_path: Path, value: object) -> None:
    for field in EVENT:
        (tmp_path / "x").write_text(json.dumps([EVENT | {field: value}, EVENT | {"sg_event_id": "e2"}]))
        assert len(read_export(tmp_path / "x")) == 2


def test_real_exports_are_read(shared: Path) -> None:
    ends = {path.name: read_export(path) for path in sorted((shared / "bounces/esp_json").iterdir())}
    assert len(ends) == 23
    made = pd.concat(ends.values())
    assert made[["time", "recipient"]].notna().all(axis=None)
    assert made["outcome"].value_counts(dropna=False).to_dict() == {"failed": 19, "passed": 3, pd.NA: 4}
    assert not made["category"].eq("unknown").any()
