"""The history keeps what it was given, once, and whole or not at all, whoever reads it."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deliverkit.errors import FormatError, SchemaError
from deliverkit.history import History
from deliverkit.schema import ATTEMPTS, PROBES

DAY = pd.Timestamp("2026-11-24", tz="UTC")
Need = Callable[[str, str], str]


def log(rows: int, start: int = 0, source: str = "mail.log", **other: Any) -> pd.DataFrame:
    """Delivery lines as read_log gives them, 10 hours apart; `line` runs on from `start`."""
    made = [
        {"time": DAY + pd.Timedelta(hours=10 * n), "origin": "log", "recipient": f"r{n}@d.example", "port": 25 + n % 2,
         "host": "mx.d.example", "address": "192.0.2.1", "outcome": "passed", "text": f"250 2.0.0 Ok: queued as Q{n}",
         "queue_id": f"4cA{n}", "source": source, "line": n + 1, "blocked": False, "delay_s": n / 3}
        for n in range(start, start + rows)
    ]  # fmt: skip
    return ATTEMPTS.build(made).assign(**other)


def attempt(**known: Any) -> pd.DataFrame:
    return ATTEMPTS.build([{"time": DAY, "origin": "log", "line": 7, "host": "mx.d.example", "address": "192.0.2.1",
                            "port": 25, "outcome": "deferred", "text": "connect to mx.d.example[192.0.2.1]:25: refused",
                            **known}])  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def names(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


# --- what comes back


def test_what_is_added_comes_back_sorted_by_time_with_the_types_of_the_schema(history: History) -> None:
    given = log(20)
    assert history.add(given.sample(frac=1, random_state=1)) == 20
    pd.testing.assert_frame_equal(history.attempts(), given)


def test_probes_keep_their_columns_and_attempts_do_not_gain_any(history: History) -> None:
    probe = PROBES.build([{"time": DAY, "origin": "probe", "port": 587, "verdict": "open", "tls_s": 0.25}])
    history.add(probe)
    history.add(log(3))
    pd.testing.assert_frame_equal(history.attempts(origin="probe"), probe)
    assert list(history.attempts()) == PROBES.names
    assert list(history.attempts(origin="log")) == ATTEMPTS.names


def test_an_empty_history_gives_empty_frames(history: History, tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(history.attempts(), ATTEMPTS.empty())
    assert list(history.days()) == ["day", "rows", "files", "bytes"] and history.days().empty
    assert history.attempts(columns=["port"]).dtypes.to_dict() == {"port": pd.Int64Dtype()}
    assert history.add(log(0)) == 0 and history.add([]) == 0
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        ({"since": "2026-11-25"}, [4, 5, 6]),
        ({"until": "2026-11-25"}, [1, 2, 3]),
        ({"since": "2026-11-24T10:00Z", "until": "2026-11-25T06:00:00.000001+00:00"}, [2, 3, 4]),
        ({"since": DAY.to_pydatetime().date(), "until": pd.Timestamp("2026-11-24T11:00", tz="Europe/Berlin")}, [1]),
        ({"port": 25}, [1, 3, 5]),
        ({"recipient": ["r1@d.example", "r4@d.example", "nobody"]}, [2, 5]),
        ({"client": "acme"}, [1, 2]),
        ({"client": None}, [3, 4, 5, 6]),
        ({"client": ["acme", None], "port": 26}, [2, 4, 6]),
        ({"client": []}, []),
        ({"time": DAY}, [1]),
        ({"blocked": True}, []),
    ],
)
def test_attempts_come_by_time_and_by_values(history: History, asked: dict[str, Any], lines: list[int]) -> None:
    rows = log(6)
    rows.loc[:1, "client"] = "acme"
    history.add(rows)
    assert history.attempts(**asked)["line"].tolist() == lines
    assert history.attempts(**asked, columns=["line"])["line"].tolist() == lines


def test_only_files_of_the_days_asked_for_are_opened(history: History, tmp_path: Path) -> None:
    history.add(log(6))
    for file in (tmp_path / "history").glob("day=2026-11-24/*"):
        file.write_bytes(b"no longer Parquet")
    assert len(history.attempts(since="2026-11-25")) == 3


def test_days_count_rows_files_and_bytes(history: History, tmp_path: Path) -> None:
    history.add(log(4))
    history.add(log(5).assign(client="other"))
    history.add(attempt(time=None))
    days = history.days()
    assert days["day"].fillna("none").tolist() == ["2026-11-24", "2026-11-25", "none"]
    assert days[["rows", "files"]].to_numpy().tolist() == [[6, 2], [3, 2], [1, 1]]
    assert days["bytes"].sum() == sum(f.stat().st_size for f in (tmp_path / "history").glob("day=*/*"))


# --- nothing twice


@pytest.mark.parametrize("source", ["mail.log", "mail.log.1", "/var/log/old/mail.log.2.gz"])
def test_a_log_that_grew_or_was_renamed_adds_only_what_is_new(history: History, source: str) -> None:
    assert history.add(log(10)) == 10
    assert history.add(log(10, source=source)) == 0
    assert history.add(log(15, source=source)) == 5
    assert history.add(log(3, 9, source=source)) == 0
    assert history.attempts()["line"].tolist() == list(range(1, 16))


def test_the_log_of_another_day_with_the_same_name_is_new(history: History) -> None:
    history.add(log(10))
    other = log(10).assign(time=lambda rows: rows["time"] + pd.Timedelta("7D"))
    assert history.add(other) == 10


def test_other_judgements_and_places_do_not_make_another_row(history: History) -> None:
    history.add(log(5))
    again = log(5).assign(blocked=True, category="other", rule="new", kind="hard", step="rules", line=99, delay_s=0)
    assert history.add(again) == 0


@pytest.mark.parametrize("name", ["time", "recipient", "port", "outcome", "text", "queue_id", "client", "vantage"])
def test_what_happened_and_whose_it_was_makes_another_row(history: History, name: str) -> None:
    history.add(log(5))
    values = {"time": DAY - pd.Timedelta("1h"), "port": 2525}
    assert history.add(log(5).assign(**{name: values.get(name, "else")})) == 5


def test_equal_rows_of_one_addition_stay_as_many_as_they_are(history: History) -> None:
    row = log(1)
    twice, thrice = pd.concat([row] * 2), pd.concat([row] * 3)
    assert [history.add(frame) for frame in (twice, row, twice, thrice, [row, row, row, row])] == [2, 0, 0, 1, 1]


def test_a_message_id_found_in_an_earlier_file_changes_nothing(history: History) -> None:
    history.add(log(5))
    assert history.add(log(5, message_id="<m@d.example>")) == 0


def test_texts_do_not_run_into_each_other(history: History) -> None:
    rows = [attempt(host=host, address=address) for host, address in (("a,b", "c"), ("a", "b,c"), ("", "a,bc"))]
    rows += [attempt(host=None, address="a"), attempt(host="", address="a"), attempt(host="a", address=None)]
    assert [history.add(row) for row in rows] == [1] * 6


def test_a_try_that_gets_its_recipient_later_is_one_try(history: History) -> None:
    joined = attempt(recipient="r@d.example", queue_id="4cA1", message_id="<m@d.example>")
    history.add(log(3))
    assert history.add([attempt(), attempt(line=8, text="another")]) == 2
    assert history.add(pd.concat([log(3), joined, attempt(line=8, text="another")])) == 0
    assert history.attempts(line=7)["recipient"].tolist() == ["r@d.example"]
    assert history.add(attempt()) == 0  # an older copy of the log
    assert history.add(joined) == 0
    assert len(history.attempts()) == 5


def test_a_history_of_one_try_can_be_replaced_and_still_be_read_by_others(history: History, tmp_path: Path) -> None:
    history.add(attempt())
    assert history.add(attempt(recipient="r@d.example")) == 0
    assert raw_counts(tmp_path / "history") == (1, 1)


def test_two_tries_of_one_second_are_two(history: History) -> None:
    assert [history.add(attempt(line=n)) for n in (7, 8)] == [1, 1]
    assert history.add(attempt(line=7, recipient="r@d.example")) == 0
    assert history.attempts(recipient=None)["line"].tolist() == [8]


def repeats(**known: Any) -> pd.DataFrame:
    """The delivery line that repeats `attempt`."""
    return attempt(recipient="r@d.example", queue_id="4cA9", source="mail.log", **{"line": 9, **known})


def test_a_try_that_the_line_of_its_recipient_repeats_goes_when_that_line_comes(history: History) -> None:
    other, grown = attempt(line=8, source="mail.log", address="192.0.2.2"), repeats(text="refused")
    assert history.add([log(3), attempt(source="mail.log"), other]) == 5
    for _ in range(2):
        assert history.add([log(3), other, grown]) == 0
        assert sorted(history.attempts()["line"]) == [1, 2, 3, 8, 9]


@pytest.mark.parametrize(
    "later",
    [
        repeats(),  # of another server, or of a log from its middle on
        pd.concat([log(3), repeats(line=6)]),
        pd.concat([log(3), repeats(client="acme")]),
        pd.concat([log(3), repeats(address="192.0.2.2")]),
        pd.concat([log(3), repeats(outcome="passed")]),
        pd.concat([log(2), repeats()]),
        pd.concat([log(3), attempt(), repeats()]),
    ],
)
def test_a_try_stays_where_nothing_shows_that_a_line_repeats_it(history: History, later: pd.DataFrame) -> None:
    history.add([log(3), attempt(source="mail.log")])
    assert history.add(later) == 1
    assert history.attempts(recipient=None)["line"].tolist() == [7]


def test_real_logs_that_grow_at_a_bad_place_end_as_the_whole_log(shared: Path, root: Path, tmp_path: Path) -> None:
    import deliverkit as dk

    for name, path, cut in (("postfix", shared / "logs/postfix/maillog_iso.log.gz", 5000),
                            ("exim", root / "data/exim/mainlog", 70)):  # fmt: skip
        raw, growing = path.read_bytes(), tmp_path / f"{name}.log"
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines(keepends=True)
        history = History(tmp_path / name)
        growing.write_bytes(b"".join(lines[:cut]))
        added = history.add(dk.read_log(growing))
        growing.write_bytes(b"".join(lines))
        whole = dk.read_log(growing)
        assert added + history.add(whole) == len(whole) == len(history.attempts())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=5), st.lists(st.integers(1, 9), min_size=30, max_size=30))
def test_in_whatever_pieces_a_log_comes_the_history_is_the_same(cuts: list[int], repeats: list[int]) -> None:
    whole = log(30).assign(text=[f"text {n // 3}" for n in repeats], recipient="r@d.example", queue_id=None, time=DAY)
    whole.loc[::4, "recipient"] = pd.NA
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        history = History(folder)
        for cut in sorted(cuts):
            history.add(whole[:cut])
        history.add(whole[i : i + 7] for i in range(0, 30, 7))
        expected = ATTEMPTS.build(whole).sort_values("line", ignore_index=True)
        made = history.attempts().sort_values("line", ignore_index=True)
        pd.testing.assert_frame_equal(made, expected)


def test_a_real_log_that_grows_line_by_line_ends_as_the_whole_log(root: Path, tmp_path: Path) -> None:
    import deliverkit as dk

    lines = (root / "data/postfix/office.log").read_bytes().splitlines(keepends=True)
    grown, growing = History(tmp_path / "grown"), tmp_path / "mail.log"
    for size in [*sorted(random.Random(4).sample(range(len(lines)), 12)), len(lines)]:
        growing.write_bytes(b"".join(lines[:size]))
        try:
            grown.add(dk.read_log(growing, year=2026))
        except FormatError:
            assert size < 20  # nothing in it yet that has a format
    whole = dk.read_log(growing, year=2026)
    key = ["line", "recipient", "text", "port", "outcome", "queue_id"]
    made = grown.attempts()[key].sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(made, whole[key].sort_values(key, ignore_index=True))


# --- block by block


def test_many_frames_are_one_addition_and_a_failure_among_them_adds_nothing(history: History, tmp_path: Path) -> None:
    assert history.add(log(5, start) for start in range(0, 50, 5)) == 50
    before = names(tmp_path)

    def broken() -> Iterator[pd.DataFrame]:
        yield log(500, 50)
        raise FormatError("mail.log.gz", "ends too early")

    with pytest.raises(FormatError, match="ends too early"):
        history.add(broken())
    assert names(tmp_path) == before
    assert len(history.attempts()) == 50


def test_large_additions_are_written_in_several_files(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliverkit.history._BLOCK", 5_000)
    assert history.add(log(5, start) for start in range(0, 200, 5)) == 200
    assert history.days()["files"].max() > 1
    pd.testing.assert_frame_equal(history.attempts(), log(200))
    assert history.add(log(200)) == 0


# --- other readers


def raw_counts(folder: Path) -> tuple[int, int]:
    """Rows as DuckDB and as Dask see them."""
    duckdb, dd = pytest.importorskip("duckdb"), pytest.importorskip("dask.dataframe")
    import dask

    query = f"select count(text), count(*) from read_parquet('{folder}/day=*/*.parquet', hive_partitioning=true)"
    [(texts, rows)] = duckdb.sql(query).fetchall()
    assert texts == rows
    with dask.config.set(scheduler="synchronous"):
        return rows, len(dd.read_parquet(folder).compute())


def test_duckdb_and_dask_read_the_folder_as_it_is(history: History, tmp_path: Path) -> None:
    import dask

    folder = tmp_path / "history"
    history.add(log(6))
    history.add(PROBES.build([{"time": DAY, "origin": "probe", "port": 587, "verdict": "open", "text": "220 hi"}]))
    duckdb, dd = pytest.importorskip("duckdb"), pytest.importorskip("dask.dataframe")
    query = f"from read_parquet('{folder}/day=*/*.parquet', hive_partitioning=true)"
    assert duckdb.sql(f"select count(*) {query} where day = '2026-11-24' and verdict is null").fetchall() == [(3,)]
    assert duckdb.sql(f"select min(time) = '2026-11-24 00:00:00+00', sum(port) {query}").fetchall() == [(True, 740)]
    history.add(attempt(time=None))
    assert duckdb.sql(f"select count(*) {query} where day = 'unknown'").fetchall() == [(1,)]
    with dask.config.set(scheduler="synchronous"):
        frame = dd.read_parquet(folder)
        assert frame["port"].sum().compute() == 740 + 25
        assert frame[frame["day"] == "2026-11-24"]["verdict"].count().compute() == 1
        assert str(frame["time"].dtype) == "datetime64[us, UTC]"


# --- killed, at once, full


CHILD = textwrap.dedent("""
    import sys
    sys.path.insert(0, {tests!r})
    from test_history import *
    h = History(sys.argv[1])
    {work}
