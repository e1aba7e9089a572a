"""Makes `data/refusals.mbox` and `data/refusals.csv`: bounces of real servers, with the truth about each.

    sudo python data/make/refusals.py [FOLDER [CASE ...]]

Runs in a network, mount and process namespace of its own (Linux, root), which nothing leaves: Postfix, Exim, OpenSMTPD
and Sendmail send letters to receivers that refuse them, and the reports they write to the senders are kept. Most
receivers are scripted and say what other servers say; some are real servers with real rules. Each letter has a return
path of its own, so the truth (what the receiver was told to answer, or was set up to do) is known without reading a
report. Needs Debian's postfix, unbound, nftables, iproute2, m4, dovecot-core, dovecot-lmtpd and dovecot-sieve, and
`tests/servers/fetch exim4-daemon-light opensmtpd sendmail-bin sendmail-cf`. Takes half a minute.

Wording of the replies: the sources of the servers named, RFC 5321 and RFC 7505, and the providers' pages on their
error codes (Google, Microsoft, Yahoo, Mimecast, Spamhaus).
"""

from __future__ import annotations

import asyncio
import csv
import os
import re
import shutil
import smtplib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP
from itertools import cycle
from pathlib import Path

UNPACKED = Path(os.environ.get("DELIVERKIT_SERVERS", "/usr/local/lib/deliverkit-servers"))
COLUMNS = ("number", "sender_mta", "receiver", "case", "recipient", "original_recipient", "action", "reply_code",
           "status_code", "category", "kind", "returned_message_id")  # fmt: skip
KINDS = {"hard": "invalid_recipient invalid_domain", "none": "not_a_failure", "undetermined": "unknown",
         "block": "content_spam reputation_block policy_block sender_auth relay_or_login tls"}  # fmt: skip
HOME, US, MAILBOX, RECEIVING_US = Path("/mnt"), "192.0.2.1", "198.51.100.250", "203.0.113.101"
SENDERS = {"postfix": "192.0.2.11", "exim": "192.0.2.12", "opensmtpd": "192.0.2.13", "sendmail": "192.0.2.14",
           "postfix-de": "192.0.2.21", "postfix-ja": "192.0.2.22", "exim-fr": "192.0.2.23"}  # fmt: skip
WHO = {"p": "postfix", "e": "exim", "o": "opensmtpd", "s": "sendmail", "d": "postfix-de", "j": "postfix-ja",
       "f": "exim-fr"}  # fmt: skip
NAMES = ("anna", "ben", "carla", "david", "elif", "farid", "greta", "hugo", "ines", "jonas", "mara", "nils", "olga")
SUBJECTS = ["Autumn letter", "Ihre Bestellung für Jörg Müller", "Re: your order 4711", "秋のお知らせ",
            "Undelivered Mail Returned to Sender? Not this one"]  # fmt: skip
DECOY = """Your old list had these in it, please check them:

<somebody@elsewhere.example>: host mx.elsewhere.example[203.0.113.99] said: 550 5.1.1 User unknown
Final-Recipient: rfc822; nobody@elsewhere.example
Action: failed
Status: 5.2.2
Diagnostic-Code: smtp; 552 5.2.2 Mailbox full

From that list, the others are well.
"""

