"""A report for people who were not there: chosen, looked at and downloaded without a line of code."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import Any

import ipywidgets as w
import pandas as pd

from deliverkit import facts
from deliverkit.report import Report, report
from deliverkit.rules import POLICIES, SENDING
from deliverkit.samples import sample
from deliverkit.schema import ATTEMPTS
from deliverkit.widgets.parts import box, choice, control, fill, preset, values, view

_TYPES = {
    "html": "text/html",
    "pdf": "application/pdf",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


def report_builder(attempts: pd.DataFrame | None = None, **asked: Any) -> Any:
    """A box to make a report: for one client or all, of one period, against the period before, as HTML, PDF or XLSX.

    Takes `ATTEMPTS` or `PROBES`; without a frame the sample campaign. `asked` fills in title, sending, policy,
    provider, client and before (a date). `make` builds it, `box.report` is the `Report`, and the view holds a link to
    download it and a preview. Nothing is written to a disk. Raises SchemaError if a column is missing.
    """
    attempts = ATTEMPTS.check(sample() if attempts is None else attempts, ["port", "blocked", "origin"])
    providers = facts.table("esp_ports")["provider"].drop_duplicates()
    ask = {
        "title": control(w.Text, "title", "Title", value="Did our mail leave, and did it arrive?"),
        "client": choice("client", "For", [("all clients", ""), *values(attempts, "client")]),
        "sending": choice("sending", "Mail is sent by", SENDING, "application"),
        "provider": choice("provider", "Provider", [("none, or not listed", ""), *sorted(providers)]),
        "policy": choice("policy", "Whose rules", POLICIES),
        "before": control(
            w.Text, "before", "Compare at a date", placeholder="before 2026-11-01 and from then on, for example"
        ),
        "mask_recipients": control(w.Checkbox, "mask", "Mask recipients", value=True),
        "form": choice("form", "As", list(_TYPES)),
    }
    if wrong := set(asked) - set(ask):
        raise TypeError(f"report_builder does not know {sorted(wrong)[0]!r}")
    for name, value in asked.items():
        preset(ask[name], value)
    make, place = control(w.Button, "make", "Make the report"), view()

    def build(_: Any) -> None:
        place.value = '<p role="status">Making it …</p>'
        fill(place, draw)

    def draw() -> str:
        given: dict[str, Any] = {name: ask[name].value or None for name in ("client", "provider", "before")}
        plain: dict[str, Any] = {name: ask[name].value for name in ("title", "sending", "policy", "mask_recipients")}
        made.report = done = report(attempts, **plain, **given)
        return _link(done, ask["form"].value, given["client"] or "all") + done._repr_html_()

    make.on_click(build)
    rows = [[*ask.values()], make, place]
    made = box("report", rows, make=make, view=place, report=None, **ask)
    return made


def _link(done: Report, form: str, client: str) -> str:
    """The report as a link that holds it: nothing is written, and the page needs no server for it."""
    data = {"html": lambda: done.html.encode(), "pdf": done.pdf, "xlsx": done.xlsx}[form]()
    name = "".join(c if c.isalnum() else "-" for c in f"deliverkit-{client}") + f".{form}"
    size = f"{len(data) / 1000:.0f} kB"
    url = f"data:{_TYPES[form]};base64,{b64encode(data).decode()}"
    return f'<p><a download="{escape(name)}" href="{url}">Download {escape(name)}</a> ({size})</p>'
