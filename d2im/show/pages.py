"""How a run looks: the page of a run or of a sweep, its tables and its times.

Names, reasons and captions are anybody's text: `escape` makes them text in Markdown and
HTML. A page loads nothing, holds no script but a scene's, and links http(s) or what is
beside it.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, pass_context

from ..data.files import one_line, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbformat import NotebookNode

# What Markdown or HTML would act on: brackets where a link's target follows, "_" at
# the ends of words, ":" of a bare address. Ordinary names and numbers have none of it.
ACTIVE = re.compile(r"[\\`*<>&|~$@]|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(:])|:(?=//)")
# What is left of HTML that a notebook holds; a formula's tags are MathML's.
TAGS = """a abbr b blockquote br caption code dd del details div dl dt em figcaption
figure h1 h2 h3 h4 h5 h6 hr i img input kbd li mark ol p pre s small span strong sub
summary sup table tbody td tfoot th thead tr u ul math menclose mfrac mi mmultiscripts
mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle msub msubsup
msup mtable mtd mtext mtr munder munderover semantics""".split()
ATTRIBUTES = """alt align checked class colspan disabled display displaystyle fence
height id linethickness mathvariant maxsize minsize open rowspan separator stretchy
style title type width""".split()
# nbconvert's page without its scripts, which come from elsewhere; none may run or load.
NOTEBOOK = """{% extends "lab/index.html.j2" %}
{% block html_head_js %}<meta http-equiv="Content-Security-Policy" content="
default-src 'none'; img-src data:; style-src 'unsafe-inline'">{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block data_latex %}
{{ output.data["text/latex"] | markdown2html | clean_html }}
{% endblock %}
{% block data_png scoped %}
{%- set said = (output | get_metadata("alt", "image/png") or "") | escape_html -%}
{{ super() | replace("<img ", '<img alt="' ~ said ~ '" ', 1) }}
{% endblock %}"""


def duration(seconds: float) -> str:
    """Return a time as people say it: 41.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def number(value: object) -> str:
    """Return a table's cell: floats with four digits, nothing and NaN as a dash."""
    if value is None or value == "" or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def escape(text: object) -> str:
    """Return anybody's text so that Markdown and HTML show it, and do nothing else.

    Args: text: a name, reason or caption; it ends up on one line. Not for HTML's
        attributes: quotes stay.
    """
    return ACTIVE.sub(lambda match: f"&#{ord(match[0])};", one_line(text))


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all; make its folder.

    Raises: OSError: it could not be written; the message names it.
    """
    data = text.encode("utf-8", "backslashreplace")  # of names that are no UTF-8
    write_whole(Path(path), lambda file: file.write(data))


def csv_table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a table as CSV, numbers in full."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a table as Markdown, texts escaped, numbers with four digits."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[escape(number(cell)) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def markdown_html(text: str, attachments: dict | None = None) -> str:
    """Return Markdown as HTML that runs nothing, its formulas as MathML.

    Args: attachments: a notebook cell's pictures, {name: {type: base64}}.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return _formula(body, "inline")

        def block_math(self, body):
            return _formula(body, "block")

        def latex_environment(self, name, body):
            return _formula(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    renderer = Renderer(escape=False, attachments=attachments or {})
    return harmless(MarkdownWithMath(renderer).render(text))


def _formula(tex, display):
    """A formula as MathML, which browsers draw themselves, or as it was written."""
    from latex2mathml.converter import convert_to_element

    try:
        element = convert_to_element(tex, display=display)
    except Exception:  # of a formula that it cannot read it raises anything
        return f"<code>{html.escape(tex)}</code>"
    for part in element.iter():  # it writes signs as entities
        part.text = part.text and html.unescape(part.text)
    return ElementTree.tostring(element, "unicode")


def harmless(page: str) -> str:
    """Return HTML without what runs, loads or leads elsewhere than to http(s)."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    page = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", "", page)  # nor their text
    page = bleach.clean(
        page,
        tags=TAGS,
        attributes=_is_kept,
        protocols=["http", "https", "data"],
        css_sanitizer=CSSSanitizer(),
    )
    return re.sub(r'<a (?=[^>]*href="https?:)', '<a rel="noopener" ', page)


def _is_kept(tag, name, value):
    """Whether an attribute may stay: an address if it is relative, http(s), a picture's
    own data."""
    address = re.sub(r"[\x00-\x20]", "", html.unescape(value)).lower()  # as browsers do
    scheme = re.match(r"[/\\]|[^/?#]*:", address)
    if name == "href":
        return tag == "a" and (not scheme or scheme[0] in ("http:", "https:"))
    if name == "src":
        data = re.match(r"data:image/(png|jpeg|gif|webp);base64,", address)
        return tag == "img" and bool(data or not scheme)
    return name in ATTRIBUTES


def notebook_html(notebook: NotebookNode) -> str:
    """Return an executed notebook as one page that loads and runs nothing."""
    from nbconvert import HTMLExporter  # seconds, wanted by runs only

    @pass_context
    def markdown2html(context, source):
        return markdown_html(source, context.get("cell", {}).get("attachments"))

    filters = {"markdown2html": markdown2html, "clean_html": harmless}
    exporter = HTMLExporter(raw_template=NOTEBOOK, filters=filters, sanitize_html=True)
    return exporter.from_notebook_node(notebook)[0]


def describe_pictures(notebook: NotebookNode, captions: dict[str, str]) -> None:
    """Give the pictures of an executed notebook their captions as alt text.

    A picture's is that of the file that its cell names, else the cell's own metadata
    "alt", else the heading that it stands under. Our pages show it, as nbconvert and
    nbviewer do; JupyterLab 4 reads none.

    Args: notebook: changed in place. captions: {file: caption}, see `write_outputs`.
    """
    heading = "A picture"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = re.findall(r"^#+ +(.+)$", cell.source, re.M)[-1:] or [heading]
            heading = heading[0]
            continue
        strings = re.findall(r"""["']([^"'\n]+)["']""", cell.source)
        named = [file for file in captions if file in strings]
        texts = [captions[k] for k in sorted(named, key=cell.source.find)]
        texts = texts or [str(cell.metadata.get("alt") or heading)]
        shown = [o for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
        for k, output in enumerate(shown):
            about = output.metadata.setdefault("image/png", {})
            about["alt"] = texts[min(k, len(texts) - 1)]


def labelled(page: str) -> str:
    """Return HTML whose tables' cells name their column, for rows that stack.

    Args: page: HTML; a table's names are its `th`. Returns: `td` with `data-label`.
    """

    def table(match):
        names = re.findall(r"<th\b[^>]*>(.*?)</th>", match[0], flags=re.S)
        names = [re.sub(r"<[^>]*>", "", name) for name in names]
        names = [html.escape(html.unescape(name)) for name in names]

        def row(match):
            left = iter(names)
            return re.sub(r"<td\b", lambda _: _cell(next(left, "")), match[0])

        return re.sub(r"<tr\b.*?</tr>", row, match[0], flags=re.S)

    return re.sub(r"<table\b.*?</table>", table, page, flags=re.S)


def _cell(name):
    return f'<td data-label="{name}"' if name else "<td"


def _text(path):
    """What a notebook wrote, which may be no UTF-8."""
    return path.read_text("utf-8-sig", "replace")


def _table(path):
    """The rows of a CSV file, or a line that says what is wrong with it."""
    try:
        return list(csv.reader(io.StringIO(_text(path))))
    except csv.Error as error:
        return [[f"{path.name} is no table: {error}"]]


def write_page(folder: Path, **content) -> None:
    """Write index.html: a run's record, or the `columns` and `rows` of a sweep."""
    # autoescape: captions, errors and parameters are anybody's text
    environment = Environment(loader=PackageLoader(__package__, ""), autoescape=True)
    environment.filters |= {"duration": duration, "number": number}
    environment.filters |= {"text": _text, "table": _table}
    environment.filters["base64"] = base64.b64encode
    environment.filters["markdown"] = markdown_html
    outputs = [entry["outputs"] for entry in content.get("notebooks", ())]
    figures = [figure for made in outputs for figure in made.get("figures", ())]
    content["scenes"] = any(figure["file"].endswith(".html") for figure in figures)
    page = environment.get_template("page.html").render(folder=folder, **content)
    write_text(folder / "index.html", labelled(page))
