"""Files as parts: a file, a folder, an archive, standard input. First bytes say what it is; nothing is unpacked."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from deliverkit.errors import FormatError

_LEAST, _RATIO = 256 << 20, 200  # bytes; times the size on disk (logs: 10 to 30)
_SMALL, _PIECE = 1 << 20, 1 << 18  # bytes
_DELIVERED = re.compile(r"(?:^|/)(?:cur|new)/[^/.][^/]*$")  # in a Maildir, whose subfolders have hidden names
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_PACKED |= {
    head: lambda below: pa.CompressedInputStream(below, "zstd") for head in (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Part:
    """Bytes with a name (`path`, or `archive.zip!inner/name`) and the time of their last change, unix s.

    `size`: bytes as stored (a member of an archive: unpacked). `plain`: the path of a regular file that holds just the
    bytes that `open` gives, so that any range of it can be read alone; None for what is packed, UTF-16 or a member.
    """

    name: str
    mtime: float
    _limit: int
    _call: tuple[Any, ...]  # what opens it
    size: int = 0
    plain: Path | None = None

    def open(self) -> io.BufferedReader:
        """The bytes, decompressed, UTF-16 as UTF-8.

        Reading raises FormatError where they are damaged or grow without end. Of damage it says how many bytes and
        whole lines are good before it (`line`); `lines`, `readline` and `read1` hand out all of these, `read` may not.
        """
        return io.BufferedReader(_Stream(self), _PIECE)


Source = str | PathLike[str] | Sequence[Part | str | PathLike[str]]  # a path, or a list of paths and of parts


class _Stream(io.RawIOBase):
    def __init__(self, part: Part) -> None:
        self._part, self._ready, self._wide = part, b"", False
        self._good: int | None = None  # bytes read before the first error
        self._below = _try(part.name, *part._call)
        head = _try(part.name, self._below.read, 6)
        self._unpack = next((call for magic, call in _PACKED.items() if head.startswith(magic)), lambda below: below)
        self._begin()
        with suppress(Exception):  # damage is for the reader to meet
            self._wide = self._stream.read1(2).startswith(_UTF16)
        self._begin()

    def _begin(self) -> None:
        self._stream: Any = None  # that of pyarrow takes with it what is below
        if self._below.closed:
            self._below = _try(self._part.name, *self._part._call)
        self._below.seek(0)
        self._stream, self._given, self._count = self._unpack(self._below), 0, 0
        self._decode = codecs.getincrementaldecoder("utf-16")("backslashreplace").decode if self._wide else None

    def readinto(self, buffer: Any) -> int:
        data = self._ready or self._next(len(buffer))
        data, self._ready = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        """Some of the bytes that come next, none at the end; all that is good before damage, then it raises."""
        data, done = b"", False
        while not (data or done):
            try:
                raw = self._stream.read1(min(size, _PIECE if self._good is None or self._given < self._good else 1))
            except Exception as problem:  # noqa: BLE001 - a damaged archive raises any of a dozen kinds
                if self._good is not None:
                    good = f"{self._given:,} bytes with {self._count:,} whole lines before this are good"
                    raise FormatError(
                        self._part.name, f"cannot be read: {_said(problem)}; {good}", self._count
                    ) from None
                self._good = self._given  # what is good of the piece is gone with it: from the start, then byte by byte
                self._begin()
                while self._given < self._good and self._next(self._good - self._given):
                    continue
                continue
            self._given += len(raw)
            if self._given > self._part._limit:
                raise FormatError(self._part.name, "grows too large when decompressed")
            done, data = not raw, self._decode(raw, not raw).encode() if self._decode else raw
        self._count += 0 if self._good is None else data.count(b"\n")
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._below.close()


def parts(path: Source, strays: list[FormatError] | None = None) -> Iterator[Part]:
    """The parts of a file, of a folder (sorted, with subfolders) or of a zip or tar archive (one level).

    "-" is standard input, read once, to its end. Left out: hidden names, devices, links to folders, files met before.
    Raises FormatError for a path that is missing, unreadable or without files, and for an archive that is damaged,
    encrypted, or grows past both 256 MiB and 200 times its size; with `strays` such a file among others is left out and
    named there. An archive stays open while a part of it is in use.
    """
    if path == "":
        raise FormatError("''", "is not a path")
    if isinstance(path, list | tuple):
        for one in path:
            try:
                yield from (one,) if isinstance(one, Part) else parts(one, strays)
            except FormatError as problem:
                if strays is None:
                    raise
                strays.append(problem)
        return
    if not isinstance(path, str | PathLike):
        raise FormatError(path, "is not a path")
    if path == "-":
        yield from _members(_try("standard input", _standard_input)[0], "standard input")
        return
    top, part = Path(path), None
    seen = (f for f in top.rglob("*") if "/." not in f"/{f.relative_to(top).as_posix()}" and f.is_file())
    below = {f.resolve(): f for f in seen}
    for file in sorted(below.values()) if _try(path, top.stat) and below else [top]:
        try:
            for part in _members(file) if file.is_file() else ():
                yield part
        except FormatError as problem:
            if strays is None or file == top:
                raise
            strays.append(problem)
    if part is None:
        raise FormatError(path, "there is no regular file in it")


def streams(file: Source) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and bytes of each part; a small plain file is read at once, which is most of the work for many of them."""
    if isinstance(file, str) and file != "-":
        data = _try(file, _small, file)
        other = (*_PACKED, *_UTF16, b"PK\3\4", b"PK\5\6")
        if data is not None and not data.startswith(other) and data[257:262] != b"ustar":
            yield _shown(file), io.BytesIO(data)
            return
    for part in parts([file] if isinstance(file, Part) else file):
        with part.open() as stream:
            yield part.name, stream


