"""MTA-STS policies, TLSA records and autoconfig files, read byte by byte."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256, sha512
from itertools import product
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from deliverkit.policies import StsPolicy, outgoing_servers, sts_id, sts_matches, sts_policy, tlsa_verdict
from tests.servers.authority import certificate

GOOD = "version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmax_age: 604800\n"


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("\n", "\r\n"), GOOD.rstrip(), f"future: x\n\n{GOOD}"])
def test_a_policy_is_read_whatever_ends_its_lines(text: str) -> None:
    assert sts_policy(text) == StsPolicy("enforce", ("mail.example.com", "*.example.net"), 604800)


def test_the_first_of_a_field_counts() -> None:
    assert sts_policy(f"{GOOD}mode: none\nmax_age: 1\nversion: STSv2\n") == sts_policy(GOOD)


def test_a_policy_of_mode_none_needs_no_mx() -> None:
    assert sts_policy("version: STSv1\nmode: none\nmax_age: 86400") == StsPolicy("none", (), 86400)


@pytest.mark.parametrize(
    ("was", "now", "word"),
    [
        ("version: STSv1\n", "", "sts_version"),
        ("STSv1", "STSv2", "sts_version"),
        ("enforce", "Enforce", "sts_mode"),
        ("mode: enforce\n", "", "sts_mode"),
        ("604800", "a week", "sts_max_age"),
        ("604800", "-1", "sts_max_age"),
        ("604800", "٣", "sts_max_age"),
        ("604800", "1" * 11, "sts_max_age"),
        ("mail.example.com", "=cmd()", "sts_mx"),
        ("mail.example.com", ".example.com", "sts_mx"),
        ("mail.example.com", "a.*.example.com", "sts_mx"),
        ("mx: mail.example.com\nmx: *.example.net\n", "", "sts_mx"),
        ("mode", "<html>", "sts_mode"),
        ("mx:", "mx", "sts_syntax"),
        (GOOD, "", "sts_version"),
        (GOOD, "\x00\ud800" * 9999, "sts_syntax"),
    ],
)
def test_what_is_wrong_with_a_policy_has_a_word(was: str, now: str, word: str) -> None:
    assert sts_policy(GOOD.replace(was, now)) == StsPolicy(failure=word)


@pytest.mark.parametrize(
    ("host", "matched"),
    [
        ("mail.example.com", True),
        ("MAIL.Example.COM.", True),
        ("other.example.com", False),
        ("mx.example.net", True),
        ("a.mx.example.net", False),
        ("example.net", False),
        ("mx.example.net.evil.example", False),
        ("", False),
    ],
)
def test_a_wildcard_stands_for_one_label(host: str, matched: bool) -> None:
    assert sts_matches(sts_policy(GOOD), host) is matched


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["v=STSv1; id=20260101T00;"], "20260101T00"),
        (["v=STSv1;id=a"], "a"),
        (["v=STSv1; ext=x; id=a"], "a"),
        (["v=spf1 -all", "v=STSv1; id=a;"], "a"),
        (["v=STSv1; id=a;", "v=STSv1; id=b;"], None),
        (["v=STSv1; id=a b"], None),
        (["v=STSv1; id=" + "a" * 33], None),
        (["v=STSv1"], None),
        (["v=STSv10; id=a"], None),
        ([], None),
    ],
)
def test_there_is_a_policy_if_exactly_one_record_says_so(texts: list[str], found: str | None) -> None:
    assert sts_id(texts) == found


ROOT = certificate("Root", ca=True)
MIDDLE = certificate("Middle", by=ROOT, ca=True)
LEAF = certificate("Leaf", "mx.example.com", by=MIDDLE)
STRANGER = certificate("Root", ca=True)  # another key under the same name
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (f"3 0 0 {LEAF.der.hex()}", "ok"),
        (f"3 0 1 {sha256(LEAF.der).hexdigest()}", "ok"),
        (f"3 0 2 {sha512(LEAF.der).hexdigest()}", "ok"),
        (f"3 1 0 {LEAF.public_key.hex()}", "ok"),
        (f"3 1 1 {sha256(LEAF.public_key).hexdigest().upper()}", "ok"),
        (f"3 1 2 {sha512(LEAF.public_key).hexdigest()}", "ok"),
        (f"3 1 1 {sha256(LEAF.der).hexdigest()}", "mismatch"),
        (f"3 1 1 {sha256(MIDDLE.public_key).hexdigest()}", "mismatch"),
        (f"2 0 1 {sha256(ROOT.der).hexdigest()}", "ok"),
        (f"2 1 1 {sha256(MIDDLE.public_key).hexdigest()}", "ok"),
        (f"2 1 1 {sha256(LEAF.public_key).hexdigest()}", "mismatch"),
        (f"2 0 1 {sha256(STRANGER.der).hexdigest()}", "mismatch"),
        (f"0 0 1 {sha256(ROOT.der).hexdigest()}", "none"),
        (f"1 1 1 {sha256(LEAF.public_key).hexdigest()}", "none"),
        (f"3 2 1 {sha256(LEAF.der).hexdigest()}", "none"),
        ("3 1 1 abc", "none"),
        ("3 1 9 00", "none"),
        ("3 1 1", "none"),
        ("", "none"),
    ],
)
def test_a_record_matches_the_certificate_or_not(record: str, verdict: str) -> None:
    assert tlsa_verdict([record], True, CHAIN) == verdict


def test_one_record_that_matches_is_enough() -> None:
    records = ["3 1 1 " + "00" * 32, f"1 0 1 {'00' * 32}", f"3 1 1 {sha256(LEAF.public_key).hexdigest()}"]
    assert tlsa_verdict(records, True, CHAIN) == "ok" and tlsa_verdict(records[:2], True, CHAIN) == "mismatch"


@pytest.mark.parametrize("secure", [False, None])
def test_records_that_nothing_vouches_for_are_unsigned(secure: bool | None) -> None:
    assert tlsa_verdict([f"3 0 1 {sha256(LEAF.der).hexdigest()}"], secure, CHAIN) == "unsigned"
    assert tlsa_verdict([], secure, CHAIN) == "none"


def test_an_anchor_counts_only_where_it_leads_down_to_the_leaf() -> None:
    anchor = [f"2 0 1 {sha256(ROOT.der).hexdigest()}"]
    assert tlsa_verdict(anchor, True, [LEAF.der, ROOT.der, MIDDLE.der]) == "ok"  # in any order
    assert tlsa_verdict(anchor, True, [LEAF.der, ROOT.der]) == "mismatch"  # a link is missing
    assert tlsa_verdict(anchor, True, [certificate("Mine", by=STRANGER).der, ROOT.der]) == "mismatch"  # a name only
    below = certificate("Below", "mx.example.com", by=LEAF)
    assert tlsa_verdict(anchor, True, [below.der, *CHAIN]) == "mismatch"  # the leaf is no CA
    late = certificate("Late", by=ROOT, days=-1)
    assert tlsa_verdict(anchor, True, [late.der, ROOT.der]) == "mismatch"
    assert tlsa_verdict([f"3 0 1 {sha256(late.der).hexdigest()}"], True, [late.der]) == "ok"  # dates are not asked


def test_a_leaf_of_another_name_is_good_for_its_own_record_only() -> None:
    records = [f"{usage} 0 1 {sha256(pair.der).hexdigest()}" for usage, pair in ((3, LEAF), (2, ROOT))]
    assert [tlsa_verdict([record], True, CHAIN, named=False) for record in records] == ["ok", "mismatch"]


def test_a_chain_signed_across_has_two_ways_up() -> None:
    other = certificate("Other root", ca=True)
    made = x509.CertificateBuilder(other.cert.subject, MIDDLE.cert.subject, MIDDLE.cert.public_key(), 7)
    made = made.not_valid_before(ROOT.cert.not_valid_before_utc).not_valid_after(ROOT.cert.not_valid_after_utc)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    across = made.sign(other.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    for root in (ROOT, other):
        anchor = [f"2 0 1 {sha256(root.der).hexdigest()}"]
        assert tlsa_verdict(anchor, True, [*CHAIN, across, other.der]) == "ok"


@pytest.mark.parametrize("chain", [[], [b""], [b"\x30\x80" + bytes(99)], [LEAF.der[:-1], b"x" * 9999]])
def test_certificates_that_cannot_be_read_are_a_mismatch(chain: list[bytes]) -> None:
    records = [f"{usage} {part} 1 {'00' * 32}" for usage in (2, 3) for part in (0, 1)]
    assert tlsa_verdict(records, True, chain) == "mismatch"


FILE = """<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment -->
<clientConfig version="1.1"><emailProvider id="example.com">
  <incomingServer type="imap"><hostname>imap.example.com</hostname><port>993</port></incomingServer>
  <outgoingServer type="smtp">
    <hostname>smtp.%EMAILDOMAIN%</hostname><port>465</port><socketType>SSL</socketType>
  </outgoingServer>
  <outgoingServer type="smtp">
    <hostname> Relay.example.net </hostname><port>587</port><socketType>STARTTLS</socketType>
  </outgoingServer>
  <outgoingServer type="smtp">
    <hostname>old.example.net</hostname><port>2525</port><socketType>plain</socketType>
  </outgoingServer>
