"""Event exports of mail providers: one row per event and recipient, or per attempt where an event tells of several.

What a field or an event means stands in facts/esp_exports.toml; this module knows paths, codes and envelopes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit import facts
from deliverkit.classify import classify
from deliverkit.errors import FormatError, SchemaError
from deliverkit.files import Part, Source
from deliverkit.records import TEXT, TIME, Block, Table, dates, gather, looks_like, plain
from deliverkit.schema import ATTEMPTS, STEPS

_KIND = r"^(?i:smtp|x-[\w-]{1,20})\s*;\s*|^sent \("  # as in a delivery report, "smtp; 550 ...", or in a log of Postfix
_CODES = re.compile(r"(?:([2-5][0-8]\d)(?:[ -]|$))?#?([245]\.\d{1,3}\.\d{1,3}\b)?")  # x9x are a provider's own
_TYPES = {"string": TEXT, "Int64": pa.int64(), "Float64": pa.float64(), "boolean": pa.bool_()}
_FRAME = {c.name: _TYPES.get(c.dtype, TIME) for c in ATTEMPTS.columns}
_MAPPED = {"time", "vantage", "client", "campaign", "recipient", "original_recipient", "sender", "host", "address"}
_MAPPED |= {"port", "step", "outcome", "reply_code", "status_code", "text", "delay_s", "queue_id", "message_id"}
_READ = [*sorted(_MAPPED), "attempted", "source", "line"]
_SAID = {"time": "said_time", "port": "said_port"}  # what could not be read so far
_MORE = [("hint", TEXT), ("id", TEXT), ("event", pa.int64()), *((name, TEXT) for name in _SAID.values())]
_MADE = pa.schema([(name, _FRAME[name]) for name in _READ] + _MORE)
_ALLOWED = {"step": STEPS, "outcome": ("passed", "deferred", "failed")}
_FACTS = facts.tables("esp_exports")
_TABLES: list[Table] = _FACTS["provider"]
_NAMES = sorted({table["name"] for table in _TABLES})


def read_export(path: Source, provider: str | None = None, *, port: int | None = None,
                columns: Mapping[str, Any] | None = None) -> pd.DataFrame:  # fmt: skip
    """Read event exports of mail providers as an `ATTEMPTS` frame: one row per event and recipient.

    Takes JSON (values one after the other, lines, arrays, pages), CSV with a header, and form posts, of Amazon SES,
    SendGrid, Mailgun, Postmark, SparkPost, Mailchimp Transactional (mandrill), Brevo and Mailjet. The shape is found
    from the fields, among those of `provider` if one is named. Files are read in blocks, whatever their size.
    For any other file `columns` maps columns of the frame, and `event`, to the file's headers or JSON paths:
    `{"recipient": "Email", "time": "Date", "event": "Status"}`. Words for events are those of the table "generic" in
    facts/esp_exports.toml; a pair such as `("Status", {"ok": "delivered"})` translates others to these.
    CSV that is no UTF-8 is taken as Windows-1252. Times are unix seconds, ISO 8601, those of mail, `20.11.2026 10:00`,
    or `Nov 20, 2026 10:00 AM`; `11/02/2026` only where others of the file prove the order. A time without a zone is
    UTC. A warning counts the times and ports that could not be read.

    No provider tells the port: it stays missing unless `port=` says which one its attempts were made on. Events that
    are no attempt have `attempted` False, unknown ones say their kind in `text`. What cannot be read is a row that
    says where, behind the others of its file; `line` is the line, in a file that begins with an array the item. Events
    seen before (by their id) are dropped: `attrs["duplicates"]` counts them.
    Raises FormatError for an unknown provider, an empty file, and a file without any known event; SchemaError for a
    port that is none and for columns that cannot be mapped.
    """
    provider = provider.lower() if isinstance(provider, str) else provider
    if provider not in (None, *_NAMES):
        raise FormatError(path, f"no export of a provider {provider!r}; known: {', '.join(_NAMES)}")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535):
        raise SchemaError(f"port={port!r} is no TCP port, which is a whole number from 1 to 65535")
    tables = [_mapped(columns)] if columns is not None else [t for t in _TABLES if provider in (None, t["name"])]
    found = gather(path, tables, _FACTS["envelopes"], "no event of a known provider", _NAMES)
    return _framed(pa.concat_tables([_MADE.empty_table(), *(_rows(*some) for some in found)]), port, columns is None)


def known_export(part: Part) -> bool:
    """True if a file looks like an export: JSON, a form post, or CSV with the header of a known provider."""
    return looks_like(part, _TABLES, _FACTS["envelopes"])


def _mapped(columns: Mapping[str, Any]) -> Table:
    """The table of facts that a caller's columns make."""
    if unknown := [name for name in columns if name not in {*_MAPPED, "event"}]:
        raise SchemaError(f"columns= cannot set {unknown[0]!r}; it can set event, {', '.join(sorted(_MAPPED))}")
    paths = {name: asked[0] if isinstance(asked, tuple) else asked for name, asked in columns.items()}
    if not {"event", "outcome"} & set(paths) or not all(isinstance(path, str) and path for path in paths.values()):
        raise SchemaError(
            "columns= wants headers, of `event` or `outcome` at least; of event also (header, {word: event})"
        )
    [generic] = [table for table in _TABLES if table["name"] == "generic"]
    events = {plain(word): meaning for word, meaning in generic["events"].items()}
    for word, known in (columns["event"][1] if isinstance(columns.get("event"), tuple) else {}).items():
        if plain(known) not in events:
            raise SchemaError(f"columns=: there is no event {known!r}; known: {', '.join(generic['events'])}")
        events[plain(word)] = events[plain(known)]
    needs, mark = [*paths.values()], paths.get("recipient") or paths.get("event") or paths["outcome"]
    event = [paths.pop("event")] if "event" in paths else []
    return {"name": "generic", "mapped": True, "marks": [[mark]], "header": [needs], "event": event, "events": events,
            "fields": {name: [path] for name, path in paths.items()}}  # fmt: skip


