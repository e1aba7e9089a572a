"""What a report says: figures, sentences and tables as plain values, before they become a page, a PDF or sheets."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from deliverkit import __version__, facts, svg
from deliverkit.advice import Advice
from deliverkit.egress import egress
from deliverkit.errors import SchemaError
from deliverkit.outcomes import endings
from deliverkit.rates import block_rates, wilson
from deliverkit.report.masking import clean, clean_frame
from deliverkit.rules import choose_port
from deliverkit.schema import ATTEMPTS, OUTCOMES, PROBES, STEPS, Frame, counted
from deliverkit.sends import show_joined

_DOORS = ["vantage", "host", "port", "attempted", "blocked", "blocked_by", "category", "text", "recipient"]
_MAILED = {*_DOORS, "time", "origin", "client", "campaign", "outcome", "status_code", "step", "message_id", "queue_id"}
_MAIL = Frame("attempts", tuple(column for column in ATTEMPTS.columns if column.name in _MAILED))
_PROBED = {*_DOORS, "operator", "verdict", "failure", "banner"}
_PROBE = Frame("probes", tuple(column for column in PROBES.columns if column.name in _PROBED))
_TODO = ("invalid_recipient", "mailbox_unavailable", "never_left")  # keys of [todo] in templates/report.toml
_CURES = {"curable": "yes", "hardly": "indirect", "incurable": "no"}
_ROWS, _BARS, _NETWORKS, _NAME, _TEXT = 15, 12, 6, 60, 160  # what a reader reads; the workbook has all


@dataclass(frozen=True, slots=True)
class Content:
    """A report before it has a form: `document` in plain, cleaned values; `sheets` as whole frames, not yet cleaned."""

    document: dict[str, Any]
    sheets: dict[str, pd.DataFrame]
    made: pd.Timestamp
    masked: bool


@cache
def words() -> dict[str, Any]:
    """What the report says in words of its own: templates/report.toml."""
    return tomllib.loads((files("deliverkit") / "templates/report.toml").read_text("utf-8"))


class _Period:
    """The rows of one period, counted once: attempts at doors (probes, else mail), mail, and how messages ended."""

    def __init__(self, attempts: pd.DataFrame) -> None:
        probed = attempts["origin"].eq("probe").fillna(False).to_numpy(bool)
        self.probed = bool(probed.any())
        self.mail = _MAIL.build(attempts.loc[~probed, [name for name in _MAIL.names if name in attempts]])
        self.tried = counted(self.mail[[*_DOORS, "origin", "message_id"]])[_DOORS]
        probes = attempts.loc[probed, [name for name in _PROBE.names if name in attempts]]
        self.doors = counted(_PROBE.build(probes)) if self.probed else self.tried
        self.both = not self.mail["origin"].isin(["dsn", "arf"]).all()  # accepted mail leaves no bounce message
        self.ends = endings(self.mail)
        unsent = self.ends["final"].isin(["expired", "open"])
        self.ends["never_left"] = unsent & self.ends["far"].between(0, STEPS.index("relay") - 1)
        self.ends["untold"] = unsent & (self.ends["far"] < 0)
        failed = self.ends["final"].isin(["bounced", "expired"])
        why = pd.Series(self.mail["category"].array.take(self.ends["place"].to_numpy()))
        self.ends["reason"] = why.where(failed).str.replace("_", " ")
        lost = self.ends["never_left"] & (self.ends["final"] == "expired")
        self.ends["todo"] = why.where(failed).map(words()["todo"]).mask(lost, words()["todo"]["never_left"])
        total = block_rates(self.doors.dropna(subset="port"), [])[
            ["blocked", "attempts", "by_network", "by_server", "by_policy"]
        ].sum()
        self.figures = {str(name): int(n) for name, n in [*total.items(), *self.ended([]).iloc[0].items()]}

    def ended(self, by: list[str]) -> pd.DataFrame:
        """How many messages ended how, per group; bounced has its share of the answered, never left of the known."""
        flags = {word: self.ends["final"] == word for word in ("sent", "bounced", "expired", "open")}
        flags |= {"never_left": self.ends["never_left"], "known": ~self.ends["untold"] & self.both}
        data = self.ends[by].assign(messages=1, **{name: flag.astype("int64") for name, flag in flags.items()})
        sums = data.groupby(by, dropna=False).sum().reset_index() if by else data.sum().to_frame().T
        return sums.assign(answered=(sums["sent"] + sums["bounced"]) * self.both, told=sums["messages"] * self.both)


def _rated(sums: pd.DataFrame, name: str, hits: str, total: str) -> pd.DataFrame:
    low, high = wilson(sums[hits], sums[total])
    rate = sums[hits] / sums[total].where(sums[total] > 0)
    return sums.assign(**{f"{name}rate": rate, f"{name}low": low, f"{name}high": high})


@cache
def _fewest() -> int:
    return int(facts.table("thresholds").set_index("metric")["value"]["block_rate_fewest"])


def _share(hits: int, total: int) -> str:
    """A share as people read it, with its range; none where there are too few to say."""
    if total < _fewest():
        return f"{hits} of {total}: too few to say" if total else "–"
    return "{} ({} to {})".format(svg.text(hits / total, "rate"), *_range(hits, total))


def _range(hits: int, total: int) -> list[str]:
    return [svg.text(float(end), "low") for end in wilson(hits, total)]


def _counted(hits: int, total: int) -> str:
    """The same with its count: no share stands without."""
    return _share(hits, total) if total < _fewest() else f"{hits} of {total}: {_share(hits, total)}"


def compared(now: tuple[int, int], before: tuple[int, int]) -> str:
    """Whether a share (hits, total) is higher or lower than before, or shows no clear change.

    Decided by the 95 % interval of the difference, made of the two Wilson intervals: Newcombe's hybrid score
    method (1998, method 10), doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    if not now[1] or not before[1]:
        return "too few to say"
    (low, high), (old_low, old_high) = wilson(*now), wilson(*before)
    new, old = now[0] / now[1], before[0] / before[1]
    if new - old > np.hypot(new - low, old_high - old):
        return "higher"
    return "lower" if old - new > np.hypot(high - new, old - old_low) else "no clear change"


