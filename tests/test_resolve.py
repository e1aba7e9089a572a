"""Names asked of real DNS servers on loopback, signed and unsigned, and every way an answer can fail to come."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest

import deliverkit as dk
from deliverkit.errors import TargetError
from deliverkit.policies import tlsa_verdict
from deliverkit.resolve import Answer, Resolver, addresses, mx_hosts, resolve
from deliverkit.schema import SERVERS
from tests.servers.authority import Pair, certificate
from tests.servers.names import name_servers

MODULE = import_module("deliverkit.resolve")  # as an attribute, dk.resolve is the function
CA = certificate("Root of the tests", ca=True)
MX = certificate("mx", "mx1.signed.example", by=CA)
TLSA = f"3 1 1 {sha256(MX.public_key).hexdigest()}"

LOCAL = """
    local-zone: "a.example." static
    local-data: "mx.a.example. A 127.0.0.2"
    local-data: "mx.a.example. A 127.0.0.3"
    local-data: "mx.a.example. AAAA ::1"
    local-data: "six.a.example. AAAA ::1"
    local-data: "text.a.example. TXT hello"
    local-data: "mail.a.example. MX 20 second.a.example."
    local-data: "mail.a.example. MX 10 mx.a.example."
    local-data: "none.a.example. MX 0 ."
    local-data: "odd.a.example. MX 0 ."
    local-data: "odd.a.example. MX 10 mx.a.example."
    local-data: "odd.a.example. MX 30 mx.a.example."
    local-data: "xn--mller-kva.a.example. MX 10 mx.a.example."
    local-data: "a.example. 7200 SOA ns.a.example. me.a.example. 1 2 3 4 600"
    local-data: "2.0.0.127.in-addr.arpa. PTR mx.a.example."
    local-data: "9.0.0.127.in-addr.arpa. PTR mx.a.example."
    local-data: "short.a.example. 60 A 127.0.0.9"
    local-data: "short.a.example. 60 AAAA ::9"
    local-data: "long.a.example. 86400 A 127.0.0.9"
    local-data: "long.a.example. 86400 AAAA ::9"
    local-zone: "silent.example." deny
    local-zone: "shut.example." refuse
    local-zone: "127.in-addr.arpa." nodefault
stub-zone:
    name: "broken.example."
    stub-addr: 127.0.0.1@{port}  # itself, which refuses to be asked this way
"""
HOSTS = "mx1 A 127.0.0.11\nmx1 AAAA ::1\nmx2 A 127.0.0.12\n"
NEXT = "\n"
SIGNED = f"""
@ MX 20 mx2
@ MX 10 mx1
{HOSTS}
_25._tcp.mx1 TLSA {TLSA}
_25._tcp.mx1 TLSA 1 0 1 {"00" * 32}
_465._tcp.mx1 TLSA {TLSA}
_submissions._tcp SRV 0 1 465 mx1
_submissions._tcp SRV 0 9 8465 mx2
_submission._tcp SRV 0 0 0 .
_mta-sts TXT "v=STSv1; id=1;"
null MX 0 .
bare A 127.0.0.13
bare AAAA ::1
empty TXT hello
lost MX 10 nowhere
_submission._tcp.lost SRV 0 0 587 nowhere
odd MX 10 \\<b\\>.odd
odd MX 20 192.0.2.1.
_submission._tcp.odd SRV 0 0 0 mx1
alias MX 10 mail.alias
mail.alias CNAME mx1
own MX 10 mail.own
mail.own CNAME mx2
_25._tcp.mail.own TLSA {TLSA}
out MX 10 mail.out
mail.out CNAME mx1.plain.example.
_25._tcp.mail.out TLSA {TLSA}
away MX 10 mx1.plain.example.
two MX 10 mx1
_mta-sts.two TXT "v=STSv1; id=1;"
_mta-sts.two TXT "v=STSv1; id=2;"
many TXT x
{"".join(f"many MX {n} h{n}.many{NEXT}_submission._tcp.many SRV {n} 0 587 h{n}.many{NEXT}" for n in range(40))}
"""
PLAIN = f"""
@ MX 10 mx1
{HOSTS}
_25._tcp.mx1 TLSA {TLSA}
back MX 10 mx1.signed.example.
"""
BOGUS = f"@ MX 10 mx1\ngood MX 10 mx1\n{HOSTS}_25._tcp.mx1 TLSA 3 1 1 {'ab' * 32}\n"
ZONES = {"signed.example": SIGNED, "plain.example": PLAIN, "bogus.example": BOGUS}
FORGED = {"bogus.example": {r"^(bogus.*)\tMX\t10 mx1": r"\1\tMX\t10 mx2", "3 1 1 (?i:abab)": "3 1 1 cdcd"}}


@pytest.fixture(scope="module")
def names(need: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Name servers of one's own: address:port of the one to ask, and its log of questions."""
    signed, folder = {"signed.example", "bogus.example"}, tmp_path_factory.mktemp("names")
    with name_servers(need, folder, ZONES, signed, FORGED, LOCAL) as found:
        yield found


