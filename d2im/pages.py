"""How a run looks: index.html of a run or a sweep, tables, a notebook as HTML.

A page carries its pictures inside, so that the one file can be shown to others.
"""

import base64
import csv
import io
import json
from mimetypes import guess_type

import nbformat
from jinja2 import Environment, PackageLoader


def duration(seconds):
    """Return a time as people say it: 41.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def number(value):
    """Return a table's cell: floats with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def csv_table(columns, rows):
    """Return a table as CSV, numbers in full."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def markdown_table(columns, rows):
    """Return a table as Markdown, numbers with four digits."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[number(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def run_page(folder, record):
    """Return the page of one run, from its record and its files.

    Args:
        folder: the run's folder, a Path.
        record: what run.json holds.
    """
    parts = []
    for entry in record["notebooks"]:
        out = folder / entry["notebook"]
        executed = folder / f"{entry['notebook']}.ipynb"
        notebook = None
        if entry["status"] in ("ok", "failed") and executed.exists():
            notebook = nbformat.read(executed, as_version=4)
        figures = entry["outputs"].get("figures", [])
        drawn = [(out / f["file"], f["caption"]) for f in figures]
        pictures = [(_picture(path), text) for path, text in drawn if path.exists()]
        part = {
            "executed": bool(notebook),
            "tables": _metrics(out),
            "pictures": pictures or _drawn(notebook),
            "heading": _heading(notebook, entry["notebook"]),
        }
        parts.append(entry | part)
    settings = {k: v for k, v in record.items() if k not in ("name", "notebooks")}
    settings["seconds"] = duration(settings["seconds"])
    for key in ("versions", "seed"):
        pairs = settings[key].items()
        settings[key] = ", ".join(f"{name} {value}" for name, value in pairs)
    rows = [(key, value) for key, value in settings.items() if value]
    return _page(record, title=record["name"], parts=parts, settings=rows)


def sweep_page(title, columns, rows):
    """Return the page of a sweep; the first column names each row's run."""
    return _page(title=title, columns=columns, rows=rows)


def _page(*values, **more):
    # autoescape: captions, errors and parameters are anybody's text
    loader = PackageLoader(__package__, "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.filters |= {"duration": duration, "number": number}
    return environment.get_template("page.html").render(*values, **more)


def notebook_page(notebook):
    """Return an executed notebook as one HTML page."""
    from nbconvert import HTMLExporter  # 1.4 s, wanted by runs only

    return HTMLExporter(embed_images=True).from_notebook_node(notebook)[0]


def _heading(notebook, name):
    """Return a notebook's own title, its name without one."""
    sources = [cell.source for cell in notebook.cells] if notebook else []
    titles = (s.partition("\n")[0][2:] for s in sources if s.startswith("# "))
    return next(titles, name)


def _picture(path):
    kind = guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _drawn(notebook):
    """Return the PNGs among a notebook's outputs, for one that lists no figures."""
    pictures = []
    for cell in notebook.cells if notebook else []:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                source = f"data:image/png;base64,{''.join(png.split())}"
                pictures.append((source, f"cell In [{cell.execution_count}]"))
    return pictures


def _metrics(out):
    """Return metrics.csv and metrics.json of a notebook's folder as tables."""
    tables = []
    if (out / "metrics.csv").exists():
        with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
        tables.append((columns, [[_parsed(cell) for cell in row] for row in rows]))
    if (out / "metrics.json").exists():
        values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        tables.append(([], values.items()))
    return tables


def _parsed(text):
    """Return a CSV's cell as the number it is, for its four digits, or as text."""
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text