def _comparison(now: _Period, then: _Period) -> pd.DataFrame:
    """The figures of both periods; attempts of one kind, on the networks and ports that both measured."""
    tries = [p.doors if now.probed and then.probed else p.tried for p in (now, then)]
    doors = [block_rates(some, ["vantage", "port"]).set_index(["vantage", "port"]) for some in tries]
    common = doors[0].index.intersection(doors[1].index)
    both = [period.figures | {name: int(door.loc[common, name].sum()) for name in ("blocked", "attempts")}
            for period, door in zip((now, then), doors, strict=True)]  # fmt: skip
    rows = []
    for figure in words()["figure"]:
        (new, old) = ((one[figure["hits"]], one[figure["total"]]) for one in both)
        counts = {"now_count": new[0], "now_total": new[1], "before_count": old[0], "before_total": old[1]}
        said = {"now": _counted(*new), "before": _counted(*old), "change": compared(new, old)}
        rows.append({"figure": figure["name"], **said, **counts})
    return pd.DataFrame(rows)


def _reasons(rows: pd.DataFrame, masked: bool) -> pd.DataFrame:
    """Per category: count, whose fault, cure by a port, meaning, most frequent words; by fault, largest first."""
    made = []
    for _, about in facts.table("categories").iterrows():
        here = rows[rows["category"].eq(about["category"]).fillna(False)]
        said = here["text"].value_counts()
        frequent = here[here["text"].eq(said.index[0] if len(said) else "").fillna(False)]
        example = _said(frequent["text"].iloc[0], frequent["recipient"].iloc[0], masked) if len(frequent) else ""
        made.append({"whose": words()["fault"][about["fault"]], "category": about["category"].replace("_", " "),
                     "count": len(here), "cure": words()["cure"][about["bears_on_port"]], "meaning": about["meaning"],
                     "example": example, "fault": about["fault"]})  # fmt: skip
    frame = pd.DataFrame(made)
    frame["weight"] = frame.groupby("fault")["count"].transform("sum")
    frame = frame[frame["count"] > 0].sort_values(["weight", "fault", "count"], ascending=[False, True, False])
    return frame.drop(columns="weight")