def _small(path: str) -> bytes | None:
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - a third of the time
        about = os.fstat(stream.fileno())
        return stream.read() if stat.S_ISREG(about.st_mode) and about.st_size <= _SMALL else None


def lines(stream: IO[bytes], limit: int = 1_000_000) -> Iterator[str]:
    """Lines without their ends, at most `limit` bytes of each; what is no UTF-8 shows as \\xNN escapes."""
    while line := stream.readline(limit):
        rest = line
        while rest and not rest.endswith(b"\n"):  # the tail of an overlong line is passed over in pieces
            rest = stream.readline(limit)
        yield line.rstrip(b"\r\n").strip(b"\0").decode("utf-8", "backslashreplace")  # NULs: after a crash


@cache
def _standard_input() -> tuple[Path, Any]:
    """A file with all of it, to be read more than once, and the folder that goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="deliverkit-")
    with Path(folder.name, "-").open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, _SMALL)
    return Path(file.name), folder


def _members(path: Path, name: str | None = None) -> Iterator[Part]:
    name, about = name or _shown(str(path)), path.stat()
    left = limit = max(_LEAST, _RATIO * about.st_size)
    with _try(name, path.open, "rb") as stream:
        plain = None if _try(name, stream.read, 6).startswith((*_PACKED, *_UTF16)) else path
    whole = Part(name, about.st_mtime, limit, (path.open, "rb"), about.st_size, plain)
    with whole.open() as stream:
        head = stream.peek(512)[:512]
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        pack = _try(name, zipfile.ZipFile, path)
        found = ((m.filename, about.st_mtime, m.file_size, (pack.open, m)) for m in pack.infolist() if not m.is_dir())
    elif head[257:262] == b"ustar":
        tar = _try(name, tarfile.open, path)
        found = ((m.name, m.mtime, m.size, (tar.extractfile, m)) for m in tar if m.isreg())
    else:
        yield whole
        return
    while member := _try(name, next, found, None):
        inner, mtime, size, call = member
        if (left := left - size - 2048) < 0:  # the surcharge bounds the number of members
            raise FormatError(name, "grows too large when decompressed")
        if "/." not in "/" + inner.replace("../", "").removeprefix("./") or _DELIVERED.search(inner):
            yield Part(f"{name}!{_shown(inner)}", mtime, limit, call, size)


def _shown(name: str) -> str:
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)  # one line, no stray bytes


def _try(name: object, call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except Exception as problem:  # noqa: BLE001 - a damaged archive raises any of a dozen kinds
        raise FormatError(name, f"cannot be read: {_said(problem)}") from None


def _said(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or " ".join(str(problem).split()) or type(problem).__name__
