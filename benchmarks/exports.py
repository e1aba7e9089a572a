"""Events per CPU second of read_export, as a ratio to `orjson.loads` alone of the same bytes.

    python benchmarks/exports.py [megabytes]     default: 100 a file

The files, a SendGrid array and SES events as JSON lines, are made here: kinds in the shares of ordinary mail, every id,
address and queue id another. Shown are the parsing alone (all at once), reading up to what `classify` gets, and all.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from deliverkit import exports
from deliverkit.classify import classify

Event = dict[str, Any]
KINDS = ["delivered"] * 80 + ["processed"] * 8 + ["deferred"] * 4 + ["open"] * 4 + ["bounce"] * 3 + ["dropped"]
TAKEN = ["250 2.0.0 OK {id} y{n}si{id}itc.{n} - gsmtp", "250 2.6.0 <{id}@x.example> Queued mail for delivery"]
REPLIES = {
    "deferred": [
        "421 4.7.0 [{ip}] Our system has detected an unusual rate of mail {id}",
        "452 4.2.2 The email account {to} is over quota",
        "451 4.7.1 Greylisting in action, please come back later",
        "connect to mx{n}.dom{n}.example: Connection timed out",
    ],
    "bounce": [
        "550 5.1.1 <{to}>: Recipient address rejected: User unknown",
        "550 5.7.1 [{ip}] blocked using list.example; {id}",
        "554 5.7.1 Message rejected as spam by content filtering {id}",
        "550 5.1.1 The email account does not exist {id} - gsmtp",
    ],
}


def events() -> Iterator[Event]:
    """What happened, of no provider yet."""
    chance = random.Random(6)
    for n in range(1 << 40):
        kind, to = chance.choice(KINDS), f"user{n}@dom{chance.randrange(5000)}.example"
        said = chance.choice(REPLIES.get(kind, TAKEN))
        said = said.format(ip=f"192.0.2.{n % 250}", id=f"{chance.getrandbits(48):x}", to=to, n=n % 997)
        at, id = 1_767_323_046 + n // 50, f"{chance.getrandbits(96):x}"
        yield {"n": n, "kind": kind, "to": to, "said": said, "at": at, "id": id}


def sendgrid(e: Event) -> Event:
    """An event as SendGrid's webhook posts it."""
    made = {"email": e["to"], "timestamp": e["at"], "smtp-id": f"<{e['id']}@sender.example>", "event": e["kind"]}
    made |= {"category": ["spring", "letter"], "client": f"client {e['n'] % 40}", "ip": "192.0.2.5", "tls": 1}
    made |= {"sg_event_id": f"{e['id']}{e['n']:x}", "sg_message_id": f"{e['id']}.recvd-5645d9c87f-{e['n']:x}.0"}
    field = "reason" if e["kind"] in ("bounce", "dropped") else "response"
    return made | ({} if e["kind"] in ("processed", "open") else {field: e["said"]})


def ses(e: Event) -> Event:
    """An event as Amazon SES publishes it."""
    stamp = datetime.fromtimestamp(e["at"], UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{e['n'] % 1000:03}Z"
    kinds = {"delivered": "Delivery", "deferred": "DeliveryDelay", "open": "Open", "bounce": "Bounce"}
    kind = kinds.get(e["kind"], "Send")
    mail = {"timestamp": stamp, "messageId": f"0100{e['id']}-000000", "source": "letter@sender.example"}
    mail["headers"] = [{"name": name, "value": f"{name} {e['id']}"} for name in ("From", "To", "Subject", "X-Id")]
    mail |= {"sendingAccountId": "123456789012", "destination": [e["to"]], "headersTruncated": False}
    mail["commonHeaders"] = {"from": ["letter@sender.example"], "messageId": f"<{e['id']}@sender.example>"}
    mail["tags"] = {"client": [f"client {e['n'] % 40}"], "campaign": ["spring"]}
    who = {"emailAddress": e["to"], "status": e["said"][4:9], "diagnosticCode": f"smtp; {e['said']}"}
    body: Event = {"timestamp": stamp, "remoteMtaIp": "192.0.2.7", "reportingMTA": "a1.smtp-out.example"}
    if kind == "Delivery":
        body |= {"recipients": [e["to"]], "smtpResponse": e["said"], "processingTimeMillis": 900}
    elif kind == "DeliveryDelay":
        body |= {"delayType": "General", "delayedRecipients": [who]}
    elif kind == "Bounce":
        body |= {"bounceType": "Permanent", "bounceSubType": "General", "feedbackId": e["id"]}
        body["bouncedRecipients"] = [who]
    return {"eventType": kind, "mail": mail, kind[0].lower() + kind[1:]: body}


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the result."""
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def make(path: Path, shape: Callable[[Event], Event], size: int, array: bool) -> int:
    """Write the file; how many events are in it."""
    count, written = 0, 0
    with path.open("w", encoding="utf-8") as file:
        for count, event in enumerate(map(shape, events()), 1):
            text = json.dumps(event, separators=(",", ":"))
            written += file.write(("[" if count == 1 else ",") + text if array else text + "\n")
            if written >= size:
                break
        file.write("]" if array else "")
    return count


def measure(name: str, path: Path, count: int, array: bool) -> None:
    """One file: read, with `classify` measured apart, and parsed."""
    costs: list[float] = []

    def watched(frame: pd.DataFrame) -> pd.DataFrame:
        seconds, made = cpu(lambda: classify(frame))
        costs.append(seconds)
        assert isinstance(made, pd.DataFrame)
        return made

    exports.classify = watched  # type: ignore[assignment]
    whole, frame = cpu(lambda: exports.read_export(path))
    exports.classify = classify
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    data = path.read_bytes()
    parse, _ = cpu(lambda: orjson.loads(data) if array else [orjson.loads(line) for line in data.splitlines()])
    print(
        f"{name}: {count:,} events, {len(frame):,} rows, {len(data) / 1e6:,.0f} MB; peak memory so far {peak:,.0f} MiB"
    )
    for what, seconds in (("orjson.loads alone", parse), ("read_export up to classify", whole - costs[0]),
                          ("classify", costs[0]), ("read_export", whole)):  # fmt: skip
        rate = f"{count / seconds:12,.0f} events/s"
        print(f"  {what:28} {seconds:7.2f} s CPU {rate} {seconds / parse:6.2f} x orjson.loads")


def main() -> None:
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 100) * 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.json"
        measure("SendGrid array", path, make(path, sendgrid, size, True), True)
        measure("SES lines", path, make(path, ses, size, False), False)


if __name__ == "__main__":
    main()
