"""Foreign text made fit to be shown: recipients masked, control and direction marks visible, length bounded."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from deliverkit.svg import visible

_ADDRESS = re.compile(r"(?:\"(?:[^\"\\\n]|\\.){0,64}\"|([^\s<>()\[\]:;,\"@])[^\s<>()\[\]:;,\"@]{0,63})@([\w.-]{1,255})")
_LONGEST = 32_766  # what a cell of a sheet holds, with the apostrophe that keeps a formula from being one
_BLANK = re.compile(r"[\t\n\r\v\f\u0085\u2028\u2029]+")


def mask(text: Any) -> Any:
    """The text with every mail address reduced to its first letter and domain: a***@example.com."""
    return text if pd.isna(text) else _ADDRESS.sub(lambda found: f"{found[1] or ''}***@{found[2]}", str(text))


def _hidden(recipient: str, number: int | str = "") -> str:
    """The first letter of a recipient and its domain; without a domain the letter alone."""
    domain = recipient.rpartition("@")[2] if "@" in recipient else ""
    return f"{recipient[:1]}***{number}" + (f"@{domain}" if domain else "")


def clean(text: str, masked: bool, longest: int = _LONGEST) -> str:
    """The text in one line of at most `longest` characters, with marks that hide or turn text shown as \\ufffd."""
    text = visible(_BLANK.sub(" ", text[:_LONGEST]))
    text = mask(text) if masked else text
    return text if len(text) <= longest else text[: longest - 1] + "…"


def clean_frame(frame: pd.DataFrame, masked: bool, longest: int = _LONGEST) -> pd.DataFrame:
    """The frame with every text in it cleaned; each different text once."""
    made = frame.copy()
    for name in frame.columns:
        if not (frame[name].dtype == object or isinstance(frame[name].dtype, pd.StringDtype)):
            continue
        codes, texts = pd.factorize(frame[name])
        words = [str(text) for text in texts]
        if masked and name == "recipient":  # whatever stands there, it is one address
            words = [_hidden(word) for word in words]
        shown = pd.array([*(clean(word, masked, longest) for word in words), None], dtype="string")
        made[name] = pd.Series(shown[codes], frame.index)
    return made


def pseudonymous(attempts: pd.DataFrame) -> pd.DataFrame:
    """The attempts with every address masked and told apart: a***3@example.com; of sources the name; no senders."""
    made = attempts.copy()
    codes, known = pd.factorize(attempts["recipient"])
    names = [_hidden(str(address), n) for n, address in enumerate(known, 1)]
    made["recipient"] = pd.array([*names, None], dtype="string")[codes]
    for name in ("text", "banner"):
        made[name] = attempts[name].map(mask, na_action="ignore")
    for name in {"sender", "original_recipient"} & {*made}:  # a VERP address holds the recipient
        made[name] = pd.Series(pd.NA, made.index, dtype="string")
    made["source"] = attempts["source"].str.replace(r".*[/\\]", "", regex=True)
    return made
