"""CPU of read_log beside grep, pflogsumm, eximstats, a plain regex pass and polars, on logs made from real lines.

    python benchmarks/logs.py [MB] [part ...]    default: 320 MB; parts: postfix workers gz others memory

The files are the real logs beside the checkout (../shared/logs; of Sendmail data/sendmail) over and over, with other
queue ids and recipients each time. Figures are seconds of CPU (user and system) of one process that does nothing else,
imports left out, the least of three runs (of one for pflogsumm and eximstats); `x grep` is their ratio to
`LC_ALL=C grep -c` over the same file.
pflogsumm, eximstats (exim4-base) and polars are used where they are installed.
"""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

LOGS = Path(__file__).resolve().parents[2] / "shared/logs"
IDS = {
    "postfix": (r"(\]: )([0-9A-Za-z]{10,})(?=: )", r"(?<=<)([ab])(\d{3,5})(?=@)"),
    "exim": (r"( )(\w{6}-\w{5,11}-\w{2,4})(?= )", r"\b(e)(\d{4,5})(?=@)"),
    "opensmtpd": (r"( )([0-9a-f]{16})(?= )", r"(?<=<)(o)(\d{4,5})(?=@)"),
    "sendmail": (r"(\]: )(\w{14})(?=: )", r"(?<=<)(ok|no)()(?=\w*@)"),
}
SOURCES = {"postfix": ["postfix/maillog_syslog.log.gz"], "iso": ["postfix/maillog_iso.log.gz"],
           "exim": ["exim/mainlog.gz"], "opensmtpd": ["opensmtpd/maillog.gz"],
           "sendmail": [Path(__file__).resolve().parents[1] / "data/sendmail/maillog"]}  # fmt: skip
TIMED = """import sys, time, resource
{setup}
best = []
for _ in range({times}):
    began, wall = time.process_time(), time.perf_counter()
    made = {work}
    best.append((time.process_time() - began, time.perf_counter() - wall))
    count = len(made) if hasattr(made, '__len__') else made
    del made
print(*min(best), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, count)"""
REGEX = r"""import re
LINE = re.compile(rb'^(\S+ +\d+ [\d:]+) (\S+) ([^\[ ]+)\[(\d+)\]: (\w+): to=<([^>]*)>,(?: orig_to=<([^>]*)>,)? '
    rb'relay=([^,]+), (?:conn_use=\d+, )?delay=([\d.]+), (?:delays=[\d./]+, )?dsn=([\d.]+), status=(\w+) \((.*)\)$')
def plain(path):
    with open(path, 'rb') as file:
        return [found.groups() for line in file if b'status=' in line and (found := LINE.match(line))]"""
POLARS = r"""import polars as pl
LINE = (r'^(?<time>\S+ +\d+ [\d:]+) (?<host>\S+) (?<prog>[^\[ ]+)\[(?<pid>\d+)\]: (?<id>\w+): to=<(?<to>[^>]*)>,'
    r'(?: orig_to=<(?<orig>[^>]*)>,)? relay=(?<relay>[^,]+), (?:conn_use=\d+, )?delay=(?<delay>[\d.]+), '
    r'(?:delays=[\d./]+, )?dsn=(?<dsn>[\d.]+), status=(?<status>\w+) \((?<text>.*)\)$')
def scan(path):
    lines = pl.scan_csv(path, has_header=False, separator='\x01', quote_char=None, new_columns=['line'])
    found = lines.filter(pl.col('line').str.contains(', status=', literal=True))
    return found.select(pl.col('line').str.extract_groups(LINE)).unnest('line').collect(engine='streaming')"""
READ = "import deliverkit as dk, deliverkit.logs"
RATES = '["port", "blocked", "blocked_by", "attempted", "direction"]'


def make(path: Path, name: str, size: int) -> int:
    """A log of that many bytes; its lines."""
    raw = [(LOGS / one).read_bytes() for one in SOURCES[name]]
    text = "".join((gzip.decompress(one) if one.startswith(b"\x1f\x8b") else one).decode() for one in raw)
    ids, whose = (re.compile(pattern) for pattern in IDS.get(name, IDS["postfix"]))
    lines = rounds = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            mark = f"{rounds:03X}" if name != "opensmtpd" else f"{rounds:03x}"
            other = ids.sub(lambda f, mark=mark: f[1] + mark + f[2][3:], text)
            file.write(whose.sub(lambda f, n=rounds: f"{f[1]}{n}x{f[2]}", other))
            lines, rounds = lines + text.count("\n"), rounds + 1
    return lines


def timed(setup: str, work: str, times: int = 3) -> tuple[float, float, float, str]:
    """CPU and wall seconds, peak memory in MiB and the count, of a process of its own."""
    code = TIMED.format(setup=setup, work=work, times=times)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    cpu, wall, peak, count = done.stdout.split()
    return float(cpu), float(wall), float(peak), count


