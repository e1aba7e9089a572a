"""Writes docs/frames.md from the schema, docs/block_rates.svg from the samples, runs the notebooks, makes the gallery.

    python docs/make.py

Each notebook is a pair: the .py is what people edit and review, the .ipynb is made from it and executed here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat

import deliverkit as dk
from deliverkit.schema import FRAMES

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 120
INTRO = """# Frames

Every frame of deliverkit, column by column. Shares run from 0 to 1, durations are seconds, times are UTC,
dtypes are pandas' nullable ones; what is not known is missing. Printed from `deliverkit/schema.py` by
`python docs/make.py`.
"""


def frames() -> str:
    """All column tables; grouped frames say that their group keys come first."""
    parts = [INTRO]
    for name, frame in FRAMES.items():
        keys = "\nThe group keys come first, under the names they were grouped by.\n" if frame.grouped else ""
        parts.append(f"## {name.upper()}\n{keys}\n{frame.markdown()}\n")
    return "\n".join(parts)


def picture(path: Path) -> None:
    """Block rates per port of the sample sweep, one panel a network."""
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "deliverkit"
    mpl.rcParams["svg.fonttype"] = "none"
    probes = dk.read(HERE.parent / "data" / "probes.csv")
    networks = list(dict.fromkeys(probes["vantage"]))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    figure.set_facecolor("white")
    for ax, network in zip(figure.subplots(1, len(networks), sharey=True), networks, strict=True):
        dk.plot_block_rates(dk.block_rates(probes[probes["vantage"] == network]), ax=ax)
        ax.set_title(f"from the {network} network")
        ax.label_outer()
    figure.savefig(path, metadata={"Date": None})


def notebook(path: Path) -> None:
    """Execute one .py notebook and write its .ipynb beside it, without what changes from run to run."""
    import jupytext
    from nbclient import NotebookClient

    book = jupytext.read(path)
    NotebookClient(book, timeout=TIMEOUT_S, resources={"metadata": {"path": str(path.parent)}}).execute()
    for number, cell in enumerate(book.cells):
        cell.metadata.pop("execution", None)
        cell["id"] = f"cell-{number}"
        for data in (output["data"] for output in cell.get("outputs", ()) if "image/svg+xml" in output.get("data", {})):
            data["image/svg+xml"] = re.sub(r"<dc:date>.*?</dc:date>", "<dc:date></dc:date>", data["image/svg+xml"])
    book.metadata.pop("widgets", None)
    jupytext.write(book, path.with_suffix(".ipynb"), fmt="ipynb")


def question(book: Any) -> tuple[str, str]:
    """Title and question of a notebook, from its first cell."""
    first = book.cells[0].source
    return first.splitlines()[0].removeprefix("# "), first.split("**")[1]


def figure(book: Any) -> str:
    """The first figure among the outputs of a notebook, as an SVG that can be seen on any background."""
    for output in (output for cell in book.cells for output in cell.get("outputs", ())):
        data = output.get("data", {})
        if drawn := re.search(r"<svg.*?</svg>", data.get("image/svg+xml") or data.get("text/html", ""), re.DOTALL):
            lit = 'style="background:#ffffff;color:#1c2430;'
            text = drawn[0] if "matplotlib" in drawn[0] else drawn[0].replace('style="', lit, 1)
            return text.replace("currentColor", "#1c2430").rstrip() + "\n"
    raise ValueError("no figure")


def gallery(folder: Path) -> str:
    """docs/gallery.md: every notebook with its question and its first figure, which is written beside it."""
    folder.mkdir(exist_ok=True)
    parts = [
        "# Gallery\n\nEvery picture is the first figure of an executed notebook, taken out by `python docs/make.py`.\n"
    ]
    for path in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        title, asked = question(book)
        (folder / f"{path.stem}.svg").write_text(figure(book), encoding="utf-8")
        link = f"../notebooks/{path.name}"
        parts.append(f"## [{title}]({link})\n\n{asked}\n\n[![{title}](gallery/{path.stem}.svg)]({link})\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "frames.md").write_text(frames(), encoding="utf-8")
    picture(HERE / "block_rates.svg")
    for source in sorted((HERE.parent / "notebooks").glob("[0-9]*.py")):
        notebook(source)
    (HERE / "gallery.md").write_text(gallery(HERE / "gallery"), encoding="utf-8")