""")


def child(work: str) -> list[str]:
    return [sys.executable, "-B", "-c", CHILD.format(tests=str(Path(__file__).parent), work=work)]


SEVERAL = "h.add(pd.concat([log(6), attempt(recipient='r@d.example')]))"  # three days, and a file is replaced
ONE = "h.add(log(3))"
KILLED = [(SEVERAL, "write", {3}), (SEVERAL, "mkdir", {3, 7}), (SEVERAL, "fsync", {3, 7}), (SEVERAL, "flock", {3, 7}),
          (SEVERAL, "rename", {7}), (SEVERAL, "unlink", {7}), (SEVERAL, "rmdir", {7}),
          (ONE, "write", {3}), (ONE, "fsync", {3, 4}), (ONE, "rename", {4}), (ONE, "unlink", {4})]  # fmt: skip


@pytest.mark.parametrize(("work", "call", "states"), KILLED)
def test_a_writer_killed_at_any_system_call_leaves_the_old_or_the_new(
    tmp_path: Path, need: Need, work: str, call: str, states: set[int]
) -> None:
    strace, old, new = need("strace", "strace"), tmp_path / "old", 4 if work == ONE else 7
    History(old).add(pd.concat([log(2), attempt()]))
    seen = set()
    for number in range(1, 100):
        folder = shutil.copytree(old, tmp_path / str(number))
        kill = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
        trace = [strace, "-qq", "-o", os.devnull, "-f", *kill, *child(work), str(folder)]
        done = subprocess.run(trace, capture_output=True, text=True, check=False)
        if "ptrace" in done.stderr:
            pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
        if done.returncode == 0:
            break
        assert done.returncode in (-9, 137), done.stderr
        untouched = raw_counts(folder)
        rows = len(History(folder).attempts())
        assert rows in (3, new) and (rows, rows) == raw_counts(folder)
        assert work == SEVERAL or untouched in ((3, 3), (new, new))
        assert History(folder).attempts(line=7)["recipient"].isna().all() == (rows == 3 or work == ONE)
        assert not list((folder / ".add").iterdir())
        assert History(folder).add(log(6)) == 7 - rows
        seen.add(rows)
    assert done.returncode == 0 and seen == states


def test_a_committed_addition_is_read_before_its_files_have_moved(history: History, tmp_path: Path) -> None:
    folder = tmp_path / "history"
    history.add(log(2))
    history.add(log(6))
    stage = folder / ".add" / "20261125T000000-0"
    [moved] = folder.glob("day=2026-11-25/*.parquet")
    (stage / moved.parent.name).mkdir(parents=True)
    moved.rename(stage / moved.parent.name / f"{moved.stem}.new")
    assert len(history.attempts()) == 4
    (stage / "committed").touch()
    assert len(history.attempts()) == 6
    assert raw_counts(folder) == (4, 4)
    assert len(History(folder).attempts()) == 6
    assert raw_counts(folder) == (6, 6)


def test_writers_at_once_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    work = child("for n in range(0, 60, 10): h.add([log(10, n), log(5, n + 1000 * int(sys.argv[2]))])")
    writers = [subprocess.Popen([*work, str(folder), str(n)]) for n in (1, 2, 3)]
    reader, counts = History(folder), []
    while any(writer.poll() is None for writer in writers):
        counts.append(len(History(folder).attempts(columns=["line"])))
        reader.days()
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(reader.attempts()) == 60 + 3 * 30
    assert reader.attempts().duplicated(["line", "recipient"]).sum() == 0
    assert counts == sorted(counts) and all(count % 5 == 0 for count in counts)  # only whole additions


def test_the_files_of_a_writer_at_work_are_left_alone(history: History, tmp_path: Path) -> None:
    def frames() -> Iterator[pd.DataFrame]:
        yield log(5)
        assert History(tmp_path / "history").attempts().empty
        yield log(5, 5)

    assert history.add(frames()) == 10


def test_a_writer_waits_for_another_only_so_long(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliverkit.history._WAIT_S", 0.05)

    def frames() -> Iterator[pd.DataFrame]:
        yield log(5)
        with pytest.raises(FormatError, match="another process has been writing"):
            history.add(log(5))

    assert history.add(frames()) == 5


FULL = """
import itertools
h.add(log(4))
top = Path(sys.argv[1])
before, results = names(top), set()
large = log(40).assign(text=[f"{random.Random(n).random()}" * 50 for n in range(40)], client="acme")
for free in itertools.count(0, 16 << 10):
    with (top / ".filler").open("wb") as filler:
        room = os.statvfs(top)
        filler.write(bytes(room.f_bavail * room.f_frsize - free))
    try:
        added = h.add(large)
    except FormatError as problem:
        assert "No space left on device" in str(problem), problem
        assert names(top) - {".filler"} == before and len(h.attempts()) == 4
        results.add("full")
    else:
        assert len(h.attempts()) == 4 + added == 44
        break