def command(*words: str, times: int = 3) -> float:
    """CPU seconds of a command line."""

    def spent() -> float:
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        subprocess.run(words, check=False, capture_output=True, env={**os.environ, "LC_ALL": "C"})
        return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before

    return min(spent() for _ in range(times))


def show(name: str, cpu: float, base: float, lines: int, more: str = "") -> None:
    print(f"{name:44} {cpu:7.2f} s  {cpu / base:7.1f} x grep  {lines / cpu:12,.0f} lines/s  {more}", flush=True)


def postfix(folder: Path, size: int) -> None:
    for name in ("postfix", "iso"):
        path = folder / f"{name}.log"
        lines = make(path, name, size)
        print(f"\n{name}: {path.stat().st_size / 1e6:,.0f} MB, {lines:,} lines")
        base = command("grep", "-c", "status=", str(path))
        show("grep -c status=", base, base, lines)
        cpu, wall, peak, count = timed(READ, f"dk.read_log({str(path)!r}, year=2026)")
        show("read_log, all columns", cpu, base, lines, f"{int(count):,} rows, wall {wall:.2f} s, peak {peak:,.0f} MiB")
        cpu, *_ = timed(READ, f"dk.read_log({str(path)!r}, year=2026, columns={RATES})")
        show("read_log, columns of block_rates", cpu, base, lines)
        if name == "postfix":
            cpu, _, peak, count = timed(REGEX, f"plain({str(path)!r})", 1)
            show(
                "a plain regex, line by line, no joins", cpu, base, lines, f"{int(count):,} rows, peak {peak:,.0f} MiB"
            )
            if find_spec("polars"):
                cpu, _, peak, count = timed(POLARS, f"scan({str(path)!r})")
                show(
                    "polars, streaming regex, no joins", cpu, base, lines, f"{int(count):,} rows, peak {peak:,.0f} MiB"
                )
            if shutil.which("pflogsumm"):
                show("pflogsumm", command("pflogsumm", str(path), times=1), base, lines)


def workers(folder: Path, size: int) -> None:
    path = folder / "workers.log"
    lines = make(path, "postfix", size)
    print(f"\nworkers: {path.stat().st_size / 1e6:,.0f} MB, {lines:,} lines")
    walls = {}
    for many in (1, 2):
        cpu, walls[many], _, _ = timed(READ, f"dk.read_log({str(path)!r}, year=2026, workers={many})")
        print(f"workers={many}: {walls[many]:.2f} s wall, {cpu:.2f} s CPU")
    print(f"{walls[1] / walls[2]:.2f} times as fast with two")


def packed(folder: Path, size: int) -> None:
    path = folder / "packed.log"
    lines = make(path, "postfix", size)
    subprocess.run(["gzip", "-1", str(path)], check=True)
    base = command("sh", "-c", f"zcat {path}.gz | grep -c status=")
    cpu, wall, peak, _ = timed(READ, f"dk.read_log('{path}.gz', year=2026)")
    print(f"\n{lines:,} lines packed: zcat | grep {base:.2f} s, read_log {cpu:.2f} s CPU, {wall:.2f} s wall, "
          f"{cpu / base:.2f} times, peak {peak:,.0f} MiB")  # fmt: skip


def others(folder: Path, size: int) -> None:
    for name, word in (("exim", "=>"), ("opensmtpd", "result="), ("sendmail", "stat=")):
        path = folder / f"{name}.log"
        lines = make(path, name, size)
        print(f"\n{name}: {path.stat().st_size / 1e6:,.0f} MB, {lines:,} lines")
        base = command("grep", "-c", word, str(path))
        show(f"grep -c {word}", base, base, lines)
        cpu, wall, peak, count = timed(READ, f"dk.read_log({str(path)!r}, format={name!r}, year=2026)")
        show("read_log, all columns", cpu, base, lines, f"{int(count):,} rows, wall {wall:.2f} s, peak {peak:,.0f} MiB")
        if name == "exim" and shutil.which("eximstats"):
            show("eximstats", command("eximstats", str(path), times=1), base, lines)


def memory(folder: Path, size: int) -> None:
    print("\nblock rates, block by block (scale.read_log without a client)")
    for part in (size // 8, size):
        path = folder / "memory.log"
        make(path, "postfix", part)
        setup = "import deliverkit as dk\nfrom deliverkit import scale"
        cpu, _, peak, _ = timed(setup, f"dk.block_rates(scale.read_log({str(path)!r}, year=2026))", 1)
        print(f"{part / 1e6:6,.0f} MB: peak {peak:,.0f} MiB, {cpu:.2f} s CPU")


PARTS: dict[str, Callable[[Path, int], None]] = {
    "postfix": postfix, "workers": workers, "gz": packed, "others": others, "memory": memory,
}  # fmt: skip


def main() -> None:
    given = [word for word in sys.argv[1:] if word in PARTS]
    size = next((int(word) for word in sys.argv[1:] if word.isdigit()), 320) * 1_000_000
    began = time.perf_counter()
    for name in given or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), size)
    print(f"\n{time.perf_counter() - began:,.0f} s")


if __name__ == "__main__":
    main()
