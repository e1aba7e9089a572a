"""What rows mean: each way to a verdict is walked, and every row names its rule."""

from __future__ import annotations

import pandas as pd
import pytest

from deliverkit import facts
from deliverkit.classify import classify
from deliverkit.errors import SchemaError
from deliverkit.schema import PROBES, STEPS


def one(**row: object) -> dict[str, object]:
    [made] = classify([row]).to_dict("records")
    return made


def test_an_accepted_message_is_no_failure_and_not_blocked() -> None:
    row = one(outcome="passed", text="250 2.0.0 Ok: queued as 5X1")
    assert (row["category"], row["kind"], row["blocked"], row["step"]) == ("not_a_failure", "none", False, "inbox")


def test_words_decide_before_codes() -> None:
    row = one(outcome="failed", reply_code=550, status_code="5.1.1", text="550 5.1.1 mailbox is full")
    assert row["category"] == "mailbox_unavailable"


def test_a_code_decides_where_words_are_missing() -> None:
    row = one(outcome="failed", reply_code=550, status_code="5.1.1")
    assert (row["category"], row["rule"]) == ("invalid_recipient", "code:x.1.1")


@pytest.mark.parametrize(
    ("host", "category"),
    [("gmail-smtp-in.l.google.com", "sender_auth"), ("x.protection.outlook.com", "relay_or_login")],
)
def test_the_same_code_means_what_its_operator_says(host: str, category: str) -> None:
    assert one(outcome="failed", reply_code=550, status_code="5.7.30", host=host)["category"] == category


def test_nothing_known_stays_unknown_and_names_that() -> None:
    row = one(outcome="failed")
    assert (row["category"], row["rule"]) == ("unknown", "default:unknown")
    assert pd.isna(row["blocked"]) and pd.isna(row["blocked_by"])


def test_a_settled_hint_wins_over_words() -> None:
    assert one(outcome="passed", hint="arf", text="user unknown")["rule"] == "hint:arf"


def test_a_hint_without_a_rule_changes_nothing() -> None:
    assert one(outcome="failed", hint="never heard of", status_code="5.1.1")["category"] == "invalid_recipient"


@pytest.mark.parametrize("hint", ["delayed", "expired", "final"])
def test_silence_to_the_end_is_expired_and_an_answer_is_not(hint: str) -> None:
    silence = "connect to mx.example[192.0.2.1]:25: Connection timed out"
    assert one(outcome="failed", text=silence)["category"] == "connection"
    assert one(outcome="failed", text=silence, hint=hint)["category"] == "expired"
    assert one(outcome="failed", text="450 greylisted", hint=hint)["category"] == "rate_limited"


def test_a_final_report_without_words_is_decided_by_its_code() -> None:
    assert one(outcome="failed", hint="final", status_code="5.1.1")["rule"] == "code:x.1.1"


def test_a_lost_session_after_rcpt_is_no_shut_door() -> None:
    row = one(outcome="deferred", step="relay", text="lost connection with mx.example while sending RCPT TO")
    assert (row["category"], row["blocked"]) == ("connection", False)


def test_the_operator_is_read_from_the_host_then_from_the_recipient() -> None:
    assert one(host="mx1.hotmail.com")["operator"] == "microsoft"
    assert one(recipient="someone@googlemail.com")["operator"] == "google"
    assert pd.isna(one(host="notgmail.com.example")["operator"])


def probes(*rows: dict[str, object]) -> pd.DataFrame:
    return classify([{"outcome": "failed", **row} for row in rows], PROBES)


SILENT = {"verdict": "filtered", "failure": "tcp_timeout", "step": "connect"}
REFUSED = {"verdict": "closed", "failure": "tcp_refused", "step": "connect"}
OPEN = {"verdict": "open", "outcome": "passed", "step": "encryption"}


def test_silence_is_the_network() -> None:
    assert probes({"host": "a.example", "port": 25, **SILENT})["blocked_by"].tolist() == ["network"]


def test_a_refusal_with_another_door_open_is_the_server() -> None:
    frame = probes({"host": "a.example", "port": 587, **REFUSED}, {"host": "a.example", "port": 465, **OPEN})
    assert frame["blocked_by"][0] == "server"