# case | category | who sends (WHO) | stage | reply: {me} is the client's address, {to} the recipient, // a new line
SCRIPTED = """
user-postfix      | invalid_recipient   | pe   | rcpt | 550 5.1.1 <{to}>: Recipient address rejected: User unknown in virtual mailbox table
user-gmail        | invalid_recipient   | pe   | rcpt | 550-5.1.1 The email account that you tried to reach does not exist. Please try//550-5.1.1 double-checking the recipient's email address for typos or//550-5.1.1 unnecessary spaces. For more information, go to//550 5.1.1  https://support.google.com/mail/?p=NoSuchUser d9443c01a7336-20a - gsmtp
user-exchange     | invalid_recipient   | os   | rcpt | 550 5.4.1 Recipient address rejected: Access denied. AS(201806281) [AM4PEPF00025F97.eurprd83.prod.outlook.example 2026-11-25T11:02:03.456Z 08DE2B0C1D2E3F40]
off-yahoo         | mailbox_unavailable | po   | dot  | 554 30 Sorry, your message to {to} cannot be delivered. This mailbox is disabled (554.30).
user-exim         | invalid_recipient   | s    | rcpt | 550 Unrouteable address
user-qmail        | invalid_recipient   | e    | rcpt | 550 sorry, no mailbox here by that name. (#5.1.1 - chkusr)
user-mailru       | invalid_recipient   | s    | dot  | 550 Message was not accepted -- invalid mailbox.  Local mailbox {to} is unavailable: user not found
user-mimecast     | invalid_recipient   | d    | rcpt | 550 Invalid Recipient - https://community.mimecast.com/docs/DOC-1369#550 [Xk2mVwT1NfSa9QyB.uk71]
user-gmx          | invalid_recipient   | o    | rcpt | 550 Requested action not taken: mailbox unavailable
user-moved        | invalid_recipient   | f    | rcpt | 551 5.1.6 User has moved; please try <new.address@moved.example>
user-french       | invalid_recipient   | e    | rcpt | 550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. OFR204_416 [416]
user-german       | invalid_recipient   | j    | rcpt | 550 5.1.1 Empfaenger unbekannt
domain-reply      | invalid_domain      | ps   | rcpt | 550 5.1.2 <{to}>: Recipient address rejected: Domain not found
domain-null       | invalid_domain      | pe   | rcpt | 556 5.1.10 Recipient address has null MX
full-gmail        | mailbox_unavailable | peos | rcpt | 452-4.2.2 The recipient's inbox is out of storage space. Please direct the//452-4.2.2 recipient to//452 4.2.2  https://support.google.com/mail/?p=OverQuotaTemp 5b1f17b1804b1-47 - gsmtp
full-dovecot      | mailbox_unavailable | ps   | dot  | 552 5.2.2 <{to}> Quota exceeded (mailbox for user is full)
full-exchange     | mailbox_unavailable | e      | dot  | 554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded; Failed to process message due to a permanent exception
off-gmail         | mailbox_unavailable | s      | rcpt | 550-5.2.1 The email account that you tried to reach is disabled. Learn more at//550 5.2.1  https://support.google.com/mail/?p=DisabledUser 98e67ed59e1d1 - gsmtp
off-generic       | mailbox_unavailable | o    | rcpt | 550 5.2.1 Account temporarily suspended
size-postfix      | message_rejected    | op   | dot  | 552 5.3.4 Error: message file too big
size-gmail        | message_rejected    | p    | dot  | 552-5.3.4 Your message exceeded Google's message size limits. For more information,//552-5.3.4 visit//552 5.3.4  https://support.google.com/mail/?p=MaxSizeError 4fb4d7f45d1cf - gsmtp
format-gmail      | message_rejected    | es   | dot  | 550-5.7.1 [{me}] Messages missing a valid Message-ID header are not//550 5.7.1 accepted. For more information, go to https://support.google.com/mail/?p=RfcMessageNonCompliant 4fb4d7f45d1cf - gsmtp
format-exim       | message_rejected    | p    | dot  | 550 maximum allowed line length is 998 octets, got 1712
format-exchange   | message_rejected    | so   | dot  | 550 5.6.11 SMTPSEND.BareLinefeedsAreIllegal; message contains bare linefeeds, which cannot be sent via DATA
spam-gmail        | content_spam        | peos | dot  | 550-5.7.1 [{me}      12] Gmail has detected that this message is likely//550-5.7.1 unsolicited mail. To reduce the amount of spam sent to Gmail, this//550-5.7.1 message has been blocked. For more information, go to//550 5.7.1  https://support.google.com/mail/?p=UnsolicitedMessageError 5b1f17b1804b1 - gsmtp
spam-rspamd       | content_spam        | e    | dot  | 554 5.7.1 Spam message rejected
spam-assassin     | content_spam        | o    | dot  | 550 This message scored 11.2 spam points.
spam-exchange     | content_spam        | f    | dot  | 550 5.7.520 Message blocked because it contains content identified as spam. AS(4810)
virus-clamav      | content_spam        | ds   | dot  | 550 5.7.1 virus Win.Test.EICAR_HDB-1 detected by ClamAV - http://www.clamav.net
attach-gmail      | content_spam        | p    | dot  | 552-5.7.0 This message was blocked because its content presents a potential//552-5.7.0 security issue. To review our message content and attachment content//552-5.7.0 guidelines, go to//552 5.7.0  https://support.google.com/mail/?p=BlockedMessage 2adb3069b0e04 - gsmtp
list-spamhaus     | reputation_block    | peos | rcpt | 554 5.7.1 Service unavailable; Client host [{me}] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/{me}
list-outlook      | reputation_block    | pe   | mail | 550 5.7.1 Unfortunately, messages from [{me}] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140). You can also refer your provider to http://mail.live.com/mail/troubleshooting.aspx#errors.
list-exchange     | reputation_block    | s    | rcpt | 550 5.7.606 Access denied, banned sending IP [{me}]. To request removal from this list please visit https://sender.office.com/ and follow the directions.
list-yahoo        | reputation_block    | o    | connect | 553 5.7.1 [BL21] Connections will not be accepted from {me}, because the ip is in Spamhaus's list; see https://postmaster.yahooinc.com/error-codes
list-tonline      | reputation_block    | e    | connect | 554 IP={me} - A problem occurred. Ask your postmaster for help or to contact tosa@rx.receiver.example to clear. (BL)
ptr-gmail         | reputation_block    | os   | dot  | 550-5.7.25 [{me}] The IP address sending this message does not have a PTR//550-5.7.25 record setup, or the corresponding forward DNS entry does not match the//550 5.7.25 sending IP. For more information, go to https://support.google.com/mail/answer/81126#ip-practices 98e67ed59e1d1 - gsmtp
slow-yahoo        | reputation_block,rate_limited | p    | mail | 421 4.7.0 [TSS04] Messages from {me} temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes
helo-postfix      | reputation_block    | s    | rcpt | 504 5.5.2 <host>: Helo command rejected: need fully-qualified hostname
group-exchange    | policy_block        | peos | dot  | 550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required; Delivery restriction check failed because the sender was not authenticated when sending to this group
rules-exchange    | policy_block        | p    | dot  | 550 5.7.1 TRANSPORT.RULES.RejectMessage; the message was rejected by organization policy
admin-exim        | policy_block        | e    | rcpt | 550 Administrative prohibition
admin-mimecast    | policy_block        | s    | rcpt | 550 Administrative prohibition - envelope blocked - https://community.mimecast.com/docs/DOC-1369#550 [QmT4rV81Ozq.uk23]
access-postfix    | policy_block        | o    | rcpt | 554 5.7.1 <{from}>: Sender address rejected: Access denied
auth-gmail        | sender_auth         | peos | dot  | 550-5.7.26 Your email has been blocked because the sender is unauthenticated.//550-5.7.26 Gmail requires all senders to authenticate with either SPF or DKIM.//550-5.7.26  Authentication results://550-5.7.26  DKIM = did not pass//550-5.7.26  SPF [news.example] with ip: [{me}] = did not pass//550-5.7.26  For instructions on setting up authentication, go to//550 5.7.26  https://support.google.com/mail/answer/81126#authentication ffacd0b85a97d - gsmtp
dmarc-exchange    | sender_auth         | e    | dot  | 550 5.7.509 Access denied, sending domain news.example does not pass DMARC verification and has a DMARC policy of reject.
spf-policyd       | sender_auth         | s    | rcpt | 550 5.7.23 <{to}>: Recipient address rejected: Message rejected due to: SPF fail - not authorized. Please see http://www.open-spf.example/Why?s=mfrom;id={from};ip={me}
outlook-515       | sender_auth         | o    | dot  | 550 5.7.515 Access denied, sending domain NEWS.EXAMPLE doesn't meet the required authentication level.
dkim-generic      | sender_auth         | j    | dot  | 550 5.7.20 No passing DKIM signature found
relay-postfix     | relay_or_login      | ps   | rcpt | 554 5.7.1 <{to}>: Relay access denied
relay-cpanel      | relay_or_login      | e    | rcpt | 550-Please turn on SMTP Authentication in your mail client.//550-({me}) [{me}]:51234 is not permitted to relay through this server without//550 authentication.
relay-exchange    | relay_or_login      | s    | rcpt | 550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain
login-postfix     | relay_or_login      | o    | mail | 530 5.7.0 Authentication required
login-exchange    | relay_or_login      | p    | mail | 530 5.7.57 Client not authenticated to send mail. [AM0PR08CA0012.eurprd08.prod.outlook.example 2026-11-25T11:02:03.456Z 08DE2B0C1D2E3F41]
grey-postgrey     | rate_limited        | peos | rcpt | 450 4.2.0 <{to}>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/receiver.example.html
rate-gmail        | rate_limited        | p       | rcpt | 450-4.2.1 The user you are trying to contact is receiving mail at a rate that//450-4.2.1 prevents additional messages from being delivered. Please resend your//450-4.2.1 message at a later time. If the user is able to receive mail at that//450-4.2.1 time, your message will be delivered. For more information, go to//450 4.2.1  https://support.google.com/mail/?p=ReceivingRate 2adb3069b0e04 - gsmtp
busy-exchange     | rate_limited        | e    | mail | 451 4.7.500 Server busy. Please try again later from [{me}]. (S77719) [AMS0EPF000001B7.eurprd05.prod.outlook.example 2026-11-25T11:02:03.456Z 08DE2B0C1D2E3F42]
conns-postfix     | rate_limited        | s    | connect | 421 4.7.0 mx.receiver.example Error: too many connections from {me}
hour-cpanel       | rate_limited        | o    | dot  | 550 Domain news.example has exceeded the max emails per hour (101/100 (101%)) allowed. Message discarded.
tls-postfix       | tls                 | eo   | mail | 530 5.7.0 Must issue a STARTTLS command first
tls-exchange      | tls                 | e    | mail | 451 5.7.3 STARTTLS is required to send mail [AM2PEPF0001C70E.eurprd05.prod.outlook.example 2026-11-25T11:02:03.456Z 08DE2B0C1D2E3F43]
tls-required      | tls                 | s    | rcpt | 550 5.7.10 This domain requires TLS for inbound mail
hangup            | connection          | peos | hangup |
hangup-dot        | connection          | p      | hangup-dot |
loop-sendmail     | connection          | ps   | dot  | 554 5.4.6 Too many hops 26 (25 max): from <{from}> via mx.receiver.example, to <{to}>
disk-postfix      | system              | ps   | mail | 452 4.3.1 Insufficient system storage
config-postfix    | system              | p    | rcpt | 451 4.3.5 <{to}>: Recipient address rejected: Server configuration problem
local-exim        | system              | s    | rcpt | 451 Temporary local problem - please try later
file-postfix      | system              | o    | dot  | 451 4.3.0 Error: queue file write error
gmail-421         | system              | e    | dot  | 421-4.3.0 Temporary System Problem.  Try again later (10). For more//421-4.3.0 information, go to//421 4.3.0  https://support.google.com/a/answer/3221692 ffacd0b85a97d - gsmtp
nothing-said      | unknown             | po   | dot  | 554 Transaction failed
number-only       | unknown             | e      | rcpt | 550 5.0.0 Error 41
"""  # noqa: E501

