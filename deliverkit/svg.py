"""Bars with intervals as an SVG text, and their table twin: for widgets and the report alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

PALETTE = {25: "#D55E00", 465: "#0072B2", 587: "#009E73", 2525: "#CC79A7"}  # Okabe-Ito, 3:1 on light and dark
OTHER = "#6b7280"
_SHARES = ("rate", "low", "high", "share", "confidence")


_HIDDEN = re.compile(  # control, direction and zero-width marks, tags, halves of pairs: they lie about what is there
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    r"\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """The text with marks that hide or turn what stands there shown as \\ufffd."""
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def colour(port: Any) -> str:
    return OTHER if pd.isna(port) else PALETTE.get(port, OTHER)


def text(value: Any, name: str = "") -> str:
    """The value as a person reads it, in one line, not escaped: shares as percent, missing as a dash."""
    if pd.isna(value):
        return "–"
    if name in _SHARES:
        near = "<1%" if 0 < value < 0.005 else ">99%" if 0.995 <= value < 1 else f"{int(100 * value + 0.5)}%"
        return near.replace("%", "\N{NO-BREAK SPACE}%")
    if name == "verdict":
        return {"too_few": "too few or too close to say"}.get(value, str(value).replace("_", " "))
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}" if value == value.normalize() else f"{value:%Y-%m-%d %H:%M}"
    return f"{value:.3g}" if isinstance(value, float) else visible(" ".join(str(value).split()))


def _count(row: Mapping[Any, Any]) -> tuple[Any, Any]:
    for hits, total in (("blocked", "attempts"), ("passed", "reached")):
        if total in row:
            return row[hits], row[total]
    return row["bounced"], row["sent"] + row["bounced"]


def bars(rates: pd.DataFrame, *, title: str, key: str | Sequence[str] = "port") -> str:
    """One bar with its 95 % interval per row of a `RATES`, `BOUNCES` or `FUNNEL` frame.

    Value, interval and count are printed at each bar; a verdict `too_few` has a hollow dot.
    Everything from the frame is escaped; text takes the colour of the page.
    """
    keys = [key] if isinstance(key, str) else list(key)
    parts, said = [], []
    for i, row in enumerate(rates.to_dict("records")):
        top = 12 + 54 * i
        label = ", ".join(f"{k} {text(row[k])}" if k == "port" else text(row[k]) for k in keys) or "all"
        value = "share" if "share" in row else "rate"
        hits, total = _count(row)
        counts = f"{hits} of {total} ({text(row['low'], 'low')} to {text(row['high'], 'high')})"
        judged = text(row["verdict"], "verdict") if "verdict" in row else ""
        measured = judged if judged.startswith("too") else f"measured: {judged}"
        guide = f"guide: {row['expected']}; {measured}" if pd.notna(row.get("expected")) else ""
        said.append(f"{label}: {text(row[value], value)}, {counts}{', ' * bool(guide)}{guide}")
        parts.append(
            f'<text x="4" y="{top + 12}">{escape(_short(label))}</text>'
            f'<text x="356" y="{top + 12}" text-anchor="end" font-weight="700">{text(row[value], value)}</text>'
            f'<rect x="10" y="{top + 18}" width="340" height="12" fill="currentColor" fill-opacity="0.08"/>'
            f'<text x="10" y="{top + 42}" font-size="10.5">{counts}</text>'
            f'<text x="350" y="{top + 42}" font-size="10.5" text-anchor="end">{escape(guide)}</text>'
        )
        if pd.isna(row[value]):
            continue
        at, low, high = (round(10 + 340 * float(row[n]), 1) for n in (value, "low", "high"))
        paint, y = colour(row.get("port", pd.NA)), top + 24
        verdict = row.get("verdict")
        fill = "none" if isinstance(verdict, str) and verdict == "too_few" else paint
        parts.append(
            f'<rect x="10" y="{top + 18}" width="{at - 10:.1f}" height="12" fill="{paint}" opacity="0.35"/>'
            f'<path d="M{low} {y}H{high}M{low} {y - 6}v12M{high} {y - 6}v12" stroke="{paint}" '
            f'stroke-width="2" fill="none"/><circle cx="{at}" cy="{y}" r="5" fill="{fill}" stroke="{paint}" '
            f'stroke-width="2"/>'
        )
    return _figure(title, said, parts, 12 + 54 * max(len(rates), 1))


def counts(numbers: Mapping[str, int], *, title: str, paint: Mapping[str, str] | None = None) -> str:
    """One bar per entry, its number at its end; `paint` gives single entries a colour."""
    parts, most = [], max(numbers.values(), default=1)
    for i, (label, n) in enumerate(numbers.items()):
        top, wide = 8 + 30 * i, round(300 * n / most, 1)
        fill = (paint or {}).get(label, OTHER)
        parts.append(
            f'<text x="4" y="{top + 10}">{escape(_short(label))}</text><rect x="4" y="{top + 14}" width="{wide}" '
            f'height="9" fill="{fill}"/><text x="{wide + 9}" y="{top + 23}" font-weight="700">{n}</text>'
        )
    return _figure(title, [f"{label}: {n}" for label, n in numbers.items()], parts, 12 + 30 * max(len(numbers), 1))


def steps(funnel: pd.DataFrame, *, title: str) -> str:
    """A row per port of a `FUNNEL` frame, a cell per step: how many attempts passed of those that reached it."""
    parts, said = [], []
    names = list(funnel["step"].unique())
    for x, name in enumerate(names):
        parts.append(f'<text x="{62 + 60 * x}" y="14" font-size="10">{escape(str(name))}</text>')
    for i, (port, rows) in enumerate(funnel.groupby("port")):
        top, paint = 22 + 30 * i, colour(port)
        parts.append(f'<text x="4" y="{top + 16}" font-weight="700">{port}</text>')
        for x, row in enumerate(rows.to_dict("records")):
            asked = (row["reached"] and row["step"] not in ("relay", "inbox")) or row["passed"]
            words = f"{row['passed']} of {row['reached']}" if asked else "–"
            shade = 0.2 + 0.45 * float(row["share"]) if asked else 0
            said.append(f"port {port}, {row['step']}: {words}")
            parts.append(
                f'<rect x="{58 + 60 * x}" y="{top}" width="56" height="24" fill="{paint}" fill-opacity="{shade:.2f}" '
                f'stroke="currentColor" stroke-opacity="0.3"/>'
                f'<text x="{86 + 60 * x}" y="{top + 16}" text-anchor="middle" font-size="11">{words}</text>'
            )
    return _figure(title, said, parts, 26 + 30 * max(funnel["port"].nunique(), 1))


def _cell(said: str, name: str) -> str:
    """What stands in a cell, with the end of its opening tag; the source of a fact is a link under its host's name."""
    if name == "source_url" and said.startswith("https://"):
        return f'><a href="{escape(said)}">{escape(said.split("/")[2])}</a>'
    return f"{' class=s' * (len(said) < 20)}>{escape(said)}"


def _short(label: str, most: int = 46) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _figure(title: str, said: Sequence[str], parts: Sequence[str], height: int) -> str:
    """An SVG figure with its title and, for those who cannot see it, its numbers as a sentence."""
    drawn = "".join(parts) or '<text x="4" y="24">no attempts</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 360 {height}" width="560" '
        f'style="max-width:100%;height:auto" font-family="sans-serif" font-size="12" fill="currentColor">'
        f"<title>{escape(title)}</title><desc>{escape('; '.join(said) or 'no attempts')}</desc>"
        f"{drawn}</svg>"
    )


def table(frame: pd.DataFrame, *, caption: str, columns: Mapping[str, str] | None = None) -> str:
    """The frame as an HTML table; `columns` picks columns and gives their headings. Short cells have the class s."""
    names = columns or {str(name): str(name) for name in frame.columns}
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in names.values())
    body = []
    for row in frame.to_dict("records"):
        first, *rest = (_cell(text(row[name], name), name) for name in names)
        body.append(f'<tr><th scope="row"{first}</th>{"".join(f"<td{cell}</td>" for cell in rest)}</tr>')
    top = f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f"{top}<tbody>{''.join(body)}</tbody></table>"
