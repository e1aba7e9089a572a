"""What a row means: category, kind, blocked, blocked_by, and the rule that said so.

Rules are rows of `deliverkit/facts`, asked in this order; the first that fits decides and leaves its id:
outcome passed; hints of the reader that settle it; what a probe found; words of the far end (its
operator's own rules first); other hints; its reply codes, again the operator's meaning first.
Text comes before code because the code lies more often (550 5.1.1 for "too many recipients").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deliverkit import facts
from deliverkit.errors import FactsError
from deliverkit.patterns import Patterns
from deliverkit.schema import ATTEMPTS, Frame

_KEYS = ("outcome", "hint", "verdict", "failure", "operator", "step", "reply_code", "status_code", "text", "field")
_BATCH, _KEPT = 20_000, 1 << 15  # rows judged at once, texts whose rule is remembered
_UNSAID = {  # what stands in a text and says nothing: whose address, which host, the code of each line of a reply
    "@": (re.compile(r"(?<![^\s<>@(])[^\s<>@(]{1,64}@[^\s<>@,;:)]{1,255}"), "@"),
    "[": (re.compile(r"(?<![\w.-])[\w-]{1,63}(?:\.[\w-]{1,63}){1,9}(?=\[[\d:a-f.]{2,45}\])"), ""),
    "-": (re.compile(r"(?<=\S) [245]\d\d-(?:[245]\.\d{1,3}\.\d{1,3} )?(?!\d)"), " "),
    "’": (re.compile("’"), "'"),
}


_LONG_ID = re.compile(  # letters, and four digits or more; no host before its address, no part of a link
    r"(?<![^\s(\[<;,])(?=[\w-]*[A-Za-z])(?=(?:[\w-]*?\d){4})[\w-]{12,64}(?:\.[\w-]{1,64}){0,2}(?![^\s)\]>;,])(?!\[)"
)


class _Rule(NamedTuple):
    id: str
    category: str
    kind: str
    blocked: bool | None
    blocked_by: str | None
    step: str | None
    confidence: float = 0.0
    field: str | None = None
    matched: str | None = None


def classify(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, frame: Frame = ATTEMPTS) -> pd.DataFrame:
    """Build the frame and decide what each row means.

    `rows` are those of `frame`, as mappings or as a frame, with an optional `hint` beside its columns: a word for what
    only the reader knows (facts/hints.csv). `field` may say where `text` stood, `matched` what the hint rests on. Fills
    `operator`, `step` (both where missing), `category`, `kind`, `blocked`, `blocked_by`, `rule` and the evidence:
    `field`, `matched` and `confidence` (facts/confidence.csv); `text` is cut at 2,000 characters. Rows are taken in
    batches, so that a stream of any length needs little more memory than its frame.
    Raises SchemaError for an unknown column.
    """
    if isinstance(rows, pd.DataFrame):
        return _refused(_judged(rows, frame))
    stream = iter(rows)
    return settled((judged(batch, frame) for batch in iter(lambda: list(islice(stream, _BATCH)), [])), frame)


def judged(rows: Sequence[Mapping[str, Any]], frame: Frame = ATTEMPTS) -> pd.DataFrame:
    """What `classify` says of each row alone: a batch for `settled`, in which rows may speak for each other."""
    names = dict.fromkeys(chain.from_iterable(rows))
    return _judged(
        pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}), frame
    )


def settled(batches: Iterable[pd.DataFrame], frame: Frame = ATTEMPTS) -> pd.DataFrame:
    """`judged` batches as one frame, which is what `classify` gives for their rows."""
    made = list(batches)
    return _refused(pd.concat(made, ignore_index=True)) if made else frame.empty()


def _judged(data: pd.DataFrame, frame: Frame) -> pd.DataFrame:
    made = frame.build(data.drop(columns=["hint"], errors="ignore"))
    if made["text"].str.len().gt(2000).any():
        made["text"] = made["text"].str.slice(0, 2000)
    if made["operator"].isna().any():
        made["operator"] = made["operator"].fillna(_operators(made))
    texts, codes = list[list[str]](), list[Any]()
    for name in _KEYS:
        values = made[name] if name in made else data[name] if name in data else pd.Series("", made.index)
        if name == "text":  # thanks, queue ids
            values = values.mask(made["outcome"].eq("passed").fillna(False))
        number, unique = pd.factorize(values)
        texts.append([*map(str, unique), ""])
        codes.append(number)
    group, places = _distinct(codes)
    keys = [tuple(some[code[place]] for some, code in zip(texts, codes, strict=True)) for place in places.tolist()]
    _remember((key[8], key[4]) for key in keys)
    decided = [_decide(*key) for key in keys]
    for place, name in enumerate(_Rule._fields):
        column = "rule" if name == "id" else name
        found = pd.Series([rule[place] for rule in decided], dtype=made[column].dtype).take(group).set_axis(made.index)
        made[column] = made[column].fillna(found) if name == "matched" else found
    return made


def _distinct(codes: list[Any]) -> tuple[Any, Any]:
    """A number per row, the same for rows with the same codes, and the first row of each number."""
    group = codes[0]
    for code in codes[1:]:
        group, _ = pd.factorize(group * (code.max(initial=0) + 2) + code + 1)
    return group, np.unique(group, return_index=True)[1]


def _decide(outcome: str, hint: str, verdict: str, failure: str, operator: str, step: str,
            reply_code: str, status_code: str, text: str, field: str) -> _Rule:  # fmt: skip
    hints = _table("hints")
    if settled := hints.get((hint, "true")):
        rule: _Rule | None = settled._replace(field=field or None)
    elif verdict:
        rule = _probe_rule(verdict, failure, operator, text)
    elif outcome == "passed":
        rule = _rule("outcome:passed", {"category": "not_a_failure", "step": "inbox"})._replace(field="outcome")
    else:
        rule, hinted = match_text(text, operator), hints.get((hint, "false"))
        if rule and rule.id.startswith("text:no-answer"):  # silence until the end is what expired means
            rule = hinted or hints.get((hint, "silent")) or rule
        rule = rule or hinted or _by_code(operator, reply_code, status_code)
        if rule and rule == hinted:
            by = ("Action", hint) if hint == "delayed" else ("status_code", status_code or None)
            rule = rule._replace(field=by[0], matched=by[1])
        rule = rule and rule._replace(field=field if rule.field == "text" and field else rule.field)
    rule = rule or _rule("default:unknown", {"category": "unknown"})
    rule = rule._replace(step=step or rule.step)
    if rule.category == "connection" and rule.step in ("relay", "inbox"):
        return rule._replace(blocked=False, blocked_by=None)  # the session was up: no door was shut
    return rule


_known: dict[tuple[str, str], _Rule | None] = {}


def match_text(text: str, operator: str = "") -> _Rule | None:
    """The first pattern that fits the words of a reply, the operator's own patterns first."""
    _remember([(text, operator)])
    return _known.get((text, operator))


