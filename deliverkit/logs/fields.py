"""What the formats of fields share: CSV under lines that name its columns, replies, endpoints, lists."""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from deliverkit.targets import is_ip

_LONGEST, _RUN = 1 << 17, 100  # characters of a line, lines of a field
_CODES = re.compile(r"(?:([2-5]\d\d)(?:[ -]|$))?#?([245]\.\d{1,3}\.\d{1,3}\b)?")
_LIST = re.compile(r'(?:"[^"]*+"|[^;])++')  # a quoted local part may hold the separator


def tabled(
    lines: Iterable[str], named: Callable[[list[str]], list[str]]
) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """Each record with its line, its fields by name, and itself; `named` gives the names if a record is a header.

    There are no fields where their number is not that of the names, or no names so far. Comments are left out.
    """
    names: list[str] = []
    for number, record in records(lines):
        if found := named(record):
            names = found
        elif any(record) and not record[0].startswith("#"):
            yield number, dict(zip(names, record, strict=True)) if len(names) == len(record) else {}, record


def records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The records of CSV (RFC 4180), each with the number of its first line; at most 131,072 characters of a line.

    A quoted field may run over at most 100 lines: a quote that stays open, as where a file was cut off, takes no more
    than its own line with it.
    """
    source, again = enumerate(lines, 1), deque[tuple[int, str]]()
    while begun := again.popleft() if again else next(source, None):
        number, text = begun[0], _plain(begun[1]).removeprefix("\ufeff")
        rest: list[tuple[int, str]] = []
        while text.count('"') % 2 and len(rest) < _RUN and (more := again.popleft() if again else next(source, None)):
            rest.append(more)
            if more[1].count('"') % 2:
                break
        with suppress(csv.Error):
            whole = "\n".join([text, *(_plain(line) for _, line in rest)])
            yield number, next(csv.reader([whole], strict=True), [])
            continue
        again.extendleft(reversed(rest))
        yield number, next(csv.reader([text]), [])


def _plain(line: str) -> str:
    return line[:_LONGEST].rstrip("\r").replace("\r", " ")


def unfit(number: int, why: str) -> dict[str, Any]:
    """The row for what cannot be read."""
    return {"time": None, "line": number, "outcome": None, "attempted": False, "hint": "unreadable", "text": why}


def said(text: str) -> dict[str, Any]:
    """Text, reply code and enhanced code of a reply."""
    found = _CODES.match(text)
    code, status = found.groups() if found else (None, None)
    return {"text": text or None, "reply_code": int(code) if code else None, "status_code": status}


def endpoint(text: str) -> tuple[str | None, int | None]:
    """Address and port of `192.0.2.1:25`, `[2001:db8::1]:25`, or of an address alone; None for what is neither."""
    host, _, port = ("", "", "") if is_ip(text) else text.rpartition(":")
    bare = (host or text).strip("[]")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    return (bare, number if 0 < number < 65536 else None) if is_ip(bare) else (None, None)


def listed(text: str) -> list[str]:
    """The items of a list with semicolons."""
    return [item.strip() for item in _LIST.findall(text)]
