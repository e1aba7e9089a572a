"""A history's additions and reading, as ratios to plain pandas.to_parquet and read_parquet of the same rows.

    python benchmarks/history.py [rows]     default: 1,000,000 rows over 30 days

The frame is the sample campaign with recipients, queue ids, texts and times of its own. Seconds are CPU, files warm.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from deliverkit.history import History
from deliverkit.schema import ATTEMPTS

START, DAYS, BLOCK = pd.Timestamp("2026-10-01", tz="UTC"), 30, 50_000


def make(first: int, rows: int, wanted: int) -> pd.DataFrame:
    number = pd.Series(np.arange(first, first + rows))
    word = number.astype("string")
    reply = " said: 550 5.1.1 <r" + word + "@d.example>: Recipient address rejected (in reply to RCPT TO command)"
    return ATTEMPTS.build(
        pd.DataFrame({
            "time": START + pd.to_timedelta(number * (DAYS * 86_400_000_000 // wanted), unit="us"),
            "origin": "log", "recipient": "r" + word + "@d" + (number % 900).astype("string") + ".example",
            "client": "client " + (number % 7).astype("string"), "host": "mx.d.example", "address": "192.0.2.1",
            "port": 25, "outcome": "failed", "attempted": True, "blocked": False, "category": "unknown_user",
            "kind": "hard", "reply_code": 550, "status_code": "5.1.1", "text": "host mx.d.example[192.0.2.1]" + reply,
            "rule": "unknown-user", "delay_s": number % 100 / 7, "queue_id": "4cA" + word,
            "message_id": "<" + word + "@s.example>", "source": "mail.log", "line": number + 1,
        })
    )  # fmt: skip


def cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def blocks(wanted: int) -> Iterator[pd.DataFrame]:
    return (make(first, min(BLOCK, wanted - first), wanted) for first in range(0, wanted, BLOCK))


def peak(folder: str, wanted: int) -> None:
    made = make(0, 10, wanted)
    History(folder).add(made)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    History(folder).add(blocks(wanted))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"block by block, {wanted:10,} rows: peak {peak / 1024:,.0f} MiB, at the start {before / 1024:,.0f}")


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 4):  # in processes of their own, for the peak
            one = multiprocessing.get_context("spawn").Process(
                target=peak, args=(f"{folder}/blocks{times}", wanted * times)
            )
            one.start()
            one.join()
        frame, plain, history = make(0, wanted, wanted), Path(folder, "plain.parquet"), History(f"{folder}/history")
        written = cpu(lambda: frame.to_parquet(plain, compression="zstd"))
        read = cpu(lambda: pd.read_parquet(plain, dtype_backend="numpy_nullable"))
        since, until = START + pd.Timedelta(days=9), START + pd.Timedelta(days=10)
        plan: tuple[tuple[str, Callable[[], object], float], ...] = (
            ("add", lambda: history.add(frame), written),
            ("add again: nothing new", lambda: history.add(frame), written),
            ("one day of 30", lambda: history.attempts(since, until), read),
            ("one day, 3 columns", lambda: history.attempts(since, until, ["time", "port", "blocked"]), read),
            ("one client of 7", lambda: history.attempts(client="client 3"), read),
            ("everything", lambda: history.attempts(), read),
        )
        print(f"{wanted:,} rows: to_parquet {written:.2f} s CPU, read_parquet {read:.2f} s CPU")
        for name, work, peer in plan:
            seconds = cpu(work)
            print(f"{name:24} {seconds:6.2f} s CPU {seconds / peer:6.2f} x pandas")
        size = sum(file.stat().st_size for file in Path(folder, "history").glob("day=*/*"))
        print(f"bytes {size / plain.stat().st_size:.2f} x pandas")


if __name__ == "__main__":
    main()
