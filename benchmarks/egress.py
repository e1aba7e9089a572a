"""How often `dk.egress` is right: simulated networks whose truth is known, and its verdicts beside it.

    python benchmarks/egress.py [NETWORKS] [SEED] [bare]

Ports 25, 465, 587 and 2525 of 8 to 12 hosts of 5 to 8 operators, two web servers and a TEST-NET address; a quarter of
the networks has IPv6, too. Each network loses operators with its own q from 0.05 to 0.3, and single hosts of others
with q / 4. `bare` leaves only host, operator, port, verdict and banner in the frames. A block and an interception are
of port 25, or of all mail ports. Brier scores: of block_probability against whether the network does keep the port
shut, and of confidence against whether the verdict is right (verdicts other than unclear).
"""

from __future__ import annotations

import sys
from random import Random
from typing import Any

import pandas as pd

import deliverkit as dk

KINDS = ("open", "drop", "rst", "icmp", "intercepted", "selective", "offline")
SIGNS = ("masked", "stripped", "missing", "name", "certificate", "words", "testnet", "page")
TRUTH = dict.fromkeys(("drop", "rst", "icmp"), "blocked_by_network")
BARE = ("host", "operator", "port", "verdict", "banner")
MAIL = (25, 465, 587, 2525)
WORDS = ("8BITMIME", "AUTH", "CHUNKING", "DSN", "ETRN", "PIPELINING", "SIZE", "SMTPUTF8", "VRFY")
FILTERS = {
    "drop": {"verdict": "filtered", "failure": "tcp_timeout"},
    "rst": {"verdict": "closed", "failure": "tcp_refused"},
    "icmp": {"verdict": "blocked_icmp", "failure": "icmp_admin_prohibited", "icmp_type": 3, "icmp_code": 13},
    "offline": {"verdict": "filtered", "failure": "tcp_timeout"},
}
LOSSES = (FILTERS["drop"],) * 6 + (FILTERS["rst"],) * 2 + ({"verdict": "unreachable", "failure": "host_unreachable"},)
REFUSALS = (
    FILTERS["drop"],
    {"verdict": "closed_after_accept", "failure": "reset", "connect_s": 0.03},
    {"verdict": "rejected", "failure": "blocklisted", "text": "554 5.7.1 listed"},
    {"verdict": "rejected", "failure": "smtp_5xx", "text": "554 no"},
)


def network(kind: str, seed: int) -> tuple[pd.DataFrame, set[int]]:
    """Probes from a network of this kind, and the ports that are concerned."""
    dice = Random(f"{kind} {seed}")
    q, n = dice.uniform(0.05, 0.3), dice.randint(8, 12)
    operators = [f"op{i}" for i in range(dice.randint(5, 8))]
    sign, out = dice.choice(SIGNS), set(dice.sample(operators, dice.randint(2, len(operators) - 1)))
    alone = kind == "intercepted" and sign in ("missing", "words", "testnet")  # what tells needs a port beside it
    shut, rows = {25} if alone or dice.random() < 0.7 else set(MAIL), []
    for family in (4, 6) if dice.random() < 0.25 else (4,):
        net = "2a00:1450:4000" if family == 6 else "145.97"
        for port in MAIL:
            down = {name for name in operators if dice.random() < q}
            for i in range(n):
                name = operators[i % len(operators)]
                host, words = f"mx{i}.{name}.example", " ".join(sorted({*dice.sample(WORDS, 5), "STARTTLS"}))
                row: dict[str, Any] = {"host": host, "operator": name, "port": port, "family": family}
                row |= {"address": f"{net}::{i + 1}" if family == 6 else f"{net}.{i}.1", "local_address": "192.168.1.2"}
                row |= {"mode": "implicit" if port == 465 else "starttls", "vantage": "here"}
                concerned = kind == "offline" or port in shut
                if concerned and kind in FILTERS:
                    row |= FILTERS[kind] | ({"icmp_from": "192.168.1.1"} if kind == "icmp" else {})
                elif name in down or dice.random() < q / 4:
                    row |= dice.choice(LOSSES)
                elif concerned and kind == "selective" and name in out:
                    row |= dice.choice(REFUSALS)
                else:
                    row |= {"verdict": "open", "banner": f"220 {host} ESMTP", "features": words, "cert_matches": True}
                    row |= {"cert_sha256": f"{host}{port}", "connect_s": dice.uniform(0.01, 0.2)}
                    if concerned and kind == "intercepted":
                        row |= _altered(sign, port)
                rows.append(row)
        for i in range(2):
            web = {"host": f"www{i}.example", "operator": f"web{i}", "port": 443, "family": family, "vantage": "here"}
            web |= FILTERS["offline"] if kind == "offline" else {"verdict": "accepts_no_banner", "reached": "banner"}
            rows.append(web)
        nobody = "2001:db8::1" if family == 6 else "192.0.2.1"
        test: dict[str, Any] = {"host": nobody, "operator": "nobody", "port": 25, "family": family}
        heard = kind == "intercepted" and sign == "testnet"
        test |= {"verdict": "open", "banner": "220 proxy.example"} if heard else FILTERS["drop"]
        rows.append(test | {"vantage": "here"})
    concerned = set(MAIL) if kind == "offline" else set() if kind == "open" else shut
    return pd.DataFrame(rows), concerned


