"""Published facts with their sources: one CSV or TOML file a table, read once, never changed.

Every row says where it comes from (`source` or `source_url`), when (`noted`) and how well it is
known (`evidence`: read, secondary or not_reread).
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from deliverkit.errors import FactsError


def _bytes(name: str) -> bytes:
    path = files("deliverkit.facts") / name
    if not path.is_file():
        raise FactsError(f"there is no facts table {name!r}")
    return path.read_bytes()


@cache
def _csv(name: str) -> pd.DataFrame:
    from io import BytesIO

    frame = pd.read_csv(BytesIO(_bytes(f"{name}.csv")), dtype="string", keep_default_na=False, na_values=[""])
    if "port" in frame:
        frame["port"] = frame["port"].astype("Int64")
    return frame


def table(name: str) -> pd.DataFrame:
    """A CSV table as a frame of text columns (`port` as integer); the caller gets a copy."""
    return _csv(name).copy()


@cache
def tables(name: str) -> dict[str, Any]:
    """A TOML file as nested tables. Read only: it is shared by all callers."""
    try:
        return tomllib.loads(_bytes(f"{name}.toml").decode())
    except tomllib.TOMLDecodeError as problem:
        raise FactsError(f"{name}.toml: {problem}") from None
