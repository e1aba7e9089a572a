"""Many ports of many hosts at once, without mail: `probe`, and the loop that drives its dialogues."""

from __future__ import annotations

import errno
import os
import re
import selectors
import socket
import ssl
import struct
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from heapq import heappop, heappush
from ipaddress import ip_address
from itertools import count
from math import inf
from queue import Empty, SimpleQueue
from random import Random
from threading import Event as Flag
from threading import Thread
from time import monotonic, sleep
from typing import Any, cast
from warnings import warn

import pandas as pd
from tqdm import tqdm

from deliverkit import PORTS, facts
from deliverkit.classify import classify
from deliverkit.errors import TargetError
from deliverkit.probe import IMPLICIT, Ask, Dialogue, Event, judge, tls_word
from deliverkit.resolve import Answer, addresses
from deliverkit.schema import PROBES
from deliverkit.targets import Job, is_ip, jobs_of, limits_of, routes_of

_STEPS = {"dns": "connect", "tcp": "connect", "banner": "rules", "ehlo": "rules"}  # `reached` -> step; else encryption
_CANCELLED = {"attempted": False, "verdict": "cancelled", "failure": "cancelled"}
_READ, _WRITE, _WAIT = selectors.EVENT_READ, selectors.EVENT_WRITE, object()
_ERRQUEUE = socket.MSG_ERRQUEUE if sys.platform == "linux" else 0
_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}  # Linux, ip(7)


def probe(targets: str | Iterable[str] | pd.DataFrame, ports: int | Iterable[int] = PORTS, *,
          vantage: str | None = None, connect_to: Mapping[Any, Any] | Iterable[str] | str | None = None,
          timeout: float | str = "standard", in_flight: int = 500, pace: str | None = "polite",
          progress: bool | Callable[[int, int], object] | None = None, ehlo_name: str | None = None,
          resolver: Callable[[str], Answer] = addresses, stop: Flag | None = None,
          resume: pd.DataFrame | None = None) -> pd.DataFrame:  # fmt: skip
    """Try ports of hosts up to EHLO inside TLS, without mail: a `PROBES` frame, a row per host and port.

    `targets` are names, addresses, "host:port" or "[v6]:port", one or many, or a frame with `host` and perhaps `port`
    and `operator`. What is asked twice is probed once, at one address, IPv4 first; rows come in the order asked.
    `vantage` names the network this runs in. `connect_to` works as curl's --connect-to: {(host, port): (address,
    port)} or "HOST:PORT:ADDRESS:PORT", where nothing means any on the left and unchanged on the right; the first
    that fits counts. `timeout` is seconds per stage, or quick (connect 5, banner 10, others 10), standard (10, 30, 30)
    or patient (30, 300, 300); a whole probe ends after connect + banner + 3 others + 2 s. `pace="polite"` keeps to one
    connection at a time and one new a second per address, two a second per operator (last two labels), 100 in all; a
    421 halves its operator's. None lifts that, for servers of one's own. `progress` is True, False or a function of
    (done, total); by default a bar shows where stderr is a terminal. `ehlo_name` is by default the literal of the own
    address, `resolver` a function of a name that gives an `Answer`. Raises TargetError for what must not be run.

    Setting `stop` (a `threading.Event`) from elsewhere, or Ctrl-C, ends the sweep within half a second: what is done is
    kept, the rest are rows with verdict `cancelled`, which are not `attempted`. `resume` is such a frame: what it has
    from this vantage is not tried again, and the result holds both.
    """
    jobs, limits = jobs_of(targets, ports, routes_of(connect_to)), limits_of(timeout)
    if not isinstance(in_flight, int) or in_flight < 1:
        raise TargetError(f"in_flight should be 1 or more, not {in_flight!r}")
    if pace not in ("polite", None):
        raise TargetError(f"pace should be 'polite' or None, not {pace!r}")
    if ehlo_name is not None and not re.fullmatch(r"[!-~]{1,255}", ehlo_name):
        raise TargetError(f"ehlo_name should be one word in ASCII, not {ehlo_name!r}")
    rows = _finished(resume, jobs, vantage)
    kept = {row["number"] for row in rows}
    sweep = _Sweep([j for j in jobs if j.number not in kept], limits, in_flight, pace is not None, ehlo_name, resolver)
    hidden = None if progress is None else progress is not True
    try:
        with tqdm(total=len(jobs), initial=len(rows), unit="port", leave=False, disable=hidden) as bar:
            while len(rows) < len(jobs) and (row := sweep.row(stop)):
                rows.append(row | {"vantage": vantage})
                bar.update()
                if callable(progress):
                    progress(len(rows), len(jobs))
    except KeyboardInterrupt:
        warn(f"interrupted with {len(rows)} of {len(jobs)} ports done; give the frame to resume=", stacklevel=2)
    finally:
        sweep.stop()
    rows += [row | {"vantage": vantage} for row in sweep.left()]
    done = {row["number"] for row in rows}
    rows += [_row(job, _CANCELLED) | {"vantage": vantage} for job in jobs if job.number not in done]
    # Nothing on the wire tells a dead implicit port from stalled TLS; the same host's STARTTLS does.
    stalled = {row["host"] for row in rows if (row["failure"], row["mode"]) == ("tls_timeout", "starttls")}
    for row in rows:
        if row["failure"] == "tls_timeout" and row["host"] in stalled:
            row["verdict"] = "open_tls_broken"
    rows.sort(key=lambda row: row.pop("number"))
    return classify(rows, PROBES)


