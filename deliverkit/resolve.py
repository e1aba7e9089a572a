"""Names to addresses, with a word for every way that fails. A name without an address is a result."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

import dns.exception
import dns.resolver


class Answer(NamedTuple):
    """What was found, best first; where nothing was, `failure` says why (dns_nxdomain, null_mx, ...)."""

    found: tuple[str, ...] = ()
    failure: str | None = None


@lru_cache(maxsize=8)
def _resolver(nameserver: str | None) -> dns.resolver.Resolver:
    if nameserver is None:
        return dns.resolver.Resolver()
    made, (address, _, port) = dns.resolver.Resolver(configure=False), nameserver.partition(":")
    made.nameservers, made.port = ([address], int(port)) if port.isdigit() else ([nameserver], 53)
    return made


def _ask(name: str, kinds: tuple[str, ...], nameserver: str | None, timeout: float) -> tuple[list[Any], str]:
    word = "dns_nodata"
    for kind in kinds:
        try:
            return list(_resolver(nameserver).resolve(name, kind, lifetime=timeout, search=False)), ""
        except dns.resolver.NoAnswer:
            continue  # one kind without records, or failing, does not hide the next
        except dns.exception.Timeout:
            word = "dns_timeout"
        except (dns.resolver.NoNameservers, dns.resolver.NoResolverConfiguration):
            word = "dns_servfail"  # also REFUSED and answers that cannot be read
        except dns.exception.DNSException:
            return [], "dns_nxdomain"  # also a name that no zone can hold
    return [], word


def addresses(host: str, *, nameserver: str | None = None, timeout: float = 5.0) -> Answer:
    """IPv4 addresses of a host in the DNS (not of /etc/hosts), or its IPv6 addresses; an address is its own answer.

    `nameserver` is an address or address:port (default: the system's), `timeout` is seconds per question. Never
    raises for what the DNS says: failures are dns_nxdomain, dns_nodata, dns_servfail, dns_timeout.
    """
    with suppress(ValueError):
        return Answer((str(ip_address(host)),))
    if host.lower().rstrip(".") == "localhost":  # RFC 6761: never a question for the DNS
        return Answer(("127.0.0.1", "::1"))
    records, word = _ask(host, ("A", "AAAA"), nameserver, timeout)
    return Answer(tuple(record.address for record in records), word or None)


def mx_hosts(domain: str, *, nameserver: str | None = None, timeout: float = 5.0) -> Answer:
    """Mail servers of a domain, most preferred first; the domain itself if it has no MX (RFC 5321, 5.1).

    Failures are those of `addresses`, and null_mx for a domain that takes no mail (RFC 7505).
    """
    records, word = _ask(domain, ("MX",), nameserver, timeout)
    if word == "dns_nodata":
        return Answer((domain,))
    ranked = sorted((record.preference, record.exchange.to_text().rstrip(".")) for record in records)
    hosts = tuple(dict.fromkeys(name for _, name in ranked if name))
    return Answer(hosts, word or (None if hosts else "null_mx"))
