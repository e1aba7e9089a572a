"""Whose mail it was and how it was sent: attempts joined with a send list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deliverkit import facts
from deliverkit.errors import FormatError, SchemaError
from deliverkit.schema import ATTEMPTS

_Array = np.ndarray[Any, Any]
_Question = tuple[int, _Array, int | None]  # word, codes of the list's rows and then the attempts' (-1: left out), span
_KEYS, _VALUES = ("message_id", "recipient", "sender", "queue_id"), ("port", "client", "campaign", "vantage")
_BY = {"message_id recipient": "message id and recipient", "message_id": "message id", "sender": "sender"}
_BY |= {"queue_id": "queue id", "recipient time": "recipient and time", "recipient": "recipient"}
_WORDS, _CLASH, _NONE = (*_BY, "contradiction", "none"), len(_BY), len(_BY) + 1
_SKEW_US, _REUSED_US = 60_000_000, 10 * 86_400_000_000  # logs cut the second; Postfix uses short queue ids again


def attach_sends(attempts: pd.DataFrame, sends: pd.DataFrame | str | PathLike[str], *,
                 within: str | pd.Timedelta = "5D") -> pd.DataFrame:  # fmt: skip
    """A copy of the attempts with `port`, `client`, `campaign`, `vantage` of a send list, and `joined`: by which key.

    `sends`, a frame or a CSV file (comma, semicolon or tab), names all that was sent, a row per message or per message
    and recipient: some of the keys `message_id`, `recipient`, `sender` (envelope sender, VERP) and `queue_id`; `time`
    (when it was sent: ISO 8601 or unix seconds, UTC where no zone stands); the values to fill in. Other spellings of
    the columns: facts/send_columns.csv. Columns of other names are ignored.

    `joined` is the first key under which all rows of the list say the same, else the first where they agree in part:
    "message_id recipient"; "message_id"; "sender"; "queue_id" (sent within 10 days before); "recipient time" (sent
    `within` before; servers try for 4 to 5 days: RFC 5321, 4.5.4.1); "recipient" (where a time is missing). Rows of
    another Message-ID are never meant. What rows disagree about, or only some of them state, is not filled in:
    "contradiction" if nothing is left; "none": not in the list; missing: a probe. What is known stays. A missing
    recipient is filled in if `sender` holds one of the list (VERP). `attrs["joined"]` counts the words.
    Where the list has a row's `original_recipient`, that counts as its recipient.
    Raises SchemaError for columns or values that cannot be used, FormatError for a file that is no send list.

    >>> bounces = pd.DataFrame({"message_id": ["<m@x.example>", "<n@x.example>"], "recipient": "b@y.example"})
    >>> attach_sends(bounces, pd.DataFrame({"Message-ID": ["m@x.example"], "port": [587]}))[["port", "joined"]]
       port      joined
    0   587  message_id
    1  <NA>        none
    """
    try:
        listed, span = _listed(sends), int(pd.Timedelta(within) / pd.Timedelta("1us"))
    except (TypeError, ValueError):
        raise SchemaError(f"within={within!r} is no span of time such as '5D'") from None
    ATTEMPTS.check(attempts, [n for n in (*_KEYS, *_VALUES, "time", "origin", "joined") if n in attempts])
    made, size = attempts.copy(), len(listed)
    mail = ~_column(made, "origin").eq("probe").fillna(False).to_numpy(bool)
    texts = {name: (_text(listed, name), _text(made, name)) for name in _KEYS}
    (addresses, whose), sender = texts["recipient"], texts["sender"][1]
    wrote_to = _text(made, "original_recipient")
    if wrote_to.notna().any():
        whose = wrote_to.where(wrote_to.isin(addresses.dropna()), whose)
    if (bare := whose.isna() & mail & sender.str.contains("=", regex=False).fillna(False)).any():
        known = set(addresses.dropna())
        whose = whose.mask(bare, sender[bare].map(lambda text: _held(text, known)).astype("string"))
        made["recipient"] = _column(made, "recipient").where(~bare.to_numpy(), whose.array)
    texts["recipient"] = addresses, whose
    codes = {name: pd.factorize(pd.concat(both, ignore_index=True))[0] for name, both in texts.items()}
    for code in codes.values():
        code[size:][~mail] = -1
    times = np.concatenate([_times(listed), _times(made)])
    values = {name: pd.factorize(listed[name]) for name in _VALUES if name in listed}
    rows = np.array([value for value, _ in values.values()], dtype="int64").reshape(len(values), size)
    joined, told = _answers(_questions(codes, times, size, span), rows, times)
    for (name, (_, words)), code in zip(values.items(), told, strict=True):
        found = words.take(np.append(code, -1), allow_fill=True)[:-1]  # of an empty list, too
        made[name] = _column(made, name).fillna(pd.Series(found, made.index))
    word, early = pd.Series(np.array(_WORDS, object)[joined], dtype="string"), _text(made, "joined")  # of another list
    made["joined"] = word.mask((joined >= _CLASH) & early.isin([*_BY]), early).where(mail).array
    made.attrs["joined"] = made["joined"].value_counts().reindex(_WORDS, fill_value=0).to_dict()
    return made


def show_joined(attempts: pd.DataFrame) -> str:
    """What `attach_sends` could join and what not, as a line for people; empty if it was not asked."""
    counts = attempts.get("joined", pd.Series(dtype="string")).value_counts()
    by, total = ", ".join(f"{counts[word]} by {said}" for word, said in _BY.items() if word in counts), counts.sum()
    clash, none = (counts.get(word, 0) for word in _WORDS[_CLASH:])
    said = f"send list: {total - clash - none} of {total} rows joined{by and f' ({by})'}"
    return f"{said}, {clash} contradict, {none} unknown" if total else ""


def _questions(codes: dict[str, _Array], times: _Array, size: int, within: int) -> Iterator[_Question]:
    """What to ask, the strongest key first."""
    message, listed = codes["message_id"], np.arange(len(times)) < size
    named, timed = message >= 0, ~np.isnat(times)
    yield 0, _pairs(message, codes["recipient"]), None
    yield 1, message, None
    for word, name, span in ((2, "sender", None), (3, "queue_id", _REUSED_US), (4, "recipient", within)):
        if name != "recipient":
            yield word, _pairs(message, codes[name]), None
        for other in (True, False):  # an attempt with a Message-ID is of a row with the same, or of one without
            code = np.where(np.where(listed, ~(named & other), named == other), codes[name], -1)
            loose = np.isin(code, code[listed & ~timed])
            yield word, np.where((timed & ~loose) | (span is None), code, -1), span
            if name == "recipient":
                yield 5, np.where(listed | loose | ~timed, code, -1), None


def _answers(asked: Iterator[_Question], values: _Array, times: _Array) -> tuple[_Array, _Array]:
    """Per attempt the place of its word in `_WORDS`, and for each value a row of codes, -1 where nothing says it."""
    kinds, size = values.shape
    joined, stamps = np.full(len(times) - size, _NONE), np.unique(times[:size])
    told, wanted = np.full((kinds, len(joined)), -1), np.ones(len(joined), bool)
    for word, code, span in asked:
        order, rows = np.flatnonzero(code[:size] >= 0), np.flatnonzero(wanted & (code[size:] >= 0))
        keys, start = code[order], code[size:][rows]
        end = start
        if span is not None:  # key and time in one number
            keys = keys * (len(stamps) + 1) + np.searchsorted(stamps, times[order])
            at, base = times[size:][rows], start * (len(stamps) + 1)
            start = base + np.searchsorted(stamps, at - span)
            end = base - 1 + np.searchsorted(stamps, at + _SKEW_US, "right")
        place = np.argsort(keys, kind="stable")
        first, last = np.searchsorted(keys[place], start), np.searchsorted(keys[place], end, "right") - 1
        there = first <= last
        rows, first, last = rows[there], first[there], last[there]
        listed = values[:, order[place]]
        changes = np.cumsum(listed != np.roll(listed, 1, axis=1), axis=1)  # none between two places: all the same
        same = changes[:, first] == changes[:, last]
        said, agreed = np.where(same, listed[:, first], -1), same.all(axis=0)
        better = agreed | ((said >= 0).any(axis=0) & (joined[rows] >= _CLASH))
        joined[rows] = np.where(better, word, np.minimum(joined[rows], _CLASH))
        told[:, rows[better]] = said[:, better]
        wanted[rows[agreed]] = False
    return joined, told


def _pairs(one: _Array, other: _Array) -> _Array:
    return np.where((one >= 0) & (other >= 0), one * (other.max(initial=0) + 1) + other, -1)


def _held(sender: str, known: set[str]) -> str | None:
    """The recipient in a VERP address (bounce-12-anna=x.example@ours), if just one that it can hold is in the list."""
    name, _, domain = sender[:400].rpartition("@")[0].rpartition("=")
    fits = {f"{name[i:]}@{domain}" for i in (0, *(found.end() for found in re.finditer("[-+]", name)))} & known
    return fits.pop() if len(fits) == 1 else None


def _decoded(raw: bytes) -> str:
    """As spreadsheets write text: UTF-8, UTF-16 with its mark, else Windows."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _listed(sends: Any) -> pd.DataFrame:
    """The columns of a send list under our names, the values in our types."""
    if not isinstance(sends, pd.DataFrame):
        try:
            raw = Path(sends).read_bytes()
            if raw.startswith(b"PK"):
                raise ValueError("it is a workbook; save it as CSV")
            text = _decoded(raw).removeprefix("\ufeff")
            sep = max(",;\t", key=text[: 1 << 16].partition("\n")[0].count)
            cells = pd.read_csv(StringIO(text), sep=sep, header=None, dtype="string", keep_default_na=False,
                                na_values=[""])  # fmt: skip
            return _listed(cells[1:].set_axis(cells.iloc[0].astype(str), axis=1))
        except (OSError, TypeError, ValueError, SchemaError) as problem:  # pandas' own errors of a CSV are ValueErrors
            said = " ".join(str(problem).split()).removeprefix("send list: ")
            raise FormatError(sends, f"is no send list: {said}") from None
    table = facts.table("send_columns").set_index("column")["spellings"].str.split("|")
    ours = {word: str(column) for column, words in table.items() for word in words}
    names = [ours.get(re.sub(r"[\W_]+", "", str(name).lower())) for name in sends]
    known, have = [name for name in names if name], ", ".join(map(str, sends))[:500]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise SchemaError(f"send list: two columns for {twice!r}; it has {have}")
    if not {*_KEYS} & {*known}:
        raise SchemaError(f"send list: no column {', '.join(map(repr, _KEYS))}; one is needed, it has {have}")
    listed = sends.loc[:, [name is not None for name in names]].set_axis(known, axis=1).reset_index(drop=True)
    listed = listed.assign(**{name: _text(listed, name, "") for name in _VALUES if name in listed})
    if "port" in listed:
        ports = pd.to_numeric(listed["port"], errors="coerce").astype("Float64")
        if (wrong := listed["port"][~(ports.between(1, 65535) & (ports % 1 == 0)).fillna(False)].dropna()).size:
            raise SchemaError(f"send list: {wrong.iloc[0][:60]!r} is no port")
        listed["port"] = ports.astype("Int64")
    return listed


