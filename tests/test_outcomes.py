"""How messages end: one row per message and recipient, whatever reported it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deliverkit.classify import classify
from deliverkit.errors import SchemaError
from deliverkit.outcomes import failures, outcomes
from deliverkit.rates import bounce_rates
from deliverkit.schema import ATTEMPTS, OUTCOMES

SEND = {"recipient": "b@y.example", "message_id": "<m@x.example>", "queue_id": "DD61222EC53", "origin": "log"}


def frame(*rows: dict[str, Any], **common: Any) -> pd.DataFrame:
    start = pd.Timestamp("2026-01-01", tz="UTC")
    return classify([{"time": start + pd.Timedelta(minutes=i), **SEND, **common, **row} for i, row in enumerate(rows)])


def final(*rows: dict[str, Any], **common: Any) -> list[tuple[Any, ...]]:
    made = outcomes(frame(*rows, **common)).astype(object)
    return list(
        made[["final", "attempts", "status_code", "port"]].where(made.notna(), None).itertuples(index=False, name=None)
    )


LATER = {"outcome": "deferred", "status_code": "4.2.0", "port": 25}
DONE = {"outcome": "passed", "status_code": "2.0.0", "port": 587}
LOST = {"outcome": "failed", "status_code": "5.1.1", "port": 25}
HELD = {"outcome": "deferred", "attempted": False, "status_code": "4.4.1", "port": 465}
GIVEN_UP = {"outcome": "failed", "attempted": False, "hint": "expired"}
REPORT = {"origin": "dsn", "outcome": "failed", "status_code": "5.2.1", "queue_id": None, "message_id": "m@x.example"}
CASES = {
    "sent": ([DONE], [("sent", 1, "2.0.0", 587)]),
    "sent after a deferral": ([LATER, DONE], [("sent", 2, "2.0.0", 587)]),
    "bounced": ([LATER, LOST], [("bounced", 2, "5.1.1", 25)]),
    "expired: the status and port of the last real attempt": ([LATER, HELD, GIVEN_UP], [("expired", 1, "4.2.0", 25)]),
    "expired without an attempt of its own": ([HELD, HELD, GIVEN_UP], [("expired", 0, "4.4.1", 465)]),
    "open": ([LATER, LATER, HELD], [("open", 2, "4.2.0", 25)]),
    "a bounce message beside the log ends it once": ([LOST, REPORT], [("bounced", 1, "5.2.1", 25)]),
    "a bounce message beats the log that said sent": ([DONE, REPORT], [("bounced", 1, "5.2.1", 587)]),
    "also where its clock is behind": ([REPORT, DONE], [("bounced", 1, "5.2.1", 587)]),
    "a bounce message alone": ([REPORT], [("bounced", 1, "5.2.1", None)]),
    "a failure of status 4.x.x is an expiry": ([REPORT | {"status_code": "4.4.1"}], [("expired", 1, "4.4.1", None)]),
    "a delay warning is no end": ([LATER, REPORT | {"outcome": "deferred", "hint": "delayed"}],
        [("open", 1, "4.2.0", 25)]),
    "clicks and complaints are no end": ([LATER, {"attempted": False, "hint": "event"},
        {"attempted": False, "hint": "arf", "outcome": "passed"}], [("open", 1, "4.2.0", 25)]),
    "an error transport bounces without attempt": ([LOST | {"attempted": False, "port": None}],
        [("bounced", 0, "5.1.1", None)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_message_ends_as_told(name: str) -> None:
    rows, expect = CASES[name]
    assert final(*rows) == expect


def test_recipients_and_messages_are_kept_apart() -> None:
    made = frame(DONE, LOST | {"recipient": "c@y.example"}, LOST | {"message_id": "<n@x.example>"}, client="ACME")
    assert list(outcomes(made)["final"]) == ["sent", "bounced", "bounced"]
    assert set(outcomes(made)["client"]) == {"ACME"}


def test_spelling_does_not_split_a_message() -> None:
    assert len(outcomes(frame(LATER, DONE | {"recipient": "B@Y.example", "message_id": "m@x.example"}))) == 1


def test_a_queue_id_used_again_is_another_message() -> None:
    assert final(LATER, DONE, LATER, LOST, message_id=None) == [("sent", 2, "2.0.0", 587), ("bounced", 2, "5.1.1", 25)]


def test_without_any_id_each_row_is_a_message() -> None:
    assert len(outcomes(frame(LOST, LOST, message_id=None, queue_id=None))) == 2


def test_rows_without_recipient_are_counted_apart() -> None:
    made = outcomes(frame(DONE, LATER | {"recipient": None}))
    assert (len(made), made.attrs["unknown"]) == (1, 1)


def test_times_span_all_signs_of_a_recipient() -> None:
    [row] = outcomes(frame(HELD, LATER, DONE)).to_dict("records")
    assert (row["duration_s"], (row["last_time"] - row["first_time"]).total_seconds()) == (120.0, 120.0)


def test_the_order_of_rows_does_not_matter() -> None:
    made = frame(LATER, HELD, DONE, LATER | {"recipient": "c@y.example"})
    pd.testing.assert_frame_equal(outcomes(made), outcomes(made.sample(frac=1, random_state=1)))


def test_no_attempts_give_no_outcomes() -> None:
    assert list(outcomes(ATTEMPTS.empty())) == OUTCOMES.names


@pytest.mark.parametrize("column", ["time", "recipient", "outcome"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(SchemaError, match=f"'{column}'"):
        outcomes(frame(DONE).drop(columns=column))


def test_a_million_attempts_take_seconds() -> None:
    n = 1_000_000
    ids = pd.Series(np.arange(n) // 3).astype(str)
    made = ATTEMPTS.build(pd.DataFrame({
        "time": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(n), unit="s"), "port": 25,
        "recipient": "r" + ids + "@y.example", "message_id": "<" + ids + "@x.example>", "status_code": "4.2.0",
        "outcome": np.resize(["deferred", "deferred", "passed"], n), "attempted": True, "origin": "log"}))  # fmt: skip
    began = time.process_time()
    ends = outcomes(made)
    assert time.process_time() - began < 20
    assert ends["final"].value_counts().to_dict() == {"sent": 333333, "open": 1}


def test_an_index_of_the_callers_own_does_no_harm() -> None:
    made = frame(DONE, DONE).set_axis([7, 7])
    assert list(outcomes(made)["attempts"]) == [2]


def test_a_message_that_was_given_up_failed_for_what_its_last_attempt_says() -> None:
    rows = [
        {"outcome": "deferred", "category": "connection", "origin": "log", "text": "Connection timed out", "port": 25},
        {"outcome": "deferred", "category": "connection", "origin": "log", "text": "suspended", "attempted": False},
        {"outcome": "failed", "category": "expired", "origin": "log", "text": "expired, returned", "attempted": False},
        {"outcome": "failed", "category": "expired", "origin": "dsn", "text": "delivery temporarily suspended"},
    ]
    frame = pd.DataFrame(rows).assign(recipient="b@y.example", message_id="<m@x.example>")
    frame["time"] = pd.date_range("2026-01-01", periods=4, freq="h", tz="UTC")
    told = failures(ATTEMPTS.build(frame))
    assert told["text"].tolist() == ["Connection timed out"]
    assert failures(ATTEMPTS.build(frame.iloc[2:]))["category"].tolist() == ["expired"]


def test_failed_rows_without_a_recipient_are_not_lost() -> None:
    frame = pd.DataFrame({"outcome": ["failed", "failed", "passed"], "category": "content_spam"})
    frame["time"] = pd.date_range("2026-01-01", periods=3, freq="h", tz="UTC")
    assert len(failures(ATTEMPTS.build(frame.assign(recipient=[None, "b@y.example", "c@y.example"])))) == 2


def test_any_column_is_a_key_of_bounce_rates_with_message_ids_or_without() -> None:
    tries = pd.DataFrame({
        "time": pd.to_datetime(["2026-01-01 10:00", "2026-01-01 10:05", "2026-01-01 10:06"], utc=True),
        "recipient": ["a@x.example", "a@x.example", "b@x.example"], "queue_id": ["Q1", "Q1", "Q2"],
        "outcome": ["deferred", "passed", "failed"], "vantage": [None, "office", "cloud"], "source": "log",
    })  # fmt: skip
    tries = ATTEMPTS.build(tries)
    made = bounce_rates(tries, by="vantage").set_index("vantage")
    assert made["sent"].to_dict() == {"cloud": 0, "office": 1} and made["bounced"].to_dict() == {
        "cloud": 1,
        "office": 0,
    }
    assert bounce_rates(tries, by="source")[["source", "sent", "bounced"]].to_numpy().tolist() == [["log", 1, 1]]