# case | category (a second one is as good) | who sends | domain | receiver | what it answers, where it does
REAL = """
nxdomain      | invalid_domain      | peos | no-such-domain.example   | dns       |
null-mx       | invalid_domain      | peos | nomail.example           | dns       |
no-address    | invalid_domain      | pes  | empty.example            | dns       |
dns-broken    | connection          | pes  | broken.example           | dns       |
refused       | connection,expired  | pes  | refused.example          | network   |
filtered      | expired,connection  | peos | filtered.example         | network   |
unreachable   | connection,expired  | ps    | unreachable.example      | network   |
to-itself     | connection,system   | pes  | self-{}.example          | network   |
needs-tls     | tls                 | pe   | plain-only.example       | scripted  |
broken-tls    | tls                 | pe   | starttls-broken.example  | scripted  | 454 4.7.0 TLS not available
delayed       | expired,connection  | peosdjf | filtered.example      | network   |
delayed-full  | mailbox_unavailable | pe   | {full-gmail}             | scripted  | 452 4.2.2 The recipient's inbox
user          | invalid_recipient   | eos  | postfix-boxes.example    | postfix   | 550 5.1.1 Recipient address rejected
relay         | relay_or_login      | es   | postfix-foreign.example  | postfix   | 554 5.7.1 Relay access denied
own-limit     | message_rejected    | p    | postfix-boxes.example    | postfix   |
too-big       | message_rejected    | es   | postfix-boxes.example    | postfix   | 552 5.3.4 size
listed        | reputation_block    | peos | postfix-rbl.example      | postfix   | 554 5.7.1 Service unavailable
no-ptr        | reputation_block    | os   | postfix-ptr.example      | postfix   | 550 5.7.25 Client host rejected
plain-refused | tls                 | pe   | postfix-tls.example      | postfix   | 530 5.7.0 Must issue a STARTTLS
disk          | system              | es   | postfix-disk.example     | postfix   | 452 4.3.1 Insufficient system storage
sender        | policy_block        | e    | postfix-access.example   | postfix   | 554 5.7.1 Sender address rejected
content       | content_spam        | so   | postfix-body.example     | postfix   | 550 5.7.1 message content rejected
user          | invalid_recipient   | ps   | exim-boxes.example       | exim      | 550 Unrouteable address
relay         | relay_or_login      | po   | exim-foreign.example     | exim      | 550 relay not permitted
listed        | reputation_block    | ps   | exim-rbl.example         | exim      | 550 is in a black list
left          | invalid_recipient   | p    | exim-left.example        | exim      | 550 no longer works here
later         | system,expired      | s    | exim-later.example       | exim      | 451 the directory does not answer
long-line     | message_rejected    | e    | welcome.example          | scripted  |
user          | invalid_recipient   | peo  | sendmail-boxes.example   | sendmail  | 550 5.1.1 User unknown
relay         | relay_or_login      | peo  | sendmail-foreign.example | sendmail  | 550 5.7.1 Relaying denied
user          | invalid_recipient   | pes  | opensmtpd-boxes.example  | opensmtpd | 524 5.2.4 Mailing list expansion problem
quota         | mailbox_unavailable | pe   | dovecot-quota.example    | dovecot   | 552 5.2.2 Quota exceeded
lmtp-user     | invalid_recipient   | pe   | dovecot-boxes.example    | dovecot   | 550 5.1.1 User doesn't exist
program       | system              | e    | program.example          | exim      |
"""  # noqa: E501


@dataclass
class Told:
    """One recipient of a letter and what has to be reported about it."""

    recipient: str
    action: str = "failed"
    reply: str = ""
    category: str = "not_a_failure"
    original: str = ""


@dataclass
class Letter:
    """One message handed to one server, and what must come back."""

    mta: str
    case: str
    receiver: str
    told: list[Told]
    to: list[str] = field(default_factory=list)
    notify: str = "FAILURE"
    ret: str = ""
    body: str = ""
    number: int = 0
    subject: str = ""
    sender: str = ""

    @property
    def message_id(self) -> str:
        return f"<{self.number:03d}.4711@news.example>"

    @property
    def content(self) -> bytes:
        message = EmailMessage(policy=SMTP.clone(utf8=self.number % 3 == 0))  # every third with raw UTF-8 in its head
        message["From"] = "News <letter@news.example>"
        message["To"] = self.to[0] if len(self.to) == 1 else "Readers <readers@news.example>"
        message["Subject"], message["Message-ID"] = self.subject, self.message_id
        message["Date"] = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
        message.set_content(self.body or "Dear reader,\n\nthis is the autumn letter.\n", cte="8bit")
        return message.as_bytes()


def table(text: str) -> Iterator[list[str]]:
    for line in text.strip().splitlines():
        yield [cell.strip() for cell in line.split("|", 5)]


GIVEN_UP = ("list-yahoo", "hangup", "null-mx", "no-address", "refused", "filtered")  # by OpenSMTPD after its queue time
ANSWERS = dict(enumerate(table(SCRIPTED), 1))  # the number is the last byte of the receiver's address
HOSTS = {row[0]: f"r{n:02d}.example" for n, row in ANSWERS.items()}
NUMBERS = {row[0]: n for n, row in ANSWERS.items()}


