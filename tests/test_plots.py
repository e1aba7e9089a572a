"""Rates, figures and controls: what they count and what they show."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from deliverkit import plots, svg
from deliverkit.rates import block_rates, funnel
from deliverkit.widgets import explore_rates


@pytest.fixture
def tried():
    return pd.DataFrame(
        {
            "port": [25] * 8 + [587] * 30,
            "blocked": [True] * 8 + [False] * 30,
            "step": ["connect"] * 8 + ["relay"] * 30,
            "outcome": ["failed"] * 8 + ["passed"] * 30,
        }
    )


def test_rows_not_attempted_never_count(tried):
    tried["attempted"] = [False] * 4 + [True] * 34
    assert block_rates(tried)["attempts"].tolist() == [4, 30]


def test_a_verdict_needs_the_whole_interval(tried):
    assert block_rates(tried.iloc[[0, 8]])["verdict"].tolist() == ["as_expected", "too_few"]


def test_no_attempts_give_no_rows(tried):
    assert len(block_rates(tried[:0])) == 0


def test_the_funnel_has_five_steps_a_group(tried):
    assert len(funnel(tried)) == 10


def test_a_plot_draws_into_the_axes_it_was_given(tried):
    ax = Figure().subplots()
    assert plots.plot_block_rates(block_rates(tried), ax=ax) is ax


def test_text_from_outside_is_escaped_in_the_chart(tried):
    tried["host"] = "<script>"
    assert "<script>" not in svg.bars(block_rates(tried, "host"), title="<script>", key="host")


def test_choosing_a_port_leaves_the_others_out(tried):
    box = explore_rates(tried)
    box.port.value = 587
    assert "port 587" in box.view.value and "port 25" not in box.view.value
