"""Which port: every rule of the guide is reached, facts and evidence move the answer, nothing is guessed."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deliverkit import facts
from deliverkit.errors import FactsError, SchemaError
from deliverkit.rates import block_rates
from deliverkit.rules import POLICIES, SENDING, choose_port
from deliverkit.schema import ADVICE

PROVIDERS = sorted(facts.table("esp_ports")["provider"].unique())
NETWORKS = sorted(facts.table("network_policies")["operator"].unique())


def tried(**ports: bool) -> pd.DataFrame:
    """Ten attempts per port, all blocked or none: tried(p25=True)."""
    rows = [{"port": int(p[1:]), "blocked": shut, "host": "mx.example"} for p, shut in ports.items() for _ in range(10)]
    return pd.DataFrame(rows)


# The guide's rules in the three policies: way of sending, evidence -> the port in each, and the guide's item.
A4 = [
    ("relay", None, (25, 25, 25), "guide:choose-sending-method"),
    ("client", None, (587, 465, 587), "guide:choose-sending-method"),
    ("website", None, (587, 465, 587), "guide:choose-sending-method"),
    ("application", None, (587, 465, 587), "guide:choose-sending-method"),
    ("legacy", None, (465, 465, 465), "guide:choose-sending-method"),
    ("application", tried(p587=True), (465, 465, 465), "guide:choose-network"),
    ("application", tried(p587=True, p465=True), (2525, 2525, 2525), "guide:choose-fallback"),
    ("application", tried(p25=True, p587=True, p465=True, p2525=True), (None, None, None), "guide:choose-environment"),
    ("relay", tried(p25=True, p587=False), (None, None, None), "guide:choose-environment"),
    ("legacy", tried(p465=True), (None, None, None), "guide:choose-environment"),
]


@pytest.mark.parametrize(("sending", "evidence", "ports", "item"), A4)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_rule_of_the_guide_is_reached_in_each_policy(policy, sending, evidence, ports, item):
    advice = choose_port(sending, policy, evidence=evidence)
    assert advice.port == ports[POLICIES.index(policy)]
    wanted = {"guide:choose-sending-method", "guide:choose-practical-rule", "guide:port-587", "guide:port-465"}
    wanted = wanted | {"guide:influence-compatibility"} if item == "guide:choose-sending-method" else {item}
    assert wanted & set(advice.rules)


def test_the_practical_rule_rules_out_25_for_submission():
    ranked = choose_port("application").ranked.set_index("port")
    assert ranked.loc[25, "verdict"] == "exclude" and "guide:choose-practical-rule" in ranked.loc[25, "rules"]


def test_encryption_is_never_given_up_to_get_through():
    evidence = tried(p587=False, p465=True, p2525=True).assign(verdict="open_no_tls")
    advice = choose_port("application", evidence=evidence)
    assert advice.port is None and "guide:choose-security" in advice.rules


def test_every_rule_of_the_file_is_used_by_some_question():
    shut = tried(p25=True, p465=True, p587=True, p2525=True)
    half = pd.concat([tried(p25=True, p465=True, p587=True, p2525=True), tried(p25=False, p465=False, p587=False)])
    seen: set[str] = set()
    for policy in POLICIES:
        for sending in SENDING:
            for provider in (None, "SendGrid", "Amazon SES", "Resend", "MailerSend", "Mailtrap (sandbox)"):
                for evidence in (None, shut, half, tried(p587=False, p25=False).assign(verdict="tampered")):
                    advice = choose_port(sending, policy, provider, evidence=evidence)
                    seen |= set(advice.rules) | set(" ".join(advice.ranked["rules"]).split())
    for extra in (
        choose_port("application", network="Hetzner Cloud"),
        choose_port("application", network="Hetzner Cloud", evidence=tried(p465=False)),
        choose_port("application", security="starttls"),
    ):
        seen |= set(extra.rules) | set(" ".join(extra.ranked["rules"]).split())
    unused = {rule["id"] for rule in facts.tables("port_rules")["rule"]} - seen
    assert unused <= {"cleartext-only"}, "no published port is cleartext only; all other rules must be reached"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_ladder_holds_only_published_ports_and_ends_in_the_api(provider):
    advice = choose_port("application", "provider", provider)
    table = facts.table("esp_ports")
    published = set(table.loc[table["provider"] == provider, "port"])
    *rungs, last = advice.ladder
    assert rungs and {rung.port for rung in rungs} <= published
    assert last.port is None and last.security == "https"


def test_the_fallback_of_ses_is_its_own_alternate_not_2525():
    evidence = tried(p587=True, p465=True, p2525=False)
    assert choose_port("application", provider="SES", evidence=evidence).port == 2587
    assert choose_port("application", "standards", "SES", evidence=evidence).port == 2465


def test_what_was_measured_outranks_what_the_network_publishes():
    assert choose_port("legacy", network="Hetzner Cloud").port is None
    advice = choose_port("legacy", network="Hetzner Cloud", evidence=tried(p465=False))
    assert advice.port == 465 and any("lifted" in warning for warning in advice.warnings)


def test_a_network_that_shuts_a_port_moves_the_answer():
    assert choose_port("application", "standards", network="Hetzner Cloud").port == 587


def test_only_the_providers_own_hosts_count_where_they_were_tried():
    ours = pd.DataFrame({"port": [587] * 3, "blocked": [True] * 3, "host": ["smtp.sendgrid.net"] * 3})
    evidence = pd.concat([tried(p587=False), ours])
    row = choose_port("application", provider="SendGrid", evidence=evidence).ranked.set_index("port").loc[587]
    assert (row["measured"], row["attempts"]) == ("blocked", 3)


def test_rates_and_egress_serve_as_evidence_too():
    from deliverkit.schema import EGRESS

    advice = choose_port("application", evidence=block_rates(tried(p587=True, p465=False)))
    assert advice.port == 465
    rows = [{"port": 587, "verdict": "blocked_by_network", "controls": 8, "operators": 6, "answered": 0}]
    assert choose_port("application", evidence=EGRESS.build(rows)).port == 465


def test_what_does_not_fit_is_not_blamed_on_the_environment():
    advice = choose_port("legacy", provider="MailerSend")
    assert advice.port is None and "nothing-fits" in advice.rules and "environment" not in advice.rules


def test_what_was_not_measured_is_said():
    assert any("not measured" in warning for warning in choose_port("application").warnings)
    assert not any("not measured" in w for w in choose_port("application", evidence=tried(p587=False)).warnings)


def test_evidence_of_several_networks_is_warned_of():
    evidence = tried(p587=False, p465=False)
    evidence["vantage"] = ["home", "office"] * 10
    assert "home, office" in choose_port("application", evidence=evidence).warnings[0]


def test_the_other_policies_are_always_told():
    advice = choose_port("application", "standards", "SendGrid")
    assert [(name, port) for name, port, _ in advice.others] == [("guide", 587), ("provider", 587)]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ({"sending": "pigeon"}, "relay, client"),
        ({"policy": "mine"}, "guide, standards, provider"),
        ({"provider": "Nobody"}, "SendGrid"),
        ({"provider": "sengrid"}, "there is: SendGrid"),
        ({"provider": ""}, "not known"),
        ({"provider": "mail"}, "not clear"),
        ({"network": "Atlantis"}, "AWS EC2"),
        ({"security": "ssl"}, "implicit, starttls"),
    ],
)
def test_a_word_nobody_knows_is_answered_with_those_there_are(call, word):
    with pytest.raises(FactsError, match=word):
        choose_port(**call)


def test_evidence_of_another_kind_is_refused():
    with pytest.raises(SchemaError, match="port"):
        choose_port("application", evidence=pd.DataFrame({"a": [1]}))
    with pytest.raises(SchemaError, match="blocked"):
        choose_port("application", evidence=pd.DataFrame({"port": [25]}))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SENDING),
    st.sampled_from(POLICIES),
    st.sampled_from([None, *PROVIDERS]),
    st.sampled_from([None, *NETWORKS]),
    st.dictionaries(st.sampled_from(["p25", "p465", "p587", "p2525", "p2587"]), st.booleans(), max_size=5),
    st.sampled_from([None, "implicit", "starttls"]),
)
def test_every_path_ends_in_an_answer_that_names_its_rules(sending, policy, provider, network, ports, security):
    evidence = tried(**ports) if ports else None
    advice = choose_port(sending, policy, provider, network=network, evidence=evidence, security=security)
    assert advice.rules and advice.sources and advice.ladder and len(advice.others) == 2
    assert all(row["rules"] and row["sources"] for row in ADVICE.check(advice.ranked).to_dict("records"))
    ranks = advice.ranked["rank"].dropna().tolist()
    assert ranks == list(range(1, len(ranks) + 1)) and (advice.port is None) == (not ranks)
    blocked = {int(name[1:]) for name, shut in ports.items() if shut}
    assert advice.port not in blocked
    if sending != "relay" and policy != "provider":
        assert advice.port != 25


def test_advice_shows_in_a_terminal_a_notebook_and_as_json():
    evidence = tried(p587=True).assign(host="<script>alert(1)</script>")
    advice = choose_port("application", provider="SendGrid", evidence=evidence)
    assert str(advice).startswith("Use port 465 with implicit TLS at smtp.sendgrid.net.")
    assert "<script>" not in advice._repr_html_() and "<table>" in advice._repr_html_()
    plain = json.loads(json.dumps(advice.to_dict()))
    assert plain["port"] == 465 and plain["ladder"][-1]["security"] == "https"
