"""What should be open, before anything is probed: the published policies of networks and mail providers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from deliverkit import PORTS, facts
from deliverkit.rules import known_name
from deliverkit.schema import FORECAST
from deliverkit.targets import ports_of


def forecast(provider: str | None = None, network: str | None = None,
             ports: int | Iterable[int] = PORTS) -> pd.DataFrame:  # fmt: skip
    """What the published policies let expect, before probing: a `FORECAST` frame.

    `provider` and `network` are names of the facts tables (`esp_ports`, `network_policies`), any case, or a part that
    is unique. One row per port of `ports` and party: the network (what it lets out) and the provider (where it
    listens). A port that a party's published facts do not name is `unknown`, not open. Raises FactsError for a name
    that is not known, TargetError for a port that is none. `dk.egress(probes, forecast=...)` shows where measurement
    and forecast differ.
    """
    [rule] = [rule for rule in facts.tables("port_rules")["rule"] if rule["id"] == "network-shuts"]
    shut, wanted = rule["when"]["network"], ports_of(ports)
    made: list[dict[str, Any]] = []
    nets, esps = facts.table("network_policies"), facts.table("esp_ports")
    nets = nets[nets["direction"] == "outbound"].rename(columns={"operator": "network"})
    for party, word, table in (("network", network, nets), ("provider", provider, esps)):
        name = None if word is None else known_name(party, word, list(table[party].unique()))
        rows = table[table[party] == name].drop_duplicates("port") if name else table.iloc[:0]
        known = {row["port"]: row for row in rows.to_dict("records")}
        for port in wanted if name else ():
            row: dict[Any, Any] = known.get(port, {})
            expected = "unknown" if not row else "blocked" if row.get("policy") in shut else "open"
            why = f"{name} publishes nothing about {port}"
            if row and party == "provider":
                why = f"{name} listens on {port} at {row['hostname']}"
            elif row:
                remark = f" ({row['remark']})" if pd.notna(row["remark"]) else ""
                why = f"{name} on {port}: {row['policy'].replace('_', ' ')}{remark}"
            made.append({party: name, "port": port, "expected": expected, "why": why, "source": row.get("source_url")})
            made[-1] |= {"noted": row.get("noted"), "evidence": row.get("evidence")}
    if not made:
        why = "neither network nor provider is named"
        made = [{"port": port, "expected": "unknown", "why": why} for port in wanted]
    return FORECAST.build(made)
