"""Exports of list-verification services: verdicts in one vocabulary, nothing guessed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliverkit import facts
from deliverkit.errors import FormatError, SchemaError
from deliverkit.exports import known_export
from deliverkit.files import parts
from deliverkit.schema import VERIFIED
from deliverkit.verifications import known_verified, read_verified

SERVICES = facts.tables("verifications")["service"]
VERDICTS = {"deliverable", "risky", "undeliverable", "unknown"}
ZEROBOUNCE = """"Email Address","First Name","ZB Status","ZB Sub Status","ZB Account","ZB Domain","ZB Free Email","ZB MX Found","ZB Did You Mean"
"a@x.example","A","valid","","a","x.example","False","true",""
"info@Y.example","B, b","do_not_mail","role_based","info","","True","true",""
"c@z.exmaple","C","invalid","possible_typo","c","z.exmaple","False","false","c@z.example"
"d@z.example","D","catch-all","","d","z.example","False","true",""
"""  # noqa: E501
BATCH = {"email_batch": [
    {"address": "a@x.example", "status": "spamtrap", "sub_status": "", "free_email": False, "did_you_mean": None,
     "account": "a", "domain": "x.example", "mx_found": "true", "processed_at": "2026-01-02 03:04:06.592"},
    {"address": "b@x.example", "status": "unknown", "sub_status": "timeout_exceeded", "free_email": True},
], "errors": []}  # fmt: skip
NEVERBOUNCE = {"status": "success", "total_results": 2, "results": [
    {"data": {"email": "info@x.example", "id": "1"},
     "verification": {"result": "valid", "flags": ["has_dns_mx", "role_account"], "suggested_correction": ""}},
    {"data": {"email": "b@x"},
     "verification": {"result": "invalid", "flags": ["bad_syntax"], "suggested_correction": "b@x.example"}},
]}  # fmt: skip
SINGLE = {"status": "success", "result": "catchall", "flags": ["has_dns_mx"], "execution_time": 499,
          "address_info": {"original_email": "a@x.example", "host": "x.example"}}  # fmt: skip
EMAILVERIFY = {"results": {"email_batch": [
    {"address": "a@x.example", "status": "valid", "sub_status": "permitted"},
    {"address": "b@x.example", "status": "do_not_mail", "sub_status": "disposable"},
    {"address": "c@x.example", "status": "mystery", "sub_status": "later"},
]}}  # fmt: skip
FILES = {
    "zerobounce": [ZEROBOUNCE, json.dumps(BATCH), json.dumps(BATCH["email_batch"], indent=1)],
    "neverbounce": [json.dumps(NEVERBOUNCE), json.dumps(SINGLE), "id;email;email_status\n1;a@x.example;disposable\n"],
    "emailverify": [json.dumps(EMAILVERIFY), "Email,Status,Sub Status\na@x.example,invalid,mailbox_not_found\n",
                    '{"email": "a@x.example", "status": "valid", "sub_status": "permitted"}'],
}  # fmt: skip


def read(folder: Path, text: str, **how: Any) -> pd.DataFrame:
    (folder / "x").write_text(text, encoding="utf-8")
    return read_verified(folder / "x", **how)


def column(made: pd.DataFrame, name: str) -> list[Any]:
    return [None if pd.isna(value) else value for value in made[name]]


@pytest.mark.parametrize(("service", "text"), [(name, text) for name, texts in FILES.items() for text in texts])
def test_each_export_is_known_and_read(tmp_path: Path, service: str, text: str) -> None:
    made = read(tmp_path, text)
    VERIFIED.check(made)
    assert set(made["checked_by"]) == {service} and made[["email", "domain", "line"]].notna().all(axis=None)
    [part] = parts(tmp_path / "x")
    assert known_verified(part)
    pd.testing.assert_frame_equal(read(tmp_path, text, provider=service.upper()), made)


def test_the_words_of_zerobounce_become_a_verdict_and_a_reason(tmp_path: Path) -> None:
    made = read(tmp_path, ZEROBOUNCE)
    assert column(made, "verdict") == ["deliverable", "risky", "undeliverable", "risky"]
    assert column(made, "reason") == [None, "role", "typo", "catch_all"]
    assert column(made, "role") == [None, True, None, None] and column(made, "catch_all") == [None, None, None, True]
    assert column(made, "free") == [False, True, False, False] and not column(made, "mx_found")[2]
    assert column(made, "suggestion") == [None, None, "c@z.example", None]
    assert column(made, "domain")[1] == "y.example" and column(made, "line") == [2, 3, 4, 5]
    made = read(tmp_path, json.dumps(BATCH))
    assert column(made, "verdict") == ["risky", "unknown"] and column(made, "reason") == ["spamtrap", "timeout"]
    assert made["checked_at"][0] == pd.Timestamp("2026-01-02 03:04:06.592", tz="UTC") and pd.isna(made["checked_at"][1])


def test_the_flags_of_neverbounce_become_columns(tmp_path: Path) -> None:
    made = read(tmp_path, json.dumps(NEVERBOUNCE))
    assert column(made, "verdict") == ["deliverable", "undeliverable"] and column(made, "reason") == [None, "syntax"]
    assert column(made, "role") == [True, False] and column(made, "mx_found") == [True, False]
    assert column(made, "suggestion") == [None, "b@x.example"]
    assert column(read(tmp_path, FILES["neverbounce"][2]), "role") == [None]  # there are no flags in the CSV


@pytest.mark.parametrize("word", ["accept_all", "Accept All (Unverifiable)", "catchall", "Catch-All"])
def test_neverbounce_has_many_words_for_a_domain_that_takes_everything(tmp_path: Path, word: str) -> None:
    made = read(tmp_path, f"email,email_status\na@x.example,{word}\n")
    assert column(made, "verdict") == ["risky"] and column(made, "catch_all") == [True]


def test_utf_16_without_its_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("email,email_status\na@x.example,valid\n".encode("utf-16-le"))
    with pytest.raises(FormatError, match="UTF-16 without its mark"):
        read_verified(tmp_path / "x")
    [part] = parts(tmp_path / "x")
    assert not known_verified(part)


def test_a_word_nobody_knows_is_kept_and_gives_no_verdict(tmp_path: Path) -> None:
    made = read(tmp_path, json.dumps(EMAILVERIFY))
    assert column(made, "verdict") == ["deliverable", "risky", None]
    assert column(made, "reason") == [None, "disposable", None] and column(made, "disposable") == [None, True, None]
    assert column(made, "status")[2] == "mystery" and column(made, "sub_status")[2] == "later"


def test_any_service_is_read_by_a_map_of_its_columns(tmp_path: Path) -> None:
    columns = {"email": "Adresse", "status": "Ergebnis", "free": "Freemail"}
    made = read(tmp_path, "Adresse;Ergebnis;Freemail\na@x.example;Deliverable;yes\nb@x.example;?;\n", columns=columns)
    assert column(made, "verdict") == ["deliverable", None] and column(made, "free") == [True, None]
    nested = read(tmp_path, '[{"a": {"b": "a@x.example"}, "c": "risky"}]', columns={"email": "a.b", "status": "c"})
    assert column(nested, "verdict") == ["risky"]
    for wrong in ({}, {"email": "a"}, {"email": "a", "status": "b", "verdict": "c"}):
        with pytest.raises(SchemaError, match="columns= wants email and status"):
            read(tmp_path, "a,b\n", columns=wrong)


def test_rows_that_cannot_be_read_say_so_behind_the_others(tmp_path: Path) -> None:
    made = read(tmp_path, "email,email_status\na@x.example\nb@x.example,valid\n")
    assert column(made, "email") == ["b@x.example", None] and column(made, "line") == [3, 2]
    assert column(made, "sub_status")[1] == "line 2: 1 fields, not 2"


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "empty"), ("name,mail\n", "no CSV with a known header"), ('{"event": "delivered"}', "no answer of a known")],
)
def test_what_is_no_verification_is_a_format_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        read(tmp_path, text)
    [part] = parts(tmp_path / "x")
    assert not known_verified(part)


def test_an_unknown_service_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="'pigeon'; known: emailverify, neverbounce, zerobounce"):
        read(tmp_path, ZEROBOUNCE, provider="pigeon")


def test_a_packed_file_and_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(ZEROBOUNCE.encode("utf-8-sig")))
    (tmp_path / "b.json").write_text(json.dumps(SINGLE), encoding="utf-8")
    assert len(read_verified(tmp_path)) == 5


def test_a_csv_of_addresses_checked_is_no_export_of_events(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(ZEROBOUNCE, encoding="utf-8")
    [part] = parts(tmp_path / "x")
    assert not known_export(part)


def test_facts_have_sources_and_words_of_the_frame() -> None:
    for table in SERVICES:
        assert table["source"] and table["noted"] and table["evidence"] in {"read", "secondary", "not_reread"}
        assert all(means["verdict"] in VERDICTS for means in table["status"].values())
        assert set(table["fields"]) <= {*VERIFIED.names, "flags"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["address", "status", "sub_status", "free_email", "processed_at", "mx_found", "domain"]),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.text(), max_size=2),
)  # fmt: skip
def test_no_value_breaks_the_reading(tmp_path: Path, field: str, value: object) -> None:
    odd = BATCH["email_batch"][0] | {field: value}
    assert len(read(tmp_path, json.dumps([odd, BATCH["email_batch"][1]]))) == 2
