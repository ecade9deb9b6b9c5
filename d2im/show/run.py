"""Notebooks in batch: papermill with guards, one folder and one page a run.

papermill alone only warns of undeclared parameters, waits for ever and keeps the state
of all widgets. A run is `reports/<run>/`: executed notebooks, each as HTML too, with
`run.json` and the page `index.html`. Notebooks run in `ROOT`, each with a folder `out`
of its own; the `data` and `model` that one names by `write_outputs` go to later ones.
"""

import argparse
import ast
import difflib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import yaml

from . import pages

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 3600  # seconds for one cell: an hour is a long training cell on two cores
VERSIONS = "k3d torch numpy trimesh manifold3d libigl embreex".split()


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message names it, its cell and the error."""


def write_outputs(out, *, data="", model="", summary=None, figures=None, note=""):
    """Write a notebook's outputs.json: what `run` hands on and shows.

    Args: out: the notebook's folder, made when missing; its `metrics.csv` is shown too.
        data, model: the folders that later notebooks should read.
        summary: {name: number}, the columns of a sweep's table; NaN: not measured.
        figures: {file relative to `out`: caption}: PNG, or a scene's HTML snapshot.
        note: a sentence or two that the page shows first.
    Raises: FileNotFoundError: `data`, `model` or a figure does not exist.
    """
    out, figures = Path(out), figures or {}
    for path in [Path(p) for p in (data, model) if p] + [out / f for f in figures]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist, so it cannot be handed on")
    outputs = {  # of paths, what is within the project: the same on each machine
        "data": str(data).removeprefix(f"{ROOT}{os.sep}"),
        "model": str(model).removeprefix(f"{ROOT}{os.sep}"),
        "summary": {k: None if v != v else v for k, v in (summary or {}).items()},
        "figures": [{"file": str(f), "caption": c} for f, c in figures.items()],
        "note": note,
    }
    out.mkdir(parents=True, exist_ok=True)
    # default=float: numpy's and torch's scalars are numbers too
    (out / "outputs.json").write_text(json.dumps(outputs, indent=1, default=float))


def find_notebook(name):
    """Find a notebook by number ("03"), stem ("03_train") or path.

    Raises: FileNotFoundError: none or several; the message lists those there are.
    """
    if str(name).endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    hits = [stem for stem in known if name in (stem, stem.split("_")[0])]
    if len(hits) != 1:
        raise FileNotFoundError(f"no notebook '{name}'{_hint(name, known)}")
    return known[hits[0]]


def declared_parameters(notebook):
    """Read the {name: literal default} of a notebook's `parameters` cell.

    Raises: ValueError: not a notebook, several such cells, or a line without a literal.
    """
    name = Path(notebook).name
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError) as error:
        raise ValueError(f"{name} is not a notebook") from error
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) > 1:
        raise ValueError(f"{name} has {len(tagged)} parameters cells, not one")
    declared = {}
    for line in ast.parse("".join(tagged)).body:
        try:
            (target,) = line.targets
            declared[target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError) as error:
            what = f"only `name = literal`, not `{ast.unparse(line)}`"
            raise ValueError(f"{name}: its parameters cell holds {what}") from error
    return declared


def read_params(file):
    """Read a parameter file: YAML, {name: value} or {notebook: {name: value}}.

    Raises: FileNotFoundError, ValueError: no such file, not YAML or no such mapping.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such parameter file")
    try:
        params = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{file} must map names to values, got {params!r:.60}")
    return params


def assign(declared, layers):
    """Give each notebook the values meant for it; later layers win.

    Args: declared: {notebook stem: {parameter: default}} of the selected notebooks.
        layers: mappings as in a parameter file. A value goes to each notebook that
            declares its name; a section named as a notebook to that one, and wins.
    Returns: {notebook stem: {parameter: value}}, values of the default's type.
    Raises: FileNotFoundError, ValueError: a name that nothing declares, a wrong type.
    """
    given = {stem: {} for stem in declared}
    names = dict.fromkeys(n for defaults in declared.values() for n in defaults)
    for layer in layers:
        # sections last, so that they win over the values for all
        for name, value in sorted(layer.items(), key=lambda x: isinstance(x[1], dict)):
            if isinstance(value, dict):
                stem = name if name in declared else find_notebook(name).stem
                if stem in declared:
                    given[stem] |= assign({stem: declared[stem]}, [value])[stem]
            elif name == "out":
                raise ValueError("`out` is set by the run; name its folder by --name")
            elif name not in names:
                missing = f"no parameter {name!r} in {' and '.join(declared)}"
                raise ValueError(missing + _hint(name, names, "declared"))
            for stem, defaults in declared.items():
                if name in defaults:
                    given[stem][name] = _fit(value, defaults[name], f"{stem}: {name}")
    return given


