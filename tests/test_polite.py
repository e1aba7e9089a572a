"""Politeness as servers see it: limits per address, operator and second, and what is said when."""

from __future__ import annotations

import asyncio
import importlib.util
import selectors
import socket
import ssl
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from types import ModuleType
from typing import Any

import pytest

import deliverkit as dk
from deliverkit.lab import _certificate
from deliverkit.loop import Turns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.0/8 and TCP_INFO of Linux")

ESTABLISHED = 1
NEVER = (b"DATA", b"RCPT", b"VRFY", b"EXPN")


def tcp_info(sock: socket.socket) -> tuple[int, float]:
    """The kernel's state of a connection, and seconds since its last ACK: Linux, struct tcp_info."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return info[0], float(struct.unpack_from("I", info, 56)[0]) / 1000


class Visit:
    """One connection as its server saw it."""

    def __init__(self, sock: socket.socket, earlier: list[Visit]) -> None:
        self.wire = sock.dup()
        self.address = sock.getsockname()[0]
        self.came = time.monotonic() - tcp_info(sock)[1]  # as the kernel saw it: this thread may have come later
        here = [visit for visit in earlier if visit.there()]
        self.others, self.beside = len(here), sum(visit.address == self.address for visit in here)
        self.early, self.said, self.lived = b"", list[bytes](), False

    def there(self) -> bool:
        return tcp_info(self.wire)[0] == ESTABLISHED


class Watch:
    """Servers on many loopback addresses, each with an act, on a port in clear text and one in TLS; and their log."""

    def __init__(self, acts: dict[str, str]) -> None:
        self.acts, self.visits, self.open = acts, list[Visit](), True
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as folder:
            (pem := Path(folder) / "pem").write_text("".join(_certificate()), encoding="ascii")
            self.context.load_cert_chain(pem)
        self.selector, self.ports = selectors.DefaultSelector(), dict[int, int]()
        for port in (25, 465):
            for address in acts:
                listener = socket.create_server((address, self.ports.get(port, 0)), backlog=64)
                self.ports[port] = listener.getsockname()[1]
                self.selector.register(listener, selectors.EVENT_READ, port)
        self.thread = Thread(target=self.accept, daemon=True)
        self.thread.start()

    def doors(self) -> dict[tuple[str, int], tuple[str, int]]:
        return {(address, port): (address, to) for address in self.acts for port, to in self.ports.items()}

    def accept(self) -> None:
        while self.open:
            for key, _ in self.selector.select(0.05):
                sock = key.fileobj.accept()[0]  # type: ignore[union-attr]
                self.visits.append(visit := Visit(sock, self.visits))
                Thread(target=self.one, args=(sock, visit, key.data), daemon=True).start()

    def one(self, sock: socket.socket, visit: Visit, port: int) -> None:
        with suppress(OSError):
            self.talk(sock, visit, port, self.acts[visit.address])

    def talk(self, sock: socket.socket, visit: Visit, port: int, act: str) -> None:
        if port == 465 and act != "silent":
            sock = self.context.wrap_socket(sock, server_side=True)
        if act in ("pause", "silent"):
            sock.settimeout(0.5 if act == "pause" else 30)
            with suppress(TimeoutError):
                first = sock.recv(100)
                visit.early = b"" if (port, act) == (465, "silent") else first  # TLS is for the client to begin
            sock.settimeout(30)
            if act == "silent":
                return
        greet = {"421": b"421 4.3.2 later\r\n", "grey": b"450 4.7.1 later\r\n", "554": b"554 5.7.1 no\r\n"}
        sock.sendall(greet.get(act, b"220 mx.example ESMTP\r\n"))
        visit.lived, inside = True, port == 465
        while line := self.line(sock):
            visit.said.append(line)
            offer = act != "plain" and not inside
            replies = {b"STAR": b"220 go\r\n" if offer else b"500 what\r\n", b"QUIT": b"221 bye\r\n"}
            replies[b"EHLO"] = b"250-mx\r\n" + b"250-STARTTLS\r\n" * offer + b"250 SIZE\r\n"
            replies[b"MAIL"] = b"530 5.7.0 no\r\n"
            sock.sendall(replies.get(line[:4], b"250 ok\r\n"))
            if line[:4] == b"STAR" and offer:
                sock, inside = self.context.wrap_socket(sock, server_side=True), True

    @staticmethod
    def line(sock: socket.socket) -> bytes:
        made = b""
        while not made.endswith(b"\n") and (byte := sock.recv(1)):  # what comes behind STARTTLS is not ours to read
            made += byte
        return made

    def close(self) -> None:
        self.open = False
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()
        for visit in self.visits:
            with suppress(OSError):
                visit.wire.shutdown(socket.SHUT_RDWR)
            visit.wire.close()


@contextmanager
def watch(acts: dict[str, str]) -> Iterator[Watch]:
    made = Watch(acts)
    try:
        yield made
    finally:
        made.close()


def crowd(address: str) -> str:
    return address.rpartition(".")[0]


def gaps(visits: Iterable[Visit], count: int) -> list[float]:
    """Seconds in which count + 1 connections came, for each of them."""
    times = sorted(visit.came for visit in visits)
    return [later - first for first, later in zip(times, times[count:], strict=False)]


WINDOW_S = 0.8  # a second, and room for two clocks


def breaches(visits: list[Visit]) -> set[str]:
    """Which limits were passed, by the log of the servers."""
    by: dict[str, dict[str, list[Visit]]] = {"address": defaultdict(list), "operator": defaultdict(list)}
    for visit in visits:
        by["address"][visit.address].append(visit)
        by["operator"][crowd(visit.address)].append(visit)
    found = {"two at a time": any(visit.beside for visit in visits)}
    found["two a second at an address"] = any(min(gaps(v, 1), default=9) < WINDOW_S for v in by["address"].values())
    found["three a second of an operator"] = any(min(gaps(v, 2), default=9) < WINDOW_S for v in by["operator"].values())
    found["more than 100 a second"] = min(gaps(visits, 100), default=9) < WINDOW_S
    found["spoke first"] = any(visit.early for visit in visits)
    found["no QUIT"] = any(visit.lived and visit.said[-1:] != [b"QUIT\r\n"] for visit in visits)
    found["mail"] = any(line.startswith((b"MAIL", *NEVER)) for visit in visits for line in visit.said)
    return {name for name, passed in found.items() if passed}


ACTS = ("open", "pause", "plain", "554", "silent", "open", "open", "grey", "plain", "open")
SIZES = (1, 2, 5)  # addresses of an operator: each limit has to hold where no other does its work
FARM = {f"127.9.{o}.{a}": ACTS[(o + 3 * a) % len(ACTS)] for o in range(51) for a in range(1, 1 + SIZES[o % 3])}
FARM |= {f"127.9.200.{a}": "421" for a in (1, 2)}
HOW: dict[str, Any] = {"timeout": 2, "progress": False}


def go(made: Watch, **how: Any) -> Any:
    frame = dk.probe(list(made.acts), (25, 465), connect_to=made.doors(), **HOW | how)
    time.sleep(0.3)  # for what the servers still have to read
    return frame


@pytest.fixture(scope="module")
def polite() -> Iterator[tuple[Any, Watch]]:
    """A sweep over 52 operators at the polite pace, and what their servers saw."""
    with watch(FARM) as made:
        yield go(made), made


def test_no_limit_is_passed_and_no_rule_broken_at_the_polite_pace(polite: tuple[Any, Watch]) -> None:
    frame, made = polite
    assert len(made.visits) == len(frame) == 2 * len(FARM) and breaches(made.visits) == set()


def test_the_verdicts_are_those_of_the_acts(polite: tuple[Any, Watch]) -> None:
    words = {"open": "open", "pause": "open", "plain": "open", "554": "rejected", "silent": "accepts_no_banner",
             "grey": "deferred", "421": "deferred"}  # fmt: skip
    frame, _ = polite
    expected = [words[FARM[host]] if (FARM[host], port) != ("plain", 25) else "open_no_tls"
                for host, port in zip(frame["host"], frame["port"], strict=True)]  # fmt: skip
    assert frame["verdict"].tolist() == expected


def test_a_421_halves_the_rate_of_its_operator_again_and_again(polite: tuple[Any, Watch]) -> None:
    seen = gaps([visit for visit in polite[1].visits if crowd(visit.address) == "127.9.200"], 1)
    assert len(seen) == 3 and all(gap > WINDOW_S * 2**n for n, gap in enumerate(seen[1:]))  # 0.5, 1 and 2 s


def test_the_log_shows_who_does_not_keep_to_the_limits() -> None:
    with watch(FARM) as made:
        go(made, pace=None, in_flight=150)
    rude = {"two at a time", "two a second at an address", "three a second of an operator", "more than 100 a second"}
    assert breaches(made.visits) == rude


TAKE, DONE = Turns.take, Turns.done
LIMITS: dict[str, tuple[str, int, int]] = {  # a limit, what its absence is called, operators and addresses of each
    "free": ("two a second at an address", 6, 1),
    "pause": ("three a second of an operator", 6, 5),
    "next": ("more than 100 a second", 130, 1),
}


@pytest.mark.parametrize("forgotten", [True, False])
@pytest.mark.parametrize("limit", LIMITS)
def test_the_log_shows_a_limit_that_is_forgotten(monkeypatch: pytest.MonkeyPatch, limit: str, forgotten: bool) -> None:
    def take(self: Turns, now: float) -> Any:
        if limit == "pause":
            self.pause = defaultdict(float)
        elif limit == "next":
            self.next = 0.0
        return TAKE(self, now)

    if forgotten:
        monkeypatch.setattr(Turns, "take", take)
        early = 1.0 if limit == "free" else 0.0
        monkeypatch.setattr(Turns, "done", lambda self, job, began: DONE(self, job, began - early))
    breach, operators, size = LIMITS[limit]
    with watch({f"127.10.{o}.{a}": "plain" for o in range(operators) for a in range(1, size + 1)}) as made:
        go(made)
    assert breaches(made.visits) == ({breach} if forgotten else set())


@pytest.mark.parametrize("in_flight", [1, 7])
def test_no_more_are_in_flight_than_asked(in_flight: int) -> None:
    acts = {f"127.11.{o}.1": "pause" if in_flight > 1 else "plain" for o in range(15)}
    with watch(acts) as made:
        go(made, pace=None, in_flight=in_flight)
    assert max(visit.others for visit in made.visits) == in_flight - 1 and len(made.visits) == 30


def test_mail_is_begun_only_where_it_was_asked_for() -> None:
    with watch({"127.12.0.1": "open"}) as made:
        go(made, check_auth=True, pace=None)
    for visit in made.visits:
        assert visit.said[-3:] == [b"MAIL FROM:<>\r\n", b"RSET\r\n", b"QUIT\r\n"]
        assert not any(line.startswith(NEVER) for line in visit.said)


def test_who_puts_us_off_is_not_asked_again_within_seconds() -> None:
    stop = Event()
    threading.Timer(4, stop.set).start()
    with watch({f"127.13.{o}.1": "grey" for o in range(4)}) as made:
        frame = go(made, attempts=3, stop=stop)
    assert len(made.visits) == 8 and set(frame["verdict"]) <= {"deferred", "cancelled"}


def test_a_sweep_that_is_stopped_leaves_nobody_waiting() -> None:
    stop = Event()
    threading.Timer(1.5, stop.set).start()
    with watch(FARM) as made:
        frame = dk.probe(list(FARM), (25, 465), connect_to=made.doors(), stop=stop, **HOW)
        seen = len(made.visits)
        time.sleep(0.7)
        assert len(made.visits) == seen and not any(visit.there() for visit in made.visits)
        assert 0 < frame["verdict"].ne("cancelled").sum() <= seen < len(frame)
        assert breaches(made.visits) <= {"no QUIT"}  # of those who were in the middle of a word


# The farm of the labelled collections, with a log

DEAD = {"refused", "drop", "icmp_admin", "icmp_host", "icmp_net", "icmp_port"}  # these need a packet filter


@pytest.fixture(scope="module")
def farm(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("smtp_farm", shared / "probing" / "smtp_farm.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(made)
    sys.dont_write_bytecode = writes
    return made


@contextmanager
def served(farm: ModuleType, certificates: Path, names: Iterable[str]) -> Iterator[tuple[dict[Any, Any], list[Any]]]:
    """The farm in this process: where to go for each of its doors, and the log of its sessions."""
    log: list[Any] = []

    class Session(farm.Smtp):  # type: ignore[name-defined,misc]
        def connection_made(self, tr: Any) -> None:
            self.early, self.said, self.greeted = b"", list[bytes](), False
            log.append(self)
            super().connection_made(tr)

        def greet(self) -> None:
            super().greet()
            self.greeted = True

        def plain_received(self, data: bytes) -> None:
            if self.name in ("silent", "tlsstall", "tlsgarbage") or (self.name == "tarpit" and not self.busy):
                self.greeted = True  # that they never greet, or do it by themselves, is not the client's doing
            if not self.greeted:
                self.early += data
            super().plain_received(data)

        def command(self, line: bytes) -> None:
            self.said.append(line.strip())
            super().command(line)

    farmer, loop, doors = farm.Farm(str(certificates)), asyncio.new_event_loop(), dict[Any, Any]()
    hosts = [f"127.{farm.OCTET[name]}.0.1" for name in names]

    async def listen() -> None:
        for port in (25, 465):
            to = 0
            for host in hosts:
                server = await loop.create_server(lambda port=port: Session(farmer, port), host, to)  # type: ignore[misc]
                to = server.sockets[0].getsockname()[1]
                doors[host, port] = (host, to)

    loop.run_until_complete(listen())
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield doors, log
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for session in log:
            session.tr.abort()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.parametrize("check_auth", [False, True])
def test_the_farm_hears_nothing_early_no_mail_and_quit_at_the_end(
    farm: ModuleType, need: Callable[[str, str], str], tmp_path: Path, check_auth: bool
) -> None:
    need("openssl", "openssl")
    names = ["auth", "starttls", "relay", "plain", "tls454"] if check_auth else sorted(set(farm.OCTET) - DEAD)
    with served(farm, tmp_path, names) as (doors, log):
        frame = dk.probe([f"{host}:{port}" for host, port in doors], connect_to=doors, timeout=4, progress=False,
                         check_auth=check_auth)  # fmt: skip
        time.sleep(0.3)
        assert len(log) == len(frame) == 2 * len(names)
        assert [session.name for session in log if session.early] == []
        lost = [("tlsgarbage", 25), ("tlsstall", 25), ("plain", 465)]  # who breaks TLS, or does not know it
        live = [session for session in log if session.said and (session.name, session.port) not in lost]
        assert [session.name for session in live if session.said[-1] != b"QUIT"] == [] and len(live) > len(names)
        mail = {line[:4] for session in log for line in session.said} & {b"MAIL", *NEVER}
        assert mail == ({b"MAIL"} if check_auth else set())
