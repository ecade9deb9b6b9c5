"""Tables of scores: means with intervals, paired tests, and a paper's own table.

A row is one prediction: id, family, split, view, method, status, a number a measure.
The pictures of a shape count as one, their mean: shapes are independent, views are not.
"""

from __future__ import annotations

import csv
import io
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ..show.pages import csv_table, escape, markdown_table
from .protocols import HIGHER_IS_BETTER, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESAMPLES = 5000
AT_ONCE = 1_000_000  # drawn numbers: of many shapes all would fill the memory
FEW = 50  # below it the percentiles of a bootstrap cover too little: 0.88 at 10
MOST_COLUMNS = 5  # of numbers with deviations that a page is wide enough for
COLUMNS = """group method measure mean median low high shapes pictures failures left_out
without protocol""".split()  # of `summarise`
TEXTS = ("id", "family", "split", "view", "method", "status")  # of a row
OTHER = (*TEXTS, "note", "protocol")  # that are no measures


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over shapes: (low, high); NaN of fewer than two.

    Of fewer than 50 values Student's, else the percentiles of a bootstrap.
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    if count < 2:
        return np.nan, np.nan
    if count < FEW:
        reach = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5
        return values.mean() - reach, values.mean() + reach
    rng, most = np.random.default_rng(seed), max(1, AT_ONCE // count)
    parts = (min(most, RESAMPLES - done) for done in range(0, RESAMPLES, most))
    draws = (rng.integers(count, size=(part, count)) for part in parts)
    means = np.concatenate([values[drawn].mean(1) for drawn in draws])
    return tuple(np.percentile(means, [2.5, 97.5]))


def summarise(rows: list[dict], seed: int = 0) -> list[dict]:
    """Sum rows up: per family, per split and over all, each method and measure.

    Args: rows: of `benchmark.score_all`. seed: of the intervals.
    Returns: list of dicts: group, method, measure, mean, median, low, high, shapes,
        pictures, failures (scored as the worst), left_out (shapes whose truth has
        nothing to measure), without (shapes whose prediction alone has nothing, as
        edges; they are in no mean), protocol.
    """
    groups = {"all": rows}
    for key in ("split", "family"):
        names = dict.fromkeys(row[key] for row in rows if row[key])
        if key == "family" or len(names) > 1:
            groups |= {f"{key} {n}": [r for r in rows if r[key] == n] for n in names}
    table = []
    for group, method in product(groups, dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in groups[group] if row["method"] == method]
        failures = sum(row["status"] != "ok" for row in mine)
        known = mine[0] if mine else {}
        for measure in (n for n, v in known.items() if isinstance(v, Result)):
            values = np.array([*_by_shape(mine, method, measure).values()])
            kept = values[np.isfinite(values)]
            middle = (kept.mean(), np.median(kept)) if len(kept) else (np.nan, np.nan)
            numbers = group, method, measure, *middle, *interval(kept, seed)
            lacks = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            rest = len(values), len(mine), failures, *lacks
            protocol = str(known[measure].protocol)
            table.append(dict(zip(COLUMNS, (*numbers, *rest, protocol), strict=True)))
    return table


def _by_shape(rows, method, measure):
    """The mean of a method over the pictures of each shape, by its id."""
    found = {}
    for row in (row for row in rows if row["method"] == method):
        value = row[measure]
        value = value.value if isinstance(value, Result) else value
        found.setdefault(row["id"], []).append(value)
    return {name: np.mean(values) for name, values in found.items()}


def markdown(summary: list[dict]) -> str:
    """The summary as Markdown: a table a group, then each measure's protocol."""
    text, protocols = [], {line["measure"]: line["protocol"] for line in summary}
    for group in dict.fromkeys(line["group"] for line in summary):
        lines = [line for line in summary if line["group"] == group]
        cells = {(line["measure"], line["method"]): line for line in lines}
        failed = {x["method"]: f"{x['failures']} of {x['pictures']}" for x in lines}
        rows, methods = [["failed, scored as the worst", *failed.values()]], [*failed]
        for measure in dict.fromkeys(line["measure"] for line in lines):
            rows.append([measure, *(_cell(cells[measure, m]) for m in methods)])
        table = markdown_table(["measure", *methods], rows)
        text.append(f"### {escape(group)}\n\n{table}")
    said = "Mean, 95 % interval of the mean over shapes (Student's of fewer than"
    text.append(f"{said} {FEW}, else by bootstrap), median.\n")
    text.append("".join(f"- {name}: {said}\n" for name, said in protocols.items()))
    return "\n".join(text)


def _cell(line):
    cell = "{mean:.4g}".format(**line)
    if np.isfinite(line["low"]):
        cell += " [{low:.4g}, {high:.4g}]".format(**line)
    cell += ", {median:.4g}".format(**line)
    for name in ("left_out", "without"):
        if count := line.get(name):
            cell += f" ({count} {name.replace('_', ' ')})"
    return cell


def compare(
    rows: list[dict], one: str, other: str, measure: str, seed: int = 0
) -> dict[str, float]:
    """Paired test of two methods on the same shapes.

    Returns: dict: difference (mean of one less other), low and high (its interval over
        pairs), p (Wilcoxon signed rank, two sided; 1 without a difference), pairs
        (shapes where both have a number).
    Raises: ValueError: no rows of a method, or of other shapes than the other's.
    """
    ours, theirs = (_by_shape(rows, method, measure) for method in (one, other))
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(f"{one!r} and {other!r} have not the same shapes, or none")
    pairs = np.array([(ours[name], theirs[name]) for name in ours])
    gap = np.subtract(*pairs[np.isfinite(pairs).all(1)].T)
    low, high = interval(gap, seed)
    p = float(stats.wilcoxon(gap).pvalue) if np.any(gap) else 1.0
    mean = gap.mean() if len(gap) else np.nan
    return {"difference": mean, "low": low, "high": high, "p": p, "pairs": len(gap)}


def read_rows(file: str | Path) -> list[dict]:
    """Read the metrics.csv of an evaluation: rows whose measures are numbers.

    Their "protocol" is "" where the file is of before that was written.

    Raises: OSError: it cannot be read. ValueError: it is no such table.
    """
    text = Path(file).read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    if not lines or not {*TEXTS} <= lines[0].keys():
        raise ValueError(f"{file} is no table of 05_evaluate: it lacks {TEXTS}")
    rows, nothing = [], ("", "()")  # as of a failed prediction, now and before
    for line in lines:
        try:
            known = {k: v for k, v in line.items() if k not in OTHER}
            row = {k: float(v) for k, v in known.items() if v not in nothing}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: a measure is no number ({error})") from error
        row |= {"protocol": line.get("protocol") or ""}
        rows.append({name: line[name] for name in TEXTS} | row)
    return rows


def gather(folders: Iterable[str | Path]) -> list[dict]:
    """The rows of all evaluations below some folders of runs or sweeps.

    A run of several becomes a method's name, alone where it is the only one there
    ("final" of a D²IM-Net); "a-seed0" and "a-seed1" are trainings of "a". Of several
    folders those within "b" are "b/a".

    Raises: FileNotFoundError: no evaluation there. ValueError: as `read_rows`; or two
        runs would be the same training of the same method.
    """
    found, folders = {}, [Path(folder).resolve() for folder in folders]
    for folder in folders:
        files = sorted(folder.rglob("05_evaluate/metrics.csv"))
        if not files:
            raise FileNotFoundError(f"{folder}: no 05_evaluate/metrics.csv below it")
        for file in files:
            run = file.parents[1]
            above = folder.parent if run == folder or len(folders) > 1 else folder
            found[file] = run.relative_to(above).as_posix()
    rows, trained = [], {}
    for file, run in found.items():
        name, _, seed = run.rpartition("seed")
        is_seeded = seed.isdigit() and name[-1:] in ("", "-", "/")
        name, seed = (name.strip("-/"), int(seed)) if is_seeded else (run, 0)
        mine = read_rows(file)
        methods = dict.fromkeys(r["method"] for r in mine if r["method"] != "truth")
        main = "final" if "final" in methods else next(iter(methods), "")
        several = len({re.sub("-?seed[0-9]+$", "", other) for other in found.values()})
        for row in mine:
            method = row["method"]
            if several > 1 and method != "truth":
                method = name if method == main else f"{name} {method}"
            if method != "truth" and trained.setdefault((method, seed), file) != file:
                raise ValueError(
                    f"{trained[method, seed]} and {file} are both training {seed} of "
                    f"{method!r}, whose means would mix: rename a run, or leave one out"
                )
            rows.append(row | {"method": method, "seed": seed, "run": run})
    return rows


def paper_table(
    rows: Iterable[dict],
    measures: Sequence[str],
    methods: Sequence[str] | None = None,
    caption: str = "",
) -> dict[str, str]:
    """A paper's table: a row a category, methods beside each other, the mean last.

    Args: rows: as of `read_rows`; those of several trainings of one method differ in
            their "seed" and become mean ± standard deviation over trainings.
        measures, methods: the columns; by default all methods but the truth.
        caption: of the LaTeX table.
    Returns: {"tex", "csv", "md"}: the same table. Bold is the best of a measure; a
        category is the mean over its shapes, the last line that over the categories
        in which every method has a number. A note says where these are not all.
    Raises: ValueError: a measure or method without rows, or not of the same shapes;
        rows of two protocols.
    """
    rows = list(rows)
    used = {row["protocol"]: row for row in rows if row.get("protocol")}
    if len(used) > 1:
        told = (
            f"{name} ({row.get('run', row['method'])})" for name, row in used.items()
        )
        wrong = f"numbers of the protocols {' and '.join(told)} do not compare"
        raise ValueError(f"{wrong}: evaluate all by one")
    named = dict.fromkeys(row["method"] for row in rows)
    methods = list(methods or [name for name in named if name != "truth"])
    families = list(dict.fromkeys(row["family"] or "all" for row in rows))
    numbers = {}  # (family, measure, method) -> a mean a training
    shapes = {}  # of each measure, the same ones of all
    for measure, method in product(measures, methods):
        mine = [r for r in rows if r["method"] == method and measure in r]
        if not mine:
            raise ValueError(f"no row of {method!r} has {measure!r}")
        seeds = dict.fromkeys(row.get("seed", 0) for row in mine)
        for seed in seeds:
            of = {row["id"] for row in mine if row.get("seed", 0) == seed}
            if of ^ shapes.setdefault(measure, of):
                raise ValueError(
                    f"{measure} of {method!r} (training {seed}) and of {methods[0]!r} "
                    "is not of the same shapes: evaluate both on the same"
                )
        for family in families:
            some = [r for r in mine if (r["family"] or "all") == family]
            means = []
            for seed in seeds:
                those = [r for r in some if r.get("seed", 0) == seed]
                values = np.array([*_by_shape(those, method, measure).values()])
                values = values[np.isfinite(values)]
                means.append(values.mean() if len(values) else np.nan)
            numbers[family, measure, method] = np.array(means)
    notes = []
    for measure in measures:
        common = [
            family
            for family in families
            if all(np.isfinite(numbers[family, measure, m]).all() for m in methods)
        ]
        for m in methods:
            each = [numbers[family, measure, m] for family in common]
            nothing = np.full_like(numbers[families[0], measure, m], np.nan)
            numbers["mean", measure, m] = np.mean(each, axis=0) if each else nothing
        if len(common) < len(families) > 1:
            left = ", ".join(family for family in families if family not in common)
            notes.append(f"Mean of {measure}: without {left}, where a method has none.")
    shown = [*families, "mean"] if len(families) > 1 else families
    heads = [f"{measure} {method}" for measure, method in product(measures, methods)]
    tables = {"csv": [], "md": [], "tex": []}
    for family in shown:
        line = {kind: [family] for kind in tables}
        for measure in measures:
            found = [numbers[family, measure, method] for method in methods]
            sign = 1 if measure.startswith(HIGHER_IS_BETTER) else -1
            means = np.array([sign * values.mean() for values in found])
            best = np.nanmax(means) if np.isfinite(means).any() else np.nan
            for values, mean in zip(found, means, strict=True):
                line["csv"].append(float(values.mean()))
                for kind in ("md", "tex"):
                    line[kind].append(_number(values, mean == best, kind))
        for kind, cells in line.items():
            tables[kind].append(cells)
    return {
        "csv": csv_table(["category", *heads], tables["csv"]),
        "md": _markdown(["category", *heads], tables["md"], notes),
        "tex": _latex(tables["tex"], measures, methods, caption, notes),
    }


def _number(values, is_best, kind):
    """A mean, with its deviation over trainings where there are several."""
    if not np.isfinite(values).all():
        return "--" if kind == "tex" else "-"
    text = f"{values.mean():.4g}"
    if is_best:
        text = rf"\textbf{{{text}}}" if kind == "tex" else f"**{text}**"
    if len(values) > 1:
        sign = r"$\pm$" if kind == "tex" else "±"
        text += f" {sign} {values.std(ddof=1):.2g}"
    return text


def _markdown(heads, lines, notes):
    """As `pages.markdown_table`, which would show the stars of bold numbers."""
    named = [[escape(first), *cells] for first, *cells in lines]
    rows = [[*map(escape, heads)], ["---"] * len(heads), *named]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return table + "".join(f"\n{escape(note)}\n" for note in notes)


def _latex(lines, measures, methods, caption, notes):
    """A table of the booktabs package; a wide one is scaled by graphicx."""
    width = len(methods)
    is_wide = width * len(measures) > MOST_COLUMNS
    packages = "booktabs and graphicx" if is_wide else "booktabs"
    rules = [(2 + k * width, 1 + (k + 1) * width) for k in range(len(measures))]
    top = [rf"\multicolumn{{{width}}}{{c}}{{{_tex(m)}}}" for m in measures]
    body = [" & ".join([_tex(first), *cells]) + r" \\" for first, *cells in lines]
    if len(lines) > 1:
        body.insert(-1, r"\midrule")
    return "\n".join(
        [
            f"% needs {packages}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_tex(caption)}}}"] if caption else []),
            *([r"\resizebox{\linewidth}{!}{%"] if is_wide else []),
            rf"\begin{{tabular}}{{l{'r' * width * len(measures)}}}",
            r"\toprule",
            " & ".join(["", *top]) + r" \\",
            "".join(rf"\cmidrule(lr){{{a}-{b}}}" for a, b in rules),
            " & ".join(["category", *map(_tex, [*methods] * len(measures))]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}" + "}" * is_wide,
            *(rf"\par\smallskip{{\footnotesize {_tex(note)}}}" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def _tex(text):
    """Any text as LaTeX prints it."""
    special = {c: rf"\{c}" for c in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}"}
    return "".join(special.get(c, c) for c in str(text))
