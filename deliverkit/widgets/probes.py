"""Which ports are open: a sweep that can be stopped and resumed, each port's way through the steps, the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event, Thread
from typing import Any

import ipywidgets as w
import pandas as pd

from deliverkit import PORTS, svg
from deliverkit.egress import egress
from deliverkit.errors import DeliverkitError, TargetError
from deliverkit.rates import ends, funnel_of
from deliverkit.samples import sample
from deliverkit.schema import PROBES, STEPS
from deliverkit.sweep import probe
from deliverkit.widgets.parts import ROWS, alert, box, choice, control, fill, finder, pairs, table, values, view

_DETAIL = {"vantage": "network", "host": "host", "port": "port", "connect": "connect", "rules": "rules"}
_DETAIL |= {"encryption": "encryption", "verdict": "verdict", "said": "what it said"}
_EGRESS = {"vantage": "network", "port": "port", "verdict": "verdict", "confidence": "how sure", "why": "evidence"}
_STEP = {"connect": "connect_s", "rules": "banner_s", "encryption": "tls_s"}
_SHOWN = ("vantage", "host", "port", "step", "outcome", "verdict", "failure", "text", "banner", *_STEP.values())
_SAID = 120


def explore_probes(probes: pd.DataFrame | None = None, hosts: Iterable[str] | None = None, **asked: Any) -> Any:
    """A box to see each port's way through the five steps and the verdict on the network, and to probe from it.

    Takes `PROBES`; without a frame and without `hosts` the sample sweep. With `hosts` the box has a field for them and
    the buttons `start`, `cancel` and `resume`; `asked` goes to `dk.probe` (connect_to, vantage, ports, timeout, pace).
    Nothing is probed before `start` is clicked. `box.probes` is the frame that is shown, `view.value` its HTML.
    """
    frame = sample("probes") if probes is None and hosts is None else PROBES.empty() if probes is None else probes
    state: dict[str, Any] = {}
    pick = {name: choice(name, label, [("all", "")]) for name, label in (("vantage", "Network"), ("host", "Host"))}
    pick["port"] = choice("port", "Port", [("all", "")])
    place, note, bar = view(), view(), control(w.IntProgress, "progress", "Ports done", value=0, max=1)
    field = control(w.Text, "hosts", "Hosts", value=", ".join(hosts or ()), placeholder="mail.example.com, [::1]:587")
    start, cancel, resume = (control(w.Button, name, name.capitalize()) for name in ("start", "cancel", "resume"))
    sweep = [field, start, cancel, resume] if hosts is not None else []
    made = box("probes", [sweep, bar, note, [*pick.values()], place])

    def show(_: Any = None) -> None:
        fill(place, draw)

    def draw() -> str:
        places, frame = state["find"](), state["shown"]
        if not len(places):
            return "<p>No port was tried yet.</p>" if hosts is not None else "<p>No probes.</p>"
        ended, verdicts = (counts.iloc[find()] for counts, find in state["counts"])
        way = funnel_of(ended, ["port"])
        parts = [svg.steps(way, title="How far each port gets through the five steps")]
        columns = {"port": "port", "step": "step", "reached": "reached", "passed": "passed", "share": "share"}
        twin = table(way[way["reached"] > 0], "A probe ends after encryption: it never sends mail", columns)
        parts.append(f"<details><summary>The figure as a table</summary>{twin}</details>")
        parts.append(table(verdicts, "Is it the network? Weighed over all hosts and ports", _EGRESS))
        some = _ways(frame.iloc[places[:ROWS]])
        return "".join([*parts, table(some, "Each port", _DETAIL, len(places))])

    def take(frame: pd.DataFrame) -> None:
        """Count everything once, and offer what is there."""
        made.probes = state["frame"] = frame
        state["shown"] = frame.reindex(columns=list(_SHOWN))
        verdicts = egress(frame[frame["verdict"].ne("cancelled").fillna(True)])
        counts = (ends(frame, [name for name in pick if name in frame]), verdicts)
        state["find"], state["counts"] = finder(frame, pick), [(table_, finder(table_, pick)) for table_ in counts]
        for name, control_ in pick.items():
            control_.options = pairs([("all", ""), *sorted(values(frame, name), key=lambda v: (len(v), v))])
            control_.layout.display = None if len(control_.options) > 2 else "none"
        show()

    def run(earlier: pd.DataFrame | None) -> None:
        def progress(done: int, total: int) -> None:
            if done % (total // 200 + 1) == 0 or done == total:  # a message each for few ports, 200 for many
                bar.max, bar.value = total, done
                note.value = f'<p role="status">Probing: {done} of {total} ports done</p>'

        try:
            names: Any = [name for name in field.value.replace(",", " ").split() if name]
            if earlier is not None:  # what was begun goes on, whatever stands in the field by now
                names = earlier[["host", "port", "operator"]]
            elif not names:
                raise TargetError("type at least one host")
            given = {"ports": PORTS, **asked, "stop": state["stop"], "resume": earlier, "progress": progress}
            take(probe(names, **given))
            left = int(state["frame"]["verdict"].eq("cancelled").sum())
            bar.value = bar.max - left
            note.value = (
                f'<p role="status">{f"Stopped: {left} ports are left; Resume goes on." if left else "Done."}</p>'
            )
        except DeliverkitError as problem:
            note.value = alert(problem)
        except Exception as problem:  # noqa: BLE001 - in a thread it would be lost
            note.value = alert(f"the sweep ended: {type(problem).__name__}: {problem}")
        finally:
            idle(True)

    def idle(on: bool) -> None:
        start.disabled, cancel.disabled = not on, on
        resume.disabled = not (on and state["frame"]["verdict"].eq("cancelled").any())

    def begin(earlier: pd.DataFrame | None) -> None:
        idle(False)
        note.value, bar.value = '<p role="status">Probing …</p>', 0
        state["stop"] = Event()
        made.thread = Thread(target=run, args=(earlier,), daemon=True)
        made.thread.start()

    start.on_click(lambda _: begin(None))
    resume.on_click(lambda _: begin(state["frame"]))
    cancel.on_click(lambda _: state["stop"].set())
    for control_ in pick.values():
        control_.observe(show, "value")
    bar.layout.display = None if hosts is not None else "none"
    made.hosts, made.start, made.cancel, made.resume, made.note, made.view = field, start, cancel, resume, note, place
    made.vantage, made.host, made.port = pick["vantage"], pick["host"], pick["port"]
    take(PROBES.check(frame, ["host", "port", "verdict", "step", "outcome"]))
    idle(True)
    return made


def _ways(probes: pd.DataFrame) -> pd.DataFrame:
    """Per probe a word for each step that a probe can see, and what the far end said."""
    rows = []
    for row in probes.to_dict("records"):
        step = row["step"] if isinstance(row["step"], str) else None
        last = STEPS.index(step) if step in STEPS else -1
        words = {}
        for i, (name, seconds) in enumerate(_STEP.items()):
            took = row.get(seconds)
            passed = f"passed, {1000 * took:.0f} ms" if took is not None and pd.notna(took) else "passed"
            here = passed if row["outcome"] == "passed" else row["failure"] or "ended here"
            words[name] = passed if i < last else here if i == last else "–"
        said = next((row[n] for n in ("text", "banner") if n in row and isinstance(row[n], str)), "")
        keys = {name: row.get(name) for name in ("vantage", "host", "port", "verdict")}
        rows.append(keys | words | {"said": said[:_SAID]})
    return pd.DataFrame(rows, columns=list(_DETAIL))
