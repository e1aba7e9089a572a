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
from typing import Any

from deliverkit.patterns import Guarded

Fields = dict[str, str]  # lower-cased field name -> values, unfolded, a line each

_NOTICE = 1 << 16  # bytes of a text part
_TABLE = tomllib.loads((files("deliverkit.bounces") / "words.toml").read_text("utf-8"))
_JSON, _SHORT = _TABLE.pop("json"), _TABLE.pop("short")
WORDS: dict[str, Any] = {}
for _name, _words in _TABLE.items():  # capitals stand for what [short] says
    _words = re.sub("|".join(_SHORT), lambda short: _SHORT[short[0]], "|".join(_words))
    WORDS[_name] = re.compile(_words, re.I | re.M)
    if _name in ("returned", "failed", "delayed", "gave_up", "queue"):  # long ones, looked for in much text
        WORDS[_name] = Guarded(WORDS[_name])
_TYPE = re.compile(rb"(?:^|\n)content-type[ \t]*:\s{0,99}([^\s;]{1,99})")
_ENCODING = re.compile(rb"content-transfer-encoding[ \t]*:([^\n]{0,99})")
_BOUNDARY = re.compile(rb"boundary\s{0,9}=\s{0,9}(?:\"([^\"]{1,200})|([^\s\";]{1,200}))", re.I)
_FIELD = re.compile(r"\n([!-9;-~]{1,76})[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)")
_TAGS = re.compile(r"<(?:style|script)[^<]*|<[a-z/!][^<>]{0,999}>", re.I)


@dataclass(slots=True)
class Mail:
    """A message taken apart; what is seldom asked for is made when it is."""

    headers: Fields  # and what a report states for all recipients (RFC 3464, RFC 5965)
    groups: list[Fields] = field(default_factory=list)  # one per recipient (RFC 3464)
    texts: list[tuple[str, bytes, bytes]] = field(default_factory=list)  # parts in words: sort, content, header
    original: bytes = b""  # header of the returned message, where that is a part of its own
    quoted: bytes = b""  # the same in lower case
    quotes: bool = False  # the groups stand in its words, where anybody can write them
    _cut: tuple[str, str] | None = None  # the words, and what they quote of the returned message

    @property
    def notice(self) -> str:
        """The reporter's own text, without the returned message."""
        return self._parted()[0]

    @property
    def returned(self) -> Fields:
        """Headers of the returned message."""
        if self.original:
            return fields(_text(self.original))
        return fields(self._parted()[1][:9999].replace("\n> ", "\n"))

    def _worded(self, sort: str) -> str:
        return "\n".join(_text(content, stated) for kind, content, stated in self.texts if kind == sort)

    def _parted(self) -> tuple[str, str]:
        if self._cut is None:
            plain, marked, before = (self._worded(sort) for sort in ("plain", "marked", "before"))
            marked = "" if plain.strip() else html.unescape(_TAGS.sub("\n", marked))
            written = marked if marked.strip() else f"{before}\n{plain}" if before.strip() else plain
            for name, title in _JSON.items() if written.lstrip().startswith("{") else ():
                written = re.sub(rf'"(?:{name})":\[?"([^"]{{0,2000}})"', rf"\n{title}: \1\n", written.replace("\\", ""))
            cut = found.start() if (found := WORDS["returned"].search(written)) else len(written)
            self._cut = written[:cut], written[cut:]
        return self._cut


def take_apart(message: bytes) -> Mail:
    """Find the parts of a message. Never raises; what is no message has no known header field."""
    head, _, body = message.lstrip(b"\n").partition(b"\n\n")
    mail = Mail(fields(_text(head[:_NOTICE])))
    for kind, stated, content in _parts(head[:_NOTICE], body):
        if kind == "returned":
            if not mail.original:
                mail.original = b"\n" + content[:_NOTICE].lstrip().partition(b"\n\n")[0]
                mail.quoted = mail.original.lower()
        elif kind.startswith("message/"):
            _status(mail, _text(content[: 16 * _NOTICE], stated))
        elif kind.startswith(("text", "multipart")) or not kind:
            sort = "marked" if kind == "text/html" else "before" if kind.startswith("multipart") else "plain"
            content, same = content[:_NOTICE], sum(other == sort for other, *_ in mail.texts)
            if not (mail.groups and same) and same < 99 and content and not content.isspace():
                mail.texts.append((sort, content, stated))
    if not mail.groups and (found := WORDS["stated"].search(mail.notice)):
        _status(mail, mail.notice[found.start() :])
        mail.quotes = True
    return mail


def _parts(head: bytes, body: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    """Type, header in lower case, and content of each part; the returned message comes once, its parts not at all."""
    kind, low, held, within, known = "", head.lower(), list[bytes](), b"", set[bytes]()
    for number, chunk in enumerate((b"\n" + body).split(b"\n--")):
        line, _, rest = chunk.partition(b"\n")
        names = {name := line.rstrip(), name.removesuffix(b"--")}
        opens = not number or (line and names & known) or rest[:8].lower() == b"content-"
        if not opens or (within and within not in names):
            held += [] if within else [chunk]
            continue
        if number:
            if not within:
                yield kind, low, b"\n--".join(held)
            head, _, content = (b"", b"", rest) if rest.startswith(b"\n") else rest.partition(b"\n\n")
            low, held, within = head[:_NOTICE].lower(), [content], b""
        else:
            held = [chunk]
        known |= {name, *(quoted or bare for quoted, bare in _BOUNDARY.findall(head))} if b"boundary" in low else {name}
        kind = found[1].decode("latin-1") if (found := _TYPE.search(low)) else ""
        if number and kind.startswith(("message/rfc822", "text/rfc822", "message/global", "message/partial")):
            within = name
            yield "returned", low, content
    if not within:
        yield kind, low, b"\n--".join(held)


def fields(block: str) -> Fields:
    """Header fields of a block; lines that are none are left out."""
    made: Fields = {}
    for name, value in _FIELD.findall("\n" + block):
        name, value = name.lower(), value.rstrip()
        value = value.replace("\n ", " ").replace("\n\t", " ") if "\n" in value else value
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


def _text(content: bytes, low: bytes = b"") -> str:
    """Bytes as text: by the encoding and character set that their header states, else by what they look like."""
    encoding = found[1] if b"transfer-encoding" in low and (found := _ENCODING.search(low)) else b""
    if b"quoted-printable" in encoding:
        content = binascii.a2b_qp(content)
    elif b"base64" in encoding:
        packed = re.sub(rb"[^A-Za-z0-9+/]", b"", content)
        content = binascii.a2b_base64(packed[: len(packed) - (len(packed) % 4 == 1)] + b"==")
    shifted = ["iso-2022-jp"] if b"\x1b$" in content else []
    stated = WORDS["charset"].findall(low.decode("ascii", "replace")) if b"charset" in low and not shifted else []
    for name in [*shifted, *stated, "utf-8"]:
        with suppress(LookupError, ValueError):
            return content.decode(name).replace("\0", "").replace("\r\n", "\n")
    return content.decode("iso-2022-jp" if shifted else "cp1252", "replace").replace("\0", "").replace("\r\n", "\n")
