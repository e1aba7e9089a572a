"""Exim: its delivery lines, the hosts that it tried in vain before, and what it refused at its own door.

With `log_selector = +outgoing_port` each line names the port; without, there is none. Sources: chapter 53 of Exim's
specification, deliver.c and transports/smtp.c of Exim 4.96; lines of a real Exim 4.96 and of fail2ban.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.logs.fields import endpoint, said
from deliverkit.logs.scan import Kinds
from deliverkit.logs.tables import (
    NEVER,
    Facts,
    alike,
    changed,
    first_after,
    keyed,
    last_before,
    mapped,
    nameless,
    number,
    part,
    places,
    seconds,
    taken,
)  # fmt: skip

_ID = r"[0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4}"
_OURS = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [+-]\d{4})? (?:\[\d+\] )?"
    rf"(?:{_ID} (?:[<(]=|[-=>*]>|==|\*\*|H=|Completed)|H=\S|rejected |(?:Start|End) queue run|exim [\d.]+ daemon|"
    r"SMTP (?:connection|call|command|data|protocol|syntax|timeout) |"
    r"no (?:host|IP|MAIL) |\w+ authenticator failed|unexpected disconnection)|.{16,300}? exim\d?\[\d+\]: "
)


class _Lines(Kinds):
    """The same kinds of line whether Exim or a syslog daemon wrote them: there another head stands before."""

    _named = re.compile(rb" exim4?\[")
    _head = re.compile(
        rb"(?m)^(?:<\d{1,3}>)?+([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\S++) (?:\S++ ){1,2}?exim\d?+\[\d++\]: "
        rb"(?:\[\d++[\\/]\d++\] )?+(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*+(?: [+-]\d{4})?+ )?+"
    )

    def scan(self, block: bytes | memoryview) -> tuple[dict[str, pa.Table], int]:
        return super().scan(self._plain(block))

    def read(self, lines: Iterable[bytes]) -> dict[str, pa.Table]:
        return super().read(map(self._plain, lines))

    def _plain(self, text: Any) -> Any:
        return self._head.sub(lambda m: m[2] or m[1] + b" ", text) if self._named.search(text) else text


_HEAD = ("{stamp} ", "?[{}] ")
_WHOM = "? ({})", "? <{original_recipient:address}>"
_FAR = ("? H={host}", "? DS{}", "? [{peer:word}", "? PRX={:word}", "? I={:word}", "? TFO{}", "? X={:word}",
        "? CV={:word}", '? DN="{:^" SNI=|" A=|" L|" PRDR|" K|" C=|" QT=|" DT=|": }"', "? SNI={:word}")  # fmt: skip
KINDS = _Lines(
    sent=(
        *_HEAD, "{queue_id:word} ", "{flag:=>|->|>>|*>} ", "{recipient:^ (| <| F=<| Q=| P=<| R=| T=}", *_WHOM,
        "? F=<{sender:address}>", "? Q={}", "? P=<{:address}>", "? R={:word}", "? T={:word}", "? S={}", *_FAR,
        "? A={}", "? L{}", "? PRDR{}", "? K{}", "? QT={delay}", "? DT={}", "? C={text}",
    ),
    deferred=(
        *_HEAD, "{queue_id:word} ", "== ", "{recipient:^ (| <| Q=| R=| T=| routing| defer (}", *_WHOM, "? Q={}",
        "? R={:word}", "? T={:word}", "? routing", " defer ({errno})", *_FAR, "? DT={}", "?: {text}",
    ),
    failed=(
        *_HEAD, "{queue_id:word} ", "** ", "{recipient:^ (| <| F=<| Q=| P=<| R=| T=|: }", *_WHOM,
        "? F=<{sender:address}>", "? Q={}", "? P=<{:address}>", "? R={:word}", "? T={:word}", *_FAR, ": {text}",
    ),
    odd=(*_HEAD, "{queue_id:word} ", "{flag:=>|->|>>|*>|==|**} ", "{text}"),
    begun=(*_HEAD, "{queue_id:word} ", "{:<=|(=} ", "{sender:address} ", "{text}"),
    ended=(*_HEAD, "{queue_id:word} ", "{:Completed}"),
    tries=(*_HEAD, "{queue_id:word} ", "H={text}"),
    door=(*_HEAD, "{text:H=|rejected }"),
).only(begun=("queue_id", "sender", "text"), ended=("queue_id",))  # fmt: skip
_PEER, _ADDRESS = r"(?P<host>\S+)(?: DS)? \[(?P<peer>[^\]\s]+\](?::\d+)?)\*?", r'(?:"(?:[^"\\]|\\.)*"[^>]*|[^>]*)'
_LATE = (  # the host behind the words of the system
    rf"^(?P<error>.*?)(?: H={_PEER})?(?: (?:PRX|I)=\S+)*(?: TFO\*?)?(?: DT=[\d.hms]+)?(?:: (?P<text>.*))?$"
)
_SYSTEM = (  # what connect(2) and its like say; other lines that name a host are notes
    "(?:Connection |No route to |Network is |Host is |Operation |Permission denied|Cannot assign |Broken pipe)"
)
_TRY = rf"^{_PEER}(?:: (?P<text>.*)| (?P<error>{_SYSTEM}.*))$"
_DOOR = (
    r"^(?:H=|rejected (?P<verb>[A-Z]+) from )?(?:(?P<host>[^\s(\[]+) )?(?:\([^)]*\) )?\[(?P<address>[^\]]+)\](?::\d+)?"
    rf'(?: (?:[A-EG-Z]\w*|Ci)=(?:"[^"]*"|\S+))*(?: F=<(?P<sender>{_ADDRESS})>| F=\S+)?(?:: | (?P<later>temporarily )?'
    rf"(?P<no>rejected) (?:(?P<stage>[A-Z]+) )?(?:<(?P<recipient>{_ADDRESS})>|(?P<bare>[^\s:<@]+@[^\s:<]+)|[^:<]*):? )"
    r"(?P<text>.*)$"
)
_AFTER = re.compile(
    r"(?:SMTP (?:error from remote mail server|timeout) after|(?:Remote host closed connection|Malformed SMTP reply"
    r"(?: \(an empty line\))?) in response to) (?:pipelined )?([A-Za-z]++)(?:[^<:]*+(?::<(?:[^@>]|@(?!>))*+@?>)?+"
    r"[^:]*+: ([2-5]\d\d)(?:[ -]#?([245]\.\d{1,3}\.\d{1,3})\b)?)?"
)
_STEPS = dict.fromkeys(("initial", "EHLO", "HELO", "LHLO"), "rules") | {"STARTTLS": "encryption"}
_STEPS |= dict.fromkeys(("MAIL", "RCPT", "DATA"), "relay") | dict.fromkeys(("end", "BDAT", "sending"), "inbox")
_TLS = re.compile("TLS session|a TLS session|TLS error|bad first read from TLS")
_EXPIRED, _IDLE = ("retry timeout exceeded", "all hosts for "), ("domain is held", "delivery cancelled by ")
_HELD = "retry time not reached for any host"
_RETRY = -51  # ERRNO_RETRY_BASE: this and what is below says that the time to try again has not come
_ROW = ["line", "stamp", "queue_id", "recipient", "original_recipient", "text", "delay_s", "fact"]
_DELIVERY, _OWN = [*_ROW, "address", "cause", "domain", "sender"], [*_ROW, "message_id", "sender"]


def sniff(line: str) -> bool:
    """True if Exim wrote the line, into its own log or through syslog."""
    return _OURS.match(line) is not None


def events(tables: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """The lines that say something, with their `fact`.

    `cause` and `address` tell which failed try a delivery line repeats, `domain` whose failure it waits for.
    """
    made = dict(tables)
    for name, table in tables.items():
        ours = pc.match_substring_regex(table["queue_id"], f"^{_ID}$") if name != "door" else pa.array([], pa.bool_())
        made[name] = table if pc.all(ours, min_count=0).as_py() else table.filter(ours)
    failed = pa.concat_tables([made["deferred"], made["failed"]], promote_options="default").combine_chunks()
    rows = [
        _sent(_addressed(made.pop("sent")), facts),
        _failed(_addressed(failed), facts),
        _odd(made.pop("odd"), facts),
    ]
    made["delivery"] = pa.concat_tables([table.select(_DELIVERY) for table in rows]).combine_chunks()
    begun = made["begun"]
    made["begun"] = begun.append_column("message_id", pc.binary_join_element_wise("<", _id(begun["text"]), ">", ""))
    made["door"] = _door(pa.concat_tables([made["door"], made["tries"]], promote_options="default"), facts)
    return made | {"tries": _tries(made["tries"], facts)}


def join(made: dict[str, pa.Table], facts: Facts) -> pa.Table:
    """One row per recipient and delivery line, per failed try of an earlier host, and per refusal of ours.

    A failed try stands on a line of its own; where a delivery line repeats it, that counts once and has its port. Who
    has to wait (`retry time not reached`) was not tried: such rows, and those that give up after long, have `attempted`
    False and the host and port of the last failure for that domain. Notifications (null sender) that end here have no
    outcome.
    """
    delivery, tries, begun, door = (made[name] for name in ("delivery", "tries", "begun", "door"))
    ours, theirs, first = keyed(delivery, tries, begun, by=("queue_id",))
    delivery, told = _explained(delivery, ours, tries, theirs, facts)
    row = last_before([ours], places(delivery), [first], places(begun))
    delivery = _begun(_waiting(delivery, facts), row, begun, facts)
    left = np.flatnonzero(~np.isin(np.arange(len(tries)), told))
    rows = [delivery, _earlier(tries.take(pa.array(left)), theirs[left], delivery, ours, facts)]
    rows = [table.select([name for name in _OWN if name in table.column_names]) for table in rows]
    return pa.concat_tables([*rows, door], promote_options="default")


LINKS = ((("delivery", "tries", "begun", "ended"), ("queue_id",)), (("delivery",), ("domain",)))


def digest(made: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """Events of messages that do not begin and end in this part; who waits for a domain, and its last failure."""
    ours, theirs = keyed(made["delivery"], made["tries"], by=("queue_id",))
    delivery = _explained(made["delivery"], ours, made["tries"], theirs, facts)[0].sort_by("line")
    whole = pc.unique(made["ended"].filter(pc.is_in(made["ended"]["queue_id"], made["begun"]["queue_id"]))["queue_id"])
    tables = {n: made[n].filter(pc.invert(pc.is_in(made[n]["queue_id"], whole))) for n in ("tries", "begun", "ended")}
    tried, known = facts.column("attempted", delivery["fact"].to_numpy(), pa.bool_()), pc.is_valid(delivery["address"])
    about = pd.DataFrame({"tried": tried, "domain": delivery["domain"], "known": known})
    kept = np.where(about["tried"], ~about.duplicated(keep="last"), ~about.duplicated()) & about["domain"].notna()
    kept |= ~pc.is_in(delivery["queue_id"], whole).to_numpy(zero_copy_only=False)
    return tables | {"delivery": delivery.filter(pa.array(kept)), "door": made["door"][:0]}


def _explained(delivery: pa.Table, ours: Any, tries: pa.Table, theirs: Any, facts: Facts) -> tuple[pa.Table, Any]:
    """Delivery lines with the host of the failed try they repeat where they name none, and which tries these are."""
    address, names = delivery["address"], ("host", "address", "port", "step")
    rows = np.flatnonzero(np.isin(ours, theirs) & delivery["cause"].is_valid().to_numpy())
    some, known = delivery.take(pa.array(rows)), address.is_valid().to_numpy()[rows]
    row = np.full(len(rows), -1)
    for sure, by in ((known, ("cause", "address")), (~known, ("cause",))):
        mine, other = ([codes, *(table[name] for name in by)] for codes, table in ((ours[rows], some), (theirs, tries)))
        row = np.where(sure, last_before(mine, places(some), other, places(tries)), row)
    late = np.flatnonzero((row >= 0) & ~known)
    told, ports = [row[row >= 0]], dict[int, int | None]()
    for some_rows, window, several in _at_once(some.take(pa.array(late)), ours, row[late], delivery, tries, theirs):
        told.append(window[-several.max() - 1 :])
        if len(window) == several.max() + 1:  # they end in the order in which they began
            row[late[some_rows]] = window[several]
        else:
            agreed = {facts.rows[n]["port"] for n in tries["fact"].to_numpy()[window].tolist()}
            ports |= dict.fromkeys(late[some_rows].tolist(), agreed.pop() if len(agreed) == 1 else None)
    unsure = np.isin(late, list(ports))
    sure, other = late[~unsure], tries["fact"].to_numpy()[row[late[~unsure]]]
    delivery = changed(delivery, rows[sure], facts, lambda _, n: _of(facts.rows[n], names), other)
    port = pa.array([ports[n] for n in late[unsure].tolist()], pa.int64())
    delivery = changed(delivery, rows[late[unsure]], facts, lambda _, port: {"port": port, "step": "connect"}, port)
    where = np.full(len(delivery), -1)
    where[rows[sure]] = row[sure]
    address = pc.coalesce(address, taken(tries, where, ["address"])["address"])
    return delivery.set_column(_DELIVERY.index("address"), "address", address), np.concatenate(told)


def _at_once(some: pa.Table, ours: Any, row: Any, delivery: pa.Table, tries: pa.Table, theirs: Any) -> Iterator[Any]:
    """Where lines of several domains fit the same last try: which, the tries they may be of, and a number a domain."""
    about = pd.DataFrame({"domain": _domain(some).to_pandas(), "row": row, "at": places(some)}).sort_values("at")
    shared = about[about.groupby("row")["domain"].transform("nunique") > 1]
    if shared.empty:
        return
    at, order = places(tries), np.lexsort((places(tries), theirs))
    codes, last = theirs[order], np.unique(shared["row"])
    before = last_before([theirs[last]], at[last], [ours], places(delivery))
    since = np.append(places(delivery), NEVER)[before]
    groups = (lines for _, lines in shared.groupby("row"))
    for lines, one, start in zip(groups, last.tolist(), since.tolist(), strict=True):
        low, high = np.searchsorted(codes, [theirs[one], theirs[one] + 1])
        same = order[low:high][(at[order[low:high]] > start) & (at[order[low:high]] <= at[one])]
        cause = pc.equal(tries["cause"].take(pa.array(same)), tries["cause"][one]).to_numpy()
        yield lines.index.to_numpy(), same[cause], pd.factorize(lines["domain"])[0]


def _waiting(delivery: pa.Table, facts: Facts) -> pa.Table:
    """Delivery lines that were no attempt, with the host and port of the last failure for their domain.

    Who waits for all hosts of it is judged by it, too.
    """
    fact, domain, at = delivery["fact"].to_numpy(), delivery["domain"], places(delivery)
    tried = facts.column("attempted", fact, pa.bool_()).to_numpy(zero_copy_only=False)
    ours, known = (delivery[name].is_valid().to_numpy(zero_copy_only=False) for name in ("domain", "address"))
    wait, why = np.flatnonzero(ours & ~tried), np.flatnonzero(ours & tried & known)
    row = last_before([domain.take(pa.array(wait))], at[wait], [domain.take(pa.array(why))], at[why])
    names = ("host", "address", "port", "step", "reply_code", "status_code", "text")

    def like(fact: Mapping[str, Any], failure: int) -> dict[str, Any]:
        return _of(facts.rows[failure], names if fact["text"].startswith(_HELD) else names[:3])

    return changed(delivery, wait[row >= 0], facts, like, fact[why[row[row >= 0]]])


def _begun(delivery: pa.Table, row: Any, begun: pa.Table, facts: Facts) -> pa.Table:
    """Delivery lines with Message-ID and sender; what becomes of notifications here is nobody's campaign."""
    made = taken(begun, row, ["message_id", "sender"])
    sender = pc.coalesce(made["sender"], delivery["sender"])
    notice = pc.fill_null(pc.is_in(sender, pa.array(["<>", ""])), False)
    rows = np.flatnonzero(pc.and_(notice, pc.is_null(delivery["address"])).to_numpy(zero_copy_only=False))
    delivery = changed(delivery, rows, facts, lambda _: {"outcome": None, "attempted": False, "hint": "notice"})
    delivery = delivery.set_column(_DELIVERY.index("sender"), "sender", pc.if_else(notice, None, sender))
    return delivery.append_column("message_id", made["message_id"])


