"""The code is as docs/architecture.md draws it."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

import d2im

ROOT = Path(__file__).parents[1]
METHOD = "networks fields laplacian losses sampling camera".split()
DRAWING = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FACES = ("__init__", "__main__")  # of the package: they bring in anything, late


def modules():
    """(wing, or "method", name, path) of every module."""
    for path in sorted((ROOT / "d2im").rglob("*.py")):
        inner = path.relative_to(ROOT / "d2im")
        wing = inner.parts[0] if len(inner.parts) > 1 else "method"
        yield wing, path.stem, path


def imports(path):
    """The wings that a module imports from, wherever it does."""
    depth = len(path.relative_to(ROOT / "d2im").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.split(".")[0] == "d2im"]
        if not isinstance(node, ast.ImportFrom) or node.level < depth:
            continue
        names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            first = name.split(".")[0]
            yield "method" if first in METHOD else first


def arrows():
    found = set()
    for wing, name, path in modules():
        if wing == "method" and name in FACES:
            continue
        found |= {(wing, other) for other in imports(path)}
    return found


def drawn():
    return set(re.findall(r"^ +(\w+) --> (\w+)", DRAWING, flags=re.M))


def says_no_encoding(call):
    """Whether a call reads or writes text in whatever the system's encoding is."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if "encoding" in given or None in given:  # **options may hold it
        return False
    if name == "open":
        place = isinstance(call.func, ast.Name)  # of the mode; a method knows its file
        others = given.keys() - {"mode", "newline", "errors", "buffering"}
        if others or len(call.args) > place + 1:  # another library's, as Image.open
            return False
        mode = given.get("mode", call.args[place] if len(call.args) > place else None)
        mode = "r" if mode is None else getattr(mode, "value", None)
        return isinstance(mode, str) and "b" not in mode
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    text = given.get("text")
    return isinstance(text, ast.Constant) and text.value is True


def python(path):
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    return "\n".join(
        TransformerManager().transform_cell("".join(cell["source"]))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    )


@pytest.mark.parametrize("folder", "d2im notebooks benchmarks examples docs".split())
def test_texts_are_read_and_written_as_utf_8(folder):
    paths = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.ipynb")]
    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)[:80]}"
        for path in paths
        for node in ast.walk(ast.parse(python(path)))
        if isinstance(node, ast.Call) and says_no_encoding(node)
    ]
    assert paths and found == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("open(path)", True),
        ("open(path, 'w', newline='')", True),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("run(command, text=True)", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open('wb')", False),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("write_text(path, text)", False),
        ("Image.open(file, formats=['PNG'])", False),
    ],
)
def test_a_text_without_its_encoding_is_found(code, wrong):
    assert says_no_encoding(ast.parse(code, mode="eval").body) == wrong


def test_the_package_holds_the_six_files_of_the_method():
    files = {name for wing, name, _ in modules() if wing == "method"}
    assert files == {*METHOD, *FACES}


def test_the_method_imports_nothing_of_a_wing():
    assert {other for wing, other in arrows() if wing == "method"} <= {"method"}


def test_the_arrows_between_wings_are_those_of_the_drawing():
    wings = {(one, other) for one, other in drawn() if other != "method"}
    assert {(one, other) for one, other in arrows() if other != "method"} == wings


def test_no_arrow_between_wings_goes_in_a_circle():
    left = drawn()
    while leaves := {b for _, b in left} - {a for a, _ in left}:
        left = {(a, b) for a, b in left if b not in leaves}
    assert not left


@pytest.mark.parametrize("wing", sorted({wing for wing, *_ in modules()} - {"method"}))
def test_every_module_has_its_sentence_in_the_drawing(wing):
    names = {name for w, name, _ in modules() if w == wing and name != "__init__"}
    assert {n for n in names if f"`{n}`" not in DRAWING} == set()


def test_the_six_files_stay_within_1020_lines_of_code():
    count = 0
    for name in METHOD:
        source = (ROOT / f"d2im/{name}.py").read_text(encoding="utf-8")
        docs = set()
        for node in ast.walk(ast.parse(source)):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(getattr(body[0].value, "value", None), str):
                    docs |= {*range(body[0].lineno, body[0].end_lineno + 1)}
        skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT)
        skip += (tokenize.DEDENT, tokenize.ENDMARKER)
        lines = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in skip:
                lines |= {*range(token.start[0], token.end[0] + 1)}
        count += len(lines - docs)
    assert count <= 1020


def test_the_packages_of_the_wheel_are_the_folders():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wings = {f"d2im.{wing}" for wing, *_ in modules() if wing != "method"}
    assert {*project["tool"]["setuptools"]["packages"]} == {
        *wings,
        "d2im",
        "d2im.notebooks",
    }


def test_the_old_names_lead_to_modules_that_are_there():
    known = {f"{wing}.{name}" for wing, name, _ in modules()}
    assert {home for home in d2im.MOVED.values()} - {"evaluate"} <= known


def test_every_public_function_has_type_hints():
    bare = []
    for _, name, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = [c for c in tree.body if isinstance(c, ast.ClassDef)]
        bodies = [tree.body, *(c.body for c in inner if c.name[0] != "_")]
        for function in (f for body in bodies for f in body):
            if not isinstance(function, ast.FunctionDef) or function.name[0] == "_":
                continue
            given = function.args.posonlyargs + function.args.args
            given = [a for a in given + function.args.kwonlyargs if a.arg != "self"]
            hinted = [a.annotation for a in given if a.arg != "cls"]
            if None in hinted or function.returns is None:
                bare.append(f"{name}.{function.name}")
    assert [f for f in bare if not f.startswith("__main__.")] == []
