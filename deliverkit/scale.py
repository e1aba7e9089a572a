"""Logs of any size over many workers: Dask frames of attempts, and counts that are made where the data is."""

from __future__ import annotations

import io
import os
import pickle
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from glob import glob
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.errors import DeliverkitError, FormatError, SchemaError
from deliverkit.files import _LEAST, _PACKED, _RATIO, _UTF16, Part, _try, parts
from deliverkit.logs import events, first_time, formats, known_format, others
from deliverkit.logs import read_log as _read_log
from deliverkit.logs.scan import LONGEST
from deliverkit.logs.tables import encoded
from deliverkit.schema import ATTEMPTS

_Part = Callable[[pd.DataFrame, list[str]], pd.DataFrame]
_Array = np.ndarray[Any, Any]
_Source = str | PathLike[str]
_WAYS = 16  # partial counts added up at a time
_BLOCK, _FETCH = 2 << 20, 4 << 20  # bytes scanned at once, and fetched at once from far away
_CHANGED = ("mtime", "LastModified", "Last-Modified", "updated")  # what file systems call it
_DOOR = ("host", "port", "step", "attempted")
_WHOSE = ("message_id", "recipient", "queue_id")


def read_log(paths_or_urls: _Source | Sequence[_Source], client: Any = None, *, format: str | None = None,
             columns: Sequence[str] | None = None, year: int | None = None, block_size: int = 8 << 20,
             storage_options: dict[str, Any] | None = None) -> Any:  # fmt: skip
    """Mail logs as a Dask DataFrame of `ATTEMPTS`: the rows that `dk.read_log` gives, in the same order.

    Takes files, folders, URLs of fsspec (s3://, gs://, https://, ...; `storage_options` go there), and patterns of them
    (`*.log`). A partition is `block_size` bytes of a plain file, or a whole file: a compressed one, or one of a format
    that is not of lines (no row of it is joined with another file). Everything is read twice: now, by the workers of
    `client` (or as Dask does it), for the few events that rows elsewhere need, and by each computation, which makes
    only the columns it asks for. A partition depends on its bytes and these events alone, so that a lost worker costs
    nothing but time; block size and number of workers change no row. A process reads one partition at a time:
    processes, not threads, share the work, and memory stays bounded. Raises what `dk.read_log` raises; FormatError too
    for archives and, in a computation, for a file that has changed since. What was appended since is not read.
    """
    try:
        import dask.dataframe as dd
    except ModuleNotFoundError as problem:
        raise _missing(problem) from None
    if format is not None and format not in formats():
        raise FormatError(paths_or_urls, f"no log format {format!r}; known: {', '.join(formats())}")
    wanted = ATTEMPTS.names if columns is None else list(dict.fromkeys(columns))
    if unknown := [name for name in wanted if name not in ATTEMPTS.names]:
        raise SchemaError(f"attempts: there is no column {unknown[0]!r}; it has {', '.join(ATTEMPTS.names)}")
    if type(block_size) is not int or block_size < 1:
        raise SchemaError(f"block_size={block_size!r} is no number of bytes")
    if client is not None and not hasattr(client, "as_current"):
        raise SchemaError(f"client={client!r} is no Dask client: distributed.Client(address) makes one")
    sources = list(_parts(paths_or_urls, storage_options or {}))
    found: dict[str, list[Any]] = {}
    for number, looked in enumerate(_done(_looked, sources, client, format)):
        for name, begins, plain in looked:
            found.setdefault(name, []).append((begins, number, plain))
    if not found:
        raise FormatError(paths_or_urls, "the file is empty")
    jobs: list[_Job] = []
    for name, some in found.items():
        files = [(_Job(sources[number], name, year, tuple(wanted)), plain) for _, number, plain in sorted(some)]
        if hasattr(formats()[name], "KINDS"):
            jobs += _indexed([_ranges(job, block_size) if plain else [job] for job, plain in files], client)
        else:
            jobs += [job for job, _ in files]
    made: Any = dd.from_map
    return made(_rows, [replace(job, token=uuid4().hex) for job in jobs], meta=ATTEMPTS.empty()[wanted])