def _earlier(tries: pa.Table, theirs: Any, delivery: pa.Table, ours: Any, facts: Facts) -> pa.Table:
    """Tries that no delivery line repeats, with whom they were for if all of the message are of one domain."""
    tried = facts.column("attempted", delivery["fact"].to_numpy(), pa.bool_()).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.isin(ours, theirs) & tried)
    delivery, ours = delivery.take(pa.array(rows)), ours[rows]
    row = first_after([theirs], places(tries), [ours], places(delivery))
    about = pd.DataFrame({"id": ours, "domain": _domain(delivery).to_pandas()})
    sole = about.groupby("id")["domain"].transform("nunique").eq(1).to_numpy()
    made = taken(delivery, row, ["message_id", "sender"])
    made |= taken(delivery, np.where(np.append(sole, False)[row], row, -1), ["recipient", "original_recipient"])
    return pa.table({name: tries[name] for name in _ROW if name in tries.column_names} | made)


def _addresses(peer: Any) -> Any:
    return mapped(peer, lambda peer: _far(None, peer)["address"])


def _addressed(table: pa.Table) -> pa.Table:
    """With recipients as they were given: Exim shows them without quotes, and the given form behind."""
    shown, given, made = table["recipient"], table["original_recipient"], {n: table[n] for n in table.column_names}
    plain = pc.replace_substring_regex(pc.replace_substring_regex(given, r'^"(.*)"@', r"\1@"), r"\\(.)", r"\1")
    bare = pc.match_substring_regex(shown, r"^[|/:>]|^[^@]*$")  # a pipe, a file, a mailbox here
    same = pc.fill_null(pc.or_(bare, pc.equal(pc.utf8_lower(plain), pc.utf8_lower(shown))), bare)
    made["recipient"] = pc.if_else(same, pc.coalesce(given, shown), shown)
    made["original_recipient"] = pc.if_else(same, None, given)
    return pa.table(made)


