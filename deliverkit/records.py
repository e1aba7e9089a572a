"""Records of any size: JSON (values, lines, arrays), CSV with a header, form posts, in blocks and by columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from io import BufferedReader
from json import JSONDecoder
from typing import IO, Any
from urllib.parse import parse_qsl

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.errors import FormatError
from deliverkit.files import Part, Source, lines, parts

Table = dict[str, Any]  # of a facts file: how one shape of record looks
TEXT, TIME = pa.large_string(), pa.timestamp("us", "UTC")
_BLOCK, _MOST, _DEPTH = 4 << 20, 64 << 20, 4  # bytes at once; of one value; envelopes in envelopes
_BEGIN = re.compile(r"[^\s,\[\]]")  # where a value begins
_AGAIN = re.compile(r"\n(?=[{\[])"), re.compile(r"\n(?=[{\[])|\}\s*,\s*(?=\{)")  # ... after damage; in an array
_FORM = re.compile(r"[\w.%+-]{1,64}=[^\s<>\"]*$", re.ASCII)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]{{0,6}}\.?"
_DATE = re.compile(  # 20.11.2026 | 20 Nov 2026 | Nov 20, 2026, with a time or without
    rf"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{{0,6}}\.?,? )?"
    rf"(?:(\d\d?)([./-])(\d\d?)\2|(\d\d?)[ -]{_MONTH}[ -]|{_MONTH} (\d\d?),? )(\d{{4}})"
    r"(?:[ ,T]{1,2}(\d\d?):(\d\d)(?::(\d\d)(?:[.,]\d{1,9})?)? ?(?:([ap])\.?m\.?)?"
    r" ?(?:z|ut|utc|gmt)?([+-]\d\d:?\d\d)?(?: \([\w +-]{1,40}\))?)?",
    re.IGNORECASE | re.ASCII,
)
_RAW = re.compile(r"\\x([89a-f][0-9a-f])")  # a byte that is no UTF-8, as `lines` shows it
_Found = tuple[list[Any], list[int], bytes, int]  # values, where they begin, what stands between them, bytes used
_Sized = Iterator[tuple[Any, int, int]]  # value, line, size


class Lost(str):
    """What cannot be read, in words."""


@dataclass
class Block:
    """Some values of a file (`Lost` where one could not be read), with the number of each line or item."""

    values: list[Any]
    numbers: Sequence[int] = ()
    unit: str = "line"

    def __post_init__(self) -> None:
        self.columns: dict[str, list[Any] | None] = {"": self.values}

    def raw(self, path: str) -> list[Any] | None:
        """What stands under a path, "bounce.timestamp" for one, of lists in the first item; None if it is nowhere."""
        if path not in self.columns:
            above, _, name = path.rpartition(".")
            over: Sequence[Any] = self.raw(above) or ()
            made = [v.get(name) if type(v) is dict else None if v is None else inside(v, name) for v in over]
            self.columns[path] = made if made.count(None) < len(made) else None
        return self.columns[path]

    def column(self, paths: Iterable[str], kind: Any = TEXT) -> Any:
        """The first of the fields with a text or number, as TEXT; or with unix seconds or ISO 8601, as TIME in UTC."""
        made = [_times(v) if kind == TIME else _texts(v) for path in paths if (v := self.raw(path)) is not None]
        return pc.coalesce(*made) if made else pa.nulls(len(self.values), kind)

    def take(self, places: Any) -> Block:
        """Some of the values, also one several times."""
        if len(places) == len(self.values):
            return self
        return replace(self, values=[self.values[place] for place in places.tolist()])


def gather(path: Source, tables: list[Table], envelopes: list[str], nothing: str, known: Iterable[str]
           ) -> Iterator[tuple[Table, Block, Any, Any, str]]:  # fmt: skip
    """The records of files by their shape: table, values, their lines (of arrays: items), their order, the source.

    A table has `marks`, lists of paths: a value fits it if it has all paths of one of them. For CSV `header` may say
    others, and names are compared in their plain form (in the tables given back, too). What fits no table comes behind
    the other values of its file, with an empty table: as texts that say where it stood.
    Raises FormatError for an empty file, for one that is none of JSON, a form and a CSV with a header that fits, and
    where there is `nothing` in it that fits.
    """
    count = 0
    for part in parts(path):
        fits, lost = False, list[tuple[str, int]]()
        for block, owner, asked, emptied in _records(part, tables, envelopes):
            fits |= emptied or bool((owner >= 0).any())
            for place in np.unique(owner).tolist():
                rows = np.flatnonzero(owner == place)
                some, numbers = block.take(rows), np.asarray(block.numbers)[rows]
                if place >= 0:
                    yield asked[place], some, numbers, rows + count, part.name
                    continue
                said = (value if isinstance(value, Lost) else nothing for value in some.values)
                lost += [(f"{block.unit} {n}: {text}", n) for text, n in zip(said, numbers.tolist(), strict=True)]
            count += len(block.values)
        if lost and not fits:
            raise FormatError(part.name, f"there is {nothing} in it; known: {', '.join(known)}")
        if lost:
            texts, where = [text for text, _ in lost], np.array([number for _, number in lost])
            yield {}, Block(texts), where, np.arange(len(lost)) + count, part.name
            count += len(lost)


def _records(part: Part, tables: list[Table], envelopes: list[str]) -> Iterator[tuple[Block, Any, list[Table], bool]]:
    """Blocks, the place of the table each value fits (-1: none), the tables, and if an envelope had nothing in it."""
    with part.open() as stream:
        first = _first(stream)
        if not first:
            raise FormatError(part.name, "the file is empty")
        if first[0] in "{[" or _is_form(first, tables, envelopes):
            nested = [table for table in tables if table["marks"]]
            for block in _json(stream) if first[0] in "{[" else _blocks(_posts(stream)):
                block, emptied = _opened(block, nested, envelopes)
                yield block, _owners(block, nested), nested, emptied
        elif flat := headed(first, tables):
            for block in _blocks(_cells(stream, *_header(first))):
                yield block, _owners(block, flat), flat, False
        else:
            raise FormatError(part.name, _unfit(first, tables))


def looks_like(part: Part, tables: list[Table], envelopes: list[str]) -> bool:
    """True if `gather` would take the file."""
    with part.open() as stream:
        first = _first(stream)
    return first.startswith(("{", "[")) or _is_form(first, tables, envelopes) or bool(headed(first, tables))


def _unfit(first: str, tables: list[Table]) -> str:
    """Why a file has none of the shapes asked for."""
    asked = [some for table in tables for some in table["header" if "header" in table else "marks"]]
    problem, (names, _) = "this is not JSON, and no CSV with a known header", _header(first)
    if not first.replace("\t", " ").isprintable():
        return f"{problem}, but binary or UTF-16 without its mark"
    if len(asked) == 1 and (missing := [name for name in asked[0] if plain(name) not in names]):
        return f"there is no header {missing[0]!r}; the file has {first[:300]!r}"
    return f"{problem}: {first[:60]!a}"


def _is_form(first: str, tables: list[Table], envelopes: list[str]) -> bool:
    try:
        names = set(dict(parse_qsl(first, max_num_fields=200))) if _FORM.match(first) else set[str]()
    except ValueError:
        return False
    return not names.isdisjoint(envelopes) or any(names.issuperset(some) for table in tables for some in table["marks"])


def plain(name: str) -> str:
    """A name without what spellings differ in."""
    return re.sub(r"[\W_]+", "", name).lower()


def inside(value: Any, name: str) -> Any:
    """A field of a mapping, or of the first item of a list."""
    value = value[0] if isinstance(value, list) and value else value
    return value.get(name) if isinstance(value, dict) else None


def _first(stream: BufferedReader) -> str:
    """The first line, or what 64 KiB hold of it."""
    head = stream.peek(1 << 16)[: 1 << 16].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace")
    return _western(head.strip("\0 \t\r\n").partition("\n")[0].strip())


def headed(first: str, tables: list[Table]) -> list[Table]:
    """The tables whose marks a header has, in plain names and without nesting."""
    names, made = set(_header(first)[0]), list[Table]()
    for table in tables:
        marks = table["header"] if "header" in table else table["marks"]
        flat = {"marks": [[*map(plain, some)] for some in marks]}
        flat |= {"id": [[*map(plain, some)] for some in table.get("id", ())]}
        fields = {column: [*map(plain, paths)] for column, paths in table["fields"].items()}
        but = {plain(path): words for path, words in table.get("but", {}).items()}
        if any(names.issuperset(marks) for marks in flat["marks"]):
            more = {"event": [*map(plain, table.get("event", ()))], "fields": fields, "but": but, "each": ()}
            made.append(table | flat | more)
    return made


def _opened(block: Block, tables: list[Table], envelopes: list[str]) -> tuple[Block, bool]:
    """The values out of their envelopes, and if one of these held nothing."""
    emptied = False
    for _ in range(_DEPTH):
        owner = _owners(block, tables)
        held = [
            None if known else _held(v, envelopes) for v, known in zip(block.values, (owner >= 0).tolist(), strict=True)
        ]
        if held.count(None) == len(held):
            break
        emptied |= [] in held
        some = [[v] if inner is None else inner for v, inner in zip(block.values, held, strict=True)]
        numbers = np.repeat(block.numbers, [len(inner) for inner in some]).tolist()
        block = Block([v for inner in some for v in inner], numbers, block.unit)
    return block, emptied


def _held(value: Any, envelopes: list[str]) -> list[Any] | None:
    """What an envelope holds: a mapping, a list, or either as JSON text."""
    for path in envelopes if type(value) is dict else ():
        held = reduce(lambda v, name: list(v.values()) if name == "*" and type(v) is dict else inside(v, name),
                      path.split("."), value)  # fmt: skip
        try:
            held = orjson.loads(held) if isinstance(held, str) and held.startswith(("{", "[")) else held
        except ValueError:
            continue
        if isinstance(held, dict):
            return [held | {"outer": value}]  # whose id is the event's; of a list it would be that of all
        if isinstance(held, list):
            return held
    return None


def _owners(block: Block, tables: list[Table]) -> Any:
    """The place of the first table whose marks each value has; -1 if none."""
    owner = np.full(len(block.values), -1)
    for place, table in enumerate(tables):
        for marks in table["marks"] if (owner < 0).any() else ():
            found = [block.raw(path) for path in marks]
            if None not in found:
                some = [column for column in found if column and None in column]
                fits = np.array([None not in row for row in zip(*some, strict=True)]) if some else True
                owner[(owner < 0) & fits] = place
    return owner


def _header(first: str) -> tuple[list[str], str]:
    delimiter = max(",;\t", key=first.count)
    try:
        names = next(csv.reader([first], delimiter=delimiter), []) if "\0" not in first else []
        return [plain(name) for name in names], delimiter
    except csv.Error:
        return [], delimiter


def _blocks(found: _Sized) -> Iterator[Block]:
    values, numbers, size = list[Any](), list[int](), 0
    for value, number, length in found:
        values.append(value)
        numbers.append(number)
        if (size := size + length) >= _BLOCK:
            yield Block(values, numbers)
            values, numbers, size = [], [], 0
    if values:
        yield Block(values, numbers)


def _posts(stream: IO[bytes]) -> _Sized:
    for number, line in enumerate(lines(stream, _MOST), 1):
        try:
            value: Any = dict(parse_qsl(line, max_num_fields=200)) or Lost("no form")
        except ValueError:
            value = Lost("a form of more than 200 fields")
        if line.strip():
            yield value, number, len(line)


def _western(text: str) -> str:
    """What is no UTF-8 as Windows-1252, in which spreadsheets save CSV."""
    return _RAW.sub(lambda byte: bytes.fromhex(byte[1]).decode("cp1252", "backslashreplace"), text)


def _cells(stream: IO[bytes], header: list[str], delimiter: str) -> _Sized:
    reader = csv.reader((_western(line.lstrip("\ufeff")) + "\n" for line in lines(stream)), delimiter=delimiter)
    while not any(map(str.strip, next(reader))):  # up to the header
        pass
    row: list[str] | None = []
    while row is not None:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
            fits = row is None or len(row) == len(header)
            value: Any = dict(zip(header, row or ())) if fits else Lost(f"{len(row or ())} fields, not {len(header)}")  # noqa: B905
        except csv.Error as problem:
            row, value = [""], Lost(f"not CSV: {problem}")
        if row:
            yield value, number, 20 * len(header)


def _json(stream: IO[bytes]) -> Iterator[Block]:
    """JSON values, those of arrays one by one."""
    rest, number, depth, array = b"", 1, 0, None
    while True:
        more = stream.read(max(_BLOCK, len(rest)))
        if array is None:
            more = more.removeprefix(b"\xef\xbb\xbf")
            array = more.lstrip().startswith(b"[")
        data, first = rest + more, number
        values, starts, noise, used = (_whole(data) if more else None) or _pieces(data, array, not more)
        depth += noise.count(b"[") - noise.count(b"]")
        if not more and depth > 0 and not (values and isinstance(values[-1], Lost)):
            values.append(Lost("the file ends inside an array"))
            starts.append(used)
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8)[:used] == 10)
        number += len(values) if array else len(breaks)
        if array and values:
            yield Block(values, range(first, number), "item")
        elif values:
            yield Block(values, (first + np.searchsorted(breaks, starts)).tolist())
        if not more:
            return
        rest = data[used:]


def _whole(data: bytes) -> _Found | None:
    """The objects that end in these bytes, found by their braces and read fast; None if anything is odd."""
    bare = data.replace(b"\\\\", b"  ").replace(b'\\"', b"  ") if b"\\" in data else data
    codes = np.frombuffer(bare, np.uint8)
    braces = np.flatnonzero((codes == 123) | (codes == 125))
    braces = braces[np.searchsorted(np.flatnonzero(codes == 34), braces) % 2 == 0]  # those outside of strings
    deep = np.cumsum(124 - codes[braces].astype(np.int64))
    ends = (braces[deep == 0] + 1).tolist()
    starts = braces[np.append(0, deep)[:-1] == 0].tolist()[: len(ends)]
    noise = b"".join([data[a:b] for a, b in zip([0, *ends], starts, strict=False)])
    if noise.translate(None, b" \t\r\n,[]") or len(starts) < len(ends):
        return None
    try:
        values = list(map(orjson.loads, [data[a:b] for a, b in zip(starts, ends, strict=True)]))
    except ValueError:
        return None
    return values, starts, noise, ends[-1] if ends else 0


def _pieces(data: bytes, array: bool, final: bool) -> _Found:
    """The values that end in these bytes, and `Lost` for what is none, up to where the next one may begin."""
    text, at, used = data.decode("utf-8", "surrogateescape"), 0, 0
    values, starts, noise = list[Any](), list[int](), list[bytes]()
    while found := _BEGIN.search(text, at):
        start, width, last = found.start(), 4096, final  # the decoder counts the lines before an error: few, so
        while (taken := _taken(text[start : start + width], array, last and start + width >= len(text))) is None:
            if start + width >= len(text) and (values or len(data) < _MOST):
                break  # the rest is on its way
            last |= start + width >= len(text)
            width *= 4
        if taken is None:
            break
        between, piece = (
            part.encode("utf-8", "surrogateescape") for part in (text[at:start], text[start : start + taken[1]])
        )
        values.append(taken[0])
        starts.append(used + len(between))
        noise.append(between)
        at, used = start + taken[1], used + len(between) + len(piece)
    rest = text[at:].encode("utf-8", "surrogateescape") if final else b""
    return values, starts, b"".join([*noise, rest]), used + len(rest)


def _taken(text: str, array: bool, final: bool) -> tuple[Any, int] | None:
    """The value that a text begins with and where it ends; None if more text may decide."""
    try:
        value, end = _DECODER.raw_decode(text)
        return (value, end) if final or end < len(text) else None
    except (ValueError, RecursionError) as problem:
        bad = getattr(problem, "pos", 900)
        again = _AGAIN[array].search(text, bad)
        if not final and (again is None or str(problem).startswith("Unterminated")):
            return None
        nearby = _AGAIN[array].finditer(text, max(1, bad - 4096), bad + 1)  # before it: where a quote is missing
        again = [again, *nearby][-1]
        return (
            (Lost("not JSON"), again.end())
            if again
            else (Lost(f"not JSON from here on, {len(text):,} characters"), len(text))
        )


def _number(digits: str) -> int | float:
    """As orjson reads it."""
    return float(digits) if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 64 else int(digits)


_DECODER = JSONDecoder(parse_int=_number)


def dates(texts: Iterable[str]) -> dict[str, datetime]:
    """Times of one column as people and mail write them, those that are sure: in UTC, unless they name a zone.

    Dots mean day first. With slashes and dashes a number above 12 proves the order, for the others of the column too.
    """
    found = {text: match.groups() for text in texts if (match := _DATE.fullmatch(" ".join(text.split())))}
    pairs = [(int(one), int(two)) for one, sign, two, *_ in found.values() if sign in ("/", "-")]
    proved, made = {one > 12 for one, two in pairs if max(one, two) > 12}, dict[str, datetime]()
    for text, (one, sign, two, number, name, word, behind, year, hour, minute, second, half, zone) in found.items():
        day = int(one or number or behind)
        month = int(two) if sign else _MONTHS.index((name or word)[:3].lower()) + 1
        if sign in ("/", "-"):
            if max(day, month) <= 12 and day != month and len(proved) != 1:
                continue
            if month > 12 or (day <= 12 and True not in proved):
                day, month = month, day
        if half:
            hour = str(int(hour) % 12 + 12 * (half in "pP")) if 1 <= int(hour) <= 12 else "no such hour"
        with suppress(ValueError, OverflowError):
            clock = f"{hour or 0:0>2}:{minute or '00'}:{second or '00'}{zone or '+00:00'}"
            made[text] = datetime.fromisoformat(f"{year}-{month:02}-{day:02}T{clock}").astimezone(UTC)
    return made


def _texts(values: list[Any]) -> Any:
    try:
        made = pa.array(values, TEXT)
    except (TypeError, ValueError):
        values = [v[0] if type(v) is list and v else v for v in values]
        made = pa.array([v if type(v) is str and v.isascii() else _text(v) for v in values], TEXT)
    return pc.if_else(pc.equal(made, ""), None, made) if pc.min(pc.binary_length(made)).as_py() == 0 else made


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int) or (isinstance(value, float) and value == value):
        return str(value).encode("utf-8", "backslashreplace").decode()  # lone surrogates are no text
    return None


def _times(values: list[Any]) -> Any:
    try:
        seconds = pa.array(values, pa.float64()).to_numpy(zero_copy_only=False)
    except (TypeError, ValueError):
        texts = _texts(values)
        try:
            return texts.cast(TIME)
        except pa.ArrowInvalid:  # numbers as text, other forms of ISO 8601
            stamps = pd.Series(texts.to_pylist(), dtype=object)
            numbers = pd.to_numeric(stamps, errors="coerce").astype("float64")
            found = pd.to_datetime(stamps.where(numbers.isna()), format="ISO8601", utc=True, errors="coerce")
            seconds = numbers.fillna((found - pd.Timestamp(0, tz="UTC")) / pd.Timedelta("1s")).to_numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        micros = seconds * np.select([seconds < 1e11, seconds < 1e14, seconds < 1e17], [1e6, 1e3, 1.0], 1e-3)
        good = (micros > 0) & (micros < 253_402_300_800e6)  # to the end of the year 9999
    return pa.array(np.where(good, micros, 0).round().astype("int64"), mask=~good).cast(TIME)
