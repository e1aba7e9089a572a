"""Rehearsals: against the lab, against servers that behave badly, and against Postfix with Dovecot's logins."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import deliverkit as dk
from deliverkit.errors import TargetError
from deliverkit.resolve import Answer
from deliverkit.schema import REHEARSAL
from deliverkit.targets import limits_of

HOST, USER, PASSWORD = "mx.example", "me@example.com", "correct horse battery"
STARTTLS = ["connect", "banner", "ehlo", "starttls", "tls", "ehlo_tls"]
IMPLICIT = ["connect", "tls", "banner", "ehlo"]
MESSAGE = ["mail", "rcpt", "data"]


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# A certificate for HOST, and servers that follow a script


def certificate(name: str = HOST, days: int = 30, signer: Any = None) -> tuple[Any, x509.Certificate, str]:
    """Key, certificate and both as PEM; self-signed unless `signer` gives the key and certificate of a CA."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name.from_rfc4514_string(f"CN={name}")
    by, issuer = (signer[0], signer[1].subject) if signer else (key, subject)
    begins = now - timedelta(days=60)
    ends = now + timedelta(days=days)
    made = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), begins, ends)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    if name == "ca.example":
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = made.sign(by, hashes.SHA256())
    pem, form, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key, signed, (key.private_bytes(pem, form, plain) + signed.public_bytes(pem)).decode()


def public(pem: str) -> str:
    return pem[pem.index("-----BEGIN CERTIFICATE") :]


PEM = certificate()[2]


class Peer:
    """The server's end of one connection, and what it heard."""

    def __init__(self, sock: socket.socket, pem: str, heard: list[str]) -> None:
        self.sock, self.pem, self.heard, self.tls = sock, pem, heard, False
        self.reader = sock.makefile("rb")

    def say(self, *parts: bytes, every: float = 0.0) -> None:
        for part in parts:
            self.sock.sendall(part)
            time.sleep(every)

    def line(self) -> bytes:
        if not (line := self.reader.readline()):
            raise ConnectionError
        self.heard.append(("tls " if self.tls else "") + line.decode().rstrip("\r\n"))
        return line

    def encrypt(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "server.pem").write_text(self.pem)
            context.load_cert_chain(path)
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self.reader, self.tls = self.sock.makefile("rb"), True


Act = bytes | Callable[[Peer], None]
CLEAR: dict[str, bytes] = {
    "": b"220-mx.example\r\n220 ESMTP\r\n",
    "EHLO": b"250-mx.example\r\n250-SIZE 1000000\r\n250 STARTTLS\r\n",
    "STARTTLS": b"220 2.0.0 go ahead\r\n",
    "QUIT": b"221 2.0.0 bye\r\n",
}
INSIDE: dict[str, bytes] = {
    "EHLO": b"250-mx.example\r\n250 AUTH LOGIN PLAIN XOAUTH2\r\n",
    "AUTH": b"235 2.7.0 welcome\r\n",
    "MAIL": b"250 2.1.0 ok\r\n",
    "RCPT": b"250 2.1.5 ok\r\n",
    "DATA": b"354 go on\r\n",
    ".": b"250 2.0.0 queued\r\n",
    "QUIT": b"221 2.0.0 bye\r\n",
}


def follow(peer: Peer, clear: dict[str, Act], inside: dict[str, Act], implicit: bool) -> None:
    if implicit:
        peer.encrypt()
    verb, reading = "", False  # reading: a message, up to its dot
    while True:
        act = (inside if peer.tls and verb else clear).get(verb, b"502 5.5.2 what?\r\n")
        said = b"" if callable(act) else act
        if not reading or verb == ".":
            act(peer) if callable(act) else peer.say(act)
            reading = verb == "DATA" and said[:3] == b"354"
        if verb == "QUIT" and not reading:
            return
        if verb == "STARTTLS" and said[:3] == b"220":
            peer.encrypt()
        verb = (peer.line().decode().split() or [""])[0].upper()


@contextlib.contextmanager
def server(clear: dict[str, Act] | None = None, inside: dict[str, Act] | None = None, *, pem: str = PEM,
           implicit: bool = False) -> Iterator[tuple[int, list[str]]]:  # fmt: skip
    """A server on loopback; its port and the lines it heard, those within TLS marked."""
    listener, heard = socket.create_server(("127.0.0.1", 0)), []

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, ValueError):
            peer = Peer(sock, pem, heard)
            with contextlib.suppress(OSError):
                follow(peer, CLEAR | (clear or {}), INSIDE | (inside or {}), implicit)
            peer.sock.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], heard
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def hold(peer: Peer) -> None:
    """Silence until the client goes."""
    while peer.sock.recv(4096):
        pass


def tarpit(peer: Peer) -> None:
    """A byte every now and then, never a line end."""
    peer.say(*[b"2"] * 200, every=0.1)


def hang_up(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_RDWR)
    raise ConnectionError


