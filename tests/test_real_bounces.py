"""Bounces that real Postfix, Exim, OpenSMTPD and Sendmail wrote, against what is known of each: `data/refusals.csv`.

`data/make/refusals.py` made them and is run anew here, for one letter of each server. Those that cannot be installed
beside Postfix are unpacked by `tests/servers/fetch exim4-daemon-light opensmtpd sendmail-bin sendmail-cf`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit import facts
from deliverkit.bounces.sources import messages
from tests.servers.town import unpacked

DATA = Path(__file__).resolve().parents[1] / "data"
OUTCOMES = {"failed": "failed", "delayed": "deferred", "": "passed", "relayed": "passed", "delivered": "passed"}
FRESH = ("exim:user-postfix", "opensmtpd:spam-gmail", "sendmail:list-spamhaus", "postfix:auth-gmail",
         "exim:too-big-at-postfix", "postfix:relayed-and-refused", "sendmail:alias")  # fmt: skip
ALL = ("postfix", "exim", "opensmtpd", "sendmail")

# (sender, case, what) -> why it is read otherwise than it happened
KNOWN = {
    **{("sendmail", case, "reply_code"): "Sendmail's own words look like a reply, and nobody else said anything"
       for case in ("nxdomain", "null-mx", "no-address", "dns-broken", "to-itself", "hangup")},
    ("exim", "alias", "recipient"): "Exim's report names the address before the alias",
    **{(mta, "nothing-said", "category"): "the reply says nothing at all" for mta in ("postfix", "opensmtpd")},
    ("exim", "number-only", "category"): "the reply says nothing at all",
}  # fmt: skip


def differences(folder: Path) -> Iterator[tuple[tuple[str, str, str], Any, Any]]:
    """What is read otherwise than it happened: (sender, case, what), what happened, what was read."""
    truth = pd.read_csv(folder / "refusals.csv", dtype="string", keep_default_na=False)
    read = dk.read_bounces(folder / "refusals.mbox")
    with (folder / "refusals.mbox").open("rb") as file:
        raw = [message.decode("utf-8") for message in messages(file)]
    assert len(raw) == truth["number"].astype(int).max() == read["line"].max()
    for number, rows in truth.groupby(truth["number"].astype(int)):
        got = {row["recipient"]: row for row in read[read["line"] == number].to_dict("records")}
        wanted = [{str(name): str(value) for name, value in row.items()} for row in rows.to_dict("records")]
        about = wanted[0]["sender_mta"], wanted[0]["case"]
        if wanted[0]["recipient"] and set(got) != {want["recipient"] for want in wanted}:
            yield (*about, "recipient"), wanted, list(got)
        for want in wanted:
            row = got.get(want["recipient"]) if want["recipient"] else next(iter(got.values()))
            for what, happened, said in compared(want, row, raw[int(number) - 1]) if row else ():
                yield (*about, what), happened, said


def compared(want: dict[str, str], row: dict[Any, Any], raw: str) -> Iterator[tuple[str, Any, Any]]:
    """(column, what happened, what was read) where these differ."""
    said = {name: "" if pd.isna(value) else str(value) for name, value in row.items()}
    if said["category"] not in want["category"].split("|"):
        yield "category", want["category"], f"{said['category']} by {said['rule']}: {said['text']}"
    elif said["kind"] != want["kind"] and want["category"].startswith(said["category"]):
        yield "kind", want["kind"], said["kind"]
    if want["recipient"] and said["outcome"] != OUTCOMES[want["action"]]:
        yield "outcome", want["action"], said["outcome"]
    if want["category"] != "not_a_failure" and said["reply_code"] != want["reply_code"]:
        yield "reply_code", want["reply_code"], said["reply_code"]
    if said["status_code"] != want["status_code"] and (want["status_code"] or said["status_code"] not in raw):
        yield "status_code", want["status_code"], said["status_code"]
    if want["returned_message_id"] and said["message_id"] != want["returned_message_id"]:
        yield "message_id", want["returned_message_id"], said["message_id"]


def test_every_bounce_is_read_as_it_happened_or_the_difference_is_known() -> None:
    found = list(differences(DATA))
    assert [difference for difference in found if difference[0] not in KNOWN] == []
    assert {difference[0] for difference in found} == set(KNOWN), "no difference any more: take it off the list"


def test_all_four_servers_met_all_categories() -> None:
    truth = pd.read_csv(DATA / "refusals.csv", dtype="string", keep_default_na=False)
    met = {word for words in truth["category"] for word in words.split("|")}
    assert met == set(facts.table("categories")["category"])
    assert set(truth["sender_mta"]) == set(ALL)
    assert truth.groupby("sender_mta")["number"].nunique().min() >= 12 and truth["number"].nunique() >= 60
    assert (DATA / "refusals.mbox").stat().st_size < 600_000


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_bounces_made_just_now_are_read_as_they_happened(need: Callable[[str, str], str], tmp_path: Path) -> None:
    for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2"), ("m4", "m4"),
                             ("postfix", "postfix"), ("unbound", "unbound"), ("openssl", "openssl")):  # fmt: skip
        need(program, package)
    for package, program in (("exim4-daemon-light", "usr/sbin/exim4"), ("opensmtpd", "usr/sbin/smtpd"),
                             ("sendmail-bin", "usr/libexec/sendmail/sendmail"),
                             ("sendmail-cf", "usr/share/sendmail/cf/sh/makeinfo.sh")):  # fmt: skip
        unpacked(need, package, program)
    if os.geteuid() != 0:
        pytest.skip("mail servers start as root only")
    may = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "nft", "list", "ruleset"]
    if subprocess.run(may, capture_output=True, check=False).returncode:
        pytest.skip("network namespaces with nftables are not permitted here")
    script = [sys.executable, DATA / "make" / "refusals.py", tmp_path, *FRESH]
    made = subprocess.run(script, capture_output=True, text=True, check=False, timeout=200)
    assert made.returncode == 0, made.stdout + made.stderr
    truth = pd.read_csv(tmp_path / "refusals.csv")
    assert set(FRESH) == set(truth["sender_mta"] + ":" + truth["case"])
    assert list(differences(tmp_path)) == []
