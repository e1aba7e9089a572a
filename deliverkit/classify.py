"""What a row means: category, kind, blocked, blocked_by, and the rule that said so.

Rules are rows of `deliverkit/facts`, asked in this order; the first that fits decides and leaves its id:
outcome passed; hints of the reader that settle it; what a probe found; words of the far end (its
operator's own rules first); other hints; its reply codes, again the operator's meaning first.
Text comes before code because the code lies more often (550 5.1.1 for "too many recipients").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

import pandas as pd

from deliverkit import facts
from deliverkit.errors import FactsError
from deliverkit.schema import ATTEMPTS, Frame

_KEYS = ("outcome", "hint", "verdict", "failure", "operator", "step", "reply_code", "status_code", "text")
_ADDRESS = re.compile(r"[^\s<>@]{1,64}@[^\s<>@,;:)]{1,255}")


class _Rule(NamedTuple):
    id: str
    category: str
    kind: str
    blocked: bool | None
    blocked_by: str | None
    step: str | None


def classify(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, frame: Frame = ATTEMPTS) -> pd.DataFrame:
    """Build the frame and decide what each row means.

    `rows` are those of `frame`, as mappings or as a frame, with an optional `hint` beside its columns: a
    word for what only the reader knows (facts/hints.csv). Fills `operator`, `step` (both where missing),
    `category`, `kind`, `blocked`, `blocked_by` and `rule`; `text` is cut at 2,000 characters.
    Raises SchemaError for an unknown column.
    """
    data = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame.from_records(list(rows))
    made = frame.build(data.drop(columns=["hint"], errors="ignore"))
    made["text"] = made["text"].str.slice(0, 2000)
    made["operator"] = made["operator"].fillna(_operators(made))
    keys = made.reindex(columns=list(_KEYS))
    keys["hint"] = data["hint"].array if "hint" in data else ""
    keys = keys.astype("string").fillna("")
    keys.loc[keys["outcome"] == "passed", "text"] = ""  # thanks and queue ids: nothing to be learnt
    group = keys.groupby(list(_KEYS), sort=False).ngroup()
    decided = [_decide(*key) for key in keys[~group.duplicated()].itertuples(index=False, name=None)]
    words = pd.DataFrame.from_records(decided, columns=list(_Rule._fields)).take(group.to_numpy())
    for name in _Rule._fields:
        made["rule" if name == "id" else name] = words[name].array
    return frame.build(_refused(made))


def _decide(outcome: str, hint: str, verdict: str, failure: str, operator: str, step: str,
            reply_code: str, status_code: str, text: str) -> _Rule:  # fmt: skip
    hints = _table("hints")
    if settled := hints.get((hint, "true")):
        rule: _Rule | None = settled
    elif verdict:
        rule = _probe_rule(verdict, failure, operator, text)
    elif outcome == "passed":
        rule = _rule("outcome:passed", {"category": "not_a_failure", "step": "inbox"})
    else:
        rule, hinted = match_text(text, operator), hints.get((hint, "false"))
        if rule and rule.id.startswith("text:no-answer"):  # silence until the end is what expired means
            rule = hinted or hints.get((hint, "silent")) or rule
        rule = rule or hinted or _by_code(operator, reply_code, status_code)
    rule = rule or _rule("default:unknown", {"category": "unknown"})
    rule = rule._replace(step=step or rule.step)
    if rule.category == "connection" and rule.step in ("relay", "inbox"):
        return rule._replace(blocked=False, blocked_by=None)  # the session was up: no door was shut
    return rule


def match_text(text: str, operator: str = "") -> _Rule | None:
    """The first pattern that fits the words of a reply, the operator's own patterns first."""
    plain = _ADDRESS.sub("@", " ".join(text.lower().split()))  # whose address says nothing
    return _match(plain, operator) if plain else None


@lru_cache(maxsize=65536)
def _match(plain: str, operator: str) -> _Rule | None:
    asked = [*_patterns().get(operator, ()), *_patterns()["any"]]
    return next((rule for pattern, rule in asked if pattern.search(plain)), None)


def _probe_rule(verdict: str, failure: str, operator: str, text: str) -> _Rule | None:
    """A probe's failure decides; only where a server refused do its words say more."""
    said = match_text(text, operator) if verdict in ("rejected", "deferred") else None
    if said and said.category in ("reputation_block", "rate_limited", "relay_or_login", "tls"):
        return said
    found = _table("probe_failures")
    return found.get((verdict, failure)) or found.get((verdict, ""))


@cache
def _by_code(operator: str, reply_code: str, status_code: str) -> _Rule | None:
    named = [_table("reply_codes").get((operator, reply, status_code)) for reply in (reply_code, "")]
    detail, keys = status_code.partition(".")[2], [("", reply_code)]
    if detail != "0.0":  # which says nothing
        keys = [(f"x.{detail}", ""), *keys, (f"x.{detail.partition('.')[0]}.x", "")]
    return next(filter(None, named + [_table("status_codes").get(key) for key in keys]), None)


@cache
def _categories() -> dict[str, dict[str, Any]]:
    return {row["category"]: row for row in _records("categories")}


def _records(name: str) -> list[dict[str, Any]]:
    """A facts table as mappings; empty cells are None."""
    table = facts.table(name).astype(object)
    return [{str(k): v for k, v in r.items()} for r in table.where(table.notna(), None).to_dict("records")]


