"""Where a port dies: real routers, packet filters and ICMP in a chain of network namespaces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deliverkit as dk
from deliverkit.path import deaths
from tests.servers.chain import Chain

WALKER = """if True:
    import json, sys
    from threading import Event, Timer
    from deliverkit.path import deaths
    capabilities = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")]
    print(capabilities, flush=True)
    for line in sys.stdin:
        address, implicit, dead, wait, stops = json.loads(line)
        stop = Event()
        if stops is not None:
            Timer(stops, stop.set).start()
            stop.wait() if stops == 0 else None
        found = deaths(address, (587, implicit), dead, stop, wait)
        print(json.dumps(list(found.items())), flush=True)
"""
WITHOUT = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
MUTE = ("output icmp type time-exceeded drop", "output icmpv6 type time-exceeded drop")
TIRED = [rule.replace("drop", "limit rate over 1/hour burst 1 packets drop") for rule in MUTE]


@pytest.fixture(scope="module")
def chain(need: Callable[[str, str], str]) -> Iterator[Chain]:
    need("setpriv", "util-linux")
    with Chain(need) as made:
        yield made


@pytest.fixture(scope="module")
def walk(chain: Chain) -> Iterator[Any]:
    """`walk(version, *dead)`: what `deaths` finds at the client's, in a process without any privilege."""
    command = [*chain.enter("client"), *WITHOUT, sys.executable, "-c", WALKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as walker:
        assert walker.stdin and walker.stdout
        asks, answers = walker.stdin, walker.stdout
        assert answers.readline() == "['0000000000000000']\n"

        def ask(version: int, *dead: int, implicit: bool = False, wait: float = 0.2,
                stops: float | None = None) -> dict[int, tuple[int, str | None]]:  # fmt: skip
            print(json.dumps([chain.faces["server"][version], implicit, dead, wait, stops]), file=asks, flush=True)
            return {port: tuple(end) for port, end in json.loads(answers.readline())}

        try:
            yield ask
        finally:
            walker.kill()


@pytest.fixture
def server(chain: Chain) -> Iterator[Any]:
    """A server on port 587 at the end of the way, all filters open."""
    for node in chain.nodes:
        chain.rules(node)
    with chain.serve(587) as process:
        yield process


def rules(chain: Chain, *more: str) -> None:
    """A port for each way to die: r2 25, 465, 2525; the client 2526, 2527; r3 2530; the server 2528, 2531, 2532."""
    chain.rules("client", "output tcp dport 2526 drop", "output tcp dport 2527 reject with icmpx type admin-prohibited")
    chain.rules(
        "r2",
        "forward tcp dport 25 drop",
        "forward tcp dport 465 reject with tcp reset",
        "forward tcp dport 2525 reject with icmpx type admin-prohibited",
        *more,
    )
    chain.rules("r3", "forward tcp dport 2530 reject with icmpx type host-unreachable", *more)
    chain.rules("server", "input tcp dport 2528 drop", "input tcp dport 2532 reject with icmpx type port-unreachable")


ALL = (25, 465, 2525, 2526, 2527, 2528, 2530, 2531, 2532)
OURS = {2526: (0, None), 2527: (0, None)}


@pytest.mark.parametrize("version", [4, 6])
def test_every_port_dies_after_its_hop(chain: Chain, server: Any, walk: Any, version: int) -> None:
    rules(chain)
    r2, r3 = (2, chain.faces["r2"][version]), (3, chain.faces["r3"][version])
    assert walk(version, *ALL) == OURS | {25: r2, 465: r2, 2525: r2, 2528: r3, 2530: r3}


def test_behind_a_router_that_never_answers_the_hop_is_missing_and_not_wrong(
    chain: Chain, server: Any, walk: Any
) -> None:
    rules(chain)
    chain.rules("r2", "forward tcp dport 25 drop", "forward tcp dport 465 reject with tcp reset", *MUTE)
    assert walk(4, 25, 465, 2526, 2528) == {2526: (0, None), 2528: (3, chain.faces["r3"][4]), 465: (2, None)}


def test_where_no_router_answers_only_refusals_tell_their_hop(chain: Chain, server: Any, walk: Any) -> None:
    rules(chain, *MUTE)
    chain.rules("r1", *MUTE)
    assert walk(4, 25, 465, 2525, 2526, 2528) == {465: (2, None), 2525: (2, None)}


@pytest.mark.parametrize("version", [4, 6])
def test_routers_that_answer_so_many_times_only_do_not_look_like_a_filter(
    chain: Chain, server: Any, walk: Any, version: int
) -> None:
    chain.rules("server", "input tcp dport 2528 drop")
    for node in ("r1", "r2", "r3"):
        chain.rules(node, *TIRED)
    assert walk(version, 2528) == {}


def test_a_port_that_is_alive_again_is_left_out(chain: Chain, server: Any, walk: Any) -> None:
    assert walk(4, 587) == {}
    assert [server.stdout.readline() for _ in range(2)] == 2 * ["QUIT end\n"]
    server.kill()
    assert server.stdout.read() == ""


def test_a_live_port_that_cannot_be_reached_tells_nothing(chain: Chain, server: Any, walk: Any) -> None:
    chain.rules("r2", "forward tcp dport {25, 587} drop")
    assert walk(4, 25, wait=0.1) == {}


def test_one_syn_a_hop_is_sent_and_the_server_sees_one_session_that_ends_with_quit(
    chain: Chain, server: Any, walk: Any
) -> None:
    count = ("output tcp dport 25 tcp flags syn counter", "output tcp dport 587 tcp flags syn counter")
    chain.rules("client", *count)
    chain.rules("r2", "forward tcp dport 25 drop")
    assert walk(4, 25) == {25: (2, chain.faces["r2"][4])}
    listed = chain.run("client", "nft", "list", "ruleset")
    counts = [int(found) for found in re.findall(r"counter packets (\d+)", listed)]
    assert counts == [5, 5]  # four hops each; then hop 3 again on both, whether its router still answers
    assert server.stdout.readline() == "QUIT end\n"


def test_an_implicit_port_is_left_without_a_word(chain: Chain, server: Any, walk: Any) -> None:
    chain.rules("r2", "forward tcp dport 25 drop")
    assert walk(4, 25, implicit=True) == {25: (2, chain.faces["r2"][4])}
    assert server.stdout.readline() == "end\n"


@pytest.mark.parametrize("stops", [0.0, 0.5])
def test_a_walk_can_be_ended(chain: Chain, server: Any, walk: Any, stops: float) -> None:
    rules(chain)
    assert walk(4, 465, 25, wait=120, stops=stops) == ({465: (2, chain.faces["r2"][4])} if stops else {})


def test_elsewhere_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliverkit.path.ERRQUEUE", 0)
    assert deaths("192.0.2.1", (587, False), [25]) == {}


PROBE = """if True:
    import sys, deliverkit as dk
    frame = dk.probe(sys.argv[1], (25, 465, 587), pace=None, timeout=4, trace=True, progress=False, out=sys.argv[2])
    print(frame[["port", "verdict", "blocked_by", "last_hop", "last_hop_from"]].to_json(orient="values"))
"""


def test_a_probe_with_trace_says_where_its_ports_die_and_so_does_its_file(
    chain: Chain, server: Any, tmp_path: Path
) -> None:
    rules(chain)
    told = chain.run("client", sys.executable, "-c", PROBE, chain.faces["server"][4], str(tmp_path / "a.jsonl"))
    found = json.loads(told)
    router = chain.faces["r2"][4]
    assert found == [
        [25, "filtered", "network", 2, router],
        [465, "closed", "network", 2, router],  # a reset, but not the server's
        [587, found[2][1], found[2][2], None, None],
    ]
    back = dk.read(tmp_path / "a.jsonl").set_index("port")
    assert back["last_hop"].dropna().to_dict() == {25: 2, 465: 2} and len(back) == 3
