"""The answer to "which port": what it says, what it rests on, and how it shows itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from deliverkit import svg

_COLUMNS = {"rank": "rank", "port": "port", "security": "encryption", "verdict": "verdict"}
_COLUMNS |= {"measured": "measured", "attempts": "attempts", "reason": "why"}
_ORDER = "Try in this order"


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the fallback ladder: a port to try, or at the end the provider's HTTPS API (port missing)."""

    port: int | None
    security: str
    host: str
    why: str

    def __str__(self) -> str:
        door = f"port {self.port} ({self.security})" if self.port else "HTTPS"
        return f"{door} {self.host}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Advice:
    """The port to use, with everything it rests on. `port` is None where none is left.

    `ranked` is an `ADVICE` frame of all candidates, those that are excluded last and without a rank; `ladder`
    what to try in order, ending in the provider's HTTPS API; `rules` and `sources` those behind the choice
    and the warnings; `others` what the other policies would say: policy, port (or None) and why.
    """

    sending: str
    policy: str
    provider: str | None
    network: str | None
    port: int | None
    security: str | None
    host: str | None
    reason: str
    ranked: pd.DataFrame
    ladder: tuple[Rung, ...]
    warnings: tuple[str, ...]
    rules: tuple[str, ...]
    sources: tuple[str, ...]
    others: tuple[tuple[str, int | None, str], ...]

    @property
    def headline(self) -> str:
        """The answer in one line."""
        if self.port is None and "environment" in self.rules:
            return "No port is left: the sending environment is the problem, not the port."
        if self.port is None:
            return "No port fits what was asked for."
        how = {"implicit": "implicit TLS", "starttls": "STARTTLS"}.get(str(self.security), "no encryption")
        return f"Use port {self.port} with {how}" + (f" at {self.host}." if self.host else ".")

    @property
    def context(self) -> str:
        """Sending method, policy, provider and network in one line."""
        parts = [f"sending: {self.sending}", f"policy: {self.policy}"]
        parts += [f"provider: {self.provider}"] * bool(self.provider)
        return ", ".join(parts + [f"network: {self.network}"] * bool(self.network))

    def _blocks(self) -> list[tuple[str, Sequence[str]]]:
        others = [f"{p}: {f'port {n}' if n else 'no port'}, {why}" for p, n, why in self.others]
        return [
            (_ORDER, [f"{rung}: {rung.why}" for rung in self.ladder]),
            ("Mind", self.warnings),
            ("Other policies", others),
            ("Rules", [", ".join(self.rules)]),
            ("Sources", self.sources),
        ]

    def __repr__(self) -> str:
        lines = [self.headline, f"  {self.context}", f"  why: {self.reason}"]
        for heading, items in self._blocks():
            told = [f"{i}. {item}" for i, item in enumerate(items, 1)] if items and heading == _ORDER else items
            lines += [f"{heading}:", *(f"  {item}" for item in told)] if items else []
        out = self.ranked[self.ranked["rank"].isna()]
        gone = [f"  {row['port']}: {row['reason']}" for row in out.to_dict("records")]
        return "\n".join(lines + (["Ruled out:", *gone] if gone else []))

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{escape(self.headline)}</strong><br>{escape(self.reason)}</p>"]
        parts.append(svg.table(self.ranked, caption=self.context, columns=_COLUMNS))
        for heading, items in self._blocks():
            listed = "".join(f"<li>{escape(item)}</li>" for item in items)
            kind = "ol" if heading == _ORDER else "ul"
            body = f"<{kind}>{listed}</{kind}>" if items else ""
            if heading in ("Rules", "Sources"):
                parts.append(f"<details><summary>{heading}</summary>{body}</details>")
            else:
                parts.append(f"<p><strong>{heading}</strong></p>{body}" if items else "")
        return f'<div class="dk-advice">{"".join(parts)}</div>'

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "ranked"}
        ladder = [{"port": r.port, "security": r.security, "host": r.host, "why": r.why} for r in self.ladder]
        others = [{"policy": p, "port": n, "reason": why} for p, n, why in self.others]
        ranked = self.ranked.astype(object).where(self.ranked.notna(), None).to_dict("records")
        return plain | {"ladder": ladder, "others": others, "ranked": ranked, "headline": self.headline}
