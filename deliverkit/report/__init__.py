"""A report for people who were not there: what is blocked, what bounced, what to do; as a page, a PDF and sheets."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from deliverkit.errors import FormatError, SchemaError
from deliverkit.report.content import Content, content
from deliverkit.report.masking import mask
from deliverkit.report.pages import html, pdf
from deliverkit.report.sheets import xlsx
from deliverkit.schema import ATTEMPTS

_NEEDS = ("port", "blocked", "origin", "outcome")

__all__ = ["Report", "Reports", "mask", "report", "reports"]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A finished report: `html` is the whole page; the PDF and the sheets are made when they are asked for."""

    html: str = field(repr=False)
    _content: Content = field(repr=False)

    def pdf(self) -> bytes:
        """The report as a tagged PDF (PDF/UA-1); raises DeliverkitError if typst is not installed."""
        return pdf(self._content)

    def xlsx(self) -> bytes:
        """A workbook with all rows, one sheet per frame; raises DeliverkitError if xlsxwriter is not installed."""
        return xlsx(self._content)

    def save(self, path: str | Path) -> Path:
        """Write `.html`, `.pdf` or `.xlsx` and return the path; raises FormatError for what cannot be written."""
        target = Path(path)
        makers = {".html": self.html.encode, ".htm": self.html.encode, ".pdf": self.pdf, ".xlsx": self.xlsx}
        if (make := makers.get(target.suffix.lower())) is None:
            raise FormatError(path, "a report is written as .html, .pdf or .xlsx")
        made = make()
        try:
            target.write_bytes(made)
        except OSError as problem:
            raise FormatError(path, f"cannot be written: {problem.strerror}") from None
        return target

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its styles must not reach the notebook, nor the notebook's reach it."""
        frame = 'sandbox="" title="Report" style="width:100%;height:40em;border:1px solid rgba(127,127,127,.5)"'
        return f'<iframe {frame} srcdoc="{escape(self.html)}"></iframe>'


class Reports(dict[str, Report]):
    """Reports by client; `unnamed` is the number of rows of mail without a client, which are in none of them."""

    unnamed: int = 0


def report(attempts: pd.DataFrame, *, title: str = "Did our mail leave, and did it arrive?",
           sending: str = "application", policy: str = "guide", provider: str | None = None,
           client: str | None = None, before: Any = None, mask_recipients: bool = True,
           date: Any = None) -> Report:  # fmt: skip
    """What is blocked, by whom, what bounced and why, and what to do: a `Report`.

    Takes `ATTEMPTS`, or `PROBES`, or both in one frame. Port figures come from the probes if there are any, else
    from the mail; bounces from the mail. `sending`, `policy` and `provider` are those of `choose_port`, which is
    asked once per network (`vantage`). `client` keeps the rows of one client and the probes that are nobody's.
    `before` is a frame of the period before, or the date at which this one is split: rows before it are compared
    with the rest. `date` is the day on the report (default: today, UTC); with it, equal data give equal bytes.
    Recipients are masked unless told otherwise. Raises SchemaError if the frame lacks `port`, `blocked`, `origin`
    or `outcome`, or has no rows.
    """
    ATTEMPTS.check(attempts, [*_NEEDS, *["client"] * (client is not None)])
    now, early = _split(attempts, before)
    unnamed = 0
    if client is not None:
        if not now["client"].eq(client).any():
            raise SchemaError(f"attempts: there is nothing to report, no row names the client {client!r}")
        unnamed, now, early = _unnamed(now, "client"), _of(now, "client", client), _of(early, "client", client)
    made = content(now, title, sending, policy, provider, early, mask_recipients, _time("date", date), unnamed)
    return Report(html(made), made)


def reports(attempts: pd.DataFrame, *, by: str = "client", before: Any = None, title: str = "Did our mail arrive?",
            **same: Any) -> Reports:  # fmt: skip
    """One report per client (or campaign, by another column of text), each from its own rows only: name -> `Report`.

    Takes what `report` takes. Probes without a client are nobody's: every report has them, as the measurement of
    the network. Other rows without a client are in none; `unnamed` of the result is their number. A client that is
    only in the period before gets no report.
    """
    if by not in ATTEMPTS.names:
        raise SchemaError(f"reports: by={by!r} is no column of attempts; client and campaign are")
    ATTEMPTS.check(attempts, [*_NEEDS, by])
    now, early = _split(attempts, before)
    names = sorted(map(str, now[by].dropna().unique()))
    made = Reports({name: report(_of(now, by, name), title=f"{title} {name}", before=_of(early, by, name), **same)
                    for name in names})  # fmt: skip
    made.unnamed = _unnamed(now, by)
    return made


def _split(attempts: pd.DataFrame, before: Any) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The rows of now and those of the period before; a row without a time is of now."""
    if before is None or isinstance(before, pd.DataFrame):
        return attempts, before if before is None else ATTEMPTS.check(before, _NEEDS)
    ATTEMPTS.check(attempts, ["time"])
    early = (pd.to_datetime(attempts["time"], utc=True) < _time("before", before)).to_numpy(bool)
    return attempts[~early], attempts[early]


def _time(name: str, value: Any) -> pd.Timestamp:
    """The moment meant, in UTC; now if there is none."""
    try:
        time = pd.Timestamp.now("UTC") if value is None else pd.Timestamp(value)
    except (ValueError, TypeError):
        raise SchemaError(f"report: {name}={str(value)[:40]!r} is no date; 2026-11-25 would be one") from None
    return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")


def _of(attempts: Any, by: str, name: str) -> Any:
    """The rows of one name and the probes that are nobody's; None of no frame."""
    if attempts is None:
        return None
    nobodys = attempts[by].isna() & attempts["origin"].eq("probe").fillna(False)
    return attempts[(attempts[by].eq(name).fillna(False) | nobodys).to_numpy(bool)]


def _unnamed(attempts: pd.DataFrame, by: str) -> int:
    return int((attempts[by].isna() & attempts["origin"].ne("probe").fillna(True)).sum())