@pytest.fixture(scope="module")
def nameserver(names: tuple[str, Path]) -> str:
    return names[0]


@pytest.mark.parametrize(
    ("host", "found", "failure"),
    [
        ("mx.a.example", {"127.0.0.2", "127.0.0.3", "::1"}, None),
        ("MX.a.example.", {"127.0.0.2", "127.0.0.3", "::1"}, None),
        ("six.a.example", {"::1"}, None),
        ("gone.a.example", set(), "dns_nxdomain"),
        ("text.a.example", set(), "dns_nodata"),
        ("mx.broken.example", set(), "dns_servfail"),
        ("mx.shut.example", set(), "dns_servfail"),
        ("a..example", set(), "dns_nxdomain"),
        ("192.0.2.7", {"192.0.2.7"}, None),
        ("2001:DB8::1", {"2001:db8::1"}, None),
        ("localhost", {"127.0.0.1", "::1"}, None),
    ],
)
def test_a_host_has_addresses_or_a_word(nameserver: str, host: str, found: set[str], failure: str | None) -> None:
    answer = addresses(host, nameserver=nameserver)
    assert (set(answer.found), answer.failure) == (found, failure)


@pytest.mark.parametrize(("address", "name"), [("127.0.0.2", "mx.a.example"), ("127.0.0.9", None), ("127.0.0.8", None)])
def test_an_address_has_a_name_if_that_leads_back(nameserver: str, address: str, name: str | None) -> None:
    assert dk.Resolver(nameserver).name_of(address) == name


def test_a_silent_name_server_is_a_timeout_and_takes_no_longer(nameserver: str) -> None:
    begun = time.monotonic()
    assert addresses("mx.silent.example", nameserver=nameserver, timeout=0.4) == Answer((), "dns_timeout")
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("mail.a.example", Answer(("mx.a.example", "second.a.example"))),
        ("none.a.example", Answer((), "null_mx")),
        ("text.a.example", Answer(("text.a.example",))),
        ("gone.a.example", Answer((), "dns_nxdomain")),
        ("mx.broken.example", Answer((), "dns_servfail")),
    ],
)
def test_a_domain_has_mail_servers_or_a_word(nameserver: str, domain: str, expected: Answer) -> None:
    assert mx_hosts(domain, nameserver=nameserver) == expected


def test_a_sweep_asks_the_name_server_it_is_given(nameserver: str) -> None:
    hosts = ["mx.a.example", "gone.a.example", "mx.silent.example"]
    frame = dk.probe(hosts, 1, resolver=lambda n: addresses(n, nameserver=nameserver, timeout=0.4), pace=None)
    assert frame["verdict"].tolist() == ["closed", "dns_fail", "dns_fail"]
    assert frame["failure"].tolist() == ["tcp_refused", "dns_nxdomain", "dns_timeout"]
    assert frame["address"][0].startswith("127.0.0.") and frame["dns_s"].between(0, 1.5).all()
    assert frame["category"].tolist() == ["connection", "invalid_domain", "connection"]


