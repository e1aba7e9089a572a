"""From the lines of one format to the rows of ATTEMPTS, a block at a time: what `read_log` and `scale` run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.classify import judged, operator_of, settled
from deliverkit.errors import FormatError
from deliverkit.logs.scan import LONGEST
from deliverkit.logs.tables import Facts, encoded, reordered
from deliverkit.schema import ATTEMPTS

BLOCK = 8 << 20  # bytes
_YEARLESS = "%Y %b %d %H:%M:%S"
_TYPES = {"Int64": pa.int64(), "Float64": pa.float64(), "boolean": pa.bool_(), "string": pa.string()}
_TIME = pa.timestamp("us", "UTC")
_DTYPES = {_TYPES[dtype]: pd.api.types.pandas_dtype(dtype) for dtype in _TYPES}
_Array = np.ndarray[Any, Any]
_PLACE = ("origin", "source", "line")
_OWN = ("recipient", "original_recipient", "sender", "queue_id", "message_id", "text", "delay_s")  # of the row itself


def blocks(stream: Any, size: int = BLOCK) -> Iterator[memoryview]:
    """The bytes in pieces of whole lines, of about `size`; of an overlong line only the beginning.

    Raises FormatError where the bytes are damaged, behind all that is good before it.
    """
    rest, damage, more = b"", None, True
    while more and not damage:
        pieces, left = [rest], size
        try:
            while left > 0 and (more := bool(data := stream.read1(left))):
                pieces.append(data)
                left -= len(data)
        except FormatError as problem:
            damage = problem
        whole = b"".join(pieces)
        cut = whole.rfind(b"\n") + 1
        if cut:
            yield memoryview(whole)[:cut]
        rest = whole[cut:] if cut else whole[:LONGEST]
    if rest and not damage:
        yield memoryview(rest)
    if damage:
        raise damage


@dataclass(frozen=True)
class Digest:
    """What the rows of other parts of a log may need of one part, made to be sent from process to process."""

    lines: int  # lines of the part
    tables: dict[str, pa.Table]  # events, `line` from 0 in the part, `fact` a place in `facts`
    facts: list[Mapping[str, Any]]
    doors: list[Mapping[str, Any]]  # facts that tell which hosts and ports answered
    days: list[str]  # month and day of stamps without a year, each where another follows


class Events:
    """The events of blocks that follow each other, of one format, with what these columns of ATTEMPTS need."""

    def __init__(self, module: Any, columns: Sequence[str] = ATTEMPTS.names, workers: int = 1) -> None:
        self.module, self.facts = module, Facts(workers)
        spare = getattr(module, "SPARE", {})
        self._kinds = module.KINDS.without([field for name, field in spare.items() if name not in columns])
        self._own = [name for name in _OWN if name in columns or name == "recipient"]
        self.lines = 0  # read so far
        self._tables: dict[str, list[pa.Table]] = {}

    def add(self, block: bytes | memoryview) -> None:
        """Read a block of whole lines."""
        self.put(*self.read(block))

    def read(self, block: bytes | memoryview) -> tuple[dict[str, pa.Table], int]:
        """The events of a block and the number of its lines, for `put`; blocks can be read at the same time."""
        tables, count = self._kinds.scan(block)
        return self.module.events(tables, self.facts), count

    def put(self, tables: Mapping[str, pa.Table], count: int) -> None:
        """Add the events of the block that comes next."""
        self._put(tables, self.lines)
        self.lines += count

    def digest(self) -> Digest:
        """What other parts may need of this one."""
        made = self.module.digest(self._whole(), self.facts)
        used: dict[int, int] = {}
        for name, table in made.items():
            if "fact" in table.column_names:
                here = pa.array([used.setdefault(n, len(used)) for n in table["fact"].to_pylist()], pa.int64())
                made[name] = table.set_column(table.schema.get_field_index("fact"), "fact", here)
        rows = self.rows()
        heads = pc.utf8_slice_codeunits(rows["stamp"], 0, 6)
        days = _runs(heads.filter(pc.invert(pc.utf8_is_digit(pc.utf8_slice_codeunits(heads, 0, 1)))))
        told = {
            (f.get("host"), f.get("port"), f.get("step"), f.get("attempted"), (f.get("text") or "")[-20:]): f
            for f in self.facts.rows
        }
        return Digest(self.lines, made, [self.facts.rows[n] for n in used], list(told.values()), days)

    def around(self, digest: Digest, line: int) -> None:
        """Add what matters of another part of the log, that begins at `line` as seen from here (before: negative)."""
        numbers = self.facts.put(digest.facts)
        tables = {}
        for name, table in digest.tables.items():
            if "fact" in table.column_names:
                here = pa.array(numbers, pa.int64()).take(table["fact"])
                table = table.set_column(table.schema.get_field_index("fact"), "fact", here)
            tables[name] = table
        self._put(tables, line)

    def rows(self) -> pa.Table:
        """The rows that the events make: `line` (from 0), `stamp`, `fact`, and what is each row's own."""
        rows = self.module.join(self._whole(), self.facts)
        line = rows["line"].to_numpy()
        order = np.argsort(line, kind="stable")
        inside = np.searchsorted(line[order], [0, self.lines])
        names = ("line", "stamp", "fact", *self._own, "host", "address")
        names = tuple(name for name in names if name in rows.column_names)
        return reordered(rows.select(names), pa.array(order[inside[0] : inside[1]]), self.facts)

    def schemas(self) -> dict[str, pa.Schema]:
        """The columns of the events, by kind."""
        return {name: some[0].schema for name, some in self._tables.items()}

    def _put(self, tables: Mapping[str, pa.Table], line: int) -> None:
        for name, table in tables.items():
            self._tables.setdefault(name, []).append(table.set_column(0, "line", pc.add(table["line"], line)))

    def _whole(self) -> dict[str, pa.Table]:
        """The events in one piece; the pieces go."""
        calls = (partial(lambda some: pa.concat_tables(some).combine_chunks(), some) for some in self._tables.values())
        made = dict(zip(self._tables, self.facts.at_once(calls), strict=True))
        self._tables = {name: [table] for name, table in made.items()}
        return made


