"""How each message ended for each recipient, and whose message it was."""

from typing import Any

import numpy as np
import pandas as pd

from deliverkit.errors import SchemaError
from deliverkit.schema import ATTEMPTS, OUTCOMES

_Array = np.ndarray[Any, Any]
_NEEDS = ("time", "recipient", "outcome")
_USED = ("message_id", "queue_id", "client", "campaign", "status_code", "port", "attempted", "origin", "category")


def outcomes(attempts: pd.DataFrame) -> pd.DataFrame:
    """How each message ended for each recipient: an `OUTCOMES` frame, one row per message and recipient.

    Takes an `ATTEMPTS` frame; needs `time`, `recipient` and `outcome`, uses what else is there. A message is its
    Message-ID; without one its queue id, up to an end (short ids are used again); without both each row is one. The
    last end counts; a bounce message beats the log that said `sent`. `port` is that of the last real attempt (of the
    failure it was held back for, if it was never tried), `status_code` that of the end or else of that attempt. Bounce
    messages count as attempts only where no log or export tells of the attempt. Complaints, clicks and address probes
    are no part of a delivery. Rows without a recipient are left out: `attrs["unknown"]` is their number.
    Raises SchemaError if a column is missing.

    >>> tries = pd.DataFrame({"time": pd.to_datetime(["2026-01-01 10:00", "2026-01-01 10:05"], utc=True),
    ...     "recipient": "b@y.example", "message_id": "<m@x.example>", "outcome": ["deferred", "passed"]})
    >>> outcomes(tries)[["recipient", "final", "attempts", "duration_s"]]
         recipient final  attempts  duration_s
    0  b@y.example  sent         2       300.0
    """
    ATTEMPTS.check(attempts, _NEEDS)
    used = [name for name in _NEEDS + _USED if name in attempts]
    data = ATTEMPTS.build(attempts.loc[attempts["outcome"].notna().to_numpy(), used])
    data = data[data["attempted"].fillna(True) | data["outcome"].ne("passed")]  # complaints, automatic answers
    whose = data["recipient"].notna()
    data = data[whose].sort_values("time", kind="stable", ignore_index=True)
    late = data["origin"].eq("dsn").fillna(False).to_numpy(bool)
    held = data["outcome"].eq("deferred").to_numpy(bool)  # never tried itself: the failure it was held back for
    ended = data["outcome"].isin(["passed", "failed"]).to_numpy(bool)
    group = _groups(data, ended)
    real = data["attempted"].fillna(True).to_numpy(bool)
    counted = real & ~(late & (np.bincount(group, real & ~late) > 0)[group])  # a log or export tells of the attempt
    last, end = _last(group, counted | held, counted), _last(group, ended, late)
    soft = data["status_code"].str.startswith("4") & data["origin"].isin(["log", "dsn"])  # persistent, yet transient
    gone = data["outcome"].eq("failed") & (data["category"].eq("expired") | soft).fillna(False)
    final = np.select([data["outcome"].eq("passed"), gone], ["sent", "expired"], "bounced")
    groups = data.groupby(group)
    made = groups[["message_id", "queue_id", "recipient", "client", "campaign"]].first()
    made["final"] = np.where(end < 0, "open", final[end])
    made["status_code"] = data["status_code"].reindex(end).array.fillna(data["status_code"].reindex(last).array)
    made["port"] = data["port"].reindex(last).array  # -1 is in no index: missing
    made["attempts"] = np.bincount(group, counted).astype("int64")
    made["first_time"], made["last_time"] = groups["time"].min(), groups["time"].max()
    made["duration_s"] = (made["last_time"] - made["first_time"]).dt.total_seconds()
    result = OUTCOMES.build(made)
    result.attrs["unknown"] = int((~whose).sum())
    return result


def failures(attempts: pd.DataFrame) -> pd.DataFrame:
    """The failed rows of `ATTEMPTS`, one per message and recipient: of several the bounce report, else the last."""
    keys = ["message_id", "recipient"]
    failed = attempts[attempts["outcome"].eq("failed").fillna(False)]
    if not {*keys, "origin"} <= set(failed):
        return failed
    ranked = failed.sort_values("origin", key=lambda origin: origin.eq("dsn").fillna(False), kind="stable")
    told = ranked[keys].notna().all(axis=1) & ranked.duplicated(keys, "last")
    return ranked[~told].sort_index()


def label(attempts: pd.DataFrame, sends: pd.DataFrame) -> pd.DataFrame:
    """A copy of the attempts with `client` and `campaign` (and `vantage`, if listed) from a send list.

    `sends` has `message_id` or `recipient` or both, and `client` and `campaign`. A row of it speaks for the
    attempts of that message, and only for its recipient where it names one. What is known stays; where rows
    of the list contradict each other nothing is filled in. Raises SchemaError if a column is missing.
    """
    keys = [name for name in ("message_id", "recipient") if name in sends]
    for name in ["client", "campaign", *([] if keys else ["message_id"])]:
        if name not in sends:
            raise SchemaError(f"send list: column {name!r} is missing; it has {', '.join(map(str, sends))}")
    ATTEMPTS.check(attempts, keys)
    made, here, there = attempts.copy(), _plain(attempts), _plain(sends).reset_index(drop=True)
    for on in (["message_id", "recipient"], ["message_id"], ["recipient"]):
        fits = there[on].notna().all(axis=1) & there.drop(columns=on).isna().all(axis=1)
        for name in [name for name in ("client", "campaign", "vantage") if name in sends]:
            said = there.loc[fits, on].assign(value=sends[name].array[fits.to_numpy()]).dropna().drop_duplicates()
            found = here[on].merge(said[~said.duplicated(on, keep=False)], how="left", on=on)["value"]
            known = made[name].astype("string") if name in made else pd.Series(pd.NA, made.index, dtype="string")
            made[name] = known.mask(known.isna(), found.astype("string").set_axis(made.index))
    return made


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Message and recipient in the form in which they are compared: no angle brackets, lower case."""
    empty = pd.Series(pd.NA, frame.index, dtype="string")
    ids = frame.get("message_id", empty).astype("string").str.strip(" <>")
    return pd.DataFrame({"message_id": ids, "recipient": frame.get("recipient", empty).astype("string").str.lower()})


def _groups(data: pd.DataFrame, ended: _Array) -> _Array:
    """A number per message and recipient, in order of appearance."""
    plain = _plain(data)
    rows = "row " + data.index.to_series().astype("string")
    message = plain["message_id"].fillna("queue " + data["queue_id"]).fillna(rows)
    group = data.groupby([message, plain["recipient"]], sort=False).ngroup()
    before = pd.Series(ended.astype(int)).groupby(group).cumsum() - ended
    life = before.where(plain["message_id"].isna(), 0)
    return data.groupby([group, life], sort=False).ngroup().to_numpy()


def _last(group: _Array, among: _Array, better: _Array) -> _Array:
    """Per group the place of the last row of `among`, of the `better` ones if there are any; -1 if there is none."""
    places = np.flatnonzero(among)
    places = places[np.argsort(better[places], kind="stable")]
    last = np.full(group.max(initial=-1) + 1, -1)
    last[group[places]] = places  # the last one written stays
    return last
