"""The report as one self-contained HTML page and as a tagged PDF, both from the same document."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any
from warnings import warn

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from deliverkit.errors import DeliverkitError
from deliverkit.report.content import Content

# What typst's embedded fonts cover; other letters are shown by their number, as PDF/UA allows no empty boxes
_UNKNOWN = re.compile(r"[^\x20-\x7e\xa0-\u024f\u0391-\u03a1\u03a3-\u045f\u1e00-\u1eff\u2010-\u2027\u2030-\u203f"
                      r"\u20a0-\u20bf\u2190-\u22ff\ufffd]")  # fmt: skip


@cache
def _pages() -> Environment:
    return Environment(loader=PackageLoader("deliverkit"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)  # fmt: skip


def page_of(name: str, **words: Any) -> str:
    """A template of deliverkit filled in, with all that is foreign escaped."""
    return _pages().get_template(name).render(words)


def pdf(content: Content) -> bytes:
    """The same as PDF/UA-1. Data go in as JSON, never as markup; the fonts are those that typst brings along.

    Letters that these lack are looked for among the fonts of this machine; where it has none either, as PDF/UA allows
    no empty boxes, they are shown by their numbers, and a warning says so.
    """
    document = _shown(content.document, lambda text: text)
    if not _UNKNOWN.search(json.dumps(document, ensure_ascii=False)):
        return _compiled(document, content.made)
    with suppress(needed("typst").TypstError):
        return _compiled(document, content.made, system_fonts=True)
    warn("the PDF shows some letters by their numbers: no font here has them (Noto Sans CJK may)", stacklevel=3)
    numbers = _shown(document, lambda text: _UNKNOWN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text))
    return _compiled(numbers, content.made)


def _compiled(document: dict[str, Any], made: pd.Timestamp, *, system_fonts: bool = False) -> bytes:
    source = (files("deliverkit") / "templates/report.typ").read_bytes()
    data = {"document": json.dumps(document)}
    done: bytes = needed("typst").compile(source, format="pdf", sys_inputs=data, ignore_system_fonts=not system_fonts,
                                          pdf_standards="ua-1", timestamp=int(made.timestamp()))  # fmt: skip
    return done


def needed(name: str) -> Any:
    """The module of a package that comes with `deliverkit[report]`."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        problem = f'this report needs the package {name}: python -m pip install "deliverkit[report]"'
        raise DeliverkitError(problem) from None


def _shown(value: Any, each: Callable[[str], str]) -> Any:
    """The document without its SVG, every text in it composed (NFC) and passed through `each`."""
    if isinstance(value, dict):
        return {name: _shown(inner, each) for name, inner in value.items() if name != "svg"}
    if isinstance(value, list):
        return [_shown(inner, each) for inner in value]
    return each(unicodedata.normalize("NFC", value)) if isinstance(value, str) else value
