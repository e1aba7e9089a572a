"""Lines of a log as tables of their fields, by definition: a kind of line is a template, and there are two readings.

A template is a sequence of pieces: literals and `{field}`s. A piece that begins with "?" may be absent. A field runs to
the first place where a literal stands that may follow it, the last one to the end of the line; nothing is tried twice.
`{}` is passed over. Some fields are of a sort:

    {stamp}              a time as syslog or an MTA writes it
    {name:word}          has no space in it; each literal that may follow has one
    {name:address}       may be quoted, and holds any text then
    {name:a|b}           begins with one of these
    {name:^a|b}          ends only before one of these; also {name:address^a|b}
    {name:closed}        goes to the end of the line without its last ")"

`Kinds.read` takes line by line with regular expressions. `Kinds.scan` takes a block of lines with numpy, a field of all
lines at once, what the templates have in common only once, and leaves to the expressions each line that it is not sure
of: both give the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from string import Formatter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

_Array = np.ndarray[Any, Any]
_Rows = dict[str, list[tuple[Any, ...]]]
_PAD, _WINDOW, _ROUNDS, LONGEST = 512, 32, 16, 1_000_000  # bytes; windows looked into; bytes of a line that count
_LARGE = 1 << 20  # bytes: a smaller block is copied to have room behind it
_BARE = (np.uint64(0xFF_0000_FF_0000_FF), np.uint64(0x3A_0000_20_0000_20))  # the 4th, 7th and 10th byte
_SORTS = ("", "address", "word", "closed")
_SINGLE = [re.escape(bytes([byte])) for byte in range(128)]
_STAMP = (
    rb"(?:(?=.{3} .{2} .{2}:.{2}:).{15}"  # Nov 23 21:14:50
    rb"|(?=.{4}-.{5}T)[^ ]*+"  # 2026-11-23T21:14:50.573663+00:00
    rb"|(?=.{4}-.{5} .{2}:)[^ ]*+ [^ ]*+(?: [+-].{4})?+)"  # 2026-11-23 21:26:29.123 +0100
)


class _Step(NamedTuple):
    """A literal and the field after it, which ends where one of `stops` stands, or with the line."""

    literal: bytes
    field: str | None  # "" is passed over, None is no field
    sort: str
    optional: bool
    tail: bytes = b""  # what ends an optional piece
    stops: tuple[bytes, ...] = ()
    closed: bool = True  # whether one of the stops must come


class _Tree:
    """Steps that templates have in common, and the name of the template that ends here."""

    def __init__(self) -> None:
        self.below: dict[_Step, _Tree] = {}
        self.name: str | None = None


class Kinds:
    """The kinds of line of a log by name, in the order in which they are tried: a line is of the first that fits."""

    def __init__(self, **templates: Sequence[str]) -> None:
        self.steps = steps = {name: list(_steps(pieces)) for name, pieces in templates.items()}
        self._all = {name: [step.field for step in some if step.field] for name, some in steps.items()}
        self.fields, self._blank = self._all, frozenset[str]()
        self._match = {name: re.compile(_pattern(some), re.DOTALL).fullmatch for name, some in steps.items()}
        self._tree = _Tree()
        for name, some in steps.items():
            node = self._tree
            for step in some:
                node = node.below.setdefault(step, _Tree())
            node.name = name

    def only(self, **fields: Sequence[str]) -> Kinds:
        """The same kinds with these fields of some of them; the others' come whole."""
        made = copy(self)
        made.fields = {name: list(fields.get(name, all)) for name, all in self._all.items()}
        return made

    def without(self, fields: Iterable[str]) -> Kinds:
        """The same kinds with nulls for these fields, which is faster."""
        made = copy(self)
        made._blank = frozenset(fields)
        return made

    def read(self, lines: Iterable[bytes]) -> dict[str, pa.Table]:
        """A table a kind: `line` (from 0) and the fields as texts, null where a piece is absent."""
        return self._tables(self._rows(enumerate(lines)))

    def scan(self, block: bytes | memoryview) -> tuple[dict[str, pa.Table], int]:
        """What `read` gives for the lines of a block (the last may lack its end), and the number of lines."""
        text = _Block(block if not len(block) or block[-1] in b"\n\n" else bytes(block) + b"\n")
        found = _Found(text, self.fields, self._blank)
        found.free[text.unsure()] = False
        lines = np.flatnonzero(found.free)
        found.walk(self._tree, lines, text.starts[lines], text.ends[lines], np.ones(len(lines), dtype=bool))
        begins = np.append(text.starts, text.size)
        rows = self._rows((i, bytes(block[begins[i] : text.ends[i]])) for i in np.flatnonzero(~found.free).tolist())
        made = self._tables(rows)
        for name, table in found.tables.items():
            made[name] = pa.concat_tables([table, made[name]]).sort_by("line") if rows[name] else table
        return made, len(text.ends)

    def _rows(self, lines: Iterable[tuple[int, bytes]]) -> _Rows:
        rows: _Rows = {name: [] for name in self._match}
        for number, line in lines:
            line = line[:LONGEST].rstrip(b"\r\n").strip(b"\0")
            for name, match in self._match.items():
                if found := match(line):
                    texts = (value and value.decode("utf-8", "backslashreplace") for value in found.groups())
                    rows[name].append((number, *("" if text == b"" else text for text in texts)))
                    break
        return rows

    def _tables(self, rows: _Rows) -> dict[str, pa.Table]:
        made = {}
        for name, some in rows.items():
            columns = list(zip(*some, strict=True)) or [()] * (len(self._all[name]) + 1)
            texts = {
                field: pa.array(values, pa.string()) for field, values in zip(self._all[name], columns[1:], strict=True)
            }
            texts |= {field: pa.nulls(len(some), pa.string()) for field in self._blank}
            made[name] = pa.table({"line": pa.array(columns[0], pa.int64())} | {f: texts[f] for f in self.fields[name]})
        return made


