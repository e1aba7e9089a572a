"""Notebooks: executed pairs without logic, so that nbval has something to compare."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PAIRS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=PAIRS, ids=lambda p: p.stem)
def book(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert PAIRS and {p.stem for p in PAIRS} == {p.stem for p in FOLDER.glob("[0-9]*.py")}


def test_every_code_cell_was_executed_in_order_without_error(book: nbformat.NotebookNode) -> None:
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))
    assert not [o for cell in code(book) for o in cell.outputs if o.output_type == "error"]


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_the_pair_says_the_same(path: Path) -> None:
    made, source = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    assert [c.source for c in made.cells] == [c.source for c in source.cells]


def test_no_cell_defines_a_function_or_a_class_and_none_uses_output(book: nbformat.NotebookNode) -> None:
    for cell in code(book):
        plain = "\n".join("" if line.startswith("%") else line for line in cell.source.splitlines())
        nodes = list(ast.walk(ast.parse(plain)))
        assert not [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)], cell.source
        assert "Output(" not in cell.source and "import re" not in cell.source


def test_a_sentence_stands_before_every_code_cell(book: nbformat.NotebookNode) -> None:
    kinds = [cell.cell_type for cell in book.cells]
    assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")


def test_it_opens_with_a_question_and_ends_with_its_limits(book: nbformat.NotebookNode) -> None:
    assert book.cells[0].source.startswith("# ") and "?**" in book.cells[0].source
    assert "does not tell you" in book.cells[-1].source


def test_figures_are_svg(book: nbformat.NotebookNode) -> None:
    shown = [o.get("data", {}) for cell in code(book) for o in cell.outputs]
    assert not [data for data in shown if "image/png" in data]
    assert [data for data in shown if "image/svg+xml" in data or "<svg" in data.get("text/html", "")]


def test_the_gallery_shows_what_the_notebooks_show(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make", FOLDER.parent / "docs" / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    docs = FOLDER.parent / "docs"
    assert make.gallery(tmp_path) == (docs / "gallery.md").read_text(encoding="utf-8")
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in (docs / "gallery").glob("*.svg")}
    assert all(f"docs/gallery/{name}" in (docs.parent / "README.md").read_text(encoding="utf-8") for name in made)
