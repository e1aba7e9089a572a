"""Files become parts: archives, compression, bounds, and one line for what cannot be read."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


PACKS: list[Callable[[bytes], bytes]] = [gzip.compress, bz2.compress, lzma.compress, zstd]


@pytest.mark.parametrize("pack", [bytes, *PACKS])
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


@pytest.mark.parametrize("pack", PACKS)
def test_several_streams_one_behind_the_other_are_one_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "x").write_bytes(pack(TEXT) + pack(b"") + pack(TEXT * 100_000) + pack(b"end"))
    assert contents(tmp_path / "x") == {"": TEXT + TEXT * 100_000 + b"end"}


def test_a_skippable_frame_of_zstd_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x50\x2a\x4d\x18\5\0\0\0hello" + zstd(TEXT))
    assert contents(tmp_path / "x") == {"": TEXT}


NUMBERED = b"".join(b"line %d of a log, with a number of its own: %d\n" % (n, n * n) for n in range(40_000))  # 2 MB


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_of_a_file_that_was_cut_off_all_is_read_that_is_there(
    tmp_path: Path, pack: Callable[[bytes], bytes], share: float
) -> None:
    whole = pack(NUMBERED)
    (tmp_path / "x").write_bytes(whole[: max(7, int(len(whole) * share) - 1)])
    [part] = parts(tmp_path / "x")
    got, raw = [], io.BytesIO()
    with part.open() as stream, pytest.raises(FormatError, match="cannot be read") as error:
        got.extend(line.encode() + b"\n" for line in iter(lines(stream)))
    with part.open() as stream, pytest.raises(FormatError) as again:
        while data := stream.read1(1 << 23):
            raw.write(data)
    assert str(again.value) == str(error.value)
    assert NUMBERED.startswith(raw.getvalue())
    assert f" {len(raw.getvalue()):,} bytes with {raw.getvalue().count(10):,} whole lines" in str(error.value)
    assert error.value.line == raw.getvalue().count(b"\n")
    # of the compressed bytes at most one block is lost: 900 kB of text in bz2, 128 kB in zstd, little in the others
    block = {bz2.compress: 900_000, zstd: 132_000}.get(pack, 70_000)
    assert len(raw.getvalue()) >= min(share * len(NUMBERED) * 0.8, len(NUMBERED)) - block


def test_each_line_before_damage_is_handed_out(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(NUMBERED))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (tmp_path / "x").write_bytes(data)
    [part] = parts(tmp_path / "x")
    count = 0
    with part.open() as stream, pytest.raises(FormatError) as error:
        for _ in lines(stream):
            count += 1
    assert count == error.value.line > 10_000


def test_the_parts_say_which_files_can_be_read_in_ranges(tmp_path: Path) -> None:
    for name, data in {
        "a": TEXT,
        "b": gzip.compress(TEXT),
        "c": TEXT.decode().encode("utf-16"),
        "d": zstd(TEXT),
        "e": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", TEXT * 100)
    found = {part.name.removeprefix(f"{tmp_path}/"): part for part in parts(tmp_path)}
    assert {name: part.plain for name, part in found.items() if part.plain} == {n: tmp_path / n for n in ("a", "e")}
    assert (found["a"].size, found["z!a"].size, found["e"].size) == (len(TEXT), len(TEXT) * 100, 0)
    assert found["b"].size == (tmp_path / "b").stat().st_size


@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_utf_16_is_handed_out_as_utf_8(tmp_path: Path, code: str, pack: Callable[[bytes], bytes]) -> None:
    text = "date,größe,𝄞\r\n" * 50_000
    mark = codecs.BOM_UTF16_LE if code == "utf-16-le" else codecs.BOM_UTF16_BE
    (tmp_path / "x").write_bytes(pack(mark + text.encode(code)))
    assert contents(tmp_path / "x") == {"": text.encode()}
    for _, stream in files.streams(str(tmp_path / "x")):
        assert stream.readline() == "date,größe,𝄞\r\n".encode()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40), st.integers(1, 5))
def test_broken_utf_16_is_text_all_the_same(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "utf16"
    path.write_bytes(codecs.BOM_UTF16_LE + data)
    [part] = parts(path)
    with part.open() as stream:
        whole = stream.read()
    whole.decode()
    with part.open() as stream:  # however small the pieces
        assert b"".join(iter(lambda: stream.read1(size), b"")) == whole


class Given:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    files._standard_input.cache_clear()
    yield lambda data: monkeypatch.setattr(sys, "stdin", Given(data))
    files._standard_input.cache_clear()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_standard_input_is_a_file_that_can_be_read_again(
    piped: Callable[[bytes], None], pack: Callable[[bytes], bytes]
) -> None:
    piped(pack(TEXT * 400_000))
    for _ in range(2):
        [part] = parts("-")
        with part.open() as one, part.open() as other:
            assert (part.name, one.read(), other.readline()) == ("standard input", TEXT * 400_000, b"one\n")


def test_standard_input_may_be_an_archive(piped: Callable[[bytes], None]) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.log", TEXT)
    piped(data.getvalue())
    assert [(name, stream.readline()) for name, stream in files.streams("-")] == [("standard input!a.log", b"one\n")]


def test_nothing_on_standard_input_is_an_empty_file(piped: Callable[[bytes], None]) -> None:
    piped(b"")
    [part] = parts("-")
    with part.open() as stream:
        assert stream.read() == b""


def test_a_pipe_is_read_to_its_end_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "from deliverkit.files import parts; [p] = parts('-'); print(sum(1 for _ in p.open()), p.plain.parent.parent)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"x\n" * 3_000_000, capture_output=True, check=True,
                          env=os.environ | {"TMPDIR": str(tmp_path)})  # fmt: skip
    assert done.stdout.decode().split() == ["3000000", str(tmp_path)]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_standard_input_is_a_format_error(monkeypatch: pytest.MonkeyPatch) -> None:
    files._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FormatError, match="standard input: cannot be read"):
        list(parts("-"))