def _finished(resume: pd.DataFrame | None, jobs: list[Job], vantage: str | None) -> list[dict[str, Any]]:
    """The rows of an earlier sweep that need not be tried again, under the numbers of the jobs."""
    if resume is None:
        return []
    old = PROBES.build(PROBES.check(resume, ["host", "port", "verdict"]))
    old = old[old["verdict"].ne("cancelled").fillna(False) & old["vantage"].fillna("").eq(vantage or "")]
    numbers = {(job.host.lower().rstrip("."), job.port): job.number for job in jobs}
    plain: list[Any] = old.astype(object).where(old.notna(), None).to_dict("records")
    found = {numbers.get((str(row["host"]).lower().rstrip("."), row["port"])): row for row in plain}
    return [row | {"number": number} for number, row in found.items() if number is not None]


class _Line:
    """One connection: its socket, its dialogue, and what it waits for."""

    def __init__(self, job: Job, sock: socket.socket) -> None:
        self.job, self.sock, self.fd, self.began = job, sock, sock.fileno(), monotonic()
        self.ask, self.out, self.due, self.wants = Ask("connect", "connect"), b"", 0.0, _WRITE
        self.talk: Generator[Ask, Event, None] | None = None
        self.row: dict[str, Any] = {}  # the dialogue's, once there is one
        self.tls: ssl.SSLObject | None = None
        self.came, self.goes, self.text, self.fresh = ssl.MemoryBIO(), ssl.MemoryBIO(), b"", True