print(*results, len(h.days()) > 2)
"""


def test_a_full_disk_is_said_and_leaves_the_old_state(tmp_path: Path, need: Need) -> None:
    mount = f'mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec "$@"'
    command = [
        need("unshare", "util-linux"),
        "--mount",
        *([] if os.geteuid() == 0 else ["-r"]),
        "sh",
        "-c",
        mount,
        "sh",
    ]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a file system of one's own cannot be mounted here")
    work = child(textwrap.indent(FULL, "    ").strip())
    work[-1] = CHILD.format(tests=str(Path(__file__).parent), work="pass") + FULL
    done = subprocess.run([*command, *work, str(tmp_path / "history")], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["full", "True"], done.stderr


# --- in a bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    """What reaches a bucket of moto's S3 server on loopback."""
    server, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer("127.0.0.1", 0)
    running.start()
    where = "http://{}:{}".format(*running.get_host_and_port())
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=where, **keys).create_bucket(Bucket="kept")
    yield {"key": "a", "secret": "b", "endpoint_url": where}
    running.stop()


def test_a_bucket_keeps_a_history_as_a_folder_does(bucket: dict[str, Any]) -> None:
    import s3fs

    history = History("s3://kept/over/time", **bucket)
    assert history.attempts().empty
    assert history.add([log(3), attempt()]) == 4
    assert history.add([log(6), attempt(recipient="r@d.example")]) == 3
    assert history.add(log(6, source="mail.log.1")) == 0
    again = History("s3://kept/over/time", **bucket)
    assert again.attempts(line=7)["recipient"].tolist() == ["r@d.example"]
    assert again.attempts(since="2026-11-25")["line"].tolist() == [4, 5, 6]
    assert again.days()["rows"].tolist() == [4, 2, 1]
    files = s3fs.S3FileSystem(**bucket).find("kept/over")
    assert all(file.startswith("kept/over/time/day=") for file in files)