def flood(line: bytes) -> Callable[[Peer], None]:
    return lambda peer: peer.say(*[line * 1000] * 1000)


def rehearse(port: int, asked: int = 587, **how: Any) -> pd.DataFrame:
    """Rehearse with a loopback server as if it were port `asked` of HOST."""
    login = {"user": USER} | ({} if "token" in how else {"password": PASSWORD})
    how = login | {"trust": public(PEM), "timeout": 2, "connect_to": {(HOST, asked): ("127.0.0.1", port)}} | how
    return dk.rehearse(HOST, asked, **how)


def last(steps: pd.DataFrame) -> dict[str, Any]:
    """The row that the submission ended at; what is missing is None."""
    [row] = steps[steps["attempted"]].astype(object).where(steps.notna(), None).to_dict("records")
    return {str(key): value for key, value in row.items()}


# The lab


@pytest.mark.parametrize(("port", "stages"), [(587, STARTTLS), (2525, STARTTLS), (465, IMPLICIT)])
def test_a_message_goes_through_all_steps_in_their_order(port: int, stages: list[str]) -> None:
    with dk.Lab() as lab:
        steps = dk.rehearse(lab.hosts[0], port, user="u", password="p", connect_to=lab.connect_to, vantage="office",
                            trust=lab.certificate, to=USER, sender="a@example.com")  # fmt: skip
    assert REHEARSAL.check(steps) is steps
    assert steps["stage"].tolist() == [*stages, "login", *MESSAGE, "quit"]
    assert steps["outcome"].eq("passed").all() and steps["category"].eq("not_a_failure").all()
    assert steps["took_s"].between(0, 1).all() and set(steps["vantage"]) == {"office"}
    assert set(steps["host"]) == {lab.hosts[0]} and set(steps["port"]) == {port}
    row = last(steps)
    assert (row["stage"], row["step"], row["recipient"]) == ("data", "inbox", USER)
    assert re.fullmatch(r"<[^<>\s]+@example\.com>", row["message_id"])
    tls = steps.set_index("stage").loc["tls"]
    assert (tls["tls_version"], tls["cert_trusted"], tls["cert_matches"]) == ("TLSv1.3", True, True)
    assert tls["cert_subject"] == "lab.example" and pd.isna(tls["cert_problem"])


@pytest.mark.parametrize(
    ("to", "stage", "outcome", "category"),
    [
        ("unknown@example.com", "rcpt", "failed", "invalid_recipient"),
        ("full@example.com", "rcpt", "deferred", "mailbox_unavailable"),
        ("block@example.com", "rcpt", "failed", "reputation_block"),
        ("spam@example.com", "data", "failed", "content_spam"),
        ("me@example.com", "data", "passed", "not_a_failure"),
    ],
)
def test_the_fate_of_the_message_is_the_end_of_the_rehearsal(to: str, stage: str, outcome: str, category: str) -> None:
    with dk.Lab() as lab:
        steps = dk.rehearse(lab.hosts[0], user=USER, password="p", connect_to=lab.connect_to, trust=lab.certificate,
                            to=to)  # fmt: skip
    row = last(steps)
    assert (row["stage"], row["outcome"], row["category"]) == (stage, outcome, category)
    assert steps["stage"].tolist()[-2:] == [stage, "quit"]


@pytest.mark.parametrize(
    ("scenario", "stage", "category", "by"),
    [
        ("cloud-blocks-submission", "connect", "connection", "network"),
        ("starttls-stripped", "starttls", "tls", "network"),
        ({587: "refused"}, "connect", "connection", "network"),
        ({587: "554"}, "banner", "policy_block", "policy"),
        ({587: "http"}, "banner", "connection", "network"),
        ({587: "mute"}, "banner", "connection", "network"),
        ({587: "eof"}, "banner", "connection", "network"),
        ({587: "plain"}, "starttls", "tls", "server"),
        ({587: "refuses_tls"}, "starttls", "tls", "server"),
        ({587: "broken_tls"}, "tls", "tls", "server"),
        ({587: "stalled_tls"}, "tls", "tls", "server"),
    ],
)
def test_what_stands_in_the_way_is_a_row(scenario: Any, stage: str, category: str, by: str) -> None:
    with dk.Lab(scenario) as lab:
        steps = dk.rehearse(lab.hosts[0], user=USER, password="p", connect_to=lab.connect_to, trust=lab.certificate,
                            timeout=1, to=USER)  # fmt: skip
    row = last(steps)
    assert row["stage"] == stage and row["outcome"] != "passed"
    assert (row["category"], row["blocked"], row["blocked_by"]) == (category, True, by)
    assert "login" not in set(steps["stage"])


