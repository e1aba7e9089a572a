"""Makes the samples in `data/`: one campaign of two clients, sent from three networks.

    sudo python data/make/make.py

Runs in a network and mount namespace of its own (Linux, root): real Postfix sends real messages to the servers of
`deliverkit.Lab`, which listen on their true ports on 127.0.10.0/24. Logs and bounce messages are what Postfix wrote;
the probe sweep is `dk.probe` from the same namespace. Events of Amazon SES and SendGrid cannot be had without them
and are written in the form their documentation gives, for the part of the send list that went through them.
Needs Debian's postfix and libsasl2-modules. Takes about three minutes.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import smtplib
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pandas as pd

import deliverkit as dk

DATA = Path(__file__).resolve().parents[1]
NETWORKS = {"office": "isp-blocks-25", "cloud": "cloud-blocks-submission", "home": "flaky"}
CLIENTS = {"harbour-books": "Harbour Books", "alpine-travel": "Alpine Travel"}
CAMPAIGN = "autumn-letter"
PORTS = (25, 2525, 587, 25, 587, 465, 2525, 465)  # the way to each of the receiving domains
NAMES = "anna ben carla david elif farid greta hugo ines jonas kira luis mara nils olga piet rosa sven tara uwe"
FATES = [""] * 40 + ["unknown", "unknown", "unknown", "full", "spam", "grey", "grey", "block", "block", "big", "auth"]
WAIT_S = 75
STAMP = re.compile(r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d", re.MULTILINE)

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/lib
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = mail.{network}.example
mydestination =
local_recipient_maps =
alias_maps =
mynetworks = 127.0.0.0/8
inet_interfaces = loopback-only
inet_protocols = ipv4
smtp_host_lookup = native
smtp_dns_support_level = disabled
transport_maps = texthash:{folder}/transport
virtual_mailbox_domains = {senders}
virtual_mailbox_base = {folder}/boxes
virtual_mailbox_maps = static:bounces
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtp_tls_security_level = may
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = texthash:{folder}/passwords
smtp_sasl_security_options = noanonymous
smtp_connect_timeout = 2s
smtp_helo_timeout = 4s
minimal_backoff_time = 6s
maximal_backoff_time = 12s
queue_run_delay = 3s
maximal_queue_lifetime = 30s
bounce_queue_lifetime = 30s
default_destination_concurrency_limit = 3
"""
MASTER = """
127.0.0.1:10025 inet n - n - - smtpd
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
smtp      unix - - n - - smtp
submit    unix - - n - - smtp -o syslog_name=postfix/submit -o smtp_tls_security_level=encrypt
submits   unix - - n - - smtp -o syslog_name=postfix/submits -o smtp_tls_security_level=encrypt
          -o smtp_tls_wrappermode=yes
proxymap  unix - - n - - proxymap
virtual   unix - n n - - virtual
error     unix - - n - - error
retry     unix - - n - - error
anvil     unix - - n - 1 anvil
showq     unix n - n - - showq
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


def with_year(stamp: re.Match[str]) -> str:
    """A stamp of syslog as RFC 3339, the way rsyslog writes it: samples should keep their year."""
    return datetime.strptime(f"{datetime.now(UTC).year} {stamp[0]}", "%Y %b %d %H:%M:%S").strftime(
        "%Y-%m-%dT%H:%M:%S+00:00"
    )


def send_list(domains: list[str]) -> list[dict[str, str]]:
    """Who gets the letter: client, recipient, the network and the way it leaves by."""
    dice, rows, names = random.Random(25), [], NAMES.split()
    routes = [(network, "postfix") for network in NETWORKS] * 3 + [("office", "ses"), ("cloud", "sendgrid")]
    for client in CLIENTS:
        for i in range(240):
            network, route = routes[i % len(routes)]
            name = f"{dice.choice(FATES)}.{dice.choice(names)}{i}".lstrip(".")
            rows.append(
                {
                    "message_id": f"<{client[:2]}{i:03d}.{CAMPAIGN}@{client}.example>",
                    "recipient": f"{name}@{domains[i % len(domains)]}",
                    "client": CLIENTS[client],
                    "campaign": CAMPAIGN,
                    "vantage": network,
                    "route": route,
                    "sender": f"letter@{client}.example",
                }
            )
    return rows


def letter(row: dict[str, str]) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Message-ID"] = row["sender"], row["recipient"], row["message_id"]
    message["Subject"] = f"{row['client']}: news for the autumn"
    message.set_content(f"Dear reader,\n\nthis is the autumn letter of {row['client']}.\n")
    return message


def postfix(network: str, hosts: list[str], rows: list[dict[str, str]], folder: Path) -> None:
    """Send the rows with a Postfix of their own and wait until its queue is empty."""
    for name in ("queue", "lib", "boxes", "conf"):
        (folder / name).mkdir(parents=True)
    subprocess.run(["chown", "postfix", folder / "lib"], check=True)
    (folder / "boxes").chmod(0o777)
    folder.chmod(0o755)
    senders = " ".join(f"{client}.example" for client in CLIENTS)
    main = MAIN.format(folder=folder, network=network, senders=senders)
    (folder / "conf" / "main.cf").write_text(main)
    (folder / "conf" / "master.cf").write_text(MASTER)
    services = {25: "smtp", 587: "submit", 2525: "submit", 465: "submits"}
    ways = [(host, port) for host, port in zip(hosts, PORTS, strict=True)]
    transport = [f"{host.split('.', 1)[1]} {services[port]}:[{host}]:{port}" for host, port in ways]
    (folder / "transport").write_text("\n".join(transport) + "\n")
    login = [f"[{host}]:{port} letter:made-up-password" for host, port in ways if port != 25]
    (folder / "passwords").write_text("\n".join(login) + "\n")
    subprocess.run(["postfix", "-c", folder / "conf", "start"], check=True, capture_output=True)
    try:
        time.sleep(1)
        for row in rows:
            with smtplib.SMTP("127.0.0.1", 10025, timeout=20) as session:
                session.send_message(letter(row), from_addr=row["sender"])
        for _ in range(WAIT_S):
            time.sleep(1)
            queue = subprocess.run(["postqueue", "-c", folder / "conf", "-p"], capture_output=True, text=True)
            if "queue is empty" in queue.stdout:
                break
    finally:
        subprocess.run(["postfix", "-c", folder / "conf", "stop"], check=False, capture_output=True)


def ending(recipient: str) -> tuple[str, str, str]:
    """What became of a message at a provider: word, status code, reply; in the words of the lab's servers."""
    word = recipient.partition(".")[0]
    return {
        "unknown": ("hard", "5.1.1", "550 5.1.1 User unknown"),
        "full": ("soft", "4.2.2", "452 4.2.2 Mailbox full"),
        "spam": ("hard", "5.7.1", "554 5.7.1 Message refused as spam"),
        "block": ("hard", "5.7.1", "550 5.7.1 Service unavailable; client host is listed by dnsbl.example"),
        "big": ("hard", "5.3.4", "552 5.3.4 Message size exceeds fixed limit"),
        "auth": ("hard", "5.7.26", "550 5.7.26 Unauthenticated mail is prohibited"),
    }.get(word, ("sent", "2.0.0", "250 2.0.0 OK"))