def _sent(table: pa.Table, facts: Facts) -> pa.Table:
    text, delay, none = table["text"], table["delay"], pa.nulls(len(table), pa.string())
    if not pc.all(pc.ends_with(text, '"')).as_py():  # times behind the reply
        late = pc.extract_regex(text, r'" QT=(?P<delay>[\d.wdhms]+)[^"]*$')
        delay, text = pc.coalesce(delay, part(late, "delay")), pc.replace_substring_regex(text, '"[^"]*$', '"')
    text = pc.replace_substring_regex(pc.utf8_slice_codeunits(text, 1, -1), r'\\(["\\])', r"\1")
    reply = pc.utf8_slice_codeunits(text, 0, 10)
    fact = pa.array(facts.of(_delivered, table["flag"], table["host"], table["peer"], reply))
    made = {"text": text, "delay_s": mapped(delay, seconds, pa.float64()), "fact": fact, "cause": none, "domain": none}
    made |= {"address": _addresses(table["peer"]), "sender": table["sender"]}
    return pa.table({name: table[name] for name in _ROW[:5]} | made)


def _failed(table: pa.Table, facts: Facts) -> pa.Table:
    text = table["text"]
    if pc.any(pc.match_substring(text, " DT=")).as_py():
        text = pc.replace_substring_regex(text, r" DT=[\d.dhms]+$", "")
    system = mapped(table["errno"], lambda errno: (number(errno) or 0) > 0, pa.bool_())
    late = pc.extract_regex(pc.if_else(system, text, None), _LATE)
    error, message = part(late, "error"), part(late, "text")
    host, peer = (pc.coalesce(table[name], part(late, name)) for name in ("host", "peer"))
    cause = pc.coalesce(pc.binary_join_element_wise(message, error, ": "), error, text)
    text = pc.coalesce(message, error, text)
    fact = facts.of(_failure, table["errno"], host, peer, alike(text))
    made = {"text": text, "delay_s": pa.nulls(len(table), pa.float64()), "fact": pa.array(fact)}
    made |= {"address": _addresses(peer), "cause": _line(cause), "domain": _domain(table), "sender": table["sender"]}
    return pa.table({name: table[name] for name in _ROW[:5]} | made)


