"""How each message ended for each recipient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deliverkit import scale
from deliverkit.schema import ATTEMPTS, OUTCOMES, STEPS, Frame

_Array = np.ndarray[Any, Any]
_NEEDS, _WHOSE = ("time", "recipient", "outcome"), ("message_id", "queue_id", "recipient", "client", "campaign")
USED = {*_NEEDS, *_WHOSE, "status_code", "port", "attempted", "direction", "origin", "category", "step"}
_COLUMNS = Frame("attempts", tuple(column for column in ATTEMPTS.columns if column.name in USED))


def outcomes(attempts: pd.DataFrame) -> pd.DataFrame:
    """How each message ended for each recipient: an `OUTCOMES` frame, one row per message and recipient.

    Takes an `ATTEMPTS` frame; needs `time`, `recipient` and `outcome`, uses what else is there. A message is its
    Message-ID; without one its queue id, up to an end (short ids are used again); without both each row is one. The
    last end counts; a bounce message beats the log that said `sent`. `port` is that of the last real attempt (of the
    failure it was held back for, if it was never tried), `status_code` that of the end or else of that attempt. Bounce
    messages count as attempts only where no log or export tells of the attempt. Complaints, clicks, address probes
    and mail from outside (`direction` in) are no part of a delivery. Rows without a recipient are left out:
    `attrs["unknown"]` is their number. Of a Dask frame it gives another, made when it is computed. Raises SchemaError
    if a column is missing.

    >>> tries = pd.DataFrame({"time": pd.to_datetime(["2026-01-01 10:00", "2026-01-01 10:05"], utc=True),
    ...     "recipient": "b@y.example", "message_id": "<m@x.example>", "outcome": ["deferred", "passed"]})
    >>> outcomes(tries)[["recipient", "final", "attempts", "duration_s"]]
         recipient final  attempts  duration_s
    0  b@y.example  sent         2       300.0
    """
    if scale.is_dask(attempts):
        some: Any = attempts[[name for name in attempts.columns if name in USED]]
        made: pd.DataFrame = scale.together(some).map_partitions(outcomes, meta=OUTCOMES.empty())
        return made
    ends = endings(attempts)
    result = OUTCOMES.build(ends[OUTCOMES.names])
    result.attrs["unknown"] = ends.attrs["unknown"]
    return result


def endings(attempts: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of `outcomes`, and what stands behind each end, for the report.

    Of other columns (`also`) the first value that is known of a message and recipient.

    `place` is the row of `attempts` (by position) that says why: of a bounce the refusal, else the last attempt that
    names a cause (a real one, if any; "expired" is none).
    `far` is the furthest step that any attempt reached, as its place in `STEPS`; -1 if no row names one.
    """
    data = _COLUMNS.build(ATTEMPTS.check(attempts, _NEEDS)[[name for name in _COLUMNS.names if name in attempts]])
    real = data["attempted"].fillna(True).to_numpy(bool)
    part = data["outcome"].notna() & (real | data["outcome"].ne("passed"))  # no complaints, no automatic answers
    part &= data["direction"].ne("in").fillna(True)  # what strangers brought to us is no mail of ours
    whose = data["recipient"].notna()
    rows = np.flatnonzero(part & whose)
    times = data["time"].dt.tz_localize(None).to_numpy()[rows]
    rows = rows[np.argsort(times, kind="stable")]  # the texts stay where they are
    real = real[rows]
    late, passed, failed, held = (
        data[name].eq(word).fillna(False).to_numpy(bool)[rows]
        for name, word in (("origin", "dsn"), *(("outcome", word) for word in ("passed", "failed", "deferred")))
    )
    ended = passed | failed
    group = _groups(data, rows, ended)
    counted = real & ~(late & (np.bincount(group, real & ~late) > 0)[group])  # a log or export tells of the attempt
    # held back: never tried itself, what counts is the failure it was held back for
    last, end = _last(group, counted | held, counted), _last(group, ended, late)
    soft = data["status_code"].str.startswith("4") & data["origin"].isin(["log", "dsn"])  # persistent, yet transient
    gone = failed & (data["category"].eq("expired") | soft).fillna(False).to_numpy(bool)[rows]

    def at(name: str, places: _Array) -> pd.Series[Any]:
        return pd.Series(data[name].array.take(np.append(rows, -1)[places], allow_fill=True))  # missing at -1

    def known(name: str) -> _Array:
        return data[name].notna().to_numpy(bool)[rows]

    made: dict[str, Any] = {name: at(name, _first(group, known(name))) for name in _WHOSE}
    for name in also:
        first = _first(group, attempts[name].notna().to_numpy(bool)[rows])
        made[name] = pd.Series(attempts[name].array.take(np.append(rows, -1)[first], allow_fill=True))
    made["final"] = np.select([end < 0, passed[end], gone[end]], ["open", "sent", "expired"], "bounced")
    made["status_code"] = at("status_code", end).fillna(at("status_code", last))
    made["port"] = at("port", last)
    made["attempts"] = np.bincount(group, counted).astype("int64")
    made["first_time"] = at("time", _first(group, known("time")))
    made["last_time"] = at("time", _last(group, known("time"), np.ones_like(real)))
    made["duration_s"] = (made["last_time"] - made["first_time"]).dt.total_seconds()
    blank = data["category"].eq("expired").fillna(False).to_numpy(bool)[rows]
    cause = _last(group, (counted | held) & ~blank, counted)
    cause = np.where(cause < 0, last, cause)
    made["place"] = rows[np.where((made["final"] == "bounced") | (cause < 0), end, cause)]
    codes, names = pd.factorize(data["step"])
    steps = np.array([*(STEPS.index(name) if name in STEPS else -1 for name in names), -1])[codes[rows]]
    made["far"] = np.full(len(end), -1)
    np.maximum.at(made["far"], group, np.where(counted | held, steps, -1))
    result = pd.DataFrame(made)
    result.attrs["unknown"] = int((part & ~whose).sum())
    return result


