"""Send lists: nothing is filled in that the list does not say, and `joined` says why."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deliverkit.errors import FormatError, SchemaError
from deliverkit.schema import ATTEMPTS, PROBES
from deliverkit.sends import attach_sends, show_joined

START = pd.Timestamp("2026-01-01", tz="UTC")
DAY, VALUES = pd.Timedelta("1D"), ["port", "client", "campaign", "vantage"]
SEND = {"message_id": "m@x.example", "recipient": "b@y.example", "sender": "b-1@v.example", "queue_id": "4cAbC",
        "time": START, "port": 587, "client": "ACME", "campaign": "spring", "vantage": "office"}  # fmt: skip


def bounce(**known: Any) -> pd.DataFrame:
    return ATTEMPTS.build([{"origin": "dsn", "time": START + DAY, **known}])


def listed(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{**SEND, **row} for row in rows])


def told(frame: pd.DataFrame) -> list[Any]:
    [row] = frame[["joined", *VALUES]].astype(object).where(frame.notna(), None).to_numpy().tolist()
    return row


ALL = [587, "ACME", "spring", "office"]


@pytest.mark.parametrize(
    ("known", "word"),
    [
        ({"message_id": "<m@x.example>", "recipient": "B@y.example"}, "message_id recipient"),
        ({"message_id": "<m@x.example>", "recipient": "moved@z.example"}, "message_id"),
        ({"message_id": "<m@x.example>"}, "message_id"),
        ({"sender": "B-1@V.example", "recipient": "moved@z.example"}, "sender"),
        ({"queue_id": "4cAbC"}, "queue_id"),
        ({"queue_id": "4cAbC", "time": START + 11 * DAY}, "none"),
        ({"queue_id": "4cAbC", "time": None}, "none"),
        ({"recipient": "b@y.example"}, "recipient time"),
        ({"recipient": "b@y.example", "time": START + 6 * DAY}, "none"),
        ({"recipient": "b@y.example", "time": START - DAY}, "none"),
        ({"recipient": "b@y.example", "time": START - pd.Timedelta("30s")}, "recipient time"),
        ({"recipient": "b@y.example", "time": None}, "recipient"),
        ({"recipient": "c@y.example"}, "none"),
        ({}, "none"),
    ],
)
def test_the_strongest_key_that_is_known_joins(known: dict[str, Any], word: str) -> None:
    done = attach_sends(bounce(**known), listed({}))
    assert told(done) == [word, *(ALL if word != "none" else [None] * 4)]
    assert done.attrs["joined"][word] == 1 == sum(done.attrs["joined"].values())


@pytest.mark.parametrize("key", [{"sender": "b-1@v.example"}, {"queue_id": "4cAbC"}, {"recipient": "b@y.example"}])
def test_a_row_of_another_message_is_never_meant(key: dict[str, Any]) -> None:
    other = bounce(message_id="<transactional@x.example>", **key)
    assert told(attach_sends(other, listed({})))[0] == "none"
    assert told(attach_sends(other, listed({"message_id": None})))[0] != "none"


def test_the_window_is_the_callers() -> None:
    late = bounce(recipient="b@y.example", time=START + 6 * DAY)
    assert told(attach_sends(late, listed({}), within="7D")) == ["recipient time", *ALL]
    with pytest.raises(SchemaError, match="'soon' is no span"):
        attach_sends(late, listed({}), within="soon")


def test_what_rows_disagree_about_stays_missing() -> None:
    two = listed({"message_id": None}, {"message_id": None, "sender": None, "port": 25, "time": START + DAY / 2})
    assert told(attach_sends(bounce(recipient="b@y.example"), two)) == ["recipient time", None, *ALL[1:]]
    early = bounce(recipient="b@y.example", time=START + DAY / 4)  # the other was not yet sent
    assert told(attach_sends(early, two)) == ["recipient time", *ALL]
    verp = bounce(recipient="b@y.example", sender="b-1@v.example")
    assert told(attach_sends(verp, two)) == ["sender", *ALL]
    two[["client", "campaign", "vantage"]] = [["a", "b", "c"], ["d", "e", "f"]]
    assert told(attach_sends(bounce(recipient="b@y.example"), two)) == ["contradiction", None, None, None, None]


def test_a_value_that_only_some_rows_state_is_not_guessed() -> None:
    two = listed({}, {"recipient": "c@y.example", "port": None})
    assert told(attach_sends(bounce(message_id="m@x.example"), two)) == ["message_id", None, *ALL[1:]]


def test_a_weaker_key_helps_where_a_stronger_one_is_torn() -> None:
    two = listed({}, {"recipient": "c@y.example", "sender": "b-2@v.example", "port": 25})
    moved = {"message_id": "m@x.example", "recipient": "moved@z.example"}
    assert told(attach_sends(bounce(**moved), two)) == ["message_id", None, *ALL[1:]]
    assert told(attach_sends(bounce(**moved, sender="b-2@v.example"), two)) == ["sender", 25, *ALL[1:]]


def test_of_two_torn_keys_the_stronger_one_speaks() -> None:
    torn = listed({}, {"recipient": "c@y.example", "port": 25})
    verp = listed(*({"message_id": None, "sender": "b-9@v.example", "client": name} for name in "AB"))
    known = {"message_id": "m@x.example", "recipient": "moved@z.example", "sender": "b-9@v.example"}
    assert told(attach_sends(bounce(**known), pd.concat([verp, torn]))) == ["message_id", None, *ALL[1:]]


def test_one_row_without_a_time_makes_the_recipient_as_a_whole_count() -> None:
    two = listed({"message_id": None}, {"message_id": None, "time": None, "port": 25})
    assert told(attach_sends(bounce(recipient="b@y.example"), two)) == ["recipient", None, *ALL[1:]]
    assert told(attach_sends(bounce(queue_id="4cAbC"), two))[0] == "none"


@pytest.mark.parametrize(
    ("sender", "recipient"),
    [
        ("bounce+b=y.example@ours.example", "b@y.example"),
        ("bounce-123-b=y.example@ours.example", "b@y.example"),
        ("Bounce+B=Y.example@ours.example", "b@y.example"),
        ("list-owner-a-b=y.example@ours.example", None),  # a-b@ and b@ are both in the list
        ("bounce+stranger=y.example@ours.example", None),
        ("bounce+b@ours.example", None),
        ("=" * 100_000 + "-+" * 100_000 + "=@", None),
    ],
)
def test_a_verp_address_gives_the_recipient_that_the_list_knows(sender: str, recipient: str | None) -> None:
    two = listed({}, {"recipient": "a-b@y.example"})
    done = attach_sends(bounce(sender=sender), two)
    assert done["recipient"].fillna("").tolist() == [recipient or ""]
    assert told(done)[0] == ("recipient time" if recipient else "none")
    kept = attach_sends(bounce(sender=sender, recipient="c@z.example"), two)
    assert kept["recipient"].tolist() == ["c@z.example"] and told(kept)[0] == "none"


def test_what_is_known_stays_and_the_frame_of_the_caller_too() -> None:
    made = bounce(recipient="b@y.example", port=25, client="known")
    before = made.copy(deep=True)
    assert told(attach_sends(made, listed({}))) == ["recipient time", 25, "known", "spring", "office"]
    pd.testing.assert_frame_equal(made, before)
    assert made.attrs == {}


def test_probes_are_not_joined() -> None:
    made = PROBES.build([{"origin": "probe", "recipient": "b@y.example", "message_id": "m@x.example"}])
    done = attach_sends(made, listed({}))
    assert told(done) == [None] * 5 and show_joined(done) == ""
    pd.testing.assert_frame_equal(PROBES.build(done), made)


def test_a_second_list_joins_what_the_first_did_not_know() -> None:
    two = pd.concat([bounce(recipient="b@y.example"), bounce(recipient="c@y.example")])
    done = attach_sends(attach_sends(two, listed({})), listed({"recipient": "c@y.example", "port": 25}))
    assert done["joined"].tolist() == ["recipient time"] * 2 and done["port"].tolist() == [587, 25]


@pytest.mark.parametrize("index", [[7, 7], ["x", None], pd.MultiIndex.from_tuples([(1, 1), (1, 1)])])
def test_an_index_of_the_callers_own_does_no_harm(index: Any) -> None:
    made = pd.concat([bounce(recipient="b@y.example"), bounce(message_id="m@x.example")]).set_axis(index)
    done = attach_sends(made, listed({}, {}).set_axis(["x", "x"]))
    assert done["joined"].tolist() == ["recipient time", "message_id"] and done["port"].tolist() == [587, 587]
    assert done.index.equals(made.index)


@pytest.mark.parametrize(
    "columns",
    [
        {
            "message_id": "Message-ID",
            "recipient": "To",
            "sender": "Return Path",
            "time": "Sent at",
            "client": "ACCOUNT",
        },
        {"message_id": "messageId", "recipient": "E-Mail", "sender": "verp", "time": "timestamp", "port": "SMTP port"},
    ],
)
def test_columns_of_other_spellings_are_known_and_others_ignored(columns: dict[str, str]) -> None:
    sends = listed({}).rename(columns=columns).assign(price=3.5, address="192.0.2.1")
    for known in ({"message_id": "m@x.example"}, {"recipient": "b@y.example"}, {"sender": "b-1@v.example"}):
        assert told(attach_sends(bounce(**known), sends))[1:] == ALL


@pytest.mark.parametrize(
    ("sends", "says"),
    [
        (listed({}).assign(Email="c@y.example"), "two columns for 'recipient'"),
        (pd.DataFrame({"client": ["ACME"]}), "no column 'message_id', 'recipient', 'sender', 'queue_id'"),
        (pd.DataFrame(), "no column 'message_id'"),
        (listed({"port": "submission"}), "'submission' is no port"),
        (listed({"port": 70000}), "'70000' is no port"),
        (listed({"time": "25/11/2026"}), "25/11/2026"),
        (listed({}).assign(client=pd.Series(["\ud800"], dtype=object)), "'client' is no text"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_why(sends: pd.DataFrame, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        attach_sends(bounce(), sends)


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-01T00:00:00Z", "2026-01-01 09:00:00+09:00", "2026-01-01", 1767225600, 1767225600.0, "1767225600",
        datetime(2026, 1, 1), datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), date(2026, 1, 1),
        START.tz_convert("Asia/Tokyo"), START.tz_localize(None),
    ],
)  # fmt: skip
def test_times_of_every_form_are_one_time(time: Any) -> None:
    zoned = datetime(2025, 1, 1, tzinfo=UTC) if isinstance(time, datetime) else time  # naive and zoned in one column
    sends = listed({"time": time}, {"time": zoned, "recipient": "c@y.example"})
    at = pd.concat(
        [bounce(recipient="b@y.example", time=START + hours) for hours in (-DAY / 24, DAY / 24, 5 * DAY + DAY / 24)]
    )
    assert attach_sends(at, sends)["joined"].tolist() == ["none", "recipient time", "none"]


@pytest.mark.parametrize("ids", [[12, 13], [12.0, None], ["<12>", None], [12, b"x"], ["12", ["a", {}]]])
def test_message_ids_of_odd_types_are_read_as_text(ids: list[Any]) -> None:
    sends = listed({}, {"recipient": "c@y.example"}).assign(message_id=pd.Series(ids))
    assert told(attach_sends(bounce(message_id="12"), sends))[:2] == ["message_id", 587]


def test_large_numbers_that_have_lost_digits_join_nothing() -> None:
    sends = listed({}, {"recipient": "c@y.example"}).assign(message_id=[float(2**53 + 2), None])
    assert told(attach_sends(bounce(message_id=str(2**53 + 2)), sends))[0] == "none"


@pytest.mark.parametrize("sends", [listed({}).iloc[:0], listed(dict.fromkeys(SEND)), listed({}).astype("category")])
def test_lists_with_little_in_them_do_no_harm(sends: pd.DataFrame) -> None:
    assert told(attach_sends(bounce(recipient="c@y.example", sender="x=y@z.example"), sends))[0] == "none"
    empty = attach_sends(ATTEMPTS.empty(), sends)
    assert len(empty) == 0 and show_joined(empty) == ""
    pd.testing.assert_frame_equal(ATTEMPTS.build(empty), ATTEMPTS.empty())


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_file_is_read_as_spreadsheets_write_it(sign: str, tmp_path: Path) -> None:
    rows = [["Message-ID", "Client", "Port", "note"], ["<m@x.example>", "NA", "0587", "tab\there"]]
    text = "\r\n".join(sign.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / "s.csv").write_text("\ufeff" + text, encoding="utf-8")
    for path in (tmp_path / "s.csv", str(tmp_path / "s.csv")):
        assert told(attach_sends(bounce(message_id="m@x.example"), path))[:3] == ["message_id", 587, "NA"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"\xff\xfe\x00",
        b"client\nACME\n",
        b"to,email\na,b\n",
        b"to,to\na,b\n",
        b"to\na,b,c\n",
        b'to\n"a',
        b"to,port\na,x\n",
    ],
)
def test_a_file_that_is_no_send_list_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(FormatError, match=r"s\.csv: is no send list: "):
        attach_sends(bounce(), tmp_path / "s.csv")
    with pytest.raises(FormatError, match="nowhere"):
        attach_sends(bounce(), tmp_path / "nowhere.csv")
    with pytest.raises(FormatError, match="is no send list"):
        attach_sends(bounce(), [1, 2])  # type: ignore[arg-type]


def test_the_line_counts_all_words() -> None:
    two = listed({"message_id": None}, {"message_id": None, "port": 25, "client": "a", "campaign": "b", "vantage": "c"})
    made = [bounce(recipient="b@y.example"), bounce(), bounce(sender="b-1@v.example"), bounce(message_id="q@x.example")]
    sends = pd.concat([two, listed({"message_id": "q@x.example", "recipient": None, "sender": None})])
    done = attach_sends(pd.concat(made), sends)
    assert show_joined(done) == "send list: 1 of 4 rows joined (1 by message id), 2 contradict, 1 unknown"
    assert show_joined(bounce()) == ""


@st.composite
def campaigns(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """A truth (each send, what became of it, at most `within` later), and how a list and bounces tell of it."""
    people, messages = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    values = st.sampled_from([[25, "A"], [587, "A"], [587, "B"]])
    per_message = draw(st.lists(values, min_size=messages, max_size=messages))
    shared_sender, own_values = draw(st.booleans()), draw(st.booleans())
    rows = []
    for number in range(draw(st.integers(1, 12))):
        message, person = draw(st.integers(0, messages - 1)), draw(st.integers(0, people - 1))
        port, client = draw(values) if own_values else per_message[message]
        sent = START + draw(st.integers(0, 40)) * DAY / 2
        rows.append({
            "message_id": f"{message if not own_values else number}@x.example", "recipient": f"{person}@y.example",
            "sender": "news@v.example" if shared_sender else f"b-{number}-{person}=y.example@v.example",
            "queue_id": f"Q{number}" if draw(st.booleans()) else "", "time": sent, "port": port, "client": client,
            "delay": draw(st.integers(0, 5 * 24 * 3600)),
        })  # fmt: skip
    truth = pd.DataFrame(rows)
    truth["queue_id"] = truth["queue_id"].replace("", None)
    keys = ["message_id", "recipient", "sender", "queue_id", "time"]
    gone = draw(st.lists(st.sampled_from(keys), max_size=4, unique=True))
    sends = truth[["message_id", "recipient", "sender", "queue_id", "time", "port", "client"]].drop(columns=gone)
    cells = st.lists(st.booleans(), min_size=len(truth), max_size=len(truth))
    bounced = truth.assign(time=truth["time"] + pd.to_timedelta(truth["delay"], unit="s"), origin="dsn")
    for key in keys:
        bounced[key] = bounced[key].mask(pd.Series(draw(cells)))
    forwarded = pd.Series(draw(cells)) & bounced["recipient"].notna()
    bounced["recipient"] = bounced["recipient"].mask(forwarded, "moved@z.example")
    bounced = ATTEMPTS.build(bounced.drop(columns=["port", "client", "delay"]))
    order = draw(st.permutations(range(len(truth))))
    return truth, bounced, sends.iloc[list(order)] if set(keys[:4]) & set(sends) else listed({}).iloc[:0]


@settings(max_examples=400, deadline=None)
@given(campaigns())
def test_no_value_is_ever_wrong_and_joined_says_why(case: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> None:
    truth, bounced, sends = case
    done = attach_sends(bounced, sends)
    for name in ("port", "client"):
        filled = done[name].notna().to_numpy()
        assert done[name][filled].tolist() == truth[name][filled].tolist()
    known = done[["port", "client"]].notna().any(axis=1)
    keyed = ~done["joined"].isin(["none", "contradiction"])
    assert (known == keyed).all()
    for number, word in enumerate(done["joined"]):
        for key in word.split() if keyed.iloc[number] else ():
            held = key == "recipient" and "=" in str(bounced["sender"][number])
            assert key in sends and (held or pd.notna(bounced[key][number])), word
    wrong = done["recipient"].notna() & done["recipient"].ne("moved@z.example")
    assert (done["recipient"][wrong] == truth["recipient"][wrong]).all()
    again = attach_sends(bounced, sends.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(again, done)
    part = attach_sends(bounced.iloc[::-2], sends)  # what else is in the frame says nothing
    pd.testing.assert_frame_equal(part, done.iloc[::-2], check_flags=False)


def test_a_million_attempts_and_a_million_sends_take_seconds() -> None:
    n = 1_000_000
    ids = pd.Series(np.arange(n)).astype("string")
    sends = pd.DataFrame({"message_id": "<" + ids + "@x.example>", "recipient": "r" + ids + "@y.example",
                          "sender": "one@v.example", "time": START, "port": 587})  # fmt: skip
    made = sends.drop(columns="port").assign(time=START + DAY, origin="dsn")[::-1]
    made["message_id"] = made["message_id"].mask(np.arange(n) % 2 == 0)
    sends["port"] = np.resize([25, 587], n)
    done = attach_sends(made, sends)
    assert done.attrs["joined"] | {"message_id recipient": n // 2, "recipient time": n // 2} == done.attrs["joined"]
    assert (done["port"].to_numpy() == sends["port"].to_numpy()[::-1]).all()


@pytest.mark.parametrize("charset", ["utf-16", "cp1252", "utf-8-sig"])
def test_a_list_from_a_spreadsheet_is_read_in_its_charset(charset: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes("recipient\tclient\r\nb@y.example\tMüller\r\n".encode(charset))
    assert attach_sends(ATTEMPTS.build([{"recipient": "b@y.example"}]), tmp_path / "s.csv")["client"].tolist() == [
        "Müller"
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipient,time\na@b.example,24.11.2026 10:00\n", "time '24.11.2026 10:00' is neither ISO 8601"),
        ("PK\3\4", "it is a workbook; save it as CSV"),
        ("recipient,client\na@b.example,x,y,z\n", "is no send list"),
    ],
)
def test_a_list_that_cannot_be_used_says_why_in_a_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises((FormatError, SchemaError), match=says) as error:
        attach_sends(ATTEMPTS.build([{"recipient": "b@y.example"}]), tmp_path / "s.csv")
    assert "\n" not in str(error.value)


def test_the_address_written_to_counts_only_where_the_list_has_it() -> None:
    rows = [{"recipient": "box@in.example", "original_recipient": "b@y.example"}, {"recipient": "c@y.example"}]
    rows += [{"recipient": "d@y.example", "original_recipient": "elsewhere@y.example"}]
    sends = pd.DataFrame(
        {"recipient": ["b@y.example", "c@y.example", "d@y.example", None], "port": [25, 465, 587, 2525]}
    )
    assert attach_sends(ATTEMPTS.build(rows), sends)["port"].tolist() == [25, 465, 587]