def test_a_bucket_that_is_not_there_is_said(bucket: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="s3://nowhere/x: cannot be"):
        History("s3://nowhere/x", **bucket).add(log(1))


def test_an_addition_to_a_store_that_fails_at_any_step_is_there_whole_or_not_at_all() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    steps = ["_open", "cp_file", "rm_file"]

    class Died(BaseException):
        pass

    def failing(at: int) -> Any:
        left = [at]

        def limited(real: Any) -> Any:
            def step(*given: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Died
                return real(*given, **named)

            return step

        patch = pytest.MonkeyPatch()
        for name in steps:
            patch.setattr(type(memory), name, limited(getattr(type(memory), name)))
        return patch

    states = []
    for number in range(1000):
        url = f"memory://history{number}"
        History(url).add(log(2))
        dying, patch = History(url), failing(number)
        try:
            dying.add(log(6))
        except BaseException:  # noqa: BLE001 - as if the process had died there
            whole = False
        else:
            whole = True
        patch.undo()
        states.append(len(History(url).attempts()))
        assert states[-1] in (2, 6)
        assert History(url).add(log(6)) == 6 - states[-1]
        assert len(History(url).attempts()) == 6
        memory.rm(f"/history{number}", recursive=True)
        if whole:
            break
    assert states == sorted(states) and set(states) == {2, 6}


def test_what_a_dead_writer_left_in_a_store_goes_a_day_later() -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    history = History("memory://left")
    history.add(log(2))
    young = f"{pd.Timestamp.now('UTC'):%Y%m%dT%H%M%S}-0"
    for stage in ("20200101T000000-0", young):
        memory.pipe_file(f"/left/.add/{stage}/day=2026-11-24/{stage}-0.new", b"PAR1 half of it")
    assert history.add(log(4)) == 2
    assert [Path(file).parts[3] for file in memory.find("/left/.add")] == [young]
    memory.rm("/left", recursive=True)


# --- wrong and hostile


def test_a_login_in_a_url_is_not_shown() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(FormatError) as said:
        History("nosuchscheme://user:secret@host/x")
    assert "secret" not in str(said.value) and "nosuchscheme://host/x" in str(said.value)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (log(1).drop(columns="time"), "column 'time' is missing"),
        (log(1).astype({"time": "string"}), "column 'time' should be datetime"),
        (log(1).assign(port="smtp"), "column 'port' should be Int64"),
        (log(1).assign(blocked=3), "column 'blocked' should be boolean"),
        (log(1).assign(colour="red"), "there is no column 'colour'"),
        (pd.concat([log(1), log(1)[["port"]]], axis=1), "column 'port' is there twice"),
        (log(1).assign(text=pd.array(["\ud800"], dtype="string[python]")), "surrogates not allowed"),
        (log(1).assign(text=pd.Series(["\ud800"], dtype=object)), "surrogates not allowed"),
        (log(1).assign(time=pd.to_datetime(np.array([-(10**17)], "M8[us]"), utc=True)), "a year that is not 1 to 9999"),
        (["time"], "a pandas frame is wanted, this is a str"),
        (3, "a pandas frame is wanted, this is a int"),
        ("mail.log", "a pandas frame is wanted, this is a str"),
        ([log(1), None], "a pandas frame is wanted, this is a NoneType"),
    ],
)
def test_a_frame_that_is_none_of_ours_is_refused_and_changes_nothing(
    history: History, frame: Any, said: str, tmp_path: Path
) -> None:
    history.add(log(2))
    before = names(tmp_path)
    with pytest.raises(SchemaError, match=said):
        history.add(frame)
    assert names(tmp_path) == before and len(history.attempts()) == 2