@dataclass(frozen=True)
class _Job:
    """What a partition is made of: the lines that begin in a range of bytes, or a whole file (`end` is None)."""

    part: Part
    format: str
    year: int | None
    columns: tuple[str, ...]
    start: int = 0
    end: int | None = None
    lines: int | None = None  # in the range; None: the format has no ranges
    before: int = 0  # lines of the file before it
    context: Sequence[bytes] = ()  # packed events of other ranges that matter, lines as seen from here
    doors: Sequence[Any] = ()  # facts of all ranges that tell who answered
    near: pd.Timestamp | None = None  # about when it ends, where stamps have no year
    token: str = ""

    def __dask_tokenize__(self) -> str:
        return self.token


def _missing(problem: ImportError) -> DeliverkitError:
    return DeliverkitError(f'this needs a package ({problem}): python -m pip install "deliverkit[scale]"')


def _parts(paths: Any, options: dict[str, Any]) -> Iterator[Part]:
    """The files of paths and URLs, as they are stored."""
    for path in [paths] if isinstance(paths, str | PathLike) else paths:
        if not (isinstance(path, str) and "://" in path):
            some: list[str] = []
            if isinstance(path, str | Path) and not _try(path, Path(path).exists):
                some = sorted(glob(str(path), recursive=True))  # noqa: PTH207 - it leaves hidden files out
            for part in parts(some or path):
                if not isinstance(getattr(part._call[0], "__self__", None), Path):
                    raise FormatError(part.name, "files in archives are read by dk.read_log: unpack it")
                yield part
            continue
        try:
            from fsspec.core import url_to_fs

            fs, top = url_to_fs(path, **options)
        except ImportError as problem:
            raise _missing(problem) from None
        except ValueError as problem:
            raise FormatError(_shown(path), str(problem)) from None
        found = _try(_shown(path), fs.glob if set("*?[") & set(top) else fs.find, top)
        if not found:
            raise FormatError(_shown(path), "there is no file at this address")
        for one in found:
            if "/." not in one.removeprefix(top):
                url = fs.unstrip_protocol(one)
                yield _remote(url, _try(_shown(url), fs.info, one), options)


def _shown(url: str) -> str:
    """The address without a password or a signature that it may hold."""
    at = urlsplit(url)
    return f"{at.scheme}://{at.netloc.rpartition('@')[2]}{at.path}"


def _remote(url: str, about: dict[str, Any], options: dict[str, Any]) -> Part:
    size = about.get("size")
    if size is None:
        raise FormatError(_shown(url), "its server does not say how long it is")
    told = next((about[key] for key in _CHANGED if about.get(key)), time.time())
    changed = told if isinstance(told, float) else pd.to_datetime(told, utc=True).timestamp()
    return Part(_shown(url), changed, max(_LEAST, _RATIO * size), (_opened, url, options), size)


def _opened(url: str, options: dict[str, Any]) -> io.BufferedReader:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url, **options)
    return io.BufferedReader(fs.open(path, "rb", block_size=_FETCH), 1 << 16)


def _looked(part: Part, format: str | None) -> list[tuple[str, pd.Timestamp, bool]]:
    """Format and first time of a file for each format in it, and whether ranges of it can be read alone."""
    with part.open() as stream:
        head = stream.peek(1)[:512]
    if not head:
        return []
    if head.startswith((b"PK\3\4", b"PK\5\6")) or head[257:262] == b"ustar":
        raise FormatError(part.name, "files in archives are read by dk.read_log: unpack it")
    names = [format] if format else [known := known_format(part), *others(part, known)]
    with _try(part.name, *part._call) as raw:
        packed = _try(part.name, raw.read, 6).startswith((*_PACKED, *_UTF16))
    return [(name, first_time(formats()[name], part), not packed) for name in names]


def _ranges(job: _Job, size: int) -> list[_Job]:
    whole = job.part.size
    return [replace(job, start=at, end=min(at + size, whole)) for at in range(0, whole, size)]


def _done(work: Callable[..., Any], jobs: Sequence[Any], client: Any, *args: Any) -> Iterator[Any]:
    """What `work` gives for each job, in order, some at a time, made by the client's workers or by Dask's own."""
    import dask.base
    from dask.delayed import delayed

    compute: Any = dask.base.compute

    some = 2 * (sum(client.nthreads().values()) if client else os.cpu_count() or 1)
    for at in range(0, len(jobs), some):
        with client.as_current() if client else nullcontext():
            yield from compute(*(delayed(work)(job, *args) for job in jobs[at : at + some]))


@cache
def _thread(_: int) -> ThreadPoolExecutor:
    """The one thread of this process that scans: a heap for each of Dask's threads would take several times as much."""
    return ThreadPoolExecutor(1)


