"""The loop that drives many dialogues at once: whose turn it is, sockets, TLS, deadlines, ICMP."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import struct
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from heapq import heappop, heappush
from ipaddress import ip_address
from itertools import count
from math import inf
from random import Random
from threading import Event as Flag
from threading import Thread
from time import monotonic, sleep
from typing import Any, cast

from deliverkit import facts
from deliverkit.errors import TargetError
from deliverkit.policies import tlsa_verdict
from deliverkit.probe import IMPLICIT, Ask, Dialogue, Event, group_of, judge, tls_word
from deliverkit.resolve import Answer
from deliverkit.targets import Job, is_ip

_STEPS = {"dns": "connect", "tcp": "connect", "banner": "rules", "ehlo": "rules"}  # `reached` -> step; else encryption
_WAIT = object()
if sys.platform == "linux":  # the same calls as a selector's, without a named tuple for every event
    from select import EPOLLIN as _READ
    from select import EPOLLOUT as _WRITE
    from select import epoll as _Poll
else:
    from selectors import EVENT_READ as _READ
    from selectors import EVENT_WRITE as _WRITE

    class _Poll(selectors.DefaultSelector):
        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return [(key.fd, mask) for key, mask in self.select(timeout)]


ERRQUEUE = socket.MSG_ERRQUEUE if sys.platform == "linux" else 0
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}  # Linux, ip(7)
_FLIGHT = 32768  # bytes of a server's first flight that are kept to read the group from
_AGAIN_S = 300.0  # a 4xx is not asked again sooner: greylisting commonly lasts five minutes (RFC 6647, 4.2)


class Turns:
    """Whose turn it is: one connection at a time and one new a second per address, two a second per operator, a
    hundred in all; whom a 421 came from is asked half as often. `polite=False` keeps the order only, and asks one at a
    time where an address has said that it is too many."""

    def __init__(self, polite: bool) -> None:
        self.polite, self.next, self.tick = polite, 0.0, count()
        self.ready: deque[Job] = deque()  # if not polite; and then
        self.busy: dict[str, int] = defaultdict(int)  # connections to an address
        self.shared: set[str] = set()  # addresses that had several at a time
        self.solo: set[str] = set()  # addresses that have said that this is too many
        self.later: list[tuple[float, int, Job]] = []  # those to be asked again
        self.jobs: dict[str, list[Job]] = defaultdict(list)  # address -> what is to be asked of it
        self.free: dict[str, float] = {}  # when an address may be asked again: never while it is busy
        self.whose: dict[str, str] = {}  # address -> operator
        self.idle: dict[str, list[tuple[float, int, str]]] = defaultdict(list)  # operator -> heap of its addresses
        self.heap: list[tuple[float, int, str]] = []  # operators by the time of their turn, and
        self.due: dict[str, float] = {}  # the entry of that heap which counts
        self.turn: dict[str, float] = {}
        self.pause: dict[str, float] = defaultdict(lambda: 0.5)

    def add(self, job: Job) -> None:
        if not self.polite:
            return self.ready.append(job)
        self.whose.setdefault(job.key, job.crowd)
        self.jobs[job.key].append(job)
        if len(self.jobs[job.key]) == 1:
            self._rest(job.key)

    def again(self, job: Job, now: float) -> None:
        heappush(self.later, (now + (_AGAIN_S if self.polite else 1.0), next(self.tick), job))

    def take(self, now: float) -> Job | None:
        """The next job that may be begun, None if all have to wait."""
        while self.later and self.later[0][0] <= now:
            self.add(heappop(self.later)[2])
        while self.ready:
            job = self.ready.popleft()
            if job.key in self.solo and not job.solo:
                if job.key in self.busy:
                    self.jobs[job.key].append(job)
                    continue
                job = job._replace(solo=True)
            self.busy[job.key] += 1
            if self.busy[job.key] > 1:
                self.shared.add(job.key)
            return job
        while self.next <= now and self.heap and self.heap[0][0] <= now:
            due, _, crowd = heappop(self.heap)
            if self.due.get(crowd) != due:
                continue
            del self.due[crowd]
            idle, found = self.idle[crowd], None
            if max(idle[0][0], self.turn.get(crowd, 0.0)) <= now:
                found = self.jobs[key := heappop(idle)[2]].pop(0)
                self.free[key], self.turn[crowd], self.next = inf, now + self.pause[crowd], now + 0.01
            self._queue(crowd)
            if found:
                return found
        return None

    def done(self, job: Job, began: float) -> None:
        """The connection is closed: its address may be asked again, if politely a second after it was begun."""
        if self.polite:
            self.free[job.key] = began + 1
            return self._rest(job.key)
        self.busy[job.key] -= 1
        if not self.busy[job.key]:
            del self.busy[job.key]
            if waiting := self.jobs.get(job.key):
                self.ready.append(waiting.pop(0)._replace(solo=True))

    def too_many(self, job: Job) -> bool:
        """True if a 421 is of our own making: the job is then begun again when its address is idle."""
        if job.solo or job.key not in self.shared:
            return False
        self.solo.add(job.key)
        self.jobs[job.key].insert(0, job)
        return True

    def hurry_less(self, crowd: str) -> None:
        self.turn[crowd] = self.turn.get(crowd, 0.0) + self.pause[crowd]
        self.pause[crowd] = min(2 * self.pause[crowd], 60)

    def wait(self, now: float) -> float:
        """Seconds until something may be begun, as far as the pace tells."""
        return max(self.heap[0][0], self.next) - now if self.heap else inf

    def _rest(self, key: str) -> None:
        if not self.jobs[key]:
            del self.jobs[key]
        elif (at := self.free.get(key, 0.0)) < inf:
            heappush(self.idle[self.whose[key]], (at, next(self.tick), key))
            self._queue(self.whose[key])

    def _queue(self, crowd: str) -> None:
        """Put an operator into the heap for the time at which one of its addresses may be asked."""
        if idle := self.idle[crowd]:
            at = max(idle[0][0], self.turn.get(crowd, 0.0))
            if at < self.due.get(crowd, inf):
                self.due[crowd] = at
                heappush(self.heap, (at, next(self.tick), crowd))


class _Line:
    """One connection: its socket, its dialogue, and what it waits for."""

    __slots__ = ("ask", "began", "came", "fd", "flight", "fresh", "goes", "job", "out", "row", "sock", "talk", "text",
                 "tls", "wants")  # fmt: skip

    def __init__(self, job: Job, sock: socket.socket) -> None:
        self.job, self.sock, self.fd, self.began = job, sock, sock.fileno(), monotonic()
        self.ask, self.out, self.wants = _CONNECT, b"", _WRITE
        self.talk: Generator[Ask, Event, None] | None = None
        self.row: dict[str, Any] = {}  # the dialogue's, once there is one
        self.tls: ssl.SSLObject | None = None
        self.came: ssl.MemoryBIO
        self.goes: ssl.MemoryBIO
        self.text, self.flight, self.fresh = b"", b"", True


_CONNECT = Ask("connect", "connect")


class Loop:
    """Runs in a thread, as a notebook's kernel has a loop already; rows leave by `rows`, `bell` says when to look.

    `ehlo_name` is one name or one for each own address; an address without one is its own literal.
    """

    def __init__(self, jobs: list[Job], limits: dict[str, float], in_flight: int, polite: bool,
                 ehlo_name: str | Mapping[str, str], resolver: Callable[[str], Answer], attempts: int,
                 check_auth: bool) -> None:  # fmt: skip
        self.limits, self.ehlo_name, self.resolver, self.attempts = limits, ehlo_name, resolver, attempts
        self.in_flight = min(in_flight, 500) if sys.platform == "win32" else in_flight  # select takes 512
        self.check_auth, self.turns = check_auth, Turns(polite)
        self.fresh: deque[Job] = deque()  # with an address, from any thread
        self.unknown: dict[str, list[Job]] = defaultdict(list)
        self.rows: deque[Any] = deque()
        self.bell, self.lines = Flag(), dict[int, _Line]()
        self.room = memoryview(bytearray(16384))  # one for all that is received: 16 kB each time would cost more
        self.due: dict[str, OrderedDict[int, float]] = {stage: OrderedDict() for stage in limits}
        self.stopped, self.begun = False, datetime.now(UTC)
        for job in Random(0).sample(jobs, len(jobs)):  # the dead of one operator must not fill all places at once
            if job.known and job.known["failure"]:
                self._nameless(job, job.known["failure"])
            elif is_ip(job.dial):
                self.fresh.append(job)
            else:
                self.unknown[job.dial].append(job)
        self.names = iter(list(self.unknown))  # one iterator for all threads
        self.poll, self.context = _Poll(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE  # heard first, judged afterwards
        self.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED  # an old server is a finding, not an error
        self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()
        for _ in range(min(16, len(self.unknown))):
            Thread(target=self._look_up, daemon=True).start()

    def row(self) -> dict[str, Any] | None:
        """The next row that is there, None if there is none yet; what went wrong in the loop is raised here."""
        row = self.rows.popleft() if self.rows else None
        if isinstance(row, BaseException):
            raise row
        return cast("dict[str, Any] | None", row)

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
                return self._put(problem)
            for job in self.unknown.pop(name):
                job = job._replace(dns_s=monotonic() - began)
                fits = [at for at in answer.found if not job.family or (":" in at) == (job.family == 6)]
                if fits:
                    self.fresh.append(job._replace(dial=fits[0], key=job.key or fits[0]))
                else:
                    self._nameless(job, answer.failure or "dns_nodata")
            if self.stopped:
                return

    def _nameless(self, job: Job, word: str) -> None:
        self._emit(job, {"reached": "dns", "verdict": "dns_fail", "failure": word})
        self.bell.set()

    def _put(self, row: Any) -> None:
        self.rows.append(row)
        if not self.lines or isinstance(row, BaseException):
            self.bell.set()

    def _run(self) -> None:
        try:
            while not self.stopped:
                while self.fresh:
                    self.turns.add(self.fresh.popleft())
                while len(self.lines) < self.in_flight and (job := self.turns.take(monotonic())):
                    self._open(job)
                now = monotonic()
                firsts = [next(iter(due.values())) - now for due in self.due.values() if due]
                if len(self.lines) < self.in_flight:
                    firsts.append(self.turns.wait(now))
                wait = max(0.0, min(*firsts, 0.02, inf))  # nobody wakes the loop
                if not self.lines:
                    sleep(wait)  # Windows cannot select from nothing
                for fd, _ in self.poll.poll(wait) if self.lines else ():
                    if line := self.lines.get(fd):  # nothing is opened before all who are ready had their turn
                        self._wake(line)
                self._expire(monotonic())
        except BaseException as problem:  # noqa: BLE001 - raised where the caller waits
            self._put(problem)
        finally:
            for line in self.lines.values():
                line.sock.close()
            self.poll.close()

    def _expire(self, now: float) -> None:
        """End what has waited for too long. A stage has one length for all, so its oldest entry is the first due."""
        for stage, due in self.due.items():
            while due and (first := next(iter(due.items())))[1] <= now:
                line = self.lines[first[0]]
                if stage != "total":  # the dialogue may go on in this stage, with as much time again
                    due.move_to_end(line.fd)
                    due[line.fd] = now + self.limits[stage]
                self._feed(line, "timeout") if line.talk else self._unconnected(line, errno.ETIMEDOUT)

    def _open(self, job: Job) -> None:
        family = socket.AF_INET6 if ":" in job.dial else socket.AF_INET
        try:
            line = _Line(job, socket.socket(family, socket.SOCK_STREAM))
        except OSError as problem:
            self.turns.done(job, monotonic() - 1)
            if not self.lines or problem.errno not in (errno.EMFILE, errno.ENFILE):
                return self._emit(job, why(problem.errno or 0, True, {}))
            self.in_flight = len(self.lines)  # no file is left: wait for others to end
            return self.turns.add(job)
        line.sock.setblocking(False)
        line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ERRQUEUE:
            line.sock.setsockopt(*RECVERR[family], 1)
        code = line.sock.connect_ex((job.dial, job.dial_port))
        self.lines[line.fd] = line
        self.poll.register(line.fd, _WRITE)
        self.due["connect"][line.fd] = line.began + self.limits["connect"]
        self.due["total"][line.fd] = line.began + self.limits["total"]
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._unconnected(line, code, at_once=True)

    def _wake(self, line: _Line) -> None:
        if line.talk:
            return self._feed(line, self._act(line, ready=line.wants == _READ))
        code = line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code not in (0, errno.ECONNRESET):  # a reset comes after the handshake, before it is a refusal
            return self._unconnected(line, code)
        if ERRQUEUE:
            line.sock.setsockopt(*RECVERR[line.sock.family], 0)  # a late ICMP message must not end a session
        own, now = line.sock.getsockname()[0], monotonic()
        literal = f"[IPv6:{own}]" if ":" in own else f"[{own}]"
        name = self.ehlo_name if isinstance(self.ehlo_name, str) else self.ehlo_name.get(own, literal)
        implicit = line.job.port in IMPLICIT
        dialogue = Dialogue(implicit=implicit, ehlo_name=name, now=now, check_auth=self.check_auth)
        dialogue.row |= {"connect_s": now - line.began, "local_address": own}
        line.row, line.talk = dialogue.row, dialogue.run()
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
            del self.due[line.ask.stage][line.fd]
            self.due[ask.stage][line.fd] = monotonic() + self.limits[ask.stage]
        line.ask = ask
        if ask.what == "tls":
            host = line.job.host.rstrip(".")  # an address is no name to ask for
            name = None if is_ip(host) else host if host.isascii() else host.encode("idna").decode()
            line.came, line.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
            line.tls = self.context.wrap_bio(line.came, line.goes, server_hostname=name)
        elif line.tls:
            line.text = ask.data
        else:
            line.out = ask.data

    def _act(self, line: _Line, ready: bool = False) -> Any:
        """Send, read or shake hands: the event for the dialogue, or _WAIT once the selector knows for what.

        Nothing is received before the selector says that it is `ready`: what was just asked has no answer yet.
        """
        try:
            if ready:
                if not (data := bytes(self.room[: line.sock.recv_into(self.room)])):
                    return "eof"
                if line.tls and line.ask.what == "tls":
                    if line.fresh and data[0] not in (20, 21, 22, 23):
                        line.tls = None  # plain text where TLS should begin: words for the dialogue
                    elif len(line.flight) < _FLIGHT:
                        line.flight += data
                if not line.tls:
                    return data
                line.fresh = not line.came.write(data)
            event = self._inside(line) if line.tls else None if line.ask.what == "send" else _WAIT
            if not isinstance(event, dict):  # our Finished leaves with the command that follows
                while line.out:
                    line.out = line.out[line.sock.send(line.out) :]
            return self._want(line, _READ) if event is _WAIT and line.wants != _READ else event
        except BlockingIOError:
            return self._want(line, _WRITE if line.out else _READ)
        except ssl.SSLZeroReturnError:
            return "eof"
        except ssl.SSLError as problem:
            line.row["text"] = (problem.reason or "").replace("_", " ").lower() or None
            return tls_word(problem)
        except OSError as problem:
            line.row["errno"] = _symbol(problem.errno)
            return "timeout" if problem.errno == errno.ETIMEDOUT else "reset"

    def _want(self, line: _Line, wants: int) -> object:
        if line.wants != wants:
            self.poll.modify(line.fd, wants)
            line.wants = wants
        return _WAIT

    def _inside(self, line: _Line) -> Any:
        """The same within TLS, between buffers of our own, so that no byte is lost to OpenSSL."""
        assert line.tls
        if line.ask.what == "read" and not (line.came.pending or line.tls.pending()):
            return _WAIT
        try:
            if line.ask.what == "read":
                return line.tls.read(4096) or "eof"  # close_notify
            if line.ask.what == "send":
                line.text = line.text[line.tls.write(line.text) if line.text else 0 :]
                return None
            line.tls.do_handshake()
        except ssl.SSLWantReadError:
            return _WAIT
        finally:
            line.out += line.goes.read()
        source: Any = line.tls if sys.version_info >= (3, 13) else cast(Any, line.tls)._sslobj
        chain = tuple(c if isinstance(c, bytes) else c.public_bytes(2) for c in source.get_unverified_chain() or ())
        seen = judge(chain[0] if chain else b"", chain, line.job.host, self.begun)
        if (known := line.job.known) and (known["tlsa"] or known["tlsa_secure"] is not None):
            records = (known["tlsa"] or "").split("; ")
            seen["dane"] = tlsa_verdict(records, known["tlsa_secure"], chain, seen.get("cert_matches"))
        group, line.flight = group_of(line.flight), b""
        return seen | {
            "tls_version": line.tls.version(),
            "cipher": (line.tls.cipher() or [None])[0],
            "tls_group": group,
        }

    def _unconnected(self, line: _Line, code: int, at_once: bool = False) -> None:
        line.row = why(code, at_once, icmp_of(line.sock) if ERRQUEUE else {})
        with suppress(OSError):  # of a socket that never got an address
            own = line.sock.getsockname()[0]
            line.row["local_address"] = None if own in ("0.0.0.0", "::") else own
        self._close(line)

    def _close(self, line: _Line) -> None:
        self.poll.unregister(line.fd)
        line.sock.close()
        line.talk = None
        del self.lines[line.fd], self.due[line.ask.stage][line.fd], self.due["total"][line.fd]
        again = False
        if line.row.get("reply_code") == 421:
            self.turns.hurry_less(line.job.crowd)
            again = self.turns.too_many(line.job)
        self.turns.done(line.job, line.began)
        if again:
            return
        line.row |= {"address": line.job.dial, "total_s": monotonic() - line.began}
        self._emit(line.job, line.row)

    def _emit(self, job: Job, row: dict[str, Any]) -> None:
        plain = row["verdict"] == "open_no_tls" and not row["failure"]
        outcome = {"open": "passed", "deferred": "deferred"}.get(row["verdict"], "passed" if plain else "failed")
        step = "rules" if plain else _STEPS.get(row["reached"], "encryption")
        row |= {"attempted": True, "outcome": outcome, "step": step, "dns_s": job.dns_s}
        made = row_of(job, row)
        if outcome == "deferred" and job.attempt < self.attempts and row.get("reply_code"):
            made["again"] = True
            self.turns.again(job._replace(attempt=job.attempt + 1), monotonic())
        self._put(made)


def row_of(job: Job, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of every port that was asked for, and what its probe said."""
    mode = "implicit" if job.port in IMPLICIT else "starttls"
    made: dict[str, Any] = {"origin": "probe", "time": datetime.now(UTC), "mode": mode, "operator": job.operator}
    made |= {"attempt": job.attempt, "family": job.family or None, "mta_sts": job.known and job.known["mta_sts"]}
    made |= said
    if at := made.get("address"):
        made["family"] = 6 if ":" in at else 4
    return made | {"number": job.number, "host": job.host, "port": job.port}


