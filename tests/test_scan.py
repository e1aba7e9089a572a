"""One definition, two readings: what numpy finds in a block is what the expressions find line by line."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deliverkit.logs import formats
from deliverkit.logs.events import Digest, Events, blocks
from deliverkit.logs.scan import LONGEST, Kinds

LINED = {name: module for name, module in formats().items() if hasattr(module, "KINDS")}
SAMPLES = [
    ("postfix", "postfix/maillog_syslog.log.gz"), ("postfix", "postfix/maillog_iso.log.gz"),
    ("postfix", "samples/fail2ban/postfix.log"), ("exim", "exim/mainlog.gz"), ("exim", "exim/rejectlog.gz"),
    ("exim", "samples/fail2ban/exim.log"), ("opensmtpd", "opensmtpd/maillog.gz"),
    ("sendmail", "samples/fail2ban/sendmail-reject.log"),
]  # fmt: skip
HEAD = "Nov 23 21:14:53 mail postfix/smtp[9]: "
TRAPS = [
    "to=<", ">, ", ">, relay=", ">, orig_to=<", ", delay=", ", dsn=", ", status=", "status=sent", "relay=none",
    " (", ")", ": ", "]: ", "[ID 7 mail.info] ", "\"", "\\", "\\\"", ",", " ", "a", "b@x.example",
    "4BD7622EC44", "removed", "from=<", "message-id=", "connect to ", "host ", "reject: ", "\r", "\0", "ç",
    "\udcff", "<13>", "Nov 23 21:14:53 ", "2026-11-23T", "2026-11-23 21:26:29 ", "<= ", "=> ", "== ", "** ",
    "H=", "C=\"", "mta delivery evpid=", "stat=", "mailer=", "x" * 40,
]  # fmt: skip


def bytes_of(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def same(kinds: Kinds, text: bytes) -> None:
    lines = text.split(b"\n")
    lines = lines[:-1] if not lines[-1] else lines
    found, count = kinds.scan(text)
    assert count == len(lines)
    for name, table in kinds.read(lines).items():
        assert found[name].to_pylist() == table.to_pylist(), name


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_both_readings_agree_on_real_logs(shared: Path, name: str, sample: str) -> None:
    raw = bytes_of(shared / "logs" / sample)
    same(LINED[name].KINDS, raw)
    same(LINED[name].KINDS, raw * (1 + (2 << 20) // len(raw)))  # so large that it is not copied to make room
    for other in LINED.values():
        same(other.KINDS, raw[:200_000])


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_both_readings_agree_wherever_a_log_is_cut(shared: Path, name: str, sample: str) -> None:
    raw = bytes_of(shared / "logs" / sample)[:3000]
    for cut in range(0, len(raw), 7):
        same(LINED[name].KINDS, raw[cut : cut + 1500])


def written(steps: list[Any], data: st.DataObject) -> str:
    """A line as the template has it, with traps for fields."""
    parts = []
    for step in steps:
        if step.optional and data.draw(st.booleans()):
            continue
        field = "".join(data.draw(st.lists(st.sampled_from(TRAPS), max_size=4))) if step.field is not None else ""
        field = "Nov 23 21:14:53" if step.field == "stamp" else field
        parts += [step.literal.decode(), field, step.tail.decode()]
    return "".join(parts)


@pytest.mark.parametrize("name", LINED)
@settings(deadline=None, max_examples=400)
@given(st.data())
def test_both_readings_agree_on_lines_full_of_traps(name: str, data: st.DataObject) -> None:
    kinds = LINED[name].KINDS
    templates = list(kinds.steps.values())
    words = [*TRAPS, *(step.literal.decode() for steps in templates for step in steps)]
    lines = []
    for _ in range(data.draw(st.integers(1, 4))):
        whole = data.draw(st.booleans())
        loose = st.lists(st.sampled_from(words), max_size=24).map("".join)
        lines.append(written(data.draw(st.sampled_from(templates)), data) if whole else data.draw(loose))
    same(kinds, "\n".join(lines).encode("utf-8", "surrogateescape"))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.text(max_size=60)), max_size=5))
@example([('"a>, relay=x, status=sent ("', "none", "status=bounced, relay=none")])
def test_ids_recipients_and_texts_of_any_sort_stay_where_they_stand(rows: list[tuple[str, str, str]]) -> None:
    lines = [
        f"{HEAD}{key}: to=<{to}>, relay=none, delay=1, dsn=4.4.1, status=deferred ({text})".replace("\n", "?")
        for key, to, text in rows
    ]
    same(LINED["postfix"].KINDS, "\n".join(lines).encode("utf-8", "surrogatepass"))


def test_an_overlong_line_counts_up_to_the_limit_and_as_one(tmp_path: Path) -> None:
    long = f"{HEAD}ABCDEF12: to=<b@x.example>, relay=none, delay=1, status=deferred (".encode() + b"x" * (3 * LONGEST)
    text = long + b"\n" + long[:110] + b"x)\n"
    same(LINED["postfix"].KINDS, text)
    pieces = list(blocks(io.BytesIO(text), 4096))
    assert sum(bytes(piece).count(b"\n") for piece in pieces) == 2
    events = Events(LINED["postfix"])
    for piece in pieces:
        events.add(piece)
    assert events.rows()["line"].to_pylist() == [0, 1]


def facts_and_rows(events: Events) -> list[dict[str, Any]]:
    rows = events.rows()
    return [
        events.facts.rows[row["fact"]]
        | {k: v for k, v in row.items() if k != "fact" and (v is not None or k not in ("host", "address"))}
        for row in rows.to_pylist()
    ]


@pytest.mark.parametrize("size", [1, 999, 8192, 1 << 20])
@pytest.mark.parametrize(("name", "sample"), [s for s in SAMPLES if "samples/" not in s[1]])
def test_the_size_of_blocks_changes_nothing(shared: Path, name: str, sample: str, size: int) -> None:
    raw = bytes_of(shared / "logs" / sample)[: 60_000 if size < 5000 else None]
    whole, pieces = Events(LINED[name]), Events(LINED[name])
    whole.add(raw)
    for block in blocks(io.BytesIO(raw), size):
        pieces.add(block)
    assert facts_and_rows(pieces) == facts_and_rows(whole)


def parts_alone(module: Any, parts: list[bytes]) -> list[dict[str, Any]]:
    """The rows of each part, read with no more of the others than their digests."""
    digests: list[Digest] = []
    for part in parts:
        alone = Events(module)
        alone.add(part)
        digests.append(alone.digest())
    starts = np.cumsum([0, *(digest.lines for digest in digests)]).tolist()
    made = []
    for i, part in enumerate(parts):
        events = Events(module)
        events.add(part)
        for j, digest in enumerate(digests):
            if j != i:
                events.around(digest, starts[j] - starts[i])
        made += [row | {"line": row["line"] + starts[i]} for row in facts_and_rows(events)]
    return made


@pytest.mark.parametrize("size", [4_000, 70_000, 400_000])
@pytest.mark.parametrize(("name", "sample"), [s for s in SAMPLES if "samples/" not in s[1]])
def test_parts_of_a_log_alone_give_the_rows_of_the_whole(shared: Path, name: str, sample: str, size: int) -> None:
    raw = bytes_of(shared / "logs" / sample)[: 150_000 if size < 5000 else None]
    parts, at = [], 0
    while at < len(raw):
        end = raw.find(b"\n", at + size) + 1 or len(raw)
        parts.append(raw[at:end])
        at = end
    whole = Events(LINED[name])
    whole.add(raw)
    assert parts_alone(LINED[name], parts) == facts_and_rows(whole)


def test_tables_of_both_readings_have_the_same_types() -> None:
    kinds = LINED["postfix"].KINDS
    line = f"{HEAD}ABCDEF12: to=<b@x.example>, relay=none, delay=1, status=deferred (x)".encode()
    assert kinds.scan(line)[0]["delivery"].schema == kinds.read([line])["delivery"].schema
    assert kinds.scan(b"")[0]["delivery"].schema == kinds.read([])["delivery"].schema
    assert kinds.scan(line)[0]["delivery"].schema.field("line").type == pa.int64()