def test_one_rehearsal_counts_as_one_attempt() -> None:
    with dk.Lab() as lab:
        how = {"connect_to": lab.connect_to, "trust": lab.certificate, "user": USER, "password": "p"}
        both = pd.concat([dk.rehearse(lab.hosts[0], to=to, **how) for to in (USER, "block@example.com")])
    rates = dk.block_rates(both)
    assert rates[["port", "attempts", "blocked"]].to_numpy().tolist() == [[587, 2, 1]]
    ends = dk.outcomes(both)
    assert dict(zip(ends["recipient"], ends["final"], strict=True)) == {USER: "sent", "block@example.com": "bounced"}


# What is said, and what is not


def test_without_a_recipient_nothing_is_sent() -> None:
    with server() as (port, heard):
        steps = rehearse(port, ehlo_name="office.example")
    assert steps["stage"].tolist() == [*STARTTLS, "login", "quit"]
    plain = coded(f"\0{USER}\0{PASSWORD}")
    ehlo = "ehlo office.example"
    assert heard == [ehlo, "STARTTLS", f"tls {ehlo}", f"tls AUTH PLAIN {plain}", "tls QUIT"]


def test_exactly_one_message_to_exactly_one_address_is_sent() -> None:
    with server() as (port, heard):
        steps = rehearse(port, to="you@example.com")
    said = [line for line in heard if re.match("tls (mail|rcpt|data)", line)]
    assert said == ["tls mail FROM:<me@example.com>", "tls rcpt TO:<you@example.com>", "tls data"]
    letter = "\n".join(line.removeprefix("tls ") for line in heard[heard.index("tls data") + 1 :])
    message = message_from_bytes(letter.encode())
    assert (message["From"], message["To"]) == (USER, "you@example.com")
    assert message["Message-ID"] == last(steps)["message_id"] and message["Date"] and "rehearsal" in message["Subject"]


@pytest.mark.parametrize(
    ("offered", "how", "said"),
    [
        ("LOGIN PLAIN XOAUTH2", {"password": "p"}, "PLAIN"),
        ("LOGIN XOAUTH2", {"password": "p"}, "LOGIN"),
        ("LOGIN PLAIN XOAUTH2", {"token": "t"}, "XOAUTH2"),
        ("LOGIN PLAIN XOAUTH2", {"token": "t", "password": "p"}, "XOAUTH2"),
        ("PLAIN", {"token": "t", "password": "p"}, "PLAIN"),
        ("PLAIN LOGIN", {"password": "p", "mechanism": "login"}, "LOGIN"),
        ("PLAIN", {"password": "p", "mechanism": "LOGIN"}, None),
        ("GSSAPI NTLM", {"password": "p"}, None),
        ("PLAIN", {"token": "t"}, None),
        ("", {"password": "p"}, None),
    ],
)
def test_the_best_mechanism_offered_is_taken(offered: str, how: dict[str, str], said: str | None) -> None:
    answers = iter([b"334 UGFzc3dvcmQ6\r\n", b"235 ok\r\n"])

    def auth(peer: Peer) -> None:
        if "LOGIN" not in peer.heard[-1]:
            return peer.say(b"235 ok\r\n")
        for answer in answers:
            peer.say(answer)
            if answer[:3] == b"334":
                peer.line()

    ehlo = f"250-mx.example\r\n250 AUTH {offered}\r\n" if offered else "250 mx.example\r\n"
    with server(inside={"EHLO": ehlo.encode(), "AUTH": auth}) as (port, heard):
        row = last(rehearse(port, **how))
    assert row["stage"] == "login" and row["mechanism"] == said
    assert (row["outcome"], row["category"]) == (("passed", "not_a_failure") if said else ("failed", "relay_or_login"))
    assert any("AUTH" in line for line in heard) == bool(said)
    if said == "LOGIN":
        assert heard[-3:] == [f"tls AUTH LOGIN {coded(USER)}", f"tls {coded('p')}", "tls QUIT"]


def test_a_login_that_is_offered_in_clear_only_is_never_made() -> None:
    clear = {"EHLO": b"250-mx.example\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n"}
    with server(clear, {"EHLO": b"250 mx.example\r\n"}) as (port, heard):
        steps = rehearse(port)
    assert last(steps)["stage"] == "login" and last(steps)["category"] == "relay_or_login"
    assert "AUTH PLAIN LOGIN" in steps.set_index("stage")["text"]["ehlo"]
    assert not any("AUTH" in line for line in heard)


@pytest.mark.parametrize("keywords", ["AUTH PLAIN LOGIN", "XXXXXXXA"])
def test_without_starttls_there_is_neither_login_nor_mail(keywords: str) -> None:
    with server({"EHLO": f"250-mx.example\r\n250 {keywords}\r\n".encode()}) as (port, heard):
        row = last(rehearse(port, to=USER))
    assert (row["stage"], row["category"]) == ("starttls", "tls") and "STARTTLS" in row["text"]
    assert row["failure"] == ("starttls_stripped" if keywords == "XXXXXXXA" else None)
    assert [line.split()[0] for line in heard] == ["ehlo", "QUIT"]


