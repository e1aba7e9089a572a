"""How often attempts are blocked, messages bounce and steps are passed, each with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deliverkit import facts, scale, svg
from deliverkit.errors import SchemaError
from deliverkit.schema import ATTEMPTS, BOUNCES, FUNNEL, OUTCOMES, RATES, STEPS, Frame, counted

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_PERIODS = {"hour": "h", "day": "D", "week": "W", "month": "M"}
_WORDS = {"as_expected": "as expected", "too_few": "too few or too close to say", "higher": "higher", "lower": "lower"}
_WHO = ("network", "server", "policy")
_SHOWN = 60  # groups that a page can hold
HEADINGS = {  # columns of a rates table as people see it
    "attempts": "attempts", "blocked": "blocked", "rate": "rate", "low": "from", "high": "to",
    "by_network": "by network", "by_server": "by server", "by_policy": "by policy",
    "expected": "expected", "verdict": "verdict",
}  # fmt: skip


def wilson(hits: Any, total: Any) -> tuple[Any, Any]:
    """Wilson's 95 % score interval of hits / total (doi:10.1080/01621459.1927.10502953); missing for 0."""
    k, n = np.asarray(hits, dtype=float), np.asarray(total, dtype=float)
    n = np.where(n > 0, n, np.nan)
    middle = (k + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * np.sqrt(k * (n - k) / n + _Z**2 / 4)
    low, high = np.where(k == 0, 0.0, middle - half), np.where(k == n, 1.0, middle + half)
    return np.where(np.isnan(n), np.nan, low), np.where(np.isnan(n), np.nan, high)


def _keys(by: str | Sequence[str] | None, frame: Frame) -> list[str]:
    keys = [] if by is None else [by] if isinstance(by, str) else list(by) if isinstance(by, Sequence) else [by]
    if wrong := [key for key in keys if not isinstance(key, str)] or [key for key in keys if keys.count(key) > 1]:
        raise SchemaError(f"{frame.name}: group by names of columns, each once, not {wrong[0]!r}")
    if clash := set(keys) & set(frame.names):
        raise SchemaError(f"{frame.name}: cannot group by {sorted(clash)[0]!r}, it is a column of the result")
    return keys


def _tried(attempts: pd.DataFrame, keys: list[str], needs: list[str]) -> pd.DataFrame:
    """The rows that count, with the keys made; rows without a port go if the port is a key."""
    columns = getattr(attempts, "columns", ())
    periods = [key for key in keys if key in _PERIODS and key not in columns]
    wanted = [key for key in keys if key not in periods] + needs + ["time"] * bool(periods)
    ATTEMPTS.check(attempts, wanted)
    used = ("blocked_by", "attempted", "direction", "origin", "message_id", "recipient")
    data = counted(attempts[list(dict.fromkeys([*wanted, *(name for name in used if name in attempts)]))])
    data = data.assign(**{period: starts(data["time"], period) for period in periods})
    return data.dropna(subset=["port"]) if "port" in keys else data


def _needs(keys: list[str], *names: str) -> list[str]:
    """The columns that a Dask frame has to make."""
    return [*keys, *names, "attempted", "direction", "origin", *["time"] * bool(_PERIODS.keys() & keys)]


def starts(times: pd.Series[Any], period: str) -> pd.Series[Any]:
    """The beginning of the hour, day, week or month of each time, in UTC."""
    naive = pd.to_datetime(times, utc=True).dt.tz_localize(None)
    return naive.dt.to_period(_PERIODS[period]).dt.start_time.dt.tz_localize("UTC")


def _sums(data: pd.DataFrame, keys: list[str], flags: dict[str, Any]) -> pd.DataFrame:
    """Per group the number of rows for which each flag holds; without keys one row."""
    counted = data[keys].assign(**{name: np.asarray(flag, dtype="int64") for name, flag in flags.items()})
    if not keys:
        return counted.sum().to_frame().T
    return counted.groupby(keys, dropna=False, observed=True)[list(flags)].sum().reset_index()


def block_rates(attempts: pd.DataFrame, by: str | Sequence[str] = "port") -> pd.DataFrame:
    """Share of attempts that were blocked, per group, with its uncertainty: a `RATES` frame.

    `by` is a column or several; `hour`, `day`, `week` (from Monday) and `month` are made from `time`
    in UTC. Needs `blocked` and the keys. Left out: rows that are not `attempted`, rows without a port
    if the port is a key (`attrs["portless"]`), rows with `blocked` missing (`attrs["unknown"]`). For other
    keys a missing value is a group. Shares run from 0 to 1. Raises SchemaError if a column is missing.
    A bounce message counts only where no other row tells of the attempt it reports. A Dask DataFrame is counted by its
    workers, with the same result; so do `bounce_rates` and `funnel`.

    `verdict` compares the whole interval, not the rate, with one cut (facts: thresholds, block_rate_cut);
    with fewer than five attempts (block_rate_fewest), or an interval across the cut, it is `too_few`. Tries of one host
    count as independent of each other. Shown in a notebook as chart and
    table, in a terminal as lines; anything made from the frame is a plain frame again.
    >>> tried = pd.DataFrame({"port": [25, 25, 587], "blocked": [True, True, False]})
    >>> block_rates(tried)[["port", "rate", "low", "high"]].round(2)
       port  rate   low  high
    0    25   1.0  0.34   1.0
    1   587   0.0   0.0  0.79
    """
    keys = _keys(by, RATES)
    return rates_of(scale.counts(tally, attempts, keys, _needs(keys, "blocked", "blocked_by"), keys), keys)


def tally(attempts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The counts behind `block_rates`, per group: what a widget keeps of a million attempts."""
    data = _tried(attempts, keys, ["blocked"])
    portless = int(attempts["port"].isna().sum()) if "port" in keys else 0
    unknown = int(data["blocked"].isna().sum())
    data = data.dropna(subset=["blocked"])
    blocked = data["blocked"].astype(bool)
    flags: dict[str, Any] = {"attempts": np.ones(len(data)), "blocked": blocked}
    if "blocked_by" in data:
        who = data["blocked_by"].astype("string")
        flags |= {f"by_{w}": blocked & who.eq(w).fillna(False) for w in _WHO}
    made = _sums(data, keys, flags)
    made.attrs = {"unknown": unknown, "portless": portless}
    return made


def rates_of(counts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The `RATES` frame of a tally by these keys or by more of them."""
    made = _sums(counts, keys, {name: counts[name] for name in RATES.names if name in counts})
    made = made[made["attempts"] > 0]
    low, high = wilson(made["blocked"], made["attempts"])
    made = made.assign(rate=made["blocked"] / made["attempts"], low=low, high=high)
    if "port" in keys:
        items = facts.tables("guide")["item"]
        known = {i["port"]: i["expected_block_rate"] for i in items if "expected_block_rate" in i}
        made["expected"] = made["port"].map(known)
        limits = facts.table("thresholds").set_index("metric")["value"]
        cut, fewest = float(limits["block_rate_cut"]), int(limits["block_rate_fewest"])
        enough = made["attempts"] >= fewest
        rise, fall = enough & (made["low"] > cut), enough & (made["high"] < cut)
        low_, high_ = made["expected"].eq("low"), made["expected"].eq("high")
        cases = [(low_ & fall) | (high_ & rise), low_ & rise, high_ & fall, low_ | high_]
        words = np.select(cases, ["as_expected", "higher", "lower", "too_few"], "")
        made["verdict"] = pd.array([word or None for word in words.tolist()], dtype="string")
    result = Rates(RATES.build(made))
    result.attrs |= counts.attrs
    return result


def bounce_rates(frame: pd.DataFrame, by: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Share of recipients that refused the message, per group: a `BOUNCES` frame, one row if `by` is None.

    Takes an `OUTCOMES` frame, or `ATTEMPTS` and makes the outcomes first. The rate is bounced / (sent +
    bounced); expired and open recipients stand beside it. Without either it is missing, and where there are bounce
    messages only: accepted mail leaves none. Of `ATTEMPTS` any column can be a key, and hour, day, week and month.
    """
    from deliverkit.outcomes import USED

    keys = _keys(by, BOUNCES)
    ended = "final" in getattr(frame, "columns", ())
    needs = _needs(keys, "final", "first_time") if ended else [*keys, *USED]
    made = scale.counts(_ended, frame, keys, needs, keys, ends=not ended)
    total = made["sent"] + made["bounced"]
    if made.attrs.get("not_reports") == 0:  # accepted mail leaves no bounce
        total = total * 0
    low, high = wilson(made["bounced"], total)
    return BOUNCES.build(made.assign(rate=made["bounced"] / total.where(total > 0), low=low, high=high))


def _ended(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The counts behind `bounce_rates`, per group."""
    from deliverkit.outcomes import endings

    data = frame
    if "final" not in getattr(frame, "columns", ()):
        data = endings(frame, [key for key in keys if key in frame and key not in OUTCOMES.names])
    for key in keys:
        if key in _PERIODS and key not in data:
            data = data.assign(**{key: starts(data["first_time"], key)})
    OUTCOMES.check(data, [*keys, "final"])
    finals = ("sent", "bounced", "expired", "open")
    made = _sums(data, keys, {final: data["final"].eq(final).fillna(False) for final in finals})
    made.attrs = {"not_reports": int((~frame["origin"].isin(["dsn", "arf"])).sum())} if "origin" in frame else {}
    return made


def funnel(attempts: pd.DataFrame, by: str | Sequence[str] = "port") -> pd.DataFrame:
    """How many attempts reached and passed each step of the guide: a `FUNNEL` frame, 5 rows a group.

    Needs `step`, `outcome` and the keys. Left out: rows not attempted, without a step, and without a port
    if the port is a key. An attempt reached its `step` and all before; it passed its last if it `passed`.
    """
    keys = _keys(by, FUNNEL)
    needs = _needs(keys, "step", "outcome")
    return funnel_of(scale.counts(ends, attempts, keys, needs, [*keys, "step", "past"]), keys)


def ends(attempts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The counts behind `funnel`, per group, step and whether it was passed (`past`): what a widget keeps."""
    data = _tried(attempts, keys, ["step", "outcome"])
    data = data[data["step"].isin(STEPS)]
    past = data["outcome"].eq("passed").fillna(False).astype("int64")
    return _sums(data.assign(past=past), [*keys, "step", "past"], {"n": np.ones(len(data))})


def funnel_of(counts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The `FUNNEL` frame of the counts by these keys or by more of them."""
    ended = counts["step"].astype("string").map({step: i for i, step in enumerate(STEPS)}).astype("int64")
    n, parts = counts["n"], []
    for i, step in enumerate(STEPS):
        sums = _sums(counts, keys, {"reached": n * (ended >= i), "passed": n * (ended + counts["past"] > i)})
        low, high = wilson(sums["passed"], sums["reached"])
        share = sums["passed"] / sums["reached"].where(sums["reached"] > 0)
        parts.append(sums.assign(step=step, share=share, low=low, high=high))
    return FUNNEL.build(pd.concat(parts).sort_index(kind="stable"))


def show_rates(rates: pd.DataFrame) -> str:
    """The rates as lines for a terminal: group, bar, count, interval, who blocked, verdict."""
    keys = [str(name) for name in RATES.check(rates).columns if name not in RATES.names]
    lines = []
    for row in rates.to_dict("records"):
        group = ", ".join(f"{key} {svg.text(row[key])}" for key in keys) or "all"
        bar = ("█" * round(row["rate"] * 20)).ljust(20, "·")
        interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f} %"
        who = [f"{w} {row[f'by_{w}']}" for w in _WHO if pd.notna(row[f"by_{w}"]) and row[f"by_{w}"]]
        said = "" if pd.isna(row["expected"]) else f"expected {row['expected']}: {_WORDS[row['verdict']]}"
        counts = f"{row['blocked']} of {row['attempts']} blocked ({interval})"
        lines.append((group, bar, counts, ", ".join(who), said))
    wide = [max(len(line[i]) for line in lines) for i in range(5)] if lines else []
    rows = ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in lines]
    gone = rates.attrs.get("portless", 0)
    return "\n".join(rows) or "no attempts" + (f" with a known port, {gone} rows without one" if gone else "")


class Rates(pd.DataFrame):
    """A `RATES` frame that shows itself as a chart with its table, or as lines in a terminal."""

    def __repr__(self) -> str:
        return show_rates(self) if set(RATES.names) <= set(self.columns) else super().__repr__()

    def _repr_html_(self) -> str:
        if not set(RATES.names) <= set(self.columns):
            return pd.DataFrame(self).to_html(max_rows=_SHOWN)
        keys = [str(name) for name in self.columns if name not in RATES.names]
        title = f"Block rate by {' × '.join(keys)}" if keys else "Block rate"
        shown = self.head(_SHOWN)
        caption = f"{title}, 95 % Wilson intervals: {len(shown)} of {len(self)} groups"
        headings = {**{key: key for key in keys}, **HEADINGS}
        return svg.bars(shown, title=title, key=keys) + svg.table(shown, caption=caption, columns=headings)
