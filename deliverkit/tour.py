"""The main job from end to end, for a newcomer: probe, read, rates, verdict, advice, report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from deliverkit.egress import egress, show_egress
from deliverkit.lab import Lab
from deliverkit.rates import block_rates, bounce_rates
from deliverkit.report import report
from deliverkit.rules import choose_port
from deliverkit.samples import sample
from deliverkit.svg import text
from deliverkit.sweep import probe

_NETWORK, _PROVIDER = "isp-blocks-25", "SendGrid"


def _say(heading: str, *lines: object) -> None:
    print(f"\n{heading}\n{'-' * len(heading)}", *lines, sep="\n", flush=True)


def tour(output: Path) -> int:
    """Run the tour, print what it finds, write the report to `output`; 0 if all went well."""
    _say("1. Probe", f"A loopback network acts out {_NETWORK!r}: eight servers, four ports each.")
    with Lab(_NETWORK) as lab:
        probes = probe(lab.hosts, connect_to=lab.connect_to, vantage="tour", timeout=2, pace=None)
    print(block_rates(probes))
    _say("2. Is it my network?", show_egress(egress(probes)))
    mail = sample("mail")
    _say("3. Read", f"The sample campaign: {len(mail)} rows from logs, bounces and provider exports.")
    print(block_rates(mail, ["vantage", "port"]))
    _say("4. What bounced", "Bounced of those that had an answer, per client; given up beside it.")
    for row in bounce_rates(mail, "client").to_dict("records"):
        counts = f"{row['bounced']} of {row['sent'] + row['bounced']} bounced, {row['expired']} given up"
        share = f"{text(row['rate'], 'rate')} ({text(row['low'], 'low')} to {text(row['high'], 'high')})"
        print(f"{row['client']}: {share}: {counts}")
    _say("5. Which port", choose_port("application", provider=_PROVIDER, evidence=probes))
    everything = pd.concat([probes, sample()], ignore_index=True)
    made = report(everything, title="Sample campaign", provider=_PROVIDER).save(output)
    _say("6. Report", f"Written: {made.resolve()}")
    print("Notebooks: python -m pip install jupyterlab && deliverkit notebooks")
    return 0