def _fit(value, default, name):
    """Return a value in the type of the parameter's default, or say what is wrong."""
    with suppress(ValueError, yaml.YAMLError):  # then its type is wrong
        if isinstance(value, str) and not isinstance(default, str):
            value = yaml.safe_load(value)  # the command line gives strings
        if isinstance(default, float) and type(value) in (int, str):
            value = float(value)  # 1 is a fine float; YAML reads 1e-3 as a string
    if default is not None and type(value) is not type(default):
        kind = f"of type {type(default).__name__} (default {default!r})"
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return value


def _plan(notebooks, name, params, values):
    """Return a run's notebooks, their parameters and the values given to them."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"a run's name is of letters, digits, '_', '-', '.': {name!r}")
    paths = {path.stem: path for path in map(find_notebook, notebooks)}
    declared = {stem: declared_parameters(path) for stem, path in paths.items()}
    return paths, declared, assign(declared, [*map(read_params, params), dict(values)])


def run_notebooks(notebooks, name, *, params=(), values=(), timeout=TIMEOUT):
    """Run notebooks in the given order, each with what the earlier ones made.

    Args: notebooks: numbers, stems or paths.
        name: of the run's folder under reports/; a run that is there is added to.
        params, values: parameter files, and {name: value} that wins over them.
        timeout: seconds that one cell may take.
    Returns: The run's folder.
    Raises: FileNotFoundError, ValueError: a wrong name, before anything has run.
        NotebookFailed: a notebook stopped; the page and its copy so far are written.
    """
    paths, declared, given = _plan(notebooks, name, params, values)
    folder, settings = ROOT / "reports" / name, _settings()
    record = folder / "run.json"
    entries = json.loads(record.read_text())["notebooks"] if record.exists() else []
    entries = [entry for entry in entries if entry["notebook"] not in paths]
    beside = {path.name for path in paths.values()}
    for stem, path in paths.items():
        out, defaults = folder / stem, declared[stem]
        out.mkdir(parents=True, exist_ok=True)
        (out / "outputs.json").write_text("{}")  # those of an earlier run are over
        made = [entry["outputs"] for entry in entries]
        handed = {k: o[k] for o in made for k in ("data", "model") if o.get(k)}
        handed |= {"out": out.relative_to(ROOT).as_posix()} | given[stem]
        chosen = {k: handed.get(k, default) for k, default in defaults.items()}
        changed = {k: value for k, value in chosen.items() if value != defaults[k]}
        print(f"{stem:24}", end="", flush=True)
        start = time.perf_counter()
        title, error = _execute(path, folder / path.name, changed, timeout, beside)
        seconds = round(time.perf_counter() - start, 1)
        entry = {"notebook": stem, "title": title, "seconds": seconds, "error": error}
        entry["status"] = "failed" if error else "ok"
        entry |= {"parameters": chosen, "defaults": defaults}
        entry["outputs"] = json.loads((out / "outputs.json").read_text())
        entries.append(entry)
        run = settings | {"notebooks": sorted(entries, key=lambda e: e["notebook"])}
        record.write_text(json.dumps(run, indent=1))
        pages.write_page(folder, **run)
        print(f"{pages.duration(seconds):>12}{'  failed' if error else ''}", flush=True)
        if error:
            raise NotebookFailed(error)
    return folder


def sweep(notebooks, files, name, *, params=(), values=(), timeout=TIMEOUT):
    """Run the notebooks once a parameter file; one table of their summaries.

    Args: files: the parameter files; each wins over `params`, `values` over all. The
        other arguments, and what is refused, are as in `run_notebooks`.
    Returns: Folder of `sweep.csv`, `sweep.md` and `index.html`; in `a`, `a.yaml`'s run.
    Raises: NotebookFailed: some rows failed, as the table says; the others have run.
    """
    runs = {Path(file).stem: [*params, file] for file in files}
    if len(runs) < len(files):
        raise ValueError(f"a sweep's files need different names, got {', '.join(runs)}")
    for stem, given in runs.items():  # each is checked before the first one runs
        _plan(notebooks, f"{name}/{stem}", given, values)
    folder, rows = ROOT / "reports" / name, []
    options = {"values": values, "timeout": timeout}
    for stem, given in runs.items():
        print(f"{stem}:")
        row = {"run": stem, "status": "ok", "seconds": 0.0}
        try:
            run_notebooks(notebooks, f"{name}/{stem}", params=given, **options)
        except NotebookFailed as error:
            print(error)
            row["status"] = f"failed in {str(error).partition(',')[0]}"
        for entry in json.loads((folder / stem / "run.json").read_text())["notebooks"]:
            row["seconds"] = round(row["seconds"] + entry["seconds"], 1)
            for key, value in entry["outputs"].get("summary", {}).items():
                row[f"{entry['notebook']}.{key}" if key in row else key] = value
        rows.append(row)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = columns, [[row.get(column) for column in columns] for row in rows]
        (folder / "sweep.csv").write_text(pages.csv_table(*table), encoding="utf-8")
        (folder / "sweep.md").write_text(pages.markdown_table(*table), encoding="utf-8")
        pages.write_page(folder, columns=columns, rows=table[1])
    failed = [row["run"] for row in rows if row["status"] != "ok"]
    if failed:
        names = ", ".join(failed)
        raise NotebookFailed(f"{len(failed)} of {len(rows)} failed: {names}")
    return folder


def _execute(path, copy, parameters, timeout, beside):
    """Run a notebook into its two copies; return its title and what went wrong."""
    import papermill  # seconds to import, and notebooks import this module
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager, kernelspec
    from nbconvert import HTMLExporter

    class Kernel(AsyncKernelManager):  # whatever kernels the user has registered
        kernel_spec = kernelspec.KernelSpec(**get_kernel_dict())

    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options |= {"execution_timeout": timeout, "store_widget_state": False, "cwd": ROOT}
    # a kernel logs its own orderly end as an error on the terminal
    options |= {"kernel_manager_class": Kernel, "extra_arguments": ["--log-level=50"]}
    error = ""
    try:
        papermill.execute_notebook(path, copy, parameters, **options)
    except Exception as failure:  # papermill's own error carries the one of the cell
        name = getattr(failure, "ename", type(failure).__name__)
        text = str(getattr(failure, "evalue", failure)).strip().partition("\n")[0]
        limit = f"took longer than {timeout:g} s (see --timeout)"
        error = limit if name == "CellTimeoutError" else f"{name}: {text}"
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata.papermill |= {"input_path": path.name, "output_path": path.name}
    for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
        cell.source = _moved_links(cell.source, path.parent, copy.parent, beside)
    for output in [o for cell in notebook.cells for o in cell.get("outputs", [])]:
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, copy)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    copy.with_suffix(".html").write_text(page, encoding="utf-8")
    if error:
        codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
        begun = [cell.source for cell in codes if cell.metadata.papermill.start_time]
        line = begun[-1].splitlines()[0] if begun else "the kernel's start"
        error = f"{path.stem}, cell In [{len(begun)}] `{line:.40}`: {error}"
    titles = [c.source.split("\n")[0] for c in notebook.cells if c.source[:2] == "# "]
    return titles[0][2:] if titles else path.stem, error


def _moved_links(text, old, new, beside=()):
    """Markdown moved from one folder to another, its links to files with it.

    Notebooks whose copies lie in the new folder, too, or will (`beside`), are linked
    there.
    """

    def move(link):
        if link[1] in beside or (new / link[1]).is_file():
            return link[0]
        return "](" + Path(os.path.relpath(old / link[1], new)).as_posix()

    return re.sub(r"\]\(((?:\.\./|\w)[\w./-]*\.(?:ipynb|py|md))", move, text)


def _settings():
    """Return when, where and with what a run is made."""
    import torch  # seconds, wanted by runs only

    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    mps = torch.backends.mps.is_available() and "mps"
    git = subprocess.getstatusoutput(f'git -C "{ROOT}" describe --always --dirty')
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "device": f"{gpu or mps or 'cpu'}, {os.cpu_count()} cores",
        "python": f"{sys.version.split()[0]} on {sys.platform}",
        "versions": {d.name: d.version for d in distributions() if d.name in VERSIONS},
        "commit": git[1] if git[0] == 0 else "",
    }


def _hint(name, names, label="there are"):
    match = difflib.get_close_matches(str(name), list(names), 1)
    meant = f"; did you mean {match[0]!r}?" if match else ""
    return f"{meant}; {label}: {', '.join(names) or 'none'}"


def main(arguments=None):
    """Run `python -m d2im.run`; return its exit code: 1 a failure, 2 a wrong name."""
    parser = argparse.ArgumentParser("python -m d2im.run", description=__doc__)
    add, now = parser.add_argument, time.strftime("%Y-%m-%d_%H%M%S")
    add("notebooks", nargs="+", help='"03", "03_train" or a path')
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add("--params", action="append", default=[], metavar="FILE.yaml")
    add("--sweep", nargs="+", metavar="FILE.yaml", help="one run a file, one table")
    add("--name", metavar="RUN", default=now, help="folder in reports/ (the time)")
    add("--timeout", type=float, default=TIMEOUT, help="seconds one cell may take")
    options = vars(parser.parse_args(arguments))
    options["values"], files = options.pop("p"), options.pop("sweep")
    try:
        folder = sweep(files=files, **options) if files else run_notebooks(**options)
    except (NotebookFailed, KeyboardInterrupt, FileNotFoundError, ValueError) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return 2 if isinstance(error, FileNotFoundError | ValueError) else 1
    print(f"report: {(folder / 'index.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
