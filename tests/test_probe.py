"""The dialogue byte by byte, without a socket, and what is said of certificates."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from deliverkit import probe as module  # noqa: F401 - the name of the function must not hide the module
from deliverkit.probe import Dialogue, group_of, judge, safe, tls_word

TLS = {"tls_version": "TLSv1.3", "cert_problem": None}
EHLO = b"250-mx.example\r\n250-SIZE 1000\r\n250-STARTTLS\r\n250 8BITMIME\r\n"
INSIDE = b"250-mx.example\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n"
OPEN = [b"220 mx.example ESMTP\r\n", EHLO, b"220 go\r\n", TLS, INSIDE, b"221 bye\r\n"]


NO_TLS = b"500 5.5.1 unknown\r\n"


def talk(
    events: Sequence[Any], *, implicit: bool = False, cut: int = 10_000, check_auth: bool = False
) -> tuple[dict[str, Any], list[bytes]]:
    """Run a dialogue against scripted events (bytes in chunks of `cut`); its row and what it said, in order.

    A server that has nothing left to say is silent: the deadline passes.
    """
    dialogue = Dialogue(implicit=implicit, ehlo_name="me.example", now=0.0, check_auth=check_auth)
    run, said, feed, now = dialogue.run(), [], [], 0.0
    script = list(events)
    try:
        ask = next(run)
        while True:
            now += 1
            if ask.what == "send":
                said.append(ask.data)
                ask = run.send((now, None))
                continue
            if not feed and script:
                part = script.pop(0)
                whole = isinstance(part, bytes) and len(part) > 0
                feed = [part[i : i + cut] for i in range(0, len(part), cut)] if whole else [part]
            ask = run.send((now, feed.pop(0) if feed else "timeout"))
    except StopIteration:
        return dialogue.row, said


def words(events: Sequence[Any], **how: Any) -> tuple[str, str, str | None]:
    row, _ = talk(events, **how)
    return row["reached"], row["verdict"], row["failure"]


def test_a_whole_session_says_ehlo_starttls_ehlo_quit_and_nothing_else() -> None:
    row, said = talk(OPEN)
    assert said == [b"EHLO me.example\r\n", b"STARTTLS\r\n", b"EHLO me.example\r\n", b"QUIT\r\n"]
    assert (row["reached"], row["verdict"], row["failure"], row["mode"]) == ("done", "open", None, "starttls")
    assert (row["features"], row["auth_after_tls"]) == ("8BITMIME SIZE STARTTLS", "LOGIN PLAIN")
    assert row["auth_before_tls"] is None and row["tls_version"] == "TLSv1.3"


def test_an_implicit_session_starts_with_tls_and_has_its_features_inside() -> None:
    row, said = talk([TLS, b"220 mx\r\n", INSIDE, b"221 bye\r\n"], implicit=True)
    assert said == [b"EHLO me.example\r\n", b"QUIT\r\n"]
    assert (row["mode"], row["features"], row["auth_after_tls"]) == ("implicit", "8BITMIME AUTH", "LOGIN PLAIN")


CASES: dict[str, tuple[list[Any], tuple[str, str, str | None]]] = {
    "silence": ([], ("banner", "accepts_no_banner", "banner_timeout")),
    "half a greeting": ([b"220-mx"], ("banner", "accepts_no_banner", "banner_slow")),
    "a greeting without its last line": ([b"220-mx\r\n"], ("banner", "accepts_no_banner", "banner_slow")),
    "eof": (["eof"], ("banner", "closed_after_accept", "eof")),
    "reset": (["reset"], ("banner", "closed_after_accept", "reset")),
    "421": ([b"421 4.3.2 closing\r\n"], ("banner", "deferred", "smtp_4xx")),
    "too many": ([b"421 Too many connections\r\n"], ("banner", "deferred", "rate_limited")),
    "4.7.0": ([b"421 4.7.0 slow down\r\n"], ("banner", "deferred", "rate_limited")),
    "greylisted": ([b"450 4.7.1 try later\r\n"], ("banner", "deferred", "greylisted")),
    "554": ([b"554 5.7.1 no\r\n"], ("banner", "rejected", "smtp_5xx")),
    "554 without line end": ([b"554 no", "eof"], ("banner", "rejected", "smtp_5xx")),
    "listed": ([b"554 5.7.1 blocked by zen.spamhaus.org\r\n"], ("banner", "rejected", "blocklisted")),
    "listed somewhere": (
        [b"554 5.7.1 Client host blocked using bl.example\r\n"],
        ("banner", "rejected", "blocklisted"),
    ),
    "http": ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], ("banner", "not_smtp", "not_smtp")),
    "half of http": ([b"HTTP/1.1", "eof"], ("banner", "not_smtp", "not_smtp")),
    "nntp": ([b"200 news\r\n"], ("banner", "not_smtp", "not_smtp")),
    "tls alert": ([b"\x15\x03\x01\x00\x02\x02\x0a", "eof"], ("banner", "not_smtp", "wants_tls")),
    "a line without end": ([b"220 " + b"x" * 9000], ("banner", "not_smtp", "line_too_long")),
    "lines without end": ([b"220-x\r\n" * 2000], ("banner", "not_smtp", "line_too_long")),
    "ehlo 550": ([b"220 mx\r\n", b"550 5.7.1 bad HELO\r\n"], ("ehlo", "rejected", "smtp_5xx")),
    "ehlo silence": ([b"220 mx\r\n"], ("ehlo", "deferred", "total_timeout")),
    "ehlo eof": ([b"220 mx\r\n", "eof"], ("ehlo", "closed_after_accept", "eof")),
    "helo": ([b"220 mx\r\n", b"502 no\r\n", b"250 mx\r\n"], ("done", "open_no_tls", None)),
    "no starttls": ([b"220 mx\r\n", INSIDE, NO_TLS], ("done", "open_no_tls", None)),
    "no starttls, silence": ([b"220 mx\r\n", INSIDE], ("done", "open_no_tls", None)),
    "no starttls, eof": ([b"220 mx\r\n", INSIDE, "eof"], ("done", "open_no_tls", None)),
    "no starttls, 421": ([b"220 mx\r\n", INSIDE, b"421 bye\r\n"], ("done", "open_no_tls", None)),
    "offer taken out": ([b"220 mx\r\n", INSIDE, b"220 go\r\n", TLS], ("ehlo", "tampered", "starttls_stripped")),
    "masked": ([b"220 " + b"*" * 30 + b"\r\n", INSIDE], ("ehlo", "tampered", "starttls_stripped")),
    "masked word": ([b"220 mx\r\n", b"250-mx\r\n250 XXXXXXXA\r\n"], ("ehlo", "tampered", "starttls_stripped")),
    "454": ([b"220 mx\r\n", EHLO, b"454 no\r\n"], ("tls", "open_no_tls", "starttls_refused")),
    "starttls silence": ([b"220 mx\r\n", EHLO], ("starttls", "open_tls_broken", "tls_timeout")),
    "starttls eof": ([b"220 mx\r\n", EHLO, "eof"], ("starttls", "open_tls_broken", "eof")),
    "tls stall": ([b"220 mx\r\n", EHLO, b"220 go\r\n"], ("tls", "open_tls_broken", "tls_timeout")),
    "tls garbage": ([b"220 mx\r\n", EHLO, b"220 go\r\nno tls\r\n"], ("tls", "open_tls_broken", "tls_protocol")),
    "tls garbage late": ([b"220 mx\r\n", EHLO, b"220 go\r\n", b"no\r\n"], ("tls", "open_tls_broken", "tls_protocol")),
    "tls alert after all": ([*OPEN[:4], "tls_alert_unknown_ca"], ("tls", "open_tls_broken", "tls_alert_unknown_ca")),
    "second ehlo eof": ([*OPEN[:4], "eof"], ("tls", "open_tls_broken", "eof")),
    "second ehlo 421": ([*OPEN[:4], b"421 4.3.2 no\r\n"], ("tls", "deferred", "smtp_4xx")),
}
IMPLICIT: dict[str, tuple[list[Any], tuple[str, str, str | None]]] = {
    "silence": ([], ("tls", "accepts_no_banner", "tls_timeout")),
    "eof": (["eof"], ("tls", "closed_after_accept", "reset")),
    "reset": (["reset"], ("tls", "closed_after_accept", "reset")),
    "plain": ([b"220 mx ESMTP\r\n"], ("tls", "open_tls_broken", "tls_protocol")),
    "http": ([b"HTTP/1.1 400 Bad Request\r\n"], ("tls", "not_smtp", "tls_protocol")),
    "old": (["tls_version"], ("tls", "open_tls_broken", "tls_version")),
    "silence inside": ([TLS], ("banner", "accepts_no_banner", "banner_timeout")),
    "554 inside": ([TLS, b"554 5.7.1 no\r\n"], ("banner", "rejected", "smtp_5xx")),
    "expired": ([TLS | {"cert_problem": "expired"}, b"220 mx\r\n", INSIDE], ("done", "open", "cert_expired")),
}


@pytest.mark.parametrize("name", CASES)
def test_each_ending_has_its_words(name: str) -> None:
    events, expected = CASES[name]
    assert words(events) == expected


@pytest.mark.parametrize("name", IMPLICIT)
def test_each_ending_of_an_implicit_port_has_its_words(name: str) -> None:
    events, expected = IMPLICIT[name]
    assert words(events, implicit=True) == expected


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("_s")}


@pytest.mark.parametrize("name", [*CASES, "open"])
@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_how_the_bytes_are_cut_changes_nothing(name: str, cut: int) -> None:
    events = OPEN if name == "open" else CASES[name][0]
    (whole, said), (parts, said_too) = talk(events), talk(events, cut=cut)
    assert timeless(whole) == timeless(parts) and said == said_too


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.booleans(), st.integers(1, 9))
def test_any_bytes_end_in_a_verdict_that_does_not_depend_on_cuts(stuff: list[bytes], implicit: bool, cut: int) -> None:
    events = [*([TLS] if implicit else []), b"".join(stuff) or "eof", "eof"]
    whole, parts = talk(events, implicit=implicit)[0], talk(events, implicit=implicit, cut=cut)[0]
    assert timeless(whole) == timeless(parts)
    assert whole["verdict"] and not any(ord(c) < 32 for c in whole.get("banner") or "")


@given(st.lists(st.integers(1, len(b"".join(OPEN[:2]))), max_size=8))
def test_any_cuts_of_a_greeting_give_the_same_row(cuts: list[int]) -> None:
    greeting = b"220-mx.example ESMTP\r\n220 ready\n"
    marks = sorted({0, *(c for c in cuts if c < len(greeting)), len(greeting)})
    parts = [greeting[a:b] for a, b in pairwise(marks)]
    row, said = talk([*parts, INSIDE, NO_TLS, b"221 bye\r\n"])
    assert (row["banner"], row["verdict"]) == ("220-mx.example ESMTP 220 ready", "open_no_tls")
    assert said == [b"EHLO me.example\r\n", b"STARTTLS\r\n", b"QUIT\r\n"]


def test_nothing_is_said_before_the_last_line_of_the_greeting() -> None:
    assert talk([b"220-mx\r\n220-more\r\n"])[1] == []


@pytest.mark.parametrize("name", ["421", "554", "ehlo 550", "masked", "454", "no starttls"])
def test_a_server_that_listens_hears_quit(name: str) -> None:
    assert talk(CASES[name][0])[1][-1] == b"QUIT\r\n"


@pytest.mark.parametrize("name", ["silence", "eof", "http", "tls stall", "tls garbage"])
def test_quit_is_not_said_to_nobody(name: str) -> None:
    assert b"QUIT\r\n" not in talk(CASES[name][0])[1]


@pytest.mark.parametrize(
    ("reply", "enforced"),
    [
        (b"530 5.7.0 Authentication required\r\n", True),
        (b"550 5.7.1 Client was not authenticated\r\n", True),
        (b"250 2.1.0 Ok\r\n", False),
        (b"452 4.3.1 no space\r\n", None),
        (b"550 5.7.1 listed\r\n", None),
        ("eof", None),
    ],
)
@pytest.mark.parametrize("implicit", [True, False])
def test_mail_without_login_tells_whether_a_login_is_enforced(
    reply: Any, enforced: bool | None, implicit: bool
) -> None:
    begin = [TLS, b"220 mx\r\n", INSIDE] if implicit else OPEN[:5]
    row, said = talk([*begin, reply, b"250 Ok\r\n", b"221 bye\r\n"], implicit=implicit, check_auth=True)
    assert (row["auth_enforced"], row["verdict"], row["reached"]) == (enforced, "open", "done")
    last = [b"MAIL FROM:<>\r\n"] if reply == "eof" else [b"MAIL FROM:<>\r\n", b"RSET\r\n", b"QUIT\r\n"]
    assert said[-len(last) :] == last and "reply_code" not in row


def test_a_question_on_the_side_leaves_no_trace_in_the_row() -> None:
    silent, plain = (talk([b"220 mx\r\n", INSIDE, *more])[0] for more in ((), (NO_TLS,)))
    assert timeless(silent) == timeless(plain)


@pytest.mark.parametrize("behind, count", [(b"250 injected\r\n", 14), (b"", 0)])
def test_bytes_behind_the_220_are_counted(behind: bytes, count: int) -> None:
    assert talk([*OPEN[:2], b"220 go\r\n" + behind, *([] if behind else OPEN[3:])])[0]["extra_bytes"] == count


def first_flight(groups: str, *, old: bool = False) -> tuple[bytes, bytes]:
    """What a real server says first, for the groups it is made to allow: to a client of Python's ssl."""
    [(ask, come), (out, back)] = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with TemporaryDirectory() as folder:
        from deliverkit.lab import _certificate

        (pem := Path(folder) / "pem").write_text("".join(_certificate()), encoding="ascii")
        server.load_cert_chain(pem)
    server.set_ecdh_curve(groups)
    if old:
        server.maximum_version = ssl.TLSVersion.TLSv1_2
    near = client.wrap_bio(ask, come, server_hostname="lab.example")
    far = server.wrap_bio(out, back, server_side=True)
    flight = b""
    for _ in range(3):
        for side in (near, far):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
            out.write(come.read())
            flight += (said := back.read())
            ask.write(said)
    return flight, (near.version() or "").encode()


