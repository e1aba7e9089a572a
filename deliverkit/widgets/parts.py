"""What all widgets are made of: labelled controls with a class of their own, and a view that shows errors as words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd

from deliverkit import svg
from deliverkit.errors import DeliverkitError
from deliverkit.rules import known_name

ROWS = 60  # what a page can hold; captions say how many there are


@cache
def _style() -> str:
    return f"<style>{(files('deliverkit') / 'templates/widgets.css').read_text('utf-8')}</style>"


def control(kind: type[Any], name: str, label: str, **options: Any) -> Any:
    """A control with a visible label, its full width, and the class dk-NAME."""
    wide = {"width": "min(34em, 95%)"}
    style = {} if kind in (w.Button, w.Checkbox) else {"description_width": "11em"}
    layout = {} if kind is w.Button else wide
    made = kind(description=label, style=style, layout=layout, tooltip=label, **options)
    made.add_class(f"dk-{name}")
    return made


def choice(name: str, label: str, options: Iterable[Any], value: Any = None) -> Any:
    """A dropdown; `options` are values, or pairs of what is shown and the value."""
    made = control(w.Dropdown, name, label, options=pairs(options))
    if value is not None:
        made.value = value
    return made


def pairs(options: Iterable[Any]) -> list[tuple[Any, Any]]:
    return [option if isinstance(option, tuple) else (str(option), option) for option in options]


def values(frame: pd.DataFrame, name: str, most: int = 500) -> list[str]:
    """The different values of a column as options of a dropdown, the most frequent ones if there are many."""
    return sorted(map(str, frame[name].dropna().value_counts().index[:most])) if name in frame else []


def finder(frame: pd.DataFrame, picks: Mapping[str, Any]) -> Callable[[], Any]:
    """A function that gives the places of the rows that fit the dropdowns; their text is compared here, once."""
    known = {name: pd.factorize(frame[name].astype("string")) for name in picks if name in frame}

    def find() -> Any:
        keep = np.ones(len(frame), dtype=bool)
        for name, (codes, words) in known.items():
            if picks[name].value:
                keep &= codes == words.get_indexer(pd.Index([str(picks[name].value)]))[0]
        return np.flatnonzero(keep)

    return find


def preset(made: Any, value: Any) -> None:
    """Give a control the value that a caller filled in; FactsError for what a dropdown does not offer."""
    options = [option for _, option in made.options] if isinstance(made, w.Dropdown) else [value]
    made.value = value if value in options else known_name(made.description, value, options)


def view() -> Any:
    """Where a widget shows what it found, as HTML text."""
    made = w.HTML()
    made.add_class("dk-view")
    return made


def fill(place: Any, make: Callable[[], str]) -> None:
    """Show what `make` gives; what goes wrong there is shown as a sentence."""
    try:
        place.value = _style() + make()
    except DeliverkitError as problem:
        place.value = alert(problem)
    except ModuleNotFoundError as problem:
        place.value = alert(f"{problem.name} is missing: python -m pip install {problem.name}")
    except Exception as problem:  # noqa: BLE001 - in a callback it would vanish into a log that nobody reads
        place.value = alert(f"this did not work: {type(problem).__name__}: {problem}")


def alert(problem: object) -> str:
    return f'<p role="alert"><strong>{escape(str(problem))}</strong></p>'


def box(name: str, rows: Iterable[Any], **parts: Any) -> Any:
    """The widget: `rows` below each other, `parts` as attributes for those who drive it from Python."""
    made = w.VBox([w.HBox(row, layout={"flex_flow": "row wrap"}) if isinstance(row, list) else row for row in rows])
    made.add_class(f"dk-{name}")
    for part, value in parts.items():
        setattr(made, part, value)
    return made


def table(frame: pd.DataFrame, caption: str, columns: dict[str, str], total: int | None = None) -> str:
    """The first rows of a frame as a table whose caption says how many there are (`total`, if not all are here)."""
    shown, total = frame.head(ROWS), total or len(frame)
    many = f": {len(shown)} of {total}" if total > len(shown) else ""
    return svg.table(shown, caption=caption + many, columns=columns)
