"""Applications that send mail: what their mail libraries say when it fails, wherever in a log it stands.

The patterns are rows of facts/application_patterns.csv. What succeeds is not in such logs: no rate comes from them.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from deliverkit import facts
from deliverkit.logs.fields import said
from deliverkit.patterns import Patterns
from deliverkit.targets import is_ip

LAST = True  # asked behind all others: their lines may quote these words
_BATCH, _LONGEST, _NEAR, _SAME = 2_000, 4_000, 40, 10  # lines; characters; lines that belong together; that repeat
_ALIKE = ("step", "host", "address", "port", "sender", "recipient", "reply_code", "status_code")
_PORTS = {25, 465, 587, 2525}
_MONTHS = {"JanFebMarAprMayJunJulAugSepOctNovDec"[3 * at : 3 * at + 3]: at + 1 for at in range(12)}
_STAMP = re.compile(
    r"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))? ?(Z\b|[+-]\d\d:?\d\d)?"
    r"|\[(\d\d)[-/]([A-Z][a-z]{2})[-/](\d{4})[ :](\d\d:\d\d:\d\d) ([\w/+-]{1,40})\]"
    r"|\b([A-Z][a-z]{2}) ([ \d]?\d) (\d\d:\d\d:\d\d)(?:\.\d{1,6})?(?: (\d{4})\])?"
)
_EACH = re.compile(r"'(?P<recipient>[^'\s]{1,254})': \((?P<code>\d{3}), b?(?:'(?P<text>[^']*)'|\"(?P<quoted>[^\"]*)\")")


@cache
def _table() -> tuple[list[dict[str, str]], Patterns]:
    table = facts.table("application_patterns").fillna("")
    rows = [{str(name): text for name, text in row.items()} for row in table.to_dict("records")]
    return rows, Patterns([row["pattern"] for row in rows], [row["example"] for row in rows])


def sniff(line: str) -> bool:
    """True for words that only a mail library writes, or others in a line with a mail port or such a library."""
    return any(True for _ in rows([line]))


def rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per failure (and recipient, where named); host and port only where the report names them.

    Words that others write too (`ECONNREFUSED`) count where a port of mail, or the name of a mail library, stands in
    the line or in the 40 before it; in the line itself if that names another port. What says again what one of the 10
    lines before said, within a second, is no report of its own; indented lines (a trace) are not counted. A line
    without a time has that of the last line with one, of the 40 before it. Times without a zone are taken as UTC.
    """
    known, patterns = _table()
    recent: deque[tuple[str, str]] = deque(maxlen=_NEAR + 1)
    told: dict[str, deque[tuple[int, int, dict[str, Any]]]] = {}  # by language: place, rule, report
    counted = 0
    opened: dict[str, tuple[int, dict[str, str]]] = {}  # what a line before says of the far end
    numbered = enumerate(lines, 1)
    while batch := [(number, line[:_LONGEST]) for number, line in islice(numbered, _BATCH)]:
        plain = [line.lower() for _, line in batch]
        for (number, line), low, places in zip(batch, plain, patterns.candidates(plain), strict=True):
            recent.append((line, low))
            counted += not line[:1].isspace()
            for place in places:
                rule, match = known[place], patterns.compiled[place].search(low)
                language, words = rule["language"], rule["context"].split("|")
                if match is None:
                    continue
                cased = line if len(line) == len(low) else low
                groups = {name: cased[slice(*match.span(name))] for name, found in match.groupdict().items() if found}
                near = [low] if "port" in groups else [before for _, before in recent]
                if int(groups.get("port", 0)) not in _PORTS and not any(w in one for w in words for one in near):
                    continue
                since, far = opened.pop(language, (number, {}))
                if not rule["outcome"]:  # two of them at once: whose failure comes next is not known
                    opened[language] = number, {} if far and number - since <= _SAME else groups
                    told.pop(language, None)
                    break
                time = next(filter(None, (_time(before) for before, _ in reversed(recent))), None)
                about = (far if number - since <= _SAME else {}) | {"text": cased[match.start() :]} | groups
                for each in [m.groupdict() for m in _EACH.finditer(groups.get("each", ""))] or [{}]:
                    row = _row(about | {k: v for k, v in each.items() if v}, rule) | {"time": time, "line": number}
                    before = told.setdefault(language, deque(maxlen=_SAME))
                    if not rule["repeats"] or not any(
                        counted - at <= _SAME and _repeats(row, one, place == by) for at, by, one in before
                    ):
                        before.append((counted, place, row))
                        yield row
                break


def _repeats(row: dict[str, Any], other: dict[str, Any], same: bool) -> bool:
    """True if nothing that both tell differs; of the `same` rule the words too, but for an end that one leaves out."""
    short, long = sorted(((one["text"] or "").rstrip(" ;.") for one in (row, other)), key=len)
    if same and not long.startswith(short):
        return False
    if any(row[name] and other[name] and row[name] != other[name] for name in _ALIKE):
        return False
    near = timedelta(seconds=1 if same else 2)  # of a second, which a stamp may be cut to, or over into the next
    try:
        return abs(datetime.fromisoformat(row["time"]) - datetime.fromisoformat(other["time"])) < near
    except (TypeError, ValueError):
        return not row["time"] or not other["time"] or bool(row["time"] == other["time"])


def _row(about: dict[str, str], rule: dict[str, str]) -> dict[str, Any]:
    code, text = about.get("code", ""), (about.get("quoted") or about["text"]).strip()
    made = said(text if text.startswith(code) else f"{code} {text}")
    port, address = int(about.get("port", 0)), about.get("address", "").strip("[]")
    outcome = {"4": "deferred", "5": "failed"}.get(str(made["reply_code"] or made["status_code"])[:1], rule["outcome"])
    return made | {
        "direction": "out",
        "outcome": outcome,
        "attempted": True,
        "step": rule["step"] or None,
        "hint": rule["hint"] or None,
        "host": about.get("host"),
        "address": address if is_ip(address) else None,
        "port": port if 0 < port < 65536 else None,
        "sender": about.get("sender"),
        "recipient": about.get("recipient"),
    }


def _time(line: str) -> str | None:
    """The first time in the first 120 characters, as ISO 8601; one without a year as it stands."""
    if not (found := _STAMP.search(line[:120])):
        return None
    year, month, day, clock, part, zone = found.groups()[:6]
    if year:
        return f"{year}-{month}-{day}T{clock}.{part or 0}{zone or ''}"
    day, month, year, clock, zone = found.groups()[6:11]
    try:
        if year:
            bare = datetime.fromisoformat(
                f"{year}-{_MONTHS[month]:02}-{day}T{clock}{'' if zone[0] not in '+-' else zone}"
            )
            return (bare if bare.tzinfo else bare.replace(tzinfo=ZoneInfo(zone))).isoformat()
        month, day, clock, year = found.groups()[11:]
        return f"{year}-{_MONTHS[month]:02}-{int(day):02}T{clock}" if year else f"{month} {day:>2} {clock}"
    except (KeyError, ValueError, OSError):
        return None