def test_a_refusal_by_all_of_three_hosts_is_the_network() -> None:
    hosts = [f"{name}.example" for name in "abc"]
    frame = probes(
        *({"host": h, "port": 587, **REFUSED} for h in hosts), *({"host": h, "port": 465, **OPEN} for h in hosts)
    )
    assert frame["blocked_by"][:3].tolist() == ["network"] * 3


def test_a_server_that_names_a_blocklist_is_a_policy() -> None:
    frame = probes(
        {"verdict": "rejected", "failure": "smtp_5xx", "reply_code": 554, "text": "554 5.7.1 listed at dnsbl.example"}
    )
    assert (frame["category"][0], frame["blocked_by"][0]) == ("reputation_block", "policy")


@pytest.mark.parametrize("table", ["probe_failures", "hints", "status_codes", "bounce_patterns"])
def test_every_rule_speaks_the_words_of_the_categories(table: str) -> None:
    rules = facts.table(table)
    known = facts.table("categories")
    assert set(rules["category"]) <= set(known["category"])
    for name, words in (("step", STEPS), ("blocked_by", ("network", "server", "policy")), ("kind", set(known["kind"]))):
        if name in rules:
            assert set(rules[name].dropna()) <= set(words)


def test_sixteen_categories() -> None:
    assert len(facts.table("categories")) == 16


def test_every_verdict_of_a_probe_has_a_rule() -> None:
    known = set(facts.table("probe_failures")["verdict"])
    words = """open open_no_tls open_tls_broken deferred rejected tampered not_smtp accepts_no_banner
        closed_after_accept closed filtered blocked_icmp unreachable local_error dns_fail cancelled"""
    assert known == set(words.split())


def test_many_rows_keep_their_order() -> None:
    rows = [{"outcome": "failed", "status_code": f"5.1.{n % 3}", "line": n} for n in range(300)]
    made = classify(rows)
    assert made["line"].tolist() == list(range(300))
    assert made["rule"].tolist() == [f"code:x.1.{n % 3}" for n in range(300)]


def test_a_column_nobody_knows_is_refused() -> None:
    with pytest.raises(SchemaError, match="'colour'"):
        classify([{"colour": "red"}])


def test_a_long_text_is_cut() -> None:
    assert len(one(outcome="failed", text="x" * 10_000)["text"]) == 2000


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("connect to mx.example[192.0.2.1]:25: Connection timed out", True),
        (
            "Host or domain name not found. Name service error for name=mx.example type=A: Host not found, try again",
            False,
        ),
        ("mail for mx.example loops back to myself", False),
    ],
)
def test_what_the_dns_or_a_loop_did_is_no_block(text: str, blocked: bool) -> None:
    assert one(outcome="deferred", text=text)["blocked"] is blocked


def test_one_server_that_hangs_up_is_no_network() -> None:
    hung = {"verdict": "closed_after_accept", "failure": "eof", "step": "rules", "port": 25}
    alone = probes({"host": "a.example", **hung}, {"host": "b.example", "port": 25, **OPEN})
    assert alone["blocked_by"][0] == "server"
    every = probes(*({"host": f"{name}.example", **hung} for name in "abc"))
    assert every["blocked_by"].tolist() == ["network"] * 3


@pytest.mark.parametrize(
    ("verdict", "failure", "told", "by"),
    [
        ("closed", "tcp_refused", {}, "server"),
        ("closed", "tcp_refused", {"icmp_from": "192.0.2.9"}, "server"),
        ("closed", "tcp_refused", {"icmp_from": "192.0.2.1"}, "network"),
        ("closed", "tcp_refused", {"last_hop": 2}, "network"),
        ("blocked_icmp", "icmp_admin_prohibited", {"icmp_from": "192.0.2.9"}, "server"),
        ("blocked_icmp", "icmp_admin_prohibited", {"icmp_from": "192.0.2.1"}, "network"),
    ],
)
def test_who_sent_the_refusal_is_who_blocks(verdict: str, failure: str, told: dict[str, object], by: str) -> None:
    same = {"host": "mx.example", "address": "192.0.2.9", "attempted": True}
    shut = same | {"port": 25, "verdict": verdict, "failure": failure, "step": "connect", "outcome": "failed"} | told
    up = same | {"port": 587, "verdict": "open", "step": "encryption", "outcome": "passed"}
    assert classify([shut, up], PROBES)["blocked_by"][0] == by