def _odd(table: pa.Table, facts: Facts) -> pa.Table:
    """Delivery lines that are not what they should be: addresses without their quotes look like the rest of a line."""
    given = part(pc.extract_regex(table["text"], r'<(?P<given>"(?:[^"\\]|\\.)*"@[^>\s]+)>'), "given")
    found = pc.coalesce(given, part(pc.extract_regex(table["text"], r"^(?P<shown>[^\s<>]+@[^\s<>]+) "), "shown"))
    waits = pc.match_substring(table["text"], "retry time not reached")
    none, fact = pa.nulls(len(table), pa.string()), pa.array(facts.of(_unclear, table["flag"], waits))
    made = {"recipient": found, "original_recipient": none, "text": table["text"], "fact": fact}
    made |= {"delay_s": pa.nulls(len(table), pa.float64()), "address": none, "cause": none, "domain": none}
    return pa.table({name: table[name] for name in _ROW[:3]} | made | {"sender": none})


def _tries(table: pa.Table, facts: Facts) -> pa.Table:
    found = pc.extract_regex(table["text"], _TRY)
    table, found = table.filter(pc.is_valid(found)), found.drop_null()
    text, peer = pc.coalesce(part(found, "text"), part(found, "error")), part(found, "peer")
    fact = pa.array(facts.of(_tried, part(found, "host"), peer, alike(text)))
    made = {"text": text, "fact": fact, "address": _addresses(peer), "cause": _line(text)}
    return pa.table({name: table[name] for name in ("line", "stamp", "queue_id")} | made)


