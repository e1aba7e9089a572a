"""Mail logs: one row per delivery attempt. A module of this package that has `sniff` is a format, by its file name.

`sniff(line) -> bool` tells whether a line is of the format. A format of lines defines them as templates (`KINDS`, see
scan.py) and makes rows of their fields (`events`, `join`); any other has `rows(lines) -> Iterator[dict]`: rows of
ATTEMPTS with `time` as it stands there, `line` counted from 1, and a `hint` for classify where one is known.
"""

from __future__ import annotations

import pkgutil
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from deliverkit.classify import classify
from deliverkit.errors import FormatError, SchemaError
from deliverkit.files import Part, Source, lines, parts
from deliverkit.logs.events import Events, blocks, dated, placed, to_pandas
from deliverkit.schema import ATTEMPTS

_ROWS, _HEAD, _SAMPLE = 50_000, 1 << 16, 1 << 14  # rows held as mappings; bytes for the first stamp, of a sample
_NEVER = pd.Timestamp(0, tz="UTC")


@cache
def formats() -> dict[str, Any]:
    """The formats by name: every module of this package that has `sniff`, those that say they are `LAST` behind."""
    found = [(m.name, import_module(f"{__name__}.{m.name}")) for m in pkgutil.iter_modules(__path__)]
    known = [(name, module) for name, module in found if hasattr(module, "sniff")]
    return dict(sorted(known, key=lambda one: (getattr(one[1], "LAST", False), one[0])))


