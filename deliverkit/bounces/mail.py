"""One message as bytes, taken apart: the reporter's words, the fields it states, the head of what it returned."""

from __future__ import annotations

import binascii
import html
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import BinaryIO

Fields = dict[str, str]  # lower-cased field name -> values, unfolded, a line each

_BLOCK, _LARGEST, _NOTICE = 1 << 22, 1 << 26, 1 << 16  # bytes read at once, of a message, of a text part
_TABLE = tomllib.loads((files("deliverkit.bounces") / "words.toml").read_text("utf-8"))
_JSON, _SHORT = _TABLE.pop("json"), _TABLE.pop("short")
WORDS: dict[str, re.Pattern[str]] = {}
for _name, _words in _TABLE.items():  # capitals stand for what [short] says
    _words = re.sub("|".join(_SHORT), lambda short: _SHORT[short[0]], "|".join(_words))
    WORDS[_name] = re.compile(_words, re.I | re.M)
_FROM = re.compile(rb"\n\n(?=From \S{1,320} [^\n]{0,40}\d\d:\d\d[^\n]{0,40}\n)")
_FRAMING = re.compile(rb"\AFrom [^\n]*\n|^>(?=>*From )", re.M)
_FIELD = re.compile(r"^([!-9;-~]{1,76})[ \t]*:([^\n]*)", re.M)


@dataclass(slots=True)
class Mail:
    """A message taken apart. `notice` is the reporter's own text, without the returned message."""

    headers: Fields  # and what a report states for all recipients (RFC 3464, RFC 5965)
    notice: str = ""
    groups: list[Fields] = field(default_factory=list)  # one per recipient (RFC 3464)
    returned: Fields = field(default_factory=dict)  # headers of the returned message


def messages(stream: BinaryIO) -> Iterator[bytes]:
    """The messages of one file, line feeds as line ends: the file itself, or those of an mbox."""
    rest, mbox = b"", False
    while block := stream.read(_BLOCK):
        block += stream.read(1) if block.endswith(b"\r") else b""  # its line feed may be to come
        mbox = mbox or (not rest and block.startswith(b"From "))
        rest += block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = _FROM.split(rest) if mbox else [rest]
        yield from (_FRAMING.sub(b"", message) for message in whole)
        rest = rest if len(rest) < _LARGEST else rest[:_BLOCK] + rest[-_NOTICE:]  # the report stands first
    yield _FRAMING.sub(b"", rest) if mbox else rest


def take_apart(message: bytes) -> Mail:
    """Find the parts of a message. Never raises; what is no message has no known header field."""
    head, _, body = message.lstrip(b"\n").partition(b"\n\n")
    mail, plain, marked = Mail(fields(_text(head[:_NOTICE]))), list[str](), list[str]()
    for kind, headers, content in _parts(mail.headers, body):
        if kind == "returned":
            mail.returned = mail.returned or fields(_text(content[:_NOTICE].lstrip().partition(b"\n\n")[0]))
        elif kind.startswith("message/"):
            _status(mail, _text(content[: 16 * _NOTICE], headers))
        elif kind.startswith(("text", "multipart")) or not kind:
            sort = marked if kind == "text/html" else plain
            if not (mail.groups and sort) and len(sort) < 99 and not content[:_NOTICE].isspace():
                sort += filter(None, [_text(content[:_NOTICE], headers)])
    tags = r"<(?:style|script)[^<]*|<[a-z/!][^<>]{0,999}>"
    written = "\n".join(plain)
    written = written if written.strip() else html.unescape(re.sub(tags, "\n", "\n".join(marked), flags=re.I))
    for name, title in _JSON.items() if written.lstrip().startswith("{") else ():
        written = re.sub(rf'"(?:{name})":\[?"([^"]{{0,2000}})"', rf"\n{title}: \1\n", written.replace("\\", ""))
    cut = found.start() if (found := WORDS["returned"].search(written)) else len(written)
    mail.notice, mail.returned = written[:cut], mail.returned or fields(written[cut : cut + 9999].replace("\n> ", "\n"))
    if not mail.groups and (stated := WORDS["stated"].search(mail.notice)):
        _status(mail, mail.notice[stated.start() :])
    return mail


def _parts(headers: Fields, body: bytes) -> Iterator[tuple[str, Fields, bytes]]:
    """Type, fields and content of each part; the returned message comes once and its parts not at all."""
    kind, held, within, known = "", list[bytes](), b"", set[bytes]()
    for number, chunk in enumerate((b"\n" + body).split(b"\n--")):
        line, _, rest = chunk.partition(b"\n")
        names = {name := line.rstrip(), name.removesuffix(b"--")}
        opens = not number or (line and names & known) or rest[:8].lower() == b"content-"
        if not opens or (within and within not in names):
            held += [] if within else [chunk]
            continue
        if number and not within:
            yield kind, headers, b"\n--".join(held)
        head, _, content = (b"", b"", rest) if rest.startswith(b"\n") else rest.partition(b"\n\n")
        headers, held, within = (fields(_text(head[:_NOTICE])), [content], b"") if number else (headers, [chunk], b"")
        stated = headers.get("content-type", "")
        kind = stated.partition(";")[0].strip().lower()
        known |= {name, *("".join(found).encode("utf-8", "replace") for found in WORDS["boundary"].findall(stated))}
        if number and kind.startswith(("message/rfc822", "text/rfc822", "message/global", "message/partial")):
            within = name
            yield "returned", headers, content
    if not within:
        yield kind, headers, b"\n--".join(held)


def fields(block: str) -> Fields:
    """Header fields of a block; lines that are none are left out."""
    made: Fields = {}
    for name, value in _FIELD.findall(re.sub(r"\n[ \t]+", " ", block)):
        name, value = name.lower(), value.strip()
        made[name] = f"{made[name]}\n{value}" if name in made else value
    return made


def _status(mail: Mail, content: str) -> None:
    """Groups of fields parted by blank lines; one without a recipient belongs to the report or to the last."""
    for group in map(fields, re.split(r"\n[ \t]*\n\s*", content.strip())):
        if group.keys() & {"final-recipient", "original-recipient"}:
            columns = [[(name, v) for v in values.split("\n")] for name, values in group.items()]
            count = group.get("final-recipient", "").count("\n") + 1  # some put several into one block
            mail.groups += [dict(column[i] for column in columns if column[i:]) for i in range(count)]
        elif mail.groups and "reporting-mta" not in group:
            mail.groups[-1] = group | mail.groups[-1]
        else:
            mail.headers = group | mail.headers


def _text(content: bytes, headers: Fields | None = None) -> str:
    """Bytes as text: by the encoding and character set that are stated, else by what they look like."""
    encoding = (headers or {}).get("content-transfer-encoding", "").lower()
    if "quoted-printable" in encoding:
        content = binascii.a2b_qp(content)
    elif "base64" in encoding:
        packed = re.sub(rb"[^A-Za-z0-9+/]", b"", content)
        content = binascii.a2b_base64(packed[: len(packed) - (len(packed) % 4 == 1)] + b"==")
    content = content.replace(b"\0", b"")
    shifted = ["iso-2022-jp"] if b"\x1b$" in content else []
    for name in shifted or [*WORDS["charset"].findall((headers or {}).get("content-type", "")), "utf-8"]:
        with suppress(LookupError, ValueError):
            return content.decode(name)
    return content.decode("iso-2022-jp" if shifted else "cp1252", "replace")
