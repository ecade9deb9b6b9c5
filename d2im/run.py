"""Notebooks in batch: papermill with guards, one folder and one page a run.

    python -m d2im.run 02 03 05 -p steps 800 --params notebooks/params/full.yaml
    python -m d2im.run 03 05 --sweep a.yaml b.yaml --name ablation

papermill only warns of a parameter that no cell declares, waits for ever and keeps
the state of every widget; here names are checked before anything runs, a cell has a
time limit, and the state is dropped. A run is the folder `reports/<run>/`: executed
notebooks with an HTML copy of each, `run.json`, and `index.html`, the page to open.

How one notebook hands its work to the next: `run` sets the parameter `out` to the
notebook's own folder, the notebook ends with `write_outputs(out, data=..., ...)`,
and later notebooks that declare `data` or `model` get what was written there.
Notebooks run in the project's folder `ROOT`, so all paths are relative to it.
"""

import argparse
import ast
import difflib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import yaml

from . import pages

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 3600  # seconds for one cell: an hour is a long training cell on two cores
HANDED_ON = ("data", "model")
OUTPUTS = "outputs.json"
WIDGET = "application/vnd.jupyter.widget-view+json"
PACKAGES = (  # whose versions a run records
    *("torch", "numpy", "scipy", "accelerate", "trimesh", "manifold3d", "libigl"),
    *("embreex", "scikit-image", "papermill"),
)


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message names it, its cell and the error."""


def write_outputs(out, *, data="", model="", summary=None, figures=None, note=""):
    """Write a notebook's outputs.json: what `run` hands on and shows.

    A `metrics.csv` or `metrics.json` in the same folder is shown too.

    Args:
        out: the notebook's folder, made when missing.
        data, model: the folders that later notebooks should read.
        summary: {name: number}; the columns of a sweep's table.
        figures: {picture file relative to `out`: caption}.
        note: one sentence for the page.

    Raises:
        FileNotFoundError: `data`, `model` or a figure does not exist.
    """
    out, figures = Path(out), dict(figures or {})
    for path in [Path(p) for p in (data, model) if p] + [out / f for f in figures]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist, so it cannot be handed on")
    outputs = {"data": str(data), "model": str(model), "summary": dict(summary or {})}
    outputs["figures"] = [{"file": str(f), "caption": c} for f, c in figures.items()]
    outputs["note"] = note
    # default=float: numpy's and torch's scalars are numbers too
    _write(out / OUTPUTS, json.dumps(outputs, indent=1, default=float))


def find_notebook(name: str | Path, root: Path = ROOT) -> Path:
    """Find a notebook by number ("03"), stem ("03_train") or path.

    Raises:
        FileNotFoundError: there is none; the message lists those there are.
        ValueError: a number that several notebooks share.
    """
    path, name = Path(name), str(name)
    if path.suffix == ".ipynb":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such notebook")
        return path.resolve()
    known = {p.stem: p for p in sorted((root / "notebooks").glob("*.ipynb"))}
    hits = [stem for stem in known if name in (stem, stem.split("_")[0])]
    if not hits:
        there_are = f"there are: {', '.join(known) or 'none'}"
        raise FileNotFoundError(
            f"no notebook {name!r}{_hint(name, known)}; {there_are}"
        )
    if len(hits) > 1:
        raise ValueError(f"{name!r} could be any of: {', '.join(hits)}")
    return known[hits[0]].resolve()


def declared_parameters(notebook: str | Path) -> dict:
    """Read the names and literal defaults of a notebook's `parameters` cell.

    Raises:
        ValueError: not a notebook, several such cells, or a line that is no literal.
    """
    path = Path(notebook)
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError) as error:
        what = f"{path.name} is not a notebook: {_one_line(error)}"
        raise ValueError(what) from error
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) > 1:
        raise ValueError(f"{path.name} has {len(tagged)} parameters cells, not one")
    declared = {}
    for line in ast.parse("".join(tagged)).body:
        try:
            (target,) = line.targets if isinstance(line, ast.Assign) else [line.target]
            declared[target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"{path.name}: a parameters cell holds only `name = literal`, "
                f"not `{ast.unparse(line)}`"
            ) from error
    return declared


def read_params(file: str | Path) -> dict:
    """Read a parameter file: YAML, {name: value} or {notebook: {name: value}}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not such a mapping.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such parameter file")
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{path} must map names to values, got {params!r:.60}")
    return params


