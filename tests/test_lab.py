"""The lab's servers: what each behaviour looks like to the probe, and whole sessions with smtplib."""

from __future__ import annotations

import smtplib
import ssl
import sys
import threading
import time
from email.message import EmailMessage
from typing import Any

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.errors import TargetError
from deliverkit.lab import BEHAVIOURS, SCENARIOS, Lab


def sweep(lab: Lab, **how: Any) -> pd.DataFrame:
    return dk.probe(lab.hosts, connect_to=lab.connect_to, pace=None, progress=False, **{"timeout": 1} | how)


def verdicts(lab: Lab) -> dict[int, str]:
    return dict(dk.egress(sweep(lab)).set_index("port")["verdict"])


OPEN = dict.fromkeys((25, 465, 587, 2525), "open")


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("open", OPEN),
        ("isp-blocks-25", OPEN | {25: "blocked_by_network"}),
        ("cloud-blocks-submission", OPEN | dict.fromkeys((25, 465, 587), "blocked_by_network")),
        ("starttls-stripped", OPEN | dict.fromkeys((25, 587), "intercepted")),
        ("flaky", OPEN),
    ],
)
def test_each_network_is_seen_for_what_it_is(scenario: str, expected: dict[int, str]) -> None:
    with Lab(scenario) as lab:
        assert verdicts(lab) == expected


def test_every_scenario_is_tested() -> None:
    assert set(SCENARIOS) == {"open", "isp-blocks-25", "cloud-blocks-submission", "starttls-stripped", "flaky"}


# behaviour -> what the probe says on 25, and on 465
SEEN: dict[str, tuple[tuple[str, str | None], tuple[str, str | None]]] = {
    "open": (("open", None), ("open", None)),
    "silence": (("filtered", "tcp_timeout"), ("filtered", "tcp_timeout")),
    "refused": (("closed", "tcp_refused"), ("closed", "tcp_refused")),
    "reset": (("closed_after_accept", "reset"), ("closed_after_accept", "reset")),
    "eof": (("closed_after_accept", "eof"), ("closed_after_accept", "reset")),
    "mute": (("accepts_no_banner", "banner_timeout"), ("accepts_no_banner", "tls_timeout")),
    "421": (("deferred", "rate_limited"), ("deferred", "rate_limited")),
    "554": (("rejected", "smtp_5xx"), ("rejected", "smtp_5xx")),
    "http": (("not_smtp", "not_smtp"), ("not_smtp", "tls_protocol")),
    "slow": (("open", None), ("open", None)),
    "plain": (("open_no_tls", None), ("open_tls_broken", "tls_protocol")),
    "stripped": (("tampered", "starttls_stripped"), ("open", None)),
    "refuses_tls": (("open_no_tls", "starttls_refused"), ("open", None)),
    "broken_tls": (("open_tls_broken", "tls_protocol"), ("open_tls_broken", "tls_protocol")),
    "stalled_tls": (("open_tls_broken", "tls_timeout"), ("open_tls_broken", "tls_timeout")),
}


def test_every_behaviour_is_tested() -> None:
    assert set(SEEN) == BEHAVIOURS


@pytest.mark.skipif(sys.platform == "win32", reason="a full queue refuses there")
@pytest.mark.parametrize("behaviour", SEEN)
def test_each_behaviour_has_its_words(behaviour: str) -> None:
    with Lab({25: behaviour, 465: behaviour}) as lab:
        frame = dk.probe(lab.hosts[0], (25, 465), connect_to=lab.connect_to, timeout=1, pace=None, progress=False)
    found = [(row["verdict"], None if pd.isna(row["failure"]) else row["failure"]) for row in frame.to_dict("records")]
    assert tuple(found) == SEEN[behaviour]


def test_one_server_can_be_told_apart_by_its_number_or_its_name() -> None:
    with Lab({(1, 25): "554", ("mx1.cedar.example", 25): "421"}) as lab:
        frame = dk.probe(lab.hosts, 25, connect_to=lab.connect_to, timeout=2, pace=None)
    assert frame["verdict"].tolist() == ["open", "rejected", "deferred", *["open"] * 5]


def test_all_32_doors_of_a_blocking_network_cost_one_timeout() -> None:
    with Lab("isp-blocks-25") as lab:
        sweep(lab)  # the certificates of this machine are read once
        begun = time.monotonic()
        assert len(sweep(lab)) == 32
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("scenario", ["opne", {25: "sulking"}, {26: "554"}, {("mx1.nowhere.example", 25): "554"}])
def test_what_the_lab_cannot_act_is_refused(scenario: Any) -> None:
    with pytest.raises(TargetError, match=r"it knows .*open|its ports are"):
        Lab(scenario)


def test_it_can_be_entered_again_and_leaves_nothing() -> None:
    threads = threading.active_count()
    lab = Lab("open")
    for _ in range(2):
        with lab:
            assert dk.probe(lab.hosts[0], 587, connect_to=lab.connect_to)["verdict"].tolist() == ["open"]
            place = lab.connect_to[lab.hosts[0], 587]
        assert lab.connect_to == {} and threading.active_count() == threads
        with pytest.raises(OSError):
            smtplib.SMTP(*place, timeout=1)


