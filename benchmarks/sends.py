"""attach_sends against two plain pandas merges: a million attempts and a million sends, CPU seconds in one run.

    python benchmarks/sends.py [COUNT]

Once with all keys, once with three of five message ids, senders and queue ids lost, so that weaker keys have to join.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

import deliverkit as dk

KEYS = ["message_id", "recipient", "sender", "queue_id"]


def lists(count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What was sent, and the bounces of it an hour later in another order."""
    dice, number = np.random.default_rng(1), pd.Series(np.arange(count)).astype("string")
    texts = {"message_id": "<" + number + "@x.example>", "recipient": "r" + number + "@y.example",
             "sender": "b-" + number + "@v.example", "queue_id": "Q" + number}  # fmt: skip
    sends = pd.DataFrame(texts).assign(
        time=pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(count), unit="s"),
        port=dice.choice([25, 587], count),
        client=pd.Series(dice.choice(["A", "B"], count), dtype="string"),
    )
    bounces = sends.sample(frac=1, random_state=2)[[*KEYS, "time"]].reset_index(drop=True)
    return sends, bounces.assign(time=bounces["time"] + pd.Timedelta("1h"), origin="dsn")


def seconds(job: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    made = job()
    return time.process_time() - begin, made


def main() -> None:
    count = int((sys.argv[1:] or ["1000000"])[0])
    sends, bounces = lists(count)
    dice, gaps = np.random.default_rng(3), bounces.copy()
    for name in ("message_id", "sender", "queue_id"):
        gaps[name] = gaps[name].mask(dice.random(count) < 0.6)
    for title, frame in (("all keys", bounces), ("three of five keys lost", gaps)):
        merges = (["message_id", "recipient"], ["recipient"])
        plain, _ = seconds(lambda on=merges, left=frame: [left[keys].merge(sends, how="left", on=keys) for keys in on])
        ours, made = seconds(lambda left=frame: dk.attach_sends(left, sends))
        assert made["port"].notna().all()
        print(f"{title}: {ours:.2f} s, two merges {plain:.2f} s, ratio {ours / plain:.2f}; {made.attrs['joined']}")


if __name__ == "__main__":
    main()