@pytest.mark.parametrize("group", ["secp256r1", "secp384r1", "secp521r1"])
@pytest.mark.parametrize("old", [True, False])
def test_the_group_is_read_from_what_the_server_says_first(group: str, old: bool) -> None:
    flight, version = first_flight({"secp256r1": "prime256v1"}.get(group, group), old=old)
    assert (group_of(flight), version) == (group, b"TLSv1.2" if old else b"TLSv1.3")


FLIGHT = first_flight("prime256v1")


@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_first_flight_gives_a_group_or_nothing(noise: bytes, cut: int) -> None:
    flight, _ = FLIGHT
    for bad in (noise, b"\x16\x03\x03" + noise, flight[:cut], flight[:cut] + noise + flight[cut:]):
        assert (found := group_of(bad)) is None or found.isascii()


def test_a_long_ehlo_is_read_to_its_end() -> None:
    reply = b"250-mx\r\n" + b"".join(b"250-X-EXT%03d v\r\n" % i for i in range(118)) + b"250 STARTTLS\r\n"
    row, said = talk([b"220-a\r\n220-b\r\n220 c\r\n", reply])
    assert len(row["features"].split()) == 119 and said[1] == b"STARTTLS\r\n"


def test_mechanisms_before_and_after_tls_are_kept_apart() -> None:
    before = b"250-mx\r\n250-STARTTLS\r\n250-AUTH=LOGIN\r\n250 AUTH PLAIN\r\n"
    row, _ = talk([b"220 mx\r\n", before, b"220 go\r\n", TLS, b"250-mx\r\n250 AUTH XOAUTH2\r\n"])
    assert (row["auth_before_tls"], row["auth_after_tls"]) == ("LOGIN PLAIN", "XOAUTH2")


