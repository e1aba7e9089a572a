"""What a domain publishes about its servers, read without asking anybody: MTA-STS, TLSA, autoconfig."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256, sha512
from typing import NamedTuple
from xml.etree import ElementTree

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HOST = re.compile(r"(?=.{1,253}$)[a-z\d_-]{1,63}(?:\.[a-z\d_-]{1,63})*", re.A | re.I)  # what a stranger may call one
_TLSA = re.compile(r"(?a:([23]) ([01]) ([012]) )((?:[0-9a-fA-F]{2})+)")
_MODES = {"ssl": "implicit", "starttls": "starttls", "plain": "cleartext"}  # socketType of autoconfig
_UNREAD = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.DuplicateExtension)


class StsPolicy(NamedTuple):
    """An MTA-STS policy; `failure` says why it is none: sts_syntax, sts_version, sts_mode, sts_max_age, sts_mx."""

    mode: str | None = None  # enforce, testing or none
    mx: tuple[str, ...] = ()
    max_age_s: int = 0
    failure: str | None = None


def sts_id(texts: Iterable[str]) -> str | None:
    """The id in the TXT records of _mta-sts; None unless exactly one of them is of STSv1 (RFC 8461, 3.1)."""
    records = [text for text in texts if re.match(r"v=STSv1[ \t]*(?:;|$)", text)]
    found = re.search(r";[ \t]*id=([A-Za-z0-9]{1,32})[ \t]*(?:;|$)", records[0]) if len(records) == 1 else None
    return found and found[1]


def sts_policy(text: str) -> StsPolicy:
    """The policy in the text of mta-sts.txt; of a field given twice the first counts, but of mx all (RFC 8461, 3.2)."""
    fields: dict[str, list[str]] = defaultdict(list)
    for line in filter(str.strip, re.split(r"\r?\n", text)):
        key, colon, value = line.partition(":")
        if not colon:
            return StsPolicy(failure="sts_syntax")
        fields[key.strip(" \t")].append(value.strip(" \t"))
    version, mode, age = ((fields[key] or [""])[0] for key in ("version", "mode", "max_age"))
    mx = tuple(pattern.lower() for pattern in fields["mx"])
    if version != "STSv1":
        return StsPolicy(failure="sts_version")
    if mode not in ("enforce", "testing", "none"):
        return StsPolicy(failure="sts_mode")
    if not re.fullmatch("[0-9]{1,10}", age):
        return StsPolicy(failure="sts_max_age")
    if not (mx or mode == "none") or not all(HOST.fullmatch(pattern.removeprefix("*.")) for pattern in mx):
        return StsPolicy(failure="sts_mx")
    return StsPolicy(mode, mx, int(age))


def sts_matches(policy: StsPolicy, host: str) -> bool:
    """True if the policy names the host; a wildcard stands for one label (RFC 8461, 4.1)."""
    name = host.lower().rstrip(".")
    return name in policy.mx or f"*.{name.partition('.')[2]}" in policy.mx


def tlsa_verdict(records: Sequence[str], secure: bool | None, chain: Sequence[bytes],
                 named: bool | None = None) -> str:  # fmt: skip
    """What TLSA records make of a certificate: none, ok, mismatch or unsigned (RFC 7672).

    `records` are as "3 1 1 ab12..", `secure` says that DNSSEC vouches for them (else: unsigned), `chain` is the
    server's in DER, leaf first. Usage 3 asks that the leaf matches, and nothing of names or dates (3.1.1); usage 2
    that a CA of the chain matches which leads down to the leaf by signatures and dates, and that the leaf names the
    host: `named` False says that it does not (3.1.2). Usages 0 and 1 cannot be used (3.1.3); where no record can,
    they ask for TLS but for no certificate (2.2): none.
    """
    usable = [found.groups() for record in records if (found := _TLSA.fullmatch(record))]
    if not any(records) or (secure and not usable):
        return "none"
    if not secure:
        return "unsigned"
    issuers = _issuers(chain) if named is not False and any(usage == "2" for usage, *_ in usable) else []
    ends = {"2": issuers, "3": list(chain[:1])}
    match = any(_extract(der, part, kind) == data.lower() for usage, part, kind, data in usable for der in ends[usage])
    return "ok" if match else "mismatch"


def _extract(der: bytes, selector: str, kind: str) -> str | None:
    """What a record of this selector and matching type holds for a certificate, in hexadecimal."""
    with suppress(*_UNREAD):
        if selector == "1":
            key = x509.load_der_x509_certificate(der).public_key()
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return der.hex() if kind == "0" else (sha256 if kind == "1" else sha512)(der).hexdigest()
    return None


def _issuers(chain: Sequence[bytes]) -> list[bytes]:
    """The CAs of the chain that lead down to its leaf, signature by signature, all valid now."""
    now, reached = datetime.now(UTC), list(chain[:1])
    for below in reached:  # grows on the way: a chain that is signed across has two ways up
        for der in chain[1:10]:
            with suppress(*_UNREAD, x509.ExtensionNotFound):
                lower, upper = map(x509.load_der_x509_certificate, (below, der))
                lower.verify_directly_issued_by(upper)
                dated = all(c.not_valid_before_utc <= now <= c.not_valid_after_utc for c in (lower, upper))
                is_ca = upper.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
                reached += [der] if dated and is_ca and der not in reached else []
    return reached[1:]


def outgoing_servers(xml: bytes, domain: str) -> tuple[tuple[str, int, str], ...]:
    """Host, port and mode (starttls, implicit, cleartext) of the SMTP servers in Thunderbird's autoconfig file.

    They stand in the file's order, the first 16 of those that have a whole host name, port and kind of encryption.
    Nothing comes of a file that is no XML in UTF-8, or that declares a document type or entities.
    """
    found = []
    with suppress(ValueError, ElementTree.ParseError):
        if re.search("<!(?!--)", text := xml.decode("utf-8-sig")):
            return ()
        for server in ElementTree.fromstring(text).iter("outgoingServer"):
            host, port, kind = ((server.findtext(tag) or "").strip() for tag in ("hostname", "port", "socketType"))
            host, mode = host.replace("%EMAILDOMAIN%", domain), _MODES.get(kind.lower())
            whole = HOST.fullmatch(host) and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536
            if server.get("type") == "smtp" and whole and mode:
                found.append((host.lower(), int(port), mode))
    return tuple(found[:16])
