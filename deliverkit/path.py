"""The way to a port, hop by hop: behind which router one port dies while another of the same address does not.

A SYN that may make n hops has the n-th router say "time exceeded" (RFC 792, RFC 4443), and Linux puts that on the error
queue of the socket the SYN came from (ip(7), IP_RECVERR): no privileges, no raw sockets.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from errno import ECONNREFUSED, ECONNRESET, EINPROGRESS
from threading import Event
from time import monotonic
from typing import NamedTuple

from deliverkit.loop import ERRQUEUE, RECVERR, icmp_of

_TTL = {socket.AF_INET: socket.IP_TTL, socket.AF_INET6: socket.IPV6_UNICAST_HOPS}
_HOPS, _QUIET = 30, 4  # the longest way; hops in a row whose silence is the port's, not the routers'
_EXPIRED = {(4, 11, 0), (6, 3, 0)}  # time exceeded in transit: IP version, ICMP type and code
_MEANS = {0: "server", ECONNRESET: "server", ECONNREFUSED: "no"}  # without ICMP
_REPLY = re.compile(rb"^\d{3}(?: .*)?\r?\n", re.MULTILINE)  # its last line


class _Hop(NamedTuple):
    met: str  # by a SYN that was allowed so many hops: router, server, no (refused) or silence
    sender: str | None  # who said so


def deaths(address: str, live: tuple[int, bool], dead: Sequence[int], stop: Event | None = None,
           wait: float = 0.9) -> dict[int, tuple[int, str | None]]:  # fmt: skip
    """Port -> the last hop that let it through (number, address), for those of the `dead` ports that die on the way.

    `live` is a port of the address that can be reached, and whether TLS starts there with the first byte. Hop 0 is
    this machine; after the last router comes the server, with its own firewall. `wait` is seconds for each hop, less
    than one, after which Linux sends the SYN again. Setting `stop` ends the walk within 0.2 s.

    Left out is every port where this cannot be told: routers that do not answer to the live port either, a refusal
    that comes from as far as the server is, a dead port that is reached after all; and all where not on Linux.
    """
    walk, found = _Walk(address, stop or Event(), wait), {}
    with suppress(OSError):  # sockets that cannot, or `stop`
        way = walk.reach(*live) if ERRQUEUE else []
        for port in dead if way else ():
            if end := walk.lose(port, live[0], way):
                found[port] = end
    return found


class _Walk:
    """SYNs to one address, one after the other."""

    def __init__(self, address: str, stop: Event, wait: float) -> None:
        self.address, self.stop, self.wait = address, stop, wait
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def reach(self, port: int, implicit: bool) -> list[_Hop]:
        """The hops to a port that is known to answer, the server the last of them; none if 30 do not lead there."""
        way: list[_Hop] = []
        while len(way) < _HOPS and (not way or way[-1].met != "server"):
            way.append(self.hop(port, len(way) + 1, implicit))
        return way if way[-1].met == "server" else []

    def lose(self, port: int, live: int, way: Sequence[_Hop]) -> tuple[int, str | None] | None:
        """The last hop on the way of a dead port, None if it is not known."""
        went, last, quiet = [_Hop("router", None)], 0, 0  # hop 0 is this machine
        for ttl, usual in enumerate(way, 1):
            went.append(hop := self.hop(port, ttl))
            if hop.met == "server":
                return None
            if hop.met == "no":  # the server's own takes as many hops as the way has, and names nobody else
                near = ttl < len(way) or hop.sender not in (None, self.address)
                return (ttl - 1, went[-2].sender) if near else None
            last, quiet = (ttl, 0) if hop.met == "router" else (last, quiet + (usual.met == "router"))
            if quiet == _QUIET:
                break
        # Many routers never answer, others so many times a second: silence counts where the live port is answered now.
        gone = self.hop(port, last + 1).met == "silence"
        heard = last + 1 == len(way) or self.hop(live, last + 1).met == "router"
        return (last, went[last].sender) if gone and heard else None

    def hop(self, port: int, ttl: int, implicit: bool = False) -> _Hop:
        with socket.socket(self.family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.setsockopt(*RECVERR[self.family], 1)
            sock.setsockopt(RECVERR[self.family][0], _TTL[self.family], ttl)
            code = sock.connect_ex((self.address, port))
            if code == EINPROGRESS and self.ready(sock, select.POLLOUT, monotonic() + self.wait):
                if icmp := icmp_of(sock):
                    expired = (icmp["family"], icmp["icmp_type"], icmp["icmp_code"]) in _EXPIRED
                    return _Hop("router" if expired else "no", icmp["icmp_from"])
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0 and not implicit:
                self.leave(sock)
            return _Hop(_MEANS.get(code, "silence"), None)

    def leave(self, sock: socket.socket) -> None:
        """End an SMTP session that nobody wanted: hear the greeting, say QUIT, hear the answer."""
        with suppress(OSError):
            for seconds, answer in ((5.0, b"QUIT\r\n"), (2.0, b"")):
                ends, said = monotonic() + seconds, b""
                while len(said) < 8192 and not _REPLY.search(said):
                    if not self.ready(sock, select.POLLIN, ends) or not (got := sock.recv(1024)):
                        return
                    said += got
                sock.send(answer)

    def ready(self, sock: socket.socket, event: int, ends: float) -> bool:
        """Whether it came in time; InterruptedError where `stop` came first."""
        (poll := select.poll()).register(sock, event)
        while not self.stop.is_set():
            left = max(0.0, min(ends - monotonic(), 0.1))
            if (came := poll.poll(1000 * left)) or not left:
                return bool(came)
        raise InterruptedError
