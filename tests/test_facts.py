"""Facts: nothing without a source, the guide is complete, names lead somewhere."""

from __future__ import annotations

from importlib.resources import files

import pytest

from deliverkit import facts
from deliverkit.errors import FactsError

FOLDER = files("deliverkit.facts")
CSV = sorted(p.name.removesuffix(".csv") for p in FOLDER.iterdir() if p.name.endswith(".csv"))
GRADES = {"read", "secondary", "not_reread"}
GUIDE = facts.tables("guide")
RULES = facts.tables("port_rules")["rule"]


@pytest.mark.parametrize("name", CSV)
def test_no_row_of_a_table_is_without_source_date_and_grade(name: str) -> None:
    table = facts.table(name)
    assert len(table)
    sources = [column for column in ("source", "source_url") if column in table]
    assert sources and table[sources].notna().any(axis="columns").all()
    assert table["noted"].notna().all() and set(table["evidence"]) <= GRADES


@pytest.mark.parametrize("row", [*RULES, *GUIDE["differs"]], ids=lambda r: r.get("id") or r["guide"])
def test_no_rule_and_no_contradiction_is_without_source(row: dict[str, object]) -> None:
    assert row["source"] and row["noted"] and row["evidence"] in GRADES


def test_every_other_table_says_where_it_comes_from() -> None:
    lab = facts.tables("lab")
    listed = [table for value in lab.values() if isinstance(value, list) for table in value if isinstance(table, dict)]
    for table in [GUIDE, lab, *listed, *facts.tables("esp_exports")["provider"]]:
        assert table["source"] and table["noted"] and table["evidence"] in GRADES


@pytest.mark.parametrize(
    ("kind", "count"), [("step", 5), ("port", 4), ("consequence", 7), ("choose", 6), ("influence", 6), ("action", 9)]
)
def test_the_guide_is_complete(kind: str, count: int) -> None:
    items = [item for item in GUIDE["item"] if item["kind"] == kind]
    assert len(items) == count
    assert all(item["id"].startswith(f"guide:{kind}-") and item["title"] and item["text"] for item in items)


def test_each_port_of_the_guide_has_all_its_sides() -> None:
    wanted = ["role", "background", "encryption", "pros", "cons", "compatibility", "best_uses", "recommendation"]
    for item in (item for item in GUIDE["item"] if item["kind"] == "port"):
        assert all(item[name] for name in wanted), item["id"]
        assert item["expected_block_rate"] == ("high" if item["port"] == 25 else "low")


def test_ids_are_unique_and_what_rules_name_exists() -> None:
    items = [item["id"] for item in GUIDE["item"]]
    rules = [rule["id"] for rule in RULES]
    assert len(set(items)) == len(items) and len(set(rules)) == len(rules)
    assert {rule["item"] for rule in RULES} <= set(items)
    assert {row["guide"] for row in GUIDE["differs"]} <= set(items)


def test_each_policy_has_rules() -> None:
    assert {rule["policy"] for rule in RULES} == {"guide", "standards", "provider", "any"}


def test_ports_are_ports() -> None:
    for name in CSV:
        table = facts.table(name)
        if "port" in table:
            assert table["port"].dropna().between(1, 65535).all()


def test_every_provider_of_mail_apis_publishes_ports_too() -> None:
    assert set(facts.table("provider_apis")["provider"]) <= set(facts.table("esp_ports")["provider"])


def test_a_table_can_be_changed_without_harm() -> None:
    mine = facts.table("esp_ports")
    mine["port"] = 1
    assert facts.table("esp_ports")["port"].nunique() > 5


def test_a_table_that_is_not_there_is_named() -> None:
    with pytest.raises(FactsError, match=r"'nothing\.csv'"):
        facts.table("nothing")