def read_log(
    path: Source,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    year: int | None = None,
    *,
    workers: int = 1,
) -> pd.DataFrame:
    """Read a mail log, or a folder or archive of logs, as an `ATTEMPTS` frame: one row per attempt.

    The format is found from the lines unless given; a log may hold lines of several, which samples of it show (of a
    packed one its beginning). Rotated files are read in the order of their first line with a
    time, so that one may end what another began. Stamps without a year are taken as UTC; the year of the last one is
    that of the file's last change (or `year`), and a step back of more than 300 days is a New Year. `columns` keeps
    only those, which is faster; `workers` share the work, with the same result. A log without deliveries gives an
    empty frame. What others brought to us and we refused has `direction` "in". A damaged file, such as a cut off .gz,
    is read up to there: a warning and `attrs["damaged"]` say how many bytes and lines were good. Raises
    FormatError for a file that is empty or in no known format, and for an unknown `format`; SchemaError for an unknown
    column.
    """
    format = format and str(format).lower()
    if format is not None and format not in formats():
        raise FormatError(path, f"no log format {format!r}; known: {', '.join(formats())}")
    for name, value in (("workers", workers), ("year", year or 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SchemaError(f"{name}={value!r} is no whole number from 1 on")
    columns = [columns] if isinstance(columns, str) else columns
    wanted = ATTEMPTS.names if columns is None else list(dict.fromkeys(columns))
    if unknown := [name for name in wanted if name not in ATTEMPTS.names]:
        raise SchemaError(f"attempts: there is no column {unknown[0]!r}; it has {', '.join(ATTEMPTS.names)}")
    found: dict[str, list[tuple[pd.Timestamp, int, Part]]] = {}
    for number, part in enumerate(parts(path)):
        with part.open() as stream:
            if stream.peek(1):
                for name in [format] if format else [known := known_format(part), *others(part, known)]:
                    begins = first_time(formats()[name], part)
                    found.setdefault(name, []).append((begins, number, part))
    if not found:
        raise FormatError(path, "the file is empty")
    made = [
        _read(formats()[n], [part for *_, part in sorted(some)], year, wanted, workers) for n, some in found.items()
    ]
    return made[0] if len(made) == 1 else pd.concat(made, ignore_index=True)


def known_format(part: Part) -> str:
    """The format of the first line that has one, of the `LAST` ones only if no line has another; else FormatError."""
    first = ""
    last = {name: module for name, module in formats().items() if getattr(module, "LAST", False)}
    with part.open() as stream:
        for line in lines(stream):
            first = first or line[:80]
            if found := [name for name, module in formats().items() if name not in last and module.sniff(line)]:
                return found[0]
    for name, module in last.items():
        with part.open() as stream:
            if next(iter(module.rows(lines(stream))), None):
                return name
    raise FormatError(part.name, f"no known log format ({', '.join(formats())}); first line: {first!a}")


def others(part: Part, known: str) -> list[str]:
    """Formats that have lines too in samples of a log, as where a central syslog writes those of many machines."""
    if not hasattr(formats()[known], "KINDS"):
        return []
    lined = {name: m for name, m in formats().items() if name != known and hasattr(m, "KINDS")}
    places = np.linspace(0, max(part.size - _SAMPLE, 0), 8 if part.plain and part.size > _SAMPLE else 1)
    found: set[str] = set()
    for place in places.astype(int).tolist():
        with part.plain.open("rb") if part.plain else part.open() as stream:
            if place:
                stream.seek(place)
            some = stream.read1(_SAMPLE).decode("utf-8", "replace").splitlines()
            found |= {name for name, module in lined.items() if any(map(module.sniff, some))}
    return [name for name in lined if name in found]


def first_time(module: Any, part: Part) -> pd.Timestamp:
    """The first time that the file tells."""
    with part.open() as stream:
        if hasattr(module, "KINDS"):
            tables = module.KINDS.read(stream.read(_HEAD).split(b"\n")[:-1])
            heads = [
                (t["line"][0].as_py(), t["stamp"][0].as_py())
                for t in tables.values()
                if len(t) and "stamp" in t.column_names
            ]
            stamp = min(heads)[1] if heads else ""
        else:
            stamp = next(iter(module.rows(lines(stream))), {"time": ""})["time"]
    begins: pd.Timestamp = dated(pd.Series([stamp]), part.mtime).fillna(_NEVER)[0]
    return begins


def _read(module: Any, files: list[Part], year: int | None, columns: list[str], workers: int) -> pd.DataFrame:
    """The rows of one format over the files as if they were one; of a damaged file those before the damage."""
    damaged: list[FormatError] = []
    if hasattr(module, "KINDS"):
        made = _read_lines(module, files, year, columns, workers, damaged)
    else:
        made = classify(_read_rows(module, files, year, damaged))[columns]
    for problem in damaged:
        warnings.warn(f"read up to where it is damaged: {problem}", stacklevel=4)
    made.attrs |= {"damaged": [str(problem) for problem in damaged]} if damaged else {}
    return made


def _read_lines(
    module: Any, files: list[Part], year: int | None, columns: list[str], workers: int, damaged: list[FormatError]
) -> pd.DataFrame:
    events, starts = Events(module, columns, workers), [0]
    with ThreadPoolExecutor(workers) as pool:  # numpy and Arrow do the work, which other threads need not wait for
        for part in files:
            with part.open() as stream, tqdm(unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:
                try:
                    for block, found in _ahead(pool, events.read, blocks(stream), workers):
                        events.put(*found)
                        bar.update(len(block))
                except FormatError as problem:
                    damaged.append(problem)
            starts.append(events.lines)
    rows = events.rows()
    return to_pandas(placed(rows, events, [(part.name, part.mtime) for part in files], starts, year, columns))


def _ahead(pool: Executor, make: Any, items: Iterator[Any], many: int) -> Iterator[tuple[Any, Any]]:
    """Items with what `make` gives for each, in order, not more than `many` ahead of what is taken."""
    if many == 1:
        yield from ((item, make(item)) for item in items)
        return
    waiting: deque[tuple[Any, Any]] = deque()
    while True:
        try:
            waiting.append((item := next(items), pool.submit(make, item)))
        except StopIteration:
            break
        except FormatError:
            yield from ((one, later.result()) for one, later in waiting)
            raise
        if len(waiting) > many:
            one, later = waiting.popleft()
            yield one, later.result()
    yield from ((one, later.result()) for one, later in waiting)


def _read_rows(module: Any, files: list[Part], year: int | None, damaged: list[FormatError]) -> pd.DataFrame:
    """The rows of a format that gives them itself; not judged yet."""
    starts = [0]  # lines before each file

    def run_on() -> Iterator[str]:
        for part in files:
            starts.append(starts[-1])
            with part.open() as stream:
                try:
                    for line in tqdm(lines(stream), unit=" lines", leave=False, delay=1, disable=None):
                        starts[-1] += 1
                        yield line
                except FormatError as problem:
                    damaged.append(problem)

    found = module.rows(run_on())
    some = [pd.DataFrame.from_records(block) for block in iter(lambda: list(islice(found, _ROWS)), [])]
    if not some:
        return pd.DataFrame({"time": []})
    made = pd.concat(some, ignore_index=True).sort_values("line", kind="stable", ignore_index=True)
    file = np.searchsorted(starts, made["line"].to_numpy()) - 1
    told = [dated(made["time"][file == i], part.mtime, year) for i, part in enumerate(files) if (file == i).any()]
    source = np.array([part.name for part in files], dtype=object)[file]
    return made.assign(time=pd.concat(told), origin="log", source=source, line=made["line"] - np.array(starts)[file])