@pytest.mark.parametrize(
    "asked",
    [{"since": "yesterday"}, {"until": "NaT"}, {"since": "12000-01-01"}, {"since": []}, {"columns": ["colour"]},
     {"colour": "red"}, {"port": "25"}, {"port": [25, "x"]}, {"client": 5}, {"text": "\ud800"}, {"blocked": "yes"},
     {"client": [["a"]]}, {"row_id": 1}],
)  # fmt: skip
def test_a_question_that_cannot_be_is_refused(history: History, asked: dict[str, Any]) -> None:
    history.add(log(2))
    with pytest.raises(SchemaError):
        history.attempts(**asked)


@pytest.mark.parametrize("text", ["\0", "a\0b", "x" * 10_000_000, "\r\n\x1b[2J", "=1+1", "\U0010ffff", ""])
def test_any_text_comes_back_as_it_was(history: History, text: str) -> None:
    rows = log(2).assign(text=text, recipient=text)
    assert (history.add(rows), history.add(rows)) == (2, 0)
    assert history.attempts()["text"].tolist() == [text] * 2
    assert len(history.attempts(recipient=text)) == 2


@pytest.mark.parametrize(
    "when", ["0001-01-01", "1969-12-31T23:59:59.999999", "1900-06-01", "9999-12-31T23:59:59.999999"]
)
def test_far_days_have_their_folder(history: History, tmp_path: Path, when: str) -> None:
    stamp = pd.Timestamp(when).as_unit("us").tz_localize("UTC")
    assert [history.add(attempt(time=stamp)) for _ in range(2)] == [1, 0]
    assert history.days()["day"].tolist() == [when[:10]]
    assert history.attempts(since=when[:10])["time"].tolist() == [stamp]
    assert history.attempts(until=when[:10]).empty
    assert raw_counts(tmp_path / "history") == (1, 1)


