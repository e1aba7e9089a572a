"""Which port to use: the guide's rules, the standards' and the provider's, on published facts and evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

import pandas as pd

from deliverkit import facts
from deliverkit.advice import Advice, Rung
from deliverkit.errors import FactsError, SchemaError
from deliverkit.schema import ADVICE, ATTEMPTS, EGRESS, RATES, counted

POLICIES = ("guide", "standards", "provider")
SENDING = ("relay", "client", "website", "application", "legacy")
_FOUR = (25, 465, 587, 2525)
_VERDICTS = ("prefer", "allow", "fallback", "avoid", "exclude")  # from best to worst
_NO_TLS = ("open_no_tls", "open_tls_broken", "tampered")
_SHUT = {"measured-blocked", "measured-no-tls", "network-shuts"}  # rules that speak of the environment
_HIGH, _LOW = 2 / 3, 1 / 3  # share blocked from which a port counts as shut, and up to which as open


def known_name(kind: str, word: str, names: Sequence[str]) -> str:
    """The name that is meant: equal without regard to case, or the only one that holds the word."""
    folded, names = str(word).strip().casefold(), [name for name in names if name]
    exact = [name for name in names if name.casefold() == folded]
    found = exact or [name for name in names if folded and folded in name.casefold()]
    if len(found) == 1:
        return found[0]
    near = ", ".join(found or get_close_matches(str(word), names, 3) or names)
    out = "; leave it out if yours is not listed" if kind.lower() in ("provider", "network") else ""
    raise FactsError(f"{kind} {word!r} is {'not clear' if found else 'not known'}; there is: {near}{out}")


def matches(when: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """True if `row` has every value that `when` asks for; a list means any of them.

    Unknown facts are None in `row` and match nothing: unknown is not open.
    """
    return all(row.get(name) in (want if isinstance(want, list) else [want]) for name, want in when.items())


def counts_of(evidence: pd.DataFrame, provider: str | None = None) -> pd.DataFrame:
    """What evidence says, per port: attempts, blocked, how many had no working TLS (`no_tls`), the rate, and a word.

    Takes the frames that `choose_port` takes, and is one itself. Of attempts, those of the provider's own hosts count
    if there are any. `measured` is open, mixed, blocked or no_tls.
    """
    if "port" not in getattr(evidence, "columns", ()):
        raise SchemaError("evidence: column 'port' is missing; ATTEMPTS, PROBES, RATES or EGRESS is wanted")
    esp = facts.table("esp_ports")
    made = _counts(evidence, [str(h).lower() for h in esp.loc[esp["provider"] == provider, "hostname"]])
    made = made[made["attempts"] > 0].astype("int64")
    return made.assign(rate=made["blocked"] / made["attempts"], measured=[_word(*row) for row in made.to_numpy()])


def _word(attempts: int, blocked: int, bare: int) -> str:
    rate = blocked / attempts
    return "no_tls" if bare > attempts / 2 else "blocked" if rate > _HIGH else "mixed" if rate > _LOW else "open"


def _counts(evidence: pd.DataFrame, hosts: Sequence[str]) -> pd.DataFrame:
    if {"attempts", "rate"} <= set(evidence.columns):  # RATES, or the result of counts_of
        bare = evidence.get("no_tls", pd.Series(0, evidence.index))
        data = RATES.check(evidence, ["port", "attempts", "blocked"]).assign(no_tls=bare)
        return data.groupby("port")[["attempts", "blocked", "no_tls"]].sum()
    if {"controls", "operators"} <= set(evidence.columns):  # EGRESS
        sure = EGRESS.check(evidence, ["port", "verdict"])
        sure = sure[sure["verdict"].ne("unclear")].assign(attempts=sure["controls"], no_tls=0)
        shut = sure["verdict"].isin(["open", "selective"])
        blocked = sure["controls"].where(~shut, sure["controls"] - sure["answered"])
        return sure.assign(blocked=blocked).groupby("port")[["attempts", "blocked", "no_tls"]].sum()
    data = counted(ATTEMPTS.check(evidence, ["port", "blocked"])).dropna(subset=["port", "blocked"])
    shut = data["blocked"].astype(bool)
    if {"blocked_by", "category"} <= set(data):  # a server that refuses sender or login has answered: the port is open
        shut &= ~(data["blocked_by"].eq("policy") | data["category"].eq("relay_or_login")).fillna(False).astype(bool)
    data = data.assign(blocked=shut)
    if hosts and "host" in data:
        names = data["host"].astype("string")
        ours = names.isin([h for h in names.dropna().unique() if any(fnmatch(h.lower(), p) for p in hosts)])
        data = data[ours] if ours.any() else data
    bare = data["verdict"].isin(_NO_TLS) if "verdict" in data else pd.Series(False, data.index)
    table = pd.DataFrame({"port": data["port"], "attempts": 1, "blocked": data["blocked"].astype(int)})
    return table.assign(no_tls=bare.astype(int)).groupby("port")[["attempts", "blocked", "no_tls"]].sum()


def _candidates(provider: str | None, relay: bool) -> list[dict[str, Any]]:
    """One row per port: the four of the guide, and all that the provider publishes."""
    table = facts.table("esp_ports")
    ours = table[table["provider"] == provider] if provider else table.iloc[:0]
    published = {row["port"]: row for row in reversed(ours.to_dict("records"))}  # the first host wins
    popular = table[table["kind"] == "esp"].groupby("port")["provider"].nunique()
    rows: list[dict[str, Any]] = []
    for port in [*_FOUR, *(p for p in published if p not in _FOUR and not relay)]:
        row = published.get(port, {})
        offered = row.get("security") or ("implicit" if port == 465 else "starttls")
        known = provider is not None and not relay
        rows.append(
            {
                "sending": "relay" if relay else "submission",
                "port": port,
                "named": port in _FOUR,
                "standing": "standard" if port in (25, 465, 587) else "unofficial",
                "security": offered.removesuffix("_optional"),
                "optional": offered.endswith("_optional"),
                "published": port in published if known else None,
                "unnamed": provider is None,
                "recommended": row.get("recommended") == "true" if row else None,
                "host": row["hostname"].replace("*", "{region}") if known and row else None,
                "source": row.get("source_url"),
                **{name: row.get(name) if pd.notna(row.get(name)) else None for name in ("auth", "remark")},
                "popular": int(popular.get(port, 0)),
            }
        )
    return rows


def _judge(row: dict[str, Any], policy: str) -> dict[str, Any]:
    """The row with its verdict and the rules that fit it, the deciding one first."""
    rules = facts.tables("port_rules")["rule"]
    fits = [r for r in rules if r["policy"] in (policy, "any") and matches(r["when"], row)]
    weighed = [rule for rule in fits if rule["verdict"] in _VERDICTS]
    if not weighed:  # no rule of this policy speaks of the port
        return row | {"verdict": "exclude", "fits": fits, "reason": f"the {policy} policy does not name it"}
    worst = max(_VERDICTS.index(rule["verdict"]) for rule in weighed)
    deciding = [rule for rule in weighed if _VERDICTS.index(rule["verdict"]) == worst]
    said = deciding + [rule for rule in fits if rule["verdict"] == "note"]
    reason = "; ".join(dict.fromkeys(rule["reason"] for rule in said))
    return row | {"verdict": _VERDICTS[worst], "fits": fits, "reason": reason}


def _rank(rows: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Best first. Within a verdict: standard before unofficial, measured open before unknown, then the policy."""
    proof = {"open": 0, "unknown": 1, "mixed": 2}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        implicit = row["security"] == "implicit"
        taste = {"guide": implicit, "standards": not implicit, "provider": -row["popular"]}[policy]
        unofficial = row["standing"] == "unofficial"
        return (
            _VERDICTS.index(row["verdict"]),
            unofficial and not row["named"],
            proof.get(row["measured"], 3) if unofficial else 0,
            taste,
            row["port"],
        )

    return sorted(rows, key=key)


