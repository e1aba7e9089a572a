"""The probe at Debian's Postfix, Exim, OpenSMTPD and Dovecot: what it finds, and how it behaved by their own logs.

All of them run in namespaces on the real ports of loopback addresses. Postfix and Dovecot are the installed ones; the
others, which cannot be installed beside Postfix, are unpacked by `tests/servers/fetch exim4-daemon-light opensmtpd`
into /usr/local/lib/deliverkit-servers, or into the folder that DELIVERKIT_SERVERS names.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.path import deaths
from deliverkit.resolve import Answer
from tests.servers import town as servers
from tests.servers.town import Town, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

MAY, LOGIN, EARLY = "smtpd_tls_security_level=may", "smtpd_sasl_auth_enable=yes", "smtpd_delay_reject=no"
DOORS = {
    "open 127.0.1.1:25": MAY,
    "submission 127.0.1.1:587": f"{MAY} {LOGIN} smtpd_client_restrictions=permit_sasl_authenticated,reject",
    "submissions 127.0.1.1:465": f"smtpd_tls_wrappermode=yes {LOGIN}",
    "cleartext 127.0.1.2:25": "smtpd_tls_security_level=none",
    "encrypt 127.0.1.3:25": "smtpd_tls_security_level=encrypt",
    "old 127.0.1.4:25": f"{MAY} smtpd_tls_protocols=TLSv1.2",
    "screen 127.0.1.5:25": MAY,
    "busy 127.0.1.6:25": f"{MAY} smtpd_client_connection_count_limit=1",
    "helo 127.0.1.7:25": f"{MAY} {EARLY} smtpd_helo_restrictions=reject",
    "client 127.0.1.8:25": f"{MAY} {EARLY} smtpd_client_restrictions=reject",
    "listed 127.0.1.9:25": f"{MAY} {EARLY} smtpd_client_restrictions=$listed",
    "grey 127.0.1.10:25": f"{MAY} {EARLY} smtpd_client_restrictions=$grey",
    "sender 127.0.1.11:587": f"{MAY} {LOGIN} {EARLY} smtpd_sender_restrictions=permit_sasl_authenticated,reject",
    "swapped 127.0.1.12:25": "smtpd_tls_wrappermode=yes",
    "swapped 127.0.1.12:465": MAY,
}
HOSTS = {f"{door.split()[0]}.postfix.example": door.split()[1].partition(":")[0] for door in DOORS}
HOSTS |= {"exim.example": "127.0.2.1", "verifies.exim.example": "127.0.2.2", "refuses.exim.example": "127.0.2.3"}
HOSTS |= {"mx.opensmtpd.example": "127.0.3.1", "dovecot.example": "127.0.4.1"}
HOSTS |= {f"{name}.opensmtpd.example": f"127.0.3.{n}" for n, name in enumerate(("cleartext", "client", "helo"), 2)}
LISTENERS = """
table loop { 127.0.0.1 }
filter "client" phase connect match src <loop> reject "550 5.7.1 Nobody comes in"
filter "helo" phase ehlo match src <loop> reject "550 5.7.1 Not by this name"
listen on 127.0.3.1 port 25 tls pki mx.example hostname mx.example
listen on 127.0.3.1 port 465 smtps pki mx.example hostname mx.example auth
listen on 127.0.3.1 port 587 tls-require pki mx.example hostname mx.example auth
listen on 127.0.3.2 port 25
listen on 127.0.3.3 port 25 filter "client"
listen on 127.0.3.4 port 25 filter "helo"
"""


@pytest.fixture(scope="module")
def town(need: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town(need, tmp_path_factory.mktemp("town")) as made:
        yield made


@pytest.fixture(scope="module")
def dovecot(town: Town, need: Callable[[str, str], str]) -> None:
    servers.dovecot(town, need, "127.0.4.1")
    town.listening("127.0.4.1:465", "127.0.4.1:587")


@pytest.fixture(scope="module")
def postfix(town: Town, need: Callable[[str, str], str], dovecot: None) -> None:
    servers.postfix(town, need, DOORS)
    town.listening(*(door.split()[1] for door in DOORS))


@pytest.fixture(scope="module")
def exim(town: Town, need: Callable[[str, str], str]) -> None:
    places = ["127.0.2.1:25", "127.0.2.1:465", "127.0.2.1:587", "127.0.2.2:25", "127.0.2.3:25"]
    servers.exim(town, need, places, verifies="127.0.2.2", refuses="127.0.2.3")
    town.listening(*places)


@pytest.fixture(scope="module")
def opensmtpd(town: Town, need: Callable[[str, str], str]) -> None:
    servers.opensmtpd(town, need, LISTENERS)
    town.listening("127.0.3.1:25", "127.0.3.4:25")


@pytest.fixture
def visit(request: pytest.FixtureRequest, town: Town) -> Callable[..., Any]:
    """`visit("host:port", ...)`: the frame of a probe from within the town; it starts the servers asked for."""

    def probe(*targets: str, timeout: float = 15, **how: Any) -> pd.DataFrame:
        for target in targets:
            request.getfixturevalue(target.partition(":")[0].split(".")[-2])
        how |= {"pace": None, "progress": False, "resolver": address_of, "timeout": timeout}
        return town.inside(dk.probe, list(targets), **how)

    return probe


def address_of(name: str) -> Answer:
    return Answer((HOSTS[name],))


def since(town: Town, log: str) -> Callable[[], str]:
    """What a log says from now on."""
    before = len(town.log(log))
    return lambda: town.log(log)[before:]


def told(row: Any, names: Any) -> dict[str, Any]:
    return {name: None if pd.isna(row[name]) else row[name] for name in names}


STARTTLS, IMPLICIT = {"mode": "starttls"}, {"mode": "implicit", "auth_before_tls": None}
OPEN = {"verdict": "open", "failure": None, "reached": "done", "tls_version": "TLSv1.3", "auth_before_tls": None}
OWN = {"cert_problem": "self_signed", "cert_matches": True, "cert_trusted": False}
POSTFIX = OPEN | OWN | {"banner": "220 mx.example ESMTP Postfix", "cert_subject": "mx.example"}
EXIM = OPEN | {"cert_subject": "exim.example", "cert_issuer": "Nobody's CA", "cert_problem": "unknown_ca"}
DOVECOT = OPEN | OWN | {"banner": "220 dovecot.example Dovecot (Debian) ready.", "cert_names": "dovecot.example"}
BOTH, PLAIN = {"auth_after_tls": "LOGIN PLAIN"}, {"auth_after_tls": "PLAIN"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("open.postfix.example:25", POSTFIX | STARTTLS | {"auth_after_tls": None}),
        ("submission.postfix.example:587", POSTFIX | STARTTLS | BOTH),
        ("submissions.postfix.example:465", POSTFIX | IMPLICIT | BOTH),
        ("encrypt.postfix.example:25", POSTFIX | STARTTLS),
        ("old.postfix.example:25", POSTFIX | {"tls_version": "TLSv1.2", "cipher": "ECDHE-ECDSA-AES256-GCM-SHA384"}),
        ("cleartext.postfix.example:25", {"verdict": "open_no_tls", "failure": None, "mode": "cleartext"}),
        ("exim.example:25", EXIM | STARTTLS | {"auth_after_tls": None, "cipher": "TLS_AES_256_GCM_SHA384"}),
        ("exim.example:587", EXIM | STARTTLS | PLAIN),
        ("exim.example:465", EXIM | IMPLICIT | PLAIN),
        ("cleartext.opensmtpd.example:25", {"verdict": "open_no_tls", "failure": None, "mode": "cleartext"}),
        ("dovecot.example:587", DOVECOT | STARTTLS | BOTH),
        ("dovecot.example:465", DOVECOT | IMPLICIT | BOTH),
    ],
)
def test_an_open_port_is_open_with_what_it_offers(visit: Any, target: str, expected: dict[str, Any]) -> None:
    [row] = visit(target).to_dict("records")
    assert told(row, expected) == expected
    offers = set(row["features"].split())
    assert "SIZE" in offers and ("STARTTLS" in offers) == (row["mode"] == "starttls")
    assert ("AUTH" in offers) == (row["mode"] == "implicit")  # before TLS nobody here offers a login


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("helo.postfix.example:25", ("ehlo", "rejected", "smtp_5xx", 554, "5.7.1", "Helo command rejected")),
        ("client.postfix.example:25", ("banner", "rejected", "smtp_5xx", 554, "5.7.1", "Client host rejected")),
        ("listed.postfix.example:25", ("banner", "rejected", "blocklisted", 554, "5.7.1", "dnsbl.example")),
        ("grey.postfix.example:25", ("banner", "deferred", "greylisted", 450, "4.7.1", "Greylisted")),
        ("refuses.exim.example:25", ("ehlo", "rejected", "smtp_5xx", 550, None, "not like the name [127.0.0.1]")),
        ("client.opensmtpd.example:25", ("banner", "rejected", "smtp_5xx", 550, "5.7.1", "Nobody comes in")),
        ("helo.opensmtpd.example:25", ("ehlo", "rejected", "smtp_5xx", 550, "5.7.1", "Not by this name")),
    ],
)
def test_a_refusal_is_read_with_its_stage_its_codes_and_its_words(visit: Any, target: str, expected: Any) -> None:
    [row] = visit(target).to_dict("records")
    names = ("reached", "verdict", "failure", "reply_code", "status_code")
    assert tuple(told(row, names).values()) == expected[:-1]
    assert expected[-1] in row["text"]


@pytest.mark.parametrize("port", [25, 465, 587])
def test_opensmtpd_is_open_or_has_the_broken_tls_of_its_version(
    visit: Any, town: Town, opensmtpd: None, port: int
) -> None:
    [row] = visit(f"mx.opensmtpd.example:{port}").to_dict("records")
    expected = OPEN | OWN | {"cert_names": "mx.opensmtpd.example"}
    if "OpenSMTPD 6." in town.log("opensmtpd.log"):  # that of Debian 12 loses its key in OpenSSL 3 (their issue 1171)
        expected = {"reached": "tls", "verdict": "open_tls_broken", "failure": "tls_alert_internal_error"}
    assert told(row, expected) == expected
    assert row["banner"] == "220 mx.example ESMTP OpenSMTPD" or port == 465


def test_the_greeting_of_postscreen_is_waited_for(visit: Any, town: Town) -> None:
    [row] = visit("screen.postfix.example:25").to_dict("records")
    assert row["verdict"] == "open" and row["banner"] == "220-please wait 220 mx.example ESMTP Postfix"
    until(lambda: "PASS NEW [127.0.0.1]" in town.log("mail.log"), "the verdict of postscreen")
    assert not re.search("PREGREET|COMMAND PIPELINING|BARE NEWLINE|HANGUP", town.log("mail.log"))


def test_too_many_connections_are_a_421_and_deferred(visit: Any, town: Town, postfix: None) -> None:
    with town.inside(socket.create_connection, ("127.0.1.6", 25), 10) as held:
        assert held.recv(3) == b"220"
        [row] = visit("busy.postfix.example:25").to_dict("records")
        held.sendall(b"QUIT\r\n")
    names = ("reached", "verdict", "failure", "reply_code", "status_code")
    assert tuple(told(row, names).values()) == ("banner", "deferred", "rate_limited", 421, "4.7.0")


def test_the_default_name_in_ehlo_is_verified_by_exim_and_a_wrong_one_is_refused(visit: Any) -> None:
    [good] = visit("verifies.exim.example:25").to_dict("records")
    [bad] = visit("verifies.exim.example:25", ehlo_name="[192.0.2.1]").to_dict("records")
    assert (good["verdict"], bad["verdict"], bad["reached"], bad["reply_code"]) == ("open", "rejected", "ehlo", 550)


def test_tls_and_plain_text_behind_the_wrong_ports_are_told_apart(visit: Any) -> None:
    found = visit("swapped.postfix.example:25", "swapped.postfix.example:465", timeout=2).set_index("port")
    assert tuple(found.loc[25, ["verdict", "failure"]]) == ("accepts_no_banner", "banner_timeout")
    assert tuple(found.loc[465, ["verdict", "failure", "text"]]) == (
        "open_tls_broken", "tls_protocol", "220 mx.example ESMTP Postfix",
    )  # fmt: skip


FILTERS = {
    "open": ("drop", "filtered", "tcp_timeout", None, None),
    "cleartext": ("reject with tcp reset", "closed", "tcp_refused", None, None),
    "encrypt": ("reject with icmp port-unreachable", "closed", "tcp_refused", 3, 3),
    "old": ("reject with icmp host-unreachable", "unreachable", "host_unreachable", 3, 1),
    "busy": ("reject with icmp net-unreachable", "unreachable", "net_unreachable", 3, 0),
    "helo": ("reject with icmp admin-prohibited", "blocked_icmp", "icmp_admin_prohibited", 3, 13),
    "client": ("reject with icmp host-prohibited", "blocked_icmp", "icmp_admin_prohibited", 3, 10),
    "listed": ("reject with icmp net-prohibited", "blocked_icmp", "icmp_admin_prohibited", 3, 9),
}


def test_a_packet_filter_before_an_open_server_is_named_by_what_it_does(visit: Any, town: Town, postfix: None) -> None:
    targets = [f"{name}.postfix.example:25" for name in FILTERS]
    said = since(town, "mail.log")
    doors = {HOSTS[f"{name}.postfix.example"]: way[0] for name, way in FILTERS.items()}
    town.rules(*(f"ip daddr {address} tcp dport 25 {does}" for address, does in doors.items()))
    try:
        found = visit(*targets, timeout=2)
    finally:
        town.rules()
    names = ["verdict", "failure", "icmp_type", "icmp_code"]
    assert [tuple(told(row, names).values()) for _, row in found.iterrows()] == [f[1:] for f in FILTERS.values()]
    assert [told(row, ["icmp_from"])["icmp_from"] for _, row in found.iterrows()] == [
        None if kind is None else row["address"]
        for (_, _, _, kind, _), (_, row) in zip(FILTERS.values(), found.iterrows(), strict=True)
    ]
    assert " connect from" not in said()
    assert visit("open.postfix.example:25")["verdict"].tolist() == ["open"]


def test_a_walk_to_postfix_opens_one_session_and_ends_it_with_quit(town: Town, postfix: None) -> None:
    said = since(town, "mail.log")
    town.rules("ip daddr 127.0.1.1 tcp dport 587 drop")
    try:
        assert town.inside(deaths, "127.0.1.1", (25, False), [587], None, 0.2) == {587: (0, None)}
    finally:
        town.rules()
    until(lambda: " disconnect from" in said(), "the end of the session")
    ended = re.findall(r" disconnect from \S+ (.*)", said())
    assert ended == ["quit=1 commands=1"] and "lost connection" not in said()


@pytest.mark.parametrize(
    ("target", "enforced"),
    [
        ("dovecot.example:587", True),
        ("dovecot.example:465", True),
        ("submission.postfix.example:587", False),  # smtpd_delay_reject: refused at RCPT only
        ("sender.postfix.example:587", None),  # refused at MAIL, but not for want of a login
        ("open.postfix.example:25", False),
        ("exim.example:587", False),
    ],
)
def test_what_mail_without_a_login_comes_to(visit: Any, target: str, enforced: bool | None) -> None:
    [row] = visit(target, check_auth=True).to_dict("records")
    assert row["verdict"] == "open" and told(row, ["auth_enforced"]) == {"auth_enforced": enforced}


class TestManners:
    """What each server's own log says of a visit to all its doors."""

    def test_postfix(self, visit: Any, town: Town, postfix: None) -> None:
        names = [door.split() for door in DOORS if not door.startswith("swapped")]
        said = since(town, "mail.log")
        visit(*(f"{name}.postfix.example:{place.partition(':')[2]}" for name, place in names))
        until(lambda: len(re.findall(r"\]?: disconnect from", said())) == len(names), "the end of all sessions")
        for session in re.findall(r": disconnect from \S+ (.*)", said()):
            assert session.endswith(tuple("0123456789")) and "quit=1" in session.split()
            assert {part.partition("=")[0] for part in session.split()} <= {"ehlo", "starttls", "quit", "commands"}
        assert not re.search("lost connection|timeout after|pipelining|PREGREET|HANGUP|non-SMTP|SSL_accept", said())

    def test_exim(self, visit: Any, town: Town, exim: None) -> None:
        said = since(town, "exim_mainlog")
        visit("exim.example:25", "exim.example:465", "exim.example:587", "refuses.exim.example:25")
        until(lambda: said().count("no MAIL in SMTP connection") == 4, "the end of all sessions")
        assert said().count("closed by QUIT") == 4
        assert set(",".join(re.findall(r" C=(\S+)", said())).split(",")) == {"EHLO", "STARTTLS", "QUIT"}
        everything = said() + town.log("exim_rejectlog") + town.log("exim_paniclog")
        assert not re.search("synchroni[sz]ation|unexpected disconnection|lost|timeout|syntax", everything)

    def test_opensmtpd(self, visit: Any, town: Town, opensmtpd: None) -> None:
        said = since(town, "opensmtpd.log")
        ports = [f"mx.opensmtpd.example:{port}" for port in (25, 465, 587)]
        visit(*ports, *(f"{name}.opensmtpd.example:25" for name in ("cleartext", "client", "helo")))
        until(lambda: said().count("smtp disconnected") == 6, "the end of all sessions")
        ends = set(re.findall(r"smtp disconnected reason=(\S+)", said()))
        assert ends == {"quit"} or ("OpenSMTPD 6." in town.log("opensmtpd.log") and ends == {"quit", '"io-error:'})
        assert set(re.findall(r"<<< (\w+)", said())) == {"EHLO", "STARTTLS", "QUIT"}

    def test_dovecot(self, visit: Any, town: Town, dovecot: None) -> None:
        said = since(town, "dovecot.log")
        visit("dovecot.example:465", "dovecot.example:587")
        until(lambda: said().count("Disconnected") == 2, "the end of all sessions")
        assert said().count("Disconnected: Aborted login by logging out (no auth attempts") == 2