def _steps(pieces: Sequence[str]) -> Iterator[_Step]:
    raw: list[_Step] = []
    for piece in pieces:
        parts = [
            (text.encode(), field, sort or "") for text, field, sort, _ in Formatter().parse(piece.removeprefix("?"))
        ]
        if piece.startswith("?"):
            (text, field, sort), tail = parts[0], parts[1][0] if parts[1:] else b""
            raw.append(_Step(text, field, sort, True, tail))
        else:
            raw += [_Step(*part, False) for part in parts]
    for i, step in enumerate(raw):
        after = raw[i + 1 :]
        until = next((n for n, other in enumerate(after) if not other.optional), len(after))
        stops = tuple(dict.fromkeys(other.literal for other in after[: until + 1]))
        if step.field is None:
            yield step
        elif "^" in step.sort:
            sort, _, before = step.sort.partition("^")
            yield step._replace(sort=sort, stops=tuple(map(str.encode, before.split("|"))))
        elif step.tail:
            yield step._replace(stops=(step.tail,))
        else:
            yield step._replace(stops=stops, closed=until < len(after))


def _pattern(steps: Sequence[_Step]) -> bytes:
    made = rb"(?:<\d{1,3}>)?+" if steps[0].field == "stamp" else b""
    for step in steps:
        stop = b"|".join(map(re.escape, step.stops))
        field = b".*+" if not stop else b"[^" + stop + b"]*+" if stop in _SINGLE else b"(?:(?!" + stop + b").)*+"
        if step.field == "stamp":
            field = _STAMP
        elif step.sort == "address":
            field = rb'(?:"(?:[^"\\]|\\.)*+")?+' + field
        elif step.sort == "closed":
            field = rb"(?:[^)]|\)(?!\Z))*+"
        elif step.sort == "word":
            field = b"(?:(?!" + stop + b")[^ ])*+"
        elif step.sort:
            field = b"(?=" + b"|".join(map(re.escape, step.sort.encode().split(b"|"))) + b")" + field
        if step.field is None:
            field = b""
        elif step.field:
            field = b"(" + field + b")"
        piece = re.escape(step.literal) + field + re.escape(step.tail) + (rb"\)?+" if step.sort == "closed" else b"")
        made += b"(?:" + piece + b")?+" if step.optional else piece
    return made


