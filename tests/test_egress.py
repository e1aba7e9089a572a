"""Is it my network: the verdict against simulated networks whose truth is known, and sentence by sentence."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.egress import compare, controls, egress, show_egress
from deliverkit.errors import FormatError, SchemaError
from deliverkit.schema import COMPARISON, EGRESS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import egress as simulated

SILENT = {"verdict": "filtered", "failure": "tcp_timeout"}
WEB = {"host": "www.example.org", "port": 443, "verdict": "accepts_no_banner"}


def network(*shut: int, ports: tuple[int, ...] = (25, 587), n: int = 8, **how: Any) -> pd.DataFrame:
    """Probes of n hosts of n operators: `shut` ports end as `how` says, by default in silence; the rest is open."""
    rows = []
    for i in range(n):
        for port in ports:
            host = f"mx{i}.op{i}.example"
            row = {"host": host, "operator": f"op{i}", "port": port, "verdict": "open", "banner": f"220 {host} ESMTP"}
            rows.append(row | {"banner": None, **SILENT, **how} if port in shut else row)
    return pd.DataFrame(rows)


def changed(frame: pd.DataFrame, port: int, first: int = 8, **columns: Any) -> pd.DataFrame:
    """The frame with these columns set on this port, at the first so many hosts."""
    rows = frame.index[frame["port"] == port][:first]
    frame = frame.reindex(columns=[*frame.columns, *(name for name in columns if name not in frame)]).astype(object)
    for name, value in columns.items():
        frame.loc[rows, name] = value
    return frame.where(frame.notna(), None)


def added(frame: pd.DataFrame, *rows: dict[str, Any]) -> pd.DataFrame:
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)


def row(frame: pd.DataFrame, port: int = 25, **how: Any) -> dict[str, Any]:
    [found] = [r for r in egress(frame, **how).to_dict("records") if r["port"] == port]
    return found


def old_network(kind: str, *, q: float = 0.1, seed: int = 0, operators: int = 6) -> pd.DataFrame:
    """Bare probes of 8 hosts on 25 and 587; operators, not hosts, are lost with q."""
    dice, rows = random.Random(seed), []
    for i in range(8):
        operator = f"op{i % operators}"
        for port in (25, 587):
            lost = random.Random(f"{seed} {operator} {port}").random() < q
            shut = kind == "offline" or (port == 25 and (kind == "drop" or (kind == "half" and i % operators < 6)))
            verdict = "filtered" if shut or lost else "open"
            banner = "220 proxy" if kind == "intercepted" and port == 25 else f"220 mx{i}.{operator}.example"
            made = {"host": f"mx{i}.{operator}.example", "operator": operator, "port": port, "verdict": verdict}
            rows.append(made | {"banner": banner if verdict == "open" else None})
    dice.shuffle(rows)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("kind", "verdict", "least"), [("open", "blocked_by_network", 0), ("drop", "", 0.99)])
def test_loss_is_hardly_ever_taken_for_a_block_and_a_block_is_found(kind: str, verdict: str, least: float) -> None:
    frames = [old_network(kind, q=q, seed=seed) for q in (0.05, 0.1, 0.2, 0.3) for seed in range(50)]
    found = [row(frame)["verdict"] for frame in frames].count("blocked_by_network") / len(frames)
    assert found <= 0.01 if verdict else found >= least


@pytest.mark.parametrize("bare", [False, True])
def test_the_bounds_hold_over_simulated_networks(bare: bool) -> None:
    found = simulated.judged(140, seed=20_000, bare=bare)
    scores = simulated.scores(found)
    assert set(found["kind"]) == set(simulated.KINDS)
    assert scores["wrong blocked_by_network, share of networks"] <= 0.01
    assert scores["full blocks found"] >= 0.99
    assert scores["Brier, block_probability against truth"] < 0.02
    right = found[found["verdict"] != "unclear"].query("kind not in ['selective', 'intercepted']")
    assert (right["verdict"] == right["truth"]).mean() > 0.99


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("open", "open"), ("drop", "blocked_by_network"), ("intercepted", "intercepted"), ("offline", "offline"),
     ("half", "selective")],
)  # fmt: skip
def test_each_kind_of_network_gets_its_verdict(kind: str, expected: str) -> None:
    found = row(old_network(kind, q=0, operators=8))
    assert found["verdict"] == expected and 0.5 < found["confidence"] <= 1
    assert (found["block_probability"] > 0.95) == (expected == "blocked_by_network")


def test_one_operator_with_many_hosts_proves_nothing() -> None:
    found = row(old_network("drop", q=0, operators=1))
    assert found["verdict"] == "unclear" and pd.isna(found["confidence"]) and 0.1 < found["block_probability"] < 0.99
    assert "fewer than 3 operators prove nothing" in found["why"]


def test_operators_are_told_by_the_last_labels_of_the_hosts_where_none_are_named() -> None:
    assert row(network(25, n=4).drop(columns="operator"))["operators"] == 4
    one = network(25, n=4).drop(columns="operator").assign(host=[f"mx{i}.example.com" for i in range(8)])
    assert row(one)["operators"] == 1


def test_one_silent_port_alone_is_no_block() -> None:
    found = row(network(25, ports=(25,)))
    assert found["verdict"] == "unclear" and "no other port was tried" in found["why"]


def test_one_answer_ends_the_block_and_what_is_shut_to_the_rest_is_selective() -> None:
    assert row(changed(network(), 25, 7, **SILENT))["verdict"] == "selective"


def test_a_shut_network_is_blocked_on_each_port_where_the_web_answers_and_offline_where_it_does_not() -> None:
    shut = network(25, 465, 587, 2525, ports=(25, 465, 587, 2525))
    assert set(egress(added(shut, WEB))["verdict"]) == {"blocked_by_network"}
    dead = egress(added(shut, WEB | SILENT))
    assert set(dead["verdict"]) == {"offline"} and (dead["confidence"] > 0.95).all()
    assert (dead["block_probability"] < 0.05).all() and len(dead) == 4  # the web control gets no verdict of its own
    assert "443, which is no mail port: the line is up" in row(added(shut, WEB))["why"]


def test_servers_that_refuse_by_their_own_words_are_selective_not_a_block() -> None:
    listed = changed(network(), 25, 4, verdict="rejected", failure="blocklisted")
    found = row(listed)
    assert (found["verdict"], found["answered"]) == ("selective", 8)
    assert "say that this address is listed: op0, op1, op2, op3" in found["why"]
    everywhere = row(changed(network(), 25, verdict="rejected", failure="blocklisted"))
    assert everywhere["verdict"] == "selective" and everywhere["block_probability"] < 0.01


@pytest.mark.parametrize(("failure", "family", "verdict"), [
    ("local_denied", 4, "blocked_by_host"), ("local_denied", 6, "blocked_by_host"),
    ("local_no_route", 4, "offline"), ("local_no_route", 6, "no_ipv6"),
])  # fmt: skip
def test_what_this_machine_refuses_is_not_blamed_on_the_network(failure: str, family: int, verdict: str) -> None:
    both = {"verdict": "local_error", "failure": failure, "errno": "EPERM", "family": family}
    found = row(network(25, 587, **both))
    assert found["verdict"] == verdict and pd.isna(found["block_probability"])
    assert "EPERM" in found["why"].split("; ")[0]
    assert row(network(25, **both))["verdict"] == "blocked_by_host"  # 587 gets out, so there is a route


def test_a_reject_of_this_machines_own_filter_is_its_own() -> None:
    own = {"verdict": "blocked_icmp", "icmp_from": "192.168.1.2", "local_address": "192.168.1.2"}
    assert row(network(25, **own).assign(local_address="192.168.1.2"))["verdict"] == "blocked_by_host"


OWN_FILTER = """
ip link set lo up
ip link add v0 type veth peer name v1
ip address add 10.9.0.1/24 dev v0
ip link set v0 up
ip link set v1 up
ip neighbour add 10.9.0.2 lladdr 02:00:00:00:00:01 dev v0
ip route add default via 10.9.0.2
nft -f - <<RULES
table ip t {
 chain c {
  type filter hook output priority 0
  tcp dport 25 reject with icmp admin-prohibited
 }
}
RULES
exec "$0" -c "import deliverkit as dk
hosts = [f'198.18.{i}.1' for i in range(4)]
probes = dk.probe(hosts, (25, 587), timeout=1, pace=None, progress=False)
print(*dk.egress(probes)['verdict'])"
"""


def test_a_real_reject_of_this_machines_own_filter_is_not_blamed_on_the_network(
    need: Callable[[str, str], str],
) -> None:
    for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2")):
        need(program, package)
    flags = "-n" if os.geteuid() == 0 else "-rn"
    if subprocess.run(["unshare", flags, "nft", "list", "ruleset"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces with nftables are not permitted here")
    command = ["unshare", flags, "sh", "-ec", OWN_FILTER, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "blocked_by_host offline", done.stderr


def test_who_turns_several_operators_away_on_the_way_is_named() -> None:
    found = row(network(25, verdict="blocked_icmp", failure="icmp_admin_prohibited", icmp_from="10.0.0.1"))
    assert found["verdict"] == "blocked_by_network"
    assert "10.0.0.1, on the way, turns away SYNs to 8 operators" in found["why"]


def test_the_hop_where_a_port_dies_is_named() -> None:
    found = row(network(25, last_hop=2, last_hop_from="10.0.0.1"))
    assert found["verdict"] == "blocked_by_network"
    assert "SYNs to 8 operators die after hop 2 (10.0.0.1), where other ports of the same hosts go on" in found["why"]
    assert "before the first router" in row(network(25, last_hop=0))["why"]


def test_hops_make_three_operators_surer() -> None:
    plain, traced = network(25, n=3), network(25, n=3, last_hop=2, last_hop_from="10.0.0.1")
    assert row(plain)["confidence"] < row(traced)["confidence"]


def test_the_last_routers_before_different_servers_are_no_filter_of_mine() -> None:
    frame = changed(network(), 25, 3, **SILENT, last_hop=9)
    frame["last_hop_from"] = [f"198.18.{i}.1" if hop else None for i, hop in enumerate(frame["last_hop"])]
    assert "die" not in row(frame)["why"]


def test_the_sentence_gives_the_counts() -> None:
    frame = old_network("drop", q=0)
    assert row(frame)["why"] == "0 of 8 hosts of 6 operators answered on 25: all stay silent; 8 of 8 answered on 587"


def test_a_host_that_is_dead_from_everywhere_is_left_out_and_one_that_is_up_elsewhere_counts_more() -> None:
    here = network(25, n=4).assign(vantage="office")
    there = changed(network(n=4), 25, 1, **SILENT).assign(vantage="cloud")
    alone, both = row(here), egress(pd.concat([here, there])).query("vantage == 'office' and port == 25").iloc[0]
    assert "left out, as silent where the port is open: mx0.op0.example" in both["why"]
    assert "3 of these hosts answered from another network" in both["why"]
    assert alone["verdict"] == both["verdict"] == "blocked_by_network"


def test_source_addresses_and_ip_versions_are_judged_apart() -> None:
    four = network(25, local_address="10.0.0.5", family=4).assign(local_address="10.0.0.5", family=4)
    six = network().assign(address=[f"2a00::{i}" for i in range(16)])
    other = network().assign(local_address="10.0.0.6", family=4)
    found = egress(pd.concat([four, six, other])).query("port == 25")
    told = set(
        found[["family", "local_address", "verdict"]]
        .astype(object)
        .where(found.notna(), None)
        .itertuples(index=False, name=None)
    )
    assert told == {(4, "10.0.0.5", "blocked_by_network"), (4, "10.0.0.6", "open"), (6, None, "open")}
    text = show_egress(found)
    assert "port 25, IPv4, from 10.0.0.5: blocked by network" in text and "port 25, IPv6" in text


def test_a_failed_connect_without_a_source_address_takes_that_of_its_network() -> None:
    frame = network(25)
    frame["local_address"] = ["10.0.0.5" if verdict == "open" else None for verdict in frame["verdict"]]
    assert list(egress(frame)["verdict"]) == ["blocked_by_network", "open"]


def test_only_the_last_attempt_counts() -> None:
    first, last = network(25).assign(attempt=1), network().assign(attempt=2)
    assert row(pd.concat([last, first]))["verdict"] == "open"


def test_cancelled_and_nameless_probes_are_no_silence() -> None:
    assert row(changed(network(), 25, 6, verdict="cancelled"))["controls"] == 2
    lost = row(changed(network(), 25, verdict="dns_fail", failure="dns_nxdomain"))
    assert (lost["verdict"], lost["controls"]) == ("unclear", 0) and "no name was found" in lost["why"]
    dark = egress(network(25, 587, verdict="dns_fail", failure="dns_timeout"))
    assert set(dark["verdict"]) == {"unclear"} and "no name server answered" in dark["why"][0]


SIGNS: dict[str, dict[str, Any]] = {
    "a": {"verdict": "tampered", "banner": "220 ******************"},
    "h": {"verdict": "tampered", "failure": "starttls_stripped", "features": "SIZE"},
    "b": {"verdict": "open_no_tls", "mode": "cleartext", "features": "SIZE"},
    "c": {"banner": "220 proxy.example ESMTP"},
    "g": {"verdict": "not_smtp", "failure": "not_smtp", "banner": None, "text": "HTTP/1.1 302 Found"},
}


@pytest.mark.parametrize("letter", SIGNS)
def test_each_sign_of_interception_is_seen_at_three_operators_and_not_at_two(letter: str) -> None:
    found = row(changed(network(), 25, **SIGNS[letter]))
    assert found["verdict"] == "intercepted" and letter in found["signals"].split()
    assert found["why"].startswith("8 of 8 operators ")
    assert row(changed(network(n=4), 25, 3, **SIGNS[letter]))["verdict"] == "intercepted"
    assert row(changed(network(), 25, 2, **SIGNS[letter]))["verdict"] != "intercepted"


def test_a_web_page_from_all_that_answer_is_a_portal() -> None:
    assert row(changed(changed(network(), 25, **SILENT), 25, 2, **SIGNS["g"]))["verdict"] == "intercepted"


def test_one_certificate_for_all_is_a_sign_unless_it_names_them_all() -> None:
    same = {"cert_sha256": "ab" * 32, "cert_matches": False}
    assert row(changed(network(), 25, **same))["signals"] == "c"
    assert row(changed(network(), 25, **same | {"cert_matches": True}))["verdict"] == "open"


def test_the_same_words_after_ehlo_are_a_sign_only_where_they_differ_elsewhere() -> None:
    stock = changed(changed(network(), 25, features="DSN SIZE STARTTLS"), 587, features="DSN SIZE STARTTLS")
    assert row(stock)["verdict"] == "open" and pd.isna(row(stock)["signals"])
    stock.loc[stock["port"] == 587, "features"] = [f"STARTTLS X-{i}" for i in range(8)]
    assert row(stock)["signals"] == "c" and "though not elsewhere" in row(stock)["why"]


def test_foreign_names_are_a_sign_only_where_the_hosts_carry_their_own_elsewhere() -> None:
    names = [f"220 node{i}.cdn{i}.example ESMTP" for i in range(8)]
    frame = network()
    frame.loc[frame["port"] == 25, "banner"] = names
    assert row(frame)["signals"] == "d"
    frame.loc[frame["port"] == 587, "banner"] = names
    assert pd.isna(row(frame)["signals"]) and row(frame)["verdict"] == "open"


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.7", "2001:db8::1"])
def test_an_answer_from_an_address_that_nobody_has_is_a_proxy(address: str) -> None:
    test = {"host": address, "operator": "nobody", "port": 25, "family": 4, "verdict": "open"}
    found = row(added(network().assign(family=4), test))
    assert (found["verdict"], found["signals"], found["controls"]) == ("intercepted", "e", 8)
    assert found["why"].startswith(f"{address} answers, an address that nobody has")
    silent = row(added(network().assign(family=4), test | SILENT))
    assert silent["verdict"] == "open" and silent["why"] == row(network().assign(family=4))["why"]


def test_equal_distances_count_only_beside_another_sign() -> None:
    frame = network().assign(connect_s=[0.02, 0.1] * 8)
    assert pd.isna(row(frame)["signals"])
    assert row(changed(frame, 25, **SIGNS["c"]))["signals"] == "c d f"


def test_starttls_that_an_earlier_run_saw_and_this_one_does_not_was_taken_out() -> None:
    now = changed(network(ports=(25, 465)), 25, **SIGNS["b"])
    assert row(now)["verdict"] == "open"
    assert row(now, earlier=network(ports=(25,)))["signals"] == "b"


def test_a_loss_of_ones_own_changes_how_much_silence_proves() -> None:
    frame = network(25, n=3)
    assert (
        row(frame, loss=0.7)["block_probability"]
        < row(frame)["block_probability"]
        < row(frame, loss=0.01)["block_probability"]
    )
    assert row(frame, loss=0.7)["verdict"] == "unclear"
    with pytest.raises(SchemaError, match="loss is a share from 0 to 1"):
        egress(frame, loss=10)


def test_the_forecast_stands_beside_the_verdict_and_what_differs_is_said() -> None:
    published = dk.forecast(network="Hetzner Cloud", provider="SendGrid")
    found = row(network(25), forecast=published), row(network(25), 587, forecast=published)
    assert [(f["expected"], f["differs"]) for f in found] == [("blocked", False), ("open", False)]
    surprise = row(network(587), 587, forecast=published)
    assert surprise["differs"] is True and "not as published: Hetzner Cloud on 587: allowed" in surprise["why"]
    assert row(network(), forecast=published)["differs"] is True
    assert pd.isna(row(network(25, n=2), forecast=published)["differs"])  # unclear differs from nothing
    assert "not as published" in show_egress(egress(network(587), forecast=published))


def test_every_column_is_there_and_the_words_of_strangers_are_made_visible() -> None:
    found = egress(changed(network(), 25, banner="220 a\x1b[31m\u202e.example ESMTP", features="\x1b[2J"))
    EGRESS.check(found)
    assert "\x1b" not in " ".join(found["why"]) and "\u202e" not in " ".join(found["why"])


def test_a_frame_without_verdicts_is_refused() -> None:
    with pytest.raises(SchemaError, match="verdict"):
        egress(pd.DataFrame({"host": ["a.example"], "port": [25]}))
    assert egress(network().iloc[:0]).empty and show_egress(egress(network().iloc[:0])) == "no probes"


def test_two_networks_are_compared_port_by_port() -> None:
    frame = pd.concat([network(25).assign(vantage="office"), network().assign(vantage="cloud")])
    found = compare(frame, "office", "cloud").set_index("port")
    COMPARISON.check(found.reset_index())
    assert list(found["verdict"]) == ["blocked_here", "same"]
    assert found.loc[25, ["asked", "both", "only_here", "only_there", "neither"]].tolist() == [8, 0, 0, 8, 0]
    assert found["p"].tolist() == [2 / 2**8, 1.0]  # McNemar, exact, two-sided
    assert found["why"][25] == "of 8 hosts 0 answered office on 25, 8 cloud"
    assert list(compare(frame, "cloud")["verdict"]) == ["blocked_there", "same"]
    assert list(compare(frame, other="office")["vantage"]) == ["cloud", "cloud"]
    assert show_egress(compare(frame, "office")).startswith(
        "office against cloud, port 25: blocked from office (p = 0.0078): of 8"
    )


@pytest.mark.parametrize(
    ("shut", "n", "verdict"), [(1, 8, "same"), (4, 8, "too_few"), (7, 9, "differs"), (0, 5, "too_few")]
)
def test_a_difference_needs_enough_hosts(shut: int, n: int, verdict: str) -> None:
    office = changed(network(n=n), 25, shut, **SILENT) if shut else network(n=n)
    frame = pd.concat([office.assign(vantage="office"), network(n=n).assign(vantage="cloud")])
    assert compare(frame, "office").set_index("port")["verdict"][25] == verdict


def test_three_networks_make_three_comparisons_and_one_makes_none() -> None:
    frame = pd.concat([network().assign(vantage=name) for name in ("office", "cloud", "phone")])
    assert len(compare(frame)) == 6 and len(compare(frame, "phone")) == 4
    for probes, names in ((network(), ()), (frame, ("train",)), (frame, ("phone", "phone"))):
        with pytest.raises(SchemaError, match="two different vantages of the frame are wanted"):
            compare(probes, *names)


def test_the_shipped_controls_are_enough_on_each_port_and_can_be_probed(recwarn: pytest.WarningsRecorder) -> None:
    table = controls()
    assert not recwarn.list and list(table.columns) == ["host", "port", "operator", "role"]
    mail = (
        table[table["role"] == "mail"].groupby("port").agg(hosts=("host", "nunique"), operators=("operator", "nunique"))
    )
    assert list(mail.index) == list(dk.PORTS) and mail["hosts"].min() >= 8 and mail["operators"].min() >= 5
    assert set(table.loc[table["role"] == "web", "port"]) == {443}
    assert set(table.loc[table["role"] == "testnet", "host"]) == {"192.0.2.1", "2001:db8::1"}


def test_the_controls_are_probed_as_they_stand(tmp_path: Path) -> None:
    with dk.Lab("isp-blocks-25") as lab:
        doors = [(host, port) for host in lab.hosts for port in (25, 587)]
        own = pd.DataFrame([*doors, ("192.0.2.1", 25)], columns=["host", "port"])
        own.to_csv(tmp_path / "own.csv", index=False)
        table = controls(tmp_path / "own.csv")
        detour = {**lab.connect_to, ("192.0.2.1", 25): lab.connect_to[lab.hosts[0], 25]}
        probes = dk.probe(table, connect_to=detour, timeout=1, pace=None, progress=False)
    assert table["role"].value_counts().to_dict() == {"mail": 16, "testnet": 1}
    assert egress(probes)["verdict"].tolist() == ["blocked_by_network", "open"]


def test_a_thin_list_is_warned_of_and_a_broken_one_refused(tmp_path: Path) -> None:
    thin = pd.DataFrame({"host": [f"mx{i}.op{i}.example" for i in range(7)], "port": 25})
    with pytest.warns(UserWarning, match="port 25 has 7 hosts of 7 operators, 8 of 5 are wanted"):
        assert len(controls(thin)) == 7
    for content in ("host;port\na.example;25\n", "host,port\na.example,\n", "host,port\nhttp://a.example,25\n",
                    "host,port,role\na.example,25,king\n", "host,port\n", "", "host,port\na.example,70000\n",
                    "host,port\nwww.example.com,443\n"):  # fmt: skip
        (tmp_path / "own.csv").write_text(content, encoding="utf-8")
        with pytest.raises(FormatError, match=r"own\.csv(, line 2)?: no list of controls"):
            controls(tmp_path / "own.csv")
    with pytest.raises(FormatError, match=r"none\.csv: cannot be read: No such file"):
        controls(tmp_path / "none.csv")
