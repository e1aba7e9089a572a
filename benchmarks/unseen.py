"""What the category decisions are worth on messages nobody has seen, estimated on labelled ones.

    python benchmarks/unseen.py FOLDER

FOLDER holds `labels.csv`, `score.py` and the messages in `eml`. The messages are halved twice: whole strata to one side
(by a hash of their name), then every other file of each stratum. A half is scored with all rows of
facts/bounce_patterns.csv; without those that only this half could have taught ("learnt away": their source is the
samples, and they decide nothing in the other half); and without all that decide in this half only, whatever document
they come from ("floor"). The middle figure flatters, as wording and order of the other rows were settled with all
messages in sight; the last is harsh, as it also forgets what is documented.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

Row = dict[str, str]

FIGURES = ("category_strict", "category_lenient", "kind", "port_recall", "port_precision")
SAMPLES = "public bounce samples"
READ = """
import sys
from pathlib import Path
import deliverkit as dk
frame = dk.read_bounces(sys.argv[1])
frame["file"] = [Path(source).name for source in frame["source"]]
names = ["file", "recipient", "category", "kind", "status_code", "reply_code", "rule"]
frame[names].to_csv(sys.argv[2], index=False)
"""


def readings(messages: Path, place: Path, without: set[str]) -> list[Row]:
    """Read the messages by a copy of the package whose pattern table lacks some rows."""
    copy = place / "deliverkit"
    if not copy.exists():
        shutil.copytree(str(files("deliverkit")), copy, ignore=shutil.ignore_patterns("__pycache__"))
    rows = patterns()
    with (copy / "facts/bounce_patterns.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["id"] not in without)
    command = [sys.executable, "-c", READ, str(messages.resolve()), str(place / "readings.csv")]
    subprocess.run(command, check=True, cwd=place, env=os.environ | {"PYTHONPATH": str(place)})
    return read(place / "readings.csv")


def patterns() -> list[Row]:
    return read(Path(str(files("deliverkit.facts") / "bounce_patterns.csv")))


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def score(folder: Path, place: Path, labels: list[Row]) -> dict[str, float]:
    """What score.py says of the readings for these labels."""
    with (place / "labels.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(labels[0]))
        writer.writeheader()
        writer.writerows(labels)
    command = [sys.executable, str(folder / "score.py"), str(place / "readings.csv")]
    command += ["--labels", str(place / "labels.csv"), "--categories", str(folder / "categories.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: float(share) for name, share in re.findall(r"^(\w+): ([\d.]+)", done.stdout, re.M)}


def by_stratum(labels: list[Row]) -> Callable[[str], bool]:
    """Whether a file is in the first half: whole strata."""
    side = {row["file"]: hashlib.sha256(row["stratum"].encode()).digest()[0] % 2 == 0 for row in labels}
    return lambda file: side.get(file, False)


def by_turns(labels: list[Row]) -> Callable[[str], bool]:
    """Whether a file is in the first half: every other file of a stratum."""
    strata: dict[str, list[str]] = defaultdict(list)
    for row in labels:
        if row["file"] not in strata[row["stratum"]]:
            strata[row["stratum"]].append(row["file"])
    first = {file for names in strata.values() for file in sorted(names)[::2]}
    return lambda file: file in first


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    labels = read(folder / "labels.csv")
    learnt = {row["id"] for row in patterns() if SAMPLES in row["source"]}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole = readings(folder / "eml", place, set())
        for title, halve in (("whole strata", by_stratum(labels)), ("files by turns", by_turns(labels))):
            for half in (True, False):
                chosen = [row for row in labels if halve(row["file"]) == half]
                here, there = (
                    {row["rule"] for row in whole if halve(row["file"]) == side} for side in (half, not half)
                )
                scores = []
                for without in (set[str](), (here - there) & learnt, here - there):
                    readings(folder / "eml", place, without)
                    scores.append(score(folder, place, chosen))
                print(f"{title}, half {2 - half}, {len(chosen)} recipients: all rows, learnt away, floor")
                for figure in FIGURES:
                    print(f"  {figure:17}" + "".join(f"{100 * made[figure]:8.1f} %" for made in scores))


if __name__ == "__main__":
    main()
