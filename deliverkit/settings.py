"""What to type: the lines for a chosen port in common software, and the commands that test a port by hand."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from deliverkit import facts
from deliverkit.errors import TargetError
from deliverkit.rules import known_name, matches
from deliverkit.targets import _port

SOFTWARE: dict[str, Any] = {row["id"]: row for row in facts.tables("software")["software"]}
_HOST = re.compile(r"(?:[A-Za-z0-9]|\{[a-z]+\})(?:[A-Za-z0-9._-]|\{[a-z]+\}){0,252}")  # {region} is left open
_NAME = re.compile(r"<your user name>|[\w.@+=/!~%-]{1,254}")  # neither ends a quote, word or line where it goes


class Setting(NamedTuple):
    """What one piece of software needs: `where` it goes, the `text` to put there, the traps, and who says so."""

    name: str
    where: str
    text: str
    traps: tuple[str, ...]
    source: str


class HandTest(NamedTuple):
    """One command, its outputs as (words to look for, meaning), and what it cannot tell. No words: nothing appears."""

    name: str
    runs_on: str
    command: str
    outputs: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]
    source: str


def settings(software: str, *, host: str, port: int, security: str, user: str = "<your user name>") -> Setting:
    """What to type into `software` to send through this port; a password is always left to the reader.

    `software`: an id of `SOFTWARE`, or a unique part of one. `security`: implicit or starttls. Raises FactsError
    for a word that is not known, TargetError for a host, port or user that cannot be one.
    """
    row, values = SOFTWARE[known_name("software", software, list(SOFTWARE))], _checked(host, port, security)
    if not (isinstance(user, str) and _NAME.fullmatch(user)):
        raise TargetError(f"a user name of letters, digits and . _ @ + = / ! ~ % - is wanted, not {user!r}")
    odd = [each["says"] for each in facts.tables("software")["mismatch"] if matches(each["when"], values)]
    text = _fill(row[values["security"]].strip(), values | {"user": user})
    return Setting(row["name"], row["where"], text, (*odd, *row["traps"]), f"{row['source']} ({row['url']})")


def by_hand(host: str, port: int, security: str) -> list[HandTest]:
    """The ways to test this port by hand; `limits` end with what holds for all of them. Raises as `settings` does."""
    values, table, made = _checked(host, port, security), facts.tables("hand_tests"), []
    for row in (row for row in table["test"] if values["security"] in row["security"]):
        outputs = tuple((output["seen"], output["means"]) for output in row["output"])
        limits, source = (*row["limits"], *(each["says"] for each in table["limit"])), f"{row['source']} ({row['url']})"
        made.append(HandTest(row["name"], row["runs_on"], _fill(row["command"], values), outputs, limits, source))
    return made


def _checked(host: str, port: int, security: str) -> dict[str, Any]:
    if not (isinstance(host, str) and _HOST.fullmatch(host)):
        raise TargetError(f"{host!r} is not a host name or IPv4 address; a name with other letters needs its xn-- form")
    return {"host": host, "port": _port(port), "security": known_name("security", security, ("implicit", "starttls"))}


def _fill(text: str, values: dict[str, Any]) -> str:
    return re.sub(r"\{(host|port|user)\}", lambda found: str(values[found[1]]), text)