def letters() -> list[Letter]:
    """All letters, in order."""
    made: list[Letter] = []
    name = cycle(NAMES)
    for number, (case, category, who, _, reply) in ANSWERS.items():
        for mta in map(WHO.__getitem__, who):
            to = f"{next(name)}{number:02d}@{HOSTS[case]}"
            made.append(Letter(mta, case, "scripted", [Told(to, "failed", reply, category)], [to]))
    for case, category, who, domain, receiver, reply in table(REAL):
        for letter in who:
            mta, to = WHO[letter], f"{next(name)}@{domain.format(WHO[letter], **{'full-gmail': ''})}"
            if domain == "{full-gmail}":
                to = f"{next(name)}{NUMBERS['full-gmail']:02d}@{HOSTS['full-gmail']}"
            named = case if receiver in ("scripted", "dns", "network") else f"{case}-at-{receiver}"
            made.append(Letter(mta, named, receiver, [Told(to, "failed", reply, category)], [to]))
            if case.startswith("delayed"):
                made[-1].notify = "DELAY,FAILURE"
                made[-1].told.insert(0, Told(to, "delayed", reply, category))
            if case in ("too-big", "own-limit", "quota"):
                lines = 500 if case == "quota" else 900
                made[-1].ret, made[-1].body = "HDRS", "A long letter of many words.\n" * lines
            if case == "long-line":
                made[-1].body = "word " * 340 + "\n"
            if case == "content":
                made[-1].body = "Dear reader,\n\nbuy now, cheapest-pills, at once.\n"
    made += special()
    for one in made:  # OpenSMTPD warns whether it is asked to or not
        if one.mta == "opensmtpd" and (one.told[0].reply.startswith("4") or one.case in GIVEN_UP):
            one.told += [replace(told, action="delayed") for told in one.told if told.action == "failed"]
    for number, one in enumerate(made, 1):
        one.number, one.sender = number, f"news+{number:03d}@news.example"
        one.subject = one.subject or SUBJECTS[number % len(SUBJECTS)]
        one.ret = one.ret or ("HDRS" if number % 4 else "FULL")
        if one.case == "verp":
            one.sender = f"news+{number:03d}-{one.to[0].replace('@', '=')}@news.example"
        if number % 8 == 0:
            one.body = one.body or DECOY
    return made


def special() -> Iterator[Letter]:
    """Several recipients, aliases, return paths, deliveries, and mail that is no bounce."""

    def one(name: str, case: str, domain: str = "") -> Told:
        _, category, _, _, reply = ANSWERS[NUMBERS[case]]
        return Told(f"{name}{NUMBERS[case]:02d}@{domain or HOSTS[case]}", "failed", reply, category)

    for mta in ("postfix", "exim", "opensmtpd", "sendmail"):
        three = [one("anna", "user-postfix"), one("ben", "spam-gmail"), one("carla", "relay-postfix")]
        yield Letter(mta, "three-refused", "scripted", three, [*(t.recipient for t in three), "olga@welcome.example"])
        mixed = (("hugo", "user-postfix"), ("ines", "off-gmail"), ("jonas", "list-spamhaus"))
        same = [one(name, case, "one-host.example") for name, case in mixed]
        well = ["rosa@one-host.example"] * (mta != "opensmtpd")  # which gives up on her too
        yield Letter(mta, "one-host", "scripted", same, [*(t.recipient for t in same), *well])
        gone = one("kira", "user-gmail")
        yield Letter(mta, "verp", "scripted", [gone], [gone.recipient])
        final = one("luis", "user-postfix")
        final.original = f"team-{mta}@lists.example"
        yield Letter(mta, "alias", "scripted", [final], [final.original])
        action = "delivered" if mta == "exim" else "relayed"  # Exim says the one and means the other
        told = [Told("mara@welcome.example", action)]
        yield Letter(mta, "relayed", "scripted", told, [told[0].recipient], "SUCCESS,FAILURE")
        both = [Told("nils@welcome.example", action), one("piet", "user-postfix")]
        yield Letter(mta, "relayed-and-refused", "scripted", both, [t.recipient for t in both], "SUCCESS,FAILURE")
    for mta in ("postfix", "exim"):
        yield Letter(mta, "delivered", mta, [Told(f"sven@inbox-{mta}.example", "delivered")],
                     [f"sven@inbox-{mta}.example"], "SUCCESS,FAILURE")  # fmt: skip
    for mta, receiver in (("exim", "exim"), ("postfix", "dovecot"), ("sendmail", "dovecot")):
        to = "away@vacation-exim.example" if receiver == "exim" else f"away-{mta}@dovecot-boxes.example"
        yield Letter(mta, "vacation", receiver, [Told("", "")], [to])
    yield Letter("postfix", "answer", "none", [Told("", "")], ["readers@news.example"], subject="Re: Autumn letter")
    yield Letter("sendmail", "quotes-a-bounce", "none", [Told("", "")], ["readers@news.example"], body=DECOY)


# The receivers