</emailProvider></clientConfig>"""


def test_an_autoconfig_file_names_its_outgoing_servers_in_order() -> None:
    assert outgoing_servers(FILE.encode("utf-8-sig"), "example.com") == (
        ("smtp.example.com", 465, "implicit"),
        ("relay.example.net", 587, "starttls"),
        ("old.example.net", 2525, "cleartext"),
    )


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("smtp.%EMAILDOMAIN%", "%EMAILLOCALPART%.example.com"),
        ("smtp.%EMAILDOMAIN%", "=HYPERLINK(1)"),
        ("smtp.%EMAILDOMAIN%", ""),
        (">465<", ">0<"),
        (">465<", ">65536<"),
        (">465<", ">４６５<"),
        (">SSL<", ">quantum<"),
        ('type="smtp">\n    <hostname>smtp', 'type="exchange">\n    <hostname>smtp'),
    ],
)
def test_a_server_that_is_not_whole_is_left_out(was: str, now: str) -> None:
    found = outgoing_servers(FILE.replace(was, now).encode(), "example.com")
    assert [host for host, *_ in found] == ["relay.example.net", "old.example.net"]


BOMB = '<!DOCTYPE c [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "data",
    [
        FILE.replace("<!-- a comment -->", BOMB).encode(),
        FILE.replace("<!-- a comment -->", "<!DOCTYPE html>").encode(),
        FILE.encode("utf-16"),
        FILE[:200].encode(),
        b"\xff\xfe<",
        b"",
        b"<a>" * 20000,
        b"<a>" * 20000 + b"</a>" * 20000,
    ],
)
def test_nothing_comes_of_a_file_that_is_not_plain_xml(data: bytes) -> None:
    assert outgoing_servers(data, "example.com") == ()


def test_a_file_without_end_gives_sixteen_servers() -> None:
    one = FILE[FILE.index("  <outgoingServer") : FILE.index("  </outgoingServer>")] + "</outgoingServer>"
    assert len(outgoing_servers(f"<a>{one * 100}</a>".encode(), "example.com")) == 16


@given(st.binary(max_size=300), st.text(max_size=300), st.lists(st.text(max_size=30), max_size=3))
def test_nothing_that_strangers_publish_raises(data: bytes, text: str, many: list[str]) -> None:
    assert isinstance(outgoing_servers(data + FILE.encode() + data, text), tuple)
    assert sts_policy(text).failure or sts_policy(text).mode
    assert sts_policy(GOOD + text).mode in ("enforce", None) and sts_id(many) is None
    assert tlsa_verdict([*many, f"2 0 1 {'00' * 32}"], True, [data, LEAF.der, data]) == "mismatch"


def test_openssl_agrees_about_every_record(need: Callable[[str, str], str], tmp_path: Path) -> None:
    """Its s_client is given the same records against a server with the same chain (RFC 7671, its own reading)."""
    (tmp_path / "chain.pem").write_text(LEAF.pem + MIDDLE.public + ROOT.public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem")

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                with suppress(ssl.SSLError), context.wrap_socket(listener.accept()[0], server_side=True) as tls:
                    tls.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, args=(listener,), daemon=True).start()
        ask = [need("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"]
        ask += ["-dane_tlsa_domain", "mx.example.com", "-dane_tlsa_rrdata"]
        for record, pair, selector in product(("2", "3"), (LEAF, MIDDLE, ROOT, STRANGER), ("0", "1")):
            data = sha256(pair.public_key if selector == "1" else pair.der).hexdigest()
            told = subprocess.run([*ask, f"{record} {selector} 1 {data}"], input=b"", capture_output=True, check=False)
            agreed = "ok" if b"Verification: OK" in told.stdout else "mismatch"
            assert tlsa_verdict([f"{record} {selector} 1 {data}"], True, CHAIN) == agreed, told.stdout.decode()
        listener.shutdown(socket.SHUT_RDWR)
