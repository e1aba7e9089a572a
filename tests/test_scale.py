"""Frames over several workers give what one frame gives, however they are cut and whoever dies on the way."""

from __future__ import annotations

import datetime
import gzip
import http.server
import lzma
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import deliverkit as dk
from deliverkit import scale
from deliverkit.classify import classify
from deliverkit.errors import FormatError, SchemaError
from deliverkit.files import parts
from deliverkit.schema import ATTEMPTS

distributed = pytest.importorskip("distributed", reason='needs python -m pip install "deliverkit[scale]"')
psutil = pytest.importorskip("psutil")  # distributed needs it
dd = pytest.importorskip("dask.dataframe", reason='needs python -m pip install "deliverkit[scale]"')

ANALYSES: dict[str, Callable[[Any], pd.DataFrame]] = {
    "block rates": dk.block_rates,
    "block rates without a group": lambda frame: dk.block_rates(frame, by=None),
    "block rates by two, one with gaps": lambda frame: dk.block_rates(frame, by=["client", "port"]),
    "block rates by week": lambda frame: dk.block_rates(frame, by=["week", "operator"]),
    "funnel": dk.funnel,
    "funnel by day": lambda frame: dk.funnel(frame, by="day"),
    "funnel without a group": lambda frame: dk.funnel(frame, by=None),
    "bounce rates": dk.bounce_rates,
    "bounce rates by campaign": lambda frame: dk.bounce_rates(frame, by="campaign"),
    "bounce rates by host and hour": lambda frame: dk.bounce_rates(frame, by=["host", "hour"]),
}