def _column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    dtype: Any = "Int64" if name == "port" else "string"
    return frame[name].astype(dtype) if name in frame else pd.Series(pd.NA, frame.index, dtype=dtype)


def _text(frame: pd.DataFrame, name: str, strip: str = "<>") -> pd.Series[Any]:
    """A column as it is compared: without blanks and angle brackets, addresses in lower case, nothing as missing."""
    values = frame.get(name, pd.Series(pd.NA, frame.index, dtype="string")).reset_index(drop=True)
    if values.dtype.kind == "f":  # numbers with gaps; beyond 2**53 several have become one
        values = values.where((values % 1 == 0) & (values.abs() < 2**53)).astype("Int64")
    try:
        text = values.astype("string").str.strip(f" \t\r\n{strip}")
    except ValueError as problem:  # half of a character, as no file has it
        raise SchemaError(f"send list: column {name!r} is no text: {problem}") from None
    if strip and name in ("recipient", "sender"):
        text = text.str.lower().str.replace(r"^[^<]*<", "", regex=True)  # Anna <anna@y.example>
    return text.mask(text == "")


def _times(frame: pd.DataFrame) -> _Array:
    """When it was, UTC, in microseconds."""
    stamps = frame.get("time", pd.Series(pd.NaT, frame.index, dtype="datetime64[us]"))
    try:
        if stamps.dtype.kind != "M":
            text = _text(frame, "time", "")
            unix = text.where(text.str.fullmatch(r"1\d{9}(\.\d+)?").fillna(False))
            stamps = pd.to_datetime(text.mask(unix.notna()), utc=True, format="ISO8601")
            stamps = stamps.fillna(pd.to_datetime(pd.to_numeric(unix), unit="s", utc=True))
        return pd.to_datetime(stamps, utc=True).dt.tz_localize(None).to_numpy("datetime64[us]")
    except ValueError as problem:
        said = str(problem).splitlines()[0].partition(" is not ISO8601")[0].removeprefix("Time data ")
        raise SchemaError(
            f"send list: time {said!r} is neither ISO 8601 (2026-11-24T10:00:00Z) nor unix seconds"
        ) from None
