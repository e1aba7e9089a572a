"""The wizard: every path ends in an answer that names its rules, and no password stays anywhere."""

from __future__ import annotations

import json
from typing import Any

import ipywidgets as w
import pandas as pd
import pytest
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import deliverkit as dk
from deliverkit.errors import FactsError
from deliverkit.rules import choose_port
from deliverkit.schema import ATTEMPTS

ASKED = ("sending", "provider", "network", "vantage", "tried_25", "tried_465", "tried_587", "tried_2525", "security")
MARK = "s3cret-Marker-9"


class Wizard(RuleBasedStateMachine):
    """Any order of answers, back and next."""

    @initialize(measured=st.booleans())
    def begin(self, measured: bool) -> None:
        self.box = dk.port_wizard(dk.sample("probes") if measured else None)
        self.page = 0

    @rule()
    def go(self) -> None:
        self.box.next.click()
        self.page = min(self.page + 1, 4)

    @rule()
    def back(self) -> None:
        self.box.back.click()
        self.page = max(self.page - 1, 0)

    @rule(name=st.sampled_from((*ASKED, "policy", "software")), data=st.data())
    def answer(self, name: str, data: Any) -> None:
        control = getattr(self.box, name)
        control.value = data.draw(st.sampled_from([value for _, value in control.options]))

    @invariant()
    def page_and_answer_belong_together(self) -> None:
        assert self.box.page == self.page
        assert ("Answer" in self.box.head.value) == (self.page == 4) == (self.box.advice is not None)
        assert 'role="alert"' not in self.box.view.value
        if self.page == 4:
            advice = self.box.advice
            assert advice.rules and any(name.startswith("guide:") for name in advice.rules)
            assert all(name in self.box.view.value for name in advice.rules)
            assert advice.port is None or f"Use port {advice.port}" in self.box.view.value

    def teardown(self) -> None:
        w.Widget.close_all()


Wizard.TestCase.settings = effort(max_examples=25, stateful_step_count=15, deadline=None)
TestWizard = Wizard.TestCase


def ended(**answers: Any) -> Any:
    box = dk.port_wizard(**answers)
    for _ in range(4):
        box.next.click()
    return box


def test_without_evidence_the_answer_is_that_of_choose_port() -> None:
    for policy in ("guide", "standards", "provider"):
        box = ended(sending="website", provider="SendGrid", policy=policy)
        want = choose_port("website", policy, "SendGrid")
        assert (box.advice.port, box.advice.rules) == (want.port, want.rules)


def test_what_was_measured_fills_in_the_answers_and_counts() -> None:
    probes = dk.sample("probes")
    box = ended(evidence=probes, provider="SendGrid")
    for vantage in ("cloud", "office", "home"):
        box.vantage.value = vantage
        want = choose_port("application", provider="SendGrid", evidence=probes[probes["vantage"] == vantage])
        assert (box.advice.port, box.advice.rules) == (want.port, want.rules)
        assert box.advice.ranked["attempts"].tolist() == want.ranked["attempts"].tolist()
    box.vantage.value = "cloud"
    assert (box.tried_587.value, box.tried_2525.value) == ("blocked", "open")


def test_of_several_networks_none_is_taken_for_the_reader_s_own() -> None:
    probes = dk.sample("probes")
    box = ended(evidence=probes, provider="SendGrid")
    assert box.vantage.value == "" and box.advice.port == 587 and set(box.advice.ranked["measured"]) == {"unknown"}
    one = ended(evidence=probes[probes["vantage"] == "cloud"], provider="SendGrid")
    assert one.vantage.value == "cloud" and one.tried_587.value == "blocked" and one.advice.port == 2525
    assert "Measured from: cloud" in one.view.value
    for port in dk.PORTS:
        getattr(one, f"tried_{port}").value = ""  # not tried: the evidence of that port goes
    assert one.advice.port == 587 and set(one.advice.ranked["measured"]) == {"unknown"}