def failures(attempts: pd.DataFrame) -> pd.DataFrame:
    """The rows of `ATTEMPTS` that say why messages failed, one per message and recipient.

    Of a bounce the refusal; of a message that was given up, its last real attempt, which names the cause where
    "expired" names none. Failed rows that cannot be told apart, without a recipient, come as they are.
    """
    failed = attempts["outcome"].eq("failed").fillna(False).to_numpy(bool)
    if not set(_NEEDS) <= set(attempts):
        return attempts[failed]
    ends = endings(attempts)
    places = ends.loc[ends["final"].isin(["bounced", "expired"]), "place"].to_numpy()
    probed = attempts["origin"].eq("probe").fillna(False).to_numpy(bool) if "origin" in attempts else False
    alone = np.flatnonzero(failed & attempts["recipient"].isna().to_numpy(bool) & ~np.asarray(probed))
    return attempts.iloc[np.sort(np.concatenate([places, alone]))]


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Message and recipient in the form in which they are compared: no angle brackets, lower case."""
    empty = pd.Series(pd.NA, frame.index, dtype="string")
    ids = frame.get("message_id", empty).astype("string").str.strip(" <>")
    return pd.DataFrame({"message_id": ids, "recipient": frame.get("recipient", empty).astype("string").str.lower()})


def _codes(values: pd.Series[Any]) -> _Array:
    """A number per value in its plain form, -1 for missing; every text is looked at once."""
    codes, texts = pd.factorize(values)
    plain = _plain(pd.DataFrame({values.name: texts}))[values.name]
    return np.append(pd.factorize(plain)[0], -1)[codes]


def _groups(data: pd.DataFrame, rows: _Array, ended: _Array) -> _Array:
    """A number per message and recipient, in order of appearance."""
    message, whose = _codes(data["message_id"])[rows], _codes(data["recipient"])[rows]
    nameless = message < 0
    for codes in (pd.factorize(data["queue_id"])[0][rows], np.arange(len(rows))):  # numbers behind those taken
        here = (message < 0) & (codes >= 0)
        message = np.where(here, message.max(initial=-1) + 1 + codes, message)
    group = _pairs(message, whose)
    if nameless.any():
        before = pd.Series(ended.astype("int64")).groupby(group).cumsum().to_numpy() - ended
        group = _pairs(group, np.where(nameless, before, 0))
    return group


def _pairs(one: _Array, other: _Array) -> _Array:
    """A number per pair of numbers, in order of appearance."""
    codes: _Array = pd.factorize(one.astype("int64") * (other.max(initial=0) + 1) + other)[0]
    return codes


def _first(group: _Array, among: _Array) -> _Array:
    """Per group the place of the first row of `among`; -1 if there is none."""
    places = np.flatnonzero(among)[::-1]
    first = np.full(group.max(initial=-1) + 1, -1)
    first[group[places]] = places
    return first


def _last(group: _Array, among: _Array, better: _Array) -> _Array:
    """Per group the place of the last row of `among`, of the `better` ones if there are any; -1 if there is none."""
    places = np.flatnonzero(among)
    places = places[np.argsort(better[places], kind="stable")]
    last = np.full(group.max(initial=-1) + 1, -1)
    last[group[places]] = places  # the last one written stays
    return last
