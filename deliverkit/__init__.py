"""deliverkit: did our mail leave, did it arrive, and is the port to blame?

>>> import deliverkit as dk
>>> dk.PORTS
(25, 465, 587, 2525)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
PORTS = (25, 465, 587, 2525)

_WHERE = {  # public name -> module; imported on first use, so that `import deliverkit` stays light
    "resolve": "resolve",
    "Resolver": "resolve",
    "probe": "sweep",
    "rehearse": "rehearse",
    "Lab": "lab",
    "read": "read",
    "read_log": "logs",
    "read_bounces": "bounces",
    "read_export": "exports",
    "read_verified": "verifications",
    "History": "history",
    "explain": "classify",
    "outcomes": "outcomes",
    "attach_sends": "sends",
    "block_rates": "rates",
    "bounce_rates": "rates",
    "funnel": "rates",
    "egress": "egress",
    "controls": "egress",
    "compare": "egress",
    "forecast": "forecast",
    "choose_port": "rules",
    "Advice": "advice",
    "plot_block_rates": "plots",
    "plot_funnel": "plots",
    "plot_bounce_reasons": "plots",
    "plot_timeline": "plots",
    "explore_rates": "widgets",
    "explore_probes": "widgets",
    "explore_bounces": "widgets",
    "port_wizard": "widgets",
    "report_builder": "widgets",
    "report": "report",
    "reports": "report",
    "sample": "samples",
    "DeliverkitError": "errors",
    "FormatError": "errors",
    "SchemaError": "errors",
    "FactsError": "errors",
    "TargetError": "errors",
}

__all__ = ["PORTS", "__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deliverkit' has no attribute {name!r}")
    return getattr(import_module(f"deliverkit.{_WHERE[name]}"), name)


class _Package(ModuleType):
    """Keeps `dk.read` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