def _rows(table: Table, block: Block, numbers: Any, events: Any, source: str) -> pa.Table:
    """The rows of events of one shape: one for each recipient, or for each attempt that an event tells of."""
    if not table:
        said = {"text": pa.array(block.values, TEXT), "hint": pa.array(["unreadable"] * len(events), TEXT)}
        return _filled(said | {"attempted": pa.repeat(False, len(events))}, numbers, events, source)
    if listed := [found for path in table.get("each", ()) if (found := block.raw(path))]:
        first = [next(filter(None, row), None) for row in zip(*listed, strict=True)]
        items = [one if isinstance(one, list) else [one] for one in first]
        if table["event"][0].startswith("each."):
            items = _attempts(table, items, block.column(table["event"][1:]).to_pylist())
        whose = np.repeat(np.arange(len(items)), [len(some) for some in items])
        block, numbers, events = block.take(whose), numbers[whose], events[whose]
        block.columns["each"] = [one for some in items for one in some]
    made: dict[str, Any] = {}
    for name, paths in table["fields"].items():
        kind = _FRAME[name]
        made[name] = block.column(paths, TIME if kind == TIME else TEXT)
        if name in _SAID and (kind != TIME or made[name].null_count):
            made[_SAID[name]] = block.column(paths)
        if kind not in (TIME, TEXT) and name != "reply_code":
            made[name] = _numbers(made[name], kind)
    for name, rewrite in table.get("rewrite", {}).items():
        if name in made:
            made[name] = pc.replace_substring_regex(made[name], *rewrite)
    if "message_id" in made:
        made["message_id"] = pc.replace_substring_regex(made["message_id"], r"^([^\s<>]+@[^\s<>]+)$", r"<\1>")
    for name in _ALLOWED.keys() & made.keys():
        lower = pc.utf8_lower(made[name])
        made[name] = pc.if_else(pc.is_in(lower, pa.array(_ALLOWED[name], TEXT)), lower, pa.scalar(None, TEXT))
    kinds = block.column(table["event"])
    means, group = _meanings(table, block, kinds)

    def meant(name: str, kind: Any = TEXT) -> Any:
        return pa.array([meaning.get(name) or None for meaning in means], kind).take(group)

    made["outcome"] = pc.coalesce(*(made[name] for name in ("outcome",) if name in made), meant("outcome"))
    tried = pc.is_valid(made["outcome"])
    never = pa.array([meaning.get("attempted") is False for meaning in means], pa.bool_()).take(group)
    made["attempted"], made["hint"] = pc.and_not(tried, never), meant("hint")
    inbox = pc.if_else(pc.equal(made["outcome"], "passed"), pa.scalar("inbox", TEXT), pa.scalar(None, TEXT))
    made["step"] = pc.coalesce(*(made[name] for name in ("step",) if name in made), meant("step"), inbox)
    for name in {"host", "address"} & made.keys():  # of events that are no delivery: a reader's
        made[name] = pc.if_else(tried, made[name], pa.scalar(None, TEXT))
    _words(table, made, kinds, meant("text"))
    ids = [[block.column([path]) for path in some] for some in table.get("id", ()) if all(map(block.raw, some))]
    if ids:
        gap = pa.scalar("\0", TEXT)
        whole = pc.coalesce(*(pc.binary_join_element_wise(*some, gap) for some in ids))
        made["id"] = pc.binary_join_element_wise(pa.scalar(table["name"], TEXT), whole, gap)
    return _filled(made, numbers, events, source)


