"""Domains to servers, names to addresses, with a word for every way that fails: what leads nowhere is a result."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from ipaddress import ip_address
from math import inf
from pathlib import Path
from threading import Lock
from time import monotonic
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import dns.exception
import dns.flags
import dns.resolver
import dns.reversename
import pandas as pd

from deliverkit.errors import TargetError
from deliverkit.policies import HOST, StsPolicy, outgoing_servers, sts_id, sts_matches, sts_policy
from deliverkit.probe import cert_word, tls_word
from deliverkit.schema import SERVERS
from deliverkit.targets import is_ip, jobs_of, routes_of

_KEEP_S, _AGAIN_S = 3600.0, 30.0  # answers live as long as their TTL, an hour at most; failures that (RFC 9520, 3.2)
_KEPT, _MOST = 50_000, 32  # answers in the cache; records of an answer that are followed: strangers write them
_WEB_S, _WEB_BYTES = 10.0, 65536  # for an HTTPS request and its reply with all that belongs to them
_UNKNOWN = ("dns_servfail", "dns_timeout")  # failures that do not say that there is nothing
_USUAL = {"mx": (25, "starttls"), "submissions": (465, "implicit"), "submission": (587, "starttls")}  # RFC 8314, 7.3
_HOSTS = Path(os.environ.get("SYSTEMROOT", "/"), "System32/drivers" * (sys.platform == "win32"), "etc/hosts")


class Answer(NamedTuple):
    """What was found, best first; where nothing was, `failure` says why (dns_nxdomain, null_mx, ...)."""

    found: tuple[str, ...] = ()
    failure: str | None = None


class _Said(NamedTuple):
    """An answer of the DNS as it came."""

    records: tuple[Any, ...] = ()
    failure: str | None = None
    secure: bool | None = None  # authenticated; missing if the resolver is not trusted to say so
    name: str = ""  # where CNAMEs led to


class Resolver:
    """Asks the DNS, from any thread: each question once for as long as its answer lives, an hour at most.

    `nameserver` is an address or address:port (default: the system's), `timeout` is seconds per question. `trust_ad`
    says that the way to this resolver is safe, a validating one on this machine for one, so that its AD bit counts
    as DNSSEC. `hosts` looks into the system's hosts file first. Called with a name it gives the addresses of both
    families as an `Answer`, IPv4 first, and never raises for what the DNS says: failures are dns_nxdomain, dns_nodata,
    dns_servfail, dns_timeout. Raises TargetError for a name server or a time that cannot be one.
    """

    def __init__(self, nameserver: str | None = None, *, timeout: float = 5.0, trust_ad: bool = False,
                 hosts: bool = True) -> None:  # fmt: skip
        if not isinstance(timeout, int | float) or not 0 < timeout < inf:
            raise TargetError(f"timeout should be seconds above 0, not {timeout!r}")
        self._timeout, self._trust_ad, self._lock = timeout, trust_ad, Lock()
        self._kept: dict[Any, list[Any]] = {}  # question -> lock, when its answer is too old, answer
        self._hosts = _hosts_file() if hosts else {}
        self._dns = dns.resolver.Resolver(configure=False)
        if nameserver is None:
            with suppress(dns.resolver.NoResolverConfiguration):  # then every question fails: dns_timeout
                self._dns = dns.resolver.Resolver()
        else:
            way = jobs_of(nameserver, 53, {})[0]
            if not is_ip(way.dial):
                raise TargetError(f"a name server is an address or address:port, not {nameserver!r}")
            self._dns.nameservers, self._dns.port = [way.dial], way.dial_port
        if trust_ad:  # RFC 6840, 5.7: either bit asks for the answer, not all heed both
            self._dns.use_edns(0, dns.flags.DO, 1232)
            self._dns.set_flags(dns.flags.RD | dns.flags.AD)

    def __call__(self, name: str) -> Answer:
        said = self.host(name)
        return Answer(said.records, said.failure)

    def once(self, key: Any, work: Callable[[], tuple[Any, float]]) -> Any:
        """What `work` gives, kept for the seconds it says; who wants the same meanwhile waits for it."""
        with self._lock:
            kept = self._kept.setdefault(key, [Lock(), 0.0, None])
            if len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        with kept[0]:
            if kept[1] <= monotonic():
                kept[2], keep_s = work()
                kept[1] = monotonic() + min(keep_s, _KEEP_S)
            return kept[2]

    def ask(self, name: str, kind: str) -> _Said:
        """The records of one kind of a name, CNAMEs followed."""
        return cast(_Said, self.once((name.lower(), kind), lambda: self._ask(name, kind)))

    def _ask(self, name: str, kind: str) -> tuple[_Said, float]:
        try:
            got: Any = self._dns.resolve(name, kind, lifetime=self._timeout, search=False, raise_on_no_answer=False)
            response, word = got.response, None if got.rrset else "dns_nodata"
        except dns.resolver.NXDOMAIN as no:
            [response], word = cast(Any, no).responses().values(), "dns_nxdomain"
        except dns.resolver.NoNameservers as lost:  # also REFUSED, answers that cannot be read, and nobody there
            heard = any(error[-1] is not None for error in lost.kwargs.get("errors", ()))
            return _Said(failure="dns_servfail" if heard else "dns_timeout"), _AGAIN_S
        except dns.exception.DNSException as lost:  # also a name that no zone can hold
            late = isinstance(lost, dns.exception.Timeout)
            return _Said(failure="dns_timeout" if late else "dns_nxdomain"), _AGAIN_S
        chain, secure = response.resolve_chaining(), bool(response.flags & dns.flags.AD) if self._trust_ad else None
        return _Said(tuple(chain.answer or ()), word, secure, _text(chain.canonical_name)), chain.minimum_ttl

    def host(self, name: str) -> _Said:
        """The addresses of a host, IPv4 first; an address is its own answer, localhost no question (RFC 6761)."""
        low = name.lower().rstrip(".")
        here = [name] if is_ip(name) else ["127.0.0.1", "::1"] if low == "localhost" else self._hosts.get(low)
        parts = [] if here else [self.ask(low, "A")]
        if parts and parts[0].failure != "dns_nxdomain":
            parts.append(self.ask(low, "AAAA"))  # one kind without records, or failing, does not hide the other
        found = {ip_address(at) for at in here or [record.address for part in parts for record in part.records]}
        if not found:
            return next((part for part in parts if part.failure != "dns_nodata"), parts[0])
        ranked = map(str, sorted(found, key=lambda at: (at.version, int(at))))
        led = next((part.name for part in parts if part.records), low)
        return _Said(tuple(ranked)[:_MOST], None, _all(*(part.secure for part in parts)) if parts else None, led)

    def name_of(self, address: str) -> str | None:
        """The name of an address, if that leads back to it."""
        said = self.ask(dns.reversename.from_address(address).to_text(), "PTR")
        names = [_text(record.target) for record in said.records[:3]]
        return next((n for n in names if HOST.fullmatch(n) and address in self.host(n).records), None)

    def mx(self, domain: str) -> tuple[list[tuple[int, str]], _Said, str]:
        """Preference and name of the mail servers of a domain, the answer behind them, and what they are."""
        said = self.ask(domain, "MX")
        if said.failure == "dns_nodata":
            return [(0, domain)], said, "implicit MX (RFC 5321, 5.1)"
        best: dict[str, int] = {}  # the only "." of RFC 7505 has no name, one among others means nothing
        for preference, name in sorted((record.preference, _text(record.exchange)) for record in said.records):
            best.setdefault(name, preference)
        found = [(preference, name) for name, preference in best.items() if name][:_MOST]
        return found, said if found or said.failure else said._replace(failure="null_mx"), "MX"

    def tlsa(self, host: str, port: int, at: _Said) -> tuple[str | None, bool | None]:
        """The TLSA records of a port, and whether DNSSEC vouches for them and what led there (RFC 7672, 2.2)."""
        alias, secure = at.name != host, at.secure
        if alias and secure is False:  # where the alias leads to need not be signed, if it is itself
            secure = self.ask(host, "CNAME").secure
        said = self.ask(f"_{port}._tcp.{at.name if at.secure else host}", "TLSA")
        if alias and at.secure and not said.records and said.failure not in _UNKNOWN:
            said = self.ask(f"_{port}._tcp.{host}", "TLSA")
        texts = sorted(f"{r.usage} {r.selector} {r.mtype} {r.cert.hex()}" for r in said.records)
        return "; ".join(texts[:_MOST]) or None, _all(secure, said.secure)


def _text(name: Any) -> str:
    return str(name.to_text()).rstrip(".").lower()


def _all(*secure: bool | None) -> bool | None:
    return None if None in secure else all(secure)


def _hosts_file() -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    with suppress(OSError):
        for line in _HOSTS.read_text("utf-8", "replace").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            for name in names if is_ip(address) else ():
                made.setdefault(name.lower().rstrip("."), []).append(address)
    return made


def own_names(resolver: Any) -> dict[str, str]:
    """What the public addresses that this machine sends from are called, if the names lead back to them."""
    made: dict[str, str] = {}
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((far, 25))  # asks the routing table, and nobody else
            own = sock.getsockname()[0]
            known = isinstance(resolver, Resolver) and ip_address(own).is_global
            if known and (name := resolver.name_of(own)):
                made[own] = name
    return made


def addresses(host: str, *, nameserver: str | None = None, timeout: float = 5.0) -> Answer:
    """The addresses of one host, as a `Resolver` gives them; a `nameserver` is asked without the hosts file."""
    return Resolver(nameserver, timeout=timeout, hosts=nameserver is None)(host)


def mx_hosts(domain: str, *, nameserver: str | None = None, timeout: float = 5.0) -> Answer:
    """Mail servers of a domain, most preferred first; the domain itself if it has no MX (RFC 5321, 5.1).

    Failures are those of `addresses`, and null_mx for a domain that takes no mail (RFC 7505).
    """
    found, said, _ = Resolver(nameserver, timeout=timeout).mx(domain)
    return Answer(tuple(name for _, name in found), None if found else said.failure)


def resolve(domains: str | Iterable[str], *, resolver: Resolver | None = None,
            services: Iterable[str] = ("mx", "submission", "autoconfig"), policies: bool = True,
            connect_to: Any = None, trust: ssl.SSLContext | str | Path | None = None) -> pd.DataFrame:  # fmt: skip
    """The mail servers of domains, and what the domains promise of them: a `SERVERS` frame, targets for `dk.probe`.

    A row per domain, service, host, port and address, in the order asked; each domain once. `services` are mx (with
    null MX, RFC 7505, and implicit MX), submission (SRV of submissions and submission, RFC 6186 and 8314) and
    autoconfig (Thunderbird's file at the domain, over HTTPS). What a domain does not have gives no row; an MX that
    leads nowhere, a service that is decidedly not offered and a question without an answer give one with `failure`:
    dns_nxdomain, dns_nodata, dns_servfail, dns_timeout, null_mx, not_offered. At most 32 hosts of a service and 32
    addresses of a host are followed.

    `policies` asks for TLSA (RFC 7672) and, for mx, the MTA-STS policy (RFC 8461): what of it fails is a word in
    `mta_sts_failure`. `resolver` is a `Resolver`, whose cache then serves the next call, too; `dnssec` and
    `tlsa_secure` are missing unless it has `trust_ad`. `connect_to` leads HTTPS elsewhere, as in `dk.probe`. `trust`
    is an `ssl.SSLContext`, or a PEM file or its text trusted beside this machine's CAs. HTTPS is verified, not
    redirected, and ends after 10 s or 64 KB. Raises TargetError for what cannot be a domain, service or trust.
    """
    jobs, wanted = jobs_of(domains, 25, {}), [services] if isinstance(services, str) else list(services)
    if odd := [job.host for job in jobs if is_ip(job.host) or job.port != 25] or set(wanted) - {
        "mx",
        "submission",
        "autoconfig",
    }:
        raise TargetError(f"domains are names, services are mx, submission or autoconfig: not {min(odd)!r}")
    if not isinstance(resolver, Resolver | None):
        raise TargetError(f"resolver should be a deliverkit.Resolver, not {resolver!r}")
    try:
        context = trust if isinstance(trust, ssl.SSLContext) else ssl.create_default_context()
        if trust is not None and context is not trust:
            context.load_verify_locations(**{"cadata" if "-----BEGIN" in str(trust) else "cafile": str(trust)})
    except (OSError, ValueError):
        raise TargetError("trust should be a context, or a PEM file of certificates: its path or its text") from None
    search = _Search(resolver or Resolver(), wanted, policies, routes_of(connect_to), context)
    with ThreadPoolExecutor(32) as pool:
        return SERVERS.build([row for rows in pool.map(search.rows, (job.host for job in jobs)) for row in rows])


_Place = tuple[int | None, int | None, str, int, str | None]  # preference, weight, host, port, mode


class _Search(NamedTuple):
    """One call of `resolve`."""

    resolver: Resolver
    services: Sequence[str]
    policies: bool
    routes: Any
    context: ssl.SSLContext

    def rows(self, asked: str) -> list[dict[str, Any]]:
        """All rows of a domain."""
        domain, made = asked.lower().rstrip(".").encode("idna").decode(), list[dict[str, Any]]()
        for service, source, said, places in self._found(domain):
            about = {"domain": asked, "service": service, "source": source}
            policy = self._policy(domain) if service == "mx" and self.policies and places else None
            for preference, weight, host, port, mode in places or [(None, None, "", *_USUAL[service])]:
                good = bool(HOST.fullmatch(host)) and not is_ip(host)
                lost = _Said(failure="dns_nxdomain" if places else said.failure, secure=said.secure)
                at = self.resolver.host(host) if good else lost
                row = {"host": host if good else None, "port": port, "mode": mode, "preference": preference}
                row |= {"weight": weight, "failure": at.failure, "dnssec": _all(said.secure, at.secure), **about}
                if self.policies and at.records:
                    row["tlsa"], vouched = self.resolver.tlsa(host, port, at)
                    row["tlsa_secure"] = _all(said.secure, vouched)
                if policy:
                    word = "matched" if sts_matches(policy, host) else "not_matched"
                    row["mta_sts"] = None if policy.failure else "none" if policy.mode in (None, "none") else word
                    row |= {"mta_sts_mode": policy.mode, "mta_sts_failure": policy.failure}
                made += [row | {"address": ip, "family": 6 if ":" in ip else 4} for ip in at.records] or [row]
        return made

    def _found(self, domain: str) -> Iterator[tuple[str, str, _Said, list[_Place]]]:
        """Service, where it was found, the answer behind it, and its places."""
        if "mx" in self.services:
            found, said, source = self.resolver.mx(domain)
            yield "mx", source, said, [(preference, None, host, 25, "starttls") for preference, host in found]
        for service in ("submissions", "submission") if "submission" in self.services else ():
            said, mode = self.resolver.ask(f"_{service}._tcp.{domain}", "SRV"), _USUAL[service][1]
            ranked = sorted((r.priority, -r.weight, _text(r.target), r.port) for r in said.records)
            places: list[_Place] = [(n, -less, host, port, mode) for n, less, host, port in ranked if host and port]
            if not places and any(not host for _, _, host, _ in ranked):
                said = said._replace(failure="not_offered")
            if places or said.failure not in (None, "dns_nxdomain", "dns_nodata"):
                yield service, "SRV", said, places[:_MOST]
        if "autoconfig" in self.services:
            source, servers = self.resolver.once(("autoconfig", domain), lambda: self._autoconfig(domain))
            if servers:
                yield "autoconfig", source, _Said(secure=True), [(n, None, *it) for n, it in enumerate(servers)]

    def _policy(self, domain: str) -> StsPolicy:
        said = self.resolver.ask(f"_mta-sts.{domain}", "TXT")
        name = sts_id(b"".join(record.strings).decode("ascii", "replace") for record in said.records)
        if name is None:
            return StsPolicy(failure=said.failure if said.failure in _UNKNOWN else None)

        def fetch() -> tuple[StsPolicy, float]:
            body, word = self._get(f"mta-sts.{domain}", "/.well-known/mta-sts.txt", "text/plain")
            policy = StsPolicy(failure=word) if word else sts_policy(body.decode("utf-8", "replace"))
            return policy, policy.max_age_s

        return cast(StsPolicy, self.resolver.once(("mta-sts", domain, name), fetch))

    def _autoconfig(self, domain: str) -> tuple[tuple[str, Sequence[tuple[str, int, str]]], float]:
        path = "/mail/config-v1.1.xml"
        for host, where in ((f"autoconfig.{domain}", path), (domain, f"/.well-known/autoconfig{path}")):
            if servers := outgoing_servers(self._get(host, where)[0], domain):
                return (f"https://{host}{where}", servers), _KEEP_S
        return ("", ()), 0.0

    def _get(self, host: str, path: str, kind: str | None = None) -> tuple[bytes, str | None]:
        """The body of https://host/path, of type `kind`, or a word; hostile servers get 10 s and 64 KB."""
        if not HOST.fullmatch(host):
            return b"", "dns_nxdomain"
        [job] = jobs_of(f"{host}:443", 443, self.routes)
        found, word = self.resolver(job.dial)
        until, said = monotonic() + _WEB_S, b""
        ask = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        for address in found[:3]:
            stage = "tcp"
            try:
                with socket.create_connection((address, job.dial_port), _WEB_S / 4) as plain:
                    stage = "tls"
                    plain.settimeout(max(until - monotonic(), 0.001))  # all of the handshake, however slow its bytes
                    with self.context.wrap_socket(plain, server_hostname=host) as tls:
                        stage = "http"
                        tls.sendall(ask.encode("ascii"))
                        while len(said) <= _WEB_BYTES:
                            tls.settimeout(max(until - monotonic(), 0.001))
                            if not (more := tls.recv(16384)):
                                break
                            said += more
                return _body(said, kind)
            except OSError as problem:
                word = _word(problem, stage)
            if stage != "tcp":
                break
        return b"", word


def _word(problem: OSError, stage: str) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"cert_{cert_word(problem)}"
    if isinstance(problem, ssl.SSLError):
        return tls_word(problem)
    word = "tcp_refused" if isinstance(problem, ConnectionRefusedError) else "host_unreachable"
    return f"{stage}_timeout" if isinstance(problem, TimeoutError) else word if stage == "tcp" else "reset"


def _body(said: bytes, kind: str | None) -> tuple[bytes, str | None]:
    """The body of an HTTP reply that has come to its end, or a word."""
    if len(said) > _WEB_BYTES:
        return b"", "http_too_large"
    try:
        reply = HTTPResponse(cast(Any, SimpleNamespace(makefile=lambda _: BytesIO(said))))
        reply.begin()
        body = reply.read()
    except (HTTPException, ValueError, OverflowError):
        return b"", "http_protocol"
    if reply.status != 200:
        return b"", f"http_{reply.status}"
    if kind and reply.getheader("Content-Type", "").partition(";")[0].strip().lower() != kind:
        return b"", "http_type"
    return body, None
