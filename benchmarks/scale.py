"""CPU and peak memory of block rates over a log and over one ten times as long, on this process and on a cluster.

    python benchmarks/scale.py [megabytes]     default: 100, and ten times that

The file is made from the two real Postfix logs beside the checkout (../shared/logs/postfix), queue ids varied.
Both lengths are meant to need the same memory, and the longer one at most 10.5 times the CPU.

What grows with a log is little: of 300 MiB with 238,260 messages in 38 ranges, the events that ranges need of others
took 17 bytes a message in the graph, and their keys about 6 while the log was looked through; digests lie on disk.
"""

from __future__ import annotations

import gzip
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distributed

import deliverkit as dk
from deliverkit import scale

LOGS = Path(__file__).resolve().parents[2] / "shared/logs/postfix"


def make(path: Path, size: int) -> None:
    """Real lines over and over, each time of other processes and with other queue ids."""
    lines = b"".join(gzip.decompress(log.read_bytes()) for log in sorted(LOGS.glob("maillog_*.gz")))
    pieces = re.split(rb"(?<=\[)(\d+\]: )(?=[0-9A-Za-z]{10,15}: )|(?<=\[)(?=\d+\]: )", lines)
    pieces = [piece for piece in pieces if piece is not None]
    with path.open("wb") as file:
        count = 0
        while file.tell() < size:
            mark = f"{count:05X}".encode()
            told = (piece + mark if piece.endswith(b"]: ") and piece[:1].isdigit() else piece for piece in pieces)
            file.write(f"{count}".encode().join(told))
            count += 1


def used() -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of this process."""
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(path: str) -> None:
    """In a fresh process: imports are in the memory, not in the CPU."""
    import dask.dataframe  # noqa: F401

    before = used()[0]
    attempts = int(dk.block_rates(scale.read_log(path, year=2026))["attempts"].sum())
    cpu, peak = used()
    print(cpu - before, peak, attempts)


def on_a_cluster(path: str) -> tuple[float, float, int]:
    """CPU seconds of two workers together, peak memory of the larger one, attempts counted."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        before = client.run(used)
        attempts = int(dk.block_rates(scale.read_log(path, client, year=2026))["attempts"].sum())
        after = client.run(used)
        return sum(after[one][0] - before[one][0] for one in after), max(peak for _, peak in after.values()), attempts


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for times in (1, 10):
            path = Path(folder) / f"{times}.log"
            make(path, times * size << 20)
            done = subprocess.run([sys.executable, __file__, "alone", path], check=True, capture_output=True, text=True)
            cpu, peak, attempts = done.stdout.split()
            figures[times] = {"one process": (float(cpu), float(peak), int(attempts))}
            figures[times]["two workers"] = on_a_cluster(str(path))
            print(f"{path.stat().st_size >> 20:,} MiB")
            for where, (cpu, peak, attempts) in figures[times].items():
                print(f"  {where}: {attempts:10,} attempts, {cpu:7.1f} s CPU, {peak:5.0f} MiB at most")
        for where, (cpu, peak, _) in figures[1].items():
            more = figures[10][where]
            print(f"ten times the data, {where}: {more[0] / cpu:.2f} x the CPU, {more[1] / peak:.2f} x the memory")


if __name__ == "__main__":
    alone(sys.argv[2]) if sys.argv[1:2] == ["alone"] else main()