# One cache


def asked(names: tuple[str, Path], name: str) -> int:
    """How often a name was asked for, both families together."""
    return names[1].read_text().count(f" {name}. ")


def test_a_question_is_asked_once_by_many_threads(names: tuple[str, Path]) -> None:
    resolver, before = Resolver(names[0]), asked(names, "mx.a.example")
    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(resolver, ["mx.a.example", "MX.A.example."] * 40))
    assert answers == {Answer(("127.0.0.2", "127.0.0.3", "::1"))}
    assert asked(names, "mx.a.example") - before == 2


def test_names_that_are_not_there_are_asked_once_too(names: tuple[str, Path]) -> None:
    resolver = Resolver(names[0])
    assert {resolver("never.a.example") for _ in range(5)} == {Answer((), "dns_nxdomain")}
    assert asked(names, "never.a.example") == 1


@pytest.mark.parametrize(
    ("name", "keeps_s"),
    [("short.a.example", 60), ("long.a.example", 3600), ("text.a.example", 600), ("mx.shut.example", 30)],
)
def test_an_answer_is_kept_as_long_as_it_lives_and_an_hour_at_most(
    names: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, keeps_s: int
) -> None:
    now = 1000.0
    monkeypatch.setattr(MODULE, "monotonic", lambda: now)
    resolver = Resolver(names[0], timeout=0.5)
    first, before = resolver(name), asked(names, name)
    now += keeps_s - 1
    assert resolver(name) == first and asked(names, name) == before
    now += 2
    assert resolver(name) == first and asked(names, name) == before + 2


