"""Files as parts: a file, a folder, an archive. First bytes say what it is; nothing is unpacked to disk."""

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

from deliverkit.errors import FormatError

_LEAST, _RATIO = 256 << 20, 200  # bytes; times the size on disk (logs: 10 to 30)
_SMALL = 1 << 20  # bytes
_DELIVERED = re.compile(r"(?:^|/)(?:cur|new)/[^/.][^/]*$")  # in a Maildir, whose subfolders have hidden names
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


@dataclass(frozen=True)
class Part:
    """Bytes with a name (`path`, or `archive.zip!inner/name`) and the time of their last change, unix s."""

    name: str
    mtime: float
    _limit: int
    _call: tuple[Any, ...]  # what opens it

    def open(self) -> io.BufferedReader:
        """The bytes, decompressed; reading raises FormatError where they are damaged or grow without end."""
        return io.BufferedReader(_Stream(self), 1 << 18)


Source = str | PathLike[str] | Sequence[Part | str | PathLike[str]]  # a path, or a list of paths and of parts


class _Stream(io.RawIOBase):
    def __init__(self, part: Part) -> None:
        self._name, self._left, self._below = part.name, part._limit, _try(part.name, *part._call)
        head, _ = _try(part.name, self._below.read, 6), self._below.seek(0)
        unpack = next((call for magic, call in _PACKED.items() if head.startswith(magic)), lambda below: below)
        self._stream = unpack(self._below)

    def readinto(self, buffer: Any) -> int:
        data = _try(self._name, self._stream.read, len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise FormatError(self._name, "grows too large when decompressed")
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._below.close()


def parts(path: Source, strays: list[FormatError] | None = None) -> Iterator[Part]:
    """The parts of a file, of a folder (sorted, with subfolders) or of a zip or tar archive (one level).

    Left out: hidden names, devices, links to folders, files met before. Raises FormatError for a path that is missing,
    unreadable or without files, and for an archive that is damaged, encrypted, or grows past both 256 MiB and 200 times
    its size; with `strays` such a file among others is left out and named there. An archive stays open while a part of
    it is in use.
    """
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
    if isinstance(file, str):
        data = _try(file, _small, file)
        if data is not None and not data.startswith((*_PACKED, b"PK\3\4", b"PK\5\6")) and data[257:262] != b"ustar":
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


def _members(path: Path) -> Iterator[Part]:
    name, about = _shown(str(path)), path.stat()
    left = limit = max(_LEAST, _RATIO * about.st_size)
    whole = Part(name, about.st_mtime, limit, (path.open, "rb"))
    with whole.open() as stream:
        head = stream.read(512)
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
            yield Part(f"{name}!{_shown(inner)}", mtime, limit, call)


def _shown(name: str) -> str:
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)  # one line, no stray bytes


def _try(name: object, call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except Exception as problem:  # noqa: BLE001 - a damaged archive raises any of a dozen kinds
        what = getattr(problem, "strerror", None) or " ".join(str(problem).split()) or type(problem).__name__
        raise FormatError(name, f"cannot be read: {what}") from None
