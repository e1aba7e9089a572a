"""Figures of the result frames: axes in, axes out. Colour is never the only sign."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from deliverkit.outcomes import failures
from deliverkit.rates import block_rates
from deliverkit.schema import ATTEMPTS, FUNNEL, RATES, STEPS
from deliverkit.svg import OTHER, colour, text

_KINDS = {"hard": ("#D55E00", ""), "soft": ("#0072B2", "//"), "block": ("#CC79A7", "xx")}
_MARKS = {25: "o", 465: "s", 587: "D", 2525: "^"}


def _share_axis(ax: Axes, label: str) -> None:
    ax.set(ylabel=label, ylim=(-0.04, 1.12))
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def plot_block_rates(rates: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw one dot per row of a `RATES` frame at its block rate, with interval, value and count.

    A hollow dot: too few attempts to say. Draws into `ax` (default: the current axes) and returns it.
    """
    keys = [str(name) for name in RATES.check(rates).columns if name not in RATES.names]
    ax = plt.gca() if ax is None else ax
    labels = []
    for x, row in enumerate(rates.to_dict("records")):
        port, rate = row.get("port", pd.NA), float(row["rate"])
        few = isinstance(row["verdict"], str) and row["verdict"] == "too_few"
        paint = colour(port)
        ends = [[max(rate - float(row["low"]), 0)], [max(float(row["high"]) - rate, 0)]]
        mark = "o" if pd.isna(port) else _MARKS.get(port, "v")
        ax.errorbar(x, rate, yerr=ends, fmt=mark, color=paint, capsize=4, mfc="none" if few else paint)
        ax.annotate(text(rate, "rate"), (x, rate), xytext=(6, 0), textcoords="offset points", va="center", size="small")
        labels.append("\n".join([*(text(row[key]) for key in keys), f"n = {row['attempts']}"]))
    ax.set_xticks(range(len(labels)), labels)
    ax.set(xlabel=", ".join(keys), xlim=(-0.6, max(len(labels), 1) - 0.3))
    _share_axis(ax, "attempts blocked")
    return ax


def plot_funnel(funnel: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many attempts reached each step, one line per group of a `FUNNEL` frame."""
    keys = [str(name) for name in FUNNEL.check(funnel).columns if name not in FUNNEL.names]
    ax = plt.gca() if ax is None else ax
    groups = funnel.groupby(keys, dropna=False) if keys else [((), funnel)]
    for (group, rows), mark in zip(groups, cycle("osD^v"), strict=False):
        names = ", ".join(text(value) for value in group)
        port = dict(zip(keys, group, strict=True)).get("port", pd.NA)
        reached = rows.set_index("step")["reached"].reindex(list(STEPS)).astype(float)
        ax.plot(STEPS, reached, marker=mark, color=colour(port), label=f"{names} (n = {reached.iloc[0]:.0f})")
    ax.set(ylabel="attempts that reached the step", ylim=(0, None))
    if keys and len(funnel):
        ax.legend(title=", ".join(keys), frameon=False)
    return ax


def plot_bounce_reasons(attempts: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw why messages failed: counts per category (one per message and recipient), coloured and hatched by kind."""
    ATTEMPTS.check(attempts, ["category", "kind", "outcome"])
    ax = plt.gca() if ax is None else ax
    failed = failures(attempts).dropna(subset=["category"])
    keyed = failed.assign(kind=failed["kind"].fillna("unknown"))
    counts = keyed.groupby(["category", "kind"], observed=True).size().sort_values().reset_index(name="n")
    for kind, rows in counts.groupby("kind"):
        paint, hatch = _KINDS.get(str(kind), (OTHER, ".."))
        bars = ax.barh(rows.index, rows["n"], color=paint, hatch=hatch, edgecolor="white", label=str(kind))
        ax.bar_label(bars, padding=3)
    ax.set_yticks(range(len(counts)), [str(name).replace("_", " ") for name in counts["category"]])
    ax.set(xlabel=f"failed messages (n = {len(failed)})")
    ax.margins(x=0.12)  # room for the numbers
    if len(counts):
        ax.legend(title="kind", frameon=False, loc="lower right")
    return ax


def plot_timeline(attempts: pd.DataFrame, *, by: str = "day", ax: Axes | None = None) -> Axes:
    """Draw the block rate over time (`hour`, `day`, `week`, `month`), a line per port; gaps stay gaps."""
    rates = block_rates(attempts, [by, "port"])
    ax = plt.gca() if ax is None else ax
    steps = {"hour": "h", "day": "D", "week": "W-MON", "month": "MS"}
    if len(rates):
        every = pd.date_range(rates[by].min(), rates[by].max(), freq=steps[by])
    for port in sorted(int(port) for port in rates["port"].unique()):
        rows = rates[rates["port"] == port]
        line = rows.set_index(by)[["rate", "low", "high"]].astype(float).reindex(every)
        label = f"{port} (n = {rows['attempts'].sum()})"
        at = np.asarray(every.tz_localize(None))
        ax.plot(at, line["rate"], marker=_MARKS.get(port, "v"), color=colour(port), label=label)
        ax.fill_between(at, line["low"], line["high"], color=colour(port), alpha=0.15, linewidth=0)
    if len(rates) and len(every) == 1:  # matplotlib would show years around a single point
        ax.set_xlim(at[0] - np.timedelta64(1, "D"), at[0] + np.timedelta64(1, "D"))
    _share_axis(ax, "attempts blocked")
    ax.set(xlabel=by)
    ax.tick_params(axis="x", rotation=30)
    if len(rates):
        ax.legend(title="port", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    return ax
