"""Sendmail: its delivery lines, what it gave up on, and what it refused at its own door.

It logs no port, whatever port it used, but one in the name of a relay. Sources: logdelivery() in deliver.c and
returntosender() in savemail.c of Sendmail 8.17, the Installation and Operation Guide, section "The System Log"; lines
of a real Sendmail 8.17.1 and of fail2ban.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deliverkit.logs.fields import endpoint, said
from deliverkit.logs.scan import Kinds
from deliverkit.logs.tables import Facts, alike, first_after, keyed, last_before, mapped, part, places, seconds, taken

_OURS = re.compile(
    r"[^\[]{16,200}?\[\d+\]: (?:\[ID \d+ [\w.]+\] )?(?:starting daemon \(\d|STARTTLS=(?:client|server), |ruleset=check_"
    r"|\w{14}: (?:to=.*, mailer=|from=.*, size=\d+, class=|ruleset=check_|\w{14}: (?:DSN|(?:sender|postmaster) notify|"
    r"return to sender): ))"
)
_HEAD = ("{stamp} {process}]: ", "?[ID {}] ")
_REST = (", delay={delay_s}", "?, xdelay={}", "?, mailer={mailer}", "?, pri={}", "?, relay={relay}", "?, dsn={dsn}",
         ", {text:reply=|stat=}")  # fmt: skip
KINDS = Kinds(
    delivery=(*_HEAD, "{queue_id:word}: ", "to=<{recipient:address^>, ctladdr=|>, delay=}>", "?, ctladdr={}", *_REST),
    mailbox=(*_HEAD, "{queue_id:word}: ", "to={recipient:address}", "?, ctladdr={}", *_REST),
    sender=(*_HEAD, "{queue_id:word}: ", "from={text}"),
    notice=(
        *_HEAD, "{queue_id:word}: ", "{:word}: ", "{text:DSN: |return to sender: |sender notify: |postmaster notify: }",
    ),
    reject=(*_HEAD, "{queue_id:word}: ", "ruleset=check_{text}"),
    door=(*_HEAD, "ruleset=check_{text}"),
)  # fmt: skip
_ADDRESS = r'(?:"(?:[^"\\]|\\.)*"[^>]*|[^>]*)'
_SENDER = (
    rf"^(?:<(?P<sender>{_ADDRESS})>|[^,]*), size=\d+, class=-?\d+, (?:pri=\d+, )?nrcpts=\d+(?:, msgid=(?P<id><[^>]*>))?"
)
_REJECT = (
    rf"^(?P<stage>\w+), (?:arg1=(?:<(?P<arg>{_ADDRESS})>|[^,]*), )?(?:arg2=[^,]*, )?"
    r"relay=(?P<relay>.*?), reject=(?P<text>.*)$"
)
_OWN = r"^stat=Sent \([0-9A-Za-z]{14} Message accepted for delivery\)$"  # by the daemon of this machine
_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_TLS = re.compile(r"(?:Deferred: )?\d{3} \d\.7\.\d TLS ")
_OWN_WORDS = (  # for a reply that the line does not show: its code says more
    "User unknown", "Service unavailable", "Data format error", "Remote protocol error", "Permission denied",
)  # fmt: skip
_OUTCOMES = {"2": "passed", "4": "deferred", "5": "failed"}
_STEPS = {"relay": "connect", "rcpt": "relay", "mail": "relay", "data": "inbox", "eoh": "inbox", "eom": "inbox"}
_ROW = ["line", "stamp", "queue_id", "recipient", "text", "delay_s", "fact"]


def sniff(line: str) -> bool:
    """True if Sendmail wrote the line."""
    return _OURS.match(line) is not None


def events(tables: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """The lines that say something, with their `fact`; a delivery line of several recipients is as many rows."""
    delivery = pa.concat_tables([_split(tables["delivery"], ">,<"), _split(tables["mailbox"], ",")]).combine_chunks()
    found = pc.extract_regex(delivery["text"], r"^(?:reply=(?P<reply>.*), )?stat=(?P<stat>.*)$")
    text = pc.coalesce(part(found, "reply"), part(found, "stat"), delivery["text"])
    own = pc.match_substring_regex(delivery["text"], _OWN)
    passed = pc.starts_with(text, "Sent")
    fact = facts.of(_delivery, delivery["mailer"], delivery["relay"], delivery["dsn"], own, alike(text, passed))
    made = {"delay_s": mapped(delivery["delay_s"], seconds, pa.float64()), "text": text, "fact": pa.array(fact)}
    sender, notice = tables["sender"], tables["notice"]
    found = pc.extract_regex(sender["text"], _SENDER)
    known = {"sender": part(found, "sender"), "message_id": part(found, "id")}
    door = pa.concat_tables([tables["reject"], tables["door"]], promote_options="default").combine_chunks()
    return {
        "delivery": pa.table({name: delivery[name] for name in _ROW[:4]} | made),
        "sender": pa.table({name: sender[name] for name in ("line", "queue_id")} | known),
        "notice": notice.filter(pc.match_substring_regex(notice["text"], "^[^:]*: Cannot send message ")),
        "door": _door(door, facts),
    }


def join(made: dict[str, pa.Table], facts: Facts) -> pa.Table:
    """One row per recipient of a delivery line, per recipient given up on, and per refusal of ours.

    `Cannot send message for ...` ends every recipient of that queue id still deferred (`attempted` False). Neither is
    it an attempt where a host that did not answer is not asked again (it then has no address), nor when a message is
    handed to the daemon of the same machine, which has no outcome.
    """
    delivery, sender, notice = (made[name] for name in ("delivery", "sender", "notice"))
    ours, theirs, last = keyed(delivery, sender, notice, by=("queue_id",))
    known = last_before([ours], places(delivery), [theirs], places(sender))
    delivery = pa.table({n: delivery[n] for n in _ROW} | taken(sender, known, ["message_id", "sender"]))
    end = first_after([ours], places(delivery), [last], places(notice))
    late = pd.DataFrame({"end": end, "recipient": delivery["recipient"].to_pandas(), "at": places(delivery)})
    late = late[late["end"] >= 0].sort_values("at").drop_duplicates(["end", "recipient"], keep="last")
    outcome = facts.column("outcome", delivery["fact"].to_numpy(), pa.string()).to_pandas().to_numpy()
    late = late[outcome[late.index] == "deferred"]
    gone = taken(delivery, late.index.to_numpy(), ["queue_id", "recipient", "message_id", "sender"])
    gone |= taken(notice, late["end"].to_numpy(), ["line", "stamp", "text"])
    gone["fact"] = pa.array(facts.of(_expired, gone["text"]))
    return pa.concat_tables([delivery, pa.table(gone), made["door"]], promote_options="default")


LINKS = ((("delivery", "sender", "notice"), ("queue_id",)),)


def digest(made: dict[str, pa.Table], facts: Facts) -> dict[str, pa.Table]:
    """Senders, messages given up, and how each recipient stood at the end but for those done with in this part."""
    delivery = made["delivery"]
    whose = pd.DataFrame({name: delivery[name].to_pandas() for name in ("queue_id", "recipient")})
    outcome = facts.column("outcome", delivery["fact"].to_numpy(), pa.string()).to_pandas()
    here = whose["queue_id"].isin(made["sender"]["queue_id"].to_pandas())
    kept = ~whose.duplicated(keep="last") & (outcome.eq("deferred") | ~here)
    return made | {"delivery": delivery.filter(pa.array(kept)), "door": made["door"][:0]}


def _split(table: pa.Table, between: str) -> pa.Table:
    """With a row per recipient. Quoted ones hold any text, and no line of Sendmail has more than 1,024 characters."""
    whose, rest = table["recipient"], table.drop_columns("recipient")
    names = pc.split_pattern(whose, between).combine_chunks()
    odd = pc.or_(pc.match_substring(whose, '"'), pc.greater(pc.binary_length(whose), 1024))
    if (rows := np.flatnonzero(odd.to_numpy())).size:
        listed, each = names.to_pylist(), re.compile(rf'((?:"[^"]*+"|(?!{between}).)++)(?:{between}|$)')
        for row, text in zip(rows.tolist(), whose.filter(odd).to_pylist(), strict=True):
            listed[row] = each.findall(text) if len(text) <= 1024 else [text]
        names = pa.array(listed, pa.list_(pa.string()))
    return rest.take(pc.list_parent_indices(names)).append_column("recipient", pc.list_flatten(names))


def _door(table: pa.Table, facts: Facts) -> pa.Table:
    found = pc.extract_regex(table["text"], _REJECT)
    table, found = table.filter(pc.is_valid(found)), found.filter(pc.is_valid(found))
    stage, whose, text = (part(found, name) for name in ("stage", "arg", "text"))
    fact = pa.array(facts.of(_refused, stage, part(found, "relay"), alike(text)))
    made = {
        name: pc.if_else(pc.equal(stage, at), whose, None) for name, at in (("recipient", "rcpt"), ("sender", "mail"))
    }
    return pa.table({name: table[name] for name in _ROW[:3]} | made | {"text": text, "fact": fact})


def _delivery(mailer: str | None, relay: str | None, dsn: str | None, own: bool, text: str | None) -> dict[str, Any]:
    code, text, made = dsn if dsn and _CODE.fullmatch(dsn) else None, text or "", _far(relay)
    known = "passed" if text.startswith("Sent") else "deferred" if text.startswith(("Deferred", "queued")) else "failed"
    made |= said(text.removeprefix("Deferred: ")) | {"status_code": code, "text": text}
    made |= {"outcome": _OUTCOMES[code[0]] if code else known, "step": None}
    # hosts that did not answer are not asked again for a while: then the line names no address
    again = (code or "").startswith("4.4.") and made["host"] and not made["address"] and " Connection " in text
    made["attempted"] = not (again or text.startswith("queued"))
    if made["outcome"] == "passed":
        made["step"] = "inbox"
    elif made["host"]:
        made["step"] = "encryption" if _TLS.match(text) else {"4.4.1": "connect", "4.4.2": "rules"}.get(code or "")
    if code and text in _OWN_WORDS:
        made["text"] = ""
    handed_on = own and (made["address"] or "") in ("127.0.0.1", "::1")
    return made | ({"outcome": None, "attempted": False, "hint": "event"} if handed_on else {})


def _expired(text: str) -> dict[str, Any]:
    return {"text": text, "hint": "expired", "outcome": "failed", "attempted": False}


def _refused(stage: str, relay: str | None, text: str | None) -> dict[str, Any]:
    made = _far(relay) | said(text or "") | {"text": text or "", "step": _STEPS.get(stage, "rules")}
    outcome = "failed" if (made["reply_code"] or 0) >= 500 else "deferred"
    return made | {"direction": "in", "attempted": False, "outcome": outcome}


def _far(relay: str | None) -> dict[str, Any]:
    host, _, rest = (relay or "").rpartition("[") if "[" in (relay or "") else (relay or "", "", "")
    address, port = endpoint(rest.removeprefix("IPv6:").partition(" ")[0].removesuffix("]"))
    host, _, named = host.strip().partition(":")
    host, other = host.rstrip("."), endpoint(f"127.0.0.1:{named}")[1]
    known = host not in ("", "local") and not host.startswith("[")
    return {"host": host if known else None, "address": address, "port": port or other}
