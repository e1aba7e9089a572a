"""Postfix: its delivery lines, joined with the lines around them that say more, and what it refused at its own door.

Sources: https://www.postfix.org/smtp.8.html, qmgr.8.html; lines of a real Postfix 3.7, of fail2ban and of lightmeter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.logs.scan import Kinds
from deliverkit.logs.tables import (
    NEVER,
    Facts,
    alike,
    decimals,
    encoded,
    first_after,
    keyed,
    last_before,
    mapped,
    nameless,
    places,
    taken,
)

_OURS = re.compile(r"[^\[]{16,200}?/(?:smtpd?|lmtp|qmgr|cleanup|master|pickup|local|bounce|error)\[\d++\]: ")
_HEAD = ("{stamp} {process}]: ", "?[ID {}] ")
_SAYS = (
    "host |lost connection with |conversation with |SASL authentication failed|TLS is required|Server certificate |"
    "Cannot start TLS"
)
KINDS = Kinds(
    connect=(*_HEAD, "{text:connect to }"),
    delivery=(
        *_HEAD, "{queue_id:word}: ", "to=<{recipient:address}", "?>, orig_to=<{original_recipient:address}",
        ">, relay={relay}", "?, conn_use={}", ", delay={delay_s}", "?, delays={}", "?, dsn={status_code}",
        ", status={status}", " ({text:closed}",
    ),
    message=(*_HEAD, "{queue_id:word}: ", "message-id={message_id}"),
    expired=(
        *_HEAD, "{queue_id:word}: ", "from=<{sender:address}", ">, ", "{:status=expired, |status=force-expired, }",
    ),
    sender=(*_HEAD, "{queue_id:word}: ", "from=<{sender:address}", ">, ", "size={}"),
    removed=(*_HEAD, "{queue_id:word}: ", "removed"),
    said=(*_HEAD, "{queue_id:word}: ", f"{{text:{_SAYS}}}"),
    reject=(
        *_HEAD, "{queue_id:word}: ", "{:reject|milter-reject}: ", "{stage} from ", "{client:word}: ", "{text}",
        "?; from=<{sender:address}", "?> to=<{recipient:address}", "?> proto={}", "?; proto={}",
    ),
).only(
    message=("process", "queue_id", "message_id"), sender=("process", "queue_id", "sender"),
    removed=("process", "queue_id"), expired=("stamp", "process", "queue_id"),
)  # fmt: skip
_PROCESS = re.compile(r"\S++ (?:[^\s\[/]++/)*+[^\s\[/]++\[\d++")
_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_PEER = re.compile(r"(?:connect to )?([^\s\[]++)\[([^\]\s]++)\](?::(\d{1,5})\b)?(?:: .*\(port (\d{1,5})\)$)?")
_NAMED = re.compile(r"(?:\w++ ){0,9}?(?:host|with|server) ([^\s\[]++)\[([^\]\s]++)\]")
_SAID = re.compile(r"(?:(?:SASL authentication failed; server|host) \S++ [a-z ]++: )?([2-5]\d\d)(?=[ -]|$)")
_LOST, _REPLY = r"(?:lost connection|conversation) with \S++ (?:timed out )?while ", r".*\(in reply to "
_STEP = re.compile(
    rf"(?P<connect>connect to )|(?P<rules>host \S++ refused to|{_LOST}(?:receiving the initial|performing the [EHL]+O)|"
    rf"{_REPLY}[EHL]+O command\)$)|(?P<encryption>TLS is req|Cannot start TLS|Server cert|{_REPLY}STARTTLS command\)$|"
    rf"{_LOST}performing the TLS)|(?P<relay>{_LOST}sending (?:MAIL|RCPT|DATA)|{_REPLY}(?:MAIL|RCPT|DATA) "
    rf")|(?P<inbox>{_LOST}sending (?:end of data|message body)|{_REPLY}end of DATA command\)$)"
)
_CLIENT = re.compile(r"([^\s\[]++)\[([^\]\s]++)\](?::\d++)?")
_REPLY_IN = re.compile(r"(?:([245]\d\d)(?=[ -]|$))?[ -]?([245]\.\d{1,3}\.\d{1,3})?")
_DOORS = {"CONNECT": "connect", "HELO": "rules", "EHLO": "rules", "STARTTLS": "encryption", "END-OF-MESSAGE": "inbox"}
_OUTCOMES = {"sent": "passed", "deferred": "deferred", "SOFTBOUNCE": "deferred", "bounced": "failed"}
_PROBES = {"deliverable": "event", "undeliverable": None}  # address probes (sendmail -bv) hand over nothing
_HELD = "delivery temporarily suspended: "
_ABOUT = ("recipient", "original_recipient", "sender", "queue_id", "message_id")


def sniff(line: str) -> bool:
    """True if a program of Postfix wrote the line, whatever the line is about."""
    return _OURS.match(line) is not None


def events(tables: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """The lines that say something, with their `fact`; `owner` is host and instance: whose queue ids these are."""
    made = {name: _owned(table) for name, table in tables.items()}
    table, known = made["delivery"], pc.is_in(made["delivery"]["status"], pa.array([*_OUTCOMES, *_PROBES]))
    table = table if pc.all(known).as_py() in (True, None) else table.filter(known)
    said = alike(table["text"], pc.equal(table["status"], "sent"))
    fact = facts.of(_delivery, table["program"], table["relay"], table["status"], table["status_code"], said)
    table = table.append_column("fact", pa.array(fact)).drop_columns(["relay", "status", "status_code"])
    made["delivery"] = table.set_column(table.schema.get_field_index("delay_s"), "delay_s", decimals(table["delay_s"]))
    table = pa.concat_tables([made.pop("connect"), made.pop("said")], promote_options="default").sort_by("line")
    table = table.filter(pc.is_in(table["program"], pa.array(["smtp", "lmtp"])))
    warned = pc.fill_null(pc.is_in(table["queue_id"], pa.array(["warning", "fatal"])), False)
    table = table.filter(pc.invert(warned))
    made["tries"] = table.append_column("fact", pa.array(facts.of(_try, alike(table["text"]))))
    table = made["reject"]
    table = table.append_column("fact", pa.array(facts.of(_reject, table["stage"], nameless(table["text"]))))
    for place, name in enumerate(("host", "address")):  # of the row itself: there is no end of strangers
        table = table.append_column(name, mapped(table["client"], partial(_client, place)))
    made["reject"] = table
    return made


def _client(place: int, text: str) -> str | None:
    """Name (0) or address (1) of who came."""
    found = _CLIENT.fullmatch(text)
    return None if not found or found[place + 1] == "unknown" else found[place + 1]


def join(made: dict[str, pa.Table], facts: Facts) -> pa.Table:
    """One row per delivery line, per failed try of an earlier host, per recipient given up on, and per refusal of ours.

    Tries of earlier hosts stand on lines of their own, without a recipient: the next delivery line of that process says
    whom they were for, and where it repeats one, that counts once. `status=expired` ends every recipient still
    deferred; such rows and those of the error program have `attempted` False. Address probes have no outcome either,
    nor have notifications (null sender) that end in a mailbox of this machine: they are nobody's campaign.
    """
    delivery, sender, expired, begun, ended = (
        made[name] for name in ("delivery", "sender", "expired", "message", "removed")
    )
    ours, theirs, late, first, last = keyed(delivery, sender, expired, begun, ended, by=("owner", "queue_id"))
    begins, ends = (first, places(begun)), (last, places(ended))
    delivery = _known(delivery, ours, begun, begins, sender, theirs, ends, facts)
    rows = facts.at_once((
        lambda: _earlier(made["tries"], delivery, facts),
        lambda: _given_up(expired, late, delivery, ours, (begins, ends), facts),
    ))  # fmt: skip
    rows += [delivery, made["reject"]]
    names = ["line", "stamp", "fact", "text", "delay_s", "host", "address", *_ABOUT]
    whole = [table.select([name for name in names if name in table.column_names]) for table in rows]
    return pa.concat_tables(whole, promote_options="default")


LINKS = (
    (("delivery", "message", "sender", "expired", "removed"), ("owner", "queue_id")),
    (("tries", "delivery"), ("process",)),
)
SPARE = {"time": "stamp", "message_id": "message_id", "original_recipient": "original_recipient", "delay_s": "delay_s"}


def digest(made: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """Events of messages that do not begin and end in this part, tries that no line here explains, and first lines."""
    delivery, tries = made["delivery"], made["tries"]
    first = delivery.take(pa.array(np.unique(encoded(delivery["process"])[0], return_index=True)[1]))
    needed = pc.unique(_key(first))
    keys = [[table["owner"], table["queue_id"]] for table in (made["message"], made["removed"])]
    begun, ended = (places(made[name]) for name in ("message", "removed"))

    def some(name: str) -> pa.Table:
        table = made[name]
        whose, at = [table["owner"], table["queue_id"]], places(table)
        begins = last_before(whose, at + 1, keys[0], begun) >= 0
        whole = begins & (first_after(whose, at - 1, keys[1], ended) >= 0)
        return table.filter(pc.or_(pa.array(~whole), pc.is_in(_key(table), needed)))

    later = first_after([tries["process"]], places(tries), [delivery["process"]], places(delivery)) < 0
    tables = {name: some(name) for name in ("delivery", "message", "sender", "expired")}
    return tables | {"removed": made["removed"], "tries": tries.filter(pa.array(later)), "reject": made["reject"][:0]}


def _key(table: pa.Table) -> Any:
    return pc.binary_join_element_wise(table["owner"], table["queue_id"], " ")


def _owned(table: pa.Table) -> pa.Table:
    """With `owner` and `program` of each line; lines of no process go."""
    codes, values = encoded(table["process"])
    where, names = pa.array(codes), [text if _PROCESS.fullmatch(text) else None for text in values]
    owners = [text and text.partition("/")[0].partition("[")[0] for text in names]
    programs = [text and text.partition(" ")[2].partition("[")[0].rpartition("/")[2] for text in names]
    for name, column in (("owner", owners), ("program", programs)):
        table = table.append_column(name, pa.array(column, pa.string()).take(where))
    return table.filter(pc.is_valid(table["owner"])) if None in names else table


def _known(
    delivery: pa.Table, ours: Any, begun: pa.Table, begins: Any, sender: pa.Table, theirs: Any, ends: Any, facts: Facts
) -> pa.Table:
    """Delivery lines with `message_id` and `sender`: a message lasts from its `begun` to its `ended` line."""
    at = places(delivery)
    others = (begins, ends, (theirs, places(sender)))
    first, last, envelope = facts.at_once(partial(last_before, [ours], at, [key], there) for key, there in others)
    since, over = np.append(begins[1], NEVER)[first], np.append(ends[1], NEVER)[last]
    first = np.where(over > since, -1, first)
    envelope = np.where(np.append(places(sender), NEVER)[envelope] > np.maximum(since, over), envelope, -1)
    null = np.append(pc.equal(sender["sender"], "").to_numpy(), False)[envelope]
    rows = np.flatnonzero(null)
    local = pc.is_in(delivery["program"].take(pa.array(rows)), pa.array(["smtp", "lmtp"]))
    rows = rows[~local.to_numpy()]
    fact = delivery["fact"].to_numpy().copy()
    fact[rows] = facts.changed(fact[rows], by=lambda _: {"outcome": None, "attempted": False, "hint": "notice"})
    delivery = delivery.set_column(delivery.schema.get_field_index("fact"), "fact", pa.array(fact))
    unnamed = np.append(pc.fill_null(pc.equal(begun["message_id"], "<>"), True).to_numpy(), False)[first]
    names = taken(begun, np.where(unnamed, -1, first), ["message_id"])["message_id"]
    senders = taken(sender, np.where(null, -1, envelope), ["sender"])["sender"]
    return delivery.append_column("message_id", names).append_column("sender", senders)


def _earlier(tries: pa.Table, delivery: pa.Table, facts: Facts) -> pa.Table:
    """Tries with whom they were for, as the next delivery line of the process says, but for the one that it repeats."""
    row = first_after([tries["process"]], places(tries), [delivery["process"]], places(delivery))
    theirs = taken(delivery, row, [*_ABOUT, "text", "fact"])
    same = pc.fill_null(pc.equal(theirs["text"], tries["text"].combine_chunks()), False).to_numpy(zero_copy_only=False)
    again = np.flatnonzero(same)
    kept = np.ones(len(row), dtype=bool)
    kept[again[np.unique(row[again], return_index=True)[1]]] = False
    joined = row >= 0
    # one delivery tries its hosts on one port (smtp(8), nexthop): the line names it
    fact = tries["fact"].to_numpy().copy()
    other = theirs["fact"].filter(pa.array(joined)).to_numpy(zero_copy_only=False)
    fact[joined] = facts.changed(fact[joined], other, by=lambda tried, end: _before(tried, facts.rows[end]))
    made = {"line": tries["line"], "stamp": tries["stamp"], "text": tries["text"], "fact": pa.array(fact)}
    made |= {name: theirs[name] for name in _ABOUT}
    made["queue_id"] = pc.coalesce(theirs["queue_id"], tries["queue_id"])
    return pa.table(made).filter(pa.array(kept))


def _before(tried: Mapping[str, Any], end: Mapping[str, Any]) -> dict[str, Any]:
    port, outcome = tried["port"] or end["port"], end["outcome"] and "deferred"
    return {"port": port, "outcome": outcome, "attempted": end["attempted"]}


def _given_up(expired: pa.Table, theirs: Any, delivery: pa.Table, ours: Any, others: Any, facts: Facts) -> pa.Table:
    """A row per recipient whose last delivery line before `status=expired` says deferred."""
    rows = np.flatnonzero(np.isin(ours, theirs))
    ours, delivery = ours[rows], delivery.take(pa.array(rows))
    at = places(delivery)
    end = first_after([ours], at, [theirs], places(expired))
    when = np.append(places(expired), NEVER)[end]
    for key, there in others:
        new = first_after([ours], at, [key], there)
        end = np.where((new >= 0) & (np.append(there, NEVER)[new] < when), -1, end)
    late = pd.DataFrame(
        {"end": end, "recipient": delivery["recipient"].to_pandas(), "at": at, "row": np.arange(len(at))}
    )
    late = late[late["end"] >= 0].sort_values("at").drop_duplicates(["end", "recipient"], keep="last")
    outcome = facts.column("outcome", delivery["fact"].to_numpy(), pa.string()).to_pandas()
    late = late[outcome.to_numpy()[late["row"]] == "deferred"]
    end, row = late["end"].to_numpy(), late["row"].to_numpy()
    made = taken(delivery, row, [*_ABOUT]) | taken(expired, end, ["line", "stamp"])
    text = pa.array(["expired, returned to sender"] * len(end), pa.string())
    return pa.table(made | {"text": text, "fact": pa.array(facts.of(_expired, text))})


def _expired(text: str) -> dict[str, Any]:
    return {"text": text, "hint": "expired", "outcome": "failed", "attempted": False}


def _delivery(program: str, relay: str, status: str, code: str | None, text: str) -> dict[str, Any]:
    outcome = _OUTCOMES.get(status)
    real = outcome is not None and program not in ("error", "retry") and not text.startswith(_HELD)
    peer = text.removeprefix(_HELD) if relay == "none" else relay
    made = _far_end(text, peer, "inbox" if outcome == "passed" else None)
    if program not in ("smtp", "lmtp"):
        made["reply_code"] = None  # the text is not of a far end
    code = code if code and _CODE.fullmatch(code) else None
    return made | {"outcome": outcome, "attempted": real, "status_code": code, "hint": _PROBES.get(status)}


def _try(text: str) -> dict[str, Any]:
    return _far_end(text, text) | {"outcome": "deferred", "attempted": True}


def _reject(stage: str, text: str) -> dict[str, Any]:
    said = _REPLY_IN.match(text)
    code, status = said.groups() if said else (None, None)
    worse = (code or status or "")[:1] == "5"
    return {
        "direction": "in", "attempted": False, "outcome": "failed" if worse else "deferred", "text": text,
        "reply_code": int(code) if code else None, "status_code": status, "step": _DOORS.get(stage, "relay"),
    }  # fmt: skip


def _far_end(text: str, peer: str, step: str | None = None) -> dict[str, Any]:
    """Host, address and port as `peer` names them; reply code and step as the text tells them."""
    plain = text.removeprefix(_HELD)
    found, said, ended = _PEER.match(peer) or _NAMED.match(peer), _SAID.match(plain), step or _STEP.match(plain)
    host, address, *ports = found.groups() if found else (None, None)
    port = next((int(port) for port in ports if port and 0 < int(port) < 65536), None)
    made = {"host": host, "address": None if address is None or "/" in address else address, "port": port, "text": text}
    return made | {"reply_code": int(said[1]) if said else None, "step": getattr(ended, "lastgroup", ended)}