def _runs(texts: Any) -> list[str]:
    codes, values = encoded(texts)
    return [values[code] for code in codes[np.flatnonzero(np.diff(codes, prepend=-1))].tolist()]


def frame(
    rows: pa.Table, facts: Facts, times: pa.Array, columns: Sequence[str], doors: Sequence[Mapping[str, Any]] = ()
) -> pa.Table:
    """The rows as a table of these columns of ATTEMPTS, judged once for all rows that say the same.

    `doors`: facts of other parts of the log that tell which hosts and ports answered.
    """
    used, numbers = np.unique(_operated(rows, facts), return_inverse=True)
    made: dict[str, Any] = {"time": times}
    said = settled([judged([*(facts.rows[i] for i in used.tolist()), *doors])]) if used.size else ATTEMPTS.empty()
    said["direction"] = said["direction"].fillna("out")
    where = pa.array(numbers)
    of_facts = {}
    for column in ATTEMPTS.columns:
        if column.name in _OWN and column.name in rows.column_names:
            made[column.name] = rows[column.name]
        elif column.name in columns and column.name not in made:
            of_facts[column.name] = pa.array(said[column.name], _TYPES[column.dtype])
    made |= dict(zip(of_facts, reordered(pa.table(of_facts), where, facts).columns, strict=True))
    for name in {"host", "address"} & set(made) & set(rows.column_names):  # of strangers the row says them
        made[name] = pc.coalesce(rows[name], made[name]) if rows[name].null_count < len(rows) else made[name]
    if "text" in made and (pc.max(pc.binary_length(made["text"])).as_py() or 0) > 2000:
        made["text"] = pc.utf8_slice_codeunits(made["text"], 0, 2000)
    return pa.table({name: made[name] for name in columns})


