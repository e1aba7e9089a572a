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
from deliverkit.advice import Advice
from deliverkit.egress import egress
from deliverkit.errors import FormatError, SchemaError
from deliverkit.outcomes import failures, outcomes
from deliverkit.rates import HEADINGS, block_rates, bounce_rates
from deliverkit.rules import choose_port
from deliverkit.schema import ATTEMPTS, STEPS

_ADDRESS = re.compile(r"(?:\"(?:[^\"\\\n]|\\.){0,64}\"|([^\s<>()\[\]:;,\"@])[^\s<>()\[\]:;,\"@]{0,63})@([\w.-]{1,255})")
_TABLE = {name: heading for name, heading in HEADINGS.items() if not name.startswith("by_")}
_EXAMPLE = 160  # characters of a reply that are shown


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
    probed = attempts["origin"].eq("probe").fillna(False)
    doors, mail = (attempts[probed] if probed.any() else attempts), attempts[~probed]
    hide = mask if mask_recipients else (lambda text: text)
    networks = [str(n) for n in doors["vantage"].dropna().unique()] if "vantage" in doors else []
    keys = ["vantage", "port"] if len(networks) > 1 else ["port"]
    rates = block_rates(doors, keys)
    everything = block_rates(doors, [])
    advice = _advice(doors, networks, sending=sending, policy=policy, provider=provider)
    words = {
        "title": title,
        "version": __version__,
        "advice": advice,
        "period": attempts["time"].agg(["min", "max"]) if "time" in attempts else None,
        "rates": rates,
        "overall": everything.to_dict("records")[0] if len(everything) else None,
        "chart": Markup(svg.bars(rates, title="Share of attempts blocked", key=keys)),
        "table": Markup(svg.table(rates, caption="Block rates", columns={k: k for k in keys} | _TABLE)),
        "egress": _egress(doors) if probed.any() and "verdict" in doors else None,
        "blocks": _reasons(doors[doors["blocked"].eq(True).fillna(False)], hide),
        "counts": attempts["origin"].value_counts().to_dict(),
        "skipped": int(attempts["attempted"].eq(False).fillna(False).sum()) if "attempted" in attempts else 0,
        "unknown": rates.attrs.get("unknown", 0),
        "mail": _mail(mail, hide) if len(mail) else None,
        "differs": facts.tables("guide")["differs"],
    }
    pages = Environment(loader=PackageLoader("deliverkit"), autoescape=True, undefined=StrictUndefined)
    pages.filters["show"] = svg.text
    return Report(pages.get_template("report.html").render(words))


def _advice(doors: pd.DataFrame, networks: list[str], **asked: Any) -> list[tuple[str, Advice]]:
    """What to do, once per network."""
    if len(networks) < 2:
        return [("", choose_port(evidence=doors, **asked))]
    return [(n, choose_port(evidence=doors[doors["vantage"] == n], **asked)) for n in networks]


def _egress(doors: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in egress(doors).to_dict("records")]


def _reasons(failed: pd.DataFrame, hide: Any, most: int = 12) -> list[dict[str, Any]]:
    """Counts per category, largest first, with what it means, whether a port can cure it, and an example."""
    meanings = facts.table("categories").set_index("category")
    made = []
    for category, rows in failed.dropna(subset=["category"]).groupby("category"):
        said = rows["text"].dropna()
        about = {str(name): value for name, value in meanings.loc[str(category)].items()}
        example = hide(said.value_counts().index[0])[:_EXAMPLE] if len(said) else ""
        made.append({"category": str(category).replace("_", " "), "count": len(rows), "example": example} | about)
    return sorted(made, key=lambda row: (-row["count"], row["category"]))[:most]


def _mail(mail: pd.DataFrame, hide: Any) -> dict[str, Any]:
    """How messages ended: rates per client, never left against bounced, reasons, some recipients."""
    ends = outcomes(mail)
    by = "client" if ends["client"].notna().any() else None
    bounced = ends[ends["final"].eq("bounced").fillna(False)]
    reached = mail["step"].map({step: i for i, step in enumerate(STEPS)})
    kept = mail.assign(reached=reached)[mail["attempted"].fillna(True).astype(bool)]
    last = kept.groupby("recipient")["reached"].max()
    unsent = ends[ends["final"].isin(["expired", "open"])]
    early = unsent["recipient"].map(last).fillna(0) < STEPS.index("relay")
    rates = bounce_rates(ends, by)
    said = mail.drop_duplicates("recipient", keep="last").set_index("recipient")
    shown = bounced.head(10)
    return {
        "overall": bounce_rates(ends).to_dict("records")[0],
        "chart": Markup(svg.bars(rates, title="Share of answered messages that bounced", key=by or [])),
        "never_left": int(early.sum()),
        "recipients": len(ends),
        "reasons": _reasons(failures(mail), hide),
        "examples": [
            (hide(r), code, hide(said["text"].get(r, ""))) for r, code in shown[["recipient", "status_code"]].values
        ],
        "bounced": len(bounced),
    }