def attempts(size: int, *origins: str) -> pd.DataFrame:
    """Attempts of all sorts: several of a message, spelled in several ways, with ties in time and with gaps."""
    pick = np.random.default_rng(size)

    def one(*words: Any) -> Any:
        return pd.array(pick.choice(np.array(words, dtype=object), size), dtype=ATTEMPTS_DTYPE[type(words[0])])

    number = pd.Series(pick.integers(0, size // 4, size)).astype("string")
    spelled = pd.Series(one("<{}@x.example>", "{}@x.example", "<{}@X.example>"))
    ids = pd.Series([form.format(n) for form, n in zip(spelled, number, strict=True)], dtype="string")
    made = pd.DataFrame({
        "time": pd.Timestamp("2026-03-01", tz="UTC") + pd.to_timedelta(pick.integers(0, 99, size) * 9000, unit="s"),
        "origin": one(*origins), "client": one("a", "b", None), "campaign": one("spring", None, "may"),
        "recipient": one("r@y.example", "R@y.example", "s@y.example", "t@t.example", None), "host": one("mx1", "mx2"),
        "port": one(25, 587, 465, None), "outcome": one("deferred", "passed", "failed", None),
        "attempted": one(True, True, False, None), "reply_code": one(250, 450, 550, 554), "queue_id": "q" + number,
        "status_code": one("5.1.1", "4.2.0", "5.7.1"), "step": one("connect", "rules", "relay", "inbox", None),
        "text": one("Connection timed out", "550 5.7.1 blocked using a blocklist", "user unknown"),
        "message_id": ids.where(pick.random(size) < 0.8),
    })  # fmt: skip
    return classify(made)


ATTEMPTS_DTYPE = {str: "string", int: "Int64", bool: "boolean"}


def as_it_is(part: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    return part if columns is None else part[columns]


def cut(frame: pd.DataFrame, partitions: int) -> Any:
    """A Dask frame cut anywhere; of 50 partitions many are empty."""
    pick = np.random.default_rng(partitions)
    ends = np.sort(pick.integers(0, len(frame), partitions - 1))
    if partitions > 7:
        ends = np.sort(np.concatenate([ends[::2], ends[::2]])[: partitions - 1])
    bounds = [0, *ends.tolist(), len(frame)]
    pieces = [frame.iloc[a:b] for a, b in pairwise(bounds)]
    return dd.from_map(as_it_is, pieces, meta=frame.iloc[:0])


FRAMES = {
    "a log": attempts(1500, "log"),
    "a log and the bounces": attempts(1200, "log", "log", "dsn"),
    "bounces alone": attempts(400, "dsn", "arf"),
    "exports and what says no origin": attempts(300, "export", None),
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A client of two worker processes on loopback."""
    with (
        distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None,
                                 host="127.0.0.1") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        yield client


@pytest.fixture
def client(workers: Any) -> Iterator[Any]:
    """What the workers are asked through, and what Dask asks by itself meanwhile."""
    with workers.as_current():
        yield workers


def same(made: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert type(made) is type(expected)
    pd.testing.assert_frame_equal(made, expected)
    assert made.attrs == expected.attrs


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("name", FRAMES)
def test_any_partitions_give_what_pandas_gives(client: Any, name: str, partitions: int) -> None:
    frame = cut(FRAMES[name], partitions)
    for analyse in ANALYSES.values():
        same(analyse(frame), analyse(FRAMES[name]))


def test_integers_that_dask_reads_as_floats_are_integers() -> None:
    frame, known = FRAMES["a log"], FRAMES["a log"].dropna(subset=["port"])[:9]
    floats, integers = (dict.fromkeys(["port", "reply_code"], kind) for kind in ("float64", "int64"))
    parts = [frame.astype(floats), known.astype(integers)]
    made, expected = dd.from_map(as_it_is, parts, meta=frame[:0].astype(integers)), pd.concat([frame, known])
    for analyse in [*ANALYSES.values(), lambda some: dk.block_rates(some, by="reply_code")]:
        same(analyse(made), analyse(expected))
    with pytest.raises(SchemaError, match="'port' should be Int64"):
        dk.block_rates(made.assign(port=25.5))


@pytest.mark.parametrize("analysis", ["block rates by week", "funnel", "bounce rates by campaign"])
@pytest.mark.parametrize("name", ["a log", "a log and the bounces"])
def test_many_and_empty_partitions_do_no_harm(client: Any, name: str, analysis: str) -> None:
    same(ANALYSES[analysis](cut(FRAMES[name], 50)), ANALYSES[analysis](FRAMES[name]))


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_frame_without_rows_gives_what_pandas_gives(client: Any, analysis: str) -> None:
    none = ATTEMPTS.empty()
    same(ANALYSES[analysis](dd.from_map(as_it_is, [none, none], meta=none)), ANALYSES[analysis](none))


def test_outcomes_are_counted_as_they_are(client: Any) -> None:
    ends = dk.outcomes(FRAMES["a log"])
    same(dk.bounce_rates(cut(ends, 5), by=["client", "week"]), dk.bounce_rates(ends, by=["client", "week"]))


def test_outcomes_of_a_dask_frame_are_those_of_pandas(client: Any) -> None:
    name = ["message_id", "queue_id", "recipient"]
    found = dk.outcomes(cut(FRAMES["a log and the bounces"], 5)).compute()
    expected = dk.outcomes(FRAMES["a log and the bounces"])
    found, expected = (some.sort_values(name, ignore_index=True) for some in (found, expected))
    pd.testing.assert_frame_equal(found, expected)


def test_without_a_cluster_the_threads_of_this_process_do_the_work() -> None:
    frame = FRAMES["a log and the bounces"]
    for analyse in ANALYSES.values():
        same(analyse(cut(frame, 7)), analyse(frame))


def test_categories_that_differ_between_partitions_are_joined() -> None:
    frame = FRAMES["a log"].astype({"host": "category"})
    parts = [frame.iloc[:9], frame.iloc[9:].assign(host=frame["host"].iloc[9:].cat.reorder_categories(["mx2", "mx1"]))]
    made = dk.block_rates(dd.from_map(as_it_is, parts, meta=frame.iloc[:0]), by="host")
    expected = dk.block_rates(FRAMES["a log"], by="host")
    pd.testing.assert_frame_equal(pd.DataFrame(made.astype({"host": "string"})), pd.DataFrame(expected))


def test_only_the_columns_that_count_are_asked_for() -> None:
    asked = []

    def part(rows: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
        asked.append(set(rows if columns is None else columns))
        return as_it_is(rows, columns)

    frame = FRAMES["a log"]
    dk.block_rates(dd.from_map(part, [frame[:500], frame[500:]], meta=frame[:0]))
    assert set.union(*asked) <= {"port", "blocked", "blocked_by", "attempted", "direction", "origin"}


@pytest.mark.parametrize("analyse", [dk.block_rates, dk.funnel, dk.bounce_rates])
def test_a_missing_column_is_named_before_anything_runs(analyse: Callable[[Any], Any]) -> None:
    def part(rows: pd.DataFrame) -> pd.DataFrame:
        raise AssertionError("nothing was to be read")

    frame = FRAMES["a log"][["port", "time"]]
    with pytest.raises(SchemaError, match="is missing; the frame has port, time"):
        analyse(dd.from_map(part, [frame, frame], meta=frame[:0]))


def test_who_uses_pandas_only_never_imports_dask() -> None:
    code = """if True:
        import sys, pandas as pd, deliverkit as dk, deliverkit.scale
        frame = pd.DataFrame({"port": [25], "blocked": [True], "step": "relay", "outcome": "failed"})
        dk.block_rates(frame), dk.funnel(frame)
        dk.bounce_rates(frame.assign(time=pd.Timestamp.now("UTC"), recipient="b@y.example"))
        print({"dask", "distributed", "fsspec"} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("missing", ["recipient", "message_id"])
def test_no_partition_takes_all_where_everything_has_one_name(missing: str) -> None:
    frame = FRAMES["a log"].drop(columns="queue_id").assign(message_id="<newsletter@x.example>")
    frame["recipient"] = "r" + pd.Series(range(len(frame)), dtype="string") + "@y.example"
    frame[missing] = frame[missing] if missing == "message_id" else pd.Series(pd.NA, frame.index, dtype="string")
    sizes = scale.together(cut(frame, 7)).map_partitions(len).compute()
    assert sizes.sum() == len(frame) and sizes.max() < len(frame) / 2


def until_killed(part: pd.DataFrame, marker: str | None) -> pd.DataFrame:
    """The part; where there is a marker to write, only who finds it written lives to return it."""
    if marker and not Path(marker).exists():
        Path(marker + ".new").write_text(str(os.getpid()))
        Path(marker + ".new").rename(marker)
        time.sleep(600)
    return part


def kill_when(marker: Path, killed: list[int]) -> None:
    while not marker.exists():
        time.sleep(0.01)
    killed.append(int(marker.read_text()))
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.parametrize("place", [0, 4, 7])
@pytest.mark.parametrize("analysis", ["block rates", "funnel", "bounce rates by campaign"])
def test_a_worker_killed_in_the_middle_changes_nothing(client: Any, tmp_path: Path, analysis: str, place: int) -> None:
    before = set(client.run(os.getpid).values())
    frame, marker, killed = FRAMES["a log and the bounces"], tmp_path / "runs", list[int]()
    parts = [frame.iloc[at : at + 150] for at in range(0, len(frame), 150)]
    markers = [str(marker) if at == place else None for at in range(len(parts))]
    killer = threading.Thread(target=kill_when, args=(marker, killed))
    killer.start()
    same(ANALYSES[analysis](dd.from_map(until_killed, parts, markers, meta=frame.iloc[:0])), ANALYSES[analysis](frame))
    killer.join()
    client.wait_for_workers(2)
    assert killed[0] in before and killed[0] not in client.run(os.getpid).values()


@pytest.fixture(scope="module")
def log(root: Path) -> Path:
    """A real log of Postfix, 330 kB."""
    return root / "data/postfix/cloud.log"


class Files(http.server.BaseHTTPRequestHandler):
    """Files by path, and by byte range unless `whole`; who asks for the byte `deadly` is killed, once."""

    files: ClassVar[dict[str, bytes]] = {}
    whole: ClassVar[bool] = False
    deadly: ClassVar[int | None] = None
    killed: ClassVar[list[int]] = []
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        data = self.files.get(self.path.partition("?")[0])
        if data is None:
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if not self.whole else None
        low, high = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked else (0, len(data))
        if asked and self.deadly is not None and low <= self.deadly < high:
            type(self).deadly = None
            mine = os.getpid()
            self.killed.append(
                next(c.pid for c in psutil.net_connections("tcp") if c.laddr == self.client_address and c.pid != mine)
            )
            os.kill(self.killed[0], signal.SIGKILL)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {low}-{high - 1}/{len(data)}")
        self.send_header("Content-Length", str(high - low))
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 10:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(data[low:high])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Where the files of `Files` are: a server on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Any, dict[str, str]]]:
    """An empty bucket `logs` of a real S3 server on loopback, and the storage options that lead there."""
    boto3, moto = (
        pytest.importorskip(n, reason='needs python -m pip install "moto[server]"') for n in ("boto3", "moto.server")
    )
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "made-up", "secret": "made-up", "endpoint_url": f"http://{host}:{port}"}
    s3 = boto3.client("s3", endpoint_url=options["endpoint_url"], region_name="us-east-1",
                      aws_access_key_id="made-up", aws_secret_access_key="made-up")  # fmt: skip
    s3.create_bucket(Bucket="logs")
    yield s3, options
    server.stop()


def whole(frame: Any) -> pd.DataFrame:
    return frame.compute().reset_index(drop=True)


@pytest.mark.parametrize("size", [1 << 30, 100_000, 7_000])
def test_a_log_reads_the_same_in_blocks_of_any_size(client: Any, log: Path, size: int) -> None:
    made = scale.read_log(log, client, block_size=size, year=2026)
    assert made.npartitions == -(-log.stat().st_size // size)
    same(whole(made), dk.read_log(log, year=2026))


def test_a_log_reads_the_same_cut_around_the_ends_of_its_lines(tmp_path: Path, log: Path) -> None:
    lines = log.read_bytes().split(b"\n")
    some = next(at for at, line in enumerate(lines) if b"connect to" in line and b"relay=" not in line)
    path = tmp_path / "short.log"
    path.write_bytes(b"\n".join(lines[some - 3 : some + 4]))
    expected = dk.read_log(path, year=2026)
    assert len(expected)
    ends = [found.end() for found in re.finditer(rb"\n", path.read_bytes())]
    for size in [64, *(end + more for end in ends for more in (-2, -1, 0, 1))]:
        same(whole(scale.read_log(path, block_size=size, year=2026)), expected)


def test_every_line_begins_in_one_range_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n\ntwo, a longer line\nthree\r\n\n" + b"x" * 40 + b"\nlast, without an end")
    [part] = parts(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for size in range(1, part.size + 2):
        jobs = scale._ranges(scale._Job(part, "postfix", None, ()), size)
        made = [b"".join(scale._blocks(job)) for job in jobs]
        starts = np.cumsum([0, *map(len, lines)])
        assert made == [b"".join(line for line, at in zip(lines, starts, strict=False) if job.start <= at < job.end)
                        for job in jobs]  # fmt: skip


@pytest.mark.parametrize("name", ["postfix/maillog_syslog.log.gz", "postfix/maillog_iso.log.gz", "exim/mainlog.gz",
                                  "opensmtpd/maillog.gz"])  # fmt: skip
def test_every_format_of_lines_reads_the_same_in_blocks(client: Any, shared: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "mail.log"
    path.write_bytes(gzip.decompress((shared / "logs" / name).read_bytes()))
    same(whole(scale.read_log(path, client, block_size=60_000, year=2026)), dk.read_log(path, year=2026))


def test_rotated_and_compressed_files_are_one_log(client: Any, log: Path, tmp_path: Path) -> None:
    data = log.read_bytes()
    third = data.index(b"\n", len(data) // 3) + 1
    with gzip.open(tmp_path / "mail.log.2.gz", "wb") as file:
        file.write(data[:third])
    (tmp_path / "mail.log.1.xz").write_bytes(lzma.compress(data[third : 2 * third]))
    (tmp_path / "mail.log").write_bytes(data[2 * third :])
    made = scale.read_log(tmp_path, client, block_size=30_000, year=2026)
    assert made.npartitions == 2 + -(-(len(data) - 2 * third) // 30_000)
    same(whole(made), dk.read_log(tmp_path, year=2026))
    assert len(made) == len(dk.read_log(log, year=2026))


def test_formats_that_are_not_of_lines_are_read_whole(client: Any, tmp_path: Path) -> None:
    header = "type,timeLogged,orig,rcpt,dsnAction,dsnStatus,dsnDiag,dsnMta\n"
    row = "b,2026-01-02 03:04:05+0000,a@x.example,b@y.example,failed,5.1.1 (bad),smtp;550 5.1.1 no,mx.y.example (1)\n"
    path = tmp_path / "acct.csv"
    path.write_text(header + row * 3)
    made = scale.read_log(path, client, block_size=50)
    assert made.npartitions == 1
    same(whole(made), dk.read_log(path))


def test_columns_and_rates_come_as_from_pandas(client: Any, log: Path) -> None:
    columns = ["recipient", "time", "port"]
    made = scale.read_log(log, client, columns=columns, block_size=50_000, year=2026)
    same(whole(made), dk.read_log(log, columns=columns, year=2026))
    made, expected = scale.read_log(log, client, block_size=50_000, year=2026), dk.read_log(log, year=2026)
    for analyse in ANALYSES.values():
        same(analyse(made), analyse(expected))


@pytest.mark.parametrize("damage", ["several years", "no line end", "nothing but other lines"])
def test_odd_logs_read_the_same_in_blocks(log: Path, tmp_path: Path, damage: str) -> None:
    lines = log.read_bytes().split(b"\n")[:200]
    if damage == "several years":
        days = [day for day in (b"Nov 10", b"Feb  3", b"Nov 12", b"Jan  1") for _ in range(50)]  # of three years
        lines = [day + line[6:] for day, line in zip(days, lines, strict=True)]
    path = tmp_path / "mail.log"
    path.write_bytes(b"\n".join(lines) + (b"" if damage == "no line end" else b"\n" + b"x" * 3000 + b"\n"))
    os.utime(path, (1_767_300_000, 1_767_300_000))  # 2026-01-01
    expected = dk.read_log(path)
    for size in (997, 5003):
        same(whole(scale.read_log(path, block_size=size)), expected)


def test_what_is_appended_later_is_not_read_and_what_is_cut_off_is_an_error(log: Path, tmp_path: Path) -> None:
    data, path = log.read_bytes(), tmp_path / "mail.log"
    half = data.index(b"\n", len(data) // 2) + 40  # in the middle of a line
    path.write_bytes(data[:half])
    made, expected = scale.read_log(path, block_size=40_000, year=2026), dk.read_log(path, year=2026)
    path.write_bytes(data)
    same(whole(made), expected)
    path.write_bytes(data[:1000])
    with pytest.raises(FormatError, match=r"has (become shorter|changed since)"):
        made.compute()
    path.write_bytes(data[:half].replace(b"\n", b" "))
    with pytest.raises(FormatError, match="has changed since"):
        made.compute()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_bucket_reads_as_a_folder_does(client: Any, bucket: Any, log: Path, tmp_path: Path, suffix: str) -> None:
    s3, options = bucket
    data = log.read_bytes() if not suffix else gzip.compress(log.read_bytes())
    s3.put_object(Bucket="logs", Key=f"mail{suffix}/host/mail.log{suffix}", Body=data)
    s3.put_object(Bucket="logs", Key=f"mail{suffix}/.hidden", Body=b"no log")
    url = f"s3://logs/mail{suffix}"
    made = scale.read_log(url, client, block_size=100_000, year=2026, storage_options=options)
    assert made.npartitions == (1 if suffix else 4)
    expected = dk.read_log(log, year=2026).assign(source=f"{url}/host/mail.log{suffix}").astype({"source": "string"})
    same(whole(made), expected)
    same(dk.block_rates(made), dk.block_rates(expected))
    with pytest.raises(FormatError, match="no file at this address"):
        scale.read_log("s3://logs/nothing", client, storage_options=options)


def test_a_server_with_tls_gives_ranges_of_a_file(client: Any, site: str, log: Path, tmp_path: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp", reason='needs python -m pip install "deliverkit[scale]"')
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    day = datetime.timedelta(days=1)
    certificate = made.not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256())
    both = certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both.pem").write_bytes(both)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    Files.files["/mail.log"] = log.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}/mail.log"
        only = {"ssl": aiohttp.Fingerprint(certificate.fingerprint(hashes.SHA256()))}
        frame = whole(scale.read_log(url, client, block_size=100_000, year=2026, storage_options=only))
        server.shutdown()
    same(frame, dk.read_log(log, year=2026).assign(source=url).astype({"source": "string"}))


def test_a_web_server_gives_ranges_of_a_file(client: Any, site: str, log: Path) -> None:
    Files.files["/mail.log"] = log.read_bytes()
    url = site.replace("//", "//user:secret@")
    made = whole(scale.read_log(f"{url}/mail.log?signature=secret", client, block_size=100_000, year=2026))
    same(made, dk.read_log(log, year=2026).assign(source=f"{site}/mail.log").astype({"source": "string"}))


def test_a_worker_killed_while_it_reads_changes_nothing(client: Any, site: str, log: Path) -> None:
    Files.files["/mail.log"] = log.read_bytes()
    expected = dk.read_log(log, year=2026)
    for later in (False, True):  # while the log is looked through, and while it is read
        Files.deadly, before = None, set(client.run(os.getpid).values())
        Files.killed.clear()
        if not later:
            Files.deadly = 250_000
        made = scale.read_log(f"{site}/mail.log", client, block_size=100_000, year=2026)
        if later:
            Files.deadly = 250_000
        same(dk.bounce_rates(made), dk.bounce_rates(expected))
        client.wait_for_workers(2)
        assert Files.killed and before - set(client.run(os.getpid).values()) == set(Files.killed)


def test_local_paths_may_be_patterns(log: Path, tmp_path: Path) -> None:
    for name in ("p1.log", "p2.log", ".p3.log", "other.txt", "p[1-2].log"):
        (tmp_path / name).write_bytes(log.read_bytes()[:20_000].rpartition(b"\n")[0])
    for pattern, names in (("p?.log", ["p1.log", "p2.log"]), ("p[1-2].log", ["p[1-2].log"])):
        for path in (tmp_path / pattern, str(tmp_path / pattern)):
            made = whole(scale.read_log(path, year=2026))
            same(made, dk.read_log([tmp_path / name for name in names], year=2026))
    with pytest.raises(FormatError, match=r"x\*\.log: cannot be read: No such file"):
        scale.read_log(tmp_path / "x*.log")


def test_what_cannot_be_read_is_said(client: Any, site: str, log: Path, tmp_path: Path) -> None:
    for size in ("1MB", 1.5, True, None, 0):
        with pytest.raises(SchemaError, match="is no number of bytes"):
            scale.read_log(log, block_size=size)
    with pytest.raises(SchemaError, match="client='tcp://x' is no Dask client"):
        scale.read_log(log, "tcp://x")
    with pytest.raises(FormatError, match="no log format 'postfx'"):
        scale.read_log(log, format="postfx")
    with pytest.raises(SchemaError, match="there is no column 'colour'"):
        scale.read_log(log, columns=["colour"])
    with pytest.raises(FormatError, match=r"//127.*/missing\.log: there is no file at this address"):
        scale.read_log(f"{site.replace('//', '//user:secret@')}/missing.log?key=secret", client)
    with zipfile.ZipFile(tmp_path / "logs.zip", "w") as archive:
        archive.write(log, "mail.log")
    with pytest.raises(FormatError, match=r"archives are read by dk\.read_log"):
        scale.read_log(tmp_path / "logs.zip")
    (tmp_path / "empty.log").touch()
    with pytest.raises(FormatError, match="the file is empty"):
        scale.read_log(tmp_path / "empty.log")


def test_a_worker_says_which_file_became_shorter(client: Any, log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mail.log"
    copy.write_bytes(log.read_bytes())
    made = scale.read_log(copy, client, year=2026)
    copy.write_bytes(log.read_bytes()[:1000])
    with pytest.raises(FormatError, match=r"mail\.log: has become shorter"):
        made.compute()


def test_lines_of_several_servers_in_one_log_are_all_read(log: Path, tmp_path: Path) -> None:
    other = "Nov 23 21:26:32 out exim[7]: 1xVbYV-00003u-39 => b@y.example R=dns T=smtp H=mx [192.0.2.1]:587\n"
    (tmp_path / "both.log").write_bytes(other.encode() + log.read_bytes())
    expected = dk.read_log(tmp_path / "both.log", year=2026)
    assert expected["recipient"].eq("b@y.example").sum() == 1
    made = scale.read_log(tmp_path / "both.log", year=2026, block_size=50_000).compute()
    same(made.reset_index(drop=True), expected)


def test_what_is_good_before_damage_is_read(client: Any, log: Path, tmp_path: Path) -> None:
    path = tmp_path / "mail.log.gz"
    path.write_bytes(gzip.compress(log.read_bytes())[:20_000])
    with pytest.warns(UserWarning, match="are good"):
        expected = dk.read_log(path, year=2026)
    with pytest.warns(UserWarning, match="are good"):
        made = scale.read_log(path, client, year=2026)
    pd.testing.assert_frame_equal(whole(made), expected)


def test_without_dask_the_extra_is_named(log: Path) -> None:
    code = f"import sys; sys.modules['dask'] = None; from deliverkit import scale; scale.read_log({str(log)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'python -m pip install "deliverkit[scale]"' in done.stderr.splitlines()[-1]