def test_a_damaged_file_is_named_wherever_it_is_damaged(history: History, tmp_path: Path) -> None:
    history.add(log(200).assign(time=DAY, text=[f"text {n * n}" for n in range(200)]))
    history.add(log(3, 1000))
    [small, large] = sorted((tmp_path / "history").glob("day=*/*"), key=lambda f: f.stat().st_size)[-2:]
    whole, good, said = large.read_bytes(), history.attempts(), 0
    for at in [*range(0, len(whole), len(whole) // 150), len(whole) - 2]:
        large.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            made = history.attempts()
        except FormatError as problem:
            assert large.name in str(problem) and small.name not in str(problem)
            said += 1
        else:
            assert len(made) == len(good)
    assert said > 75
    large.write_bytes(whole[:-100])
    for question in (history.attempts, history.days, lambda: history.add(log(4))):
        with pytest.raises(FormatError, match=large.name):
            question()


def test_a_parquet_file_of_somebody_else_is_named(history: History, tmp_path: Path) -> None:
    history.add(log(3))
    other = tmp_path / "history/day=2026-11-24/other.parquet"
    pd.DataFrame({"time": [DAY], "port": ["smtp"]}).to_parquet(other)
    with pytest.raises(FormatError, match=r"other\.parquet"):
        history.attempts()
    log(1, 50).to_parquet(other)  # one of the right types is part of it
    assert len(history.attempts()) == 4 and history.add(log(5)) == 2


@pytest.mark.parametrize("stray", ["notes.txt", "2026/mail.log", "days=1/x.parquet"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, stray: str) -> None:
    (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stray).write_text("mine", encoding="utf-8")
    with pytest.raises(FormatError, match=f"something else than a history: '{stray.partition('/')[0]}'"):
        History(tmp_path)


@pytest.mark.parametrize("place", [None, 5, b"/x", ["a"]])
def test_a_place_that_is_no_path_is_refused(place: Any) -> None:
    with pytest.raises(FormatError, match="neither a folder nor a URL"):
        History(place)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("mine", encoding="utf-8")
    with pytest.raises(FormatError):
        History(tmp_path / "history").add(log(1))
    with pytest.raises(FormatError):
        History(tmp_path / "history" / "below").add(log(1))


def test_hidden_files_and_days_taken_away_do_no_harm(history: History, tmp_path: Path) -> None:
    folder = tmp_path / "history"
    history.add(log(6))
    (folder / ".DS_Store").touch()
    shutil.rmtree(folder / "day=2026-11-24")
    assert len(History(folder).attempts()) == 3
    assert history.add(log(7)) == 4


def test_who_may_only_read_reads(tmp_path: Path, need: Need) -> None:
    folder = tmp_path / "history"
    History(folder).add(log(6))
    (folder / ".add/20200101T000000-0/day=2026-11-24").mkdir(parents=True)
    mount = f'mount --bind -o ro {folder} {folder} && mount -o remount,bind,ro {folder} && exec "$@"'
    command = [
        need("unshare", "util-linux"),
        "--mount",
        *([] if os.geteuid() == 0 else ["-r"]),
        "sh",
        "-c",
        mount,
        "sh",
    ]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a file system of one's own cannot be mounted here")
    code = child("pass")[-1] + "print(len(h.attempts()))\ntry: h.add(log(9))\nexcept FormatError as said: print(said)"
    done = subprocess.run(
        [*command, sys.executable, "-B", "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("6\n") and "cannot be written" in done.stdout, done.stderr


def test_files_are_packed_and_say_what_is_in_them(history: History, tmp_path: Path) -> None:
    history.add(log(300).assign(time=DAY))
    [file] = (tmp_path / "history").glob("day=*/*.parquet")
    about = pq.read_metadata(file).row_group(0)
    columns = {about.column(i).path_in_schema: about.column(i) for i in range(about.num_columns)}
    assert list(columns) == [*PROBES.names, "row_id"]
    assert columns["text"].compression == "ZSTD"
    assert (columns["port"].statistics.min, columns["port"].statistics.max) == (25, 26)