def test_words_before_tls_are_not_taken_for_words_within() -> None:
    injected = b"220 go ahead\r\n250-mx.example\r\n250 AUTH PLAIN\r\n235 welcome\r\n"
    with server({"STARTTLS": injected}) as (port, heard):
        steps = rehearse(port)
    row = last(steps)
    assert (row["stage"], row["failure"], row["category"]) == ("tls", "tls_protocol", "tls")
    assert steps["stage"].tolist()[-1] == "tls" and not any(line.startswith("tls") for line in heard)


def test_words_that_come_late_before_tls_are_not_taken_either() -> None:
    def late(peer: Peer) -> None:
        peer.say(b"220 go ahead\r\n", every=0.2)
        peer.say(b"250-mx.example\r\n250 AUTH PLAIN\r\n", every=0.2)
        raise ConnectionError

    with server({"STARTTLS": late}) as (port, _):
        row = last(rehearse(port))
    assert (row["stage"], row["outcome"], row["category"]) == ("tls", "failed", "tls")


@pytest.mark.parametrize("port", [465, 587])
def test_an_umlaut_in_a_password_is_said_in_utf_8(port: int) -> None:
    with server(implicit=port == 465) as (real, heard):
        assert last(rehearse(real, port, password="grün"))["outcome"] == "passed"
    assert f"tls AUTH PLAIN {coded(chr(0) + USER + chr(0) + 'grün')}" in heard


# Certificates

CA = certificate("ca.example")
CERTIFICATES = {
    "self_signed": (certificate()[2], None),
    "unknown_ca": (certificate(signer=CA)[2], None),
    "expired": ((old := certificate(days=-1)[2]), public(old)),
    "name_mismatch": ((other := certificate("other.example")[2]), public(other)),
}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("problem", CERTIFICATES)
def test_no_password_goes_to_a_server_with_a_bad_certificate(problem: str, implicit: bool) -> None:
    pem, trust = CERTIFICATES[problem]
    with server(pem=pem, implicit=implicit) as (port, heard):
        steps = rehearse(port, 465 if implicit else 587, trust=trust)
    row = last(steps)
    assert (row["stage"], row["outcome"], row["category"]) == ("tls", "failed", "tls")
    assert (row["cert_problem"], row["failure"]) == (problem, f"cert_{problem}")
    assert row["text"].startswith("Server certificate not verified: ")
    assert not any("AUTH" in line for line in heard) and steps["stage"].iloc[-1] == "tls"


def test_an_own_ca_and_an_own_certificate_can_be_trusted_as_text_or_file(tmp_path: Path) -> None:
    signed = certificate(signer=CA)[2]
    (tmp_path / "ca.pem").write_text(public(CA[2]))
    for pem, trust in [(signed, public(CA[2])), (signed, tmp_path / "ca.pem"), (signed, public(signed)),
                       (signed, str(tmp_path / "ca.pem")), (PEM, public(PEM))]:  # fmt: skip
        with server(pem=pem) as (port, _):
            steps = rehearse(port, trust=trust)
        assert last(steps)["stage"] == "login" and steps["cert_trusted"].dropna().tolist() == [True]


@pytest.mark.parametrize("problem", ["self_signed", "expired", "name_mismatch"])
def test_without_a_login_a_bad_certificate_is_noted(problem: str) -> None:
    with server(pem=CERTIFICATES[problem][0]) as (port, _):
        steps = rehearse(port, user=None, password=None, trust=None, sender=USER, to=USER)
    assert last(steps)["stage"] == "data" and last(steps)["outcome"] == "passed"
    seen = steps.set_index("stage")["cert_problem"]["tls"]
    assert seen == ("self_signed" if problem == "name_mismatch" else problem)


# Refusals


