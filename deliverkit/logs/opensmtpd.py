"""OpenSMTPD: its delivery lines with the port of their session, sessions that came to nothing, and what it refused.

Delivery lines name no port: that stands in the `mta connecting` line of the session. Sources: mta.c, mta_session.c and
smtp_session.c of OpenSMTPD 6.8, smtpd.conf(5) for the ports that a relay has by default; lines of a real 6.8.0p2.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.logs.fields import endpoint, said
from deliverkit.logs.scan import Kinds
from deliverkit.logs.tables import NEVER, Facts, alike, changed, last_before, mapped, part, places, seconds, taken

_OURS = re.compile(
    r".{16,200}? smtpd\[\d+\]: (?:[0-9a-f]{16} (?:smtp|mta|mda) |info: OpenSMTPD |smtp-(?:out|in): |relay: |setup_p)"
)
_HEAD = ("{stamp} {process}]: ",)
_ENVELOPE = ("delivery evpid={evpid:word} ", "from=<{sender:address}> ", "to=<{recipient:address}> ",
             "rcpt=<{original_recipient:address}> ")  # fmt: skip
KINDS = Kinds(
    delivery=(
        *_HEAD, "{session:word} ", "mta ", *_ENVELOPE, 'source="{}" ', 'relay="{relay}" ', "delay={delay_s:word} ",
        'result="{result}" ', 'stat="{text}',
    ),
    mailbox=(
        *_HEAD, "{session:word} ", "mda ", *_ENVELOPE, "user={:word} ", "delay={delay_s:word} ",
        "result={result:word} ", "stat={text}",
    ),
    connecting=(*_HEAD, "{session:word} ", "mta ", "connecting address={url:word} ", "host={host}"),
    connected=(*_HEAD, "{session:word} ", "mta ", "{:connected}"),
    error=(*_HEAD, "{session:word} ", "mta ", "error reason={text}"),
    ended=(*_HEAD, "{session:word} ", "mta ", "{:disconnected }"),
    client=(*_HEAD, "{session:word} ", "smtp ", "connected address={address:word} ", "host={host}"),
    left=(*_HEAD, "{session:word} ", "smtp ", "{:disconnected }"),
    refused=(*_HEAD, "{session:word} ", "smtp ", "failed-command command=\"{text}"),
    broken=(*_HEAD, "smtp-out: ", "Error on session ", "{session:word} ", "{text}"),
    route=(*_HEAD, "smtp-out: ", "No valid route for ", "{text}"),
    expired=(
        *_HEAD, "relay: ", "Expire for ", "{evpid:word} ", "from=<{sender:address}>, ", "to=<{recipient:address}>, ",
        "rcpt=<{original_recipient:address}>, ", "delay={delay_s:word} ", "stat={text}",
    ),
)  # fmt: skip
_ROUTE = re.compile(r"\[connector:.*?->\[relay:([^,\]]+)(?:,port=(\d{1,5}))?,(?:backup=[^,]*+,)?(smtps?)\b")
_PORTS = {"smtp": 25, "smtps": 465}  # of a relay for which smtpd.conf names none
_OUTCOMES = {"Ok": "passed", "TempFail": "deferred", "PermFail": "failed", "expired": "failed"}
_HELD = ("Network error on ", "Destination seem to ", "All routes to ", "No valid route to ")  # said of earlier tries
_COMMAND = (  # its last result is ours
    r'^(?:(?i:rcpt to:) ?<(?P<recipient>"(?:[^"\\]|\\.)*"[^>]*|[^>]*)>)?.*" result="(?P<text>.*?)"?$'
)
_TLS = re.compile(r"(?:SSL|TLS) |.*\bTLS (?:failed|required)")
_ROW = ["line", "stamp", "recipient", "original_recipient", "sender", "queue_id", "text", "delay_s", "fact"]
_OWN = ["line", "session", "fact"]


def sniff(line: str) -> bool:
    """True if OpenSMTPD wrote the line."""
    return _OURS.match(line) is not None


def events(tables: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """The lines that say something, with their `fact`; `held` are recipients of whom a line tells without a session."""
    made = {name: table.filter(mapped(table["process"], lambda text: " smtpd[" in text, pa.bool_()))
            for name, table in tables.items()}  # fmt: skip
    delivery = _delivery(made["delivery"], made["delivery"]["result"], facts)
    alone = pc.equal(delivery["session"], "0" * 16)
    rest = [_delivery(made["mailbox"], made.pop("mailbox")["result"], facts)]
    rest += [_delivery(made["expired"], pa.array(["expired"] * len(made.pop("expired")), pa.string()), facts)]
    made["held"] = pa.concat_tables([delivery.filter(alone), *rest]).drop_columns("session").combine_chunks()
    made["delivery"] = delivery.filter(pc.invert(alone)).drop_columns("relay")
    for name, make, where in (("connecting", _connecting, "url"), ("client", _client, "address")):
        fact = pa.array(facts.of(make, made[name][where], made[name]["host"]))
        made[name] = made[name].append_column("fact", fact).select(_OWN)
    line = made.pop("broken")
    line = line.set_column(line.column_names.index("session"), "session", pc.utf8_rtrim(line["session"], ":"))
    made["over"] = pa.concat_tables([made[name].select(_OWN[:2]) for name in ("ended", "error")])
    made["error"] = pa.concat_tables([made["error"], line]).combine_chunks()
    text = made["route"]["text"]
    made["route"] = made["route"].append_column("relay", mapped(text, lambda text: _route(text)[0]))
    made["route"] = made["route"].append_column("port", mapped(text, lambda text: _route(text)[1]))
    return made


def join(made: dict[str, pa.Table], facts: Facts) -> pa.Table:
    """One row per delivery line, per session that came to nothing, per recipient given up on, and per refusal of ours.

    A session that ends in an error before a delivery is an attempt without a recipient; so is a connection given up for
    one without TLS. Who is given back because routes are shut was not tried: such rows have `attempted` False and the
    port of the relay. Notifications (null sender) that end in a mailbox here have no outcome.
    """
    delivery, held, connecting, route = (made[name] for name in ("delivery", "held", "connecting", "route"))
    row, names = _session(delivery, connecting), ("host", "address", "port")
    rows, other = np.flatnonzero(row >= 0), connecting["fact"].to_numpy()[row[row >= 0]]
    delivery = changed(delivery, rows, facts, lambda _, n: {k: facts.rows[n][k] for k in names}, other)
    row = last_before([held["relay"]], places(held), [route["relay"]], places(route))
    rows, port = np.flatnonzero(row >= 0), taken(route, row[row >= 0], ["port"])["port"]
    held = changed(held, rows, facts, lambda fact, n: {} if fact["attempted"] else {"port": n and int(n)}, port)
    error = _failed(made, facts)
    refused, client = made["refused"], made["client"]
    found, row = pc.extract_regex(refused["text"], _COMMAND), _session(refused, client)
    door = {name: part(found, name) for name in ("recipient", "text")}
    who = pa.array(np.append(client["fact"].to_numpy(), -1)[row])
    told = facts.of(lambda n, text: _refused(facts.rows[n] if n >= 0 else {}, text), who, alike(door["text"]))
    door["fact"] = pa.array(told)
    whole = [delivery.select(_ROW), held.select(_ROW), error, pa.table({n: refused[n] for n in _ROW[:2]} | door)]
    return pa.concat_tables(whole, promote_options="default")


LINKS = (
    (("delivery", "connecting", "connected", "error", "over"), ("session",)),
    (("client", "refused", "left"), ("session",)),
    (("held", "route"), ("relay",)),
)


def digest(made: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """Events of sessions that do not begin and end in this part; of each relay who first waits, and its last route."""
    tables = {name: table[:0] for name, table in made.items()}
    for begin, names in (("connecting", LINKS[0][0]), ("client", LINKS[1][0])):
        begun = made[begin]["session"]
        whole = pc.unique(begun.filter(pc.is_in(begun, made[names[-1]]["session"])))
        tables |= {name: made[name].filter(pc.invert(pc.is_in(made[name]["session"], whole))) for name in names}
    route, held = (made[name]["relay"].to_pandas() for name in ("route", "held"))
    tables["route"] = made["route"].filter(pa.array(~route.duplicated(keep="last")))
    tables["held"] = made["held"].filter(pa.array(~held.duplicated() & held.notna()))
    return tables


def _session(table: pa.Table, among: pa.Table) -> Any:
    """For each row the place of the last row of its session in the other table; -1 if there is none."""
    return last_before([table["session"]], places(table), [among["session"]], places(among))


def _failed(made: dict[str, pa.Table], facts: Facts) -> pa.Table:
    """Sessions that an error ended before anything was delivered."""
    error, when = made["error"], {}
    for name in ("connecting", "connected", "delivery"):
        when[name] = np.append(places(made[name]), NEVER)[_session(error, made[name])]
    began = when["connecting"]
    alone = pa.array((began > NEVER) & (when["delivery"] < began))
    fact = made["connecting"]["fact"].to_numpy()[_session(error.filter(alone), made["connecting"])]
    up, text = pa.array(when["connected"] > began).filter(alone), error["text"].filter(alone)
    fact = facts.changed(fact, up, alike(text), by=lambda _, up, text: _broken(up, text))
    return pa.table({name: error[name].filter(alone) for name in _ROW[:2]} | {"text": text, "fact": pa.array(fact)})


def _delivery(table: pa.Table, result: Any, facts: Facts) -> pa.Table:
    text = pc.replace_substring_regex(table["text"], '"$', "")
    short = pc.if_else(pc.equal(result, "Ok"), pc.utf8_slice_codeunits(text, 0, 10), text)
    made = {name: table[name] for name in ("line", "stamp", "recipient")}
    for name, none in (("original_recipient", "-"), ("sender", "")):
        made[name] = pc.if_else(pc.equal(table[name], none), None, table[name])
    relay = table["relay"] if "relay" in table.column_names else pa.nulls(len(table), pa.string())
    kept = pc.and_(pc.equal(table["sender"], ""), pa.scalar("relay" not in table.column_names))
    fact = facts.of(_outcome, relay, result, kept, alike(short))
    made |= {"queue_id": pc.utf8_slice_codeunits(table["evpid"], 0, 8), "text": text, "fact": pa.array(fact)}
    made["delay_s"] = mapped(pc.utf8_rtrim(table["delay_s"], ","), seconds, pa.float64())
    made["session"] = table["session"] if "session" in table.column_names else pa.nulls(len(table), pa.string())
    return pa.table(made | {"relay": pc.if_else(pc.match_substring(relay, " "), None, relay)})


def _outcome(relay: str | None, result: str, notice: bool, text: str) -> dict[str, Any]:
    outcome, expired = _OUTCOMES.get(result), result == "expired"
    made = said(text) | {"text": text, "outcome": outcome, "hint": "expired" if expired else None}
    made["attempted"] = not expired and not text.startswith(_HELD)
    address, _, host = (relay or "").removesuffix(")").partition(" (")
    if host:
        made |= _client(address, host)
    if outcome == "passed":
        made |= {"step": "inbox", "status_code": made["status_code"] or "2.0.0"}
    return made | ({"outcome": None, "attempted": False, "hint": "notice"} if notice and outcome == "passed" else {})


def _connecting(url: str, host: str) -> dict[str, Any]:
    address, port = endpoint(url.partition("://")[2])
    return _client(address, host) | {"port": port}


def _client(address: str | None, host: str) -> dict[str, Any]:
    address, host = (address or "").strip("[]"), host.strip("[]")
    known = host not in (address, "<unknown>")
    return {"host": host if known else None, "address": address if address not in ("", "local") else None}


def _broken(connected: bool, text: str) -> dict[str, Any]:
    step = "encryption" if _TLS.match(text) else "rules" if connected else "connect"
    made = said(text.removeprefix("BANNER rejected: ")) | {"step": step, "text": text}
    return made | {"outcome": "deferred", "attempted": True}


def _refused(client: Any, text: str | None) -> dict[str, Any]:
    made = {name: client.get(name) for name in ("host", "address")} | said(text or "") | {"text": text or ""}
    outcome = "failed" if (made["reply_code"] or 0) >= 500 else "deferred"
    return made | {"direction": "in", "attempted": False, "outcome": outcome, "step": "relay"}


def _route(text: str) -> tuple[str | None, str | None]:
    """Relay and port."""
    found = _ROUTE.match(text)
    return (found[1], found[2] or str(_PORTS[found[3]])) if found else (None, None)