def _filled(made: dict[str, Any], numbers: Any, events: Any, source: str) -> pa.Table:
    """The rows with all their columns."""
    made |= {"line": pa.array(numbers, pa.int64()), "event": pa.array(events, pa.int64())}
    made["source"] = pa.repeat(pa.scalar(source, TEXT), len(events))
    return pa.table([made.get(field.name, pa.nulls(len(events), field.type)) for field in _MADE], schema=_MADE)


def _attempts(table: Table, items: list[list[Any]], kinds: list[Any]) -> list[list[Any]]:
    """The attempts that events list, and the event itself (None) where none of them says what it says."""
    words, made = {plain(kind): meaning for kind, meaning in table["events"].items()}, []
    for some, kind in zip(items, kinds, strict=True):
        own, tries = words.get(plain(kind or ""), {}), [one for one in some if one is not None]
        said = {words.get(plain(str(one.get("type"))), {}).get("outcome") for one in tries if isinstance(one, dict)}
        told = own.get("outcome") in said or (
            own.get("hint") == "event" and said - {None}
        )  # sent off: later ones follow
        made.append([*tries, *([] if told else [None])] if own.get("outcome") else [None])
    return made


def _meanings(table: Table, block: Block, kinds: Any) -> tuple[list[Table], Any]:
    """What the events say by kind and by the fields of `but`, and the place of what each one says."""
    group, choices = np.zeros(len(block.values), np.int64), [[table["events"].get(table.get("always"), {})]]
    asked = [(kinds, table["events"], {"hint": "unreadable"})] if table["event"] else []
    asked += [(block.column([path]), words, {}) for path, words in table.get("but", {}).items() if block.raw(path)]
    for found, words, otherwise in asked:
        place = {plain(word): n for n, word in enumerate(words, 1)}
        coded = found.dictionary_encode()
        code = np.array([*(place.get(plain(word), 0) for word in coded.dictionary.to_pylist()), 0])
        group = group * (len(words) + 1) + code[coded.indices.fill_null(-1).to_numpy()]
        choices.append([otherwise, *words.values()])
    used, group = np.unique(group, return_inverse=True)
    means = [Table() for _ in used]
    for choice in reversed(choices):
        used, codes = np.divmod(used, len(choice))
        means = [choice[code] | meaning for code, meaning in zip(codes.tolist(), means, strict=True)]
    return means, pa.array(group)


