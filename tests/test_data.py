"""The samples belong together: one send list, three networks, two clients, and what became of it all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import deliverkit as dk

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def sends() -> pd.DataFrame:
    return pd.read_csv(DATA / "sends.csv", dtype="string")


@pytest.fixture(scope="module")
def mail() -> pd.DataFrame:
    return dk.sample("mail")


def test_every_message_of_the_list_is_found_in_what_was_read(sends: pd.DataFrame, mail: pd.DataFrame) -> None:
    assert set(sends["message_id"]) == set(mail["message_id"])
    assert set(sends["recipient"]) == set(dk.outcomes(mail)["recipient"])


def test_two_clients_three_networks_all_ways_in(sends: pd.DataFrame, mail: pd.DataFrame) -> None:
    assert sends["client"].nunique() == 2 and sends["vantage"].nunique() == 3
    assert set(mail["origin"]) == {"log", "dsn", "export"} and mail["vantage"].nunique() == 3


def test_each_network_shows_its_scenario(mail: pd.DataFrame) -> None:
    for frame in (mail[mail["origin"] == "log"], dk.read(DATA / "probes.csv")):
        rate = dk.block_rates(frame[frame["blocked_by"].ne("policy").fillna(True)], ["vantage", "port"])
        by = rate.set_index(["vantage", "port"])["rate"]
        assert [by["office", port] for port in dk.PORTS] == [1, 0, 0, 0]
        assert [by["cloud", port] for port in dk.PORTS] == [1, 1, 1, 0]
        assert all(by["home", port] < 1 for port in dk.PORTS)


def test_every_message_has_an_end(mail: pd.DataFrame) -> None:
    log = dk.outcomes(mail[mail["origin"] == "log"])
    assert set(log["final"]) == {"sent", "bounced", "expired"}


def test_the_bounces_are_those_of_the_log(mail: pd.DataFrame) -> None:
    ends = dk.outcomes(mail[mail["origin"] == "log"])
    gone = ends[ends["final"].isin(["bounced", "expired"])]
    reported = mail[(mail["origin"] == "dsn") & (mail["outcome"] == "failed")]
    assert set(reported["recipient"]) == set(gone["recipient"]) and len(gone) > 50


def test_nothing_in_the_samples_is_a_real_address_or_host(root: Path) -> None:
    import re

    for path in DATA.rglob("*"):
        if path.is_file() and path.suffix in (".log", ".mbox", ".json", ".csv"):
            text = path.read_text(encoding="utf-8")
            domains = {domain.rstrip(".") for domain in re.findall(r"@([\w.-]*[a-z][\w.-]*)", text)}
            assert {domain for domain in domains if not domain.endswith(".example")} == set(), path.name
            assert "/tmp/" not in text and str(root.parent) + "/" not in text
