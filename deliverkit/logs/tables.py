"""What the line formats share: facts found once for all rows that are alike, and joins of lines by their keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.classify import unsaid

_Array = np.ndarray[Any, Any]
NEVER = -(1 << 60)  # a line before all lines
Texts = Any  # pa.Array or pa.ChunkedArray, of texts


class Facts:
    """What rows say, once for all rows that say the same: a number a row, a mapping of columns a number.

    The columns are those of ATTEMPTS and `hint`; `text` is what is judged, without what differs from row to row.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self.rows: list[Mapping[str, Any]] = []
        self._known: dict[Any, int] = {}
        self._lock = Lock()

    def of(self, make: Callable[..., Mapping[str, Any]], *columns: Texts) -> _Array:
        """A number a row for what `make` says of its values (text or None); it is asked once for each combination."""
        group, combinations = distinct(*columns)
        with self._lock:
            numbers = [self._number((make, *values), make, values) for values in combinations]
        return np.array(numbers, dtype=np.int64)[group]

    def changed(self, numbers: _Array, *columns: Texts | _Array, by: Callable[..., Mapping[str, Any]]) -> _Array:
        """Numbers of the same facts with what `by` says (of the fact, then a value of each column) put over them."""
        group, combinations = distinct(
            pa.array(numbers), *(pa.array(c) if isinstance(c, np.ndarray) else c for c in columns)
        )
        made = [self._number((by, *values), self._over(by), values) for values in combinations]
        return np.array(made, dtype=np.int64)[group]

    def at_once(self, calls: Iterable[Callable[[], Any]]) -> list[Any]:
        """What each of the calls gives; as many at a time as there are workers."""
        if self._workers == 1:
            return [call() for call in calls]
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(lambda call: call(), calls))

    def put(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Numbers of facts found elsewhere."""
        self.rows += rows
        return list(range(len(self.rows) - len(rows), len(self.rows)))

    def _over(self, by: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
        return lambda number, *values: {**self.rows[number], **by(self.rows[number], *values)}

    def _number(self, key: Any, make: Callable[..., Mapping[str, Any]], values: Sequence[Any]) -> int:
        if (number := self._known.get(key)) is None:
            number = self._known[key] = len(self.rows)
            self.rows.append(make(*values))
        return number

    def column(self, name: str, numbers: _Array, type: pa.DataType) -> pa.Array:
        """One column of the facts, for each of these rows."""
        return pa.array([row.get(name) for row in self.rows], type).take(pa.array(numbers))


def distinct(*columns: Texts) -> tuple[_Array, list[tuple[Any, ...]]]:
    """A number a row, the same for rows with the same values, and the values of each number."""
    codes, values = zip(*map(encoded, columns), strict=True)
    whole = codes[0].astype(np.int64)
    for code, some in zip(codes[1:], values[1:], strict=True):
        whole = whole * max(len(some), 1) + code
    group, unique = pd.factorize(whole)
    places: list[_Array] = []
    for some in reversed(values):
        unique, place = np.divmod(unique, max(len(some), 1))
        places.insert(0, place)
    return group, list(zip(*([v[i] for i in p.tolist()] for v, p in zip(values, places, strict=True)), strict=True))


def encoded(column: Texts) -> tuple[_Array, list[Any]]:
    """A number per row and the values of the numbers, None among them where there are gaps."""
    made = solid(column)
    made = made if isinstance(made, pa.DictionaryArray) else made.dictionary_encode(null_encoding="encode")
    return made.indices.to_numpy(zero_copy_only=False), made.dictionary.to_pylist()


def last_before(keys: Sequence[Texts | _Array], at: _Array, among: Sequence[Texts | _Array], there: _Array) -> _Array:
    """For each row the place of the last row of `among` with the same keys that stands before it; -1 if there is none.

    `keys` are columns of texts, or numbers of `keyed`; `at` and `there` the lines of the rows.
    """
    code, other = np.split(_numbered([keys, among]), [len(at)])
    least = min(at.min(initial=0), there.min(initial=0))  # other parts of a log begin before this one
    at, there = at - least, there - least
    span = int(max(at.max(initial=0), there.max(initial=0))) + 2
    found = np.full(len(at), -1)
    if not len(other) or not len(code):
        return found
    top = max(code.max(), other.max()) + 1
    if top < 16 * (len(code) + len(other)):  # most keys stand there once: no search for these
        place = np.full(top, -1)
        place[other] = np.arange(len(other))
        found = place[code]
        found[(found >= 0) & (there[found] >= at)] = -1
        many = np.bincount(other, minlength=top) > 1
        rows, rest = np.flatnonzero(many[code]), np.flatnonzero(many[other])
    else:
        rows, rest = np.arange(len(code)), np.arange(len(other))
    if rows.size:
        whole = other[rest] * span + there[rest]
        order = np.argsort(whole, kind="stable")
        last = np.searchsorted(whole[order], code[rows] * span + at[rows]) - 1
        near = rest[order[np.maximum(last, 0)]]
        found[rows] = np.where((last >= 0) & (other[near] == code[rows]), near, -1)
    return found


def first_after(keys: Sequence[Texts | _Array], at: _Array, among: Sequence[Texts | _Array], there: _Array) -> _Array:
    """As `last_before`, of the first row that stands behind it."""
    top = int(max(at.max(initial=0), there.max(initial=0))) + 1
    return last_before(keys, top - at, among, top - there)


def keyed(*tables: pa.Table, by: Sequence[str]) -> list[_Array]:
    """A number per row of each table, the same for rows with the same values of these columns: a key for the joins."""
    sides = [[table[name] for name in by] for table in tables]
    return np.split(_numbered(sides), np.cumsum([len(table) for table in tables])[:-1])


def _numbered(sides: Sequence[Sequence[Texts | _Array]]) -> _Array:
    whole = np.zeros(sum(len(side[0]) for side in sides), dtype=np.int64)
    for columns in zip(*sides, strict=True):
        if isinstance(columns[0], np.ndarray):
            numbers = np.concatenate(columns)
            many = int(numbers.max(initial=0)) + 1
        else:
            chunks = [c for some in columns for c in (some.chunks if isinstance(some, pa.ChunkedArray) else [some])]
            made = pa.chunked_array(chunks, pa.string()).dictionary_encode(null_encoding="encode").combine_chunks()
            numbers, many = made.indices.to_numpy(zero_copy_only=False), max(len(made.dictionary), 1)
        whole = whole * many + numbers
    return whole


def mapped(column: Texts, make: Callable[[Any], Any], type: pa.DataType | None = None) -> pa.Array:
    """What `make` says of each value, which it is asked once for each that differs; a text unless `type` says else."""
    numbers, values = encoded(column)
    return pa.array([make(value) for value in values], type or pa.string()).take(pa.array(numbers))


def solid(column: Texts) -> pa.Array:
    """The column in one piece."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def reordered(table: pa.Table, places: Any, facts: Facts) -> pa.Table:
    """The rows at these places, column by column."""
    columns = facts.at_once(partial(lambda column: solid(column).take(places), column) for column in table.columns)
    return pa.table(columns, names=table.column_names)


def taken(table: pa.Table, places: _Array, names: Sequence[str]) -> dict[str, pa.Array]:
    """These columns at these rows; null where the place is -1."""
    where = pa.array(places, mask=places < 0)
    return {name: solid(table[name]).take(where) for name in names}


def places(table: pa.Table) -> _Array:
    """`line` of each row: its place in the log."""
    return np.asarray(table["line"])


def number(text: str | None) -> float | None:
    """The text as a number, if it is one and finite."""
    try:
        return float(text) if text is not None and abs(float(text)) < 1e12 else None
    except ValueError:
        return None


def decimals(texts: Texts) -> pa.Array:
    """Texts as numbers, missing where they are none or past 1e12."""
    try:
        made = solid(texts).cast(pa.float64())
    except pa.ArrowInvalid:
        return mapped(texts, number, pa.float64())
    return made if pc.all(pc.less(pc.abs(made), 1e12)).as_py() is not False else mapped(texts, number, pa.float64())


_NAMES = re.compile(r"<[^<>]*>|[\w.-]*\[[\da-fA-F.:]*\]|\d{1,3}(?:\.\d{1,3}){3}")
_alike: dict[str, str] = {}


def alike(texts: Texts, passed: Texts | None = None) -> pa.DictionaryArray:
    """Texts without what differs from row to row and decides nothing, as addresses; of those `passed` but the code."""
    mask = np.zeros(len(texts), dtype=bool) if passed is None else passed.to_numpy(zero_copy_only=False)
    numbers, known = np.empty(len(texts), dtype=np.int32), dict[str | None, int]()
    for side, rows in ((pc.utf8_slice_codeunits(texts.filter(mask), 0, 4), mask), (texts.filter(~mask), ~mask)):
        codes, values = encoded(side)
        numbers[rows] = np.array([known.setdefault(_plain(v), len(known)) for v in values], np.int32)[codes]
    return pa.DictionaryArray.from_arrays(numbers, pa.array(known, pa.string()))


def nameless(texts: Texts) -> pa.Array:
    """As `alike`, of replies to strangers: without who they are, as there is no end of them."""
    return mapped(texts, lambda text: text and unsaid(_NAMES.sub("", text)))


def _plain(text: str | None) -> str | None:
    if text is None:
        return None
    if (found := _alike.get(text)) is None:
        if len(_alike) > 1 << 16:
            _alike.clear()
        found = _alike[text] = unsaid(text)
    return found


def changed(
    table: pa.Table, rows: _Array, facts: Facts, by: Callable[..., Mapping[str, Any]], *columns: Any
) -> pa.Table:
    """The table with what `by` says put over the facts of these rows (see `Facts.changed`)."""
    fact = table["fact"].to_numpy().copy()
    fact[rows] = facts.changed(fact[rows], *columns, by=by)
    return table.set_column(table.column_names.index("fact"), "fact", pa.array(fact))


def part(found: Any, name: str) -> Any:
    """A group of what `extract_regex` found; null where it is empty."""
    value = pc.struct_field(found, name)
    return pc.if_else(pc.equal(value, ""), None, value)


_SPAN = re.compile(r"(?:(\d+)w)?(?:(\d+)d|(\d+)\+)?(?:(\d+)[h:])?(?:(\d+)[m:])?(?:(\d+(?:\.\d+)?)s?)?")
_UNITS = (604800, 86400, 86400, 3600, 60, 1)


def seconds(span: str | None) -> float | None:
    """A time span as mail servers write it: 3m20s, 0.123s, 1d2h, 00:00:05, 2+03:04:05."""
    found = _SPAN.fullmatch(span) if span and len(span) < 40 else None
    return sum(float(n or 0) * unit for n, unit in zip(found.groups(), _UNITS, strict=True)) if found else None
