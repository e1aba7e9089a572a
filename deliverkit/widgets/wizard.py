"""Which port to use: the guide's four questions and its practical rule, one at a time, with what was measured."""

from __future__ import annotations

import tomllib
from functools import cache
from html import escape
from importlib.resources import files
from inspect import signature
from threading import Thread
from typing import Any

import ipywidgets as w
import pandas as pd

from deliverkit import PORTS, facts, svg
from deliverkit.advice import Advice
from deliverkit.rates import HEADINGS, rates_of
from deliverkit.rehearse import rehearse
from deliverkit.report.pages import page_of
from deliverkit.rules import choose_port, counts_of
from deliverkit.schema import ATTEMPTS
from deliverkit.settings import SOFTWARE, by_hand, settings
from deliverkit.widgets.parts import box, choice, control, fill, preset, table, values, view

_WORDS = tomllib.loads((files("deliverkit") / "templates/wizard.toml").read_text("utf-8"))
_PAGES: list[dict[str, Any]] = _WORDS["page"]
_SAID = {"open": (1, 0, 0), "blocked": (1, 1, 0), "mixed": (2, 1, 0), "no_tls": (1, 0, 1)}  # attempts, blocked, no TLS
_STEPS = {"stage": "step", "outcome": "outcome", "took": "took", "reply_code": "code", "text": "what was said"}