def _alone(work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def done(*args: Any, **options: Any) -> Any:
        def run() -> Any:
            usual = pa.default_memory_pool()
            pa.set_memory_pool(pa.system_memory_pool())  # which gives back what is not in use
            try:
                return work(*args, **options)
            finally:
                pa.system_memory_pool().release_unused()
                pa.set_memory_pool(usual)

        return _thread(os.getpid()).submit(run).result()

    return done


def _events(job: _Job, columns: Sequence[str] = ATTEMPTS.names) -> tuple[events.Events, str]:
    """What the lines say, and what ended the reading before the end of the file."""
    made, damage = events.Events(formats()[job.format], columns), ""
    try:
        for block in _blocks(job):
            made.add(block)
    except FormatError as problem:
        if job.end is not None:
            raise
        damage = str(problem)
    if not made.lines:
        made.add(b"")  # a range in which no line begins
    return made, damage


def _blocks(job: _Job) -> Iterator[memoryview]:
    """The lines that begin in the range, in pieces of whole lines; bytes behind `part.size` came later."""
    if job.end is None:
        with job.part.open() as stream:
            yield from events.blocks(stream, _BLOCK)
        return
    with _try(job.part.name, *job.part._call) as stream:
        pieces = _pieces(job, stream, job.end)
        yield from events.blocks(SimpleNamespace(read1=lambda _: next(pieces, b"")), _BLOCK)


def _pieces(job: _Job, stream: Any, end: int) -> Iterator[bytes]:
    at, line = max(job.start - 1, 0), b""
    _try(job.part.name, stream.seek, at)
    while job.start and at < end and not line.endswith(b"\n"):  # the end of the line that began before
        line = _try(job.part.name, stream.readline, min(LONGEST, end - at))
        at += len(line) or end
    while at < end:
        data = _try(job.part.name, stream.read, min(_BLOCK, end - at))
        if not data:
            raise FormatError(job.part.name, "has become shorter while it was read")
        at += len(data)
        yield data
        if at >= end and not data.endswith(b"\n"):
            yield _try(job.part.name, stream.readline, min(LONGEST, job.part.size - at))


@_alone
def _digest(job: _Job) -> tuple[events.Digest, str]:
    made, damage = _events(job)
    return made.digest(), damage


def _indexed(files: list[list[_Job]], client: Any) -> list[_Job]:
    """The ranges of the files of one log with what each needs of the others; their digests lie on disk meanwhile."""
    jobs = [job for some in files for job in some]
    links = formats()[jobs[0].format].LINKS
    heads, keys = list[events.Digest](), [list[Any]() for _ in links]
    doors, shut = dict[Any, Any](), list[set[Any]]()  # facts about hosts, and the hosts of a range that turned us away
    with TemporaryFile() as file:
        for digest, damage in _done(_digest, jobs, client):
            if damage:
                warnings.warn(damage, stacklevel=4)  # what is good before the damage is read
            doors |= {(*map(door.get, _DOOR), (door.get("text") or "")[-20:]): door for door in digest.doors}
            shut.append({door.get("host") for door in digest.doors if _turned_away(door)})
            for some, (tables, names) in zip(keys, links, strict=True):
                some += [(len(heads), n, np.unique(_keys(digest.tables[name], names))) for n, name in enumerate(tables)]
            pickle.dump(replace(digest, doors=[], days=[]), file)
            heads.append(replace(digest, tables={}, facts=[], doors=[]))
        shared = [_shared(some, len(names)) for some, (names, _) in zip(keys, links, strict=True)]
        contexts = _contexts(links, shared, [head.lines for head in heads], file)
    made, told = list[_Job](), zip(heads, _doors(list(doors.values()), shut), contexts, strict=True)
    for ranges in files:
        here, before = [next(told) for _ in ranges], 0
        ends = _ends(ranges[0], [head.days for head, *_ in here])
        for job, (head, open_, context), near in zip(ranges, here, ends, strict=True):
            made.append(replace(job, lines=head.lines, before=before, context=context, doors=open_, near=near))
            before += head.lines
    return made


def _turned_away(door: Mapping[str, Any]) -> bool:
    return "onnection refused" in (door.get("text") or "") or door.get("step") == "rules"


def _doors(doors: list[Any], shut: list[set[Any]]) -> Iterator[list[Any]]:
    """For each range what `classify` asks about who turned it away: did that host, that port, three others answer?"""
    common, told = dict[Any, dict[Any, Any]](), dict[Any, list[Any]]()
    for door in doors:
        said = (door.get("text") or "")[-20:] if door.get("step") == "rules" else ""  # a hang-up is no answer
        some = common.setdefault((*map(door.get, _DOOR[1:]), said), {})
        if len(some) < 4:  # three, and one without a name
            some.setdefault(door.get("host"), door)
        told.setdefault(door.get("host"), []).append(door)
    every = [door for some in common.values() for door in some.values()]
    return ([*every, *(door for host in hosts for door in told[host])] for hosts in shut)


def _ends(job: _Job, days: Sequence[Sequence[str]]) -> list[pd.Timestamp | None]:
    """About when each range of a file ends, by the days of its stamps without a year."""
    bare = [[day for day in some if not day[:1].isdigit()] for some in days]
    stamps = pd.Series([f"{day} 00:00:00" for some in bare for day in some], dtype="string")
    told = events.dated(stamps, job.part.mtime, job.year).ffill().bfill()
    places = np.maximum(np.cumsum([len(some) for some in bare]) - 1, 0)
    return [told[place] for place in places] if len(told) else [None] * len(days)


def _keys(table: pa.Table, names: Sequence[str]) -> _Array:
    """A number a row, the same where the key is the same; that others may have it too costs little."""
    made = np.zeros(len(table), dtype=np.uint64)
    for name in names:
        codes, values = encoded(table[name])
        made = made * np.uint64(1_000_003) + pd.util.hash_array(np.array([*map(str, values), ""], dtype=object))[codes]
    return (made >> np.uint64(32)).astype(np.uint32)


def _shared(keys: list[tuple[int, int, _Array]], tables: int) -> pd.DataFrame:
    """Range and key, of keys that join rows of different ranges, and of different tables if there are several."""
    every, ends = np.concatenate([some for *_, some in keys]), np.cumsum([len(some) for *_, some in keys])
    ordered = np.sort(every)
    place = np.flatnonzero(_among(every, np.unique(ordered[1:][ordered[1:] == ordered[:-1]])))
    made = pd.DataFrame({"key": every[place].astype(np.int64)})
    for n, name in enumerate(("want", "table")[: min(tables, 2)]):
        made[name] = np.array([one[n] for one in keys], dtype=np.int32)[np.searchsorted(ends, place, side="right")]
    for name in ("want", "table")[: min(tables, 2)]:
        made = made[made.groupby("key")[name].transform("nunique") > 1]
    return made[["want", "key"]].drop_duplicates()


def _among(values: _Array, known: _Array) -> _Array:
    """Which of the values are among the known ones, which are in order."""
    found: _Array = np.append(known, 0)[np.searchsorted(known, values)] == values
    return found if len(known) else np.zeros(len(values), dtype=bool)


def _picked(links: Any, shared: list[pd.DataFrame], count: int, file: Any) -> pd.DataFrame:
    """Which range (`want`) needs which event (`range`, `place` there).

    It is one of another range that a key links to its own, or that another key links to such a one.
    """
    every, found = range(len(links)), list[pd.DataFrame]()
    known = [np.unique(some["key"]) for some in shared]
    file.seek(0)
    for number in range(count):
        rows = _linked(pickle.load(file), links).assign(range=np.int32(number))
        kept = np.logical_or.reduce([_among(rows[n].to_numpy(), known[n]) for n in every])
        for _ in links[1:]:
            kept |= np.logical_or.reduce([rows[n].isin(rows[n][kept & (rows[n] >= 0)]) for n in every])
        found.append(rows[kept])
    rows = pd.concat(found, ignore_index=True)
    found.clear()
    last = [_joined(asked, rows, n) for n, asked in enumerate(shared)]
    picked = pd.concat(last)
    for _ in links[1:]:
        others = [pd.concat([last[m] for m in every if m != n]) for n in every]
        asked = [some.assign(key=rows[n].to_numpy()[some["row"]])[["want", "key"]] for n, some in enumerate(others)]
        last = [_joined(some[some["key"] >= 0].drop_duplicates(), rows, n) for n, some in enumerate(asked)]
        picked = pd.concat([picked, *last]).drop_duplicates()
    return rows.loc[picked["row"], ["range", "place"]].assign(want=picked["want"].to_numpy())


@_alone
def _contexts(links: Any, shared: list[pd.DataFrame], lines: list[int], file: Any) -> list[list[bytes]]:
    """For each range the events of others that it needs, packed."""
    where = _picked(links, shared, len(lines), file)
    starts, made = np.append(0, np.cumsum(lines)), [list[bytes]() for _ in lines]
    file.seek(0)
    for low in range(0, len(lines), _WAYS):
        here = where[where["range"].between(low, low + _WAYS - 1)]
        used = here[["range", "place"]].drop_duplicates().sort_values(["range", "place"], ignore_index=True)
        flat, facts = list[pa.Table](), list[Any]()
        for number in range(low, min(low + _WAYS, len(lines))):
            digest = pickle.load(file)
            mine = pa.array(used.loc[used["range"] == number, "place"])
            flat.append(_flat(digest, int(starts[number]), len(facts)).take(mine))
            facts += digest.facts
        pool = pa.concat_tables(flat, promote_options="default")
        wanted: Any = here.merge(used.reset_index(names="row"), on=["range", "place"]).groupby("want")["row"]
        for want, some in wanted:
            made[want].append(_packed(pool.take(pa.array(np.sort(some))), facts, int(starts[want])))
    return made


def _flat(digest: events.Digest, line: int, fact: int) -> pa.Table:
    """All events of a digest in one table, as of the whole log."""
    made = [table.append_column("table", pa.repeat(name, len(table))) for name, table in digest.tables.items()]
    whole = pa.concat_tables(made, promote_options="default")
    return _put(whole, line=pc.add(whole["line"], line), fact=pc.add(whole["fact"], fact))


def _packed(rows: pa.Table, facts: list[Any], line: int) -> bytes:
    used = pc.drop_null(pc.unique(rows["fact"]))
    number = pc.index_in(rows["fact"], used).cast(pa.int64())
    rows = _put(rows, line=pc.subtract(rows["line"], line), fact=number)
    return zlib.compress(pickle.dumps((rows, [facts[n] for n in used.to_pylist()])), 1)


def _put(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def _unpacked(piece: bytes, schemas: dict[str, pa.Schema]) -> events.Digest:
    rows, facts = pickle.loads(zlib.decompress(piece))
    parted = {name: rows.filter(pc.equal(rows["table"], name)) for name in pc.unique(rows["table"]).to_pylist()}
    tables = {name: table.select(schemas[name].names).cast(schemas[name]) for name, table in parted.items()}
    return events.Digest(0, tables, facts, [], [])


def _linked(digest: events.Digest, links: Any) -> pd.DataFrame:
    """Of each event of a digest the key for each link, -1 where the link is not of its table."""
    made = [
        pd.DataFrame({n: _keys(table, names) if name in among else -1 for n, (among, names) in enumerate(links)},
                     index=range(len(table)), dtype=np.int64)
        for name, table in digest.tables.items()
    ]  # fmt: skip
    whole = pd.concat(made, ignore_index=True)
    return whole.assign(place=np.arange(len(whole), dtype=np.int32))


def _joined(asked: pd.DataFrame, rows: pd.DataFrame, link: int) -> pd.DataFrame:
    """Which range (`want`) gets which row: one of another range with a key that it asks for."""
    there = rows.loc[rows[link].isin(asked["key"]), ["range", link]].set_axis(["range", "key"], axis=1)
    both = asked.merge(there.assign(row=there.index.astype(np.int32)), on="key")
    return both.loc[both["want"] != both["range"], ["want", "row"]]


@_alone
def _rows(job: _Job, columns: list[str] | None = None) -> pd.DataFrame:
    """A partition."""
    columns = list(job.columns if columns is None else columns)
    if job.lines is None:
        return _read_log([job.part], job.format, columns, job.year)
    made, _ = _events(job, columns)
    if made.lines != job.lines:
        raise FormatError(job.part.name, "has changed since it was looked at")
    for piece in job.context:
        made.around(_unpacked(piece, made.schemas()), 0)
    rows, year = made.rows(), job.year
    bare = rows["stamp"].filter(pc.invert(pc.utf8_is_digit(pc.utf8_slice_codeunits(rows["stamp"], 0, 1))))
    if job.near is not None and len(bare):
        year = _year(bare[-1].as_py(), job.near)
    file = [(job.part.name, job.part.mtime)]
    table = events.placed(rows, made, file, [-job.before, job.lines], year, columns or ["line"], job.doors)
    return events.to_pandas(table)[columns]


def _year(stamp: str, near: pd.Timestamp) -> int:
    """The year that brings the stamp nearest to a time."""
    told = {year: events.dated(pd.Series([stamp]), 0, year)[0] for year in range(near.year - 1, near.year + 2)}
    known = {year: abs(when - near) for year, when in told.items() if pd.notna(when)}  # not each has a 29 February
    return min(known, key=lambda year: known[year], default=near.year)


def is_dask(frame: object) -> bool:
    """True for a Dask DataFrame; Dask is not imported to tell."""
    return type(frame).__module__.startswith("dask.") and hasattr(frame, "columns")


def counts(
    part: _Part, frame: Any, keys: list[str], needs: Sequence[str], groups: Sequence[str] = (), ends: bool = False
) -> pd.DataFrame:
    """`part(frame, keys)`: of a Dask frame on its workers, per partition, and added up there in a tree.

    `part` counts rows: it gives the columns `groups` and behind them counts, and counts in `attrs`. It is given the
    columns of `needs`. Where rows speak for each other, all of a message and recipient are brought into one partition
    first: for `ends`, and where bounce messages stand beside rows that may tell of the same attempt.
    """
    if not is_dask(frame):
        return part(frame, keys)
    part, some = partial(_typed, part), [name for name in frame.columns if name in needs]
    pair = [name for name in frame.columns if name in {*some, *_WHOSE}]
    empty = part(frame._meta, keys)  # a column that is missing is named before anything runs
    if not ends:
        made = _added(frame[some].map_partitions(_told, part, keys, meta=empty, enforce_metadata=False), groups)
        late, others = made.attrs.pop("late"), made.attrs.pop("others")
        if not (late and others and {"message_id", "recipient"} <= set(pair)):
            return made
    return _added(together(frame[pair]).map_partitions(part, keys, meta=empty, enforce_metadata=False), groups)


def together(frame: Any) -> Any:
    """A Dask frame with all rows of a message and recipient in one partition, in the order they had.

    Message and recipient are compared as `outcomes` does it. Rows without a name of either are spread evenly.
    """
    meta = frame._meta.assign(_place=np.int64(0), _order=np.int64(0))
    placed = frame.map_partitions(_placed, meta=meta)
    return placed.shuffle(on="_place", ignore_index=True).map_partitions(_ordered, meta=frame._meta)


def _placed(rows: pd.DataFrame, partition_info: dict[str, Any]) -> pd.DataFrame:
    order = (partition_info["number"] << 32) + np.arange(len(rows), dtype="int64")
    none = pd.Series(pd.NA, rows.index, dtype="string")
    message, queue, whose = (
        rows[name].astype("string") if name in rows else none for name in ("message_id", "queue_id", "recipient")
    )
    name = message.str.strip(" <>").fillna(queue)
    pair = pd.util.hash_pandas_object(name, index=False) ^ pd.util.hash_pandas_object(whose.str.lower(), index=False)
    place = np.where(name.isna() | whose.isna(), order, pair.to_numpy().view("int64"))
    return rows.assign(_place=place, _order=order)


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("_order", ignore_index=True).drop(columns=["_place", "_order"])


def _typed(part: _Part, rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """What `part` makes of rows with integers: Dask reads them from Parquet as floats where one is missing."""
    names = [c.name for c in ATTEMPTS.columns if c.dtype == "Int64" and c.name in rows]
    names = [name for name in names if rows[name].dtype.kind in "iuf"]
    return part(ATTEMPTS.check(rows, names).astype(dict.fromkeys(names, "Int64")), keys)


def _told(rows: pd.DataFrame, part: _Part, keys: list[str]) -> pd.DataFrame:
    made = part(rows, keys)
    late = int(rows["origin"].eq("dsn").sum()) if "origin" in rows else 0
    made.attrs |= {"late": late, "others": len(rows) - late}
    return made


def _added(frame: Any, groups: Sequence[str]) -> pd.DataFrame:
    from dask.delayed import delayed

    level = frame.to_delayed()
    while len(level) > 1:
        level = [delayed(_add)(level[at : at + _WAYS], list(groups)) for at in range(0, len(level), _WAYS)]
    made: pd.DataFrame = level[0].compute()
    return made


def _add(made: list[pd.DataFrame], groups: list[str]) -> pd.DataFrame:
    whole = pd.concat(made, ignore_index=True)
    added = whole.groupby(groups or np.zeros(len(whole)), dropna=False, observed=True).sum()
    added = added.reset_index(drop=not groups)
    added.attrs = {name: sum(some.attrs[name] for some in made) for name in made[0].attrs}
    return added
