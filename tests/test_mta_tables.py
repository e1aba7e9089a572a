"""Structured MTA logs and application logs: every record type, and what hostile ones may not do."""

from __future__ import annotations

import csv
import io
import json
import time
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deliverkit import facts
from deliverkit.logs import applications, exchange, exim, kumomta, m365, powermta, read_log
from deliverkit.logs.fields import endpoint, records
from deliverkit.outcomes import outcomes
from deliverkit.schema import ATTEMPTS

FORMATS = {
    name: import_module(f"deliverkit.logs.{name}")
    for name in ("powermta", "kumomta", "exchange", "m365", "applications")
}
CASES = [
    pytest.param(name, case, id=f"{name}: {case['name']}")
    for name in FORMATS
    for case in tomllib.loads((Path(__file__).parent / f"cases/{name}.toml").read_text(encoding="utf-8"))["case"]
]
JUDGED = {"category", "kind", "blocked", "blocked_by", "rule", "operator"}  # by classify, which test_logs.py asks
PATTERNS = facts.table("application_patterns").fillna("").to_dict("records")


def rows(name: str, text: str) -> list[dict[str, Any]]:
    return list(FORMATS[name].rows(text.strip("\n").splitlines()))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_lines_give_the_expected_rows(name: str, case: dict[str, Any]) -> None:
    made = rows(name, case["line"])
    assert len(made) == case.get("rows", 1)
    told = {column: made[-1].get(column) for column in case["expect"] if column not in JUDGED}
    assert told == {column: value for column, value in case["expect"].items() if column not in JUDGED}
    assert [column for column in case.get("missing", ()) if made[-1].get(column) is not None] == []


@pytest.mark.parametrize(("name", "case"), CASES)
def test_rows_have_only_columns_of_the_frame_and_the_line_they_come_from(name: str, case: dict[str, Any]) -> None:
    for row in rows(name, case["line"]):
        assert row.keys() <= {*ATTEMPTS.names, "direction", "hint"}
        assert {"time", "line", "outcome", "attempted"} <= row.keys()
        assert 1 <= row["line"] <= len(case["line"].strip("\n").splitlines())


@pytest.mark.parametrize(("name", "case"), [case for case in CASES if case.values[0] != "applications"])
def test_ends_of_lines_make_no_difference(name: str, case: dict[str, Any]) -> None:
    lines = case["line"].strip("\n").splitlines()
    assert list(FORMATS[name].rows([f"{line}\r" for line in lines])) == rows(name, case["line"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_knows_its_own_files_and_no_others(name: str) -> None:
    for value in CASES:
        of, case = value.values
        first = next((line for line in case["line"].strip("\n").splitlines() if FORMATS[name].sniff(line)), None)
        if name != of:
            assert first is None, (of, case["name"])
        elif not any(words in case["name"] for words in ("before any", "unknown", "by smtplib above")):
            assert first is not None, case["name"]


POSTFIX = (
    "Nov 23 21:14:53 mail postfix/smtp[9]: DD61222EC53: to=<b@x.example>, relay=none, delay=1, "
    "delays=0/0/1/0, dsn=4.4.1, status=deferred (connect to mx.x.example[192.0.2.58]:25: Connection refused)"
)
OTHERS = [
    POSTFIX,
    "2026-11-25 10:00:00 1wABCD-000000-00 H=mx.x.example [192.0.2.58]:25 Connection refused",
    "2026-11-25 10:00:00 1wABCD-000000-00 == b@x.example R=dnslookup T=remote_smtp defer (111): Connection refused",
    "Nov 25 10:00:00 mail smtpd[1]: 0123456789abcdef mta error reason=IO Error: Connection refused",
    "Nov 25 10:00:00 mail sendmail[1]: 5AB: to=<b@x.example>, stat=Deferred: Connection timed out with mx.x.example.",
    "Nov 25 10:00:00 mail dovecot: imap-login: Login: user=<x>",
    "Nov 25 10:00:00 web nginx: connect() failed (111: Connection refused) while connecting to upstream 192.0.2.1:8080",
    "redis.exceptions.ConnectionError: Error 111 connecting to 192.0.2.1:6379. Connection refused.",
    "Error: connect ECONNREFUSED 192.0.2.1:5432",
    "dial tcp 192.0.2.1:5432: connect: connection refused",
    "ConnectionRefusedError: [Errno 111] Connection refused",
    "recipient,client\nb@x.example,ACME",
    '{"type":"Bounce","recipient":"b@x.example"}',
    '{"type":["Bounce"],"queue":"x","site":"y"}',
    '{"eventType":"Bounce","mail":{"messageId":"m1"},"bounce":{}}',
    "[" * 100_000,
    "",
    "\x00\x01",
]


@pytest.mark.parametrize("line", OTHERS)
def test_lines_of_others_are_left_to_them(line: str) -> None:
    assert [name for name, module in FORMATS.items() if module.sniff(line)] == []


# Records of CSV


def test_records_of_csv_are_those_of_the_csv_module() -> None:
    table = [["a", 'b"c', "d,e"], ["", "two\nlines", "x"], ["1", "2", "3"]]
    buffer = io.StringIO()
    csv.writer(buffer).writerows(table)
    assert [record for _, record in records(buffer.getvalue().split("\n")[:-1])] == table
    assert [number for number, _ in records(buffer.getvalue().split("\n")[:-1])] == [1, 2, 4]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text('a",\r\né', max_size=12), max_size=8))