class Receivers:
    """SMTP servers that answer as ANSWERS says, and the mailbox that the reports end up in."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, bytes]] = []  # recipient, message
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def listen(self, *addresses: str) -> None:
        async def begin() -> None:
            for address in addresses:
                await asyncio.start_server(self._session, address, 25)

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(30)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(self._talk(reader, writer), 60)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, me = writer.get_extra_info("sockname")[0], writer.get_extra_info("peername")[0]
        host = ANSWERS.get(int(address.rpartition(".")[2]), ["", "", "", "", ""])
        sender, rcpts, refusal = "", list[str](), host

        def say(reply: str) -> None:
            told = {"to": rcpts[-1] if rcpts else "", "from": sender, "me": me}
            writer.write("".join(f"{line}\r\n" for line in re.split(r"//(?=\d{3})", reply.format(**told))).encode())

        if host[3] == "hangup":
            return
        say(host[4] if host[3] == "connect" else "220 mx.receiver.example ESMTP")
        if host[3] == "connect" and host[4].startswith("421"):
            return
        while line := (await reader.readline()).decode("utf-8", "replace").strip():
            verb, argument = line[:4].upper(), re.search("<([^>]*)>", line)
            if verb == "QUIT":
                return say("221 2.0.0 Bye")
            if host[3] == "connect":
                say("503 5.5.1 No")
            elif verb == "EHLO":
                offers = "250-STARTTLS//" if address.endswith(".248") else ""
                offers += "250-SMTPUTF8//" if address == MAILBOX else ""
                say(f"250-mx.receiver.example//250-8BITMIME//{offers}250 ENHANCEDSTATUSCODES")
            elif verb == "STAR":
                say("454 4.7.0 TLS not available due to local problem")
            elif verb == "MAIL":
                sender, rcpts = argument[1] if argument else "", []
                say(host[4] if host[3] == "mail" else "250 2.1.0 Ok")
            elif verb == "RCPT":
                rcpts.append(argument[1] if argument else "")
                number = re.search(r"(\d\d)@", rcpts[-1])
                refusal = ANSWERS.get(int(number[1]), host) if number and address != MAILBOX else host
                say(refusal[4] if refusal[3] == "rcpt" else "250 2.1.5 Ok")
                if refusal[3] == "rcpt":
                    rcpts.pop()
            elif verb == "DATA" and not rcpts:
                say("554 5.5.1 Error: no valid recipients")
            elif verb == "DATA":
                say("354 End data with <CR><LF>.<CR><LF>")
                text = b""
                while not text.endswith(b"\r\n.\r\n"):
                    text += await reader.readline()
                if refusal[3] == "hangup-dot":
                    return
                if address == MAILBOX:
                    content = re.sub(rb"(?m)^\.", b"", text[:-5].replace(b"\r\n", b"\n"))
                    head = f"Return-Path: <{sender}>\nDelivered-To: {rcpts[0]}\n".encode()
                    self.kept.append((rcpts[0], head + content + b"\n"))
                say(refusal[4] if refusal[3] == "dot" else "250 2.0.0 Ok: queued as 4CkP2r0Vz5z9")
            else:
                say("250 2.0.0 Ok")


ZONE = {
    "news.example": f"MX 10 mail.news.example|mail.news.example A {MAILBOX}",
    "here.news.example": f"A {US}",
    "welcome.example": "MX 10 mx.welcome.example|mx.welcome.example A 198.51.100.249",
    "one-host.example": "MX 10 mx.one-host.example|mx.one-host.example A 198.51.100.249",
    "plain-only.example": "MX 10 mx.welcome.example",
    "starttls-broken.example": "MX 10 mx.starttls-broken.example|mx.starttls-broken.example A 198.51.100.248",
    "nomail.example": "MX 0 .",
    "empty.example": 'TXT "no mail and no address"',
    "refused.example": "MX 10 mx.refused.example|mx.refused.example A 198.51.100.251",
    "filtered.example": "MX 10 mx.filtered.example|mx.filtered.example A 198.51.100.252",
    "unreachable.example": "MX 10 mx.unreachable.example|mx.unreachable.example A 203.0.113.200",
} | {f"self-{mta}.example": f"MX 10 {mta}.news.example" for mta in SENDERS}
DOORS = {  # what real Postfix listens on, and the rules of that door
    "postfix-boxes": "",
    "postfix-foreign": "",
    "postfix-rbl": "-o smtpd_recipient_restrictions=reject_rbl_client,dnsbl.example",
    "postfix-ptr": "-o smtpd_recipient_restrictions=reject_unknown_client_hostname",
    "postfix-tls": "-o smtpd_tls_security_level=encrypt",
    "postfix-disk": "-o queue_minfree=900000000000",
    "postfix-access": "-o smtpd_recipient_restrictions=check_sender_access,static:reject",
    "postfix-body": "-o cleanup_service_name=checked",
    "dovecot-boxes": "",
    "dovecot-quota": "",
}
OTHERS = [*(f"exim-{name}" for name in ("boxes", "foreign", "rbl", "left", "later")), "sendmail-boxes",
          "sendmail-foreign", "opensmtpd-boxes"]  # fmt: skip
DOOR = {name: f"203.0.113.{n}" for n, name in enumerate([*DOORS, *OTHERS], 1)}


def names(folder: Path) -> str:
    """Unbound's configuration, which answers for all names there are."""
    lines = ["server:", "interface: 127.0.0.1", "do-daemonize: no", 'username: ""', 'chroot: ""', 'pidfile: ""',
             f'directory: "{folder}"', "use-syslog: no", 'local-zone: "." static', 'local-zone: "example." static',
             'local-zone: "broken.example." refuse']  # fmt: skip
    lines += [f'local-zone: "{net}.in-addr.arpa." static' for net in ("2.0.192", "100.51.198", "113.0.203")]
    records = [f"{z} {part}" if i == 0 else part for z, r in ZONE.items() for i, part in enumerate(r.split("|"))]
    places = [(f"r{n:02d}", f"198.51.100.{n}") for n in ANSWERS] + [*DOOR.items()]
    for domain, address in places:
        records += [f"{domain}.example MX 10 mx.{domain}.example", f"mx.{domain}.example A {address}"]
    for mta, address in SENDERS.items():
        records += [f"{mta}.news.example A {address}"]
        listed = ".".join(reversed(address.split(".")))
        records += [f"{listed}.dnsbl.example A 127.0.0.2", f'{listed}.dnsbl.example TXT "Spam came from {address}"']
        if mta not in ("opensmtpd", "sendmail"):
            lines.append(f'local-data-ptr: "{address} {mta}.news.example"')
    lines += [f"local-data: '{record}'" for record in records]
    return "\n".join(lines) + "\n"


# The real servers

POSTFIX = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/lib
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = {host}
mydestination =
local_recipient_maps =
alias_maps =
mynetworks = 192.0.2.1
inet_interfaces = {address}
inet_protocols = ipv4
delay_warning_time = 3s
minimal_backoff_time = 3s
maximal_backoff_time = 5s
queue_run_delay = 2s
maximal_queue_lifetime = 12s
bounce_queue_lifetime = 30s
"""
SENDING = """
smtp_bind_address = {address}
smtp_connect_timeout = 2s
smtp_helo_timeout = 4s
smtp_tls_security_level = may
smtp_tls_policy_maps = inline:{{plain-only.example=encrypt, starttls-broken.example=encrypt, postfix-tls.example=none}}
virtual_alias_maps = inline:{{team-postfix@lists.example=luis01@r01.example}}
virtual_alias_domains = lists.example
virtual_mailbox_domains = inbox-postfix.example
virtual_mailbox_base = {folder}
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
"""
RECEIVING = """
virtual_mailbox_domains = postfix-boxes.example, postfix-rbl.example, postfix-ptr.example, postfix-tls.example,
  postfix-disk.example, postfix-access.example, postfix-body.example, dovecot-boxes.example, dovecot-quota.example
virtual_mailbox_maps = inline:{{nobody@postfix-boxes.example=x}}, regexp:{folder}/anybody
virtual_transport = lmtp:unix:/mnt/dovecot/lmtp
smtpd_relay_restrictions = reject_unauth_destination
unknown_client_reject_code = 550
message_size_limit = 20000
smtpd_tls_chain_files = {folder}/key.pem, {folder}/cert.pem
smtpd_client_event_limit_exceptions = static:all
"""
SERVICES = """
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
checked   unix n - n - 0 cleanup -o body_checks=regexp:{folder}/checks
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
lmtp      unix - - n - - lmtp
proxymap  unix - - n - - proxymap
virtual   unix - n n - - virtual
error     unix - - n - - error
retry     unix - - n - - error
anvil     unix - - n - 1 anvil
showq     unix n - n - - showq
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""
TEMPLATE = """failure_template = <<END
Charset: utf-8
From: {daemon} <MAILER-DAEMON>
Subject: {failed}
Postmaster-Subject: {failed}

{words_failed}

END

delay_template = <<END
Charset: utf-8
From: {daemon} <MAILER-DAEMON>
Subject: {delayed}
Postmaster-Subject: {delayed}

{words_delayed}

END
"""
LOCAL = {
    "postfix-de": {
        "daemon": "Mailzustellung", "failed": "Unzustellbar: Ihre Nachricht kam zurück",
        "words_failed": "Dies ist das Mailsystem auf $myhostname.\n\nEs tut uns leid, Ihre Nachricht konnte an einen"
        "\noder mehrere Empfänger nicht zugestellt werden. Sie ist unten angefügt.",
        "delayed": "Verzögert: Ihre Nachricht ist noch unterwegs",
        "words_delayed": "Dies ist das Mailsystem auf $myhostname.\n\nIhre Nachricht konnte seit"
        " $delay_warning_time_seconds Sekunden nicht zugestellt\nwerden. Sie müssen nichts tun.",
    },
    "postfix-ja": {
        "daemon": "メール配信システム", "failed": "配信できませんでした",
        "words_failed": "$myhostname のメールシステムです。\n\n次の宛先にメールを配信できませんでした。",
        "delayed": "配信が遅れています",
        "words_delayed": "$myhostname のメールシステムです。\n\nまだ配信できていません。",
    },
}  # fmt: skip