def _said(text: str, recipient: Any, masked: bool) -> str:
    """The words of a server; masked also where it names the recipient without the domain."""
    local = "" if pd.isna(recipient) or not masked else str(recipient).rpartition("@")[0]
    shown = clean(str(text), masked)
    shown = re.sub(rf"(?<!\w){re.escape(local)}(?!\w)", f"{local[:1]}***", shown, flags=re.I) if local else shown
    return clean(shown, False, _TEXT)


def content(attempts: pd.DataFrame, title: str, sending: str, policy: str, provider: str | None,
            before: pd.DataFrame | None, masked: bool, made: pd.Timestamp, unnamed: int,
            client: str) -> Content:  # fmt: skip
    """Count everything once and put it into words, tables and frames; raises SchemaError if there are no rows."""
    if attempts.empty:
        raise SchemaError("attempts: there is nothing to report, the frame has no rows")
    now = _Period(attempts)
    networks = now.doors["vantage"].value_counts()
    keys = ["vantage", "port"] if len(networks) > 1 else ["port"]
    rates = block_rates(now.doors, keys)
    whose = now.doors["vantage"].fillna("")
    places = {str(name): now.doors[whose == name] for name in networks.index[:_NETWORKS]}
    places = places if len(networks) > 1 else {"": now.doors}
    advice = {name: choose_port(sending, policy, provider, evidence=rows) for name, rows in places.items()}
    failed = now.ends[now.ends["final"].isin(["bounced", "expired"])]
    told = now.mail[["category", "text", "recipient"]].iloc[failed["place"].to_numpy()]
    reasons = _reasons(told, masked)
    refused = _reasons(told[~failed["never_left"].to_numpy(bool)], masked).groupby("fault")["count"].sum()
    cures = reasons.groupby("cure")["count"].sum()
    figures = [(f["name"], now.figures[f["hits"]], now.figures[f["total"]]) for f in words()["figure"]]
    summary = pd.DataFrame(figures, columns=["figure", "count", "total"])
    sheets = {"summary": _rated(summary, "", "count", "total"), "block rates": rates}
    if now.probed and now.doors["verdict"].notna().any():
        sheets["egress"] = egress(now.doors)
    for name, by in (("per client", ["client"]), ("per campaign", ["client", "campaign"])):
        if now.ends[by[-1]].notna().any():
            sums = now.ended(by).sort_values("messages", ascending=False, kind="stable")
            sheets[name] = _rated(_rated(sums, "bounce_", "bounced", "answered"), "never_left_", "never_left", "known")
    shut = now.doors[now.doors["blocked"].fillna(False).astype(bool)]
    sheets |= {"reasons": reasons, "blocked by": _reasons(shut, masked)}
    then = _Period(before) if before is not None and len(before) else None
    if then:
        sheets["comparison"] = _comparison(now, then)
    names = [name for name in OUTCOMES.names if not (masked and name == "message_id")]
    sheets["outcomes"] = now.ends[[*names, "never_left", "reason", "todo"]]
    order = [*dict.fromkeys(words()["todo"].values())]
    todo = now.ends.dropna(subset=["todo"]).sort_values("todo", key=lambda what: what.map(order.index), kind="stable")
    sheets["to do"] = todo[["recipient", "client", "campaign", "reason", "todo"]]
    counts = now.ends["todo"].value_counts()
    gone, full, lost = (int(counts.get(words()["todo"][n], 0)) for n in _TODO)
    first, *_ = advice.values()
    origins = attempts["origin"].value_counts().items()
    values: dict[str, Any] = {
        **now.figures, "unknown": rates.attrs["unknown"], "portless": rates.attrs["portless"],
        "probed": now.probed, "mailed": len(now.mail), "both": now.both, "masked": masked, "unnamed": unnamed,
        "measured": "measured by probes" if now.probed else "seen from the mail itself", "failed": len(failed),
        "gone": gone, "full": full, "lost": lost, "compared": before is not None, "earlier": then is not None,
        **{name: int(cures.get(words()["cure"][cure], 0)) for name, cure in _CURES.items()},
        "early_span": "" if before is None else _span(before), "both_probed": bool(then and then.probed and now.probed),
        "fault": {name: int(refused.get(name, 0)) for name in words()["fault"]},
        "rows": ", ".join(f"{n} from {words()['origin'].get(origin, origin)}" for origin, n in origins),
        "skipped": len(attempts) - len(now.doors) - len(now.tried) * now.probed,
        "unaddressed": now.ends.attrs["unknown"], "joined": show_joined(attempts),
        "warnings": ". ".join(dict.fromkeys(w for a in advice.values() for w in a.warnings)),
        "first": next(iter(advice)),
        "others": "; ".join(f"“{p}” says {port or 'no port'} ({why})" for p, port, why in first.others),
        "rules": ", ".join(dict.fromkeys(rule for a in advice.values() for rule in a.rules)),
        "sources": "; ".join(dict.fromkeys(source for a in advice.values() for source in a.sources)),
    }  # fmt: skip
    drawn = {name: _named(frame, masked) for name, frame in sheets.items() if name != "outcomes"}
    document = {
        "title": clean(str(title), masked, 200), "made": f"{made:%Y-%m-%d}", "version": __version__,
        "client": clean(client, False, _NAME), "period": _span(attempts), **_worded(values, advice, drawn),
        "chart": _chart(f"Share of attempts turned away, {values['measured']}", drawn["block rates"], keys),
    }  # fmt: skip
    return Content(_cleaned(document, masked), sheets, made, masked)


