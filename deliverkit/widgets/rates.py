"""Block rates by port and what else an analyst wants to split them by."""

from __future__ import annotations

from typing import Any

import pandas as pd

from deliverkit import svg
from deliverkit.rates import HEADINGS, rates_of, starts, tally
from deliverkit.samples import sample
from deliverkit.schema import ATTEMPTS
from deliverkit.widgets.parts import ROWS, box, choice, fill, values, view

_SPLITS = ("vantage", "operator", "client", "campaign", "mode")
_FILTERS = ("vantage", "client")


def explore_rates(attempts: pd.DataFrame | None = None) -> Any:
    """A box to see block rates by port and up to two more columns, of all or one port, network and client.

    Takes `ATTEMPTS` or `PROBES` with `port` and `blocked`; without a frame the sample campaign. All is counted once
    at the start, so a click takes no longer for a million attempts. `grouping`, `split`, `port`, `vantage`, `client`
    are dropdowns, `view.value` is the HTML that is shown: chart and table. Raises SchemaError if a column is missing.
    """
    attempts = ATTEMPTS.check(sample() if attempts is None else attempts, ["port", "blocked"])
    have = [name for name in _SPLITS if name in attempts and attempts[name].notna().any()]
    times = ["day", "week", "month"] if "time" in attempts and attempts["time"].notna().any() else []
    counts = tally(attempts, ["port", *have, *times[:1]])
    counts = counts.assign(**{period: starts(counts["day"], period) for period in times[1:]})
    more = [*have, *times]
    grouping = choice("grouping", "Group by", [("port", ""), *((f"port × {name}", name) for name in more)])
    split = choice("split", "and by", [("–", ""), *more])
    ports = sorted(int(port) for port in counts["port"].unique())
    port = choice("port", "Port", [("all", ""), *((str(p), p) for p in ports)])
    picks = {"port": port}
    for name in _FILTERS:
        picks[name] = choice(name, name.capitalize(), [("all", ""), *values(counts, name)])
    place = view()

    def show(_: Any = None) -> None:
        fill(place, draw)

    def draw() -> str:
        keys = list(dict.fromkeys(["port", *filter(None, (grouping.value, split.value))]))
        some = counts
        for name, pick in picks.items():
            some = some[some[name] == pick.value] if pick.value else some
        rates = rates_of(some, keys)
        title = f"Block rate by {' × '.join(keys)}"
        shown = rates.head(ROWS)
        caption = f"{title}, 95 % Wilson intervals: {len(shown)} of {len(rates)} groups"
        columns = {**{key: key for key in keys}, **HEADINGS}
        return svg.bars(shown, title=title, key=keys) + svg.table(shown, caption=caption, columns=columns)

    rows = [[grouping, split], [port, *(picks[n] for n in _FILTERS if len(picks[n].options) > 2)], place]
    for pick in (grouping, split, *picks.values()):
        pick.observe(show, "value")
    show()
    return box("rates", rows, grouping=grouping, split=split, view=place, **picks)
