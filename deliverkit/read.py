"""Read what is there: the content of a file says which reader it needs, never its name."""

import io
import re
import warnings
from typing import Any

import pandas as pd

from deliverkit import facts
from deliverkit.bounces import read_bounces
from deliverkit.errors import FormatError, SchemaError
from deliverkit.exports import known_export, read_export
from deliverkit.files import Part, Source, lines, parts
from deliverkit.logs import formats, known_format, read_log
from deliverkit.schema import ATTEMPTS, PROBES
from deliverkit.sweep import judged, read_probes
from deliverkit.verifications import known_verified, read_verified

_OURS = {"origin", "vantage", "outcome", "attempted", "blocked_by", "category", "rule"}  # older versions had fewer
_MAIL = re.compile(  # an mbox, or a header of mail
    rb"(?i)>?(?:from |(?:from|to|cc|subject|date|message-id|mime-version|return-path|received(?:-spf)?|sender|reply-to|"
    rb"delivered-to|auto-submitted|reporting-mta|final-recipient|(?:dkim|content|arc|x|authentication)-[\w-]+)[ \t]*:)"
)


def read(path: Source) -> pd.DataFrame:
    """Read bounce mail, mail logs, exports of providers, or frames of deliverkit (CSV, Parquet, `out` of probe).

    Takes a file, folder, archive, also with several kinds in it, "-" for standard input, or an IMAP mailbox
    (`read_bounces`); logs are read together, so that what one file begins another may end; a list of paths too. Gives
    an `ATTEMPTS` frame, or `PROBES` where all are frames of probes, or `VERIFIED` where all are exports of tools that
    verify lists. What is none of these is named in a warning, and in a FormatError if nothing else is there.
    """
    if isinstance(path, list | tuple) and len(path) == 1 and not isinstance(path[0], Part):
        return read(path[0])
    if isinstance(path, str) and path.lower().startswith(("imaps://", "imap://")):
        return read_bounces(path)
    found: dict[Any, list[Part]] = {}
    strays: list[FormatError] = []
    for part in parts(path, strays):
        try:
            found.setdefault(_reader(part), []).append(part)
        except FormatError as problem:
            strays.append(problem)
    found.pop(None, None)
    if not found:
        raise strays[0] if strays else FormatError(path, "the file is empty")
    if list(found) == [read_verified]:
        return read_verified(found[read_verified])
    for part in found.pop(read_verified, []):
        warnings.warn(f"not read: {part.name}: a verified list tells of no attempts: read_verified", stacklevel=2)
    if list(found) == [read_bounces] and not strays and not isinstance(path, list | tuple):
        return read_bounces(path)  # it knows the folders of a Maildir
    made = [_frame(part) for part in found.pop(_frame, [])]
    found = {**found, read_log: found.pop(read_log, [])}  # behind those that may turn out to be logs
    for reader, some in found.items():
        made += _readable(reader, some, found[read_log], strays)
    for stray in strays if made else []:
        warnings.warn(f"not read: {stray.path}: {stray.problem.partition('; known: ')[0]}", stacklevel=2)
    if not made:
        raise strays[0]
    if any("verdict" in frame for frame in made):  # probes keep their columns, whatever else is read
        made = [PROBES.build(frame) for frame in made]
    return pd.concat(made, ignore_index=True)


def _readable(reader: Any, some: list[Part], logs: list[Part], strays: list[FormatError]) -> list[pd.DataFrame]:
    """The frame of the parts that the reader can read; what looked like an export and is none may be a log."""
    while some:
        try:
            return [reader(some)]
        except FormatError as problem:
            bad = next((part for part in some if part.name == problem.path), None)
            if bad is None:
                raise
            some.remove(bad)
            if reader is read_export and _is_log(bad):
                logs.append(bad)
            else:
                strays.append(problem)
    return []


def _is_log(part: Part) -> bool:
    try:
        return bool(known_format(part))
    except FormatError:
        return False


def _reader(part: Part) -> Any:
    """What reads a part; None for an empty one."""
    with part.open() as stream:
        head = stream.peek(1 << 16)[: 1 << 16].removeprefix(b"\xef\xbb\xbf").lstrip()
        first = next(lines(io.BytesIO(head)), "")
    if head.startswith(b"PAR1") or set(first.replace('"', "").split(",")) >= _OURS:
        return _frame
    if head.startswith(b'{"origin": "probe",'):
        return _frame
    if head.startswith((b"{", b"[")) and any(module.sniff(first) for module in formats().values()):
        return read_log
    if head and (known_verified(part) or known_export(part)):
        return read_verified if known_verified(part) else read_export
    if not head or _MAIL.match(head):
        return read_bounces if head else None
    try:
        return known_format(part) and read_log
    except FormatError:
        esp = ", ".join(dict.fromkeys(table["name"] for table in facts.tables("esp_exports")["provider"]))
        known = f"bounce mail, logs ({', '.join(formats())}), exports ({esp}), frames of deliverkit (docs/frames.md)"
        raise FormatError(part.name, f"cannot tell what this is: {first[:60]!a}; known: {known}") from None


def _frame(part: Part) -> pd.DataFrame:
    """A frame that deliverkit made and somebody wrote as CSV or Parquet; other columns are left out."""
    with part.open() as stream:
        data = stream.read()
    try:
        if data.startswith(b"{"):
            return judged(read_probes(data, part.name))
        if data.startswith(b"PAR1"):
            table = pd.read_parquet(io.BytesIO(data))
        else:
            table = pd.read_csv(io.BytesIO(data), dtype="string", keep_default_na=False, na_values=[""])
        frame = PROBES if "verdict" in table else ATTEMPTS  # one of an older version may have fewer columns
        for column in frame.columns:  # stamps with and without fractions of a second in one column
            if column.dtype.startswith("datetime"):
                table[column.name] = pd.to_datetime(table[column.name], format="ISO8601", utc=True)
        return frame.build(table[[name for name in frame.names if name in table]])
    except (ValueError, OSError, KeyError, SchemaError) as problem:
        raise FormatError(part.name, f"no frame of deliverkit: {' '.join(str(problem).split())}") from None