def ses(rows: list[dict[str, str]], start: datetime) -> list[dict[str, object]]:
    events: list[dict[str, object]] = []
    for i, row in enumerate(rows):
        time_ = (start + timedelta(seconds=3 * i)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        word, status, reply = ending(row["recipient"])
        tags = {"client": [row["client"]], "campaign": [row["campaign"]]}
        mail = {
            "timestamp": time_,
            "messageId": f"0100{i:08x}-sample",
            "source": row["sender"],
            "destination": [row["recipient"]],
            "commonHeaders": {"messageId": row["message_id"], "from": [row["sender"]]},
            "tags": tags,
        }
        if word == "sent":
            about = {"timestamp": time_, "recipients": [row["recipient"]], "smtpResponse": reply}
            events.append({"eventType": "Delivery", "mail": mail, "delivery": about | {"processingTimeMillis": 900}})
        else:
            about = {"emailAddress": row["recipient"], "action": "failed", "status": status}
            bounce = {
                "bounceType": "Permanent" if word == "hard" else "Transient",
                "bounceSubType": "MailboxFull" if word == "soft" else "General",
                "bouncedRecipients": [about | {"diagnosticCode": f"smtp; {reply}"}],
                "timestamp": time_,
            }
            events.append({"eventType": "Bounce", "mail": mail, "bounce": bounce})
    return events


def sendgrid(rows: list[dict[str, str]], start: datetime) -> list[dict[str, object]]:
    events: list[dict[str, object]] = []
    for i, row in enumerate(rows):
        word, status, reply = ending(row["recipient"])
        event: dict[str, object] = {
            "email": row["recipient"],
            "timestamp": int((start + timedelta(seconds=3 * i)).timestamp()),
            "sg_event_id": f"event-{i}",
            "sg_message_id": f"message-{i}.filter",
            "smtp-id": row["message_id"],
            "client": row["client"],
            "campaign": row["campaign"],
            "tls": 1,
        }
        if word == "sent":
            event |= {"event": "delivered", "response": reply}
        elif word == "soft":
            event |= {"event": "deferred", "response": reply, "attempt": "1"}
        else:
            kind = "blocked" if status.startswith("5.7") else "bounce"
            event |= {"event": "bounce", "type": kind, "status": status, "reason": reply}
        events.append(event)
    return events


def make() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with dk.Lab("open", real=True) as lab:
        hosts, addresses = list(lab.hosts), dict(lab.addresses)
    domains = [host.split(".", 1)[1] for host in hosts]
    rows = send_list(domains)
    sweeps = []
    with tempfile.TemporaryDirectory(prefix="deliverkit-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        table = scratch / "hosts"
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {h}\n" for h, a in addresses.items()))
        subprocess.run(["mount", "--bind", table, "/etc/hosts"], check=True)
        (DATA / "postfix").mkdir(exist_ok=True)
        boxes = b""
        for network, scenario in NETWORKS.items():
            folder = scratch / network
            with dk.Lab(scenario, real=True) as lab:
                probe = dk.probe(lab.hosts, connect_to=lab.connect_to, vantage=network, timeout=3, pace=None)
                sweeps.append(probe)
                ours = [row for row in rows if (row["vantage"], row["route"]) == (network, "postfix")]
                postfix(network, hosts, ours, folder)
            log = (folder / "mail.log").read_text().replace(str(folder / "conf"), "/etc/postfix")
            log = STAMP.sub(with_year, log.replace(str(folder), "/var/spool/postfix"))
            (DATA / "postfix" / f"{network}.log").write_text(log)
            boxes += (folder / "boxes" / "bounces").read_bytes()
            print(network, len(ours), "messages,", log.count("\n"), "log lines", flush=True)
    (DATA / "bounces.mbox").write_bytes(boxes)
    pd.concat(sweeps).to_csv(DATA / "probes.csv", index=False)
    start = datetime.now(UTC).replace(microsecond=0)
    by_route = {route: [row for row in rows if row["route"] == route] for route in ("ses", "sendgrid")}
    lines = "".join(json.dumps(event) + "\n" for event in ses(by_route["ses"], start))
    (DATA / "ses.json").write_text(lines)
    events = sendgrid(by_route["sendgrid"], start)
    (DATA / "sendgrid.json").write_text("[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n")
    with (DATA / "sends.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    if os.environ.get("DELIVERKIT_NAMESPACE") != "1":
        os.environ["DELIVERKIT_NAMESPACE"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv])
    make()
