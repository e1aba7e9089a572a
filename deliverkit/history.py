"""Attempts over time: Parquet files in a folder per day, here or in a bucket, that take additions whole or not at all.

An addition is written to `.add/<id>/`, under names that other readers of Parquet pass over. The empty file `committed`
there makes it part of the history; then its files move to their days. Who comes next finishes that, or clears it away.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import reduce
from hashlib import blake2b
from itertools import pairwise
from operator import and_, or_
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from deliverkit.errors import DeliverkitError, FormatError, SchemaError
from deliverkit.schema import ATTEMPTS, PROBES, Frame

_BLOCK, _ROWS, _WAIT_S = 32 << 20, 1 << 17, 600  # bytes gathered for a file; rows a row group; for a lock
_DAY_US, _YEARS_US = 86_400_000_000, (-62_135_596_800_000_000, 253_402_300_800_000_000)  # years 1 to 9999
_TYPES = {"Int64": pa.int64(), "Float64": pa.float64(), "boolean": pa.bool_(), "string": pa.large_string()}
_FIELDS = {column.name: _TYPES.get(column.dtype, pa.timestamp("us", "UTC")) for column in PROBES.columns}
_Files = dict[str, tuple[str, int]]  # by name: path now, and bytes
_SCHEMA = pa.schema([*_FIELDS.items(), ("row_id", pa.int64())])
_PANDAS = {kind: pd.api.types.pandas_dtype(name) for name, kind in _TYPES.items()}
_FILE, _STAMP, _SIGN = re.compile(r"day=[^/]+/[^/._][^/]*\.parquet"), "%Y%m%dT%H%M%S", b"sum:"
_AS = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}
_FORMAT = ds.ParquetFileFormat(ds.ParquetReadOptions(), ds.ParquetFragmentScanOptions(page_checksum_verification=True))
_PROBED = reduce(or_, [pc.field(name).is_valid() for name in PROBES.names if name not in ATTEMPTS.names])
_TRY = ("time", "origin", "vantage", "client", "host", "address", "text", "line")  # what the line of a try says itself
_FAR = _TRY[1:-2]  # what the line that repeats it says, too; its text may be shorter
_ROW = (*_TRY[:-1], "recipient", "port", "outcome", "mode", "attempt")


class History:
    """Attempts kept over time in a folder, or at a URL of fsspec (s3://, gs://, ...; `options` go there).

    Files lie in `day=2026-11-25/` (UTC; without a time `day=unknown`): zstd, sorted by time, all columns of PROBES and
    `row_id`. DuckDB (`read_parquet('folder/day=*/*.parquet')`) and Dask (`dd.read_parquet(folder)`) read them as is.

    A process killed at any point leaves the old or the new state. Other readers can see a part only of an addition of
    several days: for the milliseconds in which its files are moved or, if the process dies just then, until the next
    `History(folder)` moves the rest. Writers wait for each other (flock on folders, which NFS lacks), 10 minutes at
    most. A bucket has no locks: there, one writer at a time is up to the caller, and what a dead one left goes a day
    later. Raises FormatError for a place that holds something else, is full, out of reach, or damaged (names the file).

    >>> import tempfile
    >>> log = pd.DataFrame({"time": pd.to_datetime(["2026-11-25T10:00Z"]), "port": [25], "client": "acme"})
    >>> history = History(tempfile.mkdtemp())
    >>> history.add(log), history.add(log), len(history.attempts(client="acme"))
    (1, 0, 1)
    """

    def __init__(self, folder_or_url: str | PathLike[str], **options: Any) -> None:
        if not isinstance(folder_or_url, str | PathLike):
            raise FormatError(folder_or_url, "is neither a folder nor a URL")
        url = os.fspath(folder_or_url).removeprefix("file://")
        self._name, self._local = re.sub(r"//[^/@]*@", "//", url), "://" not in url  # no login in messages
        with _told(self._name, "opened"):
            if self._local:
                self._fs, self._top = pyarrow.fs.LocalFileSystem(), str(Path(url).absolute())
            else:
                import fsspec

                below, self._top = fsspec.url_to_fs(url, use_listings_cache=False, **options)
                self._fs = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(below))
        self._files()
        if self._local:
            with suppress(OSError), self._lock("/.add", 0):  # without the right to write, or while a writer is at work
                self._settle()

    def add(self, frames: pd.DataFrame | Iterable[pd.DataFrame]) -> int:
        """Add a frame (ATTEMPTS, PROBES, or some of their columns with `time`), or many of them as one addition.

        Returns by how many rows the history grew. What it has is not added again, whatever the file was called: a log
        that grew, was rotated or packed, an export that overlaps. Rows are the same if they agree in `time`, `origin`,
        `vantage`, `client`, `recipient`, `host`, `address`, `port`, `outcome`, `text`, `mode`, `attempt` and `queue_id`
        (where missing, `message_id`), those of a log without recipient also in `line`; one addition may have several.
        A try at the end of a log whose recipient stands on a later line is replaced when that line is there, and goes
        where that line repeats it (known by all that the history has of its `source` and day before it). Memory: a
        frame or 32 MiB, and 16 bytes a row that the days touched have. Raises SchemaError for a column that is missing,
        unknown or of a wrong type. Then, and if `frames` raises, nothing is added.
        """
        many = isinstance(frames, Iterable) and not isinstance(frames, pd.DataFrame)
        with self._stage() as stage:
            days: dict[str, list[str]] = {}
            for name, (path, _) in self._files().items():
                days.setdefault(f"day={_day(name)}", []).append(path)
            known: dict[str, Any] = {}
            named: dict[str, list[int]] = {}
            repeated: dict[str, list[pa.Table]] = {}
            grown = 0
            for number, block in enumerate(_blocks(frames if many else [frames])):
                for day, rows in _by_day(block):
                    if day in days:
                        if day not in known:
                            ids = self._read(days[day], ["row_id"])["row_id"].drop_null().to_numpy()
                            known[day] = np.unique(ids, return_counts=True)
                        rows = _unmet(rows, *known[day])
                        if len(rows):
                            told = (named.setdefault(day, []), repeated.setdefault(day, []))
                            rows = self._joined(rows, days[day], *told)
                    if len(rows):
                        self._write(stage / day / f"{stage.name}-{number}.new", rows)
                        grown += len(rows)
            for day, gone in named.items():
                gone += self._told_again(repeated[day], days[day], *known[day])
                for path in days[day] if gone else ():
                    old = self._read([path], _SCHEMA.names)
                    met = pc.is_in(old["row_id"], pa.array(gone, pa.int64()))
                    if lost := pc.sum(met).as_py():
                        self._write(stage / day / f"{Path(path).stem}.new", old.filter(pc.invert(met)))
                        grown -= lost
            if stage.exists():
                self._commit(stage)
        return grown

    def attempts(self, since: Any = None, until: Any = None, columns: Sequence[str] | None = None,
                 **equal: Any) -> pd.DataFrame:  # fmt: skip
        """The rows of a span of time, sorted by it: PROBES if something of a probe is among them, else ATTEMPTS.

        `since` is in it, `until` is not; UTC where no zone stands; rows without a time come if neither is given.
        `client="acme"` takes the rows with that value, a list any of its values, None where it is missing; so for every
        column. Only what is asked for is read. Raises SchemaError for a column or a value that cannot be.
        """
        if unknown := [name for name in (*(columns or ()), *equal) if name not in PROBES.names]:
            raise SchemaError(f"history: there is no column {unknown[0]!r}; it has {', '.join(PROBES.names)}")
        first, end = (None if value is None else _utc(value) for value in (since, until))
        low, high = str(first.date()) if first else "", str(end.date()) if end else "~"
        chosen = reduce(and_, [_equals(name, value) for name, value in equal.items()], pc.scalar(True))
        chosen = chosen & (pc.field("time") >= first) if first else chosen
        chosen = chosen & (pc.field("time") < end) if end else chosen

        def read(files: _Files) -> pd.DataFrame:
            paths = [path for name, (path, _) in files.items() if low <= _day(name) <= high]
            probed = not columns and self._each(paths, lambda data: data.count_rows(filter=chosen & _PROBED))
            frame = PROBES if probed else ATTEMPTS
            names = list(columns or frame.names)
            table = self._read(paths, list(dict.fromkeys([*names, "time"])), chosen).sort_by("time")
            made = table.select(names).to_pandas(types_mapper=_PANDAS.get)
            return made if columns else frame.build(made)

        return self._settled(read)

    def days(self) -> pd.DataFrame:
        """A row per day, in order: `day` (missing for rows without a time), `rows`, `files`, `bytes`."""

        def count(files: _Files) -> pd.DataFrame:
            made = pd.DataFrame({"day": [_day(name) for name in files]}, dtype="string").replace("unknown", None)
            made["rows"] = [self._each([path], lambda data: data.count_rows()) for path, _ in files.values()]
            made = made.assign(files=1, bytes=[size for _, size in files.values()])
            counts = dict.fromkeys(["rows", "files", "bytes"], "Int64")
            return made.astype(counts).groupby("day", dropna=False, as_index=False).sum()

        return self._settled(count)

    def _settled(self, work: Callable[[_Files], pd.DataFrame]) -> pd.DataFrame:
        for _ in range(4):  # files may move between being listed and being read
            with suppress(FileNotFoundError):
                return work(self._files())
        raise FormatError(self._name, "its files change all the time")

    def _files(self) -> _Files:
        """The committed files by their name in the end, `day=.../....parquet`: path now, and bytes."""
        made: _Files = {}
        below = pyarrow.fs.FileSelector(self._top, allow_not_found=True, recursive=True)
        with _told(self._name, "read"), self._lock("", _WAIT_S):
            listed = [file for file in self._fs.get_file_info(below) if file.is_file]
        found = {file.path.removeprefix(f"{self._top}/"): (file.path, file.size) for file in listed}
        for name in sorted(found):
            top, *rest = name.split("/")
            if _FILE.fullmatch(name):
                made.setdefault(name, found[name])
            elif top == ".add" and name.endswith(".new") and f".add/{rest[0]}/committed" in found:
                made["/".join(rest[1:]).removesuffix("new") + "parquet"] = found[name]  # is seen first, and replaces
            elif not top.startswith((".", "_", "day=")):
                raise FormatError(self._name, f"holds something else than a history: {top!a}")
        return made

    @contextmanager
    def _lock(self, below: str, wait_s: float) -> Iterator[None]:
        """Hold a folder: `/.add` whoever writes, the top while files are moved and while they are listed."""
        with ExitStack() as held:
            if self._local and Path(self._top + below).is_dir():
                folder, end = os.open(self._top + below, os.O_RDONLY), time.monotonic() + wait_s
                held.callback(os.close, folder)
                while True:
                    try:
                        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError as busy:
                        if time.monotonic() >= end:
                            raise BlockingIOError(busy.errno, "another process has been writing all the time") from None
                        time.sleep(0.01)
            yield

    @contextmanager
    def _stage(self) -> Iterator[Path]:
        """A folder that does not exist yet, for the files of one addition; what is committed of it stays."""
        with ExitStack() as held:
            with _told(self._name, "written"):
                if self._local:
                    folder = Path(self._top, ".add")
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(self._lock("/.add", _WAIT_S))
                else:
                    folder = Path(held.enter_context(TemporaryDirectory()))
                self._settle()
            try:
                yield folder / f"{datetime.now(UTC):{_STAMP}}-{uuid4().hex[:16]}"
            finally:
                with _told(self._name, "written"):
                    self._settle()

    def _write(self, path: Path, rows: pa.Table) -> None:
        with _told(self._name, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w+b") as file:
                with pq.ParquetWriter(file, _SCHEMA, **_AS) as writer:
                    for start in range(0, max(len(rows), 1), _ROWS):
                        writer.write_table(_whole(rows.slice(start, _ROWS), _SCHEMA.names))
                at, (_, _, footer) = _footer(file)
                file.seek(at)
                file.write(_SIGN + crc32(footer).to_bytes(4) + footer)
                file.flush()
                os.fsync(file.fileno())

    def _commit(self, stage: Path) -> None:
        with _told(self._name, "written"):
            there = f"{self._top}/.add/{stage.name}"
            for file in () if self._local else stage.glob("day=*/*"):
                self._fs.handler.fs.put_file(str(file), f"{there}/{file.parent.name}/{file.name}")
            self._sync(*stage.glob("day=*"), stage, stage.parent, Path(self._top))
            self._fs.open_output_stream(f"{there}/committed").close()
            self._sync(stage)

    def _settle(self) -> None:
        """Move what is committed to its days; clear away what is not and has no writer any more."""
        with self._lock("", _WAIT_S):
            old = "~" if self._local else f"{datetime.now(UTC) - timedelta(days=1):{_STAMP}}"
            for stage in self._fs.get_file_info(pyarrow.fs.FileSelector(f"{self._top}/.add", allow_not_found=True)):
                files = self._fs.get_file_info(pyarrow.fs.FileSelector(stage.path, recursive=True))
                if any(file.base_name == "committed" for file in files):
                    for day, name in (file.path.split("/")[-2:] for file in files if file.extension == "new"):
                        if self._local:
                            self._fs.create_dir(f"{self._top}/{day}")
                        self._fs.move(f"{stage.path}/{day}/{name}", f"{self._top}/{day}/{name[:-3]}parquet")
                    self._sync(*Path(self._top).glob("day=*"), Path(self._top))
                elif stage.base_name > old:
                    continue
                self._fs.delete_dir(stage.path)

    def _sync(self, *folders: Path) -> None:
        for folder in folders if self._local else ():
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _read(self, paths: list[str], columns: list[str], chosen: Any = None) -> pa.Table:
        return self._each(paths, lambda data: data.to_table(columns, filter=chosen))

    def _each(self, paths: list[str], work: Any) -> Any:
        """What `work` makes of files as one data set; FormatError names the one that is damaged."""
        try:
            for path in paths:
                with self._fs.open_input_file(path) as file:
                    _, (sign, stated, footer) = _footer(file)
                if sign == _SIGN and stated != crc32(footer).to_bytes(4):
                    raise ValueError("the checksum of its footer does not fit")
            return work(ds.dataset(paths, _SCHEMA, _FORMAT, self._fs))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as problem:
            if len(paths) > 1:
                for path in paths:
                    self._each([path], work)
            raise FormatError(paths[0], f"is no file of a history, or damaged: {_line(problem)}") from None

    def _joined(self, rows: pa.Table, paths: list[str], named: list[int], repeated: list[pa.Table]) -> pa.Table:
        """`rows` without tries that the history has with a recipient; row ids of those it has without go to `named`.

        Those it has without, and after which a recipient of the same host failed, go to `repeated`.
        """
        mine = _whole(rows, [*_TRY, "recipient", "outcome", "source", "row_id"])
        bare = pc.and_kleene(pc.is_null(mine["recipient"]), pc.equal(mine["origin"], "log")).fill_null(False).to_numpy()
        lines = pc.field("line").isin(pc.unique(mine["line"].filter(bare)))
        open_ = pc.field("recipient").is_null()
        have = self._read(paths, mine.column_names, (pc.field("origin") == "log") & (open_ | lines))
        near = np.flatnonzero(pc.is_in(mine["line"], have["line"].combine_chunks()).to_numpy())
        here, there = _hashes(mine.take(near), _TRY), _hashes(have, _TRY)
        alone = pc.is_null(have["recipient"]).to_numpy()
        named += have["row_id"].fill_null(0).to_numpy()[alone & np.isin(there, here[~bare[near]])].tolist()
        tries = have.filter(alone)
        failed = pc.and_(mine["recipient"].is_valid(), pc.is_in(mine["outcome"], pa.array(["deferred", "failed"])))
        same = mine.filter(pc.and_(failed, pc.is_in(mine["address"], pc.unique(tries["address"]))))
        last = same["line"].to_pandas().groupby(_hashes(same, _FAR)).max()
        late = pd.Series(_hashes(tries, _FAR)).map(last) > tries["line"].to_pandas()
        repeated.append(tries.filter(pa.array(late)))
        keep = np.ones(len(rows), dtype=bool)
        keep[near[bare[near] & np.isin(here, there[~alone])]] = False
        return rows.filter(pa.array(keep))

    def _told_again(self, tries: list[pa.Table], paths: list[str], ids: Any, left: Any) -> list[int]:
        """The row ids of tries that are not met, where all is that the history has of their log before them."""
        missed, gone = pa.array(ids[left > 0], pa.int64()), list[int]()
        some = pa.concat_tables(tries) if tries else _whole(pa.table({}), ["source", "line", "row_id"])
        some = some.filter(pc.and_(pc.is_in(some["row_id"], missed), pc.is_valid(some["source"])))
        for source in pc.unique(some["source"]).to_pylist():
            here = some.filter(pc.equal(some["source"], source))
            before = (pc.field("source") == source) & (pc.field("line") < pc.max(here["line"]))
            known = self._read(paths, ["row_id"], before & pc.field("recipient").is_valid())["row_id"]
            if len(known) and not pc.any(pc.is_in(known, missed)).as_py():
                gone += here["row_id"].to_pylist()
        return gone


def _day(name: str) -> str:
    return name.partition("/")[0].removeprefix("day=")


def _footer(file: Any) -> tuple[int, tuple[bytes, bytes, bytes]]:
    """Where the footer of a Parquet file begins; 4 bytes and 4 of a checksum before it (damage can crash Arrow); it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 8)
    at = size - 8 - int.from_bytes(file.read(4), "little")
    file.seek(max(at - 8, 0))
    return at, (file.read(4), file.read(4), file.read())