EXIM = """
primary_hostname = {host}
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
local_interfaces = {doors}
keep_environment =
exim_path = {program}
acl_smtp_rcpt = rcpt
dsn_advertise_hosts = *
delay_warning = 3s:24h
ignore_bounce_errors_after = 0s
deliver_drop_privilege = true
tls_advertise_hosts =
{main}
begin acl
rcpt:
  accept hosts = 192.0.2.1
  deny condition = ${{if eq{{$received_ip_address}}{{{rbl}}}}}
       dnslists = dnsbl.example
       message = rejected because $sender_host_address is in a black list at $dnslist_domain\\n$dnslist_text
  deny domains = !exim-boxes.example : !exim-left.example : !exim-later.example : *
       message = relay not permitted
  require verify = recipient
  accept
begin routers
left:
  driver = redirect
  domains = exim-left.example
  allow_fail
  data = :fail: $local_part no longer works here, please write to the office
later:
  driver = redirect
  domains = exim-later.example
  allow_defer
  data = :defer: the directory does not answer
boxes:
  driver = accept
  domains = inbox-exim.example
  transport = void
none:
  driver = accept
  domains = exim-boxes.example
  local_parts = nobody
  transport = void
  no_more
alias:
  driver = redirect
  domains = lists.example
  data = luis01@r01.example
program:
  driver = accept
  domains = program.example
  transport = program
away:
  driver = accept
  domains = vacation-exim.example
  transport = away
far:
  driver = dnslookup
  domains = !exim-boxes.example
  self = fail
  transport = smtp
  no_more
begin transports
smtp:
  driver = smtp
  interface = {address}
  connect_timeout = 2s
  command_timeout = 4s
  hosts_require_tls = ${{if inlist{{$domain}}{{plain-only.example:starttls-broken.example}}{{*}}}}
  hosts_avoid_tls = mx.postfix-tls.example
program:
  driver = pipe
  command = /bin/sh -c "echo no such table >&2; exit 69"
  return_fail_output
  user = Debian-exim
void:
  driver = appendfile
  file = /dev/null
  user = Debian-exim
away:
  driver = autoreply
  to = $sender_address
  from = Away <away@vacation-exim.example>
  subject = Out of office: $h_subject:
  text = I am away until Monday and read no mail. My mailbox is not full, do not worry.
  user = Debian-exim
begin retry
* * F,10s,2s
"""
EXIM_FR = """Subject: Echec de la remise du message
****
Ce message a ete cree automatiquement par le serveur de messagerie.

Un message que vous avez envoye n'a pas pu etre remis a un ou plusieurs de ses
destinataires. C'est une erreur permanente. Adresses en echec :
****
Le texte suivant a ete produit pendant la remise :
****
------ Ceci est une copie de votre message, avec tous les en-tetes. ------
****
------ Le corps du message depasse la limite et a ete tronque. ------
****
------ Ceci est une copie des en-tetes de votre message. ------
****
"""
OPENSMTPD = """
queue ttl 10s
bounce warn-interval 3s
table boxes {{ "nobody@opensmtpd-boxes.example" = "root" }}
table lists {{ "team-opensmtpd@lists.example" = "luis01@r01.example" }}
listen on 192.0.2.13 port 25 hostname opensmtpd.news.example
listen on {door} port 25 hostname mx.opensmtpd-boxes.example
action out relay src 192.0.2.13 helo opensmtpd.news.example
action boxes expand-only virtual <boxes>
action lists expand-only virtual <lists>
match from any for domain "opensmtpd-boxes.example" action boxes
match from src 192.0.2.1 for domain "lists.example" action lists
match from src 192.0.2.1 for any action out
match from local for any action out
"""
SENDMAIL = """divert(0)
OSTYPE(`linux')
define(`confDOMAIN_NAME', `sendmail.news.example')
define(`QUEUE_DIR', `{folder}/queue')
define(`STATUS_FILE', `{folder}/status')
define(`HELP_FILE', `{folder}/help')
define(`ALIAS_FILE', `text:{folder}/aliases')
define(`confPID_FILE', `{folder}/pid')
define(`confTO_ICONNECT', `2s')
define(`confTO_CONNECT', `2s')
define(`confTO_INITIAL', `4s')
define(`confTO_QUEUERETURN', `10s')
define(`confTO_QUEUEWARN', `3s')
define(`confTO_HOSTSTATUS', `1s')
define(`confDONT_PROBE_INTERFACES', `True')
define(`confPRIVACY_FLAGS', `')
define(`confREFUSE_LA', `999')
define(`confQUEUE_LA', `999')
FEATURE(`no_default_msa')
FEATURE(`virtusertable', `text -k0 -v1 {folder}/virtual')
FEATURE(`accept_unresolvable_domains')
VIRTUSER_DOMAIN(`lists.example')
RELAY_DOMAIN(`192.0.2.1')
LOCAL_DOMAIN(`sendmail-boxes.example')
DAEMON_OPTIONS(`Family=inet, Name=MTA, Port=25, Addr=192.0.2.14')
DAEMON_OPTIONS(`Family=inet, Name=A, Port=25, Addr={boxes}')
DAEMON_OPTIONS(`Family=inet, Name=B, Port=25, Addr={foreign}')
CLIENT_OPTIONS(`Family=inet, Addr=192.0.2.14')
MAILER(`local')
MAILER(`smtp')
"""
DOVECOT = """
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
ssl = no
hostname = dovecot.example
postmaster_address = postmaster@dovecot.example
mail_location = maildir:{folder}/mail/%u
mail_uid = 65534
mail_gid = 65534
first_valid_uid = 1000
first_valid_gid = 1000
mail_plugins = quota
submission_host = 198.51.100.250
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
protocol lmtp {{
  mail_plugins = quota sieve
}}
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage=10K
  quota_grace = 0
  sieve = {folder}/away.sieve
}}
service lmtp {{
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
}}
"""
SIEVE = """require ["vacation"];
if address :matches :localpart "to" "away*" { vacation :days 1 :subject "Automatic reply: away until Monday"
"I am out of the office and read no mail. If your message is returned, the mailbox is full: write to the office."; }
"""
BUILD = """
mount --bind {scratch} /mnt
for name in passwd group hosts resolv.conf; do mount --bind /mnt/$name /etc/$name; done
for place in /var/spool /var/lib /run; do mount -t tmpfs none $place; done
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty
chmod 711 /var/spool/smtpd
chown 0:0 /var/lib/opensmtpd/empty
hostname here.news.example
echo 1 > /proc/sys/net/ipv4/tcp_syn_retries
ip link set lo up
for address in {own}; do ip address add $address/32 dev lo; done
ip route add local 192.0.2.0/24 dev lo src {us}
ip route add local 198.51.100.0/24 dev lo src {us}
ip route add local 203.0.113.0/25 dev lo src {us}
ip route add unreachable 203.0.113.200/32
nft add table inet t
nft add chain inet t c '{{ type filter hook input priority 0; }}'
nft add rule inet t c ip daddr 198.51.100.252 tcp dport 25 drop
"""
USERS = "Debian-exim:x:64101:64101::/:/bin/false\nopensmtpd:x:64102:64102::/var/lib/opensmtpd/empty:/bin/false\n"
USERS += "opensmtpq:x:64103:64103::/:/bin/false\n"
GROUPS = "Debian-exim:x:64101:\nopensmtpd:x:64102:\nopensmtpq:x:64103:\n"


