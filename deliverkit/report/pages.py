"""The report as one self-contained HTML page and as a tagged PDF, both from the same document."""

from __future__ import annotations

import json
import re
import unicodedata
from importlib import import_module
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from deliverkit.errors import DeliverkitError
from deliverkit.report.content import Content

# What typst's embedded fonts cover; other letters are shown by their number, as PDF/UA allows no empty boxes
_UNKNOWN = re.compile(r"[^\x20-\x7e\xa0-\u024f\u0391-\u03a1\u03a3-\u045f\u1e00-\u1eff\u2010-\u2027\u2030-\u203f"
                      r"\u20a0-\u20bf\u2190-\u22ff\ufffd]")  # fmt: skip


def html(content: Content) -> str:
    """The page: no request of any kind, everything foreign escaped."""
    pages = Environment(loader=PackageLoader("deliverkit"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return pages.get_template("report.html").render(content.document)


def pdf(content: Content) -> bytes:
    """The same as PDF/UA-1. Data go in as JSON, never as markup; only fonts that typst brings along are used."""
    typst = needed("typst")
    document = json.dumps(_printable(content.document))
    source = (files("deliverkit") / "templates/report.typ").read_bytes()
    made: bytes = typst.compile(source, format="pdf", sys_inputs={"document": document}, ignore_system_fonts=True,
                                pdf_standards="ua-1", timestamp=int(content.made.timestamp()))  # fmt: skip
    return made


def needed(name: str) -> Any:
    """The module of a package that comes with `deliverkit[report]`."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        problem = f'this report needs the package {name}: python -m pip install "deliverkit[report]"'
        raise DeliverkitError(problem) from None


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _printable(inner) for name, inner in value.items() if name != "svg"}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _UNKNOWN.sub(lambda found: f"[U+{ord(found[0]):04X}]", unicodedata.normalize("NFC", value))