def _unmet(rows: pa.Table, ids: Any, left: Any) -> pa.Table:
    """The rows that are not among `ids`, each of which meets as many as `left` says, over all calls."""
    new = rows["row_id"].to_numpy()
    at = np.minimum(np.searchsorted(ids, new), len(ids) - 1)
    same = np.flatnonzero(ids[at] == new) if len(ids) else np.array([], dtype="int64")
    nth = pd.Series(at[same]).groupby(at[same]).cumcount().to_numpy()
    met = same[nth < left[at[same]]]
    np.subtract.at(left, at[met], 1)
    keep = np.ones(len(new), dtype=bool)
    keep[met] = False
    return rows.filter(pa.array(keep))


def _blocks(frames: Iterable[Any]) -> Iterator[pa.Table]:
    """The frames as tables, sorted by time, small ones put together."""
    held: list[pa.Table] = []
    for frame in frames:
        held.append(_table(frame))
        if sum(table.nbytes for table in held) >= _BLOCK:
            yield pa.concat_tables(held, promote_options="default").sort_by("time")
            held = []
    if held:
        yield pa.concat_tables(held, promote_options="default").sort_by("time")


def _table(frame: Any) -> pa.Table:
    """A frame as a table with `row_id`, without the columns that it does not have."""
    PROBES.check(frame, ["time"])
    PROBES.check(frame, [name for name in PROBES.names if name in frame])
    known = set(frame.columns) <= set(PROBES.names)  # else PROBES says what is not
    some = Frame("attempts", tuple(c for c in PROBES.columns if c.name in frame)) if known else PROBES
    kinds = pa.schema([_SCHEMA.field(name) for name in some.names])
    try:
        made = pa.Table.from_pandas(some.build(frame), kinds, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as problem:
        raise SchemaError(f"attempts: cannot be kept: {_line(problem)}") from None
    span = pc.min_max(made["time"].cast("int64")).as_py()
    if span["min"] is not None and not _YEARS_US[0] <= span["min"] <= span["max"] < _YEARS_US[1]:
        raise SchemaError("attempts: column 'time' holds a year that is not 1 to 9999")
    return made.append_column("row_id", pa.array(_hashes(made, _ROW)))


def _by_day(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The parts of a sorted table by the name of their folder."""
    last = _YEARS_US[1] // _DAY_US
    days = pc.fill_null(rows["time"].cast("int64"), _YEARS_US[1]).to_numpy() // _DAY_US
    for start, end in pairwise([0, *(np.flatnonzero(np.diff(days)) + 1), len(days)] if len(days) else []):
        day = "unknown" if days[start] == last else str(np.datetime64(int(days[start]), "D"))
        yield f"day={day}", rows.slice(start, end - start)


def _hashes(table: pa.Table, columns: Sequence[str]) -> Any:
    """64 bits a row that say what happened, the same in every version: BLAKE2b over the columns and their lengths."""
    digests, comma = [], pa.scalar(",", pa.large_string())
    for start in range(0, len(table), 1 << 15):
        rows = _whole(table.slice(start, 1 << 15), [*_FIELDS])
        cells = [rows[name] for name in columns]
        if columns is _ROW:
            nobody = pc.and_(
                pc.is_null(rows["recipient"]), pc.is_in(rows["origin"], pa.array(["log", None], pa.large_string()))
            )
            cells += [pc.coalesce(rows["queue_id"], rows["message_id"]), pc.if_else(nobody, rows["line"], None)]
        texts = [(c.cast("int64") if pa.types.is_timestamp(c.type) else c).cast(pa.large_string()) for c in cells]
        sizes = [pc.fill_null(pc.binary_length(text), -1).cast(pa.large_string()) for text in texts]
        joined = pc.binary_join_element_wise(*sizes, *texts, comma, null_handling="replace", null_replacement="")
        digests += [blake2b(row, digest_size=8).digest() for row in joined.cast(pa.large_binary()).to_pylist()]
    return np.frombuffer(b"".join(digests), dtype="<i8")


def _whole(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns; those that the table does not have are missing all through."""
    have = set(table.column_names)
    cells = {n: table[n] if n in have else pa.nulls(len(table), _SCHEMA.field(n).type) for n in columns}
    return pa.table(cells, schema=pa.schema([_SCHEMA.field(name) for name in columns]))


def _equals(name: str, wanted: Any) -> Any:
    values = list(wanted) if pd.api.types.is_list_like(wanted) else [wanted]
    known = [value for value in values if not pd.isna(value)]
    try:
        among = pc.field(name).isin(pa.array(known, _SCHEMA.field(name).type))
    except (pa.ArrowException, TypeError, ValueError) as problem:
        raise SchemaError(f"history: no value of column {name!r}: {_line(problem)}") from None
    return among if len(known) == len(values) else among | pc.field(name).is_null()


def _utc(value: Any) -> datetime:
    try:
        made = pd.Timestamp(value)
        if pd.isna(made):
            raise ValueError
        return (made.tz_localize(UTC) if made.tz is None else made.tz_convert(UTC)).floor("us").to_pydatetime()
    except (ValueError, TypeError, OverflowError):
        raise SchemaError(f"history: {value!r} is no time such as '2026-11-25' or '2026-11-25T10:00Z'") from None


@contextmanager
def _told(name: str, doing: str) -> Iterator[None]:
    try:
        yield
    except DeliverkitError:
        raise
    except Exception as problem:  # noqa: BLE001 - drivers of object stores raise what they like
        raise FormatError(name, f"cannot be {doing}: {_line(problem)}") from None


def _line(problem: BaseException) -> str:
    return getattr(problem, "strerror", None) or " ".join(str(problem).split())[:300] or type(problem).__name__
