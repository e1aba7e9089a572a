"""The data at hand: the sample campaign that comes along, or what `deliverkit serve` was given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deliverkit.errors import FormatError
from deliverkit.read import read
from deliverkit.schema import PROBES
from deliverkit.sends import attach_sends

DATA = "DELIVERKIT_DATA"  # environment variable in which `deliverkit serve` names the data of its pages
_CAMPAIGN = ("postfix", "bounces.mbox", "ses.json", "sendgrid.json")


def shipped(name: str) -> Path:
    """A folder that comes along: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise FormatError(package.parent / name, f"the {name} folder is not there; use a clone or the wheel")


def opened(paths: Sequence[str | Path], sends: str | None = None) -> pd.DataFrame:
    """What `read` makes of the paths, with what a send list says of it; FormatError if it is none."""
    data = read([*paths])
    return data if sends is None else attach_sends(data, sends)


def sample(part: str = "all") -> pd.DataFrame:
    """The sample campaign with its probes, or the analyst's own data on pages of `deliverkit serve`: a `PROBES` frame.

    `part` is probes, mail (all other rows: logs, bounces, exports) or all. The campaign carries client, campaign
    and network from its send list; notifications of the MTA, which are not in the list, are left out.
    """
    if own := os.environ.get(DATA):
        data = opened([own])
    else:
        folder = shipped("data")
        mail = opened([folder / name for name in _CAMPAIGN], str(folder / "sends.csv"))
        data = pd.concat([read(folder / "probes.csv"), mail[mail["client"].notna()]], ignore_index=True)
    made = PROBES.build(data)
    probed = made["origin"].eq("probe").fillna(False)
    return made[{"probes": probed, "mail": ~probed}.get(part, probed | True)].reset_index(drop=True)
