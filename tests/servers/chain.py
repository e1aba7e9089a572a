"""A way of four hops in network namespaces, with real routers and packet filters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import pytest

# Nobody is held back by the kernel's own limits on ICMP, so that the rules of a test are all there is.
_OPEN = """
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
echo 0 > /proc/sys/net/ipv6/icmp/ratelimit
"""
_SERVER = """if True:
    import contextlib, socket, socketserver, sys, threading
    class Session(socketserver.StreamRequestHandler):
        def handle(self):
            words = []
            with contextlib.suppress(ConnectionError):
                self.wfile.write(b"220-mx.example\\r\\n220 ESMTP\\r\\n")
                while words[-1:] != ["QUIT"] and (line := self.rfile.readline()):
                    words.append(line.strip().decode())
                    self.wfile.write(b"221 Bye\\r\\n" if words[-1] == "QUIT" else b"250 mx.example\\r\\n")
            print(*words, "end", flush=True)
    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6
        allow_reuse_address = True
    for port in map(int, sys.argv[1:]):
        threading.Thread(target=Server(("::", port), Session).serve_forever).start()
    print(flush=True)
"""


class Chain:
    """client - r1 - r2 - r3 - server, IPv4 and IPv6; a context manager.

    Nothing of it is left when the tests end, however they do.

    `faces[node][version]` is the address of a node on the side of the client, so `faces["server"][4]` is what the
    client connects to and `faces["r2"][4]` who answers to the client at hop 2.
    """

    nodes = ("client", "r1", "r2", "r3", "server")

    def __init__(self, need: Callable[[str, str], str]) -> None:
        for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2")):
            need(program, package)
        self.faces = {node: {4: f"10.9.{n}.2", 6: f"fd09:{n}::2"} for n, node in enumerate(self.nodes[1:])}
        self._root = os.geteuid() == 0
        flags = "-n" if self._root else "-rn"
        if subprocess.run(["unshare", flags, "nft", "list", "ruleset"], capture_output=True, check=False).returncode:
            pytest.skip("network namespaces with nftables are not permitted here")

    def __enter__(self) -> Self:
        self._held, self._pids = ExitStack(), dict[str, int]()
        for node in self.nodes:
            command = ["unshare", "-n" if self._root or self._pids else "-rn", "sh", "-c", "echo; exec cat"]
            enter = self.enter("client", "-U") if self._pids and not self._root else []
            host = subprocess.Popen([*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._held.enter_context(host)  # closes its input, at which cat ends
            assert host.stdout and host.stdout.readline()
            self._pids[node] = host.pid
            self.run(node, "sh", "-ec", _OPEN)
        for n, node in enumerate(self.nodes[1:]):
            left = self.nodes[n]
            self.ip(left, f"link add right type veth peer name left netns {self._pids[node]}")
            for here, side, end in ((left, "right", 1), (node, "left", 2)):
                self.ip(here, f"address add 10.9.{n}.{end}/24 dev {side}")
                self.ip(here, f"address add fd09:{n}::{end}/64 dev {side} nodad", f"link set {side} up")
        for n, node in enumerate(self.nodes):
            for link in range(len(self.nodes) - 1):
                by, end = (n, 2) if link > n else (n - 1, 1)
                if link not in (n, n - 1):
                    self.ip(node, f"route add 10.9.{link}.0/24 via 10.9.{by}.{end}")
                    self.ip(node, f"-6 route add fd09:{link}::/64 via fd09:{by}::{end}")
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def enter(self, node: str, *more: str) -> list[str]:
        """What a command has to begin with to be run in a node."""
        user = [] if self._root else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._pids[node]}", *user, *(more or ("--net",))]

    def run(self, node: str, *command: str, given: str = "") -> str:
        """What a command in a node says; it has to succeed."""
        done = subprocess.run(
            [*self.enter(node), *command], input=given, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
        return done.stdout

    def ip(self, node: str, *commands: str) -> None:
        for command in commands:
            self.run(node, "ip", *command.split())

    @contextmanager
    def serve(self, *ports: int) -> Iterator[subprocess.Popen[str]]:
        """An SMTP server at the end, without TLS; it prints a line for each session: the commands, and `end`."""
        command = [*self.enter("server"), sys.executable, "-c", _SERVER, *map(str, ports)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout and server.stdout.readline()
            try:
                yield server
            finally:
                server.kill()

    def rules(self, node: str, *rules: str) -> None:
        """The packet filter of a node, anew: lines such as `forward tcp dport 25 drop`, in the family inet."""
        lines = ["flush ruleset", "table inet t {"]
        for hook in ("input", "forward", "output"):
            own = [rule.partition(" ")[2] for rule in rules if rule.startswith(hook)]
            lines += [f"chain {hook} {{", f"type filter hook {hook} priority 0", *own, "}"]
        self.run(node, "nft", "-f", "-", given="\n".join([*lines, "}", ""]))