def assign(
    declared: Mapping[str, Mapping], layers: Iterable[Mapping], root: Path = ROOT
) -> dict[str, dict]:
    """Give each notebook the values meant for it; later layers win.

    Args:
        declared: {notebook stem: {parameter: default}} of the selected notebooks.
        layers: mappings as in a parameter file. A value goes to each notebook that
            declares its name; a section named as a notebook goes to that one alone.
        root: the project's folder, where sections of other notebooks are looked up.

    Returns:
        {notebook stem: {parameter: value}}, values of the default's type.

    Raises:
        ValueError: a name that no selected notebook declares, or a wrong type.
    """
    given: dict[str, dict] = {stem: {} for stem in declared}
    every = {name: None for names in declared.values() for name in names}
    for layer in layers:
        # sections last, so that they win over the values for all
        for name, value in sorted(layer.items(), key=lambda x: isinstance(x[1], dict)):
            if isinstance(value, dict) and name not in every:
                known = name in declared
                stem = name if known else find_notebook(str(name), root).stem
                chosen = {stem: value} if stem in declared else {}
            else:
                _check_declared(name, every, " and ".join(declared))
                takers = [stem for stem in declared if name in declared[stem]]
                chosen = {stem: {name: value} for stem in takers}
            for stem, values in chosen.items():
                for key, wanted in values.items():
                    _check_declared(key, declared[stem], stem)
                    given[stem][key] = _fit(key, wanted, declared[stem][key], stem)
    return given


def _check_declared(name, declared, owner):
    if name == "out":
        raise ValueError("`out` is set by the run; choose its folder with --name")
    if name not in declared:
        raise ValueError(
            f"no parameter {str(name)!r} in {owner}{_hint(str(name), declared)}; "
            f"declared: {', '.join(declared) or 'none'}"
        )


def _fit(name, value, default, stem):
    """Return a value in the type of the parameter's default, or say what is wrong."""
    try:
        if isinstance(value, str) and not isinstance(default, str):
            value = yaml.safe_load(value)  # the command line gives strings
        if isinstance(default, float) and type(value) in (int, str):
            value = float(value)  # 1 is a fine float; YAML reads 1e-3 as a string
        fits = None in (value, default) or type(value) is type(default)
    except (ValueError, yaml.YAMLError):
        fits = False
    if not fits:
        kind = f"of type {type(default).__name__} (default {default!r})"
        raise ValueError(f"{stem}: {name} must be {kind}, got {value!r}")
    return value