def _altered(sign: str, port: int) -> dict[str, Any]:
    """What an interception changes in a probe that went through."""
    made: dict[str, dict[str, Any]] = {
        "masked": {"verdict": "tampered", "banner": f"220 {'*' * 30}", "features": "8BITMIME XXXXXXXA"},
        "stripped": {"verdict": "tampered", "failure": "starttls_stripped", "features": "8BITMIME SIZE"},
        "missing": {"verdict": "open_no_tls", "features": "8BITMIME SIZE", "mode": "cleartext"},
        "name": {"banner": "220 proxy.example ESMTP"},
        "certificate": {"cert_sha256": "ab" * 32, "cert_matches": False, "cert_names": "proxy.example"},
        "words": {"features": "8BITMIME SIZE STARTTLS"},
        "page": {"verdict": "not_smtp", "failure": "not_smtp", "text": "HTTP/1.1 302 Found", "banner": None},
        "testnet": {},
    }
    lost = {} if sign not in ("stripped", "missing") or port != 465 else made["name"]  # no STARTTLS there
    return lost or made[sign]


def judged(count: int, seed: int = 0, bare: bool = False) -> pd.DataFrame:
    """One row per judged port of `count` networks: kind, truth, verdict, confidence, block_probability."""
    rows = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        frame, concerned = network(kind, seed + i)
        frame = frame.reindex(columns=BARE) if bare else frame
        for row in dk.egress(frame).to_dict("records"):
            about = kind if row["port"] in concerned else "open"
            rows.append(row | {"kind": about, "truth": TRUTH.get(about, about), "network": i})
    return pd.DataFrame(rows)


def scores(found: pd.DataFrame) -> dict[str, float]:
    """Shares and Brier scores of what `judged` gives."""
    blocked, said = found["truth"].eq("blocked_by_network"), found["verdict"].eq("blocked_by_network")
    sure, right = found["confidence"].notna(), found["verdict"].eq(found["truth"])
    block = (found["block_probability"].fillna(0).astype(float) - blocked) ** 2
    wrong = found.assign(wrong=said & ~blocked).groupby("network")["wrong"].any()
    return {
        "wrong blocked_by_network, share of ports": float((said & ~blocked).sum() / (~blocked).sum()),
        "wrong blocked_by_network, share of networks": float(wrong.mean()),
        "full blocks found": float((said & blocked).sum() / blocked.sum()),
        "Brier, block_probability against truth": float(block.mean()),
        "Brier, confidence against verdict right": float(((found["confidence"][sure] - right[sure]) ** 2).mean()),
        "Brier, confidence, unclear as a half": float(((found["confidence"].fillna(0.5) - right) ** 2).mean()),
    }


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    found = judged(*(numbers or [1050]), bare="bare" in sys.argv)
    print(found.groupby(["kind", "verdict"]).size().unstack(fill_value=0).to_string(), end="\n\n")
    for name, value in scores(found).items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
