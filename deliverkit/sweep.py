"""Many ports of many hosts at once, without mail: `probe`."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from os import PathLike
from pathlib import Path
from threading import Event as Flag
from typing import IO, Any
from warnings import warn

import numpy as np
import pandas as pd
from tqdm import tqdm

from deliverkit import PORTS
from deliverkit.classify import classify
from deliverkit.errors import FormatError, SchemaError, TargetError
from deliverkit.loop import Loop, row_of
from deliverkit.path import deaths
from deliverkit.probe import IMPLICIT
from deliverkit.resolve import Answer, Resolver, own_names
from deliverkit.schema import PROBES
from deliverkit.targets import Job, jobs_of, limits_of, routes_of

_CANCELLED = {"attempted": False, "verdict": "cancelled", "failure": "cancelled"}
_DEAD = ("filtered", "closed", "unreachable", "blocked_icmp")
_ROW = ["vantage", "host", "port", "address", "family", "attempt"]  # what makes it another row
_BEGINS = b'{"origin": "probe"'  # how a file of `out` begins
_CHUNK = 5000  # rows: a frame of them takes a fifth of what they take as mappings
_WALKS = 3  # paths that are walked at a time: they share their first routers, which answer some times a second


def probe(targets: str | Iterable[str] | pd.DataFrame, ports: int | Iterable[int] = PORTS, *,
          vantage: str | None = None, connect_to: Mapping[Any, Any] | Iterable[str] | str | None = None,
          timeout: float | str = "standard", in_flight: int = 500, pace: str | None = "polite",
          progress: bool | Callable[[int, int], object] | None = None, ehlo_name: str | None = None,
          resolver: Callable[[str], Answer] | None = None, family: int | str | None = None, attempts: int = 1,
          check_auth: bool = False, trace: bool = False, stop: Flag | None = None,
          resume: pd.DataFrame | None = None, out: str | PathLike[str] | None = None) -> pd.DataFrame:  # fmt: skip
    """Try ports of hosts up to EHLO inside TLS, without mail: a `PROBES` frame, a row per host, port and attempt.

    `targets` are names, addresses, "host:port" or "[v6]:port", one or many, or a frame with `host` and perhaps `port`,
    `operator`, `address`, as `dk.resolve` and `dk.controls` give; what resolve knows of DANE and MTA-STS is then
    compared with what the server shows, and each address is asked once, however many domains lead there. What is asked
    twice is probed once; rows come in the order asked. `family` is 4, 6, "both" (a row each) or None: IPv4 first.
    `vantage` names the network this runs in. `connect_to` works as curl's --connect-to: {(host, port): (address,
    port)} or "HOST:PORT:ADDRESS:PORT", where nothing means any on the left and unchanged on the right; the first
    that fits counts. `timeout` is seconds per stage, or quick (connect 5, banner 10, others 10), standard (10, 30, 30)
    or patient (30, 300, 300); a whole probe ends after connect + banner + 3 others + 2 s. `pace="polite"` keeps to one
    connection at a time and one new a second per address (or host that is mapped elsewhere), two a second per operator
    (last two labels, or /24, /48), 100 in all; a 421 halves its operator's. None lifts that, for servers of one's own;
    an address that says 421 to several at a time is then asked again alone. `attempts` is how often a port is tried
    that puts us off with 4xx, not before 300 s have passed (1 s without pace). `check_auth` asks MAIL FROM:<> without
    login, then RSET: `auth_enforced`. `trace` walks the path (Linux) of each port that died where another port of the
    address did not: `last_hop`. `progress` is True, False or a function of (done, total); by default a bar shows where
    stderr is a terminal. `ehlo_name` is by default the name of the own address if it leads back there, else its
    literal; `resolver` is a `dk.Resolver` or a function of a name that gives an `Answer`. Raises TargetError for what
    must not be run.

    Setting `stop` (a `threading.Event`) from elsewhere, or Ctrl-C, ends the sweep within half a second: what is done is
    kept, the rest are rows with verdict `cancelled`, which are not `attempted`. `resume` is such a frame: what it has
    from this vantage is not tried again, and the result holds both. `out` is a file that every row is added to as it
    comes, as a line of JSON, so that a run that was killed goes on where it was: call it again. `dk.read` reads it.
    """
    jobs, limits = jobs_of(targets, ports, routes_of(connect_to), family), limits_of(timeout)
    for name, number in (("in_flight", in_flight), ("attempts", attempts)):
        if not isinstance(number, int) or number < 1:
            raise TargetError(f"{name} should be 1 or more, not {number!r}")
    if pace not in ("polite", None):
        raise TargetError(f"pace should be 'polite' or None, not {pace!r}")
    if ehlo_name is not None and not re.fullmatch(r"[!-~]{1,255}", ehlo_name):
        raise TargetError(f"ehlo_name should be one word in ASCII, not {ehlo_name!r}")
    if not (stop is None or isinstance(stop, Flag)) or not (resolver is None or callable(resolver)):
        raise TargetError("stop should be a threading.Event, resolver a dk.Resolver or a function of a name")
    rows = _Rows(jobs, vantage)
    if resume is not None:
        rows.resume(resume)
    if out is not None:
        rows.spool(out)
        if jobs and len(rows.done) == len(jobs):
            since = pd.concat(rows.frames)["time"].min()
            warn(f"nothing was probed: {out} has all {len(jobs)} ports, since {since:%Y-%m-%d %H:%M} UTC", stacklevel=2)
    with rows.file or nullcontext():
        left = [job for job in jobs if job.number not in rows.done]
        ask = resolver or Resolver()
        loop = Loop(left, limits, in_flight, pace is not None, ehlo_name or own_names(ask), ask, attempts, check_auth)
        hidden = None if progress is None else progress is not True
        stopped = False
        try:
            with tqdm(total=len(jobs), initial=len(rows.done), unit="port", leave=False, disable=hidden) as bar:
                while len(rows.done) < len(jobs) and not stopped:
                    loop.bell.wait(0.1)
                    loop.bell.clear()
                    while row := loop.row():
                        if rows.add(row):
                            bar.update()
                            if callable(progress):
                                progress(len(rows.done), len(jobs))
                    rows.flush()
                    stopped = stop is not None and stop.is_set()
        except KeyboardInterrupt:
            stopped = True
            how = "resume= goes on" if out is None else "the same call goes on"
            warn(f"interrupted with {len(rows.done)} of {len(jobs)} ports done; {how}", stacklevel=2)
        finally:
            loop.stop()
        while row := loop.row():  # finished and not yet asked for when the sweep was ended
            rows.add(row)
        rows.flush()
        if trace and not stopped:
            rows.trace(stop)
    return rows.frame()


class _Rows:
    """The rows that are there so far: in frames of a few thousand, and in the file of `out`."""

    def __init__(self, jobs: list[Job], vantage: str | None) -> None:
        self.jobs, self.vantage = jobs, vantage
        self.done: set[int] = set()  # numbers of the jobs that need not be tried (again)
        self.numbers: list[int] = []  # of the job behind each row
        self.fresh: list[dict[str, Any]] = []
        self.frames: list[pd.DataFrame] = [PROBES.empty()]
        self.file: IO[str] | None = None

    def add(self, row: dict[str, Any]) -> bool:
        """Keep a row; False if its port will be tried again."""
        number, again = row.pop("number"), row.pop("again", False)
        row["vantage"] = self.vantage
        self.fresh.append(row)
        self.numbers.append(number)
        self._note(row)
        if len(self.fresh) >= _CHUNK:
            self._pack()
        if not again:
            self.done.add(number)
        return not again

    def _pack(self) -> None:
        self.frames.append(PROBES.build(self.fresh))
        self.fresh = []

    def _note(self, row: dict[str, Any] | None) -> None:
        """Write a row to the file, or all that was written to the system: that survives the end of this process."""
        if self.file:
            try:
                self.file.write(json.dumps(row, default=str) + "\n") if row else self.file.flush()
            except OSError as problem:  # the rows are worth more than the file
                warn(f"{self.file.name} is incomplete: {problem.strerror}; the frame is not", stacklevel=3)
                with suppress(OSError):
                    self.file.close()
                self.file = None

    def flush(self) -> None:
        self._note(None)

    def resume(self, frame: pd.DataFrame) -> None:
        """Take the rows of an earlier sweep from here that were asked for now, too."""
        old = PROBES.build(PROBES.check(frame, ["host", "port", "verdict"]))
        old = old[old["verdict"].ne("cancelled").fillna(False) & old["vantage"].fillna("").eq(self.vantage or "")]
        known = {job.name(): job.number for job in self.jobs}
        names = old[["host", "port", "address", "family"]].astype(object).where(old.notna(), None)
        found = []
        for host, port, address, family in names.itertuples(index=False, name=None):
            keys = [(str(host).lower().rstrip("."), port, at) for at in (address, family, 0)]
            found.append(next((known[key] for key in keys if key in known), -1))
        old = old.assign(number=found).query("number >= 0").drop_duplicates(["number", "attempt"], keep="last")
        self.numbers += old["number"].tolist()
        self.done |= set(self.numbers)
        self.frames.append(old.drop(columns="number"))

    def spool(self, out: str | PathLike[str]) -> None:
        """Go on with the file, or begin it."""
        try:
            path = Path(out)
            if path.exists():
                data = path.read_bytes() if path.is_file() else b"no file"
                if not data.startswith(_BEGINS[: len(data)]):
                    raise FormatError(out, "this is no file of probes, and is left as it is")
                self.resume(read_probes(data, str(out)))
                with path.open("rb+") as file:  # a process that was killed may have left half a line
                    file.truncate(data.rfind(b"\n") + 1)
            self.file = path.open("a", encoding="utf-8")
        except OSError as problem:
            raise FormatError(out, f"cannot be written: {problem.strerror or problem}") from None

    def trace(self, stop: Flag | None) -> None:
        """Walk to the ports that died at addresses where another port did not."""
        self._pack()
        frame = self.frames[0] = pd.concat(self.frames, ignore_index=True)
        self.frames[1:] = []
        doors = [(self.jobs[n].dial_port, self.jobs[n].port in IMPLICIT) for n in self.numbers]
        ends = zip(
            frame["address"].tolist(), doors, frame["connect_s"].notna(), frame["verdict"].isin(_DEAD), strict=True
        )
        live: dict[Any, tuple[int, bool]] = {}
        dead: dict[Any, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # address -> port -> rows
        for place, (address, door, up, down) in enumerate(ends):
            if up and (address not in live or live[address][1]):  # STARTTLS can be ended with QUIT, TLS only be closed
                live[address] = door
            elif down:
                dead[address][door[0]].append(place)
        ways = {address: ports for address, ports in dead.items() if address in live}
        halt = stop or Flag()
        with ThreadPoolExecutor(_WALKS) as pool:
            try:
                walks = [pool.submit(deaths, at, live[at], list(ports), halt) for at, ports in ways.items()]
                for ports, walk in zip(ways.values(), walks, strict=True):
                    for port, (hop, sender) in walk.result().items():
                        frame.loc[ports[port], ["last_hop", "last_hop_from"]] = hop, sender
            except KeyboardInterrupt:  # what was walked so far is kept
                halt.set()
        for row in frame[frame["last_hop"].notna()].to_dict("records") if self.file else ():
            known = {str(name): value for name, value in row.items() if pd.notna(value)}
            self._note({"origin": "probe"} | known)
        self.flush()

    def frame(self) -> pd.DataFrame:
        """All rows in the order asked, those that were not reached as `cancelled`."""
        left = [job for job in self.jobs if job.number not in self.done]
        self.file = None
        for job in left:
            self.add(row_of(job, _CANCELLED))
        self._pack()
        order = np.argsort(np.array(self.numbers, dtype=np.int64), kind="stable")
        parts, self.frames = self.frames, []  # each copy is as large as all the rest
        whole = pd.concat(parts, ignore_index=True)
        del parts
        return judged(whole.iloc[order])


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one sweep or of several, with what only the rows together tell."""
    # Nothing on the wire tells a dead implicit port from stalled TLS; the same host's STARTTLS does.
    stalled = frame["failure"].eq("tls_timeout").fillna(False)
    there = frame["host"].isin(frame.loc[stalled & frame["mode"].eq("starttls"), "host"])
    return classify(frame.assign(verdict=frame["verdict"].mask(stalled & there, "open_tls_broken")), PROBES)


def read_probes(data: bytes, name: str) -> pd.DataFrame:
    """The rows of a file of `out`: a `PROBES` frame. Half a line at the end, of a run that was killed, is left out."""
    rows: list[Any] = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise FormatError(name, "this line is no row of probes", line=number) from None
    try:
        frame = PROBES.build(rows)
        if frame[["host", "port", "verdict"]].isna().any(axis=None):
            raise SchemaError("a row lacks host, port or verdict")
    except (SchemaError, ValueError, TypeError, AttributeError) as problem:
        raise FormatError(name, f"no rows of probes: {problem}") from None
    return frame.drop_duplicates(_ROW, keep="last", ignore_index=True)  # what was traced stands there again
