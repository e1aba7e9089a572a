"""The messages of one file: the file itself, or those of an mbox in any of its flavours.

Sources: RFC 4155 (mbox); https://jdebp.uk/FGA/mail-mbox-formats.html (mboxo, mboxrd, mboxcl, mboxcl2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

_BLOCK, _LARGEST, _END = 1 << 22, 1 << 26, 1 << 16  # bytes read at once, of a message, kept of the end of a larger one
_AHEAD = 1200  # bytes that tell whether a line parts messages: itself, at most a thousand, and the field after it
_FROM = re.compile(rb"\nFrom ([^\n]{1,1000})\n(?=[!-9;-~]{1,76}[ \t]{0,9}:|>?From )")
_DATED = re.compile(rb".*\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +(?:[A-Z][a-z]{2} +\d|\d{1,2} +[A-Z][a-z]{2}).*\d:\d\d")
_ODD = re.compile(rb'(?=.*\d:\d\d)(?=.*\b(?:19|20)\d\d)(?:"[^"]*"\S*|\S+) +(?:[A-Z][^\s\d]{1,4} +){0,2}\d')
_QUOTED = re.compile(rb"^>(?=>*From )", re.M)
_LENGTH = re.compile(rb"\nContent-Length:[ \t]*(\d{1,8})[ \t]*\n", re.I)


def messages(stream: IO[bytes]) -> Iterator[bytes]:
    """The messages of a file, line feeds as line ends; those of an mbox without From_ lines and `>` before such lines.

    An mbox begins with a From_ line. Another one parts messages if a header field follows and its date is usual, or of
    any kind after a sender and a blank line; but not inside of what a Content-Length covers that ends at such a line.
    Holds one message and two blocks; of a message over 64 MiB the first 4 MiB and, as reports may stand last, 64 KiB.
    """
    blocks, head = _blocks(stream), b""
    for block in blocks:
        head = (head + block).lstrip(b"\n")
        if len(head) > 4:
            break
    held, start, look, mbox = bytearray(b"\n" + head), 0, 1, head.startswith(b"From ")
    for block in chain(blocks, [b""]):  # nothing: the end
        held += block
        while mbox and (found := _FROM.search(held, look)):
            look = at = found.start()
            if _parts(held, found) and at > held.find(b"\n", start + 1):
                ends = _stated_end(held, start, at)
                if at < ends - 1 and block and ends + _AHEAD > len(held):
                    break  # what stands there is to come
                fits = 0 <= len(held) - ends < 3 or any(_parts(held, _FROM.match(held, n)) for n in (ends - 1, ends))
                if at < ends - 1 and fits:
                    look = ends - 2
                else:
                    yield _unframed(held[start : at + 1])
                    start = at
            look += 1
        else:
            look = max(look, len(held) - _AHEAD)
        del held[:start]
        start, look = 0, look - start
        if len(held) > _LARGEST:
            del held[_BLOCK:-_END]
            look = len(held) - _END
    yield _unframed(held) if mbox else bytes(held[1:])


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Blocks with line feeds as line ends; a carriage return waits for the line feed that may follow it."""
    waits = b""
    while block := stream.read(_BLOCK):
        block, waits = waits + block, b""
        if b"\r" in block:
            waits = block[-1:] if block.endswith(b"\r") else b""
            block = block[: len(block) - len(waits)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if block:
            yield block
    if waits:
        yield b"\n"


def _parts(held: bytearray, found: re.Match[bytes] | None) -> bool:
    """True if what looks like a From_ line parts two messages."""
    blank = found and held[found.start() - 1] == 10
    return bool(found and (_DATED.match(found[1]) or (blank and _ODD.match(found[1]))))


def _stated_end(held: bytearray, start: int, at: int) -> int:
    """Where the message ends by its own Content-Length, if its header ends before a place; else 0."""
    body = held.find(b"\n\n", start + 1, min(at + 1, start + _END)) + 2
    found = _LENGTH.search(held, start, body) if body > 1 else None
    return body + int(found[1]) if found and int(found[1]) < _LARGEST - _END else 0


def _unframed(message: bytearray) -> bytes:
    content = message.partition(b"\n")[2].partition(b"\n")[2]
    content = content[:-1] if content.endswith(b"\n\n") else content
    return bytes(_QUOTED.sub(b"", content) if b">From " in content else content)