class _Sweep:
    """The loop. It runs in a thread, as a notebook's kernel has a loop already; rows leave by a queue."""

    def __init__(self, jobs: list[Job], limits: dict[str, float], in_flight: int, polite: bool,
                 ehlo_name: str | None, resolver: Callable[[str], Answer]) -> None:  # fmt: skip
        self.limits, self.polite, self.ehlo_name, self.resolver = limits, polite, ehlo_name, resolver
        self.in_flight = min(in_flight, 500) if sys.platform == "win32" else in_flight  # select takes 512
        self.ready: deque[Job] = deque()
        self.unknown: dict[str, list[Job]] = defaultdict(list)
        for job in Random(0).sample(jobs, len(jobs)):  # the dead of one operator must not fill all places at once
            self._enlist(job, str(ip_address(job.dial))) if is_ip(job.dial) else self.unknown[job.dial].append(job)
        self.names = iter(list(self.unknown))  # one iterator for all threads
        self.rows: SimpleQueue[Any] = SimpleQueue()
        self.lines: dict[int, _Line] = {}
        self.timers: list[tuple[float, int, _Line]] = []
        self.free: dict[str, float] = {}  # when an address may be asked again: never while it is busy
        self.turn: dict[str, float] = {}  # and when its operator
        self.pause: dict[str, float] = defaultdict(lambda: 0.5)
        self.next, self.stopped, self.tick, self.begun = 0.0, False, count(), datetime.now(UTC)
        self.selector, self.context = selectors.DefaultSelector(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE  # heard first, judged afterwards
        self.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED  # an old server is a finding, not an error
        self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()
        for _ in range(min(16, len(self.unknown))):
            Thread(target=self._look_up, daemon=True).start()

    def row(self, stop: Flag | None) -> dict[str, Any] | None:
        """The next row, None after `stop`; what went wrong in the loop is raised here."""
        while True:
            with suppress(Empty):
                row: dict[str, Any] | BaseException = self.rows.get(timeout=0.1)  # Windows has no Ctrl-C within a wait
                if isinstance(row, BaseException):
                    raise row
                return row
            if stop is not None and stop.is_set():
                return None

    def left(self) -> Iterator[dict[str, Any]]:
        """The rows that were finished and not yet asked for when the sweep was ended."""
        with suppress(Empty):
            while True:
                if isinstance(row := self.rows.get_nowait(), dict):
                    yield row

    def stop(self) -> None:
        """End the sweep and close every connection, at once."""
        self.stopped = True
        self.thread.join()

    def _look_up(self) -> None:
        for name in self.names:
            began = monotonic()
            try:
                answer = self.resolver(name)
                if not isinstance(answer, Answer):
                    raise TargetError(f"the resolver should give a deliverkit.resolve.Answer, not {answer!r}")
            except Exception as problem:  # noqa: BLE001 - of the caller's own resolver: raised at the caller
                return self.rows.put(problem)
            for job in self.unknown[name]:
                job = job._replace(dns_s=monotonic() - began)
                if answer.found:
                    self._enlist(job, answer.found[0])
                else:
                    self._emit(job, {"reached": "dns", "verdict": "dns_fail", "failure": answer.failure})
            if self.stopped:
                return

    def _enlist(self, job: Job, address: str) -> None:
        self.ready.append(job._replace(dial=address, key=job.key or address))

    def _run(self) -> None:
        try:
            while not self.stopped:
                self._admit(now := monotonic())
                wait = max(0.0, min(self.timers[0][0] - now, 0.02)) if self.timers else 0.02  # nobody wakes the loop
                if not self.lines:
                    sleep(wait)  # Windows cannot select from nothing
                for key, _ in self.selector.select(wait) if self.lines else ():
                    if key.fd in self.lines:
                        self._wake(key.data)
                while self.timers and self.timers[0][0] <= monotonic():
                    due, _, line = heappop(self.timers)
                    if line.due == due and self.lines.get(line.fd) is line:
                        self._feed(line, "timeout") if line.talk else self._unconnected(line, errno.ETIMEDOUT)
        except BaseException as problem:  # noqa: BLE001 - raised where the caller waits
            self.rows.put(problem)
        finally:
            for line in self.lines.values():
                line.sock.close()
            self.selector.close()

    def _admit(self, now: float) -> None:
        """Open what may be opened: there is a place, and neither address nor operator nor the whole is hurried."""
        for _ in range(min(len(self.ready), 1000)):
            if len(self.lines) >= self.in_flight or self.next > now:
                return
            job = self.ready.popleft()
            if max(self.free.get(job.key, 0.0), self.turn.get(job.crowd, 0.0)) > now:
                self.ready.append(job)
                continue
            if self.polite:
                self.free[job.key], self.turn[job.crowd], self.next = inf, now + self.pause[job.crowd], now + 0.01
            self._open(job)

    def _open(self, job: Job) -> None:
        family = socket.AF_INET6 if ":" in job.dial else socket.AF_INET
        try:
            line = _Line(job, socket.socket(family, socket.SOCK_STREAM))
        except OSError as problem:
            if not self.lines or problem.errno not in (errno.EMFILE, errno.ENFILE):
                return self._emit(job, why(problem.errno or 0, True, {}))
            self.in_flight, self.free[job.key] = len(self.lines), 0.0  # no file is left: wait for others to end
            return self.ready.append(job)
        line.sock.setblocking(False)
        line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _ERRQUEUE:
            line.sock.setsockopt(*_RECVERR[family], 1)
        code = line.sock.connect_ex((job.dial, job.dial_port))
        self.lines[line.fd] = line
        self.selector.register(line.fd, _WRITE, line)
        self._until(line, "connect")
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._unconnected(line, code, at_once=True)

    def _until(self, line: _Line, stage: str) -> None:
        line.due = min(monotonic() + self.limits[stage], line.began + self.limits["total"])
        heappush(self.timers, (line.due, next(self.tick), line))

    def _wake(self, line: _Line) -> None:
        if line.talk:
            return self._feed(line, self._act(line))
        code = line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code not in (0, errno.ECONNRESET):  # a reset comes after the handshake, before it is a refusal
            return self._unconnected(line, code)
        if _ERRQUEUE:
            line.sock.setsockopt(*_RECVERR[line.sock.family], 0)  # a late ICMP message must not end a session
        own, now = line.sock.getsockname()[0], monotonic()
        name = self.ehlo_name or (f"[IPv6:{own}]" if ":" in own else f"[{own}]")
        dialogue = Dialogue(implicit=line.job.port in IMPLICIT, ehlo_name=name, now=now)
        dialogue.row["connect_s"], line.row, line.talk = now - line.began, dialogue.row, dialogue.run()
        self._asked(line, next(line.talk))
        self._feed(line, "reset" if code else self._act(line))

    def _feed(self, line: _Line, event: Any) -> None:
        """Act for the dialogue until it has to wait for the far end, or has ended."""
        while event is not _WAIT and line.talk:
            try:
                ask = line.talk.send((monotonic(), event))
            except StopIteration:
                return self._close(line)
            self._asked(line, ask)
            event = self._act(line)

    def _asked(self, line: _Line, ask: Ask) -> None:
        if ask.stage != line.ask.stage:
            self._until(line, ask.stage)
        line.ask = ask
        if ask.what == "tls":
            host = line.job.host.rstrip(".")
            name = None if is_ip(host) else host.encode("idna").decode()  # an address is no name to ask for
            line.tls = self.context.wrap_bio(line.came, line.goes, server_hostname=name)
        elif line.tls:
            line.text = ask.data
        else:
            line.out = ask.data

    def _act(self, line: _Line) -> Any:
        """Send, read or shake hands: the event for the dialogue, or _WAIT once the selector knows for what."""
        try:
            while True:
                event = self._inside(line) if line.tls else None if line.ask.what == "send" else _WAIT
                while line.out:
                    line.out = line.out[line.sock.send(line.out) :]
                if event is not _WAIT:
                    return event
                if not (data := line.sock.recv(16384)):
                    return "eof"
                if line.tls and line.ask.what == "tls" and line.fresh and data[0] not in (20, 21, 22, 23):
                    line.tls = None  # plain text where TLS should begin: words for the dialogue
                if not line.tls:
                    return data
                line.fresh = not line.came.write(data)
        except BlockingIOError:
            if line.wants != (wants := _WRITE if line.out else _READ):
                self.selector.modify(line.fd, wants, line)
                line.wants = wants
            return _WAIT
        except ssl.SSLZeroReturnError:
            return "eof"
        except ssl.SSLError as problem:
            line.row["text"] = (problem.reason or "").replace("_", " ").lower() or None
            return tls_word(problem)
        except OSError as problem:
            line.row["errno"] = _symbol(problem.errno)
            return "timeout" if problem.errno == errno.ETIMEDOUT else "reset"

    def _inside(self, line: _Line) -> Any:
        """The same within TLS, between buffers of our own, so that no byte is lost to OpenSSL."""
        assert line.tls
        try:
            if line.ask.what == "read":
                return line.tls.read(16384)
            if line.ask.what == "send":
                line.text = line.text[line.tls.write(line.text) if line.text else 0 :]
                return None
            line.tls.do_handshake()
        except ssl.SSLWantReadError:
            return _WAIT
        finally:
            line.out += line.goes.read()
        source: Any = line.tls if sys.version_info >= (3, 13) else cast(Any, line.tls)._sslobj
        parts = [c if isinstance(c, bytes) else c.public_bytes(2) for c in source.get_unverified_chain() or ()]
        seen = judge(line.tls.getpeercert(True) or b"", tuple(parts), line.job.host, self.begun)
        return {"tls_version": line.tls.version(), "cipher": (line.tls.cipher() or [None])[0], **seen}

    def _unconnected(self, line: _Line, code: int, at_once: bool = False) -> None:
        line.row = why(code, at_once, _icmp(line.sock) if _ERRQUEUE else {})
        self._close(line)

    def _close(self, line: _Line) -> None:
        self.selector.unregister(line.fd)
        line.sock.close()
        del self.lines[line.fd]
        if self.polite:
            self.free[line.job.key] = line.began + 1
        if line.row.get("reply_code") == 421:
            self.pause[line.job.crowd] = min(2 * self.pause[line.job.crowd], 60)
        self._emit(line.job, line.row | {"address": line.job.dial, "total_s": monotonic() - line.began})

    def _emit(self, job: Job, row: dict[str, Any]) -> None:
        plain = row["verdict"] == "open_no_tls" and not row["failure"]
        outcome = {"open": "passed", "deferred": "deferred"}.get(row["verdict"], "passed" if plain else "failed")
        step = "rules" if plain else _STEPS.get(row["reached"], "encryption")
        self.rows.put(_row(job, {"attempted": True, "outcome": outcome, "step": step, "dns_s": job.dns_s} | row))


def _row(job: Job, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of every port that was asked for, and what its probe said."""
    mode = "implicit" if job.port in IMPLICIT else "starttls"
    made: dict[str, Any] = {"origin": "probe", "time": datetime.now(UTC), "mode": mode, "operator": job.operator}
    return made | dict(said) | {"number": job.number, "host": job.host, "port": job.port}


def _symbol(code: int | None) -> str | None:
    return errno.errorcode.get(code or 0, "").removeprefix("WSA") or None


@cache
def _signs() -> dict[str, tuple[str, str]]:
    """errno, connect:errno (by connect itself) or icmp4:type:code -> verdict and failure."""
    table = facts.table("probe_failures").dropna(subset=["signs"])
    rows = table[["signs", "verdict", "failure"]].itertuples(index=False, name=None)
    return {sign: (verdict, failure) for signs, verdict, failure in rows for sign in signs.split()}


def why(code: int, at_once: bool, icmp: dict[str, Any]) -> dict[str, Any]:
    """The columns of a connect that failed, with the ICMP message behind it where the system tells."""
    name, sign = _symbol(code), "icmp{family}:{icmp_type}:{icmp_code}".format(**icmp) if icmp else ""
    signs = [s for s in (sign, f"connect:{name}" * at_once, name or "") if s in _signs()]
    verdict, failure = _signs()[signs[0]] if signs else ("local_error" if at_once else "unreachable", None)
    row = {"reached": "tcp", "verdict": verdict, "failure": failure, "errno": name, "text": os.strerror(code)}
    return row | {key: icmp[key] for key in icmp if key != "family"}


def _icmp(sock: socket.socket) -> dict[str, Any]:
    """Type, code and sender of the ICMP message behind a failed connect: struct sock_extended_err of ip(7)."""
    with suppress(OSError):
        for _, _, data in sock.recvmsg(0, 512, _ERRQUEUE)[1]:
            origin, kind, code = struct.unpack_from("4xBBB", data)
            if origin in (2, 3):  # SO_EE_ORIGIN_ICMP, _ICMP6; the sender's sockaddr begins at byte 16
                sender = ip_address(data[20:24] if origin == 2 else data[24:40])
                return {"family": sender.version, "icmp_type": kind, "icmp_code": code, "icmp_from": str(sender)}
    return {}
