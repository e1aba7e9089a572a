"""Lines per CPU second of read_log, beside `grep -c status=` and a plain regex pass over the same file.

    python benchmarks/logs.py [lines]     default: 1,000,000 lines

The file is made from the two real Postfix logs beside the checkout (../shared/logs/postfix), queue ids varied.
"""

from __future__ import annotations

import gzip
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import deliverkit as dk
from deliverkit.logs.postfix import rows
from deliverkit.outcomes import outcomes

LOGS = Path(__file__).resolve().parents[2] / "shared/logs/postfix"
PLAIN = re.compile(r": to=<(?P<to>[^>]*)>.*, relay=(?P<relay>[^,]*), .*dsn=(?P<dsn>[\d.]+), status=(?P<status>\w+)")


def make(path: Path, wanted: int) -> None:
    found = [gzip.decompress(log.read_bytes()).decode().splitlines() for log in sorted(LOGS.glob("maillog_*.gz"))]
    count = 0
    with path.open("w", encoding="utf-8") as file:
        while count < wanted:
            for lines in found:  # another id space each time round
                mark = f"{count:06X}"
                file.writelines(re.sub(r"(\]: )([0-9A-Za-z]{10,}: )", rf"\g<1>{mark}\2", line) + "\n" for line in lines)
                count += len(lines)


def cpu(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds, those of child processes included, and the result."""
    before = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    result = work()
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before, result


def regex_pass(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(PLAIN.search(line) is not None for line in file)


def scan(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(1 for _ in rows(file))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mail.log"
        make(path, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
        lines = sum(1 for _ in path.open("rb"))
        grep, _ = cpu(lambda: subprocess.run(["grep", "-c", "status=", str(path)], check=True, capture_output=True))
        plain, _ = cpu(lambda: regex_pass(path))
        reader, _ = cpu(lambda: scan(path))
        whole, frame = cpu(lambda: dk.read_log(path, year=2026))
        ends, made = cpu(lambda: outcomes(frame))  # type: ignore[arg-type]
        print(f"{lines:,} lines, {len(frame):,} attempts, {len(made):,} outcomes")  # type: ignore[arg-type]
        for name, seconds in (("grep -c status=", grep), ("a plain regex pass", plain), ("rows of the reader", reader),
                              ("read_log, to a classified frame", whole), ("outcomes", ends)):  # fmt: skip
            print(f"{name:32} {seconds:7.2f} s CPU  {lines / seconds:12,.0f} lines/s  {seconds / grep:6.1f} x grep")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
