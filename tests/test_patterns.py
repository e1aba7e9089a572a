"""The pattern table: every row decides its examples, needs its place, and takes linear time on any text."""

from __future__ import annotations

import re
import time
from re import _constants as op  # what re itself compiles from
from re import _parser
from typing import Any

import pytest

from deliverkit import facts
from deliverkit.bounces.mail import WORDS
from deliverkit.classify import match_text
from deliverkit.patterns import needs

TABLE = facts.table("bounce_patterns")
RULES = TABLE.fillna("").to_dict("records")
EXAMPLES = [(rule, example) for rule in RULES for example in rule["example"].split(" | ")]
COMPILED = {rule["id"]: re.compile(rule["pattern"]) for rule in RULES}
VERDICT = ("category", "kind", "blocked", "step")
CODES = "any de en es fr it ja ko nl pl pt ru zh"


def operator(rule: dict[str, Any]) -> str:
    return "" if rule["provider"] == "any" else str(rule["provider"])


def branches(pattern: str) -> list[str]:
    """The alternatives of a pattern, as written."""
    made, depth = [""], 0
    for token in re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", pattern, re.S):
        depth += (token == "(") - (token == ")")
        if token == "|" and not depth:
            made.append("")
        else:
            made[-1] += token
    return made


def plain(text: str) -> str:
    return re.sub(r"[^\s<>@]{1,64}@[^\s<>@,;:)]{1,255}", "@", " ".join(text.lower().split()))


@pytest.mark.parametrize(("rule", "example"), EXAMPLES, ids=[rule["id"] for rule, _ in EXAMPLES])
def test_an_example_is_decided_by_its_row(rule: dict[str, Any], example: str) -> None:
    found = match_text(example, operator(rule))
    assert found is not None and (found.id, found.category) == (rule["id"], rule["category"]), example


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["id"])
def test_each_alternative_of_a_row_has_an_example(rule: dict[str, Any]) -> None:
    texts = [plain(example) for example in rule["example"].split(" | ")]
    assert [b for b in branches(rule["pattern"]) if not any(re.search(b, text) for text in texts)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["id"])
def test_without_a_row_one_of_its_examples_is_judged_otherwise(rule: dict[str, Any]) -> None:
    own, others = [], []  # the operator's rows come first
    for other in RULES:
        if other["id"] != rule["id"] and other["provider"] in (rule["provider"], "any"):
            (own if other["provider"] != "any" else others).append(other)

    def judged(text: str) -> tuple[str, ...] | None:
        found = next((o for o in [*own, *others] if COMPILED[o["id"]].search(text)), None)
        return found and tuple(found[name] for name in VERDICT)

    same = tuple(rule[name] for name in VERDICT)
    assert any(judged(plain(example)) != same for example in rule["example"].split(" | "))


def test_no_alternative_stands_in_two_rows_of_a_provider() -> None:
    seen = [(rule["provider"], branch) for rule in RULES for branch in branches(rule["pattern"])]
    assert [one for one in set(seen) if seen.count(one) > 1] == []


def test_rows_have_an_id_a_language_and_a_source() -> None:
    assert TABLE["id"].is_unique and TABLE["id"].str.startswith("text:").all()
    assert TABLE[["provider", "languages", "pattern", "example", "source", "noted", "evidence"]].notna().all(axis=None)
    assert {code for codes in TABLE["languages"] for code in codes.split()} <= set(CODES.split())
    assert set(TABLE["provider"]) <= {"any", *facts.table("operators")["operator"]}


def test_examples_name_nobody() -> None:
    domains = re.findall(r"@([\w.-]+)", " ".join(TABLE["example"]))
    assert [d for d in domains if not re.search(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|invalid)\.?$", d)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["id"])
def test_each_alternative_needs_letters(rule: dict[str, Any]) -> None:
    assert all(needs(rule["pattern"]))


def repeats(items: Any) -> int:
    """The largest product of repeats within one another."""
    most = 1
    for kind, value in items:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            most = max(most, int(value[1]) * repeats(value[2]))
        elif kind is op.BRANCH:
            most = max([most, *map(repeats, value[1])])
        elif kind in (op.SUBPATTERN, op.ASSERT, op.ASSERT_NOT, op.ATOMIC_GROUP):
            most = max(most, repeats(value if kind is op.ATOMIC_GROUP else value[-1]))
    return most


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["id"])
def test_nothing_repeats_without_bound_or_refers_back(rule: dict[str, Any]) -> None:
    assert repeats(_parser.parse(rule["pattern"])) <= 200
    assert not re.search(r"\\[1-9]|\(\?P", rule["pattern"])


PIECES = ["- ", "a@b.example ", "550 5.1.1 ", "host ", "a.", "1.2.3.4", "<a", "user ", "mailbox x ", "to ", "\t", ":"]


