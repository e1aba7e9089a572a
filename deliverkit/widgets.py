"""Controls for a notebook: plain ipywidgets around an SVG text, readable by tests, without Output."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as w
import pandas as pd

from deliverkit import svg
from deliverkit.errors import DeliverkitError
from deliverkit.rates import block_rates
from deliverkit.schema import ATTEMPTS

_MORE = ("vantage", "client", "operator", "host", "mode", "day")
_HEADINGS = {"attempts": "attempts", "blocked": "blocked", "rate": "rate", "low": "from", "high": "to"}


def explore_rates(attempts: pd.DataFrame) -> Any:
    """A box to see block rates by port and one more column, for all or one port.

    Takes `ATTEMPTS` with `port` and `blocked`. The box has `grouping`, `port` (dropdowns) and `view`
    (HTML: chart and table); `view.value` is what is shown. Each grouping is counted once, then kept.
    Raises SchemaError if a column is missing.
    """
    ATTEMPTS.check(attempts, ["port", "blocked"])
    have = [n for n in _MORE if (n in attempts or (n == "day" and "time" in attempts))]
    options = {"port": ["port"], **{f"port × {name}": ["port", name] for name in have}}
    kept: dict[str, pd.DataFrame] = {}
    ports = sorted(int(port) for port in attempts["port"].dropna().unique())
    grouping = w.Dropdown(options=list(options), description="Group by", tooltip="Group by")
    port = w.Dropdown(options=[("all", 0), *((str(p), p) for p in ports)], description="Port", tooltip="Port")
    view = w.HTML()

    def show(_: Any = None) -> None:
        keys = options[grouping.value]
        try:
            if grouping.value not in kept:
                kept[grouping.value] = block_rates(attempts, keys)
        except DeliverkitError as problem:
            view.value = f'<p role="alert">{escape(str(problem))}</p>'
            return
        rates = kept[grouping.value]
        rates = rates[rates["port"] == port.value] if port.value else rates
        title = f"Block rate by {grouping.value}"
        shown = rates.head(60)  # a page can hold no more; the table says how many there are
        caption = f"{title}: {len(shown)} of {len(rates)} groups"
        columns = {**{key: key for key in keys}, **_HEADINGS}
        drawn = svg.bars(shown, title=title, key=keys)
        view.value = drawn + svg.table(shown, caption=caption, columns=columns)

    for control, name in ((grouping, "grouping"), (port, "port"), (view, "view")):
        control.add_class(f"dk-{name}")
    grouping.observe(show, "value")
    port.observe(show, "value")
    show()
    box = w.VBox([w.HBox([grouping, port]), view])
    box.add_class("dk-rates")
    box.grouping, box.port, box.view = grouping, port, view
    return box