def _remember(asked: Iterable[tuple[str, str]]) -> None:
    """Find the rules of texts not met before, all at once."""
    new = list(dict.fromkeys(both for both in asked if both not in _known and both[0]))
    if new and len(_known) + len(new) > _KEPT:
        _known.clear()
    if new:
        _find(new)


def _find(new: list[tuple[str, str]]) -> None:
    patterns, providers, rules = _patterns()
    plain = [" ".join(text[:2000].lower().split()) for text, _ in new]
    for sign, (unsaid, instead) in _UNSAID.items():
        plain = [unsaid.sub(instead, text) if sign in text else text for text in plain]
    for both, said, places in zip(new, plain, patterns.candidates(plain), strict=True):
        own = [place for place in places if providers[place] == both[1]]
        found = patterns.first(said, own + [place for place in places if providers[place] == "any"])
        _known[both] = rules[found[0]]._replace(field="text", matched=found[1][0][:200]) if found else None


def unsaid(text: str) -> str:
    """The text without the addresses and long ids in it, which decide nothing and differ from one row to the next."""
    about, instead = _UNSAID["@"]
    text = about.sub(instead, text) if "@" in text else text
    return _LONG_ID.sub("", text)


def _probe_rule(verdict: str, failure: str, operator: str, text: str) -> _Rule | None:
    """A probe's failure decides; only where a server refused do its words say more."""
    said = match_text(text, operator) if verdict in ("rejected", "deferred") else None
    if said and said.category in ("reputation_block", "rate_limited", "relay_or_login", "tls"):
        return said
    found = _table("probe_failures")
    rule = found.get((verdict, failure)) or found.get((verdict, ""))
    return rule and rule._replace(field="failure" if failure else "verdict", matched=failure or verdict)


