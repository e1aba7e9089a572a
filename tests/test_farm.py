"""The farm's truth: 34 behaviours on 25 and 465, word by word, in a network namespace with real ICMP errors."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PROBE = """if True:
    import sys, deliverkit as dk, pandas as pd
    truth = pd.read_csv(sys.argv[1])
    frame = dk.probe(truth[["host", "port"]], timeout=4, pace=None, progress=False, in_flight=500)
    frame.to_csv(sys.argv[2], index=False)
"""


def expired() -> str:
    """Key and certificate for wrong.test, by itself, out of date since yesterday; PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wrong.test")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(9), now - timedelta(1))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, form, plain)
    return (pem + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)).decode()


@pytest.fixture(scope="module")
def visit(shared: Path, need: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`visit(n, ports, shuffle)`: what the probe found at n hosts of each behaviour, beside what is true."""
    for program, package in (
        ("unshare", "util-linux"),
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("openssl", "openssl"),
    ):
        need(program, package)
    flags = "-n" if os.geteuid() == 0 else "-rn"
    if subprocess.run(["unshare", flags, "nft", "list", "ruleset"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces with nftables are not permitted here")

    def run(count: int, ports: str, shuffle: int = 0) -> pd.DataFrame:
        script, folder = str(shared / "probing" / "smtp_farm.py"), tmp_path_factory.mktemp("farm")
        names = subprocess.run(
            [sys.executable, "-c", "import smtp_farm as f; print(*f.OCTET)"],
            cwd=shared / "probing", capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        ).stdout.split()  # fmt: skip
        mix = ",".join(f"{name}={count}" for name in names)
        targets = [sys.executable, script, "targets", "--mix", mix, "--ports", ports, "--shuffle", str(shuffle)]
        truth = subprocess.run(targets, capture_output=True, text=True, check=True).stdout
        (folder / "truth.csv").write_text(truth, encoding="utf-8")
        # The farm leaves a certificate that is there as it is; openssl 3 would make it one that expires tomorrow.
        (certificates := folder / f"smtp_farm_certs_{os.getuid()}").mkdir()
        (certificates / "old.pem").write_text(expired(), encoding="ascii")
        checker = [sys.executable, "-c", PROBE, str(folder / "truth.csv"), str(folder / "found.csv")]
        done = subprocess.run(
            [sys.executable, script, "netns", "--", *checker], capture_output=True, text=True, check=False,
            env=os.environ | {"TMPDIR": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found = pd.read_csv(folder / "found.csv")
        true = pd.read_csv(io.StringIO(truth), dtype={"fail": "string"}).rename(columns={"verdict": "truth"})
        return found.merge(true[["host", "port", "behaviour", "truth", "stage", "fail"]], on=["host", "port"])

    return run


@pytest.fixture(scope="module")
def farm(visit: Any) -> pd.DataFrame:
    """One host of each behaviour."""
    return cast(pd.DataFrame, visit(1, "25,465"))


RIGHT = ["behaviour", "port", "reached", "stage", "verdict", "truth", "failure", "fail", "text"]


def wrong(farm: pd.DataFrame) -> list[Any]:
    right = farm["verdict"].eq(farm["truth"]) & farm["reached"].eq(farm["stage"])
    right &= farm["failure"].fillna("").eq(farm["fail"].fillna(""))
    return cast(list[Any], farm.loc[~right, RIGHT].to_numpy().tolist())


def test_stage_verdict_and_failure_are_those_of_the_farm_in_all_68_rows(farm: pd.DataFrame) -> None:
    assert len(farm) == 68 and wrong(farm) == []


def test_two_thousand_rows_in_any_order_are_right_with_five_hundred_in_flight(visit: Any) -> None:
    found = visit(15, "25,465,587,2525", shuffle=7)
    assert len(found) == 2040 and wrong(found) == []


@pytest.mark.parametrize(
    "behaviour, kind, code", [("icmp_admin", 3, 13), ("icmp_host", 3, 1), ("icmp_net", 3, 0), ("icmp_port", 3, 3)]
)
def test_the_icmp_message_and_its_sender_are_in_the_row(
    farm: pd.DataFrame, behaviour: str, kind: int, code: int
) -> None:
    rows = farm[farm["behaviour"] == behaviour]
    assert rows[["icmp_type", "icmp_code"]].drop_duplicates().to_numpy().tolist() == [[kind, code]]
    assert rows["icmp_from"].eq(rows["address"]).all()


def test_a_reset_has_no_icmp_message(farm: pd.DataFrame) -> None:
    assert farm.loc[farm["behaviour"] == "refused", "icmp_type"].isna().all()


def test_the_expired_certificate_is_named_and_its_probe_is_open(farm: pd.DataFrame) -> None:
    rows = farm[farm["behaviour"] == "badcert"]
    assert set(zip(rows["verdict"], rows["cert_problem"], strict=True)) == {("open", "expired")}


def test_long_replies_are_read_to_their_end(farm: pd.DataFrame) -> None:
    rows = farm[farm["behaviour"] == "longehlo"].set_index("port")
    assert len(rows.loc[25, "features"].split()) == 119 and rows.loc[25, "banner"].endswith("220 ready")


def test_hostile_bytes_of_a_greeting_are_shown_as_escapes(farm: pd.DataFrame) -> None:
    assert set(farm.loc[farm["behaviour"] == "eightbit", "banner"]) == {r"220 mx \xe9\xe8\xff ESMTP"}


ROUTES = """
ip link set lo up
ip route add prohibit 192.0.2.1
ip route add blackhole 192.0.2.2
ip route add unreachable 192.0.2.3
nft -f - <<RULES
table ip6 t {
 chain c {
  type filter hook input priority 0
  tcp dport 25 reject with icmpv6 type admin-prohibited
  tcp dport 465 reject with icmpv6 type no-route
  tcp dport 587 reject with icmpv6 type addr-unreachable
  tcp dport 2525 reject with icmpv6 type port-unreachable
 }
}
RULES
exec "$0" -c "import deliverkit as dk; dk.probe(
    ['192.0.2.1:25', '192.0.2.2:25', '192.0.2.3:25', '192.0.2.4:25', '::1'], timeout=2, pace=None
).to_csv('$1', index=False)"
"""


def test_this_machines_own_refusals_and_those_of_ipv6_have_their_words(
    need: Callable[[str, str], str], tmp_path: Path
) -> None:
    for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2")):
        need(program, package)
    flags = "-n" if os.geteuid() == 0 else "-rn"
    command = ["unshare", flags, "sh", "-ec", ROUTES, sys.executable, str(tmp_path / "found.csv")]
    if subprocess.run(["unshare", flags, "nft", "list", "ruleset"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces with nftables are not permitted here")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "found.csv", dtype="str", keep_default_na=False)
    assert found[["verdict", "failure", "errno", "icmp_type", "icmp_code"]].to_numpy().tolist() == [
        ["local_error", "local_denied", "EACCES", "", ""],
        ["local_error", "local_no_route", "EINVAL", "", ""],
        ["local_error", "local_no_route", "EHOSTUNREACH", "", ""],
        ["local_error", "local_no_route", "ENETUNREACH", "", ""],
        ["blocked_icmp", "icmp_admin_prohibited", "EACCES", "1", "1"],
        ["unreachable", "net_unreachable", "ENETUNREACH", "1", "0"],
        ["unreachable", "host_unreachable", "EHOSTUNREACH", "1", "3"],
        ["closed", "tcp_refused", "ECONNREFUSED", "1", "4"],
    ]
    assert found["icmp_from"].tolist() == [""] * 4 + ["::1"] * 4


PUBLIC = """if True:
    import socket, subprocess, sys, threading, deliverkit as dk
    class Named(dk.Resolver):
        def name_of(self, address):
            return {"11.0.0.1": "mx.own.example"}.get(address)
    listener = socket.create_server(("11.0.0.1", 2525))
    def serve():
        for _ in range(2):
            sock, _ = listener.accept()
            sock.sendall(b"220 mx\\r\\n")
            sock.recv(100)
            sock.close()
    threading.Thread(target=serve, daemon=True).start()
    for source in ("11.0.0.1", "11.0.0.2"):
        for route in ("192.0.2.0/24 dev lo", "local 11.0.0.1 dev lo table local"):
            subprocess.run(["ip", "route", "replace", *route.split(), "src", source], check=True)
        print(dk.probe("11.0.0.1:2525", resolver=Named(), pace=None, timeout=2)["ehlo_name"][0])
"""


def test_the_name_given_is_that_of_the_own_public_address_else_its_literal(need: Callable[[str, str], str]) -> None:
    need("unshare", "util-linux"), need("ip", "iproute2")
    flags = "-n" if os.geteuid() == 0 else "-rn"
    setup = 'ip link set lo up; ip address add 11.0.0.1/32 dev lo; ip address add 11.0.0.2/32 dev lo; exec "$0" -c "$1"'
    command = ["unshare", flags, "sh", "-ec", setup, sys.executable, PUBLIC]
    if subprocess.run(["unshare", flags, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["mx.own.example", "[11.0.0.2]"], done.stderr