def _door(table: pa.Table, facts: Facts) -> pa.Table:
    table = table.filter(pc.match_substring(table["text"], "rejected ")).combine_chunks()
    found = pc.extract_regex(table["text"], _DOOR)
    ours = pc.fill_null(pc.is_valid(pc.coalesce(part(found, "verb"), part(found, "no"))), False)
    table, found = table.filter(ours), found.filter(ours)
    made = {name: part(found, name) for name in ("recipient", "sender", "text")}
    made["recipient"] = pc.coalesce(made["recipient"], part(found, "bare"))
    made |= {name: part(found, name) for name in ("host", "address")}
    command = pc.coalesce(part(found, "verb"), part(found, "stage"))
    made["fact"] = pa.array(facts.of(_refused, command, part(found, "later"), nameless(made["text"])))
    return pa.table({name: table[name] for name in ("line", "stamp")} | made)


def _id(text: Any) -> Any:
    """The Message-ID of a message that arrived, which does not stand between quotes (certificate, subject)."""
    place, quote = pc.find_substring(text, " id="), pc.find_substring(text, '"')
    quoted = pc.and_(pc.greater_equal(quote, 0), pc.less(quote, place))
    rest = pc.extract_regex(pc.if_else(quoted, text, None), r'^(?:[^"]|"(?:[^"\\]|\\.)*")*? id=(?P<id>\S+)')
    return pc.if_else(quoted, part(rest, "id"), part(pc.extract_regex(text, r" id=(?P<id>\S+)"), "id"))


