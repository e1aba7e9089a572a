"""Exports of list-verification services (EmailVerify.io, ZeroBounce, NeverBounce): what they say of each address.

What a field or a word means stands in facts/verifications.toml; this module knows paths, words and booleans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from deliverkit import facts
from deliverkit.errors import FormatError, SchemaError
from deliverkit.files import Part, Source
from deliverkit.records import TIME, Block, Table, gather, headed, plain
from deliverkit.schema import VERIFIED

_FACTS = facts.tables("verifications")
_TABLES: list[Table] = _FACTS["service"]
_NAMES = sorted({table["name"] for table in _TABLES} - {"generic"})
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_verified(path: Source, provider: str | None = None, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read what a verification service says of addresses as a `VERIFIED` frame: one row per address checked.

    Takes CSV with a header and JSON of EmailVerify.io (emailverify), ZeroBounce and NeverBounce; of any other service
    `columns` maps columns of the frame to headers or JSON paths: `{"email": "Email", "status": "Result"}`, `status` and
    `sub_status` in words of the table "generic" in facts/verifications.toml. A word that is not known gives no verdict:
    `status` and `sub_status` keep it. What the service does not say is missing. A row that cannot be read says so in
    `sub_status`, behind the others of its file.
    Raises FormatError for an unknown provider, an empty file, and a file without any address; SchemaError for columns
    that cannot be mapped.
    """
    provider = provider.lower() if isinstance(provider, str) else provider
    if provider not in (None, *_NAMES):
        raise FormatError(path, f"no export of a provider {provider!r}; known: {', '.join(_NAMES)}")
    tables = [table for table in _TABLES if provider in (None, table["name"])]
    if columns is not None:
        if not {"email", "status"} <= columns.keys() <= {*VERIFIED.names} - {"source", "line", "verdict", "reason"}:
            raise SchemaError(f"columns= wants email and status, and may have {', '.join(VERIFIED.names[3:-2])}")
        fields = {name: [header] for name, header in columns.items()}
        tables = [_TABLES[-1] | {"marks": [[columns["email"]]], "header": [[*columns.values()]], "fields": fields}]
    found = gather(path, tables, _FACTS["envelopes"], "no answer of a known service", _NAMES)
    made = pd.concat([pd.DataFrame({"order": []}), *(_rows(*some) for some in found)], ignore_index=True)
    return VERIFIED.build(made.sort_values("order", kind="stable").drop(columns="order"))


def known_verified(part: Part) -> bool:
    """True if the header of a CSV, or the first fields of JSON, are those of a verification service."""
    with part.open() as stream:
        head = stream.peek(1 << 16)[: 1 << 16].decode("utf-8-sig", "replace").strip()
    if head.startswith(("{", "[")):
        marks = [[f'"{path.rpartition(".")[2]}"' for path in some] for table in _TABLES for some in table["marks"]]
        return any(all(name in head for name in some) for some in marks)
    return bool(headed(head.partition("\n")[0], _TABLES))


def _rows(table: Table, block: Block, numbers: Any, order: Any, source: str) -> pd.DataFrame:
    """The answers of one shape."""
    if not table:
        return pd.DataFrame({"sub_status": block.values, "line": numbers, "order": order, "source": source})
    fields, nothing = table["fields"], [None] * len(block.values)
    made: dict[str, Any] = {name: block.column(paths).to_pylist() for name, paths in fields.items()}
    flags = [_flags(value) for value in next(filter(None, map(block.raw, fields.get("flags", ()))), nothing)]
    words, more = ({plain(word): means for word, means in table[name].items()} for name in ("status", "sub"))
    subs = made.setdefault(
        "sub_status", [" ".join(w for w in table["sub"] if plain(w) in flag) or None for flag in flags]
    )
    means = [words.get(plain(status or ""), {}) | more.get(plain((sub or "").partition(" ")[0]), {})
             for status, sub in zip(made["status"], subs, strict=True)]  # fmt: skip
    for name in (column.name for column in VERIFIED.columns if column.dtype == "boolean"):
        signs = {plain(word) for word in table.get("flags", {}).get(name, ())}
        flagged = [bool(signs & flag) if signs and flag else None for flag in flags]
        said = [_WORDS.get((word or "").lower()) for word in made.get(name, nothing)]
        meant = [True if mean.get(name) or mean.get("reason") == name else None for mean in means]
        made[name] = [next((x for x in row if x is not None), None) for row in zip(meant, said, flagged, strict=True)]
    made |= {name: [mean.get(name) for mean in means] for name in ("verdict", "reason")}
    made["domain"] = [domain or (email or "").rpartition("@")[2].lower() or None
                      for domain, email in zip(made.get("domain", nothing), made["email"], strict=True)]  # fmt: skip
    made["checked_at"] = block.column(fields.get("checked_at", ()), TIME).to_pandas()
    frame = pd.DataFrame({name: pd.Series(made[name], dtype=object) for name in made.keys() - {"flags"}})
    return frame.assign(checked_by=table["name"], line=numbers, order=order, source=source)


def _flags(value: Any) -> set[str]:
    """Words of a list, or of a text with commas."""
    found = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else ()
    return {plain(word) for word in found if isinstance(word, str)}