class _Block:
    """Whole lines as bytes, looked at through windows of some bytes at any place."""

    def __init__(self, block: bytes | memoryview) -> None:
        self.size = len(block)
        self.raw = block if self.size >= _LARGE else bytes(block) + bytes(_PAD)
        self.bytes = np.frombuffer(self.raw, dtype=np.uint8)
        self.words = np.ndarray(len(self.raw) - 7, "<u8", self.raw, strides=(1,))
        self.windows = np.ndarray(len(self.raw) - _WINDOW + 1, f"V{_WINDOW}", self.raw, strides=(1,))
        self.ends = np.flatnonzero(self.bytes[: self.size] == 10)
        self.starts = np.append(0, self.ends + 1)[:-1]

    def unsure(self) -> _Array:
        """Lines that windows do not show as they are read: no UTF-8, CR or NUL at an end, overlong, the last ones."""
        last = self.bytes[np.maximum(self.ends - 1, 0)]
        odd = (self.ends - self.starts > LONGEST) | (last == 13) | (last == 0) | (self.bytes[self.starts] == 0)
        odd |= self.ends > len(self.raw) - _PAD
        if self.bytes.max(initial=0) > 127:
            try:
                bytes(self.raw).decode()
            except UnicodeDecodeError:
                odd[np.searchsorted(self.ends, np.flatnonzero(self.bytes[: self.size] > 127))] = True
        return np.flatnonzero(odd)

    def has(self, at: _Array, literal: bytes, words: _Array | None = None) -> _Array:
        """Whether the literal stands at each place; `words` are the eight bytes there."""
        if not literal:
            return np.ones(len(at), dtype=bool)
        key, bits = np.uint64(int.from_bytes(literal[:8], "little")), 8 * min(len(literal), 8)
        words = self.words[at] if words is None else words
        fit: _Array = words == key if bits == 64 else (words & np.uint64((1 << bits) - 1)) == key
        if len(literal) > 8:
            rows = np.flatnonzero(fit)
            fit[rows] = self.has(np.minimum(at[rows] + 8, len(self.words) - 1), literal[8:])
        return fit

    def find(self, at: _Array, byte: int, ends: _Array) -> tuple[_Array, _Array]:
        """The first place of the byte from each place on, or the end of the line; and whether that is sure."""
        at, there = self._near(at, byte)
        sure = np.ones(len(at), dtype=bool)
        if there.all():
            return np.minimum(at, ends), sure
        places, left = np.where(there, at, ends), np.flatnonzero(~there & (at < ends))
        at = at[left]
        for _ in range(_ROUNDS):
            if not left.size:
                break
            at, there = self._near(at, byte)
            places[left[there]] = at[there]
            going = ~there & (at < ends[left])
            at, left = at[going], left[going]
        sure[left] = False
        return np.minimum(places, ends), sure

    def _near(self, at: _Array, byte: int) -> tuple[_Array, _Array]:
        """Where the byte stands first in the window at each place, or where the window ends; and whether it does."""
        hits = np.packbits(self.windows[at].view(np.uint8).reshape(-1, _WINDOW) == byte, axis=1, bitorder="little")
        bits = hits.view("<u4").ravel()
        return at + np.bitwise_count(~bits & (bits - np.uint32(1))), bits != 0  # zeros below the lowest bit: 32 if none

    def field(self, step: _Step, begin: _Array, ends: _Array) -> tuple[_Array, _Array]:
        """Where a field ends, and whether that is sure."""
        if step.field is None:
            return begin, np.ones(len(begin), dtype=bool)
        if step.field == "stamp":
            return self._stamp(begin, ends)
        if not step.stops:
            return ends, np.ones(len(begin), dtype=bool)
        if step.sort == "word":
            space, certain = self.find(begin, 32, ends)
            places = ends
            for stop in step.stops:
                here = np.maximum(space - stop.index(b" "), begin)
                places = np.where(self.has(here, stop), np.minimum(places, here), places)
            return places, certain & (step.closed | (places < ends) | (space == ends))
        if step.sort == "address" and (rows := np.flatnonzero(self.bytes[begin] == 34)).size:
            return self._quoted(step, begin, ends, rows)
        places, certain, fit = self._stop(step, begin, ends)
        for _ in range(_ROUNDS):
            if not (rows := np.flatnonzero(certain & ~fit)).size:
                break
            places[rows], certain[rows], fit[rows] = self._stop(step, places[rows] + 1, ends[rows])
        return places, certain & fit

    def _stop(self, step: _Step, begin: _Array, ends: _Array) -> tuple[_Array, _Array, _Array]:
        """The first place that begins as a stop does, whether that is sure, and whether a stop or the end is there."""
        first, *others = dict.fromkeys(stop[0] for stop in step.stops)
        places, certain = self.find(begin, first, ends)
        for byte in others:
            other, known = self.find(begin, byte, ends)
            places, certain = np.minimum(places, other), certain & known
        words = self.words[places]
        fits = (self.has(places, stop, words) for stop in step.stops)
        return places, certain, np.logical_or.reduce([places == ends, *fits])

    def _quoted(self, step: _Step, begin: _Array, ends: _Array, rows: _Array) -> tuple[_Array, _Array]:
        """As `field`, where some begin with a quote: they end behind the next one, unless something is escaped."""
        shut, sure = self.find(begin[rows] + 1, 34, ends[rows])
        slash, known = self.find(begin[rows] + 1, 92, shut)
        sure &= known & (slash == shut) & (shut < ends[rows])
        begin = begin.copy()
        begin[rows] = np.minimum(shut + 1, ends[rows])
        places, certain = self.field(step._replace(sort=""), begin, ends)
        certain[rows] &= sure
        return places, certain

    def _stamp(self, begin: _Array, ends: _Array) -> tuple[_Array, _Array]:
        def says(byte: int, *places: int) -> Any:
            return np.logical_and.reduce([self.bytes[begin + i] == byte for i in places])

        bare = (self.words[begin + 3] & _BARE[0]) == _BARE[1]
        sure = (ends - begin > 20) & bare & (self.bytes[begin + 12] == 58)
        stop = np.minimum(begin + 15, ends)
        if sure.all():
            return stop, sure
        first, certain = self.find(begin, 32, ends)
        two = says(32, 10) & says(58, 13)
        second, _ = self.find(np.minimum(first + 1, ends), 32, ends)
        after = self.bytes[second + 1]
        second = np.where((after == 43) | (after == 45), second + 6, second)
        stop = np.where(sure, stop, np.where(two, second, first))
        return stop, sure | (certain & says(45, 4) & (two | says(84, 10)) & (ends - begin > 20) & (stop < ends))

    def texts(self, low: _Array, high: _Array, even: _Array) -> pa.Array:
        """The bytes from `low` to `high` as texts, null where `high` is before `low`; places must rise."""
        known = high >= low
        offsets = np.empty(2 * len(low) + 1, dtype=np.int32)
        offsets[0:-1:2], offsets[1::2], offsets[-1] = low, np.maximum(low, high), self.size
        pieces = pa.Array.from_buffers(
            pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(self.raw)]
        )
        return pieces.take(pa.array(even, mask=None if known.all() else ~known))