@pytest.mark.parametrize(
    ("clear", "inside", "stage", "outcome", "code", "category"),
    [
        ({"": b"554 5.7.1 no\r\n"}, {}, "banner", "failed", 554, None),
        ({"": b"421 4.7.0 too many connections\r\n"}, {}, "banner", "deferred", 421, "rate_limited"),
        ({"EHLO": b"550 5.7.1 bad HELO\r\n"}, {}, "ehlo", "failed", 550, None),
        ({"STARTTLS": b"454 4.7.0 TLS not available\r\n"}, {}, "starttls", "deferred", 454, "tls"),
        ({}, {"AUTH": b"535 5.7.8 Error: authentication failed\r\n"}, "login", "failed", 535, "relay_or_login"),
        ({}, {"AUTH": b"454 4.7.0 Temporary authentication failure\r\n"}, "login", "deferred", 454, "relay_or_login"),
        ({}, {"AUTH": b"534-5.7.9 first line\r\n534 5.7.9 second\r\n"}, "login", "failed", 534, "relay_or_login"),
        ({}, {"AUTH": b"334 again\r\n"}, "login", "failed", 502, None),
        ({}, {"MAIL": b"530 5.7.0 Authentication required\r\n"}, "mail", "failed", 530, "relay_or_login"),
        ({}, {"RCPT": b"554 5.7.1 Relay access denied\r\n"}, "rcpt", "failed", 554, "relay_or_login"),
        ({}, {"DATA": b"452 4.3.1 disk full\r\n"}, "data", "deferred", 452, None),
        ({}, {"DATA": b"250 2.0.0 taken unseen\r\n"}, "data", "failed", 250, "unknown"),
        ({}, {".": b"552 5.3.4 too big\r\n"}, "data", "failed", 552, "message_rejected"),
    ],
)
def test_a_refusal_ends_with_its_code_and_a_quit(clear: Any, inside: Any, stage: str, outcome: str, code: int,
                                                 category: str | None) -> None:  # fmt: skip
    with server(clear, inside) as (port, _):
        steps = rehearse(port, to=USER)
    row = last(steps)
    assert (row["stage"], row["outcome"], row["reply_code"]) == (stage, outcome, code)
    assert row["category"] == category if category else row["category"] not in ("unknown", "not_a_failure")
    assert steps["stage"].tolist()[-1] == (stage if code == 421 else "quit")
    if found := re.match(r"\d{3}[ -]([245]\.\d\.\d)", row["text"]):
        assert row["status_code"] == found[1]


def test_a_login_with_xoauth2_asks_for_the_verdict_and_shows_the_error() -> None:
    error = '{"status":"400","schemes":"Bearer","scope":"https://mail.example/"}'

    def auth(peer: Peer) -> None:
        peer.say(f"334 {coded(error)}\r\n".encode())
        assert peer.line() == b"\r\n"
        peer.say(b"535 5.7.8 Username and Password not accepted\r\n")

    with server(inside={"AUTH": auth}) as (port, heard):
        row = last(rehearse(port, token="ya29.secret-token"))
    assert f"tls AUTH XOAUTH2 {coded(f'user={USER}{chr(1)}auth=Bearer ya29.secret-token{chr(1)}{chr(1)}')}" in heard
    assert (row["mechanism"], row["reply_code"], row["category"]) == ("XOAUTH2", 535, "relay_or_login")
    assert error in row["text"]


# Hostile servers

TALKS = {"banner": "", "ehlo": "EHLO", "starttls": "STARTTLS"}
SECRET_TALKS = {"ehlo_tls": "EHLO", "login": "AUTH", "mail": "MAIL", "rcpt": "RCPT", "data": "."}


@pytest.mark.parametrize("stage", [*TALKS, *SECRET_TALKS])
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (hold, {"timeout"}),
        (tarpit, {"timeout"}),
        (hang_up, {"eof", "reset"}),
        (b"HTTP/1.1 400 Bad Request\r\n", {"not_smtp"}),
        (b"\x00\xff\x1b[2J\r\n", {"not_smtp"}),
        (b"999 what\r\n", {"not_smtp"}),
        (b"x\r\n", {"not_smtp"}),
        (flood(b"250-more\r\n"), {"line_too_long"}),
        (flood(b"2"), {"line_too_long"}),
    ],
    ids=["silent", "tarpit", "hangs-up", "http", "binary", "code-999", "short", "endless-reply", "endless-line"],
)
def test_bad_behaviour_at_any_step_is_a_row_in_time(stage: str, act: Act, words: set[str]) -> None:
    clear = {TALKS[stage]: act} if stage in TALKS else {}
    inside = {SECRET_TALKS[stage]: act} if stage in SECRET_TALKS else {}
    began = time.monotonic()
    with server(clear, inside) as (port, _):
        steps = rehearse(port, to=USER, timeout=0.5)
    assert time.monotonic() - began < 2
    row = last(steps)
    assert (row["stage"], row["outcome"]) == (stage, "failed") and row["failure"] in words
    assert steps["stage"].iloc[-1] == stage, "after a lost connection there is no QUIT"
    assert row["took_s"] < 1.2 and row["category"] == "connection"
    assert steps["text"].str.len().max() <= 2000 and not steps["text"].str.contains("[\x00-\x1f]").any()


def test_the_whole_ends_in_its_time_though_no_step_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(reply: bytes) -> Act:
        def act(peer: Peer) -> None:
            time.sleep(0.3)
            peer.say(reply)

        return act

    module = import_module("deliverkit.rehearse")
    monkeypatch.setattr(module, "limits_of", lambda timeout: limits_of(timeout) | {"total": 1.0})
    with server({"": slow(b"220 mx\r\n")}, {verb: slow(INSIDE[verb]) for verb in ("EHLO", "AUTH", "MAIL")}) as (
        port,
        _,
    ):
        steps = rehearse(port, to=USER, timeout=5)
    row = last(steps)
    assert (row["stage"], row["failure"]) == ("mail", "timeout") and 0.9 < steps["took_s"].sum() < 1.2


