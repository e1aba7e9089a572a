"""Many patterns at once: which of them can fit a text at all, by the letters they need, and the first that does.

A pattern needs one of a few literals ("mailbox full" or "over quota"); a text without any of them is passed over. Four
bytes of each literal, the rarest, are looked for in all texts of a batch in one pass of numpy; only what is left is
matched. This changes the time, never the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

try:
    from re import _constants as _op  # type: ignore[attr-defined]  # what re itself compiles from
    from re import _parser  # type: ignore[attr-defined]
except ImportError:  # another Python: every pattern is tried
    _parser = None

_SIZE, _MOST = 4, 64  # bytes looked for, literals a pattern may need
_Found = tuple[int, "re.Match[str]"] | None  # place of the pattern, its match


class Patterns:
    """Compiled patterns in their order; `examples` tell which letters are rare."""

    def __init__(self, patterns: Sequence[str], examples: Iterable[str] = ()) -> None:
        self.compiled = [re.compile(pattern) for pattern in patterns]
        common = Counter(gram for text in examples for gram in set(_grams(text.lower())))
        wanted: list[tuple[int, int]] = []  # (four bytes, clause)
        owner, place = list[int](), list[int]()  # clause -> branch, branch -> pattern
        for number, pattern in enumerate(patterns):
            for branch in needs(pattern):
                for literals in branch:
                    rarest = [min(_grams(one), key=lambda gram: (common[gram], gram)) for one in literals]
                    wanted += [(int.from_bytes(gram, "big"), len(owner)) for gram in rarest]
                    owner.append(len(place))
                place.append(number)
        self._owner, self._place = np.array(owner, dtype=np.int64), np.array(place, dtype=np.int64)
        self._count = np.bincount(self._owner, minlength=len(place))  # clauses of each branch
        self._always = self._place[self._count == 0].tolist()
        self._keys, self._first = np.unique(np.array([key for key, _ in sorted(wanted)], np.uint32), return_index=True)
        self._clauses = np.array([clause for _, clause in sorted(wanted)], dtype=np.int64)
        self._many = np.diff(np.append(self._first, len(wanted)))
        self._hit = np.zeros(1 << 16, dtype=bool)
        self._hit[_hash(self._keys)] = True

    def candidates(self, texts: Sequence[str]) -> list[list[int]]:
        """For each lower-case text the places of the patterns whose letters are in it, in order."""
        raw = [text.encode("utf-8", "replace") for text in texts]
        data = np.frombuffer(b"".join(raw) + b"\0\0\0", dtype=np.uint8).astype(np.uint32)
        keys = (data[:-3] << 24) | (data[1:-2] << 16) | (data[2:-1] << 8) | data[3:]
        at = np.flatnonzero(self._hit[_hash(keys)])
        slot = np.searchsorted(self._keys, keys[at]) % max(len(self._keys), 1)
        same = self._keys[slot] == keys[at]
        at, slot = at[same], slot[same]
        ends = np.cumsum([len(text) for text in raw], dtype=np.int64)
        text = np.searchsorted(ends, at, side="right")
        many = self._many[slot]  # a key stands for several clauses
        steps = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        clause = self._clauses[np.repeat(self._first[slot], many) + steps]
        both = np.unique(np.repeat(text, many) * len(self._owner) + clause)
        text, clause = np.divmod(both, max(len(self._owner), 1))
        both, met = np.unique(text * len(self._count) + self._owner[clause], return_counts=True)
        text, branch = np.divmod(both, len(self._count))
        whole = met == self._count[branch]
        found = [set(self._always) for _ in texts]
        for one, which in zip(text[whole].tolist(), self._place[branch[whole]].tolist(), strict=True):
            found[one].add(which)
        return [sorted(some) for some in found]

    def first(self, text: str, places: Iterable[int]) -> _Found:
        """The first of these patterns that fits, and how."""
        for place in places:
            if match := self.compiled[place].search(text):
                return place, match
        return None


class Guarded:
    """A pattern of single lines, case ignored, looked for from the first line on that has one of its literals."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.finditer, self._search = pattern.pattern, pattern.finditer, pattern.search
        each = [max(sets, key=lambda some: min(map(len, some)), default={""}) for sets in needs(pattern.pattern)]
        every = {literal.lower() for some in each for literal in some}
        self._literals = sorted(one for one in every if not any(other in one for other in every - {one}))

    def search(self, text: str) -> re.Match[str] | None:
        """As that of the pattern."""
        low = text.lower()
        first = min((at for at in map(low.find, self._literals) if at >= 0), default=-1)
        if first < 0:
            return None
        return self._search(text, low.rfind("\n", 0, first) + 1 if len(low) == len(text) else 0)