def _span(attempts: pd.DataFrame) -> str:
    times = pd.to_datetime(attempts["time"], utc=True) if "time" in attempts else pd.Series(pd.NaT, attempts.index)
    return " to ".join(dict.fromkeys(f"{time:%Y-%m-%d}" for time in (times.min(), times.max()) if pd.notna(time)))


def _named(frame: pd.DataFrame, masked: bool) -> pd.DataFrame:
    """The frame with the names in it short enough to be read."""
    names = [name for name in ("vantage", "client", "campaign", "recipient") if name in frame]
    return frame.assign(**clean_frame(frame[names], masked, _NAME))


def _worded(values: dict[str, Any], advice: dict[str, Advice], frames: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Tiles, what to do and sections, as templates/report.toml has them; plain text, which a page escapes."""
    env = Environment(undefined=StrictUndefined, autoescape=False)
    env.filters["n"] = lambda count, noun: f"{count} {noun}{'' if count == 1 else 's'}"

    def said(text: str) -> str:
        return env.from_string(text).render(values)

    def holds(part: Mapping[str, Any]) -> bool:
        return bool(env.compile_expression(part.get("when", "true"))(**values))

    def block(part: dict[str, Any]) -> dict[str, Any]:
        if "table" in part:
            return {"table": _table(said(part["caption"]), part["head"], frames[part["table"]])}
        if "links" in part:
            return {"links": [{"name": r["source"], "url": r["url"], "text": f"{r['guide']}: {r['sources_say']}"}
                              for r in facts.tables("guide")[part["links"]]]}  # fmt: skip
        lists = {"list": [line for line in map(said, part["list"]) if line]} if "list" in part else {}
        return lists or ({"terms": part["terms"]} if "terms" in part else {"text": said(part["text"])})

    tiles, changes = [], frames.get("comparison", pd.DataFrame(columns=["figure"])).set_index("figure")
    figures = [figure for figure in words()["figure"] if values[figure["total"]]] or words()["figure"]
    for figure in figures[:3]:
        name, hits, total = figure["name"], values[figure["hits"]], values[figure["total"]]
        few = total < _fewest()
        note = f"{hits} of {total} {figure['of']}" if total else said(figure["nothing"])
        if total:
            note += ": too few to say" if few else ", likely between {} and {}".format(*_range(hits, total))
        if name in changes.index:
            note += f". Before: {changes['before'][name]}: {changes['change'][name]}"
        value = "–" if not total else f"{hits} of {total}" if few else svg.text(hits / total, "rate")
        tiles.append({"label": name, "value": value, "note": note})
    sections = []
    for part in filter(holds, words()["section"]):
        shown = [block(b) for b in part["block"] if "table" not in b or len(frames.get(b["table"], ()))]
        sections.append({"heading": part["heading"], "blocks": shown})
    actions = [{"where": "", **a, "do": said(a["do"])} for a in words()["action"] if holds(a)]
    return {"tiles": tiles, "todo": _ports(advice) + actions, "sections": sections}


def _ports(advice: Mapping[str, Advice]) -> list[dict[str, str]]:
    """The port to use and what to try next, said once for all networks with the same answer."""
    made: dict[str, dict[str, str]] = {}
    for network, a in advice.items():
        who, do, why = "Your email engineer", a.headline, f"{a.reason[:1].upper()}{a.reason[1:]}."
        if a.port is None:
            who, do = "Your email engineer, with your internet or hosting provider", f"{do} Send by {a.ladder[-1]}."
        elif len(a.ladder) > 1:
            why += f" If that fails, in this order: {', then '.join(map(str, a.ladder[1:]))}."
        item = made.setdefault(f"{do} {why}", {"who": who, "do": do, "why": why, "where": ""})
        item["where"] = ", ".join(filter(None, (item["where"], clean(network, False, _NAME))))
    return list(made.values())


def _table(caption: str, heads: Mapping[str, str], frame: pd.DataFrame) -> dict[str, Any]:
    """The first rows of the columns that are there; numbers stand right, `words` is what a server said."""
    if "messages" in frame:
        for name, hits, total in (("refused", "bounced", "answered"), ("stuck", "never_left", "known")):
            frame = frame.assign(**{name: [_share(*pair) for pair in zip(frame[hits], frame[total], strict=True)]})
    head = {name: heading for name, heading in heads.items() if name in frame}
    rows = [[svg.text(row[name], name).replace("_", " " if name == "verdict" else "_") for name in head]
            for row in frame.head(_ROWS).to_dict("records")]  # fmt: skip
    numbers = [i for i, n in enumerate(head) if n != "port" and pd.api.types.is_numeric_dtype(frame[n].dtype)]
    quoted, left = [i for i, n in enumerate(head) if n == "example"], len(frame) - len(rows)
    return {"caption": caption, "head": list(head.values()), "rows": rows, "numbers": numbers,
            "words": quoted, "left": left}  # fmt: skip


def _chart(title: str, rates: pd.DataFrame, keys: list[str]) -> dict[str, Any]:
    """Bars as SVG and as plain values; of too many groups those with most attempts."""
    shown, bars = rates.loc[rates["attempts"].nlargest(_BARS).index].sort_index(), []
    for row in shown.to_dict("records"):
        label = ", ".join(f"port {svg.text(row[key])}" if key == "port" else svg.text(row[key]) for key in keys)
        span = f"{svg.text(row['low'], 'low')} to {svg.text(row['high'], 'high')}"
        bar = {"label": label, "colour": svg.colour(row["port"]), "hollow": svg.text(row["verdict"]) == "too_few"}
        bar |= {"value": svg.text(row["rate"], "rate"), "count": f"{row['blocked']} of {row['attempts']} ({span})"}
        bars.append(bar | {name: row[name] for name in ("rate", "low", "high")})
    said = "; ".join(f"{bar['label']}: {bar['value']}, {bar['count']}" for bar in bars) or "no attempt names a port"
    drawn = Markup(svg.bars(shown, title=title, key=keys))
    return {"title": title, "bars": bars, "said": said, "svg": drawn, "left": len(rates) - len(shown)}


def _cleaned(value: Any, masked: bool) -> Any:
    """The last gate: every text of the document passes here, wherever it came from."""
    if isinstance(value, dict):
        return {name: _cleaned(inner, masked) for name, inner in value.items()}
    if isinstance(value, list):
        return [_cleaned(inner, masked) for inner in value]
    return clean(value, masked, 2000) if isinstance(value, str) and not isinstance(value, Markup) else value