def test_the_cache_is_bounded(names: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_KEPT", 4)
    resolver, before = Resolver(names[0]), asked(names, "six.a.example")
    for name in ("six.a.example", "mx.a.example", "short.a.example", "six.a.example"):
        resolver(name)
    assert asked(names, "six.a.example") - before == 4


# Whom to ask


@pytest.mark.parametrize(
    "nameserver", ["x.example", "127.0.0.1:0", "127.0.0.1:x", "", 5, "https://a.example", "::1:53:x"]
)
def test_a_name_server_is_an_address_or_an_error(nameserver: Any) -> None:
    with pytest.raises(TargetError):
        Resolver(nameserver)


@pytest.mark.parametrize("timeout", [0, -1, "quick", float("inf"), float("nan"), None])
def test_a_time_that_is_none_is_an_error(timeout: Any) -> None:
    with pytest.raises(TargetError, match="timeout"):
        Resolver("127.0.0.1", timeout=timeout)


def test_a_name_server_may_be_asked_over_ipv6(nameserver: str) -> None:
    assert Resolver(f"[::1]:{nameserver.partition(':')[2]}")("six.a.example") == Answer(("::1",))


def test_the_hosts_file_comes_first_unless_it_is_not_wanted(
    nameserver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_bytes(b"# own\n\n::7 MX.a.example other\n127.0.0.7\tmx.a.example # and so on\nnonsense x\n\xff\xfe z\n")
    monkeypatch.setattr(MODULE, "_HOSTS", hosts)
    resolver = Resolver(nameserver)
    assert resolver("mx.a.example") == Answer(("127.0.0.7", "::7")) and resolver("other") == Answer(("::7",))
    assert resolver("six.a.example") == Answer(("::1",))
    assert Resolver(nameserver, hosts=False)("mx.a.example") == Answer(("127.0.0.2", "127.0.0.3", "::1"))
    assert addresses("mx.a.example", nameserver=nameserver).found[0] == "127.0.0.2"
    frame = resolve("mail.a.example", resolver=resolver, services="mx")
    assert frame["address"].dropna().tolist() == ["127.0.0.7", "::7"]


def test_a_machine_without_name_servers_still_has_its_hosts_file(
    need: Callable[[str, str], str], tmp_path: Path
) -> None:
    (tmp_path / "resolv.conf").write_text("")
    (tmp_path / "hosts").write_text("127.0.0.7 mx.example.com\n")
    code = "from deliverkit.resolve import Resolver as R; r = R(); print(*r('mx.example.com'), *r('a.example.com'))"
    mounts = "".join(f"mount --bind {tmp_path}/{name} /etc/{name} && " for name in ("resolv.conf", "hosts"))
    command = [need("unshare", "util-linux"), "-rmn", "sh", "-c", f'{mounts}"$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("mount namespaces are not permitted here")
    assert done.stdout.split() == ["('127.0.0.7',)", "None", "()", "dns_timeout"], done.stderr


# Domains


def rows(nameserver: str, *domains: str, trust_ad: bool = True, **how: Any) -> list[dict[str, Any]]:
    """What resolve says, without what is missing; nobody answers on HTTPS."""
    resolver = Resolver(nameserver, trust_ad=trust_ad, timeout=2)
    frame = resolve(domains, **{"resolver": resolver, "connect_to": {("", 443): ("127.0.0.1", 1)}, **how})
    SERVERS.check(frame)
    return [{k: v for k, v in row.items() if pd.notna(v)} for row in frame.to_dict("records")]


def test_servers_come_by_preference_with_all_their_addresses(nameserver: str) -> None:
    found = rows(nameserver, "signed.example", services="mx", policies=False)
    assert [(r["host"], r["port"], r["preference"], r["address"], r["family"], r["mode"]) for r in found] == [
        ("mx1.signed.example", 25, 10, "127.0.0.11", 4, "starttls"),
        ("mx1.signed.example", 25, 10, "::1", 6, "starttls"),
        ("mx2.signed.example", 25, 20, "127.0.0.12", 4, "starttls"),
    ]
    assert {(r["source"], r["service"], r["domain"], r["dnssec"]) for r in found} == {
        ("MX", "mx", "signed.example", True)
    }


def test_submission_is_found_by_srv_and_may_be_decidedly_not_offered(nameserver: str) -> None:
    found = rows(nameserver, "signed.example", "plain.example", services="submission")
    brief = [(r["service"], r.get("host"), r["port"], r.get("preference"), r.get("weight"), r["mode"]) for r in found]
    assert list(dict.fromkeys(brief)) == [
        ("submissions", "mx2.signed.example", 8465, 0, 9, "implicit"),
        ("submissions", "mx1.signed.example", 465, 0, 1, "implicit"),
        ("submission", None, 587, None, None, "starttls"),
    ]
    assert found[-1]["failure"] == "not_offered" and {r["source"] for r in found} == {"SRV"}


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("null.signed.example", [(None, None, "null_mx")]),
        ("bare.signed.example", [("bare.signed.example", "127.0.0.13", None), ("bare.signed.example", "::1", None)]),
        ("empty.signed.example", [("empty.signed.example", None, "dns_nodata")]),
        ("lost.signed.example", [("nowhere.signed.example", None, "dns_nxdomain")]),
        ("odd.signed.example", [(None, None, "dns_nxdomain")] * 2),
        ("odd.a.example", [("mx.a.example", at, None) for at in ("127.0.0.2", "127.0.0.3", "::1")]),
        ("bogus.example", [(None, None, "dns_servfail")]),
        ("nx.signed.example", [(None, None, "dns_nxdomain")]),
        ("x.silent.example", [(None, None, "dns_timeout")]),
        ("MÜLLER.a.example", [("mx.a.example", at, None) for at in ("127.0.0.2", "127.0.0.3", "::1")]),
    ],
)
def test_a_domain_that_leads_nowhere_is_a_row_with_a_word(nameserver: str, domain: str, expected: Any) -> None:
    found = rows(nameserver, domain, services=["mx"])
    assert [(r.get("host"), r.get("address"), r.get("failure")) for r in found] == expected
    assert {r["domain"] for r in found} == {domain} and {r["port"] for r in found} == {25}


def test_what_a_domain_does_not_have_is_no_row_and_what_is_not_known_is_one(nameserver: str) -> None:
    found = rows(nameserver, "bare.signed.example", "odd.signed.example", "x.silent.example", services="submission")
    assert [(r["domain"], r["service"], r["port"], r["failure"]) for r in found] == [
        ("x.silent.example", "submissions", 465, "dns_timeout"),
        ("x.silent.example", "submission", 587, "dns_timeout"),
    ]


def test_domains_come_in_the_order_asked_and_each_once(nameserver: str) -> None:
    domains = ["plain.example", "null.signed.example", "Plain.example.", "bogus.example", "nx.signed.example"]
    found = rows(nameserver, *domains, services="mx", policies=False)
    assert list(dict.fromkeys(r["domain"] for r in found)) == ["plain.example", *domains[1:2], *domains[3:]]
    assert len(found) == 2 + 3


def test_no_domain_is_an_empty_frame() -> None:
    assert resolve([]).empty and list(resolve([]).columns) == SERVERS.names


def test_a_stranger_cannot_send_us_to_any_number_of_hosts(nameserver: str) -> None:
    found = rows(nameserver, "many.signed.example", services=("mx", "submission"), policies=False)
    assert [(r["service"], r["preference"]) for r in found] == [(s, n) for s in ("mx", "submission") for n in range(32)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"domains": "a b.example"}, {"domains": "user@example.com"}, {"domains": ["192.0.2.1"]}, {"domains": 5},
        {"domains": "a.example:587"}, {"domains": "a..example"},
        {"services": ["mx", "pop3"]}, {"services": "imap"}, {"resolver": addresses},
        {"trust": "/nowhere/ca.pem"}, {"trust": "-----BEGIN nothing"}, {"connect_to": "nonsense"},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(TargetError):
        resolve(**{"domains": "a.example", **wrong})


def test_many_domains_on_one_server_cost_one_probe_per_address(nameserver: str) -> None:
    frame = resolve(
        ["mail.a.example", "odd.a.example", "müller.a.example"], resolver=Resolver(nameserver), services="mx"
    )
    there = frame[frame["address"].notna()].assign(port=1)
    assert len(there) == 9
    assert dk.probe(there, pace=None, progress=False)["address"].tolist() == ["127.0.0.2", "127.0.0.3", "::1"]


# DNSSEC and TLSA


@pytest.mark.parametrize(
    ("domain", "dnssec", "secure", "verdict"),
    [
        ("signed.example", True, True, "ok"),
        ("alias.signed.example", True, True, "ok"),  # TLSA where the CNAME leads
        ("own.signed.example", True, True, "ok"),  # and at the alias, where there is none
        ("out.signed.example", False, True, "ok"),  # the alias is signed, where it leads is not
        ("away.signed.example", False, False, "unsigned"),
        ("plain.example", False, False, "unsigned"),
        ("back.plain.example", False, False, "unsigned"),  # a signed host that an unsigned MX names
        ("bare.signed.example", True, True, "none"),
    ],
)
def test_tlsa_counts_where_every_step_to_it_is_signed(
    nameserver: str, domain: str, dnssec: bool, secure: bool, verdict: str
) -> None:
    row = rows(nameserver, domain, services="mx")[0]
    assert (row["dnssec"], row["tlsa_secure"]) == (dnssec, secure)
    assert tlsa_verdict(row.get("tlsa", "").split("; "), row["tlsa_secure"], [MX.der]) == verdict


def test_all_records_of_a_port_are_told(nameserver: str) -> None:
    found = rows(nameserver, "signed.example")
    assert {(r["host"], r["port"]): r.get("tlsa") for r in found if "host" in r} == {
        ("mx1.signed.example", 25): f"1 0 1 {'00' * 32}; {TLSA}",
        ("mx2.signed.example", 25): None,
        ("mx2.signed.example", 8465): None,
        ("mx1.signed.example", 465): TLSA,
    }


def test_records_that_are_forged_are_not_there_and_nothing_is_said_of_them(nameserver: str) -> None:
    found = rows(nameserver, "good.bogus.example", services="mx")
    assert [r["address"] for r in found] == ["127.0.0.11", "::1"] and found[0]["dnssec"]
    assert not any("tlsa" in r or "tlsa_secure" in r for r in found)


def test_a_resolver_that_is_not_trusted_says_nothing_about_dnssec(nameserver: str) -> None:
    found = rows(nameserver, "signed.example", "null.signed.example", "plain.example", trust_ad=False)
    assert not any("dnssec" in r or "tlsa_secure" in r for r in found) and found[0]["tlsa"].endswith(TLSA)


def test_nothing_of_policies_is_asked_where_they_are_not_wanted(names: tuple[str, Path]) -> None:
    before = names[1].read_text()
    rows(names[0], "signed.example", policies=False, services=("mx", "submission"))
    new = names[1].read_text().removeprefix(before)
    assert "_submission._tcp.signed.example" in new and "TLSA" not in new and "_mta-sts" not in new


# Over HTTPS

POLICY = "version: STSv1\nmode: enforce\nmx: mx1.signed.example\nmax_age: 86400\n"
STS = ("mta-sts.signed.example", "/.well-known/mta-sts.txt")


def reply(body: str | bytes, head: str = "Content-Type: text/plain; charset=utf-8", status: str = "200 OK") -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


Page = bytes | Callable[[Any], object]


class Web(ThreadingHTTPServer):
    """An HTTPS server with a certificate for all names of the tests; `pages` are bytes or act on the connection."""

    daemon_threads = True

    def __init__(self, pages: dict[tuple[str, str], Page], pair: Pair, folder: Path) -> None:
        self.pages, self.asked = pages, Counter[tuple[str, str]]()
        (folder / "web.pem").write_text(pair.pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "web.pem")
        super().__init__(("127.0.0.1", 0), _Page)
        self.routes = {("", 443): self.server_address[:2]}

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError), self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client hangs up on the hostile ones, as it should."""


class _Page(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        key = self.headers["Host"], self.path
        self.server.asked[key] += 1
        page = self.server.pages.get(key, reply("no", status="404 Not Found"))
        _ = page(self.wfile) if callable(page) else self.wfile.write(page)

    def log_message(self, *args: object) -> None:
        """Not onto the terminal."""


@contextmanager
def web(pages: dict[tuple[str, str], Page], folder: Path, pair: Pair | None = None) -> Iterator[Web]:
    names = ("mta-sts.signed.example", "signed.example", "autoconfig.signed.example")
    with Web(pages, pair or certificate("web", *names, by=CA), folder) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def policy_of(nameserver: str, server: Web, **how: Any) -> list[tuple[Any, ...]]:
    """Host, mta_sts, mode and failure of each server of signed.example."""
    asked = {"services": "mx", "connect_to": server.routes, "trust": CA.public, **how}
    found = rows(nameserver, "signed.example", **asked)
    return list(
        dict.fromkeys((r["host"][:3], *map(r.get, ("mta_sts", "mta_sts_mode", "mta_sts_failure"))) for r in found)
    )


@pytest.mark.parametrize("mode", ["enforce", "testing"])
def test_a_policy_names_a_server_or_does_not(nameserver: str, tmp_path: Path, mode: str) -> None:
    with web({STS: reply(POLICY.replace("enforce", mode))}, tmp_path) as server:
        assert policy_of(nameserver, server) == [("mx1", "matched", mode, None), ("mx2", "not_matched", mode, None)]


def test_a_policy_of_mode_none_asks_for_nothing(nameserver: str, tmp_path: Path) -> None:
    with web({STS: reply(POLICY.replace("enforce", "none"))}, tmp_path) as server:
        assert {row[1:] for row in policy_of(nameserver, server)} == {("none", "none", None)}


def test_a_domain_without_exactly_one_record_has_no_policy(nameserver: str, tmp_path: Path) -> None:
    with web({}, tmp_path) as server:
        how = {"services": "mx", "connect_to": server.routes, "trust": CA.public}
        found = rows(nameserver, "two.signed.example", "plain.example", **how)
        assert {r["mta_sts"] for r in found} == {"none"} and not server.asked


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Plain\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED += f"{len(POLICY):x}\r\n{POLICY}\r\n0\r\n\r\n".encode()


@pytest.mark.parametrize("page", [CHUNKED, b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + POLICY.encode()])
def test_a_reply_may_end_in_any_way_of_http(nameserver: str, tmp_path: Path, page: bytes) -> None:
    with web({STS: page}, tmp_path) as server:
        assert policy_of(nameserver, server)[0] == ("mx1", "matched", "enforce", None)


def drip(wfile: Any) -> None:
    """A header without end, a byte at a time."""
    wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        wfile.write(b"x")
        time.sleep(0.02)


def flood(wfile: Any) -> None:
    while True:
        wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


@pytest.mark.parametrize(
    ("page", "word"),
    [
        (reply("gone", status="404 Not Found"), "http_404"),
        (reply("", f"Location: https://{STS[0]}/moved", "301 Moved"), "http_301"),
        (reply(POLICY, "Content-Type: text/html"), "http_type"),
        (reply(POLICY, "X: y"), "http_type"),
        (reply(POLICY + "x" * 65536), "http_too_large"),
        (reply("hello"), "sts_syntax"),
        (reply(POLICY.replace("enforce", "soon")), "sts_mode"),
        (reply(b"\x1f\x8b\x08\x00\xff", "Content-Type: text/plain\r\nContent-Encoding: gzip"), "sts_syntax"),
        (reply(POLICY)[:-9], "http_protocol"),
        (reply("", "Content-Type: text/plain\r\nContent-Length: 1" + "0" * 30), "http_protocol"),
        (CHUNKED.replace(b"\r\n0\r\n", b"\r\nzzz\r\n"), "http_protocol"),
        (b"220 mx.example.com ESMTP\r\n", "http_protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "http_protocol"),
        (b"", "http_protocol"),
        (b"\x00\xff" * 999, "http_protocol"),
        (flood, "http_too_large"),
        (drip, "http_timeout"),
    ],
)
def test_what_a_web_server_does_wrong_has_a_word(
    nameserver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Page, word: str
) -> None:
    monkeypatch.setattr(MODULE, "_WEB_S", 1.5 if page is drip else 10)
    with web({STS: page, (STS[0], "/moved"): reply(POLICY)}, tmp_path) as server:
        assert {row[1:] for row in policy_of(nameserver, server)} == {(None, None, word)}
        assert server.asked == {STS: 1}  # no redirect is followed, nothing is tried twice


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        (certificate("other", "signed.example", by=CA), "cert_name_mismatch"),
        (certificate("late", STS[0], by=CA, days=-1), "cert_expired"),
        (certificate("own", STS[0]), "cert_self_signed"),
        (certificate("foreign", STS[0], by=certificate("Elsewhere", ca=True)), "cert_unknown_ca"),
    ],
)
def test_a_certificate_has_to_hold_for_the_policy_host(nameserver: str, tmp_path: Path, pair: Pair, word: str) -> None:
    with web({STS: reply(POLICY)}, tmp_path, pair) as server:
        assert {row[1:] for row in policy_of(nameserver, server)} == {(None, None, word)} and not server.asked


@pytest.mark.parametrize(
    ("says", "word"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls_protocol"), (b"", "tls_timeout"), (None, "tcp_refused")],
)
def test_what_is_no_https_has_a_word(
    nameserver: str, monkeypatch: pytest.MonkeyPatch, says: bytes | None, word: str
) -> None:
    monkeypatch.setattr(MODULE, "_WEB_S", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        how = {"services": "mx", "connect_to": {(STS[0], 443): listener.getsockname()[:2]}}
        if says is None:
            listener.close()
        else:
            Thread(target=lambda: stack.enter_context(listener.accept()[0]).sendall(says), daemon=True).start()
        assert {r["mta_sts_failure"] for r in rows(nameserver, "signed.example", **how)} == {word}


def test_a_policy_host_without_address_has_a_word(nameserver: str) -> None:
    found = rows(nameserver, "signed.example", services="mx", connect_to=None)
    assert {r["mta_sts_failure"] for r in found} == {"dns_nxdomain"}


def test_a_policy_is_fetched_once_and_a_failure_again(nameserver: str, tmp_path: Path) -> None:
    resolver = Resolver(nameserver)
    with web({}, tmp_path) as server:
        assert policy_of(nameserver, server, resolver=resolver)[0][3] == "http_404"
        server.pages[STS] = reply(POLICY)
        for _ in range(3):
            assert policy_of(nameserver, server, resolver=resolver)[0][1] == "matched"
        assert server.asked == {STS: 2}


def test_trust_is_a_file_a_text_or_a_context(nameserver: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CA.public)
    context = ssl.create_default_context(cadata=CA.public)
    with web({STS: reply(POLICY)}, tmp_path) as server:
        for trust in (tmp_path / "ca.pem", str(tmp_path / "ca.pem"), CA.public, context):
            assert policy_of(nameserver, server, trust=trust)[0][1] == "matched"
        assert policy_of(nameserver, server, trust=None)[0][3] == "cert_unknown_ca"


CONFIG = """<clientConfig><outgoingServer type="smtp"><hostname>mx1.%EMAILDOMAIN%</hostname><port>587</port>
<socketType>STARTTLS</socketType></outgoingServer><outgoingServer type="smtp"><hostname>nowhere.%EMAILDOMAIN%</hostname>
<port>465</port><socketType>SSL</socketType></outgoingServer></clientConfig>"""
FIRST = ("autoconfig.signed.example", "/mail/config-v1.1.xml")
SECOND = ("signed.example", "/.well-known/autoconfig/mail/config-v1.1.xml")


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_autoconfig_is_found_in_either_place(nameserver: str, tmp_path: Path, place: tuple[str, str]) -> None:
    with web({FIRST: reply("<clientConfig>"), place: reply(CONFIG, "Content-Type: text/xml")}, tmp_path) as server:
        how = {"services": "autoconfig", "connect_to": server.routes, "trust": CA.public}
        found = rows(nameserver, "signed.example", **how)
        assert [(r["host"], r["port"], r["mode"], r["preference"], r.get("address")) for r in found] == [
            ("mx1.signed.example", 587, "starttls", 0, "127.0.0.11"),
            ("mx1.signed.example", 587, "starttls", 0, "::1"),
            ("nowhere.signed.example", 465, "implicit", 1, None),
        ]
        assert {r["source"] for r in found} == {"https://" + "".join(place)} and found[2]["failure"] == "dns_nxdomain"
        assert found[0]["dnssec"] and found[0]["tlsa_secure"]


def test_a_domain_without_autoconfig_has_no_row_for_it(nameserver: str, tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]>' + CONFIG
    with web(
        {FIRST: reply(bomb), SECOND: reply("", f"Location: https://{FIRST[0]}/x", "302 Found")}, tmp_path
    ) as server:
        how = {"services": "autoconfig", "connect_to": server.routes, "trust": CA.public}
        assert rows(nameserver, "signed.example", **how) == [] and server.asked == {FIRST: 1, SECOND: 1}


def test_a_domain_in_any_script_is_asked_for_in_ascii(nameserver: str, tmp_path: Path) -> None:
    host = "autoconfig.xn--mller-kva.a.example"
    config = CONFIG.replace("mx1.%EMAILDOMAIN%", "mx.a.example")
    with web({(host, FIRST[1]): reply(config)}, tmp_path, certificate("idn", host, by=CA)) as server:
        how = {"services": "autoconfig", "connect_to": server.routes, "trust": CA.public}
        found = rows(nameserver, "Müller.a.example", **how)
    assert [r.get("host") for r in found] == ["mx.a.example"] * 3 + ["nowhere.xn--mller-kva.a.example"]
    assert {r["domain"] for r in found} == {"Müller.a.example"}