def test_last_words_without_a_line_end_are_heard() -> None:
    def last_words(peer: Peer) -> None:
        peer.say(b"554 5.7.1 go away")
        hang_up(peer)

    with server({"": last_words}) as (port, _):
        row = last(rehearse(port))
    assert (row["reply_code"], row["text"]) == (554, "554 5.7.1 go away")


TOKEN = "ya29.a0Af_H6SMBx-0123456789"
ECHOES = {
    "password": PASSWORD,
    "in upper case": PASSWORD.upper(),
    "base64": coded(PASSWORD),
    "plain": f"unknown command AUTH PLAIN {coded(chr(0) + USER + chr(0) + PASSWORD)}",
    "cut": f"line too long: AUTH PLAIN {coded(chr(0) + USER + chr(0) + PASSWORD)[:28]}",
    "token": f"Bearer {TOKEN}",
    "xoauth2": coded(f"user={USER}\1auth=Bearer {TOKEN}\1\1"),
    "base64 of the token": coded(TOKEN),
}


@pytest.mark.parametrize("stage", ["AUTH", "MAIL", "."])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_credential_in_an_answer_is_not_shown(echo: str, stage: str) -> None:
    with server(inside={stage: f"550 5.7.0 bad: {ECHOES[echo]}; sorry\r\n".encode()}) as (port, _):
        steps = rehearse(port, to=USER, password=PASSWORD, token=TOKEN, mechanism="XOAUTH2" if "x" in echo else "PLAIN")
    text = last(steps)["text"]
    assert "[credential]" in text and text.startswith("550 5.7.0 ") and text.endswith("; sorry")
    shown = (steps.to_csv() + repr(steps) + steps.to_html()).lower()
    for secret in (PASSWORD, TOKEN, coded(PASSWORD), coded(TOKEN), ECHOES[echo][-12:]):
        assert secret.lower() not in shown


def test_a_credential_in_the_error_of_xoauth2_is_not_shown() -> None:
    def auth(peer: Peer) -> None:
        peer.say(f"334 {coded(json.dumps({'token': TOKEN}))}\r\n".encode())
        peer.line()
        peer.say(b"535 5.7.8 no\r\n")

    with server(inside={"AUTH": auth}) as (port, _):
        assert last(rehearse(port, token=TOKEN))["text"] == '535 5.7.8 no {"token": "[credential]"}'


def test_a_short_password_hides_itself_and_leaves_the_text_readable() -> None:
    with server(inside={"AUTH": b"535 5.7.8 please try p again, not 'p'\r\n"}) as (port, _):
        text = last(rehearse(port, password="p"))["text"]
    assert text == "535 5.7.8 please try [credential] again, not '[credential]'"


def test_a_password_that_looks_like_a_reply_code_hides_no_code() -> None:
    with server(inside={"AUTH": b"535 5.7.8 no\r\n"}) as (port, _):
        row = last(rehearse(port, password="535"))
    assert (row["reply_code"], row["text"]) == (535, "[credential] 5.7.8 no")