def placed(
    rows: pa.Table,
    events: Events,
    files: Sequence[tuple[str, float]],
    starts: Sequence[int],
    year: int | None,
    columns: Sequence[str],
    doors: Sequence[Mapping[str, Any]] = (),
) -> pa.Table:
    """The rows as a table of these columns of ATTEMPTS, those of `files` (name, mtime) that begin at `starts`."""
    line = rows["line"].to_numpy()
    cuts = np.searchsorted(line, starts).tolist()
    stamps = [rows["stamp"].combine_chunks()[low:high] for low, high in pairwise(cuts)]
    told = [times(some, mtime, year) for some, (_, mtime) in zip(stamps, files, strict=True)]
    made = frame(rows, events.facts, pa.concat_arrays(told), [c for c in columns if c not in _PLACE], doors)
    file = np.repeat(np.arange(len(files)), np.diff(cuts))
    where = {"line": pa.array(line - np.array(starts)[file] + 1), "origin": pa.repeat("log", len(line))}
    where["source"] = pa.array([name for name, _ in files], pa.string()).take(pa.array(file))
    return pa.table({name: where[name] if name in where else made[name] for name in columns})


def _operated(rows: pa.Table, facts: Facts) -> _Array:
    """The facts of the rows, with the operator by the recipient's domain where no host is known."""
    numbers = rows["fact"].to_numpy().copy()
    hostless = np.array([r.get("host") is None and r.get("direction") != "in" for r in facts.rows], dtype=bool)
    places = np.flatnonzero(hostless[numbers])
    whose = rows["recipient"].take(pa.array(places)).to_pylist()
    operators = [operator_of(name.rpartition("@")[2]) if name else None for name in whose]
    known = np.array([name is not None for name in operators], dtype=bool)
    named = pa.array([name for name in operators if name], pa.string())
    numbers[places[known]] = facts.changed(numbers[places[known]], named, by=lambda _, name: {"operator": name})
    return np.asarray(numbers)


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table with the dtypes of ATTEMPTS."""
    made: pd.DataFrame = table.to_pandas(types_mapper=_DTYPES.get)
    return made


def times(stamps: Any, mtime: float, year: int | None = None) -> pa.Array:
    """Stamps in the order of their lines as times in UTC; what is no time becomes missing.

    Of those without a year the last one has the year of the file's last change (`mtime`, unix s) or `year`, and a step
    back of more than 300 days is a New Year.
    """
    heads = pc.drop_null(stamps)[:1].to_pylist()
    for kind in (_TIME, pa.timestamp("us")) if heads and heads[0][:1].isdigit() else ():
        try:
            made = stamps.cast(kind)
        except pa.ArrowInvalid:
            continue
        made = made if kind is _TIME else pc.assume_timezone(made, "UTC")
        return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
    codes, values = encoded(stamps)
    begins = np.flatnonzero(np.diff(codes, prepend=-1))  # where another stamp follows
    told = dated(pd.Series([values[code] for code in codes[begins].tolist()], dtype="string"), mtime, year)
    return pa.array(told, _TIME).take(pa.array(np.repeat(np.arange(len(begins)), np.diff(begins, append=len(codes)))))


def dated(stamps: pd.Series[Any], mtime: float, year: int | None = None) -> pd.Series[Any]:
    """As `times`, of a series."""
    made = pd.to_datetime(stamps, format="ISO8601", utc=True, errors="coerce")
    bare = stamps[made.isna() & stamps.notna()].astype("string")
    if bare.empty:
        return made
    latest = pd.Timestamp(min(max(mtime, 0), 4e9), unit="s", tz="UTC") + pd.Timedelta(days=1)  # zones differ
    leap = pd.to_datetime("2000 " + bare, format=_YEARLESS, utc=True, errors="coerce")  # 2000 has all days
    step, last = leap.dt.day_of_year.diff(), leap.iloc[-1]
    turns = (step < -300).astype(int).cumsum() - (step > 363).cumsum()  # forward: a late line of the old year
    year = year or latest.year - ((last.month, last.day) > (latest.month, latest.day))
    whole = (turns - turns.iloc[-1] + year).astype("string") + " " + bare
    return made.fillna(pd.to_datetime(whole, format=_YEARLESS, utc=True, errors="coerce"))
