"""What to probe, read from what the caller gave: targets, ports, detours and time limits, each checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from math import inf
from operator import index
from socket import AF_INET, inet_pton
from typing import Any, NamedTuple

import pandas as pd

from deliverkit.errors import TargetError

_PROFILES = {"quick": (5.0, 10.0, 10.0), "standard": (10.0, 30.0, 30.0), "patient": (30.0, 300.0, 300.0)}
_PLACE = re.compile(r"(?:\[([^\]]*)\]|([\w.-]+))(?::(.*))?")  # host, host:port, [v6], [v6]:port
_CURL = re.compile(r"(\[[^\]]*\]|[^:]*):(\d*):(\[[^\]]*\]|[^:]*):(\d*)")


class Job(NamedTuple):
    """One port of one host to try, and where to dial for it."""

    number: int
    host: str
    port: int
    operator: str | None
    dial: str  # name or address to connect to
    dial_port: int
    crowd: str  # whom not to hurry: the operator, and
    key: str  # the host where it is mapped, else its address
    family: int = 0  # 4 or 6; 0: IPv4 where there is one
    known: Mapping[str, Any] | None = None  # of a frame of `resolve`: failure, tlsa, tlsa_secure, mta_sts
    dns_s: float | None = None
    attempt: int = 1
    solo: bool = False  # begun while nothing else was asked of its address

    def name(self) -> tuple[str, int, str | int]:
        """What makes it another job: host, port, and the address or else the IP version that is asked for."""
        return self.host.lower().rstrip("."), self.port, self.dial if is_ip(self.dial) else self.family


def _many(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]


def _port(port: Any) -> int:
    with suppress(TypeError, ValueError):
        exact = isinstance(port, str) or (isinstance(port, float) and port.is_integer())  # a frame's gaps make floats
        number = int(port) if exact else index(port)
        if 0 < number < 65536 and not isinstance(port, bool):
            return number
    raise TargetError(f"a port is a number from 1 to 65535, not {port!r}")


def ports_of(ports: Any) -> list[int]:
    """One port or several as numbers; TargetError for what is none."""
    return [_port(port) for port in _many(ports)]


def is_ip(text: Any) -> bool:
    with suppress(ValueError, OSError):
        if isinstance(text, str) and ":" not in text:
            return bool(inet_pton(AF_INET, text))  # twenty times faster, for sweeps of many addresses
        return bool(ip_address(text))
    return False


def _split(target: Any) -> tuple[str, Any]:
    """Host and port (None where none is given) of a target."""
    text = target.strip() if isinstance(target, str) else ""
    place = _PLACE.fullmatch(text)
    if "://" in text:
        raise TargetError(f"{target!r} is an address of the web; a host name is wanted, such as smtp.example.com")
    with suppress(UnicodeError):
        if is_ip(text):  # a bare IPv6 address is no host:port
            return text, None
        if place and (is_ip(place[1]) or (place[2] and len(text) < 260 and place[2].rstrip(".").encode("idna"))):
            return place[1] or place[2], place[3]
    raise TargetError(f"{target!r} is not a host name, an address or host:port")


def routes_of(connect_to: Any) -> dict[tuple[str, int], tuple[int, str, int]]:
    """(host, port) -> place in the list, address, port; "" and 0 stand for any and for unchanged."""
    made: dict[tuple[str, int], tuple[int, str, int]] = {}
    for number, pair in enumerate(connect_to.items() if isinstance(connect_to, Mapping) else _many(connect_to or ())):
        try:
            parts = _CURL.fullmatch(pair) if isinstance(pair, str) else None
            (host, port), (address, to) = (parts.group(1, 2), parts.group(3, 4)) if parts else pair
            key = (host or "").strip("[]").lower().rstrip("."), _port(port) if port else 0
            made.setdefault(key, (number, _split(address)[0] if address else "", _port(to) if to else 0))
        except (TypeError, ValueError, AttributeError, TargetError):
            wanted = "HOST:PORT:ADDRESS:PORT, or {(host, port): (address, port)}"
            raise TargetError(f"connect_to is {wanted}, not {pair!r}") from None
    return made


def crowd_of(host: str) -> str:
    """Whom a host belongs to, as far as its name tells: the last two labels, or the /24 or /48 of an address."""
    if not is_ip(host):
        return ".".join(host.lower().rstrip(".").split(".")[-2:])
    return str(ip_network((host, 48), strict=False)) if ":" in host else f"{host.rpartition('.')[0]}.0/24"


_KNOWN = ("failure", "tlsa", "tlsa_secure", "mta_sts")


def jobs_of(targets: Any, ports: Any, routes: Mapping[tuple[str, int], tuple[int, str, int]],
            family: Any = None) -> list[Job]:  # fmt: skip
    """One job per host, port and IP version in the order asked; TargetError for what cannot be one."""
    if family not in (None, 4, 6, "both") or isinstance(family, bool):
        raise TargetError(f"family should be 4, 6, 'both' or None, not {family!r}")
    families = (4, 6) if family == "both" else (family or 0,)
    usual = ports_of(ports)
    asked: Iterable[tuple[Any, ...]] = ((target, *[None] * 8) for target in _many(targets))
    if isinstance(targets, pd.DataFrame):
        if "host" not in targets:
            raise TargetError("a frame of targets needs a column 'host'")
        known_columns = ("address", "domain", *_KNOWN) if "verdict" not in targets else ()  # probes are asked anew
        table = targets[[name for name in ("host", "port", "operator", *known_columns) if name in targets]]
        table = table.reindex(columns=["host", "port", "operator", "address", "domain", *_KNOWN]).astype(object)
        asked = table.where(table.notna(), None).itertuples(index=False, name=None)
    found: dict[tuple[str, int, str | int], Job] = {}
    for target, given, operator, address, domain, *known in asked:
        if target is None and known[0] and domain:  # a name that led nowhere is a row, too
            target = domain
        host, port = _split(target)
        name, port = host.lower().rstrip("."), port if given is None else given
        crowd = operator or crowd_of(name)
        facts = dict(zip(_KNOWN, known, strict=True)) if any(value is not None for value in known) else None
        for number in usual if port is None else [_port(port)]:
            keys = ((name, number), (name, 0), ("", number), ("", 0))
            _, dial, to = min((routes[key] for key in keys if key in routes), default=(0, "", 0))
            to_where, mapped = dial or (address and _split(address)[0]) or name, name if dial else ""
            own = families
            if is_ip(to_where):
                to_where, own = str(ip_address(to_where)), (6 if ":" in to_where else 4,)
                mapped = mapped or to_where
                if not dial and family in (4, 6) and own != families:  # the other IP version was asked for
                    if address:
                        continue
                    facts, own = dict.fromkeys(_KNOWN) | {"failure": "dns_nodata"}, families
            for version in own:
                job = Job(len(found), host, number, operator, to_where, to or number, crowd, mapped, version, facts)
                unique = (to_where, number, version) if address and not dial else job.name()
                found.setdefault(unique, job)
    return list(found.values())


def limits_of(timeout: Any) -> dict[str, float]:
    """Seconds per stage, and for the whole."""
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < inf
    if not number and timeout not in _PROFILES:
        raise TargetError(f"timeout should be seconds above 0, or {', '.join(_PROFILES)}, not {timeout!r}")
    connect, banner, rest = (float(timeout),) * 3 if number else _PROFILES[timeout]
    made = {"connect": connect, "banner": banner, "quit": min(2.0, rest), "total": connect + banner + 3 * rest + 2}
    return made | dict.fromkeys(("ehlo", "starttls", "tls"), rest)