def port_wizard(evidence: pd.DataFrame | None = None, **answers: Any) -> Any:
    """A box that asks the guide's four questions one at a time, and ends in an `Advice` with all it rests on.

    `evidence` (`ATTEMPTS` or `PROBES`) fills in what was measured from the network chosen. `answers` fills in sending,
    provider, network, policy, security and the like, and the `page` to begin with (0 to 4): each is an attribute of the
    box, as are `back` and `next`. `box.advice` is the `Advice` of the last page. There one submission can be rehearsed,
    with what else is in `answers` (connect_to, trust, timeout) for `dk.rehearse`: its steps are `box.rehearsal`, and
    the password is kept by no widget, frame or file. Raises SchemaError if the evidence has no `port` or `blocked`,
    FactsError for a word that is not offered.
    """
    if evidence is not None:
        ATTEMPTS.check(evidence, ["port", "blocked"])
    networks = values(evidence, "vantage") if evidence is not None else []
    more: dict[str, Any] = {
        "provider": sorted(facts.table("esp_ports")["provider"].unique()),
        "network": sorted(facts.table("network_policies")["operator"].unique()),
        "vantage": networks
        if len(networks) == 1
        else [("none of these" if networks else "nothing measured", ""), *networks],
        "software": [(row["name"], id) for id, row in SOFTWARE.items()],
    }
    ask = {name: choice(name.replace("_", "-"), about["label"], [*map(tuple, about["options"]), *more.get(name, ())])
           for name, about in _WORDS["ask"].items()}  # fmt: skip
    login = {
        "server": control(w.Text, "server", "Server", placeholder="mail.example.com", continuous_update=False),
        "user": control(w.Text, "user", "User name", continuous_update=False),
        "kind": choice("kind", "Log in with", [("a password", "password"), ("an OAuth token", "token")]),
        "password": control(w.Password, "password", "Password or token", continuous_update=False),
        "to": control(w.Text, "to", "Test message to", placeholder="your own address; empty: only log in"),
    }
    for name, known in {**ask, **login}.items():
        if name in answers:
            preset(known, answers.pop(name))
    if wrong := set(answers) - {"page", *signature(rehearse).parameters}:
        raise TypeError(f"port_wizard does not know {sorted(wrong)[0]!r}")
    head, rule, steps = w.HTML(), view(), view()
    back, go = control(w.Button, "back", "Back"), control(w.Button, "next", "Next")
    test = control(w.Button, "try", "Rehearse")
    rows = [[head, [ask[name] for name in page["asks"]], rule] for page in _PAGES]
    rows[-1] += [w.HTML("<h4>Rehearse it</h4>"), [*login.values()], test, steps]
    sheets = [box("page", [*row, [back, go]]) for row in rows]
    made = box("wizard", [], head=head, view=rule, steps=steps, back=back, next=go, test=test, **ask, **login)
    made.page = min(max(int(answers.pop("page", 0)), 0), len(_PAGES) - 1)
    secret: list[str] = []  # for one rehearsal; the widget itself forgets at once, so that no notebook can save it
    offered = ""  # the server that the advice named last

    @cache
    def counted(vantage: str, provider: str) -> pd.DataFrame:
        """What was measured from a network, counted once: a click must not count a million rows again."""
        if evidence is None or (networks and not vantage):
            return counts_of(ATTEMPTS.empty())
        return counts_of(evidence[evidence["vantage"].eq(vantage).fillna(False)] if vantage else evidence, provider)

    def known_counts() -> pd.DataFrame:
        """The same with what the person says of a port in its place."""
        counts = counted(ask["vantage"].value, ask["provider"].value)
        told = {port: ask[f"tried_{port}"].value for port in PORTS}
        told = {port: word for port, word in told.items() if word != counts["measured"].get(port, "")}
        lines = {port: _SAID[word] for port, word in told.items() if word}
        names = ["attempts", "blocked", "no_tls"]
        said = pd.DataFrame.from_dict(lines, orient="index", columns=names)
        both = pd.concat([counts[names].drop(list(told), errors="ignore"), said])
        return counts_of(both.rename_axis("port").reset_index().astype("int64").assign(rate=0.0)).reset_index()

    def prefill(_: Any = None) -> None:
        """Set what was measured; what the person said of another network would be wrong here."""
        words = counted(ask["vantage"].value, ask["provider"].value)["measured"]
        for port in PORTS if evidence is not None else ():
            ask[f"tried_{port}"].value = words.get(port, "")

    def show(_: Any = None) -> None:
        page, end = _PAGES[made.page], made.page == len(_PAGES) - 1
        item = next(row for row in facts.tables("guide")["item"] if row["id"] == f"guide:{page['item']}")
        title = f"{'Answer' if end else f'Question {made.page + 1} of 4'}: {item['title']}"
        head.value = f'<h3 class="dk-heading">{escape(title)}</h3>'
        differs = [row for row in facts.tables("guide")["differs"] if row["guide"][6:] in page["differs"]]
        about = {"item": item, "differs": differs, "source": facts.tables("guide")["source"], "advice": None}
        made.advice = None
        fill(rule, lambda: page_of("wizard.html", **{**about, **(conclude() if end else {"facts": facts_of(page)})}))
        back.disabled, go.disabled = made.page == 0, end
        made.children = sheets[made.page].children

    def facts_of(page: dict[str, Any]) -> str:
        """What was measured and published that bears on the question."""
        parts = []
        if page.get("measured"):
            rates = rates_of(known_counts()[["port", "attempts", "blocked"]], ["port"])
            headings = {"port": "port", **{n: h for n, h in HEADINGS.items() if not n.startswith("by_")}}
            drawn = svg.bars(rates, title="Measured: share of attempts blocked") + table(rates, "Measured", headings)
            none = "<p>Nothing was measured from your network: <code>dk.probe</code> does that.</p>"
            parts.append(drawn if len(rates) else none)
        if (told := page.get("published")) and (name := ask[told["ask"]].value):
            rows = facts.table(told["table"])
            rows = rows[rows[told["by"]] == name].drop_duplicates("port")
            parts.append(table(rows, f"What {name} publishes", told["columns"]))
        return "".join(parts)

    def conclude() -> dict[str, Any]:
        """The advice, and what goes with it."""
        nonlocal offered
        asked: dict[str, Any] = {n: ask[n].value or None for n in ("policy", "provider", "network", "security")}
        made.advice = said = choose_port(ask["sending"].value, evidence=known_counts(), **asked)
        relay = said.sending == "relay"
        test.disabled = said.port is None or relay
        if login["server"].value in ("", offered):
            login["server"].value = offered = said.host or ""
        place = said.host or login["server"].value.strip() or "mail.example.com"
        found: dict[str, Any] = {"advice": said, "facts": "", "host": place, "measured_from": ask["vantage"].value}
        if said.port is None:
            return found
        way = {"host": found["host"], "port": said.port, "security": str(said.security)}
        found |= {"setting": None if relay else settings(ask["software"].value, **way), "tests": by_hand(**way)}
        return found | {"ports": [rung.port for rung in said.ladder if rung.port]}

    def keep(change: Any) -> None:
        if change["new"]:
            secret[:] = [change["new"]]
            login["password"].value, login["password"].placeholder = "", "kept for one rehearsal, not shown"

    def run(said: Advice, password: str | None) -> None:
        def steps_of() -> str:
            words: dict[str, Any] = {name: login[name].value.strip() or None for name in ("user", "to")}
            secret_as = "token" if login["kind"].value == "token" else "password"
            asked = {"security": said.security, secret_as: password, **words, **answers}
            made.rehearsal = done = rehearse(login["server"].value.strip(), said.port or 587, **asked)
            took = done["took_s"].map(lambda s: "below 1 ms" if s < 0.001 else f"{1000 * s:.0f} ms")
            return _verdict(done) + table(done.assign(took=took), "The steps of one submission", _STEPS)

        fill(steps, steps_of)
        test.disabled = False

    def begin(_: Any) -> None:
        login["password"].placeholder, test.disabled = "", True
        steps.value = '<p role="status">Rehearsing …</p>'
        made.thread = Thread(target=run, args=(made.advice, secret.pop() if secret else None), daemon=True)
        made.thread.start()

    def turn(by: int) -> None:
        made.page = min(max(made.page + by, 0), len(_PAGES) - 1)
        show()

    back.on_click(lambda _: turn(-1))
    go.on_click(lambda _: turn(1))
    test.on_click(begin)
    login["password"].observe(keep, "value")
    for known in (ask["vantage"], ask["provider"]):  # which hosts count depends on the provider
        known.observe(prefill, "value")
    for known in [*ask.values(), login["server"]]:
        known.observe(show, "value")
    prefill()
    show()
    return made


def _verdict(steps: pd.DataFrame) -> str:
    """What the rehearsal came to, in a sentence, and whether the password went out."""
    end = steps[steps["attempted"].fillna(False)].iloc[-1]
    where = f"{end['host']}, port {end['port']}"
    if end["outcome"] == "passed":
        took = {"data": "the test message was taken", "login": "the login was accepted"}
        said = f"It works at {where}: {took.get(end['stage'], 'the session is encrypted; no login was tried')}."
    else:
        said = f"Stopped at {end['stage'].replace('_', ' ')} of {where}: {svg.text(end['text'])}."
    kept = "" if "login" in set(steps["stage"]) else " No password was sent."
    return f'<p role="status"><strong>{escape(said)}</strong>{kept}</p>'
