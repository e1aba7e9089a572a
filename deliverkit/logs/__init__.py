"""Mail logs: one row per delivery attempt. A module of this package is a format, found by its file name.

It has `sniff(line) -> bool` (is this line of my format?) and `rows(lines) -> Iterator[dict]`: rows of ATTEMPTS
with `time` as it stands in the line, `line` counted from 1, and a `hint` for classify where one is known.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
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
from deliverkit.schema import ATTEMPTS

_BLOCK, _NEVER = 50_000, pd.Timestamp(0, tz="UTC")  # rows held as mappings at a time
_YEARLESS = "%Y %b %d %H:%M:%S"


@cache
def formats() -> dict[str, Any]:
    """The formats by name: every module of this package."""
    return {m.name: import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}


def read_log(
    path: Source, format: str | None = None, columns: Sequence[str] | None = None, year: int | None = None
) -> pd.DataFrame:
    """Read a mail log, or a folder or archive of logs, as an `ATTEMPTS` frame: one row per attempt.

    The format is found from the lines unless given. Rotated files are read in the order of their first attempt, so that
    one may end what another began. Stamps without a year are taken as UTC; the year of the last one is that of the
    file's last change (or `year`), and a step back of more than 300 days is a New Year. `columns` keeps only those.
    A log without deliveries gives an empty frame. Raises FormatError for a file that is empty, damaged or in no known
    format, and for an unknown `format`; SchemaError for an unknown column.
    """
    if format is not None and format not in formats():
        raise FormatError(path, f"no log format {format!r}; known: {', '.join(formats())}")
    if unknown := [name for name in columns or () if name not in ATTEMPTS.names]:
        raise SchemaError(f"attempts: there is no column {unknown[0]!r}; it has {', '.join(ATTEMPTS.names)}")
    found: dict[str, list[tuple[pd.Timestamp, int, Part]]] = {}
    for number, part in enumerate(parts(path)):
        with part.open() as stream:
            if stream.peek(1):
                name = format or known_format(part)
                first = next(iter(formats()[name].rows(lines(stream))), {"time": ""})
                begins = _times(pd.Series([first["time"]]), part.mtime).fillna(_NEVER)[0]
                found.setdefault(name, []).append((begins, number, part))
    if not found:
        raise FormatError(path, "the file is empty")
    made = [_read(name, [part for *_, part in sorted(some)], year) for name, some in found.items()]
    frame = classify(pd.concat(made, ignore_index=True))
    return frame if columns is None else frame[list(columns)]


def known_format(part: Part) -> str:
    """The format of the first line that has one; FormatError if none has."""
    first = ""
    with part.open() as stream:
        for line in lines(stream):
            first = first or line[:80]
            if found := [name for name, module in formats().items() if module.sniff(line)]:
                return found[0]
    raise FormatError(part.name, f"no known log format ({', '.join(formats())}); first line: {first!a}")


def _read(name: str, files: list[Part], year: int | None) -> pd.DataFrame:
    """The rows of one format, with times, over the files as if they were one."""
    starts = [0]  # lines before each file

    def run_on() -> Iterator[str]:
        for part in files:
            starts.append(starts[-1])
            with part.open() as stream:
                for line in tqdm(lines(stream), unit=" lines", leave=False, delay=1, disable=None):
                    starts[-1] += 1
                    yield line

    found = formats()[name].rows(run_on())
    blocks = [pd.DataFrame.from_records(block) for block in iter(lambda: list(islice(found, _BLOCK)), [])]
    if not blocks:
        return pd.DataFrame({"time": []})
    made = pd.concat(blocks, ignore_index=True).sort_values("line", kind="stable", ignore_index=True)
    file = np.searchsorted(starts, made["line"].to_numpy()) - 1
    times = [_times(made["time"][file == i], part.mtime, year) for i, part in enumerate(files) if (file == i).any()]
    source = np.array([part.name for part in files], dtype=object)[file]
    return made.assign(time=pd.concat(times), origin="log", source=source, line=made["line"] - np.array(starts)[file])


def _times(stamps: pd.Series[Any], mtime: float, year: int | None = None) -> pd.Series[Any]:
    """Stamps in the order of their lines as times; what is no time becomes missing."""
    made = pd.to_datetime(stamps, format="ISO8601", utc=True, errors="coerce")
    bare = stamps[made.isna() & stamps.notna()].astype("string")
    if bare.empty:
        return made
    latest = pd.Timestamp(min(max(mtime, 0), 4e9), unit="s", tz="UTC") + pd.Timedelta(days=1)  # zones differ
    leap = pd.to_datetime("2000 " + bare, format=_YEARLESS, utc=True, errors="coerce")  # 2000 has all days
    step, last = leap.dt.day_of_year.diff(), leap.iloc[-1]
    turns = (step < -300).astype(int).cumsum() - (step > 363).cumsum()  # forward: a late line of the old year
    year = year or latest.year - ((last.month, last.day) > (latest.month, latest.day))
    dated = (turns - turns.iloc[-1] + year).astype("string") + " " + bare
    return made.fillna(pd.to_datetime(dated, format=_YEARLESS, utc=True, errors="coerce"))