def run_notebooks(
    notebooks: Sequence[str | Path],
    *,
    name: str | None = None,
    params: Sequence[str | Path] = (),
    values: Mapping | None = None,
    timeout: float = TIMEOUT,
    root: Path = ROOT,
) -> Path:
    """Run notebooks in the given order, each with what the earlier ones made.

    Prints one line a notebook. A name used before adds to that run: notebooks run
    again are replaced, and what the others made is handed on.

    Args:
        notebooks: numbers, stems or paths.
        name: of the run's folder under reports/; the time by default.
        params: parameter files, later ones win.
        values: {parameter: value}, wins over the files.
        timeout: seconds that one cell may take.
        root: the project's folder; notebooks run in it.

    Returns:
        The run's folder.

    Raises:
        FileNotFoundError, ValueError: a wrong name, before anything has run.
        NotebookFailed: a notebook stopped; the page and its copy so far are written.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, got {timeout}")
    paths = {path.stem: path for path in (find_notebook(n, root) for n in notebooks)}
    if len(paths) < len(notebooks):
        raise ValueError(f"a notebook is named twice: {', '.join(map(str, notebooks))}")
    declared = {stem: declared_parameters(path) for stem, path in paths.items()}
    given = assign(declared, [*map(read_params, params), values or {}], root)

    folder, settings = _run_folder(name, root), _settings(root)
    entries = {entry["notebook"]: entry for entry in _entries(folder)}
    for stem in paths:
        entries[stem] = {"notebook": stem, "status": "waiting", "seconds": 0.0}
        entries[stem] |= {"parameters": {}, "outputs": {}, "error": ""}
    for stem, path in paths.items():
        entry, out = entries[stem], folder / stem
        out.mkdir(parents=True, exist_ok=True)
        for stale in (OUTPUTS, "metrics.csv", "metrics.json"):
            (out / stale).unlink(missing_ok=True)
        wanted = declared[stem] | _handed_on(entries.values()) | given[stem]
        wanted["out"] = out.relative_to(root).as_posix()
        entry["parameters"] = {key: wanted[key] for key in declared[stem]}
        changed = {k: wanted[k] for k, v in declared[stem].items() if wanted[k] != v}
        entry["status"] = "running"
        _write_run(folder, settings, entries)
        print(f"{stem:24}", end="", flush=True)
        start = time.perf_counter()
        try:
            _execute(path, folder, changed, timeout, root)
            entry["status"] = "ok"
        except NotebookFailed as error:
            entry |= {"status": "failed", "error": str(error)}
            raise
        finally:
            entry["seconds"] = round(time.perf_counter() - start, 1)
            entry["outputs"] = _read_json(out / OUTPUTS)
            _write_run(folder, settings, entries)
            page = (folder / "index.html").relative_to(root)
            ending = "" if entry["status"] == "ok" else f"  failed, see {page}"
            print(f"{pages.duration(entry['seconds']):>12}{ending}", flush=True)
    return folder


def sweep(
    notebooks: Sequence[str | Path],
    files: Sequence[str | Path],
    *,
    name: str | None = None,
    params: Sequence[str | Path] = (),
    root: Path = ROOT,
    **others,
) -> Path:
    """Run the notebooks once a parameter file; one table of their summaries.

    The table, one row a file, is `sweep.csv`, `sweep.md` and `index.html`. A row that
    fails says so in the table, and the others run all the same.

    Args:
        files: the parameter files; each wins over `params`, `values` wins over all.
        others: `values` and `timeout`; these and the rest as in `run_notebooks`.

    Returns:
        The sweep's folder; the run of `a.yaml` is its folder `a`.

    Raises:
        FileNotFoundError, ValueError: a wrong name, before anything has run.
        NotebookFailed: some rows failed; the table is written.
    """
    stems = [Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        raise ValueError(f"a sweep's files need different names: {', '.join(stems)}")
    paths = [find_notebook(n, root) for n in notebooks]
    declared = {path.stem: declared_parameters(path) for path in paths}
    for file in files:  # every file is checked before the first one runs
        layers = [*map(read_params, [*params, file]), others.get("values") or {}]
        assign(declared, layers, root)

    folder, rows = _run_folder(name, root), []
    for stem, file in zip(stems, files, strict=True):
        print(f"{stem}:")
        name = f"{folder.name}/{stem}"
        try:
            run_notebooks(paths, name=name, params=[*params, file], root=root, **others)
        except NotebookFailed as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise
            print(error)
        rows.append(_sweep_row(folder / stem, declared))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = columns, [[row.get(column, "") for column in columns] for row in rows]
        _write(folder / "sweep.csv", pages.csv_table(*table))
        _write(folder / "sweep.md", pages.markdown_table(*table))
        _write(folder / "index.html", pages.sweep_page(folder.name, *table))
    failed = [row["run"] for row in rows if row["status"] != "ok"]
    if failed:
        names = ", ".join(failed)
        raise NotebookFailed(f"{len(failed)} of {len(rows)} failed: {names}")
    return folder


def _sweep_row(folder, stems):
    """Return a run as one row: its name, status, seconds, then every summary number."""
    entries = [entry for entry in _entries(folder) if entry["notebook"] in stems]
    failed = [f"failed in {e['notebook']}" for e in entries if e["status"] == "failed"]
    seconds = round(sum(entry["seconds"] for entry in entries), 1)
    row = {"run": folder.name, "status": (failed or ["ok"])[0], "seconds": seconds}
    for entry in entries:
        for key, value in entry["outputs"].get("summary", {}).items():
            row[f"{entry['notebook']}.{key}" if key in row else key] = value
    return row


def _execute(path, folder, parameters, timeout, root):
    """Run one notebook into its two copies, the part before a failure too."""
    # papermill takes 1.5 s to import, and notebooks import this module
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class ThisInterpreter(AsyncKernelManager):
        """A kernel of this very Python, whatever kernels the user has registered."""

        kernel_spec = KernelSpec(**get_kernel_dict())

        def _transport_encryption_default(self):
            return "auto"  # else every kernel warns that it is not encrypted

    partial = folder / f"{path.stem}.partial.ipynb"
    failure = None
    try:
        papermill.execute_notebook(
            str(path),
            str(partial),
            parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=ThisInterpreter,
            progress_bar=False,
            execution_timeout=timeout,
            start_timeout=120,
            store_widget_state=False,
            # a kernel logs its own orderly end as an error on the terminal
            extra_arguments=["--log-level=CRITICAL"],
            cwd=str(root),
        )
    except (Exception, KeyboardInterrupt) as error:  # told below, with its cell
        failure = error
    if not partial.exists():  # not even begun
        raise NotebookFailed(f"{path.stem}: {_one_line(failure)}") from failure
    notebook = nbformat.read(partial, as_version=4)
    _tidy(notebook, path.name)
    _write(folder / path.name, nbformat.writes(notebook))
    _write(folder / f"{path.stem}.html", pages.notebook_page(notebook))
    partial.unlink()
    if failure is not None:
        what = _describe(notebook, failure, timeout)
        raise NotebookFailed(f"{path.stem}, {what}") from failure


def _tidy(notebook, name):
    """Drop what swells a copy or names this machine: widgets, absolute paths."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.papermill |= {"input_path": name, "output_path": name}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if len(output.get("data", {})) > 1:  # its PNG or text stays
                output.data.pop(WIDGET, None)


