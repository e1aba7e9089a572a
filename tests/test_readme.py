"""The README says what is so: its Python runs, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_and_end_in_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 12
    mpl.use("agg")
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["ax"].get_ylabel()
    assert (tmp_path / "report.html").stat().st_size > 5_000


def test_every_command_it_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    from deliverkit.cli import main

    [line] = re.findall(r"`deliverkit (tour \| .*?)`", README)
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert [word for word in line.split(" | ") if word not in shown] == []


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