def test_the_password_is_in_no_log_no_error_and_no_local(caplog: pytest.LogCaptureFixture,
                                                         capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def broken(name: str) -> Answer:
        raise RuntimeError("the resolver broke")

    caplog.set_level(logging.DEBUG)
    with server() as (port, _):
        rehearse(port, to=USER)
    try:
        dk.rehearse(HOST, user=USER, password=PASSWORD, token=TOKEN, resolver=broken)
    except RuntimeError as problem:
        frames = traceback.TracebackException.from_exception(problem, capture_locals=True)
        shown = "".join(
            line for frame in frames.stack if "/deliverkit/" in frame.filename for line in (frame.locals or {}).values()
        )
        assert "the resolver broke" in traceback.format_exc() and "_Session" in shown
        shown += traceback.format_exc()
    printed = capfd.readouterr()
    for secret in (PASSWORD, TOKEN, coded(f"\0{USER}\0{PASSWORD}"), coded(PASSWORD)):
        assert secret not in shown + caplog.text + printed.out + printed.err


# What cannot be run


@pytest.mark.parametrize(
    "how",
    [
        {"to": "a@example.com, b@example.com"},
        {"to": ["a@example.com", "b@example.com"]},
        {"to": "a@example.com\r\nRCPT TO:<b@example.com>"},
        {"to": "a@example.com>\r\n"},
        {"to": "a b@example.com"},
        {"to": "<a@example.com>"},
        {"to": "example.com"},
        {"to": "a..b@example.com"},
        {"to": "a@"},
        {"to": "grün@example.com"},
        {"to": "x" * 65 + "@example.com"},
        {"to": ""},
        {"sender": "a@example.com\nDATA"},
        {"sender": "nobody", "to": "a@example.com"},
        {"user": "u\r\nMAIL"},
        {"user": None},
        {"user": ""},
        {"password": ""},
        {"password": None},
        {"password": "hunter2\r\nx"},
        {"password": b"hunter2"},
        {"password": 12345678},
        {"token": ""},
        {"password": None, "mechanism": "XOAUTH2"},
        {"mechanism": "CRAM-MD5"},
        {"mechanism": "PLAIN\r\n"},
        {"user": None, "password": None, "mechanism": "PLAIN"},
        {"security": "none"},
        {"security": "cleartext"},
        {"ehlo_name": "a\r\nb"},
        {"ehlo_name": "a b"},
        {"ehlo_name": "grün"},
        {"vantage": "a\nb"},
        {"trust": "/nowhere/ca.pem"},
        {"trust": "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"},
        {"trust": ""},
        {"timeout": 0},
        {"connect_to": "nonsense"},
        {"server": ["a.example", "b.example"]},
        {"server": "mx.example\r\nQUIT"},
        {"server": "a b"},
        {"port": 0},
        {"port": [465, 587]},
    ],
    ids=repr,
)
def test_wrong_arguments_are_named_before_anything_is_said(how: dict[str, Any]) -> None:
    asked = {"server": HOST, "port": 587, "user": USER, "password": "hunter2hunter2", "timeout": 1} | how
    with pytest.raises(TargetError) as wrong:
        dk.rehearse(**{"resolver": lambda name: pytest.fail("it was looked up"), **asked})
    assert "hunter2" not in str(wrong.value) and "12345678" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize("word", ["dns_nxdomain", "dns_timeout"])
def test_a_name_without_an_address_is_a_row(word: str) -> None:
    steps = dk.rehearse("nowhere.example", resolver=lambda name: Answer((), word))
    assert steps[["stage", "step", "outcome", "failure"]].to_numpy().tolist() == [["dns", "connect", "failed", word]]
    assert steps["address"].isna().all() and steps["host"].tolist() == ["nowhere.example"]


def test_a_name_is_looked_up_and_its_address_noted() -> None:
    with server() as (port, _):
        steps = rehearse(port, connect_to=None, resolver=lambda name: Answer(("127.0.0.1",)), timeout=1)
    assert steps["stage"].tolist()[:2] == ["dns", "connect"] and last(steps)["address"] == "127.0.0.1"


# Postfix, with the logins of Dovecot

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/lib
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = mx.example
mydestination =
local_recipient_maps =
alias_maps =
mynetworks =
inet_interfaces = loopback-only
inet_protocols = ipv4
virtual_mailbox_domains = example.com
virtual_mailbox_base = {folder}/boxes
virtual_mailbox_maps = inline:{{ me@example.com=me }}
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_tls_chain_files = {folder}/server.pem
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {folder}/auth
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
"""
MASTER = """
127.0.0.1:{submission} inet n - n - - smtpd -o smtpd_tls_security_level=may -o syslog_name=postfix/submission
127.0.0.1:{submissions} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes -o syslog_name=postfix/submissions
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
proxymap  unix - - n - - proxymap
virtual   unix - n n - - virtual
error     unix - - n - - error
retry     unix - - n - - error
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""
DOVECOT = """
base_dir = {folder}/dovecot
state_dir = {folder}/dovecot
log_path = {folder}/dovecot.log
protocols =
ssl = no
auth_mechanisms = plain login xoauth2
auth_failure_delay = 0
passdb {{
  driver = passwd-file
  mechanisms = plain login
  args = {folder}/users
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2
  args = {folder}/oauth2
}}
service auth {{
  unix_listener {folder}/auth {{
    mode = 0666
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""
OAUTH2 = """
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={folder}/keys/
username_attribute = sub
"""
KEY = b"a key that only this test knows."


def bearer(name: str, key: bytes = KEY) -> str:
    """A signed token that Dovecot can judge by itself."""
    claims = {"sub": name, "iat": int(time.time()) - 5, "exp": int(time.time()) + 600}
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT", "kid": "default"}, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mark = base64.urlsafe_b64encode(hmac.new(key, signed, hashlib.sha256).digest()).rstrip(b"=")
    return (signed + b"." + mark).decode()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@pytest.fixture(scope="module")
def postfix(need: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A submission server as people run it: `ports` by the port it stands for, and its `folder`."""
    programs = need("postfix", "postfix"), need("dovecot", "dovecot-core")
    if os.geteuid() != 0:
        pytest.skip("Postfix and Dovecot start as root only")
    folder = tmp_path_factory.mktemp("postfix")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)  # Postfix's own users must get there
    for name in ("queue", "lib", "boxes", "conf", "dovecot", "keys/default/HS256"):
        (folder / name).mkdir(parents=True)
    subprocess.run(["chown", "postfix", folder / "lib"], check=True)
    (folder / "boxes").chmod(0o777)
    ports = dict(zip((587, 465), free_ports(2), strict=True))
    files = {"conf/main.cf": MAIN, "dovecot.conf": DOVECOT, "oauth2": OAUTH2}
    for name, text in files.items():
        (folder / name).write_text(text.format(folder=folder))
    (folder / "conf/master.cf").write_text(MASTER.format(submission=ports[587], submissions=ports[465]))
    (folder / "server.pem").write_text(PEM)
    (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    (folder / "keys/default/HS256/default").write_text(base64.b64encode(KEY).decode())
    logins = subprocess.Popen([programs[1], "-F", "-c", folder / "dovecot.conf"])
    try:
        subprocess.run([programs[0], "-c", folder / "conf", "start"], check=True, capture_output=True)
        until(lambda: (folder / "auth").exists() and "starting" in log_of(folder))
        yield {"ports": ports, "folder": folder}
    finally:
        subprocess.run([programs[0], "-c", folder / "conf", "stop"], check=False, capture_output=True)
        logins.terminate()
        logins.wait(20)


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "mail.log", folder / "dovecot.log") if path.exists())


