"""The house stands: layers, lint, types, dependencies, light imports."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deliverkit"
LAYERS = [
    {"errors", "schema", "svg", "patterns"},  # svg and patterns know no other module
    {"facts"},
    {"classify"},
    {"policies", "resolve", "targets", "probe", "loop", "path", "sweep", "rehearse", "lab"}  # by asking
    | {"files", "records", "logs", "bounces", "exports", "verifications", "read"},  # by reading
    {"history", "scale"},  # keep
    {"outcomes", "sends", "samples", "rates", "egress", "forecast", "advice", "rules", "settings"},
    {"plots", "widgets", "report"},
    {"tour", "serve", "cli", "__main__"},
]
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """Top-level modules of deliverkit that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {n.split(".")[1] for n in names if n.startswith("deliverkit.") and n.split(".")[1] in LAYER}
    return found


def modules() -> list[tuple[str, Path]]:
    paths = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]
    return [(p.relative_to(PACKAGE).parts[0].removesuffix(".py"), p) for p in paths]


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} <= set(LAYER)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_imports_point_one_way(name: str, path: Path) -> None:
    later = {other for other in imports_of(path) if LAYER[other] > LAYER[name]}
    assert not later, f"{path.name} imports from a later layer: {later}"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tool", ["ruff check .", "ruff format --check .", "mypy"])
def test_lint_and_types_are_clean(tool: str) -> None:
    done = run(sys.executable, "-m", *tool.split())
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_import_is_light() -> None:
    heavy = "{'pandas','numpy','matplotlib','ipywidgets','dns','jinja2','nbformat','cryptography'}"
    done = run(sys.executable, "-c", f"import deliverkit, sys; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_every_public_name_is_there() -> None:
    import deliverkit as dk

    assert [name for name in dk.__all__ if getattr(dk, name, None) is None] == []


def test_public_functions_stay_functions_when_their_modules_are_imported() -> None:
    code = """if True:
        import deliverkit as dk, deliverkit.cli, deliverkit.tour
        names = [n for n in dk.__all__ if n not in ("PORTS", "__version__") and not callable(getattr(dk, n))]
        print(names)"""
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def bounds(lines: list[str]) -> dict[str, str]:
    made = {}
    for line in lines:
        name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line).groups()
        made[name.removesuffix("-base")] = bound
    return made


def test_environment_and_pyproject_agree() -> None:
    yaml = pytest.importorskip("yaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = bounds([d for d in environment["dependencies"] if isinstance(d, str) and d != "pip"])
    [pip] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]  # what conda-forge does not have
    conda |= bounds([line for line in pip if not line.startswith("-")])
    extras = [name for extra in ("notebooks", "report") for name in project["optional-dependencies"][extra]]
    assert conda.pop("python") == project["requires-python"]
    assert conda == bounds([*project["dependencies"], *extras])


def test_the_library_stays_small() -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for _, path in modules())
    assert lines < 13_050  # meant are about 5,000: what comes next has to find its place among these


def test_the_ci_runs_the_line_of_the_readme() -> None:
    line = 'python -m pip install -e ".[test]" && python -m pytest'
    assert f"\n{line}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert line in (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci/run", os.X_OK) or sys.platform == "win32"


def test_documented_columns_are_those_of_the_schema() -> None:
    from deliverkit.schema import FRAMES

    page = (ROOT / "docs/frames.md").read_text(encoding="utf-8")
    for frame in FRAMES.values():
        assert frame.markdown() in page, f"docs/frames.md: {frame.name} is not what schema.py says"