def test_evidence_of_other_hosts_is_not_taken_for_the_reader_s_word_when_the_provider_changes() -> None:
    hosts = ["smtp.sendgrid.net"] * 2 + ["mail.other.example"] * 8
    rows = {"host": hosts, "port": 587, "blocked": [False] * 2 + [True] * 8, "origin": "probe", "vantage": "office"}
    probes = ATTEMPTS.build(pd.DataFrame(rows))
    box = ended(evidence=probes)
    assert box.tried_587.value == "blocked"
    box.provider.value = "SendGrid"
    want = choose_port("application", provider="SendGrid", evidence=probes)
    assert box.tried_587.value == "open" and box.advice.port == want.port == 587


def test_a_provider_that_is_not_listed_has_its_server_in_the_settings() -> None:
    box = ended()
    box.server.value = "smtp.own.example"
    assert "smtp.own.example" in box.view.value.partition("Settings to type in")[2]


def test_words_that_are_not_offered_are_refused() -> None:
    with pytest.raises(FactsError, match="Provider 'nobody' is not known"):
        dk.port_wizard(provider="nobody")
    with pytest.raises(TypeError, match="does not know 'foo'"):
        dk.port_wizard(foo=1)


def test_what_the_person_says_of_a_port_counts_instead() -> None:
    box = ended(provider="SendGrid")
    assert box.advice.port == 587
    box.tried_587.value = "blocked"
    assert box.advice.port == 465
    box.tried_465.value = box.tried_2525.value = box.tried_25.value = "blocked"
    assert box.advice.port is None and "guide:choose-environment" in box.advice.rules
    assert "environment" in box.view.value


def test_every_question_shows_rule_source_measurement_and_other_opinions() -> None:
    box = dk.port_wizard(dk.sample("probes"), provider="Amazon SES", network="Hetzner Cloud", vantage="office")
    pages = []
    for _ in range(4):
        pages.append(box.view.value)
        box.next.click()
    items = ("choose-sending-method", "choose-network", "choose-fallback", "choose-security")
    for item, page in zip(items, pages, strict=True):
        assert f"guide:{item}" in page and "Others:" in page
    assert "Measured" in pages[1] and "Hetzner Cloud publishes" in pages[1] and "Amazon SES publishes" in pages[2]


@pytest.mark.parametrize("name", ["Django", "nodemailer", "Thunderbird", "Postfix"])
def test_the_answer_has_the_settings_of_the_software_and_tests_by_hand(name: str) -> None:
    box = ended(provider="SendGrid")
    box.software.value = next(value for label, value in box.software.options if name.lower() in label.lower())
    for words in ("smtp.sendgrid.net", "587", "openssl s_client", "telnet", "It cannot tell", "dk.probe("):
        assert words in box.view.value, words


def test_a_rehearsal_runs_and_its_password_is_nowhere() -> None:
    with dk.Lab() as lab:
        box = ended(server=lab.hosts[0], connect_to=lab.connect_to, trust=lab.certificate, timeout=5)
        box.user.value, box.to.value = "me@example.com", "me@example.com"
        seen: list[Any] = []
        box.password.observe(lambda change: seen.append(change["new"]), "value")
        box.password.value = MARK
        assert box.password.value == ""  # taken out of the widget at once
        box.test.click()
        box.thread.join()
    steps = box.rehearsal
    assert steps["stage"].tolist()[-5:] == ["login", "mail", "rcpt", "data", "quit"]
    assert set(steps["outcome"]) == {"passed"} and "the test message was taken" in box.steps.value
    state = json.dumps(w.Widget.get_manager_state(), default=str)
    assert MARK not in state + steps.to_csv() + repr(box) + box.steps.value + box.view.value
    box.test.click()  # it was kept for one rehearsal only
    box.thread.join()
    assert 'role="alert"' in box.steps.value


def test_a_rehearsal_that_stops_says_where_and_that_no_password_went_out() -> None:
    with dk.Lab() as lab:
        box = ended(server=lab.hosts[0], connect_to=lab.connect_to, timeout=5)  # its certificate is not trusted
        box.user.value, box.password.value = "me@example.com", MARK
        box.test.click()
        box.thread.join()
    assert f"Stopped at tls of {lab.hosts[0]}, port 587" in box.steps.value and "self-signed" in box.steps.value
    assert "No password was sent" in box.steps.value


def test_a_rehearsal_that_cannot_run_is_a_sentence() -> None:
    box = ended()
    box.test.click()
    box.thread.join()
    assert 'role="alert"' in box.steps.value and "Traceback" not in box.steps.value and not box.test.disabled