def test_no_line_of_csv_is_lost_and_none_is_read_twice(lines: list[str]) -> None:
    lines = [line.replace("\n", "") for line in lines]
    numbers = [number for number, _ in records(lines)]
    assert numbers == sorted(set(numbers))
    assert numbers[:1] == [1][: len(lines)]


def test_a_quote_that_stays_open_takes_no_other_record_with_it() -> None:
    lines = ['a,"open', *(f"{n},x" for n in range(300)), 'b,"also open', "c,d"]
    assert [len(record) for _, record in records(lines)] == [2] * 303


def test_an_endpoint_is_an_address_with_or_without_a_port() -> None:
    assert endpoint("192.0.2.1:25") == ("192.0.2.1", 25)
    assert endpoint("[2001:db8::1]:587") == ("2001:db8::1", 587)
    assert endpoint("2001:db8::1") == ("2001:db8::1", None)
    assert endpoint("192.0.2.1:99999") == ("192.0.2.1", None)
    for text in ("", ":", "mx.x.example:25", "/run/lmtp", "[::1", "1:2", "٣:25"):
        assert endpoint(text)[1] is None, text


# What strangers write

PROTOCOL = (
    "#Fields: date-time,connector-id,session-id,sequence-number,local-endpoint,remote-endpoint,event,data,context"
)

NASTY = st.text("a<>\"';,:=()[]{}#@\\é\x00\ud800 1.5\n\r", max_size=60)


@settings(deadline=None, max_examples=300)
@given(NASTY, NASTY)
def test_no_reply_of_a_stranger_makes_another_record_of_powermta(to: str, said: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(
        [["type", "timeLogged", "rcpt", "dsnDiag"], ["b", "1795600003", to, "smtp;550 " + said]]
    )
    [row] = powermta.rows(buffer.getvalue().split("\n")[:-1])
    assert (row["outcome"], row["reply_code"]) == ("failed", 550)


NAMES = ["code", "content", "enhanced_code", "class", "subject", "detail", "command", "addr", "name", "recipient"]
FIELDS = ["response", "peer_address", "recipient", "queue", "headers", "timestamp", "event_time", "feedback_report"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NASTY,
    lambda some: st.lists(some) | st.dictionaries(st.sampled_from(NAMES), some),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(JSON, st.sampled_from(FIELDS), st.sampled_from([*kumomta._MEANS]))
def test_no_value_breaks_the_reading_of_kumomta(value: Any, field: str, kind: str) -> None:
    record = {"type": kind, "queue": "x", "site": "y", "timestamp": 1795600003, "created": 1795600000, field: value}
    for row in kumomta.rows([json.dumps(record)]):
        assert row["line"] == 1
        "".join(text for text in row.values() if isinstance(text, str)).encode()


SAID = ["", "220 x", "250 ok", "354 go", "450 no", "550 no", "250-x", "334 x", "999", "²5", "Failed to connect",
        "MAIL FROM:<a@x>", "RCPT TO:<b@x>", 'RCPT TO:<"', "DATA", "BDAT 1 LAST", "RSET", "QUIT",
        "AUTH LOGIN", "EHLO x"]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["+", "-", ">", "<", "*", ""]), st.sampled_from(SAID) | NASTY), max_size=25))
