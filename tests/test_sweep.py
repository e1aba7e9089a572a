"""Sweeps against servers on loopback: what counts as a target, deadlines, politeness, and how to stop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deliverkit as dk
from deliverkit.errors import FormatError, TargetError
from deliverkit.loop import Turns, why
from deliverkit.resolve import Answer
from deliverkit.schema import PROBES
from deliverkit.targets import jobs_of

HOST = "mx1.aurora.example"
Log = list[tuple[float, str, str]]  # time, connection, what happened


def polite_server(sock: socket.socket, note: Callable[[str], None]) -> None:
    """Greets late and notes every command."""
    sock.settimeout(0.3)
    with suppress(TimeoutError):
        note("early " + repr(sock.recv(100)))
    sock.settimeout(5)
    sock.sendall(b"220 mx.example ESMTP\r\n")
    for line in sock.makefile("rb"):
        note(line.decode().strip())
        sock.sendall({b"QUIT": b"221 bye\r\n", b"STAR": b"500 what?\r\n"}.get(line[:4], b"250-mx\r\n250 SIZE\r\n"))
        if line.startswith(b"QUIT"):
            return


def says(*parts: bytes, every: float = 0.0, hold: bool = True) -> Callable[..., None]:
    """A server that sends the parts and then waits for the client to go, or goes itself."""

    def act(sock: socket.socket, _: Callable[[str], None]) -> None:
        for part in parts:
            sock.sendall(part)
            time.sleep(every)
        while hold and sock.recv(4096):
            pass

    return act


@contextmanager
def server(act: Callable[..., None], family: int = socket.AF_INET) -> Iterator[tuple[int, Log]]:
    """A loopback server that runs `act(sock, note)` in a thread per connection; its port and its log."""
    log: Log = []
    listener = socket.create_server(
        ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family, backlog=512
    )

    def one(sock: socket.socket, name: str) -> None:
        with sock, suppress(OSError):
            act(sock, lambda text: log.append((time.monotonic(), name, text)))
        log.append((time.monotonic(), name, "end"))

    def accept() -> None:
        with suppress(OSError):
            for number in range(1000):
                sock, _ = listener.accept()
                log.append((time.monotonic(), str(number), "begin"))
                threading.Thread(target=one, args=(sock, str(number)), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], log
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def one(port: int, asked: int = 25, **how: Any) -> dict[str, Any]:
    """Probe one loopback server as if it were port `asked` of a host."""
    how = {"timeout": 1, "pace": None, "progress": False} | how
    [row] = dk.probe([HOST], asked, connect_to={(HOST, asked): ("127.0.0.1", port)}, **how).to_dict("records")
    return {str(key): value for key, value in row.items()}


# Targets


@pytest.mark.parametrize(
    ("targets", "ports", "how"),
    [
        (["a.example"], 0, {}),
        (["a.example"], [25, 70000], {}),
        (["a.example"], ["smtp"], {}),
        (["a.example"], [True], {}),
        (["a.example"], [25.5], {}),
        ("a.example:0", [25], {}),
        ("a.example:smtp", [25], {}),
        ("a.example:", [25], {}),
        ("", [25], {}),
        ([" "], [25], {}),
        (["a b"], [25], {}),
        (["a..example"], [25], {}),
        (["x" * 64 + ".example"], [25], {}),
        (["a.example\r\nQUIT"], [25], {}),
        (["http://a.example"], [25], {}),
        ([None], [25], {}),
        ([b"a.example"], [25], {}),
        (["[::1"], [25], {}),
        (["[nonsense]"], [25], {}),
        (pd.DataFrame({"name": ["a.example"]}), [25], {}),
        (pd.DataFrame({"host": ["a.example"], "port": [70000]}), [25], {}),
        (pd.DataFrame({"host": ["a.example"], "port": [25.5]}), [25], {}),
        (pd.DataFrame({"host": [None]}), [25], {}),
        (None, [25], {}),
        (["a.example"], None, {}),
        ("a.example", [25], {"timeout": 0}),
        ("a.example", [25], {"timeout": -1}),
        ("a.example", [25], {"timeout": "slow"}),
        ("a.example", [25], {"timeout": float("nan")}),
        ("a.example", [25], {"timeout": float("inf")}),
        ("a.example", [25], {"timeout": True}),
        ("a.example", [25], {"timeout": None}),
        ("a.example", [25], {"in_flight": 0}),
        ("a.example", [25], {"in_flight": 1.5}),
        ("a.example", [25], {"pace": "fast"}),
        ("a.example", [25], {"attempts": 0}),
        ("a.example", [25], {"stop": True}),
        ("a.example", [25], {"resolver": 3}),
        ("a.example", [25], {"family": 5}),
        ("a.example", [25], {"family": True}),
        ("a.example", [25], {"ehlo_name": "a\r\nMAIL"}),
        ("a.example", [25], {"ehlo_name": ""}),
        ("a.example", [25], {"connect_to": "a:b"}),
        ("a.example", [25], {"connect_to": ["a:70000:127.0.0.1:25"]}),
        ("a.example", [25], {"connect_to": {"a.example": "127.0.0.1"}}),
        ("a.example", [25], {"connect_to": {("a.example", 25): ("127.0.0.1", "smtp")}}),
        ("a.example", [25], {"connect_to": {("a.example", 25): ("two words", 25)}}),
        ("a.example", [25], {"connect_to": 5}),
    ],
)
def test_what_must_not_be_run_is_refused_in_one_line(targets: Any, ports: Any, how: dict[str, Any]) -> None:
    with pytest.raises(TargetError) as refusal:
        dk.probe(targets, ports, **{"resolver": nowhere} | how)
    assert "\n" not in str(refusal.value)


def nowhere(name: str) -> Answer:
    return Answer((), "dns_nxdomain")


def asked(targets: Any, ports: Any = (25, 587)) -> list[tuple[str, int]]:
    frame = dk.probe(targets, ports, resolver=nowhere, connect_to="::127.0.0.1:1", pace=None, progress=False)
    return list(zip(frame["host"], frame["port"], strict=True))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("a.example", [("a.example", 25), ("a.example", 587)]),
        ("a.example:465", [("a.example", 465)]),
        ("127.0.0.1:26", [("127.0.0.1", 26)]),
        ("::1", [("::1", 25), ("::1", 587)]),
        ("[::1]:26", [("::1", 26)]),
        (["b.example:25", "a.example:25", "B.example.:25"], [("b.example", 25), ("a.example", 25)]),
        (["bücher.example:25"], [("bücher.example", 25)]),
        (pd.Series(["a.example:25"]), [("a.example", 25)]),
        (pd.DataFrame({"host": ["a.example:26", " b.example"]}),
         [("a.example", 26), ("b.example", 25), ("b.example", 587)]),
        (pd.DataFrame({"host": ["a.example", "b.example"], "port": [25, None]}),
         [("a.example", 25), ("b.example", 25), ("b.example", 587)]),
        ([], []),
    ],
)  # fmt: skip
def test_targets_become_rows_in_the_order_asked(targets: Any, expected: list[tuple[str, int]]) -> None:
    assert asked(targets) == expected


def test_no_targets_give_an_empty_frame_with_all_columns() -> None:
    assert list(dk.probe([], progress=False).columns) == PROBES.names


def test_an_operator_given_with_the_host_is_kept() -> None:
    table = pd.DataFrame({"host": ["a.example"], "operator": ["acme"]})
    frame = dk.probe(table, 25, connect_to="::127.0.0.1:1", pace=None, vantage="office")
    assert frame[["operator", "vantage", "origin", "attempted"]].iloc[0].tolist() == ["acme", "office", "probe", True]


# connect_to


@pytest.mark.parametrize(
    "form",
    [
        lambda p: {(HOST, 25): ("127.0.0.1", p)},
        lambda p: {(HOST, None): ("127.0.0.1", p)},
        lambda p: {(None, 25): ("127.0.0.1", p)},
        lambda p: {("", None): ("127.0.0.1", p)},
        lambda p: {(HOST.upper() + ".", "25"): ("127.0.0.1", str(p))},
        lambda p: f"{HOST}:25:127.0.0.1:{p}",
        lambda p: ["other.example:25:127.0.0.1:1", f"::[127.0.0.1]:{p}"],
        lambda p: iter([f"{HOST}::127.0.0.1:{p}", f"{HOST}:25:127.0.0.1:1"]),
    ],
)
def test_connect_to_leads_elsewhere_in_each_form(form: Callable[[int], Any]) -> None:
    with server(polite_server) as (port, _):
        [row] = dk.probe(HOST, 25, connect_to=form(port), timeout=2, pace=None).to_dict("records")
    assert (row["host"], row["port"], row["address"], row["verdict"]) == (HOST, 25, "127.0.0.1", "open_no_tls")


def test_an_empty_right_side_keeps_what_was_asked() -> None:
    with server(polite_server) as (port, _):
        [row] = dk.probe(f"127.0.0.1:{port}", connect_to=[":::"], timeout=2, pace=None).to_dict("records")
    assert (row["port"], row["address"], row["verdict"]) == (port, "127.0.0.1", "open_no_tls")


def test_a_mapped_host_is_not_asked_of_the_dns() -> None:
    def never(name: str) -> Answer:
        raise AssertionError(name)

    with server(polite_server) as (port, _):
        assert one(port, resolver=never)["verdict"] == "open_no_tls"


# Names


@pytest.mark.parametrize("word", ["dns_nxdomain", "dns_nodata", "dns_servfail", "dns_timeout", "null_mx"])
def test_a_name_without_address_is_a_row(word: str) -> None:
    frame = dk.probe("gone.example", (25, 587), resolver=lambda name: Answer((), word), pace=None)
    assert frame[["reached", "verdict", "failure", "step"]].drop_duplicates().to_numpy().tolist() == [
        ["dns", "dns_fail", word, "connect"]
    ]
    assert frame["dns_s"].notna().all() and frame["address"].isna().all()


def test_a_name_is_looked_up_once_however_many_ports_it_has() -> None:
    seen: list[str] = []

    def resolver(name: str) -> Answer:
        seen.append(name)
        return Answer(("127.0.0.1",))

    frame = dk.probe(["a.example", "A.example."], (1, 2, 3), resolver=resolver, pace=None)
    assert seen == ["a.example"] and frame["address"].tolist() == ["127.0.0.1"] * 3


def test_slow_names_do_not_hold_up_fast_ones() -> None:
    def resolver(name: str) -> Answer:
        time.sleep(1.0 if name.startswith("slow") else 0.0)
        return Answer((), "dns_nodata")

    begun, times = time.monotonic(), []
    names = [f"slow{i}.example" for i in range(8)] + [f"fast{i}.example" for i in range(8)]
    dk.probe(names, 25, resolver=resolver, pace=None, progress=lambda *_: times.append(time.monotonic() - begun))
    assert times[7] < 0.7 and times[-1] < 1.7


def test_an_error_of_the_resolver_reaches_the_caller() -> None:
    def broken(name: str) -> Answer:
        raise RuntimeError("no such resolver")

    with pytest.raises(RuntimeError, match="no such resolver"):
        dk.probe("a.example", 25, resolver=broken)


def test_ipv6_is_used_where_there_is_no_ipv4() -> None:
    try:
        with server(polite_server, socket.AF_INET6) as (port, _):
            frame = dk.probe(f"six.example:{port}", resolver=lambda name: Answer(("::1",)), timeout=2, pace=None)
    except OSError:
        pytest.skip("this machine has no IPv6 on loopback")
    assert frame[["address", "ehlo_name", "verdict"]].iloc[0].tolist() == ["::1", "[IPv6:::1]", "open_no_tls"]


# Words from real sockets


@pytest.mark.parametrize(
    ("act", "asked", "expected"),
    [
        (says(), 25, ("banner", "accepts_no_banner", "banner_timeout")),
        (says(), 465, ("tls", "accepts_no_banner", "tls_timeout")),
        (says(hold=False), 25, ("banner", "closed_after_accept", "eof")),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n", hold=False), 25, ("banner", "not_smtp", "not_smtp")),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n", hold=False), 465, ("tls", "not_smtp", "tls_protocol")),
        (says(b"220 mx ESMTP\r\n"), 465, ("tls", "open_tls_broken", "tls_protocol")),
        (says(b"\x15\x03\x03\x00\x02\x02\x28", hold=False), 25, ("banner", "not_smtp", "wants_tls")),
        (says(b"\x15\x03\x03\x00\x02\x02\x28"), 465, ("tls", "open_tls_broken", "tls_alert_handshake_failure")),
        (says(b"421 4.3.2 closing\r\n", hold=False), 25, ("banner", "deferred", "smtp_4xx")),
        (says(b"554 5.7.1 listed by spamhaus\r\n", hold=False), 25, ("banner", "rejected", "blocklisted")),
    ],
)
def test_each_ending_has_its_words(act: Any, asked: int, expected: tuple[str, str, str]) -> None:
    with server(act) as (port, _):
        row = one(port, asked)
    assert (row["reached"], row["verdict"], row["failure"]) == expected


def test_a_closed_port_is_refused_with_its_errno_and_without_icmp() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        row = one(held.getsockname()[1])
    assert (row["verdict"], row["failure"], row["errno"]) == ("closed", "tcp_refused", "ECONNREFUSED")
    assert pd.isna(row["icmp_type"]) and row["text"] == "Connection refused" and row["blocked"]


def test_a_refused_row_says_what_the_mode_of_the_port_would_have_been() -> None:
    frame = dk.probe("127.0.0.1", (1, 465), connect_to="::127.0.0.1:1", pace=None)
    assert frame["mode"].tolist() == ["starttls", "implicit"]


def test_the_step_is_the_one_reached_and_the_outcome_fits() -> None:
    with server(says(b"554 5.7.1 listed by spamhaus\r\n", hold=False)) as (port, _):
        row = one(port)
    assert (row["step"], row["outcome"], row["category"]) == ("rules", "failed", "reputation_block")
    with server(polite_server) as (port, _):
        row = one(port)
    assert (row["step"], row["outcome"], row["mode"]) == ("rules", "passed", "cleartext")


# The reference


def test_smtplib_sees_the_same_server() -> None:
    with dk.Lab("open") as lab:
        address = lab.connect_to[HOST, 587]
        row = dk.probe(HOST, 587, connect_to=lab.connect_to, pace=None).to_dict("records")[0]
        with smtplib.SMTP(*address) as reference:
            banner = "220 " + reference.connect(*address)[1].decode()
            reference.ehlo("x")
            features = " ".join(sorted(reference.esmtp_features)).upper()
            reference.starttls()
            reference.ehlo("x")
            auth = " ".join(sorted(reference.esmtp_features["auth"].split()))
            assert isinstance(reference.sock, socket.socket)
            version, cipher = reference.sock.version(), reference.sock.cipher()  # type: ignore[attr-defined]
    assert (row["banner"], row["features"], row["auth_after_tls"]) == (banner, features, auth)
    assert (row["tls_version"], row["cipher"]) == (version, cipher[0])


# Deadlines


@pytest.mark.parametrize(
    ("act", "failure"),
    [
        (says(), "banner_timeout"),
        (says(b"220 ", *[b"x"] * 100, every=0.1), "banner_slow"),
        (says(b"220 mx\r\n", *[b"250-x\r\n"] * 100, every=0.1), "total_timeout"),
    ],
)
def test_a_server_that_is_slow_in_any_way_ends_at_the_deadline_of_its_stage(act: Any, failure: str) -> None:
    with server(act) as (port, _):
        begun = time.monotonic()
        row = one(port, timeout=0.5)
    assert row["failure"] == failure and time.monotonic() - begun < 2.0


def test_a_tarpit_that_finishes_in_time_is_open() -> None:
    banner = [bytes([c]) for c in b"220 tar\r\n"]
    with server(says(*banner, every=0.05)) as (port, _):
        row = one(port, timeout=1.5)
    assert row["reached"] == "ehlo" and 0.3 < row["banner_s"] < 1.2


def test_the_whole_probe_ends_even_if_every_stage_keeps_to_its_time() -> None:
    from deliverkit.targets import limits_of

    assert limits_of(2)["total"] == 2 + 2 + 3 * 2 + 2
    assert {word: limits_of(word)["banner"] for word in ("quick", "standard", "patient")} == {
        "quick": 10, "standard": 30, "patient": 300,
    }  # fmt: skip
    assert limits_of("patient")["quit"] == 2


def test_quit_is_not_waited_for_long() -> None:
    def mute_at_quit(sock: socket.socket, note: Callable[[str], None]) -> None:
        sock.sendall(b"220 mx\r\n")
        for line in sock.makefile("rb"):
            if not line.startswith(b"QUIT"):
                sock.sendall(b"250 mx\r\n")

    with server(mute_at_quit) as (port, _):
        begun = time.monotonic()
        row = one(port, timeout="standard")
    assert row["verdict"] == "open_no_tls" and 1.5 < time.monotonic() - begun < 3.5


def test_the_dead_cost_one_timeout_together() -> None:
    with server(says()) as (port, _):
        begun = time.monotonic()
        routes = {(f"mx.op{i}.example", 25): ("127.0.0.1", port) for i in range(300)}
        frame = dk.probe([host for host, _ in routes], 25, connect_to=routes, timeout=1, pace=None)
    assert frame["failure"].eq("banner_timeout").all() and time.monotonic() - begun < 2.5


def test_no_more_than_in_flight_are_open_at_once() -> None:
    with server(says()) as (port, _):
        routes = {(f"mx.op{i}.example", 25): ("127.0.0.1", port) for i in range(6)}
        begun = time.monotonic()
        dk.probe([h for h, _ in routes], 25, connect_to=routes, timeout=0.3, pace=None, in_flight=2)
    assert time.monotonic() - begun >= 3 * 0.3  # six silent servers, two at a time: three timeouts


# Politeness


def test_one_address_is_asked_once_a_second_and_one_at_a_time() -> None:
    with server(polite_server) as (port, log):
        routes = {("127.0.0.1", p): ("127.0.0.1", port) for p in (25, 587, 2525)}
        dk.probe("127.0.0.1", (25, 587, 2525), connect_to=routes, timeout=3)
    begins = [at for at, _, event in log if event == "begin"]
    assert len(begins) == 3 and min(b - a for a, b in pairwise(begins)) > 0.95
    events = [event for _, _, event in sorted(log) if event in ("begin", "end")]
    assert events == ["begin", "end"] * 3


def test_nothing_is_said_before_the_greeting_and_no_mail_is_begun() -> None:
    with server(polite_server) as (port, log):
        one(port, timeout=3)
        time.sleep(0.1)
    assert [event for _, _, event in log] == ["begin", "EHLO [127.0.0.1]", "STARTTLS", "QUIT", "end"]


def test_one_operator_is_asked_twice_a_second() -> None:
    with server(says(b"554 no\r\n", hold=False)) as (port, log):
        dk.probe([f"mx{i}.op.example:25" for i in range(4)], connect_to=f"::127.0.0.1:{port}", timeout=3)
    begins = [at for at, _, event in log if event == "begin"]
    assert 1.4 < begins[-1] - begins[0] < 2.2


def test_a_421_halves_the_pace_of_its_operator() -> None:
    with server(says(b"421 4.7.0 too many\r\n", hold=False)) as (port, log):
        dk.probe([f"mx{i}.op.example:25" for i in range(3)], connect_to=f"::127.0.0.1:{port}", timeout=3)
    first, second, third = [at for at, _, event in log if event == "begin"]
    assert 0.95 < second - first < 1.5 and 1.9 < third - second < 2.6


def test_all_together_are_at_most_a_hundred_a_second() -> None:
    with server(says(b"554 no\r\n", hold=False)) as (port, log):
        dk.probe([f"mx.op{i}.example:25" for i in range(60)], connect_to=f"::127.0.0.1:{port}", timeout=3)
    begins = sorted(at for at, _, event in log if event == "begin")
    assert 0.55 < begins[-1] - begins[0] < 3


# Stopping, and where it runs


def test_an_interrupt_stops_at_once_and_closes_everything() -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with server(says()) as (port, log), socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        routes = {(f"mx.op{i}.example", 25): ("127.0.0.1", port) for i in range(20)}
        routes["mx.op0.example", 25] = held.getsockname()  # one row comes at once
        begun = time.monotonic()
        with pytest.warns(UserWarning, match="interrupted with 1 of 20 ports done"):
            kept = dk.probe([h for h, _ in routes], 25, connect_to=routes, timeout=30, pace=None, progress=interrupt)
        assert time.monotonic() - begun < 0.5
        assert kept["verdict"].value_counts().to_dict() == {"cancelled": 19, "closed": 1}
        time.sleep(0.2)
        events = [event for _, _, event in log]
    assert events.count("begin") == events.count("end")


def test_rows_that_were_finished_when_the_interrupt_came_are_kept() -> None:
    def interrupt(done: int, total: int) -> None:
        time.sleep(1)  # meanwhile the others end, too
        raise KeyboardInterrupt

    with dk.Lab() as lab, pytest.warns(UserWarning, match="interrupted with 1 of 32"):
        kept = dk.probe(lab.hosts, connect_to=lab.connect_to, timeout=5, pace=None, progress=interrupt)
    assert kept["verdict"].eq("open").sum() > 16


@pytest.mark.skipif(sys.platform == "win32", reason="needs os.kill with SIGINT")
def test_ctrl_c_while_waiting_stops_within_half_a_second() -> None:
    with server(says()) as (port, _):
        sent: list[float] = []

        def kill() -> None:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.3, kill)
        timer.start()
        with pytest.warns(UserWarning, match="interrupted"):
            assert one(port, timeout=30)["verdict"] == "cancelled"
        assert time.monotonic() - sent[0] < 0.5


def test_stop_keeps_what_is_done_and_resume_tries_only_the_rest() -> None:
    ports = [25, 465, 587]
    with dk.Lab("isp-blocks-25") as lab:
        stop = threading.Event()
        asked: dict[str, Any] = {"connect_to": lab.connect_to, "timeout": 5, "pace": None, "vantage": "lab"}
        threading.Timer(1.0, stop.set).start()
        begun = time.monotonic()
        first = dk.probe(lab.hosts, ports, stop=stop, **asked)
        assert time.monotonic() - begun < 1.5  # port 25 would have been silent for five seconds
        assert set(first.loc[first["port"] == 25, "verdict"]) == {"cancelled"}
        assert set(first.loc[first["port"] != 25, "verdict"]) == {"open"}
        assert set(dk.block_rates(first)["port"]) == {465, 587}  # never counted
        tried: list[tuple[int, int]] = []
        second = dk.probe(lab.hosts, ports, resume=first, progress=lambda *at: tried.append(at), **asked)
        assert tried == [(n, 24) for n in range(17, 25)]
    assert list(zip(second["host"], second["port"], strict=True)) == [(h, p) for h in lab.hosts for p in ports]
    done = first["verdict"].eq("open").to_numpy()
    assert (second.loc[done, "time"].to_numpy() == first.loc[done, "time"].to_numpy()).all()
    assert set(second.loc[~done, "verdict"]) == {"filtered"}


def test_another_network_s_sweep_is_not_resumed() -> None:
    with dk.Lab() as lab:
        asked: dict[str, Any] = {"connect_to": lab.connect_to, "timeout": 5, "pace": None}
        office = dk.probe(lab.hosts[:1], vantage="office", **asked)
        cloud = dk.probe(lab.hosts[:1], vantage="cloud", resume=office, **asked)
    assert set(cloud["vantage"]) == {"cloud"} and (cloud["time"] > office["time"].max()).all()


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_no_thread_and_no_socket_is_left_behind() -> None:
    threads = threading.active_count()
    with server(polite_server) as (port, _):
        before = files()
        one(port)
        time.sleep(0.1)
        assert files() <= before
    time.sleep(0.1)
    assert threading.active_count() <= threads


def test_it_runs_where_a_loop_runs_already() -> None:
    async def cell() -> pd.DataFrame:
        return dk.probe("127.0.0.1:1", pace=None)

    assert asyncio.run(cell())["verdict"].tolist() == ["closed"]


def test_progress_is_told_row_by_row() -> None:
    seen: list[tuple[int, int]] = []
    dk.probe("127.0.0.1", (1, 2, 3), pace=None, progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_bar_is_drawn_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    dk.probe("127.0.0.1", (1, 2), pace=None, progress=True)
    assert "0/2" in capsys.readouterr().err
    dk.probe("127.0.0.1", (1, 2), pace=None)  # no terminal here
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no file limits there")
def test_a_limit_on_open_files_makes_it_slower_and_not_wrong() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with server(says()) as (port, _):
        routes = {(f"mx.op{i}.example", 25): ("127.0.0.1", port) for i in range(40)}
        used = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) if sys.platform == "linux" else 64
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
        try:
            frame = dk.probe([h for h, _ in routes], 25, connect_to=routes, timeout=0.4, pace=None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(frame["verdict"]) == {"accepts_no_banner"}


def test_a_resolver_that_gives_something_else_is_named_and_nothing_hangs() -> None:
    with pytest.raises(TargetError, match="resolver"):
        dk.probe("x.example", 25, resolver=lambda host: 5, timeout=1, pace=None)  # type: ignore[arg-type,return-value]


# The file of `out`

SPOOL = """if True:
    import sys, deliverkit as dk
    routes = {("", port): ("127.0.0.1", int(sys.argv[2])) for port in (25, 26)}
    dk.probe(["mx.op%d.example" % i for i in range(int(sys.argv[3]))], (25, 26), connect_to=routes, pace=None,
             in_flight=4, vantage="office", progress=False, timeout=5, out=sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_sweep_has_lost_a_second_of_rows_at_most_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    path, served = tmp_path / "office.jsonl", 0

    def act(sock: socket.socket, _: Callable[[str], None]) -> None:
        nonlocal served
        time.sleep(0.02)
        sock.sendall(b"554 no\r\n")
        served += 1

    with server(act) as (port, log):
        command = [sys.executable, "-c", SPOOL, str(path), str(port), "300"]
        with subprocess.Popen(command) as run:
            for _ in range(500):
                time.sleep(0.02)
                if served > 150:
                    break
            at = time.time()
            run.kill()
        before, early = served, len(log)
        with path.open("ab") as file:
            file.write(b'{"origin": "probe", "host": "mx.op')  # as if the kill had come in the middle of a line
        kept = dk.read(path)
        late = pd.Timestamp(at - 1, unit="s", tz="UTC")
        assert len(kept) >= before - 1 - 1.5 / 0.02 * 4 and kept["time"].max() > late
        assert kept["verdict"].eq("rejected").all() and kept["vantage"].eq("office").all()
        assert subprocess.run(command, check=False).returncode == 0
        begun_again = sum(event == "begin" for _, _, event in log[early:])
    frame = dk.read(path)
    assert len(frame) == 600 and not frame.duplicated(["host", "port"]).any()
    assert begun_again == 600 - len(kept)
    assert frame["category"].notna().all()


def test_the_file_and_the_frame_say_the_same_and_a_second_call_tries_nothing(tmp_path: Path) -> None:
    with dk.Lab("starttls-stripped") as lab:
        asked: dict[str, Any] = {"connect_to": lab.connect_to, "timeout": 3, "pace": None, "out": tmp_path / "a.jsonl"}
        frame = dk.probe(lab.hosts, **asked)
    again = dk.probe(lab.hosts, **asked)  # the lab is gone
    order = ["host", "port"]
    for other in (again, dk.read(tmp_path / "a.jsonl")):
        left, right = (f.sort_values(order, ignore_index=True) for f in (frame, other))
        pd.testing.assert_frame_equal(left, right)


@pytest.mark.parametrize(
    "text",
    ["nonsense", "no line end", "nonsense\n", "[1]\n", '{"origin": "probe"}\n', '{"origin": "probe", "port": "x"}\n'],
)
def test_a_file_of_something_else_is_not_written_to(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "notes.txt").write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=r"notes\.txt"):
        dk.probe("127.0.0.1:1", pace=None, out=path)
    assert path.read_text(encoding="utf-8") == text


