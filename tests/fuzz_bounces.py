"""Fuzz the reading of bounce messages: whatever the bytes, rows within bounds, the same for every kind of line end.

    python -m pip install atheris
    python tests/fuzz_bounces.py -runs=1000000 -max_len=6000

Options are those of libFuzzer. The seeds are the messages of data/refusals.mbox and data/bounces.mbox, made anew in a
folder that is thrown away. tests/test_adversarial.py runs the same check for seconds.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import atheris

    watched: Any = atheris.instrument_imports(include=["deliverkit.bounces", "deliverkit.bounces.mail"])
else:
    watched = nullcontext()
with watched:
    from deliverkit.bounces import _rows
    from deliverkit.bounces.mail import take_apart
    from deliverkit.bounces.sources import messages

from deliverkit import facts
from deliverkit.classify import judged

DATA = Path(__file__).parents[1] / "data"
OUTCOMES, ORIGINS = {"passed", "deferred", "failed", None}, {"dsn", "arf"}
CATEGORIES = set(facts.table("categories")["category"])
ADDRESS = 64 + 1 + 255  # characters (RFC 5321, section 4.5.3.1)
_held: list[dict[str, Any]] = []


def seeds(names: tuple[str, ...] = ("refusals.mbox", "bounces.mbox"), every: int = 1) -> list[bytes]:
    """Messages that real servers wrote."""
    found = []
    for name in names:
        with (DATA / name).open("rb") as stream:
            found += list(messages(stream))[::every]
    return found


def rows_of(data: bytes) -> list[dict[str, Any]]:
    return [row for message in messages(io.BytesIO(data)) for row in _rows(take_apart(message))]


def check(data: bytes) -> None:
    """Raise AssertionError if the rows of these bytes are not what rows of a message may be."""
    rows = rows_of(data)
    assert rows
    for row in rows:
        assert row.get("outcome") in OUTCOMES and row["origin"] in ORIGINS
        assert row.get("attempted") or row.get("hint")
        reply, status = row.get("reply_code"), row.get("status_code")
        assert reply is None or 200 <= reply <= 599
        assert status is None or re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", status)
        assert len(row.get("recipient") or "") <= 4 * ADDRESS
        assert row.get("port") is None or 0 <= int(row["port"]) <= 65535
        assert len(row.get("message_id") or "") <= 260 and len(row.get("sender") or "") <= ADDRESS
    if b"\r" not in data:
        assert rows_of(data.replace(b"\n", b"\r\n")) == rows
        assert rows_of(data.replace(b"\n", b"\r")) == rows
    _held.extend(rows)
    if len(_held) >= 2000:
        judge()


def judge() -> None:
    """What the rows mean, all at once."""
    made = judged(_held)
    _held.clear()
    assert set(made["category"]) <= CATEGORIES
    assert made["rule"].notna().all() and made["confidence"].between(0, 1).all()
    assert not (made["text"].str.len() > 2000).any() and not (made["matched"].str.len() > 200).any()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[1:], folder], check)
        atheris.Fuzz()