def test_the_words_of_a_refusal_are_kept_with_their_codes() -> None:
    row, _ = talk([b"554-5.7.1 no service\r\n554 5.7.1 for you\r\n"])
    expected = ("554-5.7.1 no service 554 5.7.1 for you", 554, "5.7.1")
    assert (row["text"], row["reply_code"], row["status_code"]) == expected


def test_stage_times_are_those_between_events() -> None:
    row, _ = talk(OPEN)  # one second an event: send, then read
    assert [row[f"{s}_s"] for s in ("banner", "ehlo", "tls")] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"220 \x1b[31m\x00\xe9\r", r"220 \x1b[31m\x00\xe9\x0d"),
        ("mx \u202e\x85 é".encode(), r"mx \u202e\x85 é"),
        (b"x" * 600, "x" * 512),
        ("naïve\t", r"naïve\x09"),
    ],
)
def test_hostile_text_is_shown_and_cut(data: bytes | str, shown: str) -> None:
    assert safe(data) == shown


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "tls_alert_handshake_failure"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "tls_version"),
        ("TLSV1_UNRECOGNIZED_NAME", "tls_alert_unrecognized_name"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "tls_alert_certificate_required"),
        ("UNSUPPORTED_PROTOCOL", "tls_version"),
        ("WRONG_VERSION_NUMBER", "tls_protocol"),
        (None, "tls_protocol"),
    ],
)
def test_reasons_of_openssl_become_words(reason: str | None, word: str) -> None:
    problem = ssl.SSLError()
    problem.reason = reason  # type: ignore[assignment]
    assert tls_word(problem) == word


