"""Is it my network: the verdict against simulated networks whose truth is known."""

import random

import pandas as pd
import pytest

from deliverkit.egress import egress
from deliverkit.errors import SchemaError


def network(kind, *, q=0.1, seed=0, operators=6):
    """Probes of 8 hosts on 25 and 587, from a network of this kind."""
    dice, rows = random.Random(seed), []
    for i in range(8):
        operator = f"op{i % operators}"
        for port in (25, 587):
            lost = random.Random(f"{seed} {operator} {port}").random() < q
            shut = kind == "offline" or (port == 25 and (kind == "drop" or (kind == "half" and i % operators < 6)))
            verdict = "filtered" if shut or lost else "open"
            banner = "220 proxy" if kind == "intercepted" and port == 25 else f"220 mx{i}.{operator}.example"
            rows.append(
                {
                    "host": f"mx{i}.{operator}.example",
                    "operator": operator,
                    "port": port,
                    "verdict": verdict,
                    "banner": banner if verdict == "open" else None,
                }
            )
    dice.shuffle(rows)
    return pd.DataFrame(rows)


def verdict(frame, port=25):
    return egress(frame).set_index("port")["verdict"][port]


def test_an_open_network_is_hardly_ever_called_blocked():
    found = [verdict(network("open", q=q, seed=s)) for q in (0.05, 0.1, 0.2, 0.3) for s in range(50)]
    assert found.count("blocked_by_network") <= 0.01 * len(found)


def test_a_full_block_is_found():
    found = [verdict(network("drop", q=q, seed=s)) for q in (0.05, 0.1, 0.2, 0.3) for s in range(50)]
    assert found.count("blocked_by_network") >= 0.99 * len(found)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("open", "open"),
        ("drop", "blocked_by_network"),
        ("intercepted", "intercepted"),
        ("offline", "offline"),
        ("half", "selective"),
    ],
)
def test_each_kind_of_network_gets_its_verdict(kind, expected):
    assert verdict(network(kind, q=0, operators=8)) == expected


def test_one_operator_with_many_hosts_proves_nothing():
    assert verdict(network("drop", q=0, operators=1)) == "unclear"


def test_refusal_by_this_machine_is_not_blamed_on_the_network():
    frame = network("drop", q=0)
    frame["failure"] = frame["port"].map({25: "local_denied"})
    assert verdict(frame) == "blocked_by_host"


def test_the_sentence_gives_the_counts():
    why = egress(network("drop", q=0))["why"][0]
    assert why == "0 of 8 hosts of 6 operators answered on 25; 8 of 8 answered on 587"


def test_a_frame_without_verdicts_is_refused():
    with pytest.raises(SchemaError, match="verdict"):
        egress(pd.DataFrame({"host": ["a.example"], "port": [25]}))
