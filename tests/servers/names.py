"""Knot serves signed and unsigned zones, unbound asks it and validates: the DNS as it is, on loopback."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dns.message import make_query
from dns.query import udp

_KNOT = """
server:
    listen: 127.0.0.1@{port}
    rundir: "{folder}"
    pidfile: "{folder}/pid"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{folder}"
log:
  - target: stderr
    any: error
policy:
  - id: tests
    algorithm: ecdsap256sha256
zone:
"""
_ZONE = """  - domain: {zone}
    file: "{file}"
    dnssec-signing: {sign}
    dnssec-policy: tests
"""
_UNBOUND = """
server:
    interface: 127.0.0.1@{port}
    interface: ::1@{port}
    port: {port}
    outgoing-interface: 127.0.0.1
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{folder}"
    pidfile: ""
    use-syslog: no
    log-queries: yes
    do-not-query-localhost: no
    module-config: "validator iterator"
"""
_STUB = 'stub-zone:\n    name: "{zone}"\n    stub-addr: 127.0.0.1@{port}\n'
_HEAD = "$ORIGIN {zone}.\n$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(name: str, command: list[str], log: Path, port: int) -> Iterator[None]:
    """A name server, from when it answers to the end."""
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            for _ in range(200):
                try:
                    udp(make_query(name, "SOA"), "127.0.0.1", timeout=0.2, port=port)
                    break
                except Exception:  # noqa: BLE001 - not there yet: refused, silent, or not even a socket
                    time.sleep(0.05)
            else:
                raise AssertionError(log.read_text())
            yield
        finally:
            server.terminate()
            server.wait(20)


@contextmanager
def name_servers(need: Callable[[str, str], str], folder: Path, zones: Mapping[str, str], signed: set[str],
                 forged: Mapping[str, Mapping[str, str]], more: str) -> Iterator[tuple[str, Path]]:  # fmt: skip
    """Unbound's address:port and its log of questions, for `zones` (name -> records).

    Those in `signed` are signed, and unbound trusts their keys; what matches a pattern of `forged` is replaced after
    signing. `more` stands at the end of unbound's server section.
    """
    sign, keys, serve = need("kzonesign", "knot-dnssecutils"), need("keymgr", "knot"), need("knotd", "knot")
    ask, knot, front = need("unbound", "unbound"), free_port(), free_port()
    config, made, anchors = folder / "knot.conf", folder / "signed", ""
    made.mkdir()
    head = _KNOT.format(port=knot, folder=folder)
    for zone, records in zones.items():
        (folder / f"{zone}.zone").write_text(_HEAD.format(zone=zone) + records)
    names = [(zone, folder / f"{zone}.zone", "on" if zone in signed else "off") for zone in zones]
    config.write_text(head + "".join(_ZONE.format(zone=zone, file=file, sign=on) for zone, file, on in names))
    for zone in signed:
        subprocess.run([sign, "-c", config, "-o", made, zone], check=True, capture_output=True)
        told = subprocess.run([keys, "-c", config, zone, "ds"], check=True, capture_output=True, text=True)
        anchors += f'    trust-anchor: "{told.stdout.splitlines()[0]}"\n'
        whole = (made / f"{zone}.zone").read_text()
        for was, now in forged.get(zone, {}).items():
            whole, changed = re.subn(was, now, whole, count=1, flags=re.MULTILINE)
            assert changed, f"{was} does not stand in {zone}"
        (folder / f"{zone}.zone").write_text(whole)
    config.write_text(head + "".join(_ZONE.format(zone=zone, file=file, sign="off") for zone, file, _ in names))
    stubs = "".join(_STUB.format(zone=zone, port=knot) for zone in (*zones, "."))  # knot refuses what is not its own
    text = _UNBOUND.format(port=front, folder=folder) + anchors + more.format(port=front) + stubs
    (folder / "unbound.conf").write_text(text)
    with ExitStack() as stack:
        stack.enter_context(running(next(iter(zones)), [serve, "-c", str(config)], folder / "knot.log", knot))
        log = folder / "unbound.log"
        command = [ask, "-d", "-c", str(folder / "unbound.conf")]
        stack.enter_context(running(next(iter(zones)), command, log, front))
        yield f"127.0.0.1:{front}", log
