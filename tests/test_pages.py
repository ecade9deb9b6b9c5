"""Names as text, Markdown without what runs, pages without what loads."""

import base64
import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from d2im import benchmark, pages

NAMES = [
    "<img src=x onerror=alert(1)>chair.off",
    "[x](javascript:alert(1))",
    "![x](data:text/html,y)",
    "[r]: javascript:alert(1)",
    "[r][r]",
    "<javascript:alert(1)>",
    "https://example.com/x",
    "javascript&#58;alert(1)",
    "a_b _c_ *d* `e` ~~f~~ $g$ a|b __h__",
    r"\begin{x}y\end{x} \(z\) \*",
    "\"'><svg onload=alert(1)>",
    "<!-- a",
    "me@example.com",
]
LINKS = [
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](javascript&#58;alert(1))",
    "[x](&#106;avascript&colon;alert(1))",
    "[x](vbscript:alert(1))",
    "[x](data:text/html;base64,AA)",
    "[x](file:///etc/passwd)",
    "[x](/etc/passwd)",
    "[x](//example.com)",
    "<javascript:alert(1)>",
    "[x]\n\n[x]: javascript:alert(1)",
    "<a href=' java\nscript:alert(1)'>x</a>",
    r"$\href{javascript:alert(1)}{x}$",
]
HTML = [
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)></svg>",
    "<script>alert(1)</script>",
    "<iframe src='https://example.com'></iframe>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
    "![x](https://example.com/x.png)",
    "<p style='background: url(https://example.com)'>x</p>",
    "<form action='https://example.com'><input name=a></form>",
    r"$\text{<script>alert(1)</script><img src=x onerror=alert(1)>}$",
    "<math><mtext><style><img src=x onerror=alert(1)></style></mtext></math>",
]


def soup(page):
    return BeautifulSoup(page, "html.parser")


@pytest.mark.parametrize("name", NAMES)
def test_an_escaped_name_is_text_and_nothing_else(name):
    cell = soup(pages.markdown_html(pages.markdown_table(["name"], [[name]]))).td
    assert cell.text == name and cell.find() is None


@pytest.mark.parametrize("name", ["chair-10102", "chamfer_l1", "0.02 [0.01, 0.03]"])
def test_ordinary_names_stay_as_they_are_when_escaped(name):
    assert pages.escape(name) == name


def test_an_escaped_name_is_one_line_without_signs_that_move_a_cursor():
    assert pages.escape("a\n\x1b[2J\u202eb\udcff") == "a [2J b&#92;udcff"


def test_families_and_methods_of_a_summary_are_escaped():
    line = dict.fromkeys(benchmark.COLUMNS, 0)
    line |= {"group": NAMES[0], "method": NAMES[1], "measure": "emd", "protocol": "p"}
    page = soup(pages.markdown_html(benchmark.markdown([line])))
    assert page.img is None and page.h3.text.startswith(NAMES[0])
    assert page.find_all("th")[1].text == NAMES[1]


@pytest.mark.parametrize("link", LINKS)
def test_a_link_elsewhere_than_to_http_leads_nowhere(link):
    page = soup(pages.markdown_html(link))
    assert [tag for tag in page.find_all() if {"href", "src"} & tag.attrs.keys()] == []


def test_links_to_http_and_to_files_beside_stay_and_the_first_opens_nothing():
    text = "[a](https://example.com) [b](../b.py#L1) [c](#d)"
    links = soup(pages.markdown_html(text)).find_all("a")
    wanted = ["https://example.com", "../b.py#L1", "#d"]
    assert [link["href"] for link in links] == wanted
    assert [link.get("rel") for link in links] == [["noopener"], None, None]


@pytest.mark.parametrize("text", HTML)
def test_html_in_markdown_neither_runs_nor_loads(text):
    page = soup(pages.markdown_html(text))
    assert page.find_all(["script", "svg", "iframe", "meta", "form", "style"]) == []
    said = [f"{k}={v}" for tag in page.find_all() for k, v in tag.attrs.items()]
    assert [a for a in said if re.match("on|.*example.com", a)] == []


def test_a_formula_is_mathml():
    math = soup(pages.markdown_html(r"$a < \frac{f}{z}$")).math
    assert [tag.text for tag in math.find_all(["mi", "mo"])] == ["a", "<", "f", "z"]


def test_a_formula_that_cannot_be_read_is_shown_as_it_was_written():
    assert soup(pages.markdown_html("$<b>_$")).code.text == "<b>_"


def executed(*data, source="x"):
    """The page of a notebook with a Markdown cell and outputs."""
    outputs = [nbformat.v4.new_output("display_data", kinds) for kinds in data]
    cells = [nbformat.v4.new_markdown_cell(source)]
    cells.append(nbformat.v4.new_code_cell("1 < 2", outputs=outputs))
    return pages.notebook_html(nbformat.v4.new_notebook(cells=cells))


def test_an_executed_page_has_no_script_and_may_load_nothing():
    script = {"application/javascript": "alert(1)"}
    mermaid = {"text/vnd.mermaid": "graph TD"}
    page = soup(executed(script, mermaid, {"text/html": HTML[2]}))
    assert page.find_all(["script", "link", "iframe"]) == []
    assert page.find("meta", {"http-equiv": True})["content"].split()[:2] == [
        "default-src",
        "'none';",
    ]


