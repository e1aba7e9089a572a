"""Every column of every frame, in one place; the documented tables are printed from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from deliverkit.errors import SchemaError

_KINDS = {  # dtype -> the numpy kinds a caller's own frame may have instead
    "Int64": "iu",
    "Float64": "fiu",
    "boolean": "b",
    "string": "OUT",
    "datetime64[us, UTC]": "M",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its nullable dtype, what it holds (with its unit)."""

    name: str
    dtype: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's columns. `grouped` frames carry group keys of any name before them."""

    name: str
    columns: tuple[Column, ...]
    grouped: bool = False

    @property
    def names(self) -> list[str]:
        """Column names in order, group keys left out."""
        return [column.name for column in self.columns]

    def build(self, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
        """Make the frame from rows (mappings) or from a frame with some of the columns.

        Columns that are absent become missing, dtypes become the nullable ones, times become UTC.
        Raises SchemaError for a column the frame does not have or a value its dtype cannot hold.
        """
        data = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame.from_records(list(rows))
        wanted = {column.name: column for column in self.columns}
        extra = [str(name) for name in data.columns if name not in wanted]
        if extra and not self.grouped:
            raise SchemaError(f"{self.name}: there is no column {extra[0]!r}; it has {', '.join(wanted)}")
        made = {name: data[name].reset_index(drop=True) for name in extra}
        for name, column in wanted.items():
            made[name] = _cast(self.name, column, data.get(name), len(data))
        return pd.DataFrame(made)

    def check(self, df: pd.DataFrame, needs: Sequence[str] | None = None) -> pd.DataFrame:
        """Return `df` if it has the columns (all, or those in `needs`) with fitting types.

        Raises SchemaError naming the first thing wrong. Columns that this frame does not know are left alone.
        """
        if not isinstance(df, pd.DataFrame):
            raise SchemaError(f"{self.name}: a pandas frame is wanted, this is a {type(df).__name__}")
        for name in self.names if needs is None else needs:
            if name not in df.columns:
                have = ", ".join(map(str, df.columns)) or "no columns"
                raise SchemaError(f"{self.name}: column {name!r} is missing; the frame has {have}")
        for column in self.columns:
            if column.name in df.columns and not _fits(df[column.name], column.dtype):
                found = df[column.name].dtype
                raise SchemaError(f"{self.name}: column {column.name!r} should be {column.dtype}, not {found}")
        return df

    def empty(self) -> pd.DataFrame:
        """The frame without rows."""
        return self.build([])

    def markdown(self) -> str:
        """The column table for the documentation."""
        rows = [f"| `{c.name}` | {c.dtype} | {c.meaning} |" for c in self.columns]
        return "\n".join(["| column | dtype | meaning |", "|---|---|---|", *rows])


def _cast(frame: str, column: Column, values: Any, length: int) -> Any:
    if values is None:
        return pd.Series([pd.NA] * length, dtype=_dtype(column.dtype))
    values = values.reset_index(drop=True)
    try:
        if column.dtype.startswith("datetime"):
            return pd.to_datetime(values, utc=True).astype(column.dtype)
        if values.dtype == object and column.dtype == "string" and any(isinstance(v, bytes) for v in values):
            raise TypeError("it holds bytes, decode them first")
        if column.dtype == "boolean" and isinstance(values.dtype, pd.StringDtype):  # read back from CSV
            values = values.map(lambda word: {"True": True, "False": False}[word], na_action="ignore")
        return values.astype(_dtype(column.dtype))
    except KeyError as word:
        raise SchemaError(f"{frame}: column {column.name!r} should be True or False, not {word}") from None
    except (TypeError, ValueError, OverflowError) as problem:
        raise SchemaError(f"{frame}: column {column.name!r} should be {column.dtype}: {problem}") from None


def _dtype(name: str) -> Any:
    return pd.DatetimeTZDtype("us", "UTC") if name.startswith("datetime") else name


def _fits(values: pd.Series[Any], dtype: str) -> bool:
    if str(values.dtype) == dtype or isinstance(values.dtype, pd.CategoricalDtype) or values.isna().all():
        return True
    kind = getattr(values.dtype, "kind", "O")
    if kind == "O" and not isinstance(values.dtype, pd.StringDtype):  # a plain object column: look inside
        inferred = pd.api.types.infer_dtype(values, skipna=True)
        allowed = {"Int64": ("integer",), "Float64": ("floating", "integer", "mixed-integer-float")}
        return inferred in allowed.get(dtype, ("boolean" if dtype == "boolean" else "string",))
    if dtype == "string":
        return isinstance(values.dtype, pd.StringDtype)
    if dtype == "Int64" and kind == "f":  # integers with gaps read from CSV
        return bool((values.dropna() % 1 == 0).all())
    return kind in _KINDS[dtype]


def _columns(table: str) -> tuple[Column, ...]:
    """Read `name dtype meaning` lines; the short dtype words are those of `short`."""
    short = {"int": "Int64", "float": "Float64", "bool": "boolean", "text": "string", "time": "datetime64[us, UTC]"}
    made = []
    for line in filter(None, map(str.strip, table.splitlines())):
        name, dtype, meaning = line.split(maxsplit=2)
        made.append(Column(name, short[dtype], meaning))
    return tuple(made)


_ATTEMPT_COLUMNS = _columns("""
    time         time  when the attempt ended, UTC
    origin       text  where the row was read: probe, log, dsn, arf, export
    vantage      text  name of the network the attempt started from
    client       text  whose mail it was (an agency's client)
    campaign     text  which mailing it belonged to
    recipient    text  address the message was for; missing for probes
    host         text  name of the far end
    address      text  IP address of the far end
    port         int   TCP port tried, 1 to 65535; missing where nothing says it
    operator     text  who runs the far end (google, microsoft, ...)
    step         text  step of the guide the attempt ended at: connect, rules, encryption, relay, inbox
    outcome      text  passed, deferred (may succeed later) or failed
    attempted    bool  False where the line only repeats an older failure; such rows are never counted
    blocked      bool  turned away for who or where we are, or for the door used; missing if unknown
    blocked_by   text  network, server or policy; missing if not blocked
    category     text  what happened, one of 16 words
    kind         text  hard, soft, block, undetermined or none
    reply_code   int   SMTP reply code of the far end, 200 to 599
    status_code  text  enhanced status code, x.y.z (RFC 3463)
    text         text  what the far end or the software said, at most 2,000 characters
    rule         text  id of the rule that decided category and blocked
    delay_s      float seconds from accepting the message to this attempt's end
    queue_id     text  queue id of the sending system
    message_id   text  Message-ID with its angle brackets, or the provider's id
    source       text  file or service the row came from
    line         int   line, message or event number in the source, from 1
""")

ATTEMPTS = Frame("attempts", _ATTEMPT_COLUMNS)

PROBES = Frame(
    "probes",
    _ATTEMPT_COLUMNS
    + _columns("""
    mode            text  cleartext, starttls or implicit
    reached         text  last stage begun: dns, tcp, banner, ehlo, starttls, tls, done
    verdict         text  what the port is, in one word: open, closed, filtered, ...
    failure         text  what ended the probe, tcp_refused for one; missing if nothing did
    banner          text  greeting of the server, cut at 512 characters
    ehlo_name       text  name we gave in EHLO
    features        text  EHLO keywords before TLS (implicit: inside TLS), sorted, space separated
    auth_before_tls text  AUTH mechanisms offered without encryption
    auth_after_tls  text  AUTH mechanisms offered inside TLS
    tls_version     text  TLSv1.2, TLSv1.3
    cipher          text  cipher suite agreed
    cert_subject    text  common name of the certificate
    cert_names      text  DNS names and addresses in the certificate, space separated
    cert_issuer     text  common name (or organisation) of the issuer
    cert_not_after  time  end of the certificate's validity, UTC
    cert_trusted    bool  chain ends at a root this machine trusts and dates are valid
    cert_matches    bool  certificate names the host that was asked for
    cert_problem    text  expired, not_yet, self_signed, unknown_ca, name_mismatch
    dane            text  TLSA records: none, ok, mismatch, unsigned
    mta_sts         text  MTA-STS policy: none, matched, not_matched
    auth_enforced   bool  MAIL without login was refused (RFC 6409, section 4.3)
    errno           text  symbol of the operating system's error, ECONNREFUSED for one
    icmp_type       int   ICMP type behind a failed connect (Linux)
    icmp_code       int   ICMP code behind a failed connect (Linux)
    icmp_from       text  address that sent the ICMP message (Linux)
    last_hop        int   last hop that answered on this port; missing if not traced
    dns_s           float seconds to look up the host
    connect_s       float seconds for the TCP handshake
    banner_s        float seconds from connect (implicit: TLS) to the whole greeting
    ehlo_s          float seconds for the first EHLO
    tls_s           float seconds for the TLS handshake, STARTTLS command included
    total_s         float seconds for the whole probe
"""),
)

OUTCOMES = Frame(
    "outcomes",
    _columns("""
    message_id  text  Message-ID, or the provider's id
    queue_id    text  queue id of the sending system
    recipient   text  address the message was for
    client      text  whose mail it was
    campaign    text  which mailing it belonged to
    final       text  sent, bounced, expired, or open (no end seen yet)
    status_code text  enhanced status code of the last real attempt
    port        int   port of the last real attempt; missing if none
    attempts    int   number of real attempts
    first_time  time  first sign of this recipient, UTC
    last_time   time  last sign of this recipient, UTC
    duration_s  float seconds between the two
"""),
)

RATES = Frame(
    "rates",
    _columns("""
    attempts   int   attempts counted (attempted, and known to be blocked or not)
    blocked    int   attempts that ended in a block
    rate       float blocked / attempts, 0 to 1
    low        float lower end of the 95 % Wilson interval, 0 to 1
    high       float upper end of the same interval, 0 to 1
    by_network int   blocked by the network on the way
    by_server  int   blocked by the far end's server: banner, login or TLS required
    by_policy  int   blocked by a policy: reputation, relay, content, sender authentication
    expected   text  what the guide says for this port: high or low; missing where it says nothing
    verdict    text  as_expected, higher, lower or too_few; missing where nothing is expected
"""),
    grouped=True,
)

BOUNCES = Frame(
    "bounce rates",
    _columns("""
    sent    int   recipients that accepted the message
    bounced int   recipients that refused it for good
    expired int   recipients given up on after retries
    open    int   recipients without an end so far
    rate    float bounced / (sent + bounced), 0 to 1
    low     float lower end of the 95 % Wilson interval, 0 to 1
    high    float upper end of the same interval, 0 to 1
"""),
    grouped=True,
)

FUNNEL = Frame(
    "funnel",
    _columns("""
    step    text  connect, rules, encryption, relay, inbox
    reached int   attempts that got as far as this step
    passed  int   attempts that got past it
    share   float passed / reached, 0 to 1
    low     float lower end of the 95 % Wilson interval, 0 to 1
    high    float upper end of the same interval, 0 to 1
"""),
    grouped=True,
)

EGRESS = Frame(
    "egress",
    _columns("""
    vantage    text  name of the network the probes started from
    port       int   TCP port
    verdict    text  open, blocked_by_network, blocked_by_host, intercepted, selective, offline, unclear
    confidence float probability of the verdict, 0 to 1
    controls   int   control hosts asked on this port
    operators  int   operators behind them
    answered   int   control hosts that answered
    low        float lower end of the 95 % Wilson interval of the share that answered, 0 to 1
    high       float upper end of the same interval, 0 to 1
    why        text  the evidence as a sentence
"""),
)

FORECAST = Frame(
    "forecast",
    _columns("""
    network  text  network or cloud the mail starts from
    provider text  provider that publishes the port
    port     int   TCP port
    expected text  open, blocked or unknown
    why      text  the published policy behind it
    source   text  address of the source
    noted    text  date on the source
    evidence text  read, secondary or not_reread
"""),
)

FINDINGS = Frame(
    "findings",
    _columns("""
    consequence text  id of the guide's consequence, guide:consequence-delayed for one
    found       bool  True if the evidence shows it
    count       int   attempts behind it
    share       float count / attempts looked at, 0 to 1
    evidence    text  what was seen, as a sentence
    rule        text  id of the rule that decided
    source      text  where the rule comes from
"""),
)

ADVICE = Frame(
    "advice",
    _columns("""
    rank     int   1 is the port to use
    port     int   TCP port
    security text  implicit or starttls; how the encryption starts
    host     text  the provider's host, where one is known
    verdict  text  prefer, allow, fallback, avoid or exclude
    measured text  open, blocked, mixed or unknown: what the evidence says
    attempts int   attempts behind `measured`
    rate     float share of them that was blocked, 0 to 1
    reason   text  why, in a sentence
    rules    text  ids of the rules behind it, space separated
    sources  text  sources of these rules
"""),
)

FRAMES = {f.name: f for f in (ATTEMPTS, PROBES, OUTCOMES, RATES, BOUNCES, FUNNEL, EGRESS, FORECAST, FINDINGS, ADVICE)}
STEPS = ("connect", "rules", "encryption", "relay", "inbox")