def until(true: Callable[[], object], seconds: float = 10) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come in time"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="no Postfix there")
class TestPostfix:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2"])
    @pytest.mark.parametrize("port", [587, 465])
    def test_each_login_brings_a_message_into_the_mailbox(self, postfix: dict[str, Any], port: int,
                                                          mechanism: str) -> None:  # fmt: skip
        secret = {"token": bearer(USER)} if mechanism == "XOAUTH2" else {"password": PASSWORD}
        steps = rehearse(postfix["ports"][port], port, mechanism=mechanism, to=USER, timeout=10, **secret)
        row = last(steps)
        assert (row["stage"], row["outcome"], row["reply_code"]) == ("data", "passed", 250)
        assert steps["stage"].tolist() == [*(IMPLICIT if port == 465 else STARTTLS), "login", *MESSAGE, "quit"]
        assert steps.set_index("stage")["mechanism"]["login"] == mechanism
        box = postfix["folder"] / "boxes" / "me"
        until(lambda: box.exists() and row["message_id"] in box.read_text())
        assert box.read_text().count(f"Message-ID: {row['message_id']}") == 1
        assert f"sasl_method={mechanism}, sasl_username={USER}" in log_of(postfix["folder"])

    @pytest.mark.parametrize("port", [587, 465])
    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2"])
    def test_a_wrong_secret_is_refused_with_535(self, postfix: dict[str, Any], port: int, mechanism: str) -> None:
        wrong = bearer(USER, b"some other key that is not known")
        secret = {"token": wrong} if mechanism == "XOAUTH2" else {"password": "wrong-wrong-wrong"}
        steps = rehearse(postfix["ports"][port], port, mechanism=mechanism, to=USER, timeout=10, **secret)
        row = last(steps)
        assert (row["stage"], row["reply_code"], row["status_code"]) == ("login", 535, "5.7.8")
        assert (row["category"], row["blocked"], row["step"]) == ("relay_or_login", True, "rules")
        assert steps["stage"].iloc[-1] == "quit" and "mail" not in set(steps["stage"])
        assert ('"status":' in row["text"]) == (mechanism == "XOAUTH2")
        assert "wrong-wrong" not in steps.to_csv() and wrong not in steps.to_csv()

    def test_no_login_is_offered_or_taken_before_tls(self, postfix: dict[str, Any]) -> None:
        steps = rehearse(postfix["ports"][587], timeout=10).set_index("stage")
        assert "AUTH" not in steps["text"]["ehlo"]
        assert "250-AUTH PLAIN LOGIN XOAUTH2 " in steps["text"]["ehlo_tls"]
        with socket.create_connection(("127.0.0.1", postfix["ports"][587]), 5) as sock, sock.makefile("rwb") as line:
            line.readline()
            line.write(b"EHLO me.example\r\nAUTH PLAIN AGEAYg==\r\nQUIT\r\n")
            line.flush()
            assert re.search(rb"^(503|530|538) ", line.read(), re.MULTILINE)

    def test_without_a_login_the_relay_is_closed(self, postfix: dict[str, Any]) -> None:
        how = {"user": None, "password": None, "sender": USER, "to": "you@elsewhere.example", "timeout": 10}
        row = last(rehearse(postfix["ports"][587], **how))
        assert (row["stage"], row["step"], row["category"]) == ("rcpt", "relay", "relay_or_login")

    def test_the_password_is_nowhere_but_in_the_file_of_users(self, postfix: dict[str, Any]) -> None:
        steps = rehearse(postfix["ports"][587], to=USER, timeout=10)
        until(lambda: "status=sent" in log_of(postfix["folder"]))
        shown = steps.to_csv() + repr(steps) + str(steps.attrs) + log_of(postfix["folder"])
        shown += (postfix["folder"] / "boxes" / "me").read_text()
        assert USER in shown
        for secret in (PASSWORD, coded(PASSWORD), coded(f"\0{USER}\0{PASSWORD}")):
            assert secret not in shown
