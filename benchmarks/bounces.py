"""Messages per CPU second: read_bounces (files to frame) against the standard library's parse alone.

    python benchmarks/bounces.py FOLDER [ROUNDS]

FOLDER holds one message a file. Both tools take turns within each round; medians are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from statistics import median

import deliverkit as dk


def parse(folder: Path) -> int:
    """Parse each file with email's compat32 policy and nothing else."""
    files = sorted(folder.iterdir())
    for file in files:
        message_from_bytes(file.read_bytes())
    return len(files)


def read(folder: Path) -> int:
    """Read the folder into a frame."""
    return int(dk.read_bounces(folder)["source"].nunique())


def per_second(job: Callable[[Path], int], folder: Path) -> float:
    begin = time.process_time()
    count = job(folder)
    return count / (time.process_time() - begin)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    jobs = {"email.message_from_bytes": parse, "deliverkit.read_bounces": read}
    speeds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():  # the second pass counts: imports and tables are loaded
        job(folder)
    for _ in range(rounds):
        for name, job in jobs.items():
            speeds[name].append(per_second(job, folder))
    for name, found in speeds.items():
        print(f"{name}: {median(found):,.0f} messages per CPU second")
    ratios = [b / a for a, b in zip(*speeds.values(), strict=True)]
    print(f"ratio: {median(ratios):.2f}")


if __name__ == "__main__":
    main()