def test_any_session_of_the_protocol_log_gives_each_recipient_at_most_one_row_per_command(
    events: list[tuple[str, str]],
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for event, data in events:
        writer.writerow(["2026-11-25T10:00:00.000Z", "c", "S1", "1", "", "192.0.2.1:25", event, data, ""])
    made = [
        row for row in exchange.rows([PROTOCOL, *buffer.getvalue().split("\n")[:-1]]) if row.get("hint") != "unreadable"
    ]
    assert sum(row["recipient"] == "b@x" for row in made) <= sum(both == (">", "RCPT TO:<b@x>") for both in events)
    assert {row["port"] for row in made} <= {25}


def session(number: int, *events: str) -> Iterator[str]:
    for event in events:
        yield f"2026-11-25T10:00:00.000Z,c,S{number},1,,192.0.2.1:25,{event},"


def test_sessions_without_end_are_bounded_and_none_of_their_recipients_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_SESSIONS", 10)
    monkeypatch.setattr(exchange, "_WAITING", 10)
    lines = [PROTOCOL]
    for number in range(50):
        lines += session(number, "+,", *(f">,RCPT TO:<b{number}.{n}@x.example>" for n in range(25)))
    made = list(exchange.rows(lines))
    assert len({row["recipient"] for row in made}) == len(made) == 50 * 25
    assert {row["outcome"] for row in made} == {None}


HEADS = {
    "powermta": "type,timeLogged,rcpt,dsnDiag\nb,1,b@x.example,",
    "m365": "origin_timestamp,sender_address,recipient_status,message_id\nt,a@x.example,",
    "exchange": "#Fields: date-time,event-id,recipient-address,recipient-status\nt,FAIL,b@x.example;c@x.example,",
}
PIECES = ['"', ",", "a", '","', "[{LED=", "};{", '{"a":', "##Receive, ", ";", "<", "(", "smtp error: ",
          "dial tcp 1.1.1.1:25: ", "socketexception ", "code':'eauth' "]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("piece", PIECES)
def test_reading_takes_linear_time(name: str, piece: str) -> None:
    def seconds(size: int) -> float:
        body = piece * (size // len(piece))
        head, _, line = (HEADS.get(name, '\n{"type":"Bounce","queue":"') + body).partition("\n")
        began = time.perf_counter()
        list(FORMATS[name].rows([head, line, body, line.replace(",", "."), *[line[:300]] * (size // 300)]))
        FORMATS[name].sniff(body)
        return time.perf_counter() - began

    assert seconds(300_000) < 5.0  # not minutes


# Applications


@pytest.mark.parametrize("row", PATTERNS, ids=lambda row: row["id"])
def test_each_pattern_fits_its_example_and_gives_what_it_says(row: dict[str, str]) -> None:
    words = row["context"].split("|")[0]
    made = list(applications.rows([f"import {words}", row["example"]]))
    if not row["outcome"]:  # it names the far end for what comes after it
        assert made == []
        [made] = [list(applications.rows([row["example"], "SMTP ERROR: Failed to connect to server: timed out (110)"]))]
        assert (made[0]["host"], made[0]["port"]) == ("smtp.x.example", 587)
        return
    assert len(made) == 1
    assert made[0]["outcome"] == row["outcome"]
    assert made[0]["step"] == (row["step"] or None)
    assert made[0]["line"] == 2
    if (":587" in row["example"] or ", 587" in row["example"]) and row["id"] != "php:opening":
        assert made[0]["port"] == 587


@pytest.mark.parametrize("row", PATTERNS, ids=lambda row: row["id"])
def test_an_example_is_found_by_its_own_pattern_first(row: dict[str, str]) -> None:
    known, patterns = applications._table()
    low = row["example"].lower()
    assert (
        next(known[place]["id"] for place in patterns.candidates([low])[0] if patterns.compiled[place].search(low))
        == row["id"]
    )


def test_words_that_others_write_too_count_only_near_a_mail_library() -> None:
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    trace = ["2026-11-25 10:00:00,123 ERROR mail failed", "Traceback (most recent call last):",
             '  File "/usr/lib/python3.11/smtplib.py", line 255, in __init__', refused]  # fmt: skip
    [row] = applications.rows([refused, *["x"] * 50, *trace])
    assert (row["line"], row["time"], row["step"]) == (55, "2026-11-25T10:00:00.123", "connect")
    assert list(applications.rows([*trace[:3], *["x"] * 50, refused])) == []


def test_a_port_of_mail_is_as_good_as_a_name() -> None:
    made = list(
        applications.rows([f"Error: connect ECONNREFUSED 192.0.2.1:{port}" for port in (5432, 25, 465, 587, 2525, 80)])
    )
    assert [row["port"] for row in made] == [25, 465, 587, 2525]


def test_a_second_report_of_the_same_failure_is_none() -> None:
    report = [
        "2026-11-25 10:00:00 Connection: opening to smtp.x.example:587, timeout=300, options=array()",
        "2026-11-25 10:00:30 SMTP ERROR: Failed to connect to server: Connection timed out (110)",
        "2026-11-25 10:00:30 SMTP Error: Could not connect to SMTP host. Connection timed out",
        "SMTP connect() failed. Troubleshooting",
    ]
    made = list(applications.rows(report * 2))
    assert [(row["line"], row["host"], row["port"]) for row in made] == [
        (2, "smtp.x.example", 587),
        (6, "smtp.x.example", 587),
    ]
    assert len(list(applications.rows([report[3], *["x"] * 20, report[3]]))) == 2


def test_of_two_connections_opened_at_once_it_is_not_known_which_one_failed() -> None:
    opening = "Connection: opening to smtp.x.example:587, timeout=300, options=array()"
    failed = "2026-11-25 10:00:00 SMTP ERROR: Failed to connect to server: Connection timed out (110)"
    later = failed.replace("10:00:00", "10:00:30")
    made = list(
        applications.rows([opening, opening.replace("587", "465"), failed, later, *["x"] * 20, opening, failed])
    )
    assert [row["port"] for row in made] == [None, None, 587]


def test_each_refused_recipient_is_a_row() -> None:
    refused = """{'b@y.example': (550, b'5.1.1 gone'), 'C@y.example': (450, b"4.2.0 it's late")}"""
    line = f"smtplib.SMTPRecipientsRefused: {refused}"
    made = [(row["recipient"], row["outcome"], row["reply_code"], row["text"]) for row in applications.rows([line])]
    assert made == [
        ("b@y.example", "failed", 550, "550 5.1.1 gone"),
        ("C@y.example", "deferred", 450, "450 4.2.0 it's late"),
    ]


@pytest.mark.parametrize(
    ("stamp", "expect"),
    [
        ("2026-11-25T10:00:00Z ", "2026-11-25T10:00:00.0Z"),
        ("2026-11-25 10:00:00,123 ERROR ", "2026-11-25T10:00:00.123"),
        ("[2026-11-25 10:00:00] production.ERROR: ", "2026-11-25T10:00:00.0"),
        ("[2026-11-25T10:00:00.123456+02:00] ", "2026-11-25T10:00:00.123456+02:00"),
        ("2026/11/25 10:00:00 ", "2026-11-25T10:00:00.0"),
        ("Nov  5 10:00:00 web php[1]: ", "Nov  5 10:00:00"),
        ("[Wed Nov 25 10:00:00.123456 2026] [php:error] ", "2026-11-25T10:00:00"),
        ("[25-Nov-2026 10:00:00 UTC] ", "2026-11-25T10:00:00+00:00"),
        ("[25-Nov-2026 10:00:00 Europe/Rome] ", "2026-11-25T10:00:00+01:00"),
        ("[25-Nov-2026 10:00:00 Nowhere/Land] ", None),
        ("[25/Nov/2026:10:00:00 +0100] ", "2026-11-25T10:00:00+01:00"),
        ("[99/Foo/2026:10:00:00 +0100] ", None),
        ("", None),
    ],
)
def test_the_usual_stamps_are_read(stamp: str, expect: str | None) -> None:
    [row] = applications.rows([f"{stamp}SMTP Error: Could not authenticate."])
    assert row["time"] == expect


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATTERNS), NASTY, NASTY)
def test_no_text_around_a_report_breaks_its_reading(row: dict[str, str], before: str, after: str) -> None:
    for made in applications.rows([before + row["example"] + after]):
        assert made["port"] is None or 0 < made["port"] < 65536


def test_a_log_of_another_case_keeps_its_letters() -> None:
    [row] = applications.rows(["SMTP Error: The following recipients failed: Bob@Y.example: 550 5.1.1 No Such User"])
    assert (row["recipient"], row["text"]) == ("Bob@Y.example", "550 5.1.1 No Such User")
    [row] = applications.rows(["İ SMTP Error: The following recipients failed: Bob@Y.example: 550 5.1.1 No Such User"])
    assert row["reply_code"] == 550


def test_the_formats_are_sniffed_behind_a_byte_order_mark() -> None:
    assert powermta.sniff("\ufefftype,timeLogged,rcpt")
    assert m365.sniff('\ufeff"origin_timestamp","sender_address","recipient_status"')
    assert exchange.sniff("\ufeff#Software: Microsoft Exchange Server")
    assert kumomta.sniff('\ufeff{"type":"Delivery","queue":"q","site":"s"}')


@pytest.mark.parametrize("words", ["ERROR: Failed to connect to server: Connection refused (111)", "connect() failed.",
                                   "Error: Could not authenticate.", "NOTICE: EOF caught"])  # fmt: skip
def test_a_stamped_line_of_phpmailer_is_none_of_exim(words: str, tmp_path: Path) -> None:
    assert not exim.sniff(f"2026-11-20 10:00:01 SMTP {words}")
    log = tmp_path / "mail.log"
    log.write_text(f"2026-11-20 10:00:01 SMTP {words}\n2026-11-20 10:00:01 SMTP connect() failed.\n")
    assert len(read_log(log)) == 1


@pytest.mark.parametrize("words", ["connection from [192.0.2.1] lost", "protocol synchronization error (input sent)",
                                   "syntax error in HELO", "call from [192.0.2.1] dropped: too many",
                                   "command timeout on", "data timeout (message abandoned) on"])  # fmt: skip
def test_what_exim_says_of_smtp_is_known(words: str) -> None:
    assert exim.sniff(f"2026-11-20 10:00:01 SMTP {words}")


def test_the_records_of_one_message_of_powermta_are_one_delivery(tmp_path: Path) -> None:
    log = tmp_path / "acct.csv"
    kinds = ["r", "t", "t", "d"]
    lines = [f"{kind},{1795600000 + n},1795600000,a@acme.example,b@birch.example" for n, kind in enumerate(kinds)]
    log.write_text("\n".join(["type,timeLogged,timeQueued,orig,rcpt", *lines]) + "\n")
    [ended] = outcomes(read_log(log)).to_dict("records")
    assert (ended["final"], ended["attempts"]) == ("sent", 3)
