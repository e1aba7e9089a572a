"""The report as a workbook: whole frames, shares as percent, times as dates, and no text that can become a formula."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pandas as pd

from deliverkit import svg
from deliverkit.report.content import Content, words
from deliverkit.report.masking import clean_frame
from deliverkit.report.pages import needed

_ROWS = 1_048_575  # what a sheet holds below its heading
_FORMULA = tuple("=+-@＝＋－＠")
_SHARE, _TIME = "0.0%", "yyyy-mm-dd hh:mm:ss"


def xlsx(content: Content) -> bytes:
    """A sheet per frame and one for method and words; says which rows and texts a sheet could not hold."""
    made = BytesIO()
    book = needed("xlsxwriter").Workbook(made, {"constant_memory": True, "strings_to_formulas": False,
                                                "strings_to_urls": False, "strings_to_numbers": False})  # fmt: skip
    book.set_properties({"title": content.document["title"], "created": content.made.tz_localize(None).to_pydatetime()})
    styles = {name: book.add_format(look) for name, look in (("head", {"bold": True, "bottom": 1, "text_wrap": True}),
              ("share", {"num_format": _SHARE}), ("time", {"num_format": _TIME}), ("text", {}))}  # fmt: skip
    notes = [(name, content.document[name]) for name in ("title", "client", "period", "made")]
    todo = [{n: item[n] for n in ("who", "do", "why", "where")} for item in content.document["todo"]]
    for name, frame in {"what to do": pd.DataFrame(todo, dtype="string"), **content.sheets}.items():
        if len(frame) > _ROWS:
            notes.append((name, f"{len(frame) - _ROWS} of {len(frame)} rows did not fit into the sheet"))
        shown = clean_frame(frame.head(_ROWS), content.masked)
        sheet = _sheet(book, name, shown, styles)
        if name == "block rates" and len(frame):
            _chart(book, sheet, shown, content.document["chart"])
    cut = "texts longer than 32,767 characters are cut; an apostrophe stands before what could be a formula"
    notes.append(("cells", cut))
    for section in content.document["sections"]:
        for block in section["blocks"]:
            notes += [(section["heading"], line) for line in [block.get("text"), *block.get("list", [])] if line]
            notes += [*block.get("terms", {}).items(), *((at["name"], at["text"]) for at in block.get("links", []))]
    _sheet(book, "method", pd.DataFrame(notes, columns=["what", "text"], dtype="string"), styles)
    book.close()
    return made.getvalue()


def _sheet(book: Any, name: str, frame: pd.DataFrame, styles: dict[str, Any]) -> Any:
    sheet = book.add_worksheet(name)
    sheet.freeze_panes(1, 0)
    sheet.set_landscape()
    sheet.fit_to_pages(1, 0)
    sheet.repeat_rows(0)
    columns = []
    for i, column in enumerate(frame.columns):
        values, kind = frame[column], "text"
        if isinstance(values.dtype, pd.DatetimeTZDtype):
            values, kind = values.dt.tz_localize(None), "time"
        elif column.endswith(("rate", "low", "high", "confidence")):
            kind = "share"
        cells = values.astype(object).where(values.notna(), None).tolist()
        widest = max((len(str(cell)) for cell in cells[:200]), default=0)
        sheet.set_column(i, i, {"share": 9, "time": 19}.get(kind, min(max(widest, len(column), 8) + 2, 60)))
        columns.append((cells, styles[kind], kind))
    for i, column in enumerate(frame.columns):
        sheet.write_string(0, i, words()["column"].get(column, column.replace("_", " ")), styles["head"])
    for row in range(len(frame)):  # row by row: memory stays small
        for i, (cells, style, kind) in enumerate(columns):
            cell = cells[row]
            if isinstance(cell, str):
                sheet.write_string(row + 1, i, f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell, style)
            elif cell is not None:
                (sheet.write_datetime if kind == "time" else sheet.write_number)(row + 1, i, cell, style)
    return sheet


def _chart(book: Any, sheet: Any, rates: pd.DataFrame, drawn: dict[str, Any]) -> None:
    """A native chart of all groups with their intervals as error bars, and its words for those who cannot see it."""
    at = {name: i for i, name in enumerate(rates.columns)}
    chart, last, name = book.add_chart({"type": "bar"}), len(rates), sheet.get_name()
    below, above = (abs(rates["rate"] - rates[end]).astype(float).tolist() for end in ("low", "high"))
    chart.add_series({
        "name": "share of attempts blocked", "categories": [name, 1, 0, last, at["port"]],
        "values": [name, 1, at["rate"], last, at["rate"]],
        "points": [{"fill": {"color": svg.colour(port)}} for port in rates["port"]],
        "y_error_bars": {"type": "custom", "plus_values": above, "minus_values": below},
    })  # fmt: skip
    chart.set_title({"name": drawn["title"]})
    chart.set_legend({"none": True})
    chart.set_x_axis({"min": 0, "max": 1, "num_format": "0%"})
    chart.set_y_axis({"reverse": True})
    chart.set_size({"width": 640, "height": 120 + 28 * last})
    sheet.insert_chart(1, len(at) + 1, chart, {"description": drawn["said"][:2000]})
