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


def test_a_verdict_needs_five_attempts_and_the_whole_interval(tried):
    assert block_rates(tried)["verdict"].tolist() == ["as_expected", "as_expected"]
    assert block_rates(tried.iloc[4:12])["verdict"].tolist() == ["too_few", "too_few"]
    tried["blocked"] = ~tried["blocked"]
    assert block_rates(tried)["verdict"].tolist() == ["lower", "higher"]
    tried.loc[8:20, "blocked"] = False  # 17 of 30: the interval lies above the cut
    assert block_rates(tried)["verdict"].tolist() == ["lower", "higher"]
    tried.loc[8:26, "blocked"] = False  # 11 of 30: the interval holds the cut
    assert block_rates(tried)["verdict"].tolist() == ["lower", "too_few"]


def test_rates_show_themselves_and_are_plain_frames_otherwise(tried):
    rates = block_rates(tried)
    assert "8 of 8 blocked (68-100 %)" in repr(rates) and "<svg" in rates._repr_html_()
    assert type(rates[["port", "rate"]]) is pd.DataFrame
    pd.testing.assert_frame_equal(rates, pd.DataFrame(rates))


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
