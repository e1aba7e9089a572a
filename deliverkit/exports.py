"""Event exports of mail providers (Amazon SES, SendGrid): one row per event and recipient.

What a field or an event means stands in facts/esp_exports.toml; this module knows JSON, times and codes.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from deliverkit import facts
from deliverkit.classify import classify
from deliverkit.errors import FormatError
from deliverkit.files import Part, Source, parts

_BEGIN, _AGAIN = re.compile(r"[^\s,\]]"), re.compile(r"\n(?=[{\[])")  # where a value begins, and after damage
_KIND = re.compile(r"(?:smtp|x-[\w-]{1,20})\s*;\s*", re.ASCII)  # as in a delivery report: "smtp; 550 ..."
_CODES = re.compile(r"(?:([2-5]\d\d)(?:[ -]|$))?#?([245]\.\d{1,3}\.\d{1,3}\b)?")
_TABLES: list[dict[str, Any]] = facts.tables("esp_exports")["provider"]
_NAMES = sorted({table["name"] for table in _TABLES})


def read_export(path: Source, provider: str | None = None) -> pd.DataFrame:
    """Read event exports of a mail provider as an `ATTEMPTS` frame: one row per event and recipient.

    Takes JSON: a value, an array, or values one after the other. The shape is found from the fields, among those of
    `provider` (ses, sendgrid) if one is named. `port` stays missing: no provider tells it. Events that are no delivery
    have `attempted` False and no outcome; unknown ones say their kind in `text`, what is no JSON says where. An event
    seen before (by its id) is dropped: `attrs["duplicates"]` counts them. Raises FormatError for an unknown provider,
    an empty file, and a file without any known event.
    """
    if provider not in (None, *_NAMES):
        raise FormatError(path, f"no export of a provider {provider!r}; known: {', '.join(_NAMES)}")
    seen: dict[Any, int] = {}
    rows = [row for part in parts(path) for row in _rows(part, provider, seen)]
    made = pd.DataFrame(rows, columns=None if rows else ["time"])
    stamps = made["time"].astype("string")
    seconds = pd.to_datetime(pd.to_numeric(stamps, errors="coerce"), unit="s", utc=True, errors="coerce")
    texts = pd.to_datetime(stamps, format="ISO8601", utc=True, errors="coerce")
    result = classify(made.assign(time=seconds.fillna(texts), origin="export"))
    result.attrs["duplicates"] = sum(seen.values())
    return result


def _known(value: Any, provider: str | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """An event, taken out of its envelope, and the table of facts whose shape it has."""
    for table in _TABLES:
        event = value
        for field in table.get("unwrap", ()):
            if isinstance(event, dict) and isinstance(event.get(field), str):
                event = next((inner for _, inner in _values(event[field])), None)
        marked = any(all(_get(event, [path]) is not None for path in marks) for marks in table["marks"])
        if marked and provider in (None, table["name"]):
            return event, table
    return None


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """JSON values with their line, in an array the item's number; None for what is no JSON."""
    decode, at, line = json.JSONDecoder().raw_decode, 0, 1
    while found := _BEGIN.search(text, at):
        line, at = line + text.count("\n", at, found.start()), found.start()
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError):
            again = _AGAIN.search(text, at)
            value, end = None, again.end() if again else len(text)
        yield from enumerate(value, 1) if isinstance(value, list) else [(line, value)]
        line, at = line + text.count("\n", at, end), end


def _rows(part: Part, provider: str | None, seen: dict[Any, int]) -> Iterator[dict[str, Any]]:
    with part.open() as stream:
        begin = stream.peek(4096)[:4096].removeprefix(b"\xef\xbb\xbf").strip()
        if not begin.startswith((b"{", b"[")):
            raise FormatError(part.name, "this is not JSON" if begin else "the file is empty")
        text = stream.read().decode("utf-8-sig", "backslashreplace")
    known, lost = False, []
    for line, value in _values(text):
        where = {"source": part.name, "line": line}
        if (found := _known(value, provider)) is None:
            said = f"line {line}: {'not JSON' if value is None else 'no event of a known provider'}"
            lost.append({"time": None, "text": said, "attempted": False, "hint": "unreadable"} | where)
            continue
        known, (event, table) = True, found
        if (key := _get(event, table.get("id", []))) is not None:
            if (table["name"], key) in seen:
                seen[table["name"], key] += 1
                continue
            seen[table["name"], key] = 0
        listed = next(filter(None, (_walk(event, path) for path in table.get("each", ()))), None)
        for item in listed if isinstance(listed, list) else [listed]:
            yield _row({**event, "each": item}, table) | where
    if lost and not known:
        raise FormatError(part.name, f"there is no event of a known provider in it; known: {', '.join(_NAMES)}")
    yield from lost


def _row(event: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {column: _get(event, paths) for column, paths in table["fields"].items()}
    kind, words = table.get("always") or _get(event, table["event"]), table.get("words", {})
    means = table["events"].get(kind, {"hint": "unreadable", "text": f"unknown event {kind!a}"})
    for path, but in table.get("but", {}).items():
        means = means | but.get(_get(event, [path]), {})
    text = means.get("text") or _KIND.sub("", words.get(row["text"], row["text"] or ""), count=1).strip()
    stated, said = (_CODES.match(words or "") for words in (row.get("status_code"), text))
    for column in table.get("before_dot", ()):
        row[column] = row[column] and row[column].partition(".")[0]
    return row | {
        "text": text or kind,
        "outcome": means.get("outcome"),
        "attempted": means.get("attempted", "outcome" in means),
        "hint": means.get("hint"),
        "reply_code": (said and said[1]) or (stated and stated[1]),
        "status_code": (stated and stated[2]) or (said and said[2]),
        "step": "inbox" if means.get("outcome") == "passed" else None,
    }


def _walk(event: Any, path: str) -> Any:
    for name in path.split("."):
        event = event[0] if isinstance(event, list) and event else event
        event = event.get(name) if isinstance(event, dict) else None
    return event


def _get(event: Any, paths: list[str]) -> str | None:
    """The first of the fields that holds a text or number, as text; of a list its first item."""
    for path in paths:
        found = _walk(event, path)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, str | int | float) and found != "":
            return str(found).encode("utf-8", "backslashreplace").decode()  # lone surrogates are no text
    return None