def _words(table: Table, made: dict[str, Any], kinds: Any, meant: Any) -> None:
    """Fill in the text and the codes that it begins with."""
    own = pc.and_(pc.is_valid(made["outcome"]), "mapped" in table)  # a word of the caller's, whose meaning is told
    said = pc.if_else(own, pa.scalar(None, TEXT), kinds)
    text = made.get("text", said)
    if "words" in table:
        words, instead = (pa.array(some, TEXT) for some in (table["words"].keys(), table["words"].values()))
        text = pc.coalesce(instead.take(pc.index_in(text, words)), text)
    text = pc.ascii_trim_whitespace(pc.replace_substring_regex(text, _KIND, ""))
    found = {"text": text} | {name: made[name] for name in ("status_code", "reply_code") if name in made}
    codes = {name: _codes(some) for name, some in found.items()}
    made["reply_code"] = pc.coalesce(*(reply for reply, _ in codes.values()))
    made["status_code"] = pc.coalesce(*(codes[name][1] for name in ("status_code", "text") if name in codes))
    unknown = pc.equal(made["hint"], "unreadable")
    named = pa.array([f"unknown event {str(kind)[:200]!a}" for kind in kinds.filter(unknown).to_pylist()], TEXT)
    made["text"] = pc.replace_with_mask(pc.coalesce(text, meant, said), pc.fill_null(unknown, False), named)


def _codes(texts: Any) -> tuple[Any, Any]:
    """Reply codes and enhanced codes that texts begin with; few beginnings differ."""
    coded = pc.utf8_slice_codeunits(texts, 0, 14).dictionary_encode()
    found = [match.groups() if (match := _CODES.match(text)) else (None, None) for text in coded.dictionary.to_pylist()]
    reply = pa.array([int(reply) if reply else None for reply, _ in found], pa.int64())
    return reply.take(coded.indices), pa.array([status for _, status in found], TEXT).take(coded.indices)


def _numbers(texts: Any, kind: Any) -> Any:
    numbers = pd.to_numeric(pd.Series(texts.to_pylist(), dtype=object), errors="coerce").to_numpy("float64")
    good = np.isfinite(numbers) & (np.abs(numbers) < 1 << 53)
    return pa.array(np.where(good, numbers, 0), mask=~good).cast(kind, safe=False)


def _framed(made: pa.Table, port: int | None, named: bool) -> pd.DataFrame:
    """The rows as a classified frame, without those of events seen before."""
    if (np.diff(made["event"]) < 0).any():
        made = made.take(pa.array(np.argsort(made["event"], kind="stable")))
    coded = made["id"].combine_chunks().dictionary_encode()
    size, events = len(coded.dictionary), made["event"].to_numpy()
    codes, first = coded.indices.fill_null(size).to_numpy(), np.zeros(size + 1, np.int64)
    first[codes[::-1]] = events[::-1]
    again = (events != first[codes]) & (codes < size)
    rows = made.filter(pa.array(~again)).drop_columns(["id", "event"])
    types = {TEXT: pd.StringDtype("pyarrow"), pa.int64(): pd.Int64Dtype(), pa.float64(): pd.Float64Dtype(),
             pa.bool_(): pd.BooleanDtype()}  # fmt: skip
    frame = rows.to_pandas(types_mapper=types.get).assign(origin="export")
    for _, some in frame[frame["said_time"].notna() & frame["time"].isna()].groupby("source")["said_time"]:
        found = dates(some.unique())
        frame.loc[some.index, "time"] = pd.to_datetime(some.map(found).astype(object), utc=True)
    frame["port"] = frame["port"].where(frame["port"].between(1, 65535))
    for name, said in _SAID.items():
        lost = frame[frame[said].notna() & frame[name].isna()]
        if len(lost):
            which = f"the first in {lost['source'].iloc[0]}, {lost['line'].iloc[0]}: {lost[said].iloc[0][:80]!r}"
            warnings.warn(f"{len(lost):,} of column {name} cannot be read and are missing; {which}", stacklevel=3)
    frame = frame.drop(columns=[*_SAID.values()])
    if named and (frame["message_id"].isna() & frame["queue_id"].notna()).any():  # not all events of a message name it
        names = frame.groupby([frame["queue_id"], frame["recipient"].str.lower()])["message_id"]
        only = names.transform("first").where(names.transform("nunique") == 1)
        frame["message_id"] = frame["message_id"].fillna(only)
    if port is not None:
        frame["port"] = frame["port"].mask(frame["attempted"] & frame["port"].isna(), port)
    result = classify(frame)
    result.attrs["duplicates"] = len(np.unique(events[again]))
    return result
