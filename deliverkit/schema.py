"""Every frame and its columns. The columns stand in schema.csv, from which the documented tables are printed too."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from deliverkit.errors import SchemaError

# dtype -> the numpy kinds a caller's own frame may have instead
_KINDS = {"Int64": "iu", "Float64": "fiu", "boolean": "b", "string": "OUT", "datetime64[us, UTC]": "M"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its nullable dtype, what it holds (with its unit)."""

    name: str
    dtype: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's columns. `grouped` frames carry group keys of any name before them."""

    name: str
    columns: tuple[Column, ...]
    grouped: bool = False

    @property
    def names(self) -> list[str]:
        """Column names in order, group keys left out."""
        return [column.name for column in self.columns]

    def build(self, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
        """Make the frame from rows (mappings) or from a frame with some of the columns.

        Columns that are absent become missing, dtypes become the nullable ones, times become UTC.
        Raises SchemaError for a column the frame does not have or a value its dtype cannot hold.
        """
        data = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame.from_records(list(rows))
        wanted = {column.name: column for column in self.columns}
        extra = [str(name) for name in data.columns if name not in wanted]
        if extra and not self.grouped:
            raise SchemaError(f"{self.name}: there is no column {extra[0]!r}; it has {', '.join(wanted)}")
        made = {name: data[name].reset_index(drop=True) for name in extra}
        for name, column in wanted.items():
            made[name] = _cast(self.name, column, data.get(name), len(data))
        return pd.DataFrame(made)

    def check(self, df: pd.DataFrame, needs: Sequence[str] | None = None) -> pd.DataFrame:
        """Return `df` if it has the columns (all, or those in `needs`) with fitting types, each once.

        Raises SchemaError naming the first thing wrong. Columns that this frame does not know are left alone.
        """
        if not isinstance(df, pd.DataFrame):
            raise SchemaError(f"{self.name}: a pandas frame is wanted, this is a {type(df).__name__}")
        for name in self.names if needs is None else needs:
            if name not in df.columns:
                have = ", ".join(map(str, df.columns)) or "no columns"
                raise SchemaError(f"{self.name}: column {name!r} is missing; the frame has {have}")
        if not df.columns.is_unique:
            raise SchemaError(f"{self.name}: column {df.columns[df.columns.duplicated()][0]!r} is there twice")
        for column in self.columns:
            asked = column.name in (df.columns if needs is None else needs)
            if asked and not _fits(df[column.name], column.dtype):
                found = f"{df[column.name].dtype}; dk.read reads a CSV with the right types"
                raise SchemaError(f"{self.name}: column {column.name!r} should be {column.dtype}, not {found}")
        return df

    def empty(self) -> pd.DataFrame:
        """The frame without rows."""
        return self.build([])

    def markdown(self) -> str:
        """The column table for the documentation."""
        rows = [f"| `{c.name}` | {c.dtype} | {c.meaning} |" for c in self.columns]
        return "\n".join(["| column | dtype | meaning |", "|---|---|---|", *rows])


def counted(attempts: pd.DataFrame) -> pd.DataFrame:
    """The rows that are attempts of their own.

    Left out: those that only repeat an older failure, mail that strangers brought to us, and bounce messages about an
    attempt that another row tells of.
    """
    keep = np.ones(len(attempts), dtype=bool)
    if "direction" in attempts:
        keep &= attempts["direction"].ne("in").fillna(True).to_numpy(bool)
    if "attempted" in attempts:
        keep &= attempts["attempted"].astype("boolean").fillna(True).to_numpy(bool)
    if {"origin", "message_id", "recipient"} <= set(attempts) and attempts["origin"].eq("dsn").any():
        late = attempts["origin"].eq("dsn").fillna(False).to_numpy(bool)
        (message, names), (whose, _) = (pd.factorize(attempts[name]) for name in ("message_id", "recipient"))
        reported = np.zeros(len(names) + 1, dtype=bool)
        reported[message[late]] = True
        rows = np.flatnonzero(reported[message] & (message >= 0) & (whose >= 0))  # unknown is no name
        pair = message[rows] * (whose.max(initial=0) + 1) + whose[rows]
        keep[rows] &= ~(late[rows] & np.isin(pair, pair[~late[rows] & keep[rows]]))
    return attempts[keep]


def _cast(frame: str, column: Column, values: Any, length: int) -> Any:
    if values is None:
        return pd.Series(pd.NA, index=pd.RangeIndex(length), dtype=_dtype(column.dtype))
    values = values.reset_index(drop=True)
    if str(values.dtype) == column.dtype:
        return values
    try:
        if column.dtype.startswith("datetime"):
            return pd.to_datetime(values, utc=True).astype(column.dtype)
        if values.dtype == object and column.dtype == "string" and any(isinstance(v, bytes) for v in values):
            raise TypeError("it holds bytes, decode them first")
        if column.dtype == "boolean" and isinstance(values.dtype, pd.StringDtype):  # read back from CSV
            values = values.map(lambda word: {"True": True, "False": False}[word], na_action="ignore")
        return values.astype(_dtype(column.dtype))
    except KeyError as word:
        raise SchemaError(f"{frame}: column {column.name!r} should be True or False, not {word}") from None
    except (TypeError, ValueError, OverflowError) as problem:
        raise SchemaError(f"{frame}: column {column.name!r} should be {column.dtype}: {problem}") from None


def _dtype(name: str) -> Any:
    return pd.DatetimeTZDtype("us", "UTC") if name.startswith("datetime") else name


def _fits(values: pd.Series[Any], dtype: str) -> bool:
    if str(values.dtype) == dtype or isinstance(values.dtype, pd.CategoricalDtype) or values.isna().all():
        return True
    kind = getattr(values.dtype, "kind", "O")
    if kind == "O" and not isinstance(values.dtype, pd.StringDtype):  # a plain object column: look inside
        inferred = pd.api.types.infer_dtype(values, skipna=True)
        allowed = {"Int64": ("integer",), "Float64": ("floating", "integer", "mixed-integer-float")}
        return inferred in allowed.get(dtype, ("boolean" if dtype == "boolean" else "string",))
    if dtype == "string":
        return isinstance(values.dtype, pd.StringDtype)
    if dtype == "Int64" and kind == "f":  # integers with gaps read from CSV
        return bool((values.dropna() % 1 == 0).all())
    return kind in _KINDS[dtype]


def _columns() -> dict[str, tuple[Column, ...]]:
    """The columns of every frame, in order."""
    made: dict[str, tuple[Column, ...]] = {}
    for row in csv.DictReader((files("deliverkit") / "schema.csv").read_text("utf-8").splitlines()):
        column = Column(row["column"], row["dtype"], row["meaning"])
        made[row["frame"]] = (*made.get(row["frame"], ()), column)
    return made


_ALL = _columns()
ATTEMPTS = Frame("attempts", _ALL["attempts"])
PROBES = Frame("probes", _ALL["attempts"] + _ALL["probes"])
SERVERS = Frame("servers", _ALL["servers"])
REHEARSAL = Frame("rehearsal", _ALL["attempts"] + _ALL["rehearsal"])
OUTCOMES = Frame("outcomes", _ALL["outcomes"])
RATES = Frame("rates", _ALL["rates"], grouped=True)
BOUNCES = Frame("bounce rates", _ALL["bounce rates"], grouped=True)
FUNNEL = Frame("funnel", _ALL["funnel"], grouped=True)
EGRESS = Frame("egress", _ALL["egress"])
COMPARISON = Frame("comparison", _ALL["comparison"])
VERIFIED = Frame("verified", _ALL["verified"])
FORECAST = Frame("forecast", _ALL["forecast"])
FINDINGS = Frame("findings", _ALL["findings"])
ADVICE = Frame("advice", _ALL["advice"])
_MADE: tuple[Frame, ...] = (ATTEMPTS, PROBES, SERVERS, REHEARSAL, OUTCOMES, RATES, BOUNCES, FUNNEL)
_MADE += (EGRESS, COMPARISON, VERIFIED, FORECAST, FINDINGS, ADVICE)
FRAMES = {frame.name: frame for frame in _MADE}
STEPS = ("connect", "rules", "encryption", "relay", "inbox")
