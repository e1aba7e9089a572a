"""What the published policies let expect."""

from __future__ import annotations

import pytest

import deliverkit as dk
from deliverkit import facts
from deliverkit.errors import FactsError
from deliverkit.schema import FORECAST


def expected(**asked: object) -> dict[int, str]:
    return dict(dk.forecast(**asked).set_index("port")["expected"])


def test_a_network_is_read_as_its_published_policy_says() -> None:
    frame = dk.forecast(network="hetzner")
    FORECAST.check(frame)
    assert dict(frame.set_index("port")["expected"]) == {25: "blocked", 465: "blocked", 587: "open", 2525: "unknown"}
    assert set(frame["network"]) == {"Hetzner Cloud"} and frame["provider"].isna().all()
    first = frame.iloc[0]
    assert first["why"].startswith("Hetzner Cloud on 25: blocked by default (unblocked on request")
    assert first["source"].startswith("https://docs.hetzner.com/") and first["noted"] and first["evidence"] == "read"


def test_a_port_nobody_writes_about_is_unknown_and_not_open() -> None:
    frame = dk.forecast(network="AWS EC2", ports=[2525, 2587])
    assert set(frame["expected"]) == {"unknown"} and frame["source"].isna().all()
    assert frame["why"][0] == "AWS EC2 publishes nothing about 2525"
    assert expected(provider="MailerSend") == {25: "unknown", 465: "unknown", 587: "open", 2525: "open"}
    assert expected() == dict.fromkeys(dk.PORTS, "unknown")


def test_network_and_provider_stand_side_by_side() -> None:
    frame = dk.forecast("SendGrid", "Hetzner Cloud", ports=587)
    assert list(frame["expected"]) == ["open", "open"] and list(frame["provider"].fillna("")) == ["", "SendGrid"]
    assert frame["why"][1] == "SendGrid listens on 587 at smtp.sendgrid.net"


def test_a_policy_about_incoming_mail_says_nothing_about_outgoing() -> None:
    assert expected(network="Cox residential", ports=[25]) == {25: "blocked"}
    assert len(dk.forecast(network="Cox residential")) == 4


def test_what_is_slowed_down_is_open() -> None:
    assert expected(network="Swisscom")[25] == "open"


@pytest.mark.parametrize("network", sorted(facts.table("network_policies")["operator"].unique()))
def test_forecast_and_choice_of_port_agree(network: str) -> None:
    shut = {port for port, word in expected(network=network).items() if word == "blocked"}
    ranked = dk.choose_port("application", network=network).ranked
    out = set(ranked.loc[ranked["rules"].str.contains("network-shuts"), "port"])
    assert shut == out


def test_a_name_that_is_not_known_is_an_error() -> None:
    with pytest.raises(FactsError, match="network 'Nowhere' is not known"):
        dk.forecast(network="Nowhere")
    with pytest.raises(FactsError, match="provider 'Mail' is not clear"):
        dk.forecast("Mail")
