"""Rates, figures and controls: what they count and what they show."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from deliverkit import plots, svg
from deliverkit.errors import SchemaError
from deliverkit.rates import block_rates, bounce_rates, funnel
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


def test_a_bounce_message_counts_only_where_nothing_else_tells_of_the_attempt():
    told = {"message_id": "<1@x.example>", "recipient": "a@y.example", "blocked": True}
    rows = [{**told, "origin": "log"}, {**told, "origin": "dsn"}, {**told, "origin": "dsn", "recipient": "b@y.example"}]
    assert block_rates(pd.DataFrame(rows), [])["attempts"].tolist() == [2]
    unknown = pd.DataFrame(rows).assign(message_id=pd.array([pd.NA] * 3, dtype="string"))
    assert block_rates(unknown, [])["attempts"].tolist() == [3]


@pytest.mark.parametrize("by", [["port", "port"], 5, [5]])
def test_a_key_that_cannot_be_one_is_named(tried, by):
    for rates in (block_rates, funnel):
        with pytest.raises(SchemaError, match="group by names of columns"):
            rates(tried, by)


def test_a_column_that_is_there_twice_is_named(tried):
    with pytest.raises(SchemaError, match="'port' is there twice"):
        block_rates(pd.concat([tried, tried], axis=1))


def test_rows_without_a_port_are_spoken_of(tried):
    assert "38 rows without one" in repr(block_rates(tried.assign(port=pd.array([pd.NA] * 38, dtype="Int64"))))


def test_bounces_are_grouped_by_network_and_day_too():
    rows = [
        {"message_id": f"<{i}@x>", "recipient": "a@y.example", "origin": "log", "vantage": place, "outcome": outcome,
         "time": f"2026-03-0{i}T10:00Z"}
        for i, (place, outcome) in enumerate([("home", "passed"), ("home", "failed"), ("office", "failed")], 1)
    ]  # fmt: skip
    mail = plots.ATTEMPTS.build(rows)
    assert bounce_rates(mail, "vantage")[["sent", "bounced"]].values.tolist() == [[1, 1], [0, 1]]
    assert bounce_rates(mail, ["day"])["rate"].tolist() == [0, 1, 1]
    assert bounce_rates(mail.assign(origin="dsn"))["rate"].isna().all()


def test_what_is_no_frame_is_refused_by_every_rate():
    for rates in (block_rates, funnel, bounce_rates):
        with pytest.raises(SchemaError, match="pandas frame"):
            rates(None)