def _rule(id: str, row: Mapping[str, Any]) -> _Rule:
    row = _categories()[row["category"]] | {name: value for name, value in row.items() if value}
    blocked = {"true": True, "false": False}.get(row["blocked"])
    return _Rule(id, row["category"], row["kind"], blocked, row["blocked_by"] if blocked else None, row["step"])


@cache
def _patterns() -> dict[str, list[tuple[re.Pattern[str], _Rule]]]:
    made: dict[str, list[tuple[re.Pattern[str], _Rule]]] = {}
    for row in _records("bounce_patterns"):
        made.setdefault(row["provider"], []).append((re.compile(row["pattern"]), _rule(row["id"], row)))
    return made


_TABLES = {  # facts table -> the word its rule ids begin with, and its key columns
    "hints": ("hint", ("hint", "first")),
    "probe_failures": ("probe", ("verdict", "failure")),
    "status_codes": ("code", ("status_code", "reply_code")),
    "reply_codes": ("code", ("provider", "code", "enhanced")),
}


@cache
def _table(name: str) -> dict[tuple[str, ...], _Rule]:
    return {key: rule for key, rule, _ in _ruled(name)}


def _ruled(name: str) -> Iterator[tuple[tuple[str, ...], _Rule, dict[str, Any]]]:
    """Key, rule and row of a facts table."""
    prefix, columns = _TABLES[name]
    words = {w: c for c, row in _categories().items() for w in (row["code_words"] or "").split("|") if w}
    for fact in _records(name):
        row, key = fact, tuple(fact[column] or "" for column in columns)
        if name == "reply_codes":  # what one operator means by a code; the general meanings are status_codes
            if key[0] in ("any", "IANA registry") or not key[2]:
                continue
            key = (key[0].split()[0].lower(), *key[1:])
            row = {"category": words[row["category"].split("|")[0]]}
        id = ":".join((prefix, *filter(None, (k for k in key if k not in ("true", "false")))))
        yield key, _rule(id, row), fact


@cache
def _facts() -> dict[str, dict[str, Any]]:
    """Rule id -> the row of the facts it stands for."""
    patterns = {row["id"]: row | {"table": "bounce_patterns"} for row in _records("bounce_patterns")}
    ruled = ((name, rule, row) for name in _TABLES for _, rule, row in _ruled(name))
    return {rule.id: row | {"table": name, "category": rule.category} for name, rule, row in ruled} | patterns


def explain(rule: str) -> dict[str, Any]:
    """What stands behind an id of the column `rule`: the facts row with its source, and what its category means.

    Keys: rule, table, category, meaning, fault (port, list, reputation, content, receiver, none, unknown), because
    (the pattern, the code or the finding that the rule looks for), example, source, noted, evidence; None where the
    table has none. Raises FactsError for an id that is not in the facts.
    """
    own = {"outcome:passed": "not_a_failure", "default:unknown": "unknown"}
    row = {"table": "categories"} | _categories()[own[rule]] if rule in own else _facts().get(rule)
    if row is None:
        raise FactsError(f"there is no rule {rule!r}")
    about = {name: row.get(name) for name in ("table", "example", "noted", "evidence")}
    about |= {"because": row.get("pattern") or row.get("meaning") or rule, "source": row.get("source")}
    category = _categories()[row["category"]]
    return {"rule": rule, **about} | {name: category[name] for name in ("category", "meaning", "fault")}


def _operators(made: pd.DataFrame) -> pd.Series[Any]:
    """Who runs the far end: by the host's name, else by the recipient's domain."""
    domains = dict(zip(facts.table("operators")["domain"], facts.table("operators")["operator"], strict=True))

    @cache
    def operator(name: str) -> str | None:
        labels = name.lower().rstrip(".").split(".")
        return next((domains[d] for i in range(len(labels)) if (d := ".".join(labels[i:])) in domains), None)

    names = made["host"].fillna(made["recipient"].str.replace(r".*@", "", regex=True))
    return names.map(operator, na_action="ignore").astype("string")


def _refused(made: pd.DataFrame) -> pd.DataFrame:
    """Lay a refused connection at the server's door where the rest of the frame says so.

    A refusal, or a hang-up before the greeting, looks the same from a server and from a filter. It is the server's
    where another port of that host, or another host on that port, answered from the same network, and not the
    server's where three or more hosts were tried on the port and none answered, or where the refusal is known to come
    from the way: by the sender of its ICMP message, or by a walk along the path.
    """
    refused = made["text"].str.contains("onnection refused", regex=False).fillna(False)
    hung_up = made["step"].eq("rules").fillna(False) & made["category"].eq("connection")
    refused |= hung_up
    if "failure" in made:
        refused |= made["failure"].eq("tcp_refused").fillna(False)
    if "icmp_from" in made:
        sender, own = made["icmp_from"], made["icmp_from"].eq(made["address"]).fillna(False)
        refused &= ~(sender.notna() & ~own) & made["last_hop"].isna()
        made.loc[own & made["verdict"].eq("blocked_icmp").fillna(False), "blocked_by"] = "server"
    refused &= made["category"].eq("connection") & made["host"].notna() & made["port"].notna()
    if not refused.any():
        return made
    up = made["step"].notna() & made["step"].ne("connect") & ~hung_up & made["attempted"].fillna(True)
    near = made["vantage"].fillna("")
    host_up = up.groupby([near, made["host"]]).transform("any")
    port_up = up.groupby([near, made["port"]]).transform("any")
    tried = made["host"].groupby([near, made["port"]]).transform("nunique")
    made.loc[refused & (port_up | (host_up & (tried < 3))), "blocked_by"] = "server"
    return made