def _of(fact: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fact[name] for name in names}


def _domain(table: pa.Table) -> Any:
    return pc.utf8_lower(pc.replace_substring_regex(table["recipient"], "^.*@", ""))


def _line(cause: Any) -> Any:
    """Without the end of line that a failed try has and a delivery line shows."""
    return pc.utf8_rtrim(cause, "\\n ")


def _delivered(flag: str, host: str | None, peer: str | None, text: str | None) -> dict[str, Any]:
    made, real = _far(host, peer) | said(text or ""), flag != "*>"  # which was kept from being delivered (-N)
    made |= {"outcome": "passed" if real else None, "attempted": real, "step": "inbox", "text": text or ""}
    return made | {"status_code": made["status_code"] or "2.0.0"}


def _failure(errno: str | None, host: str | None, peer: str | None, text: str | None) -> dict[str, Any]:
    made = _far(host, peer) | _said(text or "")
    over, outcome = made["text"].startswith(_EXPIRED), "failed" if errno is None else "deferred"
    real = not over and (number(errno) or 0) > _RETRY and not made["text"].startswith(_IDLE)
    return made | {"outcome": outcome, "attempted": real, "hint": "expired" if over and not errno else None}


def _tried(host: str, peer: str, text: str) -> dict[str, Any]:
    return _far(host, peer) | _said(text, "connect") | {"outcome": "deferred", "attempted": True}


def _unclear(flag: str, waits: bool) -> dict[str, Any]:
    outcome = {"==": "deferred", "**": "failed", "*>": None}.get(flag, "passed")
    return {"outcome": outcome, "attempted": not waits and flag != "*>", "text": ""}


def _refused(command: str | None, later: str | None, text: str | None) -> dict[str, Any]:
    made = {"step": _STEPS.get(command or "", "relay"), "text": text or ""}
    return made | {"direction": "in", "attempted": False, "outcome": "deferred" if later else "failed"}


def _said(text: str, step: str | None = None) -> dict[str, Any]:
    verb, code, status = found.groups() if (found := _AFTER.match(text)) else (None, None, None)
    step = _STEPS.get(verb) if verb else "encryption" if _TLS.match(text) else step
    return {"step": step, "reply_code": code and int(code), "status_code": status, "text": text}


def _far(host: str | None, peer: str | None) -> dict[str, Any]:
    address, port = endpoint((peer or "").rstrip("*").removesuffix("]"))
    return {"host": None if host == address else host, "address": address, "port": port}
