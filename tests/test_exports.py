"""Exports of mail providers: what an event means, and what is none."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliverkit import facts, records
from deliverkit.errors import FormatError, SchemaError
from deliverkit.exports import known_export, read_export
from deliverkit.files import parts
from deliverkit.outcomes import outcomes

CASES = tomllib.loads((Path(__file__).parent / "cases/exports.toml").read_text(encoding="utf-8"))["case"]
EVENT = {"email": "b@y.example", "timestamp": 1767323046, "event": "delivered", "sg_event_id": "e1"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_event_gives_the_expected_row(tmp_path: Path, case: dict[str, Any]) -> None:
    made = read_export(write(tmp_path / "x", case["text"]))
    row = made.to_dict("records")[-1]
    assert len(made) == case.get("rows", len(made))
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


def test_every_hint_of_the_facts_is_one() -> None:
    hints, said = set(facts.table("hints")["hint"]), set()
    for table in facts.tables("esp_exports")["provider"]:
        for meanings in (table["events"], *table.get("but", {}).values()):
            said |= {meaning["hint"] for meaning in meanings.values() if meaning.get("hint")}
    assert said <= hints and "connect" in said


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
        (b'{"event":"sent","MessageId":1}', "known: .*sendgrid, ses"),
        (b"[1, null, [], {}]", "known: .*sendgrid, ses"),
        (b"[" + b'{"a":' * 100_000, "no event of a known provider"),
        (b"a\rb,c\r", "not JSON"),
        (b"event=a&recipient=%zz", "not JSON"),
        (b"x=" + b"&event=1" * 300, "not JSON"),
        (b'"' + b"x" * 200_000, "not JSON"),
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
    assert len(read_export(path, provider="sendgrid")) == len(read_export(path, provider="SendGrid")) == 1
    with pytest.raises(FormatError, match="no event of a known provider"):
        read_export(path, provider="ses")
    with pytest.raises(FormatError, match=r"'pigeon'; known: .*sendgrid, ses"):
        read_export(path, provider="pigeon")


def test_an_empty_array_is_an_empty_frame(tmp_path: Path) -> None:
    assert len(read_export(write(tmp_path / "x", "[]"))) == 0


@pytest.mark.parametrize("value", [None, "", [], {}, "x", -1, 1e300, float("nan"), True, ["\ud800"], {"a": [{}]}])
def test_no_value_of_a_field_breaks_the_reading(tmp_path: Path, value: object) -> None:
    for field in EVENT:
        (tmp_path / "x").write_text(json.dumps([EVENT | {field: value}, EVENT | {"sg_event_id": "e2"}]))
        assert len(read_export(tmp_path / "x")) == 2


def bounce(number: int) -> dict[str, Any]:
    """A SES event with two recipients and a text that looks like JSON."""
    said = {"emailAddress": f"b{number}@y.example", "diagnosticCode": 'smtp; 550 5.1.1 no "user" \\\\ },{ [ü]\\'}
    mail = {"messageId": f"m{number}", "destination": ["b@y.example"], "headers": [{"name": "a"}, {"name": "b"}]}
    body = {
        "feedbackId": f"f{number}",
        "timestamp": "2026-01-02T03:04:06.5Z",
        "bouncedRecipients": [said, {"emailAddress": "c@z"}],
    }
    return {"eventType": "Bounce", "mail": mail, "bounce": body}


EVENTS = [EVENT | {"sg_event_id": f"e{n}"} if n % 3 else bounce(n) for n in range(40)]
SHAPES = {
    "lines": "\n".join(map(json.dumps, EVENTS)), "array": json.dumps(EVENTS), "indented": json.dumps(EVENTS, indent=1),
    "arrays": "\n".join(json.dumps(EVENTS[n : n + 7], ensure_ascii=False) for n in range(0, 40, 7)),
    "values": "".join(map(json.dumps, EVENTS)), "page": json.dumps({"items": EVENTS, "paging": {}}),
    "envelopes": "\r\n".join(json.dumps({"Type": "Notification", "Message": json.dumps(e)}) for e in EVENTS),
    "odd": "[1, " + ",\n".join(map(json.dumps, EVENTS)) + ", NaN, 1e999, -0, " + "9" * 5000 + "]",
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 100, 1500, 8 << 20])
def test_neither_shape_nor_size_of_the_blocks_changes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, size: int
) -> None:
    usual = read_export(write(tmp_path / "x", json.dumps(EVENTS)))
    monkeypatch.setattr(records, "_BLOCK", size)
    (tmp_path / "x").write_bytes(gzip.compress(SHAPES[shape].encode()))
    made = read_export(tmp_path / "x")
    good = made[made["rule"] != "hint:unreadable"].reset_index(drop=True)
    assert len(usual) == 54 and len(made) - len(good) == (5 if shape == "odd" else 0)
    pd.testing.assert_frame_equal(good.drop(columns="line"), usual.drop(columns="line"))
    assert good["line"].is_monotonic_increasing


@pytest.mark.parametrize("size", [1, 100, 8 << 20])
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(records, "_BLOCK", size)
    lines = [json.dumps(EVENT | {"sg_event_id": f"e{n}"}) for n in range(1000)]
    lines[500] = lines[500][:70]
    lines[700] = lines[700].replace('"', "", 1)
    made = read_export(write(tmp_path / "x", "\n".join(lines)))
    assert made["outcome"].eq("passed").sum() == 998
    assert list(made["text"][998:]) == ["line 501: not JSON", "line 701: not JSON"]
    assert list(made["line"][498:502]) == [499, 500, 502, 503]


@pytest.mark.parametrize("size", [1, 100, 8 << 20])
def test_a_cut_array_loses_its_tail_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(records, "_BLOCK", size)
    text = json.dumps([EVENT | {"sg_event_id": f"e{n}"} for n in range(10)])
    for cut, says in (
        (-20, r"item 10: not JSON from here on, \d+ characters"),
        (-1, "item 11: the file ends inside an"),
    ):
        made = read_export(write(tmp_path / "x", text[:cut]))
        assert made["outcome"].eq("passed").sum() == (9 if cut == -20 else 10)
        assert made["text"].str.match(says).sum() == 1 and len(made) == made["outcome"].eq("passed").sum() + 1


def test_a_damaged_item_of_an_array_in_one_line_costs_itself_alone(tmp_path: Path) -> None:
    text = json.dumps([EVENT | {"sg_event_id": f"e{n}"} for n in range(10)]).replace('"e4"', '"e4')
    made = read_export(write(tmp_path / "x", text))
    assert made["outcome"].eq("passed").sum() == 9 and made["text"].iloc[-1] == "item 5: not JSON"


def test_a_value_without_end_is_given_up_and_what_follows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_BLOCK", 100)
    monkeypatch.setattr(records, "_MOST", 1000)
    good = [json.dumps(EVENT | {"sg_event_id": f"e{n}"}) for n in range(4)]
    text = "\n".join([*good[:2], '{"a":"' + "x" * 5000, *good[2:]])
    made = read_export(write(tmp_path / "x", text))
    assert made["outcome"].eq("passed").sum() == 4 and made["text"].str.startswith("line 3: not JSON").any()


@pytest.mark.parametrize(
    "text", ['{"a\n' * 20_000, "[\n" * 50_000, '{"a":\n' * 50_000, "},{" * 20_000, '"' * 50_001, "1," * 50_000]
)
def test_much_that_is_no_event_leaves_the_good_ones(tmp_path: Path, text: str) -> None:
    made = read_export(write(tmp_path / "x", json.dumps(EVENT) + "\n" + text))
    assert made["outcome"].eq("passed").sum() == 1 and made["rule"].eq("hint:unreadable").sum() == len(made) - 1 > 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["bounce", "550 5.1.1 x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_event_breaks_the_reading_or_is_lost(tmp_path: Path, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in CASES if case["text"].startswith(("{", "["))]))
    events = [event for event in records._pieces(case["text"].encode(), False, True)[0] if isinstance(event, dict)]
    for event in events:
        holder = event
        for _ in range(data.draw(st.integers(0, 4))):
            inner = [held for held in holder.values() if isinstance(held, dict) and held]
            holder = data.draw(st.sampled_from(inner)) if inner else holder
        holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(VALUES)
    known = json.dumps(EVENT | {"sg_event_id": "known"})
    made = read_export(write(tmp_path / "x", "\n".join([*map(json.dumps, events), known])))
    assert made["outcome"].eq("passed").any() and made["outcome"].isin(["passed", "deferred", "failed", pd.NA]).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 700), piece=st.binary(max_size=8), size=st.sampled_from([1, 64, 1 << 20]))
def test_no_bytes_break_the_reading(tmp_path: Path, at: int, piece: bytes, size: int) -> None:
    good = json.dumps(EVENT).encode()
    text = b"\n".join([good, json.dumps(bounce(1)).encode(), good.replace(b"e1", b"e2"), good.replace(b"e1", b"e3")])
    (tmp_path / "x").write_bytes(text[:at] + piece + text[at + len(piece) :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_BLOCK", 8 << 20)
        whole = read_export(tmp_path / "x") if (tmp_path / "x").read_bytes().lstrip()[:1] in (b"{", b"[") else None
        patch.setattr(records, "_BLOCK", size)
        if whole is not None:
            pd.testing.assert_frame_equal(read_export(tmp_path / "x"), whole)


def test_the_port_is_the_callers_and_of_attempts_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x", json.dumps([EVENT, EVENT | {"event": "click", "sg_event_id": "e2"}]))
    assert read_export(path)["port"].isna().all()
    assert list(read_export(path, port=25)["port"].fillna(0)) == [25, 0]
    for port in (0, 65536, -1, True, "25", 25.0):
        with pytest.raises(SchemaError, match="no TCP port"):
            read_export(path, port=port)  # type: ignore[arg-type]


def test_any_csv_is_read_by_a_map_of_its_columns(tmp_path: Path) -> None:
    text = "Wann,An wen,Ergebnis,Antwort,Tür\n1767323046,b@y.example,zugestellt,250 ok,587\n"
    text += ",c@y.example,Bounced,550 5.1.1 x,x\n"
    words = ("Ergebnis", {"zugestellt": "delivered"})
    columns = {"time": "wann", "recipient": "An wen", "event": words, "text": "Antwort", "port": "Tür"}
    with pytest.warns(UserWarning, match="^1 of column port cannot be read and are missing; the first in .*, 3: 'x'$"):
        made = read_export(write(tmp_path / "x", text), columns=columns)
    assert list(made["outcome"]) == ["passed", "failed"] and list(made["port"].fillna(0)) == [587, 0]
    assert list(made["reply_code"]) == [250, 550] and made["time"].notna().tolist() == [True, False]
    with pytest.raises(FormatError, match="there is no header 'Host'; the file has 'Wann,An wen,Ergebnis,Antwort,Tür'"):
        read_export(tmp_path / "x", columns=columns | {"host": "Host"})
    with pytest.raises(FormatError, match="no CSV with a known header"):
        read_export(tmp_path / "x")
    for wrong in (
        {},
        {"recipient": "An wen"},
        {"rule": "x", "event": "y"},
        {"event": ("Ergebnis", {"ok": "nonsense"})},
        {"event": 1},
    ):
        with pytest.raises(SchemaError, match="columns="):
            read_export(tmp_path / "x", columns=wrong)


WHO = {"recipient": "Email", "time": "When", "event": "Event"}


def times(path: Path, *texts: str) -> list[str | None]:
    """How the times of a file are read, in UTC."""
    rows = "".join(f'a@x.example,"{text}",bounced\n' for text in texts)
    made = read_export(write(path / "x", "Email,When,Event\n" + rows), columns=WHO)["time"]
    return [None if pd.isna(time) else f"{time:%Y-%m-%d %H:%M:%S}" for time in made]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("20.11.2026 10:00", "2026-11-20 10:00:00"),
        ("02.11.2026 9:05:07", "2026-11-02 09:05:07"),
        ("11/20/2026 10:00 AM", "2026-11-20 10:00:00"),
        ("11/20/2026, 12:30:15 p.m.", "2026-11-20 12:30:15"),
        ("11-20-2026 12:30 AM", "2026-11-20 00:30:00"),
        ("20/11/2026", "2026-11-20 00:00:00"),
        ("05/05/2026 10:00", "2026-05-05 10:00:00"),
        ("Fri, 20 Nov 2026 10:00:00 +0100", "2026-11-20 09:00:00"),
        ("2 Nov 2026 10:00:00 -0130 (X)", "2026-11-02 11:30:00"),
        ("Nov 20, 2026 10:00", "2026-11-20 10:00:00"),
        ("November 2, 2026 1:00 PM", "2026-11-02 13:00:00"),
        ("2026-11-20 10:00", "2026-11-20 10:00:00"),
        ("Sun Nov 22 2026 10:00:00 GMT+0100 (Central European Time)", "2026-11-22 09:00:00"),
        ("31.12.9999 23:59", "9999-12-31 23:59:00"),
        ("2026-11-20T10:00+02:00", "2026-11-20 08:00:00"),
    ],
)
def test_a_time_that_is_sure_is_read(tmp_path: Path, text: str, time: str) -> None:
    assert times(tmp_path, text) == [time]


@pytest.mark.parametrize(
    "text",
    ["02/11/2026 10:00", "2-11-2026", "31.02.2026", "13/13/2026", "20.11.26 10:00", "Nov 20, 2026 13:00 PM",
     "20 Nov 2026 10:00 CEST", "20.11.2026 25:00", "0/0/2026", "yesterday", "20.11-2026", "20.11.2026 " + "1" * 9999,
     "1.1.0000", "1.1.0001 00:00 +0100", "11/20/2026 10:00 -9999"],
)  # fmt: skip
def test_a_time_that_is_not_sure_is_missing_and_told(tmp_path: Path, text: str) -> None:
    with pytest.warns(UserWarning, match="^2 of column time cannot be read and are missing; the first in .*, 3: '"):
        assert times(tmp_path, "2026-11-20", text, text) == ["2026-11-20 00:00:00", None, None]


def test_one_number_above_12_proves_the_order_for_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_BLOCK", 1)
    assert times(tmp_path, "02/11/2026", "11/20/2026")[0] == "2026-02-11 00:00:00"
    assert times(tmp_path, "02/11/2026", "20/11/2026")[0] == "2026-11-02 00:00:00"
    with pytest.warns(UserWarning, match="^1 of column time"):
        assert times(tmp_path, "20/11/2026", "11/20/2026", "02/11/2026")[2] is None


def test_csv_in_windows_1252_is_read_as_such(tmp_path: Path) -> None:
    text = "Empfänger;Datum;Stand\nann@x.example;20.11.2026 10:00;verzögert\n"
    columns = {"recipient": "Empfänger", "time": "Datum", "event": ("Stand", {"verzögert": "deferred"})}
    (tmp_path / "x").write_bytes(text.encode("cp1252"))
    made = read_export(tmp_path / "x", columns=columns)
    assert list(made["recipient"]) == ["ann@x.example"] and list(made["outcome"]) == ["deferred"]
    pd.testing.assert_frame_equal(read_export(write(tmp_path / "x", text), columns=columns), made)


def test_a_word_that_the_caller_translates_is_no_text_of_a_server(tmp_path: Path) -> None:
    text = "Email,When,Stand\na@x.example,1767323046,verzögert\nb@x.example,1767323046,Klick\n"
    words = {"verzögert": "deferred", "Klick": "click"}
    made = read_export(write(tmp_path / "x", text), columns=WHO | {"event": ("Stand", words)})
    assert list(made["category"]) == ["unknown", "not_a_failure"] and list(made["text"].fillna("")) == ["", "Klick"]


def test_a_header_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "Empfänger;Status\na@x.example;bounced\n")
    with pytest.raises(FormatError, match="there is no header 'Empfaenger'; the file has 'Empfänger;Status'"):
        read_export(path, columns={"recipient": "Empfaenger", "event": "Status"})


def test_binary_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(14, 256)) * 9)
    for columns in (None, WHO):
        with pytest.raises(FormatError, match=r"known header, but binary or UTF-16 without its mark$"):
            read_export(tmp_path / "x", columns=columns)


def test_utf_16_without_its_mark_is_refused(tmp_path: Path) -> None:
    for code in ("utf-16-le", "utf-16-be"):
        (tmp_path / "x").write_bytes("email,event,timestamp\na@x.example,bounced,1767323046\n".encode(code))
        with pytest.raises(FormatError, match="UTF-16 without its mark"):
            read_export(tmp_path / "x")


def test_sendgrid_names_a_message_alike_in_all_its_events(tmp_path: Path) -> None:
    about = {"email": "b@y.example", "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0"}
    events = [about | {"event": "deferred", "timestamp": 1, "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>"},
              about | {"event": "bounce", "timestamp": 2, "status": "5.1.1", "email": "B@y.example"},
              about | {"event": "bounce", "timestamp": 2, "status": "5.1.1", "email": "c@y.example"}]  # fmt: skip
    for some in (events, events[::-1]):
        made = read_export(write(tmp_path / "x", json.dumps(some)))
        assert set(made["queue_id"]) == {"14c5d75ce93.dfd.64b469"}
        ends = outcomes(made).sort_values("recipient", key=lambda names: names.str.lower())
        assert list(ends["final"]) == ["bounced"] * 2 and list(ends["attempts"]) == [2, 1]
        assert ends["message_id"].isna().tolist() == [False, True]


@pytest.mark.parametrize(("whole", "told"), [("a1.filter0905p1mdw1-4434-59E0C6FF-3.0", "a1"), ("a1.later-7.0", "a1"),
                                             ("a1.recvd-5d8-x.0", "a1"), ("a1", "a1"), (".0", ".0")])  # fmt: skip
def test_the_id_that_sendgrid_told_the_sender_is_the_queue_id(tmp_path: Path, whole: str, told: str) -> None:
    made = read_export(write(tmp_path / "x", json.dumps(EVENT | {"sg_message_id": whole})))
    assert list(made["queue_id"]) == [told]


def test_a_mandrill_event_without_attempts_beside_one_with_them_is_one_row(tmp_path: Path) -> None:
    tries = [{"ts": 1767323046, "type": "sent", "diag": "250 2.0.0 OK"}]
    sent = {"event": "send", "ts": 1, "msg": {"_id": "m1", "email": "a@y.example", "smtp_events": tries}}
    other = [{"event": kind, "ts": 1, "msg": {"_id": kind, "email": "b@y.example"} | more}
             for kind in ("hard_bounce", "reject", "send") for more in ({}, {"smtp_events": []})]  # fmt: skip
    for posts in ([sent, *other], [*other, sent], other):
        made = read_export(write(tmp_path / "x", json.dumps(posts)))
        assert len(made) == len(posts)
        assert made["attempted"].sum() == made["outcome"].isin(["passed", "failed"]).sum() - 2  # two are rejects
    bounced = other[0] | {"msg": other[0]["msg"] | {"smtp_events": [tries[0] | {"type": "deferred"}]}}
    assert list(outcomes(read_export(write(tmp_path / "x", json.dumps([bounced]))))["attempts"]) == [2]


def test_a_map_of_columns_reads_json_too(tmp_path: Path) -> None:
    path = write(tmp_path / "x", '{"who":{"mail":"b@y.example"},"state":"deferred"}\n{"who":{"mail":"c@y.example"}}')
    made = read_export(path, columns={"recipient": "who.mail", "outcome": "state"})
    assert list(made["recipient"]) == ["b@y.example", "c@y.example"]
    assert list(made["outcome"].fillna("")) == ["deferred", ""] and list(made["attempted"]) == [True, False]


def test_rows_of_csv_that_do_not_fit_say_so(tmp_path: Path) -> None:
    text = (
        'time,recipient,event,reason\n1,b@y.example,bounced,"a, ""b""\nc"\n2,c@y.example\n\n3,d@y.example,"delivered\n'
    )
    text += "x\n" * 70_000
    made = read_export(write(tmp_path / "x", text))
    assert list(made["recipient"].dropna()) == ["b@y.example"] and not made["attempted"][1:].any()
    assert made["text"][0] == 'a, "b"\nc' and made["text"][1] == "line 4: 2 fields, not 4"
    assert made["text"][2].startswith("line 6: not CSV: ")


def test_a_notification_told_twice_is_one_event_and_the_id_of_a_page_is_that_of_none(tmp_path: Path) -> None:
    done = {"timestamp": "2026-01-02T03:04:09Z", "recipients": ["b@y.example"], "smtpResponse": "250 ok"}
    event = {"eventType": "Delivery", "mail": {"messageId": "m"}, "delivery": done}
    posts = [{"Type": "Notification", "MessageId": id, "Message": json.dumps(event)} for id in "aab"]
    made = read_export(write(tmp_path / "x", json.dumps(posts)))
    assert (len(made), made.attrs["duplicates"]) == (2, 1)
    made = read_export(write(tmp_path / "x", json.dumps({"id": "p", "MessageId": "q", "items": [event, event]})))
    assert (len(made), made.attrs["duplicates"]) == (2, 0)


def test_attempts_that_later_events_list_again_are_counted_once(tmp_path: Path) -> None:
    tries = [
        {"ts": 1767323046 + n, "type": kind, "diag": "x"} for n, kind in enumerate(["deferred", "deferred", "sent"])
    ]
    posts = [{"event": kind, "ts": 1767323099, "msg": {"_id": "m", "email": "b@y.example", "smtp_events": tries[:n]}}
             for kind, n in (("deferral", 1), ("deferral", 2), ("delivered", 3))]  # fmt: skip
    made = read_export(write(tmp_path / "x", json.dumps(posts)))
    assert list(made["outcome"]) == ["deferred", "deferred", "passed"] and made["attempted"].all()
    assert made["time"].is_monotonic_increasing and made["time"].is_unique


def test_exports_are_known_by_their_content(tmp_path: Path) -> None:
    for case in CASES:
        [part] = parts(write(tmp_path / "x", case["text"]))
        assert known_export(part), case["name"]
    for text in (
        "",
        "a,b\n",
        "a=b\n",
        "email,status\n",
        "From: a\n",
        "Jan  1 00:00:00 mx postfix/smtp[1]: A1: to=<b@y>\n",
    ):
        [part] = parts(write(tmp_path / "x", text))
        assert not known_export(part), text


def test_each_json_case_has_the_shape_of_one_provider_alone(tmp_path: Path) -> None:
    for case in (case for case in CASES if case["text"].startswith(("{", "["))):
        path, names = write(tmp_path / "x", case["text"]), []
        for name in {table["name"] for table in facts.tables("esp_exports")["provider"]}:
            with contextlib.suppress(FormatError):
                names += [name] * int(
                    read_export(path, provider=name)["text"].str.contains("no event of a known").eq(False).any()
                )
        assert len(set(names)) == 1, (case["name"], names)


def test_real_exports_are_read(shared: Path) -> None:
    ends = {path.name: read_export(path) for path in sorted((shared / "bounces/esp_json").iterdir())}
    assert len(ends) == 23
    made = pd.concat(ends.values())
    assert made[["time", "recipient"]].notna().all(axis=None)
    assert made["outcome"].value_counts(dropna=False).to_dict() == {"failed": 19, "passed": 3, pd.NA: 4}
    assert not made["category"].eq("unknown").any()
