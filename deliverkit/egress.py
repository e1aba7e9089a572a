"""Is it my network? The answer of many control hosts, weighed per port."""

from __future__ import annotations

from math import exp, lgamma, log
from typing import Any

import pandas as pd

from deliverkit.rates import wilson
from deliverkit.schema import EGRESS, PROBES, counted
from deliverkit.svg import text

# The evidence model: an open network loses one operator in ten (Beta(2, 18)), a block lets 2 % through.
_A, _B = 2, 18
_LOST, _SILENT, _PRIOR = _A / (_A + _B), 0.98, 0.1
_SURE, _FEWEST = 0.95, 3  # probability wanted for a verdict; fewer operators than this prove nothing
_ANSWERS = ("deferred", "rejected", "tampered")
_LOCAL = ("local_denied", "local_no_route")


def _probability(odds: float) -> float:
    return 1 / (1 + exp(-odds))


def _sure(operators: int) -> float:
    """Probability that `operators` agreeing operators are no accident."""
    return _probability(log(_PRIOR / (1 - _PRIOR)) + operators * log(_SILENT / _LOST))


def _selective(silent: int, n: int) -> float:
    """Probability that some operators are shut out, against the usual loss (beta-binomial)."""
    ways = lgamma(n + 1) - lgamma(silent + 1) - lgamma(n - silent + 1)
    loss = ways + lgamma(silent + _A) + lgamma(n - silent + _B) - lgamma(n + _A + _B)
    loss += lgamma(_A + _B) - lgamma(_A) - lgamma(_B)
    return _probability(log(_PRIOR / (1 - _PRIOR)) - log(n + 1) - loss)


def _controls(probes: pd.DataFrame) -> pd.DataFrame:
    """One row per vantage, port and control host, with what the probes of it showed."""
    data = counted(PROBES.check(probes, ["host", "port", "verdict"])).dropna(subset=["host", "port"])
    missing = pd.Series(pd.NA, index=data.index, dtype="string")
    host = data["host"].astype("string").str.lower().str.rstrip(".")
    verdict = data["verdict"].astype("string").fillna("")
    answered = verdict.str.startswith("open") | verdict.isin(_ANSWERS)
    failure = data.get("failure", missing).astype("string")
    rows = pd.DataFrame(
        {
            "vantage": data.get("vantage", missing).astype("string"),
            "port": data["port"],
            "host": host,
            "operator": data.get("operator", missing).astype("string"),
            "answered": answered.astype(bool),
            "tampered": verdict.eq("tampered").astype(bool),
            "nameless": verdict.eq("dns_fail").astype(bool),
            "banner": data.get("banner", missing).astype("string").where(answered.astype(bool)),
            "local": failure.isin(_LOCAL).astype(bool),
            "denied": failure.eq("local_denied").fillna(False).astype(bool),
        }
    )
    names = {name: ".".join(name.split(".")[-2:]) for name in host.unique()}
    rows["operator"] = rows["operator"].fillna(host.map(names).astype("string"))
    how = {"operator": "first", "answered": "any", "tampered": "any", "banner": "first"}
    how |= {"local": "all", "denied": "all", "nameless": "all"}
    return rows.groupby(["vantage", "port", "host"], dropna=False).agg(how).reset_index()


def _judge(here: pd.DataFrame, others: pd.DataFrame) -> tuple[str, float | None]:
    """Verdict and probability for one port, given the same vantage's other ports."""
    per = here.groupby("operator")["answered"].any()
    n, silent = len(per), int((~per).sum())
    if n < _FEWEST:
        return "unclear", None
    alike = here.dropna(subset=["banner"]).groupby("banner")["operator"].nunique().max()
    changed = max(here.loc[here["tampered"], "operator"].nunique(), 0 if pd.isna(alike) else int(alike))
    if changed >= _FEWEST:
        return "intercepted", _sure(changed)
    if silent < n:  # one clean answer ends "blocked"
        p = _selective(silent, n)
        return ("selective", p) if p >= _SURE else ("open", 1 - p) if p <= 0.5 else ("unclear", p)
    elsewhere = bool(others["answered"].any())
    if here["denied"].all() or (here["local"].all() and elsewhere):
        return "blocked_by_host", _sure(n)
    if elsewhere:
        return ("blocked_by_network", _sure(n)) if _sure(n) >= _SURE else ("unclear", _sure(n))
    return ("offline", _sure(n)) if len(others) else ("unclear", None)


def egress(probes: pd.DataFrame) -> pd.DataFrame:
    """Whether my own network lets mail ports out, per vantage and port: an `EGRESS` frame.

    Takes `PROBES` of control hosts: several hosts of at least 3 operators (better 8 of 5) on at least two
    ports, as one silent port alone cannot be told from a line that is down. Hosts of one operator share
    their fate, so operators are weighed: log odds = log(0.1 / 0.9) + operators * log(0.98 / 0.1). A host
    without an operator counts under the last two labels of its name. Fewer operators are `unclear`, and
    `confidence` is missing where there is no ground for one. `selective` means that more operators are
    silent than the usual loss explains (Beta(2, 18)); `intercepted` that 3 or more operators show the same
    banner or a stripped STARTTLS. Raises SchemaError if `host`, `port` or `verdict` is missing.
    """
    controls = _controls(probes)
    rows: list[dict[str, Any]] = []
    for vantage, near in controls.groupby("vantage", dropna=False):
        for port, here in near.groupby("port"):
            here, others = here[~here["nameless"]], near[(near["port"] != port) & ~near["nameless"]]
            verdict, confidence = _judge(here, others)
            yes, operators = int(here["answered"].sum()), here["operator"].nunique()
            said = [f"{yes} of {len(here)} hosts of {operators} operators answered on {port}"]
            for other, rest in others.groupby("port"):
                said.append(f"{int(rest['answered'].sum())} of {len(rest)} answered on {other}")
            if verdict == "unclear" and operators < _FEWEST:
                said.append("no name was found" if here.empty else f"fewer than {_FEWEST} operators prove nothing")
            elif verdict == "unclear" and others.empty:
                said.append("no other port was tried, which would tell a filter from a line that is down")
            low, high = wilson(yes, len(here))
            row = {"vantage": vantage, "port": port, "verdict": verdict, "confidence": confidence}
            row |= {"controls": len(here), "operators": operators, "answered": yes}
            rows.append(row | {"low": float(low), "high": float(high), "why": "; ".join(said)})
    return EGRESS.build(rows)


def show_egress(verdicts: pd.DataFrame) -> str:
    """The verdicts as lines for a terminal: network, port, verdict, how sure, and what of the evidence is its own."""
    lines = []
    for row in verdicts.to_dict("records"):
        where = f"{row['vantage']}, port {row['port']}" if pd.notna(row["vantage"]) else f"port {row['port']}"
        sure = f" ({text(row['confidence'], 'rate')})" if pd.notna(row["confidence"]) else ""
        why = row["why"] if row["verdict"] == "unclear" else str(row["why"]).partition(";")[0]
        lines.append(f"{where}: {text(row['verdict'], 'verdict')}{sure}: {why}")
    return "\n".join(lines) or "no probes"