FULL = """if True:
    import resource, sys, deliverkit as dk
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    frame = dk.probe("127.0.0.1", range(1, 41), pace=None, progress=False, out=sys.argv[1])
    print(len(frame), set(frame["verdict"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a file's size")
def test_a_full_disk_costs_the_file_and_no_row(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "40 {'closed'}\n" and "is incomplete: File too large" in done.stderr, done.stderr
    assert 0 < len(dk.read(tmp_path / "a.jsonl")) < 40


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").touch()
    dk.probe("127.0.0.1:1", pace=None, out=path)
    assert len(dk.read(path)) == 1


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be written"):
        dk.probe("127.0.0.1:1", pace=None, out=tmp_path / "no" / "a.jsonl")


# Back-off, families, and what `resolve` knows


def test_a_port_that_puts_us_off_is_tried_again_and_each_try_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter([b"450 4.3.2 later\r\n", b"220 mx\r\n"])
    with server(lambda sock, _: (sock.sendall(next(replies)), sock.recv(100))) as (port, log):
        rows = dk.probe([HOST], 25, connect_to={("", 25): ("127.0.0.1", port)}, pace=None, timeout=1, attempts=3)
    assert list(zip(rows["attempt"], rows["verdict"], strict=True)) == [(1, "deferred"), (2, "closed_after_accept")]
    begins = [at for at, _, event in log if event == "begin"]
    assert begins[1] - begins[0] > 0.95


def test_a_polite_sweep_asks_again_after_five_minutes_only() -> None:
    turns, job = Turns(polite=True), jobs_of("127.0.0.1:25", (25,), {})[0]._replace(key="127.0.0.1")
    turns.add(job)
    assert turns.take(0.0) == job and turns.take(10.0) is None
    turns.done(job, 0.0)
    turns.again(job._replace(attempt=2), 1.0)
    assert turns.take(300.9) is None
    again = turns.take(301.0)
    assert again and again.attempt == 2


def test_both_families_are_a_row_each_and_one_without_address_says_so() -> None:
    def resolver(name: str) -> Answer:
        return Answer(("127.0.0.1", "::1")) if name == "both.example" else Answer(("127.0.0.1",))

    frame = dk.probe(["both.example", "four.example"], 1, family="both", resolver=resolver, pace=None)
    assert list(zip(frame["host"], frame["family"], frame["verdict"], frame["failure"], strict=True)) == [
        ("both.example", 4, "closed", "tcp_refused"),
        ("both.example", 6, "closed", "tcp_refused"),
        ("four.example", 4, "closed", "tcp_refused"),
        ("four.example", 6, "dns_fail", "dns_nodata"),
    ]
    assert frame["local_address"].tolist()[:2] == ["127.0.0.1", "::1"]


def test_many_names_at_one_address_of_a_frame_cost_one_probe() -> None:
    frame = pd.DataFrame({"host": ["mx.a.example", "mx.b.example"], "address": ["127.0.0.1"] * 2, "port": [1, 1]})
    assert dk.probe(frame, pace=None)["host"].tolist() == ["mx.a.example"]


def test_a_frame_of_probes_is_probed_anew() -> None:
    with dk.Lab("isp-blocks-25") as lab:
        asked: dict[str, Any] = {"connect_to": lab.connect_to, "timeout": 2, "pace": None}
        first = dk.probe(lab.hosts[:2], (25, 587), **asked)
    with dk.Lab() as lab:
        again = dk.probe(first, **asked | {"connect_to": lab.connect_to})
    assert again["verdict"].tolist() == ["open"] * 4 and first["failure"].notna().sum() == 2
    assert again[["host", "port"]].equals(first[["host", "port"]])


def test_a_domain_that_led_nowhere_is_a_row() -> None:
    frame = pd.DataFrame({"domain": ["a.example"], "host": [None], "port": [25], "failure": ["null_mx"]})
    row = dk.probe(frame, pace=None).iloc[0]
    assert (row["host"], row["verdict"], row["failure"]) == ("a.example", "dns_fail", "null_mx")


def test_a_resumed_sweep_keeps_the_families_apart() -> None:
    asked: dict[str, Any] = {"resolver": lambda name: Answer(("127.0.0.1", "::1")), "pace": None}
    four = dk.probe("a.example", 1, family=4, **asked)
    both = dk.probe("a.example", 1, family="both", resume=four, **asked)
    assert both["family"].tolist() == [4, 6] and (both["time"].eq(four["time"][0])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("platform", "code", "expected"),
    [
        ("darwin", 61, ("closed", "tcp_refused", "ECONNREFUSED")),
        ("darwin", 65, ("unreachable", "host_unreachable", "EHOSTUNREACH")),
        ("darwin", 51, ("local_error", "local_no_route", "ENETUNREACH")),
        ("win32", 10060, ("filtered", "tcp_timeout", "ETIMEDOUT")),
        ("win32", 10013, ("local_error", "local_denied", "EACCES")),
    ],
)
def test_numbers_of_other_systems_have_their_words_and_are_marked(platform: str, code: int, expected: Any) -> None:
    row = why(code, at_once=platform == "darwin" and code == 51, icmp={}, platform=platform)
    assert (row["verdict"], row["failure"], row["errno"]) == expected
    assert row["text"].endswith(f"({platform} {code})")


def test_a_421_for_too_many_at_a_time_is_asked_again_alone_and_no_finding() -> None:
    live, most = 0, 0

    def act(sock: socket.socket, _: Callable[[str], None]) -> None:
        nonlocal live, most
        live, most = live + 1, max(most, live + 1)
        sock.sendall(b"421 4.7.0 too many\r\n" if live > 2 else b"554 no\r\n")
        time.sleep(0.2)
        live -= 1

    with server(act) as (port, _):
        routes = {("", number): ("", port) for number in range(1, 9)}
        frame = dk.probe("127.0.0.1", range(1, 9), connect_to=routes, pace=None, timeout=3)
    assert most > 2 and frame["verdict"].eq("rejected").all()


@pytest.mark.parametrize("polite", [True, False])
def test_a_job_that_comes_late_to_an_address_has_its_turn(polite: bool) -> None:
    turns, now = Turns(polite), 0.0
    first, second, late = (job._replace(key="192.0.2.1") for job in jobs_of("a.example", (25, 587, 465), {}))
    turns.add(first)
    turns.add(second)
    begun = [turns.take(now), turns.take(now)]
    assert begun == ([first, None] if polite else [first, second])
    assert turns.too_many(first) is not polite
    for _ in range(9):
        for job in filter(None, begun):
            turns.done(job, now)
        now += 2
        begun = [turns.take(now), turns.take(now)]
        if begun == [None, None]:
            break
    turns.add(late)
    taken = turns.take(now)
    assert taken and taken.port == 465


def test_a_421_of_a_server_that_is_asked_alone_is_a_finding() -> None:
    with server(says(b"421 4.7.0 too many\r\n", hold=False)) as (port, _):
        routes = {("", number): ("", port) for number in range(1, 5)}
        frame = dk.probe("127.0.0.1", range(1, 5), connect_to=routes, pace=None, timeout=3)
    assert frame["failure"].eq("rate_limited").all()


def test_what_a_domain_publishes_is_held_against_what_its_server_shows() -> None:
    with dk.Lab() as lab:
        leaf = ssl.PEM_cert_to_DER_cert(lab.certificate)
        right, wrong = f"3 0 1 {hashlib.sha256(leaf).hexdigest()}", "3 0 1 " + "00" * 32
        told = [(right, True), (wrong, True), (f"{wrong}; {right}", True), (right, False), (None, True), (None, None)]
        frame = pd.DataFrame(told, columns=["tlsa", "tlsa_secure"]).assign(mta_sts="matched", port=25)
        found = dk.probe(frame.assign(host=lab.hosts[: len(told)]), connect_to=lab.connect_to, pace=None, timeout=5)
    assert found["dane"].astype(object).where(found["dane"].notna(), None).tolist() == [
        *("ok", "mismatch", "ok", "unsigned", "none", None)
    ]
    assert set(found["mta_sts"]) == {"matched"} and found["cert_sha256"].eq(hashlib.sha256(leaf).hexdigest()).all()
    assert found["tls_group"].notna().all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30), st.booleans(), st.randoms())
def test_every_job_has_its_turn_and_no_limit_is_passed(asked: list[tuple[int, int]], polite: bool, dice: Any) -> None:
    """A clock of 10 ms, jobs that come at any time, connections that end at any time, 421s as they please."""
    turns, now, live, left, begun = Turns(polite), 0.0, [], list(enumerate(asked)), []
    done, whose = 0, dict(reversed(asked))
    for _ in range(100_000):
        now += 0.01
        while left and dice.random() < 0.3:
            number, (key, _) = left.pop(0)
            turns.add(jobs_of("a.example", 25, {})[0]._replace(number=number, key=str(key), crowd=str(whose[key])))
        while job := turns.take(now):
            begun.append((now, job))
            live.append((now, job))
        for at, job in [one for one in live if dice.random() < 0.1]:
            live.remove((at, job))
            again = dice.random() < 0.3 and turns.too_many(job)
            turns.done(job, at)
            done += not again
        assert not polite or len({job.key for _, job in live}) == len(live)
        if done == len(asked):
            break
    assert done == len(asked)
    for name, least in (("key", 1.0), ("crowd", 0.5), ("port", 0.01)):
        times: dict[Any, float] = {}
        for at, job in begun if polite else ():
            assert at - times.get(getattr(job, name), -9) > least - 0.001
            times[getattr(job, name)] = at