def _symbol(code: int | None) -> str | None:
    return errno.errorcode.get(code or 0, "").removeprefix("WSA") or None


@cache
def _signs() -> dict[str, tuple[str, str]]:
    """errno, connect:errno (by connect itself) or icmp4:type:code -> verdict and failure, on Linux."""
    table = facts.table("probe_failures").dropna(subset=["signs"])
    rows = table[["signs", "verdict", "failure"]].itertuples(index=False, name=None)
    return {sign: (verdict, failure) for signs, verdict, failure in rows for sign in signs.split()}


@cache
def _errnos() -> dict[tuple[str, int], dict[str, Any]]:
    """What the numbers mean where there is no error queue to ask: known from their documents, not tried."""
    rows = facts.table("errnos").to_dict("records")
    return {(row["platform"], int(row["number"])): {str(k): row[k] for k in row} for row in rows}


def why(code: int, at_once: bool, icmp: dict[str, Any], platform: str = sys.platform) -> dict[str, Any]:
    """The columns of a connect that failed, with the ICMP message behind it where the system tells."""
    told = _errnos().get((platform, code))
    name, sign = (
        told["errno"] if told else _symbol(code),
        "icmp{family}:{icmp_type}:{icmp_code}".format(**icmp) if icmp else "",
    )
    signs = [s for s in (sign, f"connect:{name}" * at_once, name or "") if s in _signs()]
    verdict, failure = _signs()[signs[0]] if signs else ("local_error" if at_once else "unreachable", None)
    text = os.strerror(code)
    if told:
        text = f"{told['meaning']} ({platform} {code})"
        if signs[:1] != [f"connect:{name}"]:
            verdict, failure = told["verdict"], told["failure"]
    row = {"reached": "tcp", "verdict": verdict, "failure": failure, "errno": name, "text": text}
    return row | {key: icmp[key] for key in icmp if key != "family"}


def icmp_of(sock: socket.socket) -> dict[str, Any]:
    """Type, code and sender of the ICMP message behind a failed connect: struct sock_extended_err of ip(7)."""
    with suppress(OSError):
        for _, _, data in sock.recvmsg(0, 512, ERRQUEUE)[1]:
            origin, kind, code = struct.unpack_from("4xBBB", data)
            if origin in (2, 3):  # SO_EE_ORIGIN_ICMP, _ICMP6; the sender's sockaddr begins at byte 16
                sender = ip_address(data[20:24] if origin == 2 else data[24:40])
                return {"family": sender.version, "icmp_type": kind, "icmp_code": code, "icmp_from": str(sender)}
    return {}