def test_leaving_ends_open_sessions() -> None:
    with Lab("open") as lab:
        client = smtplib.SMTP(*lab.connect_to[lab.hosts[0], 25], timeout=5)
        begun = time.monotonic()
    assert time.monotonic() - begun < 1
    with pytest.raises(smtplib.SMTPServerDisconnected):
        client.noop()
    client.close()


def test_the_certificate_names_every_host() -> None:
    with Lab("open") as lab:
        context = ssl.create_default_context(cadata=lab.certificate)
        for host in lab.hosts:
            with smtplib.SMTP(*lab.connect_to[host, 587], timeout=5) as client:
                client._host = host  # type: ignore[attr-defined]
                code, _ = client.starttls(context=context)  # raises where chain or name do not fit
                assert code == 220


# Sessions


def message(size: int = 10) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "me@sender.example", "you@lab.example", "test"
    mail.set_content("x" * 70 + "\n" + ("y" * 70 + "\n") * (size // 71))
    return mail


def send(lab: Lab, to: str, port: int = 25, **how: Any) -> tuple[int, bytes] | None:
    """Hand over one message; the refusal, or None."""
    with smtplib.SMTP(*lab.connect_to[lab.hosts[0], port], timeout=5) as client:
        try:
            client.send_message(message(**how), "me@sender.example", [to])
        except smtplib.SMTPRecipientsRefused as refused:
            return refused.recipients[to]
        except smtplib.SMTPResponseException as refused:
            return refused.smtp_code, refused.smtp_error  # type: ignore[return-value]
    return None


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        ("unknown1@a.example", 550, b"5.1.1"),
        ("full@a.example", 452, b"4.2.2"),
        ("spam-me@a.example", 554, b"5.7.1"),
        ("block@a.example", 550, b"5.7.1"),
        ("big@a.example", 552, b"5.3.4"),
        ("auth@a.example", 550, b"5.7.26"),
    ],
)
def test_recipients_are_answered_by_their_first_letters(to: str, code: int, words: bytes) -> None:
    with Lab("open") as lab:
        refused = send(lab, to)
    assert refused and refused[0] == code and refused[1].startswith(words)


def test_an_ordinary_message_is_taken_on_25() -> None:
    with Lab("open") as lab:
        assert send(lab, "anna@a.example") is None


def test_a_greylisted_recipient_is_taken_the_second_time() -> None:
    with Lab("open") as lab:
        first = send(lab, "grey@a.example")
        assert first and first[0] == 451 and send(lab, "grey@a.example") is None


def test_a_message_beyond_the_limit_is_refused() -> None:
    with Lab("open") as lab, smtplib.SMTP(*lab.connect_to[lab.hosts[0], 25], timeout=20) as client:
        client.ehlo()
        client.esmtp_features.pop("size")
        with pytest.raises(smtplib.SMTPDataError, match=r"5\.3\.4"):
            client.send_message(message(size=10_100_000), "me@sender.example", ["anna@a.example"])


@pytest.mark.parametrize("mechanism", ["auth_plain", "auth_login"])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("port", [465, 587, 2525])
def test_submission_wants_tls_then_a_login_then_takes_mail(port: int, initial: bool, mechanism: str) -> None:
    with Lab("open") as lab:
        kind = smtplib.SMTP_SSL if port == 465 else smtplib.SMTP
        with kind(*lab.connect_to[lab.hosts[0], port], timeout=5) as client:
            assert client.docmd("MAIL", "FROM:<me@sender.example>")[0] == 530
            if port != 465:
                assert client.docmd("AUTH", "PLAIN AG1lAHB3")[0] == 538
                client.starttls()
            client.ehlo()
            client.user, client.password = "me", "secret"  # type: ignore[attr-defined]
            name = mechanism.removeprefix("auth_").upper()
            assert client.auth(name, getattr(client, mechanism), initial_response_ok=initial)[0] == 235
            assert client.send_message(message(), "me@sender.example", ["anna@a.example"]) == {}


def test_no_login_is_offered_on_25_and_none_before_tls() -> None:
    with Lab("open") as lab:
        frame = sweep(lab)
    assert frame["auth_before_tls"].isna().all()
    assert frame.groupby("port")["auth_after_tls"].nunique().to_dict() == {25: 0, 465: 1, 587: 1, 2525: 1}


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is local on Linux only")
def test_a_real_lab_listens_on_the_true_ports_of_an_address_per_host() -> None:
    lab = Lab("open", real=True)
    try:
        with lab:
            pass
    except TargetError as problem:  # not root, or a mail server has the port
        pytest.skip(str(problem))
    with lab:
        frame = dk.probe(list(lab.addresses.values()), lab.ports, timeout=2, pace=None)
        assert frame["verdict"].eq("open").all() and len(frame) == 32
        assert lab.connect_to[lab.hosts[2], 465] == ("127.0.10.3", 465)


@pytest.mark.parametrize("scenario", [5, None, ["open"]])
def test_something_that_is_no_scenario_is_named(scenario: object) -> None:
    with pytest.raises(TargetError, match="cannot act"):
        Lab(scenario)  # type: ignore[arg-type]