@pytest.mark.parametrize("piece", PIECES)
def test_twice_the_text_takes_about_twice_the_time(piece: str) -> None:
    def seconds(count: int) -> float:
        text, begin = piece * count, time.process_time()
        for pattern in WORDS.values():
            list(pattern.finditer(text))
        for compiled in COMPILED.values():
            compiled.search(text[:2000])
        return time.process_time() - begin

    seconds(100)
    small, large = (min(seconds(n) for _ in range(2)) for n in (1000, 4000))
    assert large < 0.05 + 8 * small, f"{small:.3f} s, then {large:.3f} s for four times as much"


KNOWN = {
    "connect to mx.example[192.0.2.1]:25: Connection refused": "connection",
    "connect to mx.example[192.0.2.1]:25: Connection timed out": "connection",
    "connect to mx.example[192.0.2.1]:587: No route to host": "connection",
    "connect to mx.example[2001:db8::1]:25: Network is unreachable": "connection",
    "lost connection with mx.example[192.0.2.1] while receiving the initial server greeting": "connection",
    "lost connection with mx.example[192.0.2.1] while sending end of data -- message may be sent more than once": "connection",  # noqa: E501
    "conversation with mx.example[192.0.2.1] timed out while sending RCPT TO": "connection",
    "host mx.example[192.0.2.1] refused to talk to me: 554 5.7.1 blocked using bl.example": "reputation_block",
    "host mx.example[192.0.2.1] refused to talk to me: 421 too many connections": "rate_limited",
    "TLS is required, but was not offered by host mx.example[192.0.2.1]": "tls",
    "Server certificate not verified": "tls",
    "SASL authentication failed; server mx.example[192.0.2.1] said: 535 5.7.8 no": "relay_or_login",
    "Host or domain name not found. Name service error for name=none.example type=MX: Host not found": "invalid_domain",
    "Host or domain name not found. Name service error for name=slow.example type=MX: Host not found, try again": "connection",  # noqa: E501
    "Domain none.example does not accept mail (nullMX)": "invalid_domain",
    "mail for a.example loops back to myself": "connection",
    "451 4.3.0 <a@b.example>: Temporary lookup failure": "system",
    # the same words about somebody else
    "450 4.1.8 <a@b.example>: Sender address rejected: Domain not found": "policy_block",
    "450 4.1.2 <a@b.example>: Recipient address rejected: Domain not found": "invalid_domain",
    "450 4.7.1 <mx.example>: Helo command rejected: Host not found": "reputation_block",
    "550 5.1.1 <a@b.example>: Recipient address rejected: undeliverable address: host said: 550 5.1.1 unknown user": "invalid_recipient",  # noqa: E501
    "550 5.1.0 <a@b.example>: Sender address rejected: User unknown in virtual mailbox table": "policy_block",
    "550 Requested action not taken: mailbox unavailable": "invalid_recipient",
    "450 Requested mail action not taken: mailbox unavailable": "mailbox_unavailable",
    "552 5.2.2 This message is larger than the current system limit or the recipient's mailbox is full.": "mailbox_unavailable",  # noqa: E501
    "550 5.1.1 <a@b.example> sent to too many recipients this hour": "rate_limited",
    "421 4.7.0 temporarily rate limited due to IP reputation": "reputation_block",
    "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.example": "reputation_block",
    "550 5.7.1 <a@b.example>... Relaying denied. IP name lookup failed [192.0.2.1]": "relay_or_login",
    "550 5.7.26 sending host is not authorized to send mail from b.example, see SPF": "sender_auth",
    "554 5.4.14 Hop count exceeded - possible mail loop": "connection",
}


@pytest.mark.parametrize("text", KNOWN)
def test_words_that_mislead_are_read_in_their_place(text: str) -> None:
    found = match_text(text)
    assert found is not None and found.category == KNOWN[text]


GREETINGS = [
    "I'm afraid I wasn't able to deliver your message to the following addresses. This is a permanent error.",
    "I'm sorry to have to inform you that your message could not be delivered to one or more recipients.",
    "A message that you sent could not be delivered to one or more of its recipients. This is a permanent error.",
    "----- The following addresses had permanent fatal errors ----- ----- Transcript of session follows -----",
    "Your message did not reach some or all of the intended recipients.",
    "Delivery to the following recipient failed permanently. Technical details of permanent failure:",
    "This is an automatically generated Delivery Status Notification. Delivery to the following recipients failed.",
    "There was a problem delivering your message. See the technical details below. The response was:",
    "host mx.example[192.0.2.1] said: 554 5.7.1 (in reply to end of DATA command)",
]


@pytest.mark.parametrize("text", GREETINGS)
def test_how_a_report_begins_decides_nothing(text: str) -> None:
    assert match_text(text) is None
