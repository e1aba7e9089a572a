"""Is it my network? What many control hosts answered, weighed per source address, IP version and port."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import combinations
from math import comb, exp, lgamma, log
from os import PathLike
from statistics import median, pstdev
from typing import Any
from warnings import warn

import pandas as pd

from deliverkit import facts
from deliverkit.errors import FormatError, SchemaError, TargetError
from deliverkit.probe import IMPLICIT
from deliverkit.rates import wilson
from deliverkit.schema import COMPARISON, EGRESS, FORECAST, PROBES, Frame, counted
from deliverkit.svg import text
from deliverkit.targets import crowd_of, is_ip, jobs_of

_NO_MAIL = (21, 22, 53, 80, 110, 143, 443, 853, 993, 995)  # these ports tell whether the line is up
_TEST_NET = re.compile(r"192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|2001:0?db8:", re.I)  # RFC 5737, RFC 3849
_NAME = re.compile(r"220[ -]+(?!(?:e?smtp|service|server|welcome|ready|mail|hello|ok)(?: |$))([\w.-]+)", re.I)
_MASKED = re.compile(r"220[ -]\*{4}|(?:^|\s)X{3,}A?(?:\s|$)")
_PAGE = re.compile(r"HTTP/\d|<(?:!doctype|html|head|body|title|meta|h1)\b", re.I)

# The evidence model. How common a network is before any evidence; Beta: the share of operators that an open one
_PRIOR = {"open": 0.77, "blocked_by_network": 0.1, "selective": 0.08, "intercepted": 0.02, "offline": 0.03}
_LOSS, _SHUT = (2, 18), (2, 4)  # loses, a selective one shuts out,
_SHOWN, _CHANCE = (4, 1), (1, 199)  # show an interception where there is one, look so by chance;
_THROUGH, _SPOKEN = 0.02, 1e-5  # share that a block lets through, and up to a server's own words;
_ALSO_SHUT, _WEB_LOST = 0.3, 0.02  # how often another mail port is shut as well, a web server is down;
_DOWN, _KNOWN_UP = 0.7, 0.2  # what is left of the usual loss if the operator, or the very host, answers elsewhere;
_ONE_WAY, _MIXED = 0.1, 0.1  # selective networks that are one filter; probes that end otherwise than by the filter;
_FORGED = 2000.0  # how much likelier an answer from TEST-NET is where there is an interception
_SURE, _FEWEST = 0.95, 3  # probability wanted to accuse; fewer operators than this prove nothing
_MODEL = facts.table("egress_model").set_index("kind")  # how far a probe got, the furthest first
_RANK = {str(kind): rank for rank, kind in enumerate(_MODEL.index)}
_KINDS = {word: str(kind) for kind, words in _MODEL["verdicts"].dropna().items() for word in words.split()}
_LOST, _OUT, _FILTER, _DEAD = (  # how those show themselves that do not answer; each adds up to one
    {str(kind): float(share) for kind, share in _MODEL[name].dropna().items()}
    for name in ("lost", "shut_out", "filtered", "dead")
)
_FAILURES = {"blocklisted": "listed", "local_ports": "unasked", "local_denied": "local", "local_no_route": "local"}
_SPOKE, _UP = ("spoke", "listed", "refused"), ("spoke", "listed", "refused", "alien", "after")
_EXPECTED = {"open": ("open", "selective"), "blocked": ("blocked_by_network", "blocked_by_host")}
_USED = "vantage local_address family port host address operator verdict failure mode attempt banner text features"
_USED += " cert_sha256 cert_names cert_matches icmp_from last_hop last_hop_from connect_s errno"
_READ = Frame("probes", tuple(column for column in PROBES.columns if column.name in _USED.split()))
_Row = Mapping[str, Any]
_base = lru_cache(maxsize=65536)(crowd_of)  # whom a host belongs to, by its name


def controls(path: str | PathLike[str] | pd.DataFrame | None = None) -> pd.DataFrame:
    """Hosts to probe for `dk.egress`: a frame with `host`, `port`, `operator`, `role` that `dk.probe` takes.

    `role` is mail, web (which tells whether the line is up) or testnet (an address nobody has: who answers there is
    a proxy). The shipped list (facts/controls.csv, with sources) has nine hosts or more for each of 25, 465, 587 and
    2525. An own CSV, or a frame, replaces it: columns `host`, `port`, and perhaps `operator` (else the last two labels
    of the host) and `role` (else by port and address). Fewer than 8 hosts of 5 operators on a mail port are warned of;
    FormatError says what cannot be read.
    """
    name, made, at = "frame of controls" if isinstance(path, pd.DataFrame) else str(path), [], None
    try:
        given: Any = facts.table("controls") if path is None else path
        if not isinstance(given, pd.DataFrame):
            given = pd.read_csv(given, dtype="string", encoding="utf-8-sig", skipinitialspace=True)
        if missing := {"host", "port"} - set(given):
            raise ValueError(f"the header lacks {' and '.join(sorted(missing))}")
        given = given.reindex(columns=["host", "port", "operator", "role"]).astype(object)
        for line, row in enumerate(given.where(given.notna(), None).to_dict("records"), 2):  # below the header
            at = line
            if not row["host"] or not row["port"] or row["role"] not in (None, "mail", "web", "testnet"):
                raise ValueError("a row wants a host and a port; its role, if any, is mail, web or testnet")
            [job] = jobs_of(pd.DataFrame([row]), (), {})
            role = "testnet" if _TEST_NET.match(job.host) else "web" if job.port in _NO_MAIL else "mail"
            made.append((job.host, job.port, row["operator"] or crowd_of(job.host), row["role"] or role))
        at = None
        if "mail" not in {role for *_, role in made}:
            raise ValueError("there is no mail server in it")
    except OSError as problem:
        raise FormatError(name, f"cannot be read: {problem.strerror or problem}") from None
    except (ValueError, TargetError) as problem:
        raise FormatError(name, f"no list of controls: {problem}", line=at) from None
    table = pd.DataFrame(made, columns=list(given)).astype({"port": "Int64"})
    table = table.drop_duplicates(["host", "port"], ignore_index=True)
    for port, rows in table[table["role"] == "mail"].groupby("port"):
        hosts, operators = len(rows), rows["operator"].nunique()
        if hosts < 8 or operators < 5:
            warn(f"{name}: port {port} has {hosts} hosts of {operators} operators, 8 of 5 are wanted", stacklevel=2)
    return table


def _seen(probes: pd.DataFrame) -> list[_Row]:
    """The probes that count, each with what it shows, and gaps filled where the rest of the frame tells."""
    data = counted(PROBES.check(probes, ["host", "port", "verdict"])).dropna(subset=["host", "port", "verdict"])
    data = _READ.build(data[[name for name in _READ.names if name in data]])
    records: list[Any] = data.astype(object).where(data.notna(), None).to_dict("records")
    rows = [_look(row) for row in records]
    for name, keys in (("family", ("vantage",)), ("local_address", ("vantage", "family"))):
        known: dict[Any, Counter[Any]] = defaultdict(Counter)
        for row in rows:
            known[tuple(row[key] for key in keys)][row[name]] += row[name] is not None
        for row in rows:
            if row[name] is None:
                row[name] = known[tuple(row[key] for key in keys)].most_common(1)[0][0]
    last: dict[Any, _Row] = {}
    for number, row in enumerate(sorted(rows, key=lambda row: row["attempt"] or 0)):
        place = (row[name] for name in ("vantage", "local_address", "family", "port", "host", "address"))
        last[(*place, None if row["attempt"] else number)] = row
    return list(last.values())


def _look(row: dict[str, Any]) -> dict[str, Any]:
    """The row with how far it got (`kind`), and with what signs of interception are read from."""
    host = row["host"].lower().rstrip(".")
    place = row["address"] or (host if is_ip(host) else "")
    verdict, failure, banner, features = (row[name] or "" for name in ("verdict", "failure", "banner", "features"))
    kind = _FAILURES.get(failure) or _KINDS.get(verdict, "silence")
    if row["icmp_from"] and row["icmp_from"] == row["local_address"]:
        kind = "local"  # what a filter of this machine rejects
    found, masked = _NAME.match(banner), bool(_MASKED.search(banner) or _MASKED.search(features))
    name, base, own, offers = found and found[1].lower().rstrip("."), _base(host), row["cert_matches"], None
    if kind == "spoke" and row["port"] not in IMPLICIT and row["mode"] != "implicit" and failure != "starttls_refused":
        judged = {"open": True, "open_tls_broken": True, "open_no_tls": False}.get(verdict)
        offers = "STARTTLS" in features.split() if features else judged
    if names := [*([name] if name and "." in name else ()), *(row["cert_names"] or "").lower().split()]:
        own = bool(own) or base in {_base(one.removeprefix("*.")) for one in names}
    shows = {"name": name, "own": own, "offers": offers, "masked": masked, "test": bool(_TEST_NET.match(place))}
    shows["stripped"] = verdict == "tampered" and not masked
    shows["page"] = bool(_PAGE.search(banner) or (kind == "alien" and _PAGE.search(row["text"] or "")))
    shows["family"] = row["family"] or (None if not place else 6 if ":" in place else 4)
    return row | shows | {"host": host, "kind": kind, "operator": row["operator"] or base}


def _by(rows: Iterable[_Row], *names: str) -> dict[Any, list[_Row]]:
    """The rows for each value of these columns; of one column, missing values are left out."""
    made: dict[Any, list[_Row]] = defaultdict(list)
    for row in rows:
        key = row[names[0]] if len(names) == 1 else tuple(row[name] for name in names)
        if key is not None:
            made[key].append(row)
    return made


def _asked(row: _Row) -> bool:
    return not row["test"] and row["kind"] != "unasked"


def _who(rows: Iterable[_Row]) -> set[str]:
    return {row["operator"] for row in rows}


def _furthest(rows: Iterable[_Row], name: str = "operator") -> dict[str, str]:
    """Operator or host -> how far the furthest of its probes got."""
    return {key: min((row["kind"] for row in those), key=_RANK.__getitem__) for key, those in _by(rows, name).items()}


def _signs(met: list[_Row], known: list[_Row]) -> tuple[dict[str, set[str]], list[str]]:
    """Letter -> operators with this sign of interception, and the signs in words.

    `met` are the probes that met somebody; `known` are those of other ports, and earlier ones: what the same hosts
    look like where nobody is in between.
    """
    signs: dict[str, set[str]] = defaultdict(set)
    said: list[str] = []

    def add(letter: str, who: set[str], words: str, fewest: int = 1) -> None:
        if len(who) >= fewest:
            signs[letter] |= who
            said.append(f"{len(who)} of {len(_who(met))} operators {words}")

    def alike(rows: Iterable[_Row], name: str) -> tuple[str, set[str]]:
        groups = [(text(key)[:60], _who(those)) for key, those in _by(rows, name).items()]
        return max(groups, key=lambda group: len(group[1]), default=("", set()))

    there = {row["host"] for row in known if row["offers"]}
    bare = (row for row in met if row["offers"] is False and not row["masked"] and not row["stripped"])
    add("a", _who(row for row in met if row["masked"]), "have a masked greeting or EHLO reply (*** or XXXX)")
    add("h", _who(row for row in met if row["stripped"]), "had STARTTLS taken out of their offer on the way")
    add("b", _who(row for row in bare if row["host"] in there), "offer no STARTTLS, which the same hosts do elsewhere")
    add("g", _who(row for row in met if row["page"]), "answer with a web page")
    name, greet = alike(met, "name")
    add("c", greet, f"greet with the same name, {name}", _FEWEST)
    name, show = alike((row for row in met if not row["cert_matches"]), "cert_sha256")  # who it names may share one
    add("c", show, f"show the same certificate, {name[:16]}", _FEWEST)
    # stock software offers the same words everywhere: only where these operators differ on another port does it tell
    _, same = alike(met, "features")
    ports = _by((row for row in known if row["operator"] in same), "port").values()
    differ = max((len(_by(rows, "features")) for rows in ports), default=0) >= max(_FEWEST, len(same) / 2)
    if differ and len(same) >= 0.8 * len(_who(row for row in met if row["features"])):
        add("c", same, "offer the same words after EHLO, though not elsewhere", _FEWEST)
    own, usual = (
        {who: any(row["own"] for row in those) for who, those in _by(rows, "operator").items()}
        for rows in ([row for row in met if row["own"] is not None], known)
    )
    if sum(own.values()) <= len(own) / 5 and sum(usual.get(who, False) for who in own) >= len(own) / 2:
        add("d", {who for who in own if not own[who]}, "carry none of their own names, though elsewhere", _FEWEST)
    return dict(signs), said


def _beta(hits: int, total: int, share: tuple[float, float]) -> float:
    """Probability of these hits, in this order, where their share is Beta distributed."""
    a, b = share
    made = lgamma(hits + a) + lgamma(total - hits + b) - lgamma(total + a + b)
    return exp(made + lgamma(a + b) - lgamma(a) - lgamma(b))


def _product(kinds: Iterable[str], shares: Mapping[str, float], otherwise: float = 0.0) -> float:
    return exp(sum(log(max(shares.get(kind, otherwise), 1e-300)) for kind in kinds))


def _same(kinds: list[str], ways: Mapping[str, float], usual: Mapping[str, float], otherwise: float) -> float:
    """Probability of these ends where one of the ways is what there is, and all but a few end in it."""
    return sum(
        share * _product(kinds, {w: _MIXED * usual[w] + (1 - _MIXED) * (w == way) for w in ways}, otherwise)
        for way, share in ways.items()
    )


def _posterior(kinds: list[str], spared: float, signs: tuple[int, int], forged: float, quiet: float | None,
               loss: tuple[float, float]) -> dict[str, float]:  # fmt: skip
    """Probability of each kind of network, given how far each operator got.

    `spared` is what is left of the usual loss, `signs` how many operators look intercepted of how many that could,
    `forged` how much more likely an interception made what else was seen, and `quiet` how likely a line that is up
    shows nothing but silence elsewhere: None where it did not.
    """
    n, away = len(kinds), [kind for kind in kinds if kind != "spoke"]
    real, plain = [kind for kind in away if kind != "alien"], _beta(*signs, _CHANCE)
    shown = max(_beta(*signs, _SHOWN), plain if forged >= _FORGED else 0)  # a proxy may pass on all that is said
    one_way = _same(away, _FILTER, _LOST, _SPOKEN)
    like = {
        "open": _beta(len(away), n, loss) * _product(away, _LOST) * spared * plain,
        "selective": _beta(len(away), n, _SHUT) * ((1 - _ONE_WAY) * _product(away, _OUT) + _ONE_WAY * one_way) * plain,
        "intercepted": _beta(len(real), n, loss) * _product(real, _LOST) * shown * forged,
        "blocked_by_network": (1 - _THROUGH) ** n * _same(kinds, _FILTER, _LOST, _SPOKEN) * plain,
    }
    if quiet is not None:
        like = {name: quiet * value for name, value in like.items()}
        like["offline"] = _same(kinds, _DEAD, _DEAD, 0) if set(kinds) <= set(_DEAD) else 0.0
    weights = {name: _PRIOR[name] * value for name, value in like.items()}
    return {name: value / sum(weights.values()) for name, value in weights.items()}


def _turned(here: list[_Row]) -> tuple[list[_Row], list[str]]:
    """The rows, as `near` where somebody on the way turned several operators away, and who that was in words."""
    shut, said = [row for row in here if row["kind"] in ("rst", "icmp", "silence")], []
    near: set[int] = set()
    hops = _by((row for row in shut if row["last_hop"] is not None), "last_hop", "last_hop_from")
    refused = (r for r in shut if r["verdict"] in ("blocked_icmp", "closed") and r["icmp_from"] != r["address"])
    for key, rows in [*hops.items(), *_by(refused, "icmp_from").items()]:
        (hop, sender), n = key if isinstance(key, tuple) else (None, key), len(_who(rows))
        inside = is_ip(sender) and ip_address(sender).is_private
        if n < 2 and not (inside and not any(ip_address(row["address"] or "::1").is_private for row in rows)):
            continue  # a single operator may well shut itself off
        near |= {id(row) for row in rows}
        by = f" ({text(sender)})" if sender else ""
        where = f"after hop {hop}{by}" if hop else "before the first router: by its filter or this machine's own"
        dies = f"SYNs to {n} operators die {where}, where other ports of the same hosts go on"
        said.append(dies if hop is not None else f"{text(sender)}, on the way, turns away SYNs to {n} operators")
    return [{**row, "kind": "near"} if id(row) in near else row for row in here], said


def _judge(here: list[_Row], rest: list[_Row], earlier: list[_Row], up: Mapping[str, bool],
           loss: tuple[float, float]) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """The verdict on one port, and the evidence as sentences, what tells most first.

    `here` are its probes, `rest` those of other ports from the same place, `up` the hosts that were asked on this port
    from networks where it is open, and whether they answered.
    """
    port, family = here[0]["port"], here[0]["family"]
    test, unasked = [row for row in here if row["test"]], [row for row in here if row["kind"] == "unasked"]
    here, said = _turned([row for row in here if _asked(row)])
    rest = [row for row in rest if _asked(row) and row["port"] != port]
    hosts, operators = _furthest(here, "host"), _furthest(here)
    yes, n = sum(kind in _SPOKE for kind in hosts.values()), len(hosts)
    made: dict[str, Any] = {"verdict": "unclear", "controls": n, "operators": len(operators), "answered": yes}
    told = [row for row in here if row["kind"] != "local"]
    kinds = _furthest(row for row in told if up.get(row["host"]) is not False or hosts[row["host"]] in _SPOKE)
    live = any(row["kind"] in (*_UP, "rst") for row in rest)
    said.insert(0, f"{yes} of {n} hosts of {len(operators)} operators answered on {port}")
    if not here and not rest and {row["failure"] for row in unasked} <= {"dns_timeout", "dns_servfail"}:
        said.append("no name server answered, so nothing was tried")
    elif not here:
        said.append("no name was found")
    elif not told:
        no_route = not live and all(row["failure"] in ("local_no_route", None) for row in here)
        word = "blocked_by_host" if not no_route else "no_ipv6" if family == 6 else "offline"
        made |= {"verdict": word, "confidence": 1 - 0.1 ** len(operators)}
    elif kinds:
        alive, sure = _who(row for row in rest if row["kind"] in _SPOKE), _who(r for r in told if up.get(r["host"]))
        lost = [who for who, kind in kinds.items() if kind in ("rst", "icmp", "near", "silence")]
        spared = exp(sum(log(_KNOWN_UP if who in sure else _DOWN if who in alive else 1) for who in lost))
        met = [row for row in told if row["kind"] in (*_SPOKE, "alien")]
        signs, odd = _signs(met, [*rest, *earlier])
        shows = set().union(*signs.values())
        if heard := [row["host"] for row in test if row["kind"] in _UP]:
            signs["e"] = set()
            odd.insert(0, f"{text(heard[0])} answers, an address that nobody has")
        strong = len(shows) >= _FEWEST or bool(heard) or ("g" in signs and shows >= _who(met))
        forged = _FORGED if heard else 1.0
        timed = _by((row for row in met if row["connect_s"] is not None), "operator").values()
        times = [min(row["connect_s"] for row in rows) for rows in timed]
        if strong and len(times) >= 5 and pstdev(times) < 0.05 * median(times):
            signs["f"], forged = set(), 3 * forged
            odd.append(f"all {len(times)} operators are equally near, {1000 * median(times):.3g} ms")
        clues = ("banner", "features", "cert_sha256", "text")
        could = shows | _who(row for row in met if row["stripped"] or any(row[name] for name in clues))
        mail, web = {row["port"] for row in rest} - set(_NO_MAIL), _who(row for row in rest if row["port"] in _NO_MAIL)
        quiet = None if live else _ALSO_SHUT ** len(mail) * _WEB_LOST ** len(web)
        counts = (len(shows) if strong else 0, len(could))
        odds = _posterior(list(kinds.values()), spared, counts, forged, quiet, loss)
        best = max(odds, key=lambda name: odds[name])
        made |= {"block_probability": odds["blocked_by_network"], "signals": " ".join(sorted(signs)) or None}
        enough = len(kinds) >= _FEWEST and (best != "offline" or bool(rest))
        if enough and odds[best] >= (0.5 if best in ("open", "offline") else _SURE):
            made |= {"verdict": best, "confidence": odds[best]}
        said = [*odd, *said] if made["verdict"] == "intercepted" else [*said, *odd]
    return made, _told(made["verdict"], said, here, rest, up)


def _told(verdict: str, said: list[str], here: list[_Row], rest: list[_Row], up: Mapping[str, bool]) -> list[str]:
    """The sentences so far, with the others that this verdict wants."""
    said, operators, hosts = list(said), _furthest(here), _furthest(here, "host")
    if local := [row for row in here if row["kind"] == "local"]:
        errno = ", ".join(sorted({text(row["errno"]) for row in local if row["errno"]}))
        no_route = f"has no route{' for IPv6' * (verdict == 'no_ipv6')}"
        does = no_route if local[0]["failure"] == "local_no_route" else "itself does not let it out"
        of = f": {len(_by(local, 'host'))} of {len(hosts)} hosts" if len(local) < len(here) else ""
        said.insert(len(local) < len(here), f"this machine {does}{f' ({errno})' * bool(errno)}{of}")
    for kind in (kind for kind in dict.fromkeys(operators.values()) if kind not in ("spoke", "local", "near")):
        names, words = [text(who)[:40] for who, end in operators.items() if end == kind], _MODEL["words"][kind]
        if len(names) < len(operators):
            said.append(f"{words}: {', '.join(names[:8])}")
        else:
            said[0] += f": all {words}"
    others = []
    for port, rows in _by(rest, "port").items():
        answers = _furthest(rows, "host").values()
        yes = sum(kind in (_UP if port in _NO_MAIL else _SPOKE) for kind in answers)
        line = (", which is no mail port" + ": the line is up" * bool(yes)) if port in _NO_MAIL else ""
        others.append((-yes / len(answers), port, f"{yes} of {len(answers)} answered on {port}{line}"))
    said += [words for _, _, words in sorted(others)]  # the greatest contrast to a shut port first
    if alive := sum(up.get(host, False) for host in hosts):
        said.append(f"{alive} of these hosts answered from another network")
    if gone := [text(host) for host, kind in hosts.items() if up.get(host) is False and kind not in _SPOKE]:
        said.append(f"left out, as silent where the port is open: {', '.join(gone[:5])}")
    if verdict == "unclear" and 0 < len(operators) < _FEWEST:
        said.append(f"fewer than {_FEWEST} operators prove nothing")
    elif verdict == "unclear" and here and not rest:
        said.append("no other port was tried, which would tell a filter from a line that is down")
    return said


def egress(probes: pd.DataFrame, *, forecast: pd.DataFrame | None = None, earlier: pd.DataFrame | None = None,
           loss: float | None = None) -> pd.DataFrame:  # fmt: skip
    """Whether my own network lets mail ports out: an `EGRESS` frame, a row per vantage, source address, family, port.

    Takes `PROBES` of control hosts (`dk.controls`): several of at least 3 operators, better 8 of 5, on at least two
    ports, as one silent port alone cannot be told from a line that is down. Only `host`, `port` and `verdict` are
    needed, each further column is evidence. Hosts of one operator share their fate, so operators are weighed; who has
    no name counts under the last two labels of the host's. Of several attempts the last counts.

    `verdict`: open; blocked_by_network (nobody answers, all end alike); selective (more operators shut this address
    out than the usual loss explains); intercepted (3 operators look alike or tampered with, or a web page or an address
    that nobody has answers); offline (nothing answers on any port); by this machine's own errors blocked_by_host and
    no_ipv6. To accuse takes a probability of 95 %, else it is unclear and `confidence` missing.

    `forecast` is a `FORECAST` frame, for `expected` and `differs`. `earlier` are probes of the same hosts at a better
    time, to compare with; other vantages in the frame tell which hosts are up. `loss` is the share of known-good
    operators that do not answer from here, 0 to 1, if you know it. Raises SchemaError if a column is missing.

    Bayes over five kinds of network: an open one loses a share of operators that is Beta(2, 18), a block lets 2 %
    through, so each silent operator adds log(0.98 / loss) to the odds; how they end, and what is known of them from
    elsewhere, weighs too (facts/egress_model.csv). `signals`: a masked words, b STARTTLS missing where the same host
    has it, c alike at several operators, d foreign names, e an answer from TEST-NET (RFC 5737), f all equally near,
    g a web page, h STARTTLS taken out (Durumeric et al. 2015, doi:10.1145/2815675.2815695).
    """
    if loss is not None and not 0 <= loss < 1:
        raise SchemaError(f"egress: loss is a share from 0 to 1, not {loss!r}")
    share = _LOSS if loss is None else (200 * max(loss, 0.001), 200 * (1 - max(loss, 0.001)))
    seen, before = _seen(probes), [] if earlier is None else _seen(earlier)
    published: dict[Any, tuple[str, str]] = {}
    if forecast is not None:
        FORECAST.check(forecast, ["port", "expected", "why"])
        for word in ("open", "unknown", "blocked"):  # what one blocks is blocked, what one keeps quiet is not known
            said = forecast[forecast["expected"] == word].iloc[::-1]
            published |= {port: (word, text(why)) for port, why in zip(said["port"], said["why"], strict=True)}
    places, rows = ("vantage", "local_address", "family"), []
    elsewhere = _by((row for row in seen if row["vantage"] and _asked(row) and row["kind"] != "local"), "port")
    for place, near in sorted(_by(seen, *places).items(), key=str):
        for port, here in sorted(_by(near, "port").items()):
            mail = port not in _NO_MAIL or any(str(row["banner"]).startswith("220") for row in here)
            if not mail or all(row["test"] for row in here):
                continue
            up: dict[str, bool] = {}
            for _, those in _by((row for row in elsewhere[port] if row["vantage"] != place[0]), "vantage").items():
                answers = {host: kind in _SPOKE for host, kind in _furthest(those, "host").items()}
                if sum(answers.values()) >= len(answers) / 2:  # the port is open there
                    up |= {host: answer or up.get(host, False) for host, answer in answers.items()}
            made, why = _judge(here, near, before, up, share)
            low, high = wilson(made["answered"], made["controls"])
            made |= dict(zip(places, place, strict=True)) | {"port": port, "low": float(low), "high": float(high)}
            made["expected"], because = published.get(port, (None, ""))
            if made["expected"] in ("open", "blocked") and made["verdict"] != "unclear":
                made["differs"] = made["verdict"] not in _EXPECTED[made["expected"]]
                why.append(f"{'not as' if made['differs'] else 'as'} published: {because}")
            rows.append(made | {"why": "; ".join(why)})
    return EGRESS.build(rows)


def compare(probes: pd.DataFrame, vantage: str | None = None, other: str | None = None) -> pd.DataFrame:
    """Two networks, port by port, on the hosts that were asked from both: a `COMPARISON` frame.

    Takes `PROBES` of several vantages; `vantage` and `other` name two of them, else every pair is compared. A host
    counts once, whatever its addresses. `p` is McNemar's exact test, two-sided, on the hosts that answered only one
    network. `verdict`: blocked_here or blocked_there (p below 0.05, of 3 operators or more, and that network heard
    from nobody), differs (p below 0.05, else), same (two thirds or more fared alike, of 6 hosts and 3 operators or
    more), too_few. Raises SchemaError where there are no two vantages, or not those.
    """
    seen = [r for r in _seen(probes) if _asked(r) and r["kind"] != "local" and r["port"] not in _NO_MAIL]
    by = _by(seen, "vantage")
    if len(by) < 2 or {vantage, other} - {None, *by} or (vantage is not None and vantage == other):
        named = "".join(f", {name!r}" for name in (vantage, other) if name is not None)
        have = ", ".join(map(text, by)) or "none"
        raise SchemaError(f"comparison: two different vantages of the frame are wanted{named}; it has {have}")
    rows: list[dict[str, Any]] = []
    for a, b in combinations(sorted(by), 2):
        if {vantage, other} - {None, a, b}:
            continue
        a, b = (b, a) if vantage == b or other == a else (a, b)
        for (port, family), part in _by(sorted(by[a] + by[b], key=lambda row: row["port"]), "port", "family").items():
            here, there = (_furthest((row for row in part if row["vantage"] == name), "host") for name in (a, b))
            pairs = {host: (kind in _SPOKE, there[host] in _SPOKE) for host, kind in here.items() if host in there}
            if pairs:
                whose = {row["host"]: row["operator"] for row in part}
                made = {"vantage": a, "other": b, "port": port, "family": family}
                rows.append(made | _mcnemar([(whose[host], *pair) for host, pair in pairs.items()], f"{port}", a, b))
    return COMPARISON.build(rows)


def _mcnemar(pairs: list[tuple[str, bool, bool]], port: str, a: str, b: str) -> dict[str, Any]:
    """The counts, p, verdict and sentence for hosts as (operator, answered here, answered there)."""
    count, n = Counter(pair[1:] for pair in pairs), len(pairs)
    both, mine, theirs = count[True, True], count[True, False], count[False, True]
    odd = mine + theirs
    p = min(1.0, 2 * sum(comb(odd, k) for k in range(min(mine, theirs) + 1)) / 2**odd)
    verdict = "too_few"
    if p < 0.05 and len({pair[0] for pair in pairs if pair[1] != pair[2]}) >= _FEWEST:
        verdict = "differs" if both + min(mine, theirs) else "blocked_here" if theirs else "blocked_there"
    elif n >= 6 and len({pair[0] for pair in pairs}) >= _FEWEST and n - odd >= 2 * n / 3:
        verdict = "same"
    why = f"of {n} hosts {both + mine} answered {text(a)} on {port}, {both + theirs} {text(b)}"
    made = {"asked": n, "both": both, "only_here": mine, "only_there": theirs, "neither": count[False, False]}
    return made | {"p": p, "verdict": verdict, "why": why}


def show_egress(verdicts: pd.DataFrame) -> str:
    """An `EGRESS` or `COMPARISON` frame as lines for a terminal: where, verdict, how sure, and the evidence."""
    lines, several = [], {n: n in verdicts and verdicts[n].nunique() > 1 for n in ("family", "local_address")}
    for row in verdicts.to_dict("records"):
        where = [text(row["vantage"])] if pd.notna(row["vantage"]) else []
        where = [f"{where[0]} against {text(row['other'])}"] if "other" in row else where
        where += [f"port {row['port']}"] + [f"IPv{text(row['family'])}"] * several["family"]
        where += [f"from {text(row.get('local_address'))}"] * several["local_address"]
        sure = f"p = {row['p']:.2g}" if "p" in row else text(row["confidence"], "rate")
        why = str(row["why"]).split("; ")
        told = 1 if row["verdict"] == "open" and row["answered"] == row["controls"] else 2
        why = why if row["verdict"] == "unclear" else why[:told] + why[-1:] * (row.get("differs") in (True, False))
        whose = {"blocked_here": row["vantage"], "blocked_there": row.get("other")}.get(row["verdict"])
        verdict = text(row["verdict"], "verdict") if whose is None else f"blocked from {text(whose)}"
        verdict += f" ({sure})" * (sure != "–")
        lines.append(f"{', '.join(where)}: {verdict}: {'; '.join(why)}")
    return "\n".join(lines) or "no probes"
