"""Files become parts: archives, compression, bounds, and one line for what cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from deliverkit import files
from deliverkit.errors import FormatError
from deliverkit.files import lines, parts

TEXT = b"one\ntwo\n"


def contents(path: Path) -> dict[str, bytes]:
    made = {}
    for part in list(parts(path)):
        with part.open() as stream:
            made[part.name.removeprefix(str(path))] = stream.read()
    return made


def tar(path: Path, mode: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_file_is_read_decompressed_whatever_its_name(tmp_path: Path, pack: object) -> None:
    (tmp_path / "x.txt").write_bytes(pack(TEXT))  # type: ignore[operator]
    assert contents(tmp_path / "x.txt") == {"": TEXT}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_archive_gives_its_files_with_their_times(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "logs"
    tar(path, mode, {"a/mail.log": TEXT, "a/mail.log.1.gz": gzip.compress(TEXT), "a/.hidden": TEXT})
    assert contents(path) == {"!a/mail.log": TEXT, "!a/mail.log.1.gz": TEXT}
    assert {part.mtime for part in parts(path)} == {1_700_000_000}


def test_a_zip_archive_gives_its_files_and_leaves_inner_archives_shut(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep", TEXT)
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("../x.log", TEXT)
        archive.writestr("in.zip", inner.getvalue())
    assert contents(tmp_path / "z") == {"!../x.log": TEXT, "!in.zip": inner.getvalue()}
    assert [path.name for path in tmp_path.parent.rglob("x.log")] == []


def test_a_folder_gives_each_file_once_and_leaves_out_what_is_hidden_or_no_file(tmp_path: Path) -> None:
    for name in ("b.log", "a/x.log", ".git/config", "a/.swp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TEXT)
    (tmp_path / "current.log").symlink_to(tmp_path / "b.log")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert sorted(contents(tmp_path)) == ["/a/x.log", "/current.log"]


def broken(tmp_path: Path, what: str) -> Path:
    path = tmp_path / "x"
    if what == "truncated gz":
        path.write_bytes(gzip.compress(os.urandom(5000))[:-900])
    elif what == "damaged gz":
        data = bytearray(gzip.compress(os.urandom(5000)))
        data[-6] ^= 255
        path.write_bytes(data)
    elif what in ("zip cut off", "encrypted zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", TEXT)
        data = bytearray(path.read_bytes())
        for at in (6, data.find(b"PK\1\2") + 8) if what == "encrypted zip" else ():
            data[at] |= 1
        path.write_bytes(data if what == "encrypted zip" else data[:-10])
    elif what == "tar cut off":
        tar(path, "w:gz", {"a": os.urandom(9000)})
        path.write_bytes(path.read_bytes()[:3000])
    elif what == "empty folder":
        path.mkdir()
    return Path("/dev/null") if what == "device" else path


@pytest.mark.parametrize(
    "what",
    ["missing", "truncated gz", "damaged gz", "zip cut off", "encrypted zip", "tar cut off", "empty folder", "device"],
)
def test_what_cannot_be_read_is_a_format_error_of_one_line(tmp_path: Path, what: str) -> None:
    path = broken(tmp_path, what)
    with pytest.raises(FormatError) as error:
        contents(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_is_a_format_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TEXT)
    (tmp_path / "x").chmod(0)
    with pytest.raises(FormatError, match="ermission"):
        contents(tmp_path / "x")


@pytest.mark.parametrize("kind", ["gz", "zip", "tar"])
def test_what_grows_without_end_is_stopped(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LEAST", 1 << 20)
    path, zeros = tmp_path / "bomb", bytes(30 << 20)
    if kind == "gz":
        path.write_bytes(gzip.compress(zeros))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", zeros)
    else:
        tar(path, "w:gz", {"a": zeros})
    with pytest.raises(FormatError, match="too large"):
        contents(path)


def test_lines_are_text_without_ends_and_show_stray_bytes() -> None:
    data = b"\0\0a\r\nb\xff\xc3\xa4\n\nlast"
    assert list(lines(io.BytesIO(data))) == ["a", "b\\xffä", "", "last"]


def test_an_overlong_line_is_cut_and_the_next_one_is_whole() -> None:
    assert list(lines(io.BytesIO(b"x" * 1000 + b"\nshort\n" + b"y" * 1000), limit=10)) == ["x" * 10, "short", "y" * 10]


def test_an_overlong_line_is_never_held() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:
            assert len(buffer) <= 1 << 20
            self.asked += len(buffer)
            if self.asked > 100 << 20:
                return 0
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    assert [len(line) for line in lines(io.BufferedReader(Endless(), 1 << 18))] == [1_000_000]