@pytest.mark.parametrize("kind", ["text/html", "text/markdown"])
def test_an_outputs_html_neither_runs_nor_leads_elsewhere(kind):
    text = '<b>x</b> <img src=x onerror="a()"> <a href="javascript:a()">y</a>'
    page = soup(executed({kind: text}))
    shown = page.find_all(attrs={"data-mime-type": kind})[-1]
    assert shown.b.text == "x" and shown.img.attrs.keys() == {"src", "alt"}
    assert "href" not in shown.a.attrs


def test_an_executed_page_keeps_tables_pictures_and_formulas():
    png = base64.b64encode(b"a picture").decode()
    table = "<table class='dataframe'><tr><th>a</th></tr></table>"
    latex = {"text/latex": r"$\displaystyle x^2$"}
    page = soup(executed({"image/png": png}, {"text/html": table}, latex))
    assert page.img["src"] == f"data:image/png;base64,{png}"
    assert page.find("table", "dataframe").th.text == "a" and page.math.msup


def test_each_picture_has_its_caption_as_alt_text_on_an_executed_page():
    new, png = nbformat.v4, base64.b64encode(b"png").decode()
    picture = {"image/png": png, "text/plain": "<Figure size 100x100 with 1 Axes>"}

    def cell(source, count=1, **metadata):
        outputs = [new.new_output("display_data", picture) for _ in range(count)]
        outputs.append(new.new_output("stream", text="said"))
        return new.new_code_cell(source, outputs=outputs, metadata=metadata)

    cells = [
        new.new_markdown_cell("# A title\n\nText.\n\n## The maps\n\n## Their sum"),
        cell('figure.savefig(out / "b.png"); figure.savefig(out / "a.png")', 3),
        cell("plt.plot(x)", alt="A line, by hand"),
        new.new_markdown_cell("Seen: they fall."),
        cell("plt.plot(x)"),
    ]
    notebook = new.new_notebook(cells=cells)
    captions = {"a.png": 'Of "a" <b>', "b.png": "Of b", "c.png": "Elsewhere"}
    pages.describe_pictures(notebook, captions)
    nbformat.validate(notebook)
    shown = soup(pages.notebook_html(notebook)).select("img")
    texts = ["Of b", 'Of "a" <b>', 'Of "a" <b>', "A line, by hand", "Their sum"]
    assert [image["alt"] for image in shown] == texts
    assert all(image["src"].startswith("data:image/png;base64,") for image in shown)


def test_a_picture_attached_to_a_cell_is_shown():
    cell = nbformat.v4.new_markdown_cell("![x](attachment:x.png)")
    cell["attachments"] = {"x.png": {"image/png": "AAAA"}}
    page = soup(pages.notebook_html(nbformat.v4.new_notebook(cells=[cell])))
    assert page.img["src"] == "data:image/png;base64,AAAA"


def test_text_is_written_whole_or_not_at_all(tmp_path):
    pages.write_text(tmp_path / "a", "first")
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="b was not written"):
        pages.write_text(tmp_path / "b", "second")
    pages.write_text(tmp_path / "a", "name \udcff")
    assert (tmp_path / "a").read_text() == r"name \udcff"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_cell_names_its_column_for_rows_that_stack():
    table = pages.markdown_table(["id", NAMES[0]], [["a", 1.0], [NAMES[1], 2.0]])
    page = soup(pages.labelled(pages.markdown_html(table)))
    assert [cell["data-label"] for cell in page.find_all("td")] == ["id", NAMES[0]] * 2
    assert page.find(["img", "a"]) is None


def test_a_table_without_names_stays_as_it_is():
    page = "<table><tr><td>date</td><td>today</td></tr></table><p><td></p>"
    assert pages.labelled(page) == page


def test_a_runs_page_names_columns_and_enlarges_its_figures(tmp_path):
    (tmp_path / "03_a").mkdir()
    (tmp_path / "03_a/x.png").write_bytes(b"a picture")
    (tmp_path / "03_a/metrics.csv").write_text("id,iou\na,0.5\n", encoding="utf-8")
    entry = {"notebook": "03_a", "title": "A", "seconds": 1.0, "error": ""}
    entry |= {"parameters": {"rate": 2}, "defaults": {"rate": 1}}
    entry["outputs"] = {"figures": [{"file": "x.png", "caption": "A figure"}]}
    about = {"date": "", "device": "", "python": "", "versions": {}, "commit": ""}
    pages.write_page(tmp_path, notebooks=[entry], **about)
    page = soup((tmp_path / "index.html").read_text(encoding="utf-8"))
    tables = [table for table in page.find_all("table") if table.th]
    assert len(tables) == 3  # times, metrics.csv, settings
    for table in tables:
        names = [name.text for name in table.find_all("th")]
        assert [cell["data-label"] for cell in table.find_all("td")] == names
    assert page.select_one("label.zoom > input + img")["alt"] == "A figure"