def needs(pattern: str) -> list[list[set[str]]]:
    """For each branch of the pattern sets of literals: a text that fits it holds at least one of each set."""
    items = list(_parser.parse(pattern)) if _parser else []
    at = next((n for n, (kind, _) in enumerate(items) if kind is _op.BRANCH), None)
    if at is None:
        return [_needed(items)]
    return [_needed([*items[:at], *branch, *items[at + 1 :]]) for branch in items[at][1][1]]


def _needed(items: list[Any]) -> list[set[str]]:
    made, run = list[set[str]](), {""}
    for item in items:
        exact = _exact([item])
        if exact is not None and len(run) * len(exact) <= _MOST:
            run = {a + b for a, b in product(run, exact)}
            continue
        made.append(run)
        run = {""} if exact is None else exact
        made += _inside(item) if exact is None else []
    return [some for some in [*made, run] if some and min(len(text.encode()) for text in some) >= _SIZE]


def _inside(item: Any) -> list[set[str]]:
    """What an item that is no fixed text needs, if it must be there."""
    kind, value = item
    if kind is _op.BRANCH:  # one set for all branches: the shortest literals of one are the most telling of it
        each = [max(_needed(list(branch)), key=lambda some: min(map(len, some)), default=None) for branch in value[1]]
        return [] if None in each else [set().union(*each)]  # type: ignore[arg-type]
    if kind in (_op.MAX_REPEAT, _op.MIN_REPEAT, _op.POSSESSIVE_REPEAT):
        return _needed(list(value[2])) if value[0] else []
    parts = {_op.SUBPATTERN: lambda: value[-1], _op.ATOMIC_GROUP: lambda: value}
    return _needed(list(parts[kind]())) if kind in parts else []


def _exact(items: Iterable[Any]) -> set[str] | None:
    """All texts that the items can be; None if these are many."""
    made = {""}
    for kind, value in items:
        one: set[str] | None = None
        if kind is _op.LITERAL:
            one = {chr(value)}
        elif kind in (_op.AT, _op.ASSERT, _op.ASSERT_NOT):
            one = {""}
        elif kind is _op.IN and all(k is _op.LITERAL for k, _ in value) and len(value) < 5:
            one = {chr(code) for _, code in value}
        elif kind is _op.SUBPATTERN:
            one = _exact(value[-1])
        elif kind is _op.BRANCH:
            each = [_exact(branch) for branch in value[1]]
            one = set().union(*each) if None not in each else None  # type: ignore[arg-type]
        elif kind in (_op.MAX_REPEAT, _op.MIN_REPEAT) and value[1] <= 2 and (once := _exact(value[2])) is not None:
            one = {"".join(p) for n in range(value[0], value[1] + 1) for p in product(once, repeat=n)}
        if one is None or len(made) * len(one) > _MOST:
            return None
        made = {a + b for a, b in product(made, one)}
    return made


def _grams(text: str) -> list[bytes]:
    raw = text.encode("utf-8", "replace")
    return [raw[i : i + _SIZE] for i in range(len(raw) - _SIZE + 1)]


def _hash(keys: np.ndarray[Any, Any]) -> Any:
    return (keys * np.uint32(2654435761)) >> np.uint32(16)
