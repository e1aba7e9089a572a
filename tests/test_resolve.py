"""Names asked of a real DNS server on loopback, and every way an answer can fail to come."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deliverkit as dk
from deliverkit.resolve import Answer, addresses, mx_hosts

ZONE = """
server:
    interface: 127.0.0.1@{port}
    port: {port}
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{folder}"
    pidfile: ""
    use-syslog: no
    do-not-query-localhost: no
    local-zone: "a.example." static
    local-data: "mx.a.example. A 127.0.0.2"
    local-data: "mx.a.example. A 127.0.0.3"
    local-data: "mx.a.example. AAAA ::1"
    local-data: "six.a.example. AAAA ::1"
    local-data: "text.a.example. TXT hello"
    local-data: "mail.a.example. MX 20 second.a.example."
    local-data: "mail.a.example. MX 10 mx.a.example."
    local-data: "none.a.example. MX 0 ."
    local-zone: "silent.example." deny
    local-zone: "shut.example." refuse
    local-zone: "127.in-addr.arpa." nodefault
stub-zone:
    name: "broken.example."
    stub-addr: 127.0.0.1@{port}  # itself, which refuses to be asked this way
"""


@pytest.fixture(scope="module")
def nameserver(need: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A name server of one's own, as address:port."""
    program, folder = need("unbound", "unbound"), tmp_path_factory.mktemp("unbound")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Path(folder) / "unbound.conf"
    config.write_text(ZONE.format(port=port, folder=folder), encoding="ascii")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "-d", "-c", str(config)], stdout=log, stderr=log)
        try:
            for _ in range(100):
                if addresses("mx.a.example", nameserver=f"127.0.0.1:{port}", timeout=0.2).found:
                    break
                time.sleep(0.05)
            else:
                raise AssertionError((folder / "log").read_text())
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)


@pytest.mark.parametrize(
    ("host", "found", "failure"),
    [
        ("mx.a.example", {"127.0.0.2", "127.0.0.3"}, None),
        ("MX.a.example.", {"127.0.0.2", "127.0.0.3"}, None),
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
