"""Writes docs/frames.md from the schema, docs/block_rates.svg from the samples, and runs the notebooks.

    python docs/make.py

Each notebook is a pair: the .py is what people edit and review, the .ipynb is made from it and executed here.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

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
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    book.metadata.pop("widgets", None)
    jupytext.write(book, path.with_suffix(".ipynb"), fmt="ipynb")


if __name__ == "__main__":
    (HERE / "frames.md").write_text(frames(), encoding="utf-8")
    picture(HERE / "block_rates.svg")
    for source in sorted((HERE.parent / "notebooks").glob("[0-9]*.py")):
        notebook(source)