def _both(one: _Step, other: _Step) -> bool:
    """Whether a text can begin as both say."""
    begins = [
        [step.literal] if step.literal or step.sort in _SORTS else step.sort.encode().split(b"|")
        for step in (one, other)
    ]
    return any(a.startswith(b) or b.startswith(a) for a in begins[0] for b in begins[1])


class _Found:
    """What a walk through the tree of templates finds in a block."""

    def __init__(self, text: _Block, fields: Mapping[str, Sequence[str]], blank: frozenset[str]) -> None:
        self.text, self.fields, self.blank = text, fields, blank
        self.free = np.ones(len(text.ends), dtype=bool)  # lines that no expression has to be asked about
        self.spans: dict[str, tuple[_Array, _Array]] = {}
        self.tables: dict[str, pa.Table] = {}

    def walk(
        self, node: _Tree, lines: _Array, at: _Array, ends: _Array, firm: _Array, words: _Array | None = None
    ) -> None:
        """Go on from a node with the lines that came to it; `at` is how far each is read, `ends` where it ends.

        A line is `firm` if nothing but what is below this node can fit it.
        """
        if node.name is not None:
            whole = at == ends
            self.tables[node.name] = self._table(self.fields[node.name], lines[whole])
            lines, at, ends, firm, words = lines[~whole], at[~whole], ends[~whole], firm[~whole], None
        if not lines.size:
            return
        if words is None and any(step.literal or step.sort for step in node.below):
            words = self.text.words[at]
        starts = [self._starts(step, at, words) for step in node.below]
        for i, (step, below) in enumerate(node.below.items()):
            sure = firm
            for j, other in enumerate(node.below):
                if j > i and _both(step, other):
                    sure = sure & ~starts[j]
            if starts[i].all():
                self._step(step, below, lines, at, ends, sure, words)
                return
            here = np.flatnonzero(starts[i])
            known = None if words is None else words[here]
            self._step(step, below, lines[here], at[here], ends[here], sure[here], known)
            for later in starts[i + 1 :]:
                later[here] = False
        self.free[lines[~np.logical_or.reduce([*starts, firm])]] = False

    def _starts(self, step: _Step, at: _Array, words: _Array | None) -> _Array:
        return np.ones(len(at), bool) if step.optional else self._begins(step, at, words)

    def _begins(self, step: _Step, at: _Array, words: _Array | None) -> _Array:
        fit = self.text.has(at, step.literal, words)
        if step.sort in _SORTS:
            return fit
        if step.literal:
            at, words = np.minimum(at + len(step.literal), self.text.size), None
        words = self.text.words[at] if words is None else words
        some: _Array = np.logical_or.reduce([self.text.has(at, text.encode(), words) for text in step.sort.split("|")])
        return fit & some

    def _step(
        self, step: _Step, below: _Tree, lines: _Array, at: _Array, ends: _Array, firm: _Array, words: _Array | None
    ) -> None:
        if not lines.size:
            return
        rows = slice(None)
        if step.optional and not (there := self._begins(step, at, words)).all():
            rows = np.flatnonzero(there)  # type: ignore[assignment]
            if not rows.size:  # type: ignore[attr-defined]
                if step.field:
                    low, high = self._span(step.field)
                    low[lines], high[lines] = at, at - 1
                return self.walk(below, lines, at, ends, firm, words)
        begin = at[rows] + len(step.literal)
        stop, sure = self.text.field(step, begin, ends[rows])
        if step.tail:
            sure &= self.text.has(stop, step.tail)
        if step.field:
            low, high = self._span(step.field)
            if step.optional:
                low[lines], high[lines] = at, at - 1
            shut = (self.text.bytes[stop - 1] == 41) & (stop > begin) if step.sort == "closed" else 0
            low[lines[rows]], high[lines[rows]] = begin, stop - shut
        if step.optional:
            at = at.copy()
            at[rows] = stop + len(step.tail)
        else:
            at = stop + len(step.tail) if step.tail else stop
        if not sure.all():
            going = np.ones(len(lines), bool)
            going[rows] = sure
            self.free[lines[~going]] = False
            lines, at, ends, firm = lines[going], at[going], ends[going], firm[going]
        self.walk(below, lines, at, ends, firm)

    def _span(self, field: str) -> tuple[_Array, _Array]:
        if field not in self.spans:
            self.spans[field] = (np.empty(len(self.free), np.int32), np.empty(len(self.free), np.int32))
        return self.spans[field]

    def _table(self, fields: Sequence[str], lines: _Array) -> pa.Table:
        even = np.arange(0, 2 * len(lines), 2, dtype=np.int32)
        made = {"line": pa.array(lines)}
        for name in fields:
            if name in self.blank:
                made[name] = pa.nulls(len(lines), pa.string())
            else:
                low, high = self.spans[name]
                made[name] = self.text.texts(low[lines], high[lines], even)
        return pa.table(made)
