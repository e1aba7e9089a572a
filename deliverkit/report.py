"""One self-contained HTML page for people who were not there: what is blocked, what bounced, what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deliverkit import __version__, facts, svg
from deliverkit.egress import egress
from deliverkit.errors import FormatError, SchemaError
from deliverkit.outcomes import failures, outcomes
from deliverkit.rates import HEADINGS, block_rates, bounce_rates
from deliverkit.rules import choose_port
from deliverkit.schema import ATTEMPTS, PROBES, STEPS, counted

_ADDRESS = re.compile(r"(?:\"(?:[^\"\\\n]|\\.){0,64}\"|([^\s<>()\[\]:;,\"@])[^\s<>()\[\]:;,\"@]{0,63})@([\w.-]{1,255})")
_TABLE = {name: heading for name, heading in HEADINGS.items() if not name.startswith("by_")}
_EXAMPLE, _SHOWN = 160, 10  # characters of a reply and bounced recipients that are shown


def mask(text: Any) -> Any:
    """The text with every mail address reduced to its first letter and domain: a***@example.com."""
    return text if pd.isna(text) else _ADDRESS.sub(lambda found: f"{found[1] or ''}***@{found[2]}", str(text))


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report: `html` is the whole page, `save` writes it."""

    html: str

    def save(self, path: str | Path) -> Path:
        """Write the page and return its path; raises FormatError if it cannot be written or is not `.html`."""
        target = Path(path)
        if target.suffix.lower() not in (".html", ".htm"):
            raise FormatError(path, "a report is written as .html")
        try:
            target.write_text(self.html, encoding="utf-8")
        except OSError as problem:
            raise FormatError(path, f"cannot be written: {problem.strerror}") from None
        return target

    def _repr_html_(self) -> str:
        return self.html


def report(attempts: pd.DataFrame, *, title: str = "Did our mail leave, and did it arrive?",
           sending: str = "application", policy: str = "guide", provider: str | None = None,
           mask_recipients: bool = True) -> Report:  # fmt: skip
    """A page with key figures, block rates, who blocks, what bounced, the port to use and the method.

    Takes `ATTEMPTS`, or `PROBES`, or both in one frame. Port figures come from the probes if there are any,
    else from the mail; bounces from the mail. `sending`, `policy` and `provider` are those of `choose_port`,
    which is asked once per network (`vantage`). Recipients are masked unless told otherwise.
    Raises SchemaError if the frame lacks `port`, `blocked`, `origin` or has no rows.
    """
    ATTEMPTS.check(attempts, ["port", "blocked", "origin", "outcome", "category", "step", "text"])
    if attempts.empty:
        raise SchemaError("attempts: there is nothing to report, the frame has no rows")
    data = PROBES.build(attempts[[name for name in PROBES.names if name in attempts]])
    probed = data["origin"].eq("probe").fillna(False)
    doors, mail = data[probed] if probed.any() else data, data[~probed]
    hide = mask if mask_recipients else (lambda text: text)
    networks = [str(name) for name in doors["vantage"].dropna().unique()]
    keys = ["vantage", "port"] if len(networks) > 1 else ["port"]
    rates = block_rates(doors, keys)
    places = [(name, doors[doors["vantage"] == name]) for name in networks] if len(networks) > 1 else [("", doors)]
    words = {
        "title": title,
        "version": __version__,
        "advice": [(name, choose_port(sending, policy, provider, evidence=rows)) for name, rows in places],
        "period": data["time"].agg(["min", "max"]),
        "overall": next(iter(block_rates(doors.dropna(subset="port"), []).to_dict("records")), None),
        "probed": bool(probed.any()),
        "chart": Markup(svg.bars(rates, title="Share of attempts blocked", key=keys)),
        "table": Markup(svg.table(rates, caption="Block rates", columns={k: k for k in keys} | _TABLE)),
        "egress": egress(doors).to_dict("records") if doors["verdict"].notna().any() else None,
        "blocks": _reasons(doors[doors["blocked"].eq(True).fillna(False)], hide),
        "counts": data["origin"].value_counts().to_dict(),
        "skipped": int(data["attempted"].eq(False).fillna(False).sum()),
        "unknown": rates.attrs["unknown"],
        "mail": _mail(mail, hide) if len(mail) else None,
        "differs": facts.tables("guide")["differs"],
    }
    pages = Environment(loader=PackageLoader("deliverkit"), autoescape=True, undefined=StrictUndefined)
    pages.filters["show"] = svg.text
    return Report(pages.get_template("report.html").render(words))


def _reasons(failed: pd.DataFrame, hide: Any, most: int = 12) -> list[dict[str, Any]]:
    """Counts per category, largest first, with what it means, whether a port can cure it, and an example."""
    meanings = facts.table("categories").set_index("category")
    made = []
    for category, rows in failed.groupby("category"):
        said = rows["text"].dropna()
        example = hide(said.value_counts().index[0])[:_EXAMPLE] if len(said) else ""
        about = {str(name): value for name, value in meanings.loc[str(category)].items()}
        made.append(about | {"category": str(category).replace("_", " "), "count": len(rows), "example": example})
    return sorted(made, key=lambda row: (-row["count"], row["category"]))[:most]


def _mail(mail: pd.DataFrame, hide: Any) -> dict[str, Any]:
    """How messages ended: rates per client, never left against bounced, reasons, some recipients."""
    ends, failed = outcomes(mail), failures(mail)
    by = "client" if ends["client"].notna().any() else None
    bounced, unsent = ends[ends["final"] == "bounced"], ends[ends["final"].isin(["expired", "open"])]
    tried = counted(mail)
    far = tried["step"].map({step: i for i, step in enumerate(STEPS)}).groupby(tried["recipient"]).max()
    some = failed[failed["recipient"].isin(bounced["recipient"])].head(_SHOWN)
    doors, overall = block_rates(mail), bounce_rates(mail).to_dict("records")[0]
    return {
        "overall": overall,
        "answered": 0 if pd.isna(overall["rate"]) else overall["sent"] + overall["bounced"],
        "chart": Markup(svg.bars(bounce_rates(mail, by), title="Share of answered messages bounced", key=by or [])),
        "doors": Markup(svg.bars(doors, title="Share of attempts with mail that were blocked")) if len(doors) else "",
        "never_left": int((unsent["recipient"].map(far).fillna(0) < STEPS.index("relay")).sum()),
        "recipients": len(ends),
        "reasons": _reasons(failed, hide),
        "examples": [(hide(r.recipient), r.status_code, hide(r.text)) for r in some.itertuples()],
        "bounced": len(bounced),
    }
