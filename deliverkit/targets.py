"""What to probe, read from what the caller gave: targets, ports, detours and time limits, each checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from math import inf
from operator import index
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
    dns_s: float | None = None


def _many(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]


def _port(port: Any) -> int:
    with suppress(TypeError, ValueError):
        exact = isinstance(port, str) or (isinstance(port, float) and port.is_integer())  # a frame's gaps make floats
        number = int(port) if exact else index(port)
        if 0 < number < 65536 and not isinstance(port, bool):
            return number
    raise TargetError(f"a port is a number from 1 to 65535, not {port!r}")


def is_ip(text: Any) -> bool:
    with suppress(ValueError):
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


def jobs_of(targets: Any, ports: Any, routes: Mapping[tuple[str, int], tuple[int, str, int]]) -> list[Job]:
    """One job per host and port in the order asked; TargetError for what cannot be one."""
    usual = [_port(port) for port in _many(ports)]
    asked = [(target, None, None) for target in _many(targets)]
    if isinstance(targets, pd.DataFrame):
        if "host" not in targets:
            raise TargetError("a frame of targets needs a column 'host'")
        table = targets.reindex(columns=["host", "port", "operator"]).astype(object)
        asked = list(table.where(table.notna(), None).itertuples(index=False, name=None))
    found: dict[tuple[str, int], Job] = {}
    for target, given, operator in asked:
        host, port = _split(target)
        name, port = host.lower().rstrip("."), port if given is None else given
        crowd = operator or (name if is_ip(name) else ".".join(name.split(".")[-2:]))
        for number in usual if port is None else [_port(port)]:
            keys = ((name, number), (name, 0), ("", number), ("", 0))
            _, dial, to = min((routes[key] for key in keys if key in routes), default=(0, "", 0))
            job = Job(len(found), host, number, operator, dial or name, to or number, crowd, name if dial else "")
            found.setdefault((name, number), job)
    return list(found.values())


def limits_of(timeout: Any) -> dict[str, float]:
    """Seconds per stage, and for the whole."""
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < inf
    if not number and timeout not in _PROFILES:
        raise TargetError(f"timeout should be seconds above 0, or {', '.join(_PROFILES)}, not {timeout!r}")
    connect, banner, rest = (float(timeout),) * 3 if number else _PROFILES[timeout]
    made = {"connect": connect, "banner": banner, "quit": min(2.0, rest), "total": connect + banner + 3 * rest + 2}
    return made | dict.fromkeys(("ehlo", "starttls", "tls"), rest)
