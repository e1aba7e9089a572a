"""Controls for a notebook: plain ipywidgets around an SVG text, readable by tests, without Output."""

from deliverkit.widgets.bounces import explore_bounces
from deliverkit.widgets.builder import report_builder
from deliverkit.widgets.probes import explore_probes
from deliverkit.widgets.rates import explore_rates
from deliverkit.widgets.wizard import port_wizard

__all__ = ["explore_bounces", "explore_probes", "explore_rates", "port_wizard", "report_builder"]