class Servers:
    """The servers of one run, in the folder that is /mnt here."""

    def __init__(self, wanted: set[str]) -> None:
        self.wanted, self.running = wanted, list[subprocess.Popen[bytes]]()

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = HOME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def begin(self, name: str, *command: object) -> None:
        with (HOME / f"{name}.out").open("wb") as log:
            line = [str(part) for part in command]
            self.running.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def start(self) -> None:
        self.write("unbound.conf", names(HOME))
        self.begin("unbound", "/usr/sbin/unbound", "-c", HOME / "unbound.conf")
        for name in self.wanted & {"postfix", "postfix-de", "postfix-ja"}:
            more = f"bounce_template_file = {HOME / name / 'template'}\n" if name in LOCAL else ""
            self.postfix(name, SENDERS[name], SENDING + more, [f"{SENDERS[name]}:25 inet n - n - - smtpd"])
        if self.wanted & {"receiver postfix", "receiver dovecot"}:
            self.receiving_postfix()
        if "receiver dovecot" in self.wanted:
            self.dovecot()
        for name in self.wanted & {"exim", "exim-fr"}:
            texts = self.write("bounce-fr", EXIM_FR)
            self.exim(name, SENDERS[name], [SENDERS[name]], f"bounce_message_file = {texts}" if "-" in name else "")
        if "receiver exim" in self.wanted:
            places = [address for door, address in DOOR.items() if door.startswith("exim-")]
            self.exim("mx-exim", "203.0.113.100", places, "message_size_limit = 20K", "mx.exim-boxes.example")
        if self.wanted & {"opensmtpd", "receiver opensmtpd"}:
            config = self.write("opensmtpd.conf", OPENSMTPD.format(door=DOOR["opensmtpd-boxes"]))
            self.begin("opensmtpd", UNPACKED / "opensmtpd/usr/sbin/smtpd", "-d", "-v", "-f", config)
        if self.wanted & {"sendmail", "receiver sendmail"}:
            self.sendmail()

    def postfix(self, name: str, address: str, more: str, doors: list[str], host: str = "") -> None:
        folder = HOME / name
        for part in ("queue", "lib", "box"):
            (folder / part).mkdir(parents=True)
        shutil.chown(folder / "lib", "postfix")
        shutil.chown(folder / "box", 65534)
        if name in LOCAL:
            words = LOCAL[name].items()
            texts = {n: v if n.startswith("words") else Header(v, "utf-8", 900).encode() for n, v in words}
            self.write(f"{name}/template", TEMPLATE.format(**texts))
        main = (POSTFIX + more).format(folder=folder, host=host or f"{name}.news.example", address=address)
        self.write(f"{name}/checks", "/cheapest-pills/ REJECT\n")
        self.write(f"{name}/anybody", "!/@postfix-boxes/ x\n")
        self.write(f"{name}/conf/main.cf", main)
        self.write(f"{name}/conf/master.cf", "\n".join([*doors, SERVICES.format(folder=folder)]))
        self.begin(name, "/usr/sbin/postfix", "-c", folder / "conf", "start-fg")

    def receiving_postfix(self) -> None:
        doors = [f"{DOOR[name]}:25 inet n - n - - smtpd {options}" for name, options in DOORS.items()]
        (HOME / "mx-postfix").mkdir()
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=mx.postfix-boxes.example",
                   "-days", "9", "-keyout", "/mnt/mx-postfix/key.pem", "-out", "/mnt/mx-postfix/cert.pem"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        self.postfix("mx-postfix", RECEIVING_US, RECEIVING, doors, "mx.postfix-boxes.example")

    def exim(self, name: str, address: str, doors: list[str], main: str = "", host: str = "") -> None:
        folder = HOME / name
        (folder / "spool").mkdir(parents=True)
        for place in (folder, folder / "spool"):
            shutil.chown(place, "Debian-exim", "Debian-exim")
        program = UNPACKED / "exim4-daemon-light/usr/sbin/exim4"
        text = EXIM.format(folder=folder, address=address, doors=" : ".join(doors), main=main, rbl=DOOR["exim-rbl"],
                           program=program, host=host or f"{name}.news.example")  # fmt: skip
        self.begin(name, program, "-C", self.write(f"{name}/conf", text), "-bdf", "-q2s")

    def sendmail(self) -> None:
        folder = HOME / "sendmail"
        (folder / "queue").mkdir(parents=True, mode=0o700)
        self.write("sendmail/aliases", "postmaster root\n")
        self.write("sendmail/virtual", "team-sendmail@lists.example\tluis01@r01.example\n")
        mc = SENDMAIL.format(folder=folder, boxes=DOOR["sendmail-boxes"], foreign=DOOR["sendmail-foreign"])
        macros = UNPACKED / "sendmail-cf/usr/share/sendmail/cf"
        command = ["m4", f"-D_CF_DIR_={macros}/", macros / "m4/cf.m4", self.write("sendmail/mc", mc)]
        made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=macros)
        cf = self.write("sendmail/cf", made.stdout)
        self.begin("sendmail", UNPACKED / "sendmail-bin/usr/libexec/sendmail/sendmail", "-C", cf, "-bD", "-q2s")

    def dovecot(self) -> None:
        users = [to for letter in letters() if letter.case in ("quota-at-dovecot", "vacation") for to in letter.to]
        self.write("dovecot/users", "".join(f"{user}:{{PLAIN}}x::::/mnt/dovecot/mail::\n" for user in users))
        (HOME / "dovecot/mail").mkdir()
        shutil.chown(HOME / "dovecot/mail", 65534, 65534)
        self.write("dovecot/away.sieve", SIEVE)
        config = self.write("dovecot/conf", DOVECOT.format(folder=HOME / "dovecot"))
        self.begin("dovecot", "/usr/sbin/dovecot", "-F", "-c", config)