def _describe(notebook, failure, timeout):
    """Say in one line which cell of an executed notebook failed, and how."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    begun = [cell for cell in codes if cell.metadata.papermill.start_time]
    # papermill's own error carries the one of the cell
    name = getattr(failure, "ename", type(failure).__name__)
    what = f"{name}: {_one_line(getattr(failure, 'evalue', failure))}"
    if isinstance(failure, KeyboardInterrupt):
        what = "interrupted"
    elif name == "CellTimeoutError":
        what = f"took longer than {timeout:g} s (see --timeout)"
    if not begun:
        return f"before its first cell: {what}"
    return f"cell In [{len(begun)}] `{_one_line(begun[-1].source):.40}`: {what}"


def _handed_on(entries):
    """Return the latest `data` and `model` that the notebooks so far have named."""
    made = [entry["outputs"] for entry in entries if entry["status"] == "ok"]
    return {key: o[key] for o in made for key in HANDED_ON if o.get(key)}


def _run_folder(name, root):
    name = name or time.strftime("%Y-%m-%d_%H%M%S")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        what = "a run's name is made of letters, digits, '_', '-' and '.'"
        raise ValueError(f"{what}, got {name!r}")
    return root / "reports" / name


def _settings(root):
    """Return where and with what a run is made."""
    import torch  # seconds, wanted by runs only

    device = f"cpu, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        device = f"cuda, {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        device = "mps"
    commit = ""  # stays so outside git
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(command, cwd=root, capture_output=True, text=True)
        commit = git.stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "device": device,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {d.name: d.version for d in distributions() if d.name in PACKAGES},
        "commit": commit,
    }


def _entries(folder):
    return _read_json(folder / "run.json").get("notebooks", [])


def _write_run(folder, settings, entries):
    """Write run.json and the page, at each change, so that a killed run has them."""
    entries = [entries[stem] for stem in sorted(entries)]
    given = {entry["notebook"]: entry["parameters"] for entry in entries}
    record = {"name": folder.name, **settings}
    record["seed"] = {stem: p["seed"] for stem, p in given.items() if "seed" in p}
    record["seconds"] = round(sum(entry["seconds"] for entry in entries), 1)
    record["notebooks"] = entries
    _write(folder / "run.json", json.dumps(record, indent=1))
    _write(folder / "index.html", pages.run_page(folder, record))


def _write(path, text):
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _one_line(text):
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")


def _hint(name, names):
    match = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {match[0]!r}?" if match else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m d2im.run`; return its exit code: 1 a failure, 2 a wrong name."""
    parser = argparse.ArgumentParser(
        prog="python -m d2im.run",
        description="Run notebooks in batch into reports/<run>/index.html.",
    )
    add = parser.add_argument
    add("notebooks", nargs="+", help='"03", "03_train" or a path')
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add("--params", action="append", default=[], metavar="FILE.yaml")
    add("--sweep", nargs="+", metavar="FILE.yaml", help="one run a file, one table")
    add("--name", metavar="RUN", help="default: the time")
    add("--timeout", type=float, default=TIMEOUT, help="seconds one cell may take")
    args = vars(parser.parse_args(arguments))
    notebooks, files, values = (args.pop(k) for k in ("notebooks", "sweep", "p"))
    options = args | {"values": dict(values)}
    try:
        if files:
            folder = sweep(notebooks, files, **options)
        else:
            folder = run_notebooks(notebooks, **options)
    except (NotebookFailed, KeyboardInterrupt) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {(folder / 'index.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    # a polite kill ends as Ctrl-C does: kernel stopped, page written
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