@cache
def _by_code(operator: str, reply_code: str, status_code: str) -> _Rule | None:
    named = [_table("reply_codes").get((operator, reply, status_code)) for reply in (reply_code, "")]
    if rule := next(filter(None, named), None):
        return rule._replace(field="status_code", matched=status_code)
    detail, keys = status_code.partition(".")[2], [("", reply_code)]
    if detail != "0.0":  # which says nothing
        keys = [(f"x.{detail}", ""), *keys, (f"x.{detail.partition('.')[0]}.x", "")]
    for key in keys:
        if rule := _table("status_codes").get(key):
            by = ("status_code", status_code) if key[0] else ("reply_code", reply_code)
            return rule._replace(field=by[0], matched=by[1])
    return None


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
    by = row["blocked_by"] if blocked else None
    return _Rule(id, row["category"], row["kind"], blocked, by, row["step"], _confidence(id, row))


def _confidence(id: str, row: Mapping[str, Any]) -> float:
    """How often rules of this sort were right (facts/confidence.csv)."""
    sort = id.partition(":")[0]
    if sort == "text":
        sort = "text" if row.get("provider") == "any" else "text of the operator"
    elif sort == "code":
        code = id.split(":")[1:]
        sort = "code of the operator" if row.get("provider") else "code" if "." in code[0] else "reply code"
        sort = "class of codes" if code[-1].endswith(".x") else sort
    return _shares()[sort]


@cache
def _shares() -> dict[str, float]:
    return {row["sort"]: float(row["share"]) for row in _records("confidence")}


@cache
def _patterns() -> tuple[Patterns, list[str], list[_Rule]]:
    """The compiled table, and per pattern its provider and its rule."""
    rows = _records("bounce_patterns")
    made = Patterns([row["pattern"] for row in rows], [row["example"] for row in rows])
    return made, [row["provider"] for row in rows], [_rule(row["id"], row) for row in rows]


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
    names = made["host"].fillna(made["recipient"].str.replace(r".*@", "", regex=True))
    return names.map(operator_of, na_action="ignore").astype("string")


@cache
def _domains() -> dict[str, str]:
    return dict(zip(facts.table("operators")["domain"], facts.table("operators")["operator"], strict=True))


@lru_cache(_KEPT)
def operator_of(name: str) -> str | None:
    """Who runs the host or takes the mail of the domain of this name, if that is known (facts/operators.csv)."""
    labels, domains = name.lower().rstrip(".").split(".")[-8:], _domains()
    return next((domains[d] for i in range(len(labels)) if (d := ".".join(labels[i:])) in domains), None)


def _refused(made: pd.DataFrame) -> pd.DataFrame:
    """Lay a refused connection at the server's door where the rest of the frame says so.

    A refusal, or a hang-up before the greeting, looks the same from a server and from a filter. It is the server's
    where another port of that host, or another host on that port, answered from the same network, and not the
    server's where three or more hosts were tried on the port and none answered, or where the refusal is known to come
    from the way: by the sender of its ICMP message, or by a walk along the path.
    """

    def says(name: str, word: Any) -> Any:
        return made[name].eq(word).fillna(False).to_numpy(bool)

    refused = made["text"].str.contains("onnection refused", regex=False).fillna(False).to_numpy(bool)
    hung_up = says("step", "rules") & says("category", "connection")
    refused |= hung_up
    if "failure" in made:
        refused |= says("failure", "tcp_refused")
    if "icmp_from" in made:
        own = says("icmp_from", made["address"])
        refused &= ~(made["icmp_from"].notna().to_numpy(bool) & ~own) & made["last_hop"].isna().to_numpy(bool)
        made.loc[own & says("verdict", "blocked_icmp"), "blocked_by"] = "server"
    refused &= says("category", "connection") & (made["host"].notna() & made["port"].notna()).to_numpy(bool)
    if not refused.any():
        return made
    up = made["step"].notna() & ~says("step", "connect") & ~hung_up & made["attempted"].fillna(True).to_numpy(bool)
    near = made["vantage"].fillna("")
    host_up = up.groupby([near, made["host"]]).transform("any")
    port_up = up.groupby([near, made["port"]]).transform("any")
    tried = made["host"].groupby([near, made["port"]]).transform("nunique")
    made.loc[refused & (port_up | (host_up & (tried < 3))), "blocked_by"] = "server"
    return made