CAUSE = re.compile(r"smtp error|connection (refused|timed out)|unreachable|tls session")  # Exim states one, or none


def shown(message: bytes) -> str:
    """A report as one line of plain words, so that it can be seen whether a reply stands in it."""
    return " ".join(re.sub(r"[^a-z0-9@.-]+", " ", message.decode("utf-8", "replace").lower()).split())


def rows(letter: Letter, reports: list[bytes], first: int, problems: list[str]) -> Iterator[dict[str, object]]:
    """The truth about the reports on one letter; what the servers wrote beside or instead of it are problems."""
    left = list(letter.told)
    for number, report in enumerate(reports, first):
        text = shown(report.partition(b"\nMessage-ID: " + letter.message_id.encode())[0])
        mine = left
        mine = [told for told in mine if told.recipient in text or (told.original and told.original in text)]
        over = "envelope expired" in text  # OpenSMTPD calls its last report "delayed", too
        mine = [told for told in mine if told.action == "failed"] if over else mine
        mine = [told for told in mine if over or f"action {told.action}" in text or "action " not in text]
        if not mine:
            problems.append(f"{letter.mta}, {letter.case}: a report too many\n{report.decode('utf-8', 'replace')}")
        for told in mine:
            left.remove(told)
            code, status = re.match(r"(\d{3})?[ -]?(\d\.\d+\.\d+)?", told.reply).groups()  # type: ignore[union-attr]
            status = status or next(iter(re.findall(r"#(\d\.\d\.\d)", told.reply)), "")
            words = shown(re.sub(r"^[\d. -]+|//.*|\{.*|<.*", "", told.reply).encode())[:25]
            category = told.category
            silent = code and not (code in text and words in text)  # the server keeps to itself what it was told
            if over or silent or ("retry timeout exceeded" in text and not CAUSE.search(text)):
                code, status, category = "", "", "expired" if over else "expired,connection"
            kind = next((kind for kind, names in KINDS.items() if category.partition(",")[0] in names.split()), "soft")
            returned = letter.message_id if told.recipient and letter.message_id.encode() in report else ""
            yield dict(zip(COLUMNS, (number, letter.mta.partition("-")[0], letter.receiver, letter.case,
                                     told.recipient, told.original, told.action, code or "", status or "",
                                     category.replace(",", "|"), kind, returned), strict=True))  # fmt: skip
    if left:
        problems.append(f"{letter.mta}, {letter.case}: no report on {left}")


def make(folder: Path, cases: list[str]) -> None:
    chosen = [letter for letter in letters() if not cases or f"{letter.mta}:{letter.case}" in cases]
    with tempfile.TemporaryDirectory(prefix="deliverkit-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        (scratch / "passwd").write_text(Path("/etc/passwd").read_text() + USERS)
        (scratch / "group").write_text(Path("/etc/group").read_text() + GROUPS)
        (scratch / "hosts").write_text("127.0.0.1 localhost\n")
        (scratch / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
        build = BUILD.format(scratch=scratch, us=US, own=" ".join([US, RECEIVING_US, *SENDERS.values()]))
        subprocess.run(["sh", "-ec", build], check=True)
        receivers = Receivers()
        receivers.listen(MAILBOX, "198.51.100.249", "198.51.100.248", *(f"198.51.100.{n}" for n in ANSWERS))
        servers = Servers({letter.mta for letter in chosen} | {f"receiver {letter.receiver}" for letter in chosen})
        servers.start()
        try:
            send(chosen)
            collect(chosen, receivers)
        finally:
            for server in servers.running:
                server.terminate()
        write(folder, chosen, receivers)


def send(chosen: list[Letter]) -> None:
    """Hand every letter to its server."""
    for letter in chosen:
        place = MAILBOX if letter.receiver == "none" else SENDERS[letter.mta]
        for attempt in range(100):  # until the server is up
            try:
                with smtplib.SMTP(place, 25, "us.news.example", 20, (US, 0)) as session:
                    session.ehlo()
                    dsn = session.has_extn("dsn")
                    mail = ["BODY=8BITMIME"] + [f"RET={letter.ret}", f"ENVID={letter.number}"] * dsn
                    rcpt = [f"NOTIFY={letter.notify}"] * dsn
                    session.sendmail(letter.sender, letter.to, letter.content, mail, rcpt)
                break
            except (ConnectionError, smtplib.SMTPServerDisconnected):
                if attempt == 99:
                    raise
                time.sleep(0.1)


def of(letter: Letter, receivers: Receivers) -> list[bytes]:
    """What came back to the sender of a letter."""
    if letter.receiver == "none":
        return [text for _, text in receivers.kept if letter.message_id.encode() in text]
    return [text for to, text in receivers.kept if re.match(rf"news\+{letter.number:03d}\b", to)]


def collect(chosen: list[Letter], receivers: Receivers) -> None:
    """Wait until everything is reported that has to be, or nothing comes any more."""
    count, since = -1, time.monotonic()
    while time.monotonic() - since < 30:
        time.sleep(0.5)
        if len(receivers.kept) != count:
            count, since = len(receivers.kept), time.monotonic()
        if not truth(chosen, receivers)[1]:
            break


def truth(chosen: list[Letter], receivers: Receivers) -> tuple[list[dict[str, object]], list[str], list[bytes]]:
    """What is known of all reports, what is wrong with them, and the reports."""
    known, problems, reports = list[dict[str, object]](), list[str](), list[bytes]()
    for letter in chosen:
        mine = once(letter, of(letter, receivers))
        known += rows(letter, mine, len(reports) + 1, problems)
        reports += mine
    return known, problems, reports


def once(letter: Letter, reports: list[bytes]) -> list[bytes]:
    """Reports without those a server wrote twice, as Sendmail does where two of its queue runs meet."""
    kept: dict[tuple[bytes, ...], bytes] = {}
    for report in reports:
        said = re.findall(rb"(?m)^(?:Final-Recipient|Action|Status): .*", report)
        kept.setdefault((*said, *(() if letter.mta == "sendmail" else [report])), report)
    return list(kept.values())


def write(folder: Path, chosen: list[Letter], receivers: Receivers) -> None:
    known, problems, reports = truth(chosen, receivers)
    if problems:
        raise SystemExit("\n".join(problems))
    box, stamp = b"", time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime())
    for report in reports:
        quoted = re.sub(rb"(?m)^(>*From )", rb">\1", report.replace(b"[/mnt/dovecot/lmtp]", b"[private/dovecot-lmtp]"))
        box += f"From MAILER-DAEMON {stamp}\n".encode() + quoted.rstrip(b"\n") + b"\n\n"
    (folder / "refusals.mbox").write_bytes(box)
    with (folder / "refusals.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known)
    print(len(reports), "messages,", len(known), "rows,", len(box), "bytes", flush=True)


if __name__ == "__main__":
    if os.environ.get("DELIVERKIT_NAMESPACE") != "1":
        os.environ["DELIVERKIT_NAMESPACE"] = "1"
        flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", ["unshare", *flags, sys.executable, *sys.argv])
    make(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parents[1], sys.argv[2:])
