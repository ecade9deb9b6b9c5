"""How a run looks: the page of a run or of a sweep, its tables and its times."""

import base64
import csv
import html
import io

from jinja2 import Environment, PackageLoader


def duration(seconds):
    """Return a time as people say it: 41.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def number(value):
    """Return a table's cell: floats with four digits, nothing and NaN as a dash."""
    if value is None or value == "" or value != value:
        return "–"
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


def write_page(folder, **content):
    """Write index.html: a run's record, or the `columns` and `rows` of a sweep."""
    from nbconvert.filters import markdown2html  # seconds, wanted by runs only

    # autoescape: captions, errors and parameters are anybody's text
    environment = Environment(loader=PackageLoader(__package__, ""), autoescape=True)
    environment.filters |= {"duration": duration, "number": number, "csv": csv.reader}
    environment.filters["base64"] = base64.b64encode
    environment.filters["markdown"] = lambda text: markdown2html(html.escape(text))
    page = environment.get_template("page.html").render(folder=folder, **content)
    (folder / "index.html").write_text(page, encoding="utf-8")
