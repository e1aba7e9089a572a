"""Why mail bounced: reasons, whose fault they are, and the evidence behind any row."""

from __future__ import annotations

from typing import Any

import pandas as pd

from deliverkit import facts, svg
from deliverkit.classify import explain
from deliverkit.outcomes import failures
from deliverkit.rates import starts
from deliverkit.report.pages import page_of
from deliverkit.samples import sample
from deliverkit.schema import ATTEMPTS
from deliverkit.svg import text
from deliverkit.widgets.parts import ROWS, box, choice, fill, finder, values, view

FAULTS = {  # whose fault -> what it means, and its colour
    "port": ("the port, the connection or the login", svg.PALETTE[25]),
    "list": ("the list: addresses that do not exist or are full", svg.PALETTE[465]),
    "reputation": ("the sender's reputation or identity", svg.PALETTE[2525]),
    "content": ("the message itself", svg.PALETTE[587]),
    "receiver": ("the receiver's own rule or fault", svg.OTHER),
    "unknown": ("nobody can say from what was read", svg.OTHER),
}
_KEYS = {"category": "reason", "fault": "whose fault", "operator": "operator", "client": "client"}
_KEYS |= {"campaign": "campaign", "vantage": "network", "port": "port", "status_code": "status code", "day": "day"}
_FILTERS = ("fault", "operator", "client")
_EVIDENCE = ("recipient", "sender", "host", "port", "step", "reply_code", "status_code", "text", "source", "line")


def explore_bounces(attempts: pd.DataFrame | None = None) -> Any:
    """A box to see why messages failed: by reason, fault, operator, client, time, and the evidence of each message.

    Takes `ATTEMPTS`; without a frame the sample campaign. A message counts once for each recipient. `grouping`,
    `fault`, `operator` and `client` are dropdowns, `row` one of the failed messages that fit them; `view.value` is the
    HTML of chart and table, `evidence.value` that of the chosen message. Raises SchemaError if a column is missing.
    """
    attempts = ATTEMPTS.check(sample("mail") if attempts is None else attempts, ["outcome", "category", "rule", "text"])
    failed = failures(attempts)
    faults = facts.table("categories").set_index("category")["fault"]
    failed = failed.assign(fault=failed["category"].map(faults).fillna("unknown"))
    if "time" in failed and len(failed):
        failed = failed.assign(day=starts(failed["time"], "day"))
    keys = [name for name in _KEYS if name in failed and failed[name].notna().any()]
    sums = failed.groupby(keys, dropna=False, observed=True).size().reset_index(name="n") if keys else pd.DataFrame()
    grouping = choice("grouping", "Group by", [(_KEYS[name], name) for name in keys] or [("reason", "category")])
    picks = {n: choice(n, _KEYS[n].capitalize(), [("all", ""), *values(failed, n)]) for n in _FILTERS}
    row, place, shown = choice("row", "Message", [("none", -1)]), view(), view()

    find, count = finder(failed, picks), finder(sums, picks)

    def show(_: Any = None) -> None:
        fill(place, draw)
        found = find()
        places = found[:ROWS]
        labels = [_label(told) for told in failed.iloc[places].to_dict("records")]
        listed = f"choose one of {len(found)}" + (f", {len(places)} are listed" if len(found) > len(places) else "")
        row.options = [(listed, -1), *zip(labels, places.tolist(), strict=True)]

    def draw() -> str:
        some = sums.iloc[count()]
        if not len(some):
            return "<p>No message failed.</p>"
        key = grouping.value
        counted = some.groupby(key, dropna=False)["n"].sum()
        counted = counted.sort_index() if key == "day" else counted.sort_values(ascending=False, kind="stable")
        title = f"Failed messages by {_KEYS[key]}"
        told = {_word(value): int(n) for value, n in counted.head(ROWS).items()}
        whose = dict(zip(map(_word, faults.index), faults, strict=True)) if key == "category" else {}
        paint = {word: FAULTS.get(whose.get(word, word), ("", svg.OTHER))[1] for word in told}
        table = pd.DataFrame({"what": [*told], "messages": [*told.values()]})
        headings = {"what": _KEYS[key], "messages": "messages"}
        if key in ("category", "fault"):
            table["fault"] = [FAULTS.get(whose.get(word, word), ("", ""))[0] for word in told]
            headings["fault"] = "whose fault" if key == "category" else "that is"
        groups = f"{len(table)} of {len(counted)} groups"
        caption = f"{title}: {counted.sum()} messages, bounced or given up, {groups}"
        return svg.counts(told, title=title, paint=paint) + svg.table(table, caption=caption, columns=headings)

    def detail(_: Any = None) -> None:
        fill(shown, lambda: _evidence(failed.iloc[row.value]) if row.value is not None and row.value >= 0 else "")

    for control in (grouping, *picks.values()):
        control.observe(show, "value")
    row.observe(detail, "value")
    show()
    rows = [[grouping, *(control for control in picks.values() if len(control.options) > 2)], place, row, shown]
    return box("bounces", rows, grouping=grouping, row=row, view=place, evidence=shown, **picks)


def _word(value: Any) -> str:
    return text(value).replace("_", " ")


def _label(row: dict[Any, Any]) -> str:
    said = text(row["text"]) if isinstance(row["text"], str) else ""
    return f"{text(row.get('recipient'))} · {_word(row['category'])} · {said[:60]}"


def _evidence(row: pd.Series[Any]) -> str:
    """What was read of one message, and the rule that said what it means."""
    known = {name: text(row[name]) for name in (*_EVIDENCE, "field", "matched") if name in row and pd.notna(row[name])}
    said = explain(row["rule"]) if isinstance(row["rule"], str) else {}
    found, sure = (known.pop(name, "") for name in ("field", "matched")), row.get("confidence", pd.NA)
    said |= dict(zip(("field", "matched"), found, strict=True)) | ({"sure": f"{sure:.0%}"} if pd.notna(sure) else {})
    at = known.get("text", "").lower().find(said["matched"]) if said["matched"] else -1
    whose = FAULTS.get(said.get("fault", ""), ("", ""))[0]
    hit = (at, at + len(said["matched"])) if at >= 0 else (0, 0)
    return page_of("evidence.html", category=_word(row["category"]), read=known, said=said, whose=whose, hit=hit)
