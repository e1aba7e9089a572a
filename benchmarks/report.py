"""Seconds of a report and of what it counts, beside a plain pandas groupby over the same frame.

    python benchmarks/report.py [attempts]     default: 1,000,000 attempts

The frame is the sample campaign with its probes, repeated with message ids, queue ids and times of its own, ten
clients and seven campaigns each. On two shared cores: outcomes 4 x the groupby, counted 2.3 x, the page 11 x; before
each different text was looked at only once, 37 x, 3.6 x and 124 x.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

import deliverkit as dk
from deliverkit.schema import counted


def make(wanted: int) -> pd.DataFrame:
    one = dk.sample()
    turns = -(-wanted // len(one))
    made = pd.concat([one] * turns, ignore_index=True)
    turn = pd.Series(np.repeat(np.arange(turns), len(one)))
    word = turn.astype("string")
    made["message_id"] = "<" + word + "." + made["message_id"].str.lstrip("<")
    made["queue_id"] = word + made["queue_id"]
    made["client"] += " " + (turn % 5).astype("string")
    made["campaign"] += " " + (turn % 7).astype("string")
    made["time"] += pd.to_timedelta(turn * 7, unit="s")
    return made


def best(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of the better of two runs."""
    runs = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(runs)


def main() -> None:
    small = dk.sample()
    done = dk.report(small)  # imports and facts are not part of the figures
    done.pdf()
    done.xlsx()
    data = make(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    mail = data[data["origin"] != "probe"]
    print(f"{len(data):,} attempts, {mail['message_id'].nunique():,} messages")
    peer = best(lambda: mail.groupby(["message_id", "recipient"], sort=False)["outcome"].last())
    large: tuple[tuple[str, Callable[[], object]], ...] = (
        ("outcomes", lambda: dk.outcomes(mail)), ("counted", lambda: counted(mail)),
        ("the page of all", lambda: dk.report(data)))  # fmt: skip
    sample: tuple[tuple[str, Callable[[], object]], ...] = (
        ("sample: page", lambda: dk.report(small)),
        ("sample: PDF", done.pdf),
        ("sample: workbook", done.xlsx),
    )
    print(f"{'groupby(message, recipient).last()':36} {peer[0]:6.2f} s wall {peer[1]:6.2f} s CPU")
    for name, work in large + sample:
        wall, cpu = best(work)
        print(f"{name:36} {wall:6.2f} s wall {cpu:6.2f} s CPU {cpu / peer[1]:6.1f} x groupby")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