def _ids(rules: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for rule in rules for name in (rule["id"], rule["item"])))


def _sources(rules: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[str]:
    said = [f"{rule['source']} ({rule['url']})" if "url" in rule else rule["source"] for rule in rules]
    return list(dict.fromkeys(said + ([f"{row['source']}"] if row.get("source") else [])))


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    made = []
    for rank, row in enumerate(rows, 1):
        made.append({name: row[name] for name in ("port", "security", "host", "verdict", "measured")})
        made[-1] |= {"attempts": row["attempts"], "rate": row["rate"], "reason": row["reason"]}
        made[-1] |= {"rank": rank if row["verdict"] != "exclude" else None}
        made[-1] |= {"rules": " ".join(_ids(row["fits"])), "sources": "; ".join(_sources(row["fits"], row))}
    return ADVICE.build(pd.DataFrame(made).astype({"rank": "Int64"}))


def _last_rung(provider: str | None) -> Rung:
    """The end of every ladder: mail over HTTPS."""
    apis = facts.table("provider_apis").set_index("provider")
    if provider and provider in apis.index:
        return Rung(None, "https", str(apis.loc[provider, "api"]), "leaves by 443, as every web page does")
    whose = f"of {provider}: none is on record here, see its documentation" if provider else "of your provider"
    return Rung(None, "https", f"API {whose}", "leaves by 443, as every web page does")


def choose_port(sending: str = "application", policy: str = "guide", provider: str | None = None, *,
                network: str | None = None, evidence: pd.DataFrame | None = None,
                security: str | None = None) -> Advice:  # fmt: skip
    """The port to use for this way of sending: an `Advice` with ranked ports, ladder, warnings and rules.

    `sending`: relay (server to server), client, website, application, or legacy (software that demands
    implicit TLS). `policy`: guide, standards (RFC 8314) or provider (what this provider publishes).
    `provider`, `network`: a name of the facts tables (`esp_ports`, `network_policies`), any case, or a part
    of it that is unique. `security`: implicit or starttls if the software can do only that. `evidence`:
    `ATTEMPTS` or `PROBES`, `RATES` or `EGRESS` of one network; what was measured outranks what is published.
    Of attempts, those of the provider's own hosts count if there are any. Blocked is a port with more than
    two thirds of its attempts blocked, open one with at most one third.
    Raises FactsError for an unknown word and SchemaError for an evidence frame of another kind.
    """
    sending, policy = known_name("sending", sending, SENDING), known_name("policy", policy, POLICIES)
    wanted = "any" if security is None else known_name("security", security, ("implicit", "starttls"))
    needs = "implicit" if sending == "legacy" else wanted
    esp, nets = facts.table("esp_ports"), facts.table("network_policies").query("direction == 'outbound'")
    if provider is not None:
        provider = known_name("provider", provider, list(esp["provider"].unique()))
    if network is not None:
        network = known_name("network", network, list(nets["operator"].unique()))
    rows = _candidates(provider, sending == "relay")
    known: Any = counts_of(evidence, provider).to_dict("index") if evidence is not None else {}
    ours = nets[nets["operator"] == network] if network else nets.iloc[:0]
    shut = dict(zip(ours["port"], ours["policy"], strict=True))
    for row in rows:
        row["needs"], row["network"] = needs, shut.get(row["port"])
        row |= known.get(row["port"], {"measured": "unknown", "attempts": None, "rate": None})
    asked: dict[str, Any] = {"sending": sending, "provider": provider, "network": network}
    answers = {name: _advise(_rank([_judge(r, name) for r in rows], name), name, asked) for name in POLICIES}
    others = tuple((name, a["port"], a["reason"]) for name, a in answers.items() if name != policy)
    answer = answers[policy]
    if evidence is not None and "vantage" in evidence and evidence["vantage"].nunique() > 1:
        names = ", ".join(sorted(map(str, evidence["vantage"].dropna().unique())))
        mixed = f"the evidence mixes several networks ({names}); choose for one at a time"
        answer["warnings"] = (mixed, *answer["warnings"])
    return Advice(policy=policy, others=others, **asked, **answer)


def _advise(rows: list[dict[str, Any]], policy: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the `Advice` that one policy gives."""
    left = [row for row in rows if row["verdict"] != "exclude"]
    rules = facts.tables("port_rules")["rule"]
    shut = any({r["id"] for r in row["fits"] if r["verdict"] == "exclude"} <= _SHUT for row in rows)
    state = {"nothing_left": "environment" if shut else "mismatch"}
    spoke = list(left[0]["fits"]) if left else [r for r in rules if matches(r["when"], state)]
    for row in rows:  # why a port that ranks no lower is out belongs to the answer too
        out = row["verdict"] == "exclude" and row["measured"] != "unknown"
        spoke += [r for r in row["fits"] if r["verdict"] == "exclude"] if out or not left else []
        spoke += [r for r in row["fits"] if r["verdict"] == "fallback"] if out and left else []
    ports: dict[str, list[str]] = {}
    for row in left:
        for rule in row["fits"]:
            if rule["verdict"] == "warn":
                ports.setdefault(rule["reason"], []).append(str(row["port"]))
    warned = [f"port {', '.join(those)}: {reason}" for reason, those in ports.items()]
    if left and left[0]["measured"] == "unknown":
        warned.append(f"port {left[0]['port']} was not measured from your network: probe it before you rely on it")
    if left and "{" in (left[0]["host"] or ""):
        warned.append(f"put your own {left[0]['host'].split('{')[1].split('}')[0]} into the host's name")
    if left and left[0]["host"]:
        said = [f"login by {left[0]['auth'].replace('|', ' or ')}"] if left[0]["auth"] else []
        said += [left[0]["remark"]] if left[0]["remark"] else []
        warned += [f"{asked['provider']} on {left[0]['port']}: {told}" for told in said]
    if asked["sending"] == "relay" and asked["provider"]:
        how = f"handing mail to {asked['provider']} with a login is submission: choose application"
        warned.append(f"relay means straight to the receivers' servers; {how}")
    if policy == "provider" and not asked["provider"]:
        warned.append("no provider named: what this policy says is what providers publish on the whole")
    if asked["sending"] == "relay" and not left:
        warned.append("without 25, hand the mail to a provider with a login: that is submission, on 587 or 465")
    rungs = tuple(Rung(r["port"], r["security"], r["host"] or "", r["reason"]) for r in left)
    best = left[0] if left else {"port": None, "security": None, "host": None}
    named = {name: best[name] for name in ("port", "security", "host")}
    return named | {
        "reason": left[0]["reason"] if left else spoke[0]["reason"],
        "ranked": _frame(rows),
        "ladder": (*rungs, _last_rung(asked["provider"])),
        "warnings": tuple(dict.fromkeys(warned)),
        "rules": tuple(_ids(spoke)),
        "sources": tuple(_sources(spoke, left[0] if left else {})),
    }
