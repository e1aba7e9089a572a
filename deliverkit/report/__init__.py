"""A report for people who were not there: what is blocked, what bounced, what to do; as a page, a PDF and sheets."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from deliverkit.errors import FormatError, SchemaError
from deliverkit.report.content import Content, content
from deliverkit.report.masking import clean_frame, mask
from deliverkit.report.pages import page_of, pdf
from deliverkit.report.sheets import xlsx
from deliverkit.schema import ATTEMPTS

_TITLE = "Did our mail leave, and did it arrive?"
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

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The frames behind the report, as the workbook has them: summary, block rates, per client, reasons, ..."""
        return {name: clean_frame(frame, self._content.masked) for name, frame in self._content.sheets.items()}

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its styles must not reach the notebook, nor the notebook's reach it."""
        frame = 'sandbox="" title="Report" style="width:100%;height:40em;border:1px solid rgba(127,127,127,.5)"'
        return f'<iframe {frame} srcdoc="{escape(self.html)}"></iframe>'


class Reports(dict[str, Report]):
    """Reports by client; `unnamed` is the number of rows of mail without a client, which are in none of them."""

    unnamed: int = 0

    def save(self, path: str | Path) -> dict[str, Path]:
        """Write each beside `path` under its name: report.pdf becomes report-NAME.pdf; raises as `Report.save` does."""
        base, used, made = Path(path), set[str](), {}
        for name, one in self.items():
            plain = re.sub(r"[^\w]+", "-", name).strip("-")[:60] or "unnamed"
            tries = (plain if n == 1 else f"{plain}-{n}" for n in count(1))  # names that differ in signs only
            plain = next(each for each in tries if each.casefold() not in used)
            used.add(plain.casefold())
            made[name] = one.save(base.with_stem(f"{base.stem}-{plain}"))
        return made


def report(attempts: pd.DataFrame, *, client: str | None = None, before: Any = None, **asked: Any) -> Report:
    """What is blocked, by whom, what bounced and why, and what to do: a `Report`.

    Takes `ATTEMPTS`, or `PROBES`, or both in one frame. Port figures come from the probes if there are any, else from
    the mail; bounces from the mail. `client` keeps the rows of one client and the probes that are nobody's. `before` is
    a frame of the period before, or the date at which this one is split: rows before it are compared with the rest.
    `asked`: title; sending, policy and provider, those of `choose_port`, which is asked once per network (`vantage`);
    `mask_recipients` (True); `date`, the day on the report (default: today, UTC): with it, equal data give equal bytes.
    Raises SchemaError if the frame lacks `port`, `blocked`, `origin` or `outcome`, no rows, or none before `before`.
    """
    ATTEMPTS.check(attempts, [*_NEEDS, *["client"] * (client is not None)])
    now, early = _split(attempts, before)
    if client is None:
        return _report(now, early, **asked)
    if not now["client"].eq(client).any():
        known = ", ".join(sorted(map(str, now["client"].dropna().unique()))) or "none"
        raise SchemaError(f"attempts: no row names the client {client!r}; there are: {known[:500]}")
    return _report(_of(now, "client", client), _of(early, "client", client), client, _unnamed(now, "client"), **asked)


def reports(attempts: pd.DataFrame, *, by: str = "client", before: Any = None, **asked: Any) -> Reports:
    """One report per client (or campaign, by another column of text), each from its own rows only: name -> `Report`.

    Takes what `report` takes. Probes without a client are nobody's: every report has them, as the measurement of
    the network, without the words of the servers. Other rows without a client are in none; `unnamed` of the result is
    their number. A client that is only in the period before gets no report. Raises SchemaError if no row has a name,
    or if one name belongs to several clients.
    """
    if by not in ATTEMPTS.names:
        raise SchemaError(f"reports: by={by!r} is no column of attempts; client and campaign are")
    ATTEMPTS.check(attempts, [*_NEEDS, by])
    now, early = _split(attempts, before)
    names = sorted(map(str, now[by].dropna().unique()))
    if not names:
        raise SchemaError(f"reports: no row names a {by}; a send list gives it (dk.attach_sends, --sends)")
    if by != "client" and "client" in now:
        shared = now.groupby(by)["client"].nunique()
        if (shared > 1).any():
            name = str(shared.idxmax())
            raise SchemaError(f"reports: the {by} {name!r} belongs to several clients; report on one client at a time")
    made = Reports({name: _report(_of(now, by, name), _of(early, by, name), name, **asked) for name in names})
    made.unnamed = _unnamed(now, by)
    return made


def _report(now: pd.DataFrame, early: pd.DataFrame | None, client: str = "", unnamed: int = 0, *, title: str = _TITLE,
            sending: str = "application", policy: str = "guide", provider: str | None = None,
            mask_recipients: bool = True, date: Any = None) -> Report:  # fmt: skip
    day = _time("date", date)
    made = content(now, title, sending, policy, provider, early, mask_recipients, day, unnamed, client)
    return Report(page_of("report.html", **made.document), made)


def _split(attempts: pd.DataFrame, before: Any) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The rows of now and those of the period before; a row without a time is of now."""
    if before is None or isinstance(before, pd.DataFrame):
        return attempts, before if before is None else ATTEMPTS.check(before, _NEEDS)
    ATTEMPTS.check(attempts, ["time"])
    times, at = pd.to_datetime(attempts["time"], utc=True), _time("before", before)
    early = (times < at).to_numpy(bool)
    if len(early) and (early.all() or not early.any()):
        where = "before" if not early.any() else "from then on"
        data = f"the data go from {str(times.min())[:10]} to {str(times.max())[:10]}"
        raise SchemaError(f"report: nothing to compare at {at:%Y-%m-%d}, there are no rows {where}; {data}")
    return attempts[~early], attempts[early]


def _time(name: str, value: Any) -> pd.Timestamp:
    """The moment meant, in UTC; now if there is none. Text is ISO 8601: what 1/11 means is a matter of place."""
    iso = not isinstance(value, str) or re.match(r"\d{4}-\d\d-\d\d", value)
    time: Any = pd.Timestamp.now("UTC") if value is None else pd.NaT
    with suppress(ValueError, TypeError):
        time = pd.Timestamp(value) if iso and value is not None else time
    if pd.isna(time):
        raise SchemaError(f"report: {name}={str(value)[:40]!r} is no date; 2026-11-25 would be one")
    made: pd.Timestamp = time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
    return made


def _of(attempts: Any, by: str, name: str) -> Any:
    """The rows of one name and the probes that are nobody's, these without words: a server may name its owner."""
    if attempts is None:
        return None
    ATTEMPTS.check(attempts, [by])
    nobodys = (attempts[by].isna() & attempts["origin"].eq("probe").fillna(False)).to_numpy(bool)
    keep = attempts[by].eq(name).fillna(False).to_numpy(bool) | nobodys
    words = {word: attempts[word].mask(nobodys) for word in ("text", "banner") if word in attempts}
    return attempts.assign(**words)[keep]


def _unnamed(attempts: pd.DataFrame, by: str) -> int:
    return int((attempts[by].isna() & attempts["origin"].ne("probe").fillna(True)).sum())
