"""Frames: what fits is built, what does not is named."""

from __future__ import annotations

import pandas as pd
import pytest

from deliverkit.errors import SchemaError
from deliverkit.schema import ATTEMPTS, FRAMES, PROBES, RATES


@pytest.mark.parametrize("frame", FRAMES.values(), ids=lambda f: f.name)
def test_an_empty_frame_passes_its_own_check(frame) -> None:
    empty = frame.empty()
    assert list(empty.columns) == frame.names
    assert [str(t) for t in empty.dtypes] == [c.dtype for c in frame.columns]
    frame.check(empty)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=lambda f: f.name)
def test_every_column_says_what_it_holds(frame) -> None:
    assert all(len(c.meaning.split()) > 1 for c in frame.columns)


def test_probes_have_all_columns_of_attempts() -> None:
    assert PROBES.names[: len(ATTEMPTS.names)] == ATTEMPTS.names


def test_a_row_keeps_its_values_and_the_rest_is_missing() -> None:
    row = ATTEMPTS.build([{"port": 25, "blocked": True, "time": "2026-03-01T10:00:00+01:00"}]).iloc[0]
    assert row["port"] == 25 and row["blocked"] and pd.isna(row["recipient"])
    assert row["time"] == pd.Timestamp("2026-03-01 09:00", tz="UTC")


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(SchemaError, match="'prot'"):
        ATTEMPTS.build([{"prot": 25}])


@pytest.mark.parametrize(("column", "value"), [("port", "smtp"), ("port", 25.5), ("text", b"x")])
def test_a_value_of_the_wrong_type_is_named(column: str, value: object) -> None:
    with pytest.raises(SchemaError, match=column):
        ATTEMPTS.build([{column: value}])


def test_a_missing_column_is_named_with_those_there() -> None:
    with pytest.raises(SchemaError, match=r"'blocked' is missing; the frame has port"):
        ATTEMPTS.check(pd.DataFrame({"port": [25]}), ["port", "blocked"])


def test_plain_pandas_types_are_good_enough() -> None:
    plain = pd.DataFrame({"port": [25, 587], "blocked": [True, False], "text": ["a", None], "delay_s": [1, 2]})
    assert ATTEMPTS.check(plain, ["port", "blocked"]) is plain


def test_text_where_a_port_belongs_is_refused() -> None:
    with pytest.raises(SchemaError, match="port"):
        ATTEMPTS.check(pd.DataFrame({"port": ["25"], "blocked": [True]}), ["port", "blocked"])


def test_something_that_is_no_frame_is_refused() -> None:
    with pytest.raises(SchemaError, match="pandas frame"):
        ATTEMPTS.check([1, 2], ["port"])  # type: ignore[arg-type]


def test_group_keys_stay_in_front() -> None:
    built = RATES.build([{"port": 25, "client": "a", "attempts": 3}])
    assert list(built.columns)[:3] == ["port", "client", "attempts"]


def test_a_frame_written_as_csv_comes_back_the_same(tmp_path) -> None:
    frame = ATTEMPTS.build(
        [{"port": 25, "blocked": True, "delay_s": 0.5, "time": "2026-03-01T10:00Z", "text": "héé"}, {"port": 587}]
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    back = ATTEMPTS.build(pd.read_csv(tmp_path / "a.csv", dtype="string"))
    pd.testing.assert_frame_equal(back, frame)


def test_a_word_where_true_or_false_belongs_is_named() -> None:
    with pytest.raises(SchemaError, match="'perhaps'"):
        ATTEMPTS.build(pd.DataFrame({"blocked": pd.array(["perhaps"], dtype="string")}))