NOW = datetime(2026, 6, 1, tzinfo=UTC)


def make(name: str, names: list[str], *, by: Any = None, days: tuple[int, int] = (-9, 90), ca: bool = False,
         bare: bool = False) -> Any:  # fmt: skip
    """A certificate with its key, signed by itself or by another pair."""
    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder(by[0].subject if by else title, title, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(NOW + timedelta(days[0])).not_valid_after(NOW + timedelta(days[1]))
    made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if names:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    issuer = (by[1] if by else key).public_key()
    if not bare:
        made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if ca:
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        made = made.add_extension(usage, critical=True)
    return made.sign(by[1] if by else key, hashes.SHA256()), key


def der(pair: Any) -> bytes:
    return bytes(pair[0].public_bytes(serialization.Encoding.DER))


ROOT = make("Root", [], ca=True)
STRANGER = make("Stranger", [], ca=True)


@pytest.fixture
def roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trusts ROOT, and a day in June 2026."""
    import sys

    monkeypatch.setattr(sys.modules["deliverkit.probe"], "_roots", lambda: [ROOT[0]])
    builder = x509.verification.PolicyBuilder

    def dated() -> Any:
        return builder().time(NOW)

    monkeypatch.setattr(x509.verification, "PolicyBuilder", dated)
    sys.modules["deliverkit.probe"]._read.cache_clear()  # type: ignore[attr-defined]


def verdict(pair: Any, *rest: Any, host: str = "mx.a.example") -> tuple[Any, Any, Any]:
    row = judge(der(pair), tuple(map(der, (pair, *rest))), host, NOW)
    return row["cert_trusted"], row["cert_matches"], row["cert_problem"]


def test_a_chain_to_a_root_of_ours_is_trusted(roots: None) -> None:
    assert verdict(make("mx", ["mx.a.example"], by=ROOT)) == (True, True, None)


def test_a_wildcard_covers_one_label_only(roots: None) -> None:
    pair = make("mx", ["*.a.example"], by=ROOT)
    assert verdict(pair) == (True, True, None)
    assert verdict(pair, host="x.y.a.example") == (True, False, "name_mismatch")
    assert verdict(pair, host="a.example") == (True, False, "name_mismatch")


def test_a_chain_to_nobody_is_an_unknown_ca(roots: None) -> None:
    assert verdict(make("mx", ["mx.a.example"], by=STRANGER), STRANGER) == (False, True, "unknown_ca")


def test_a_private_ca_that_leaves_out_key_identifiers_is_an_unknown_ca_and_a_known_one_is_left_open(
    roots: None,
) -> None:
    assert verdict(make("mx", ["mx.a.example"], by=STRANGER, bare=True), STRANGER) == (False, True, "unknown_ca")
    assert verdict(make("mx", ["mx.a.example"], by=ROOT, bare=True), ROOT) == (None, True, None)


def test_without_a_chain_nothing_is_said_of_trust(roots: None) -> None:
    row = judge(der(make("mx", ["mx.a.example"], by=STRANGER)), (), "mx.a.example", NOW)
    assert row["cert_trusted"] is None and row["cert_problem"] is None


def test_a_server_that_sends_its_leaf_alone_ends_at_an_unknown_ca(roots: None) -> None:
    assert verdict(make("mx", ["mx.a.example"], by=STRANGER)) == (False, True, "unknown_ca")


@pytest.mark.parametrize(("days", "word"), [((-9, -1), "expired"), ((1, 9), "not_yet")])
def test_dates_are_judged_before_all_else(roots: None, days: tuple[int, int], word: str) -> None:
    assert verdict(make("mx", ["other.example"], by=ROOT, days=days)) == (False, False, word)


def test_a_certificate_by_itself_is_self_signed(roots: None) -> None:
    assert verdict(make("mx", ["mx.a.example"])) == (False, True, "self_signed")


def test_bytes_that_are_no_certificate_say_nothing() -> None:
    assert judge(b"\x30\x03\x02\x01\x01", (), "a.example", NOW) == {}
