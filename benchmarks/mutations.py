"""Which changes of a line of logic the tests notice.

    python benchmarks/mutations.py                    # all
    python benchmarks/mutations.py --only cubes.py    # of files by their path

Each change is made in a copy of the checkout's files, never in the checkout; there the
test file that answers for the line runs until a test fails. A change that no test of
the file notices has survived: write the test that fails with it, or say why none can.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).parents[1]
PARTS = "d2im", "tests", "benchmarks", "notebooks", "docs", "data", "examples"

# What it does, file in d2im, text before and after, test file.
MUTATIONS = [
    (
        "gradient clipping removed",
        "training/loop.py",
        "        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)\n",
        "",
        "training",
    ),
    (
        "START_RADIUS 0.3 to 0.2",
        "networks.py",
        "START_RADIUS = 0.3",
        "START_RADIUS = 0.2",
        "networks",
    ),
    (
        "the code enters as strongly as any layer",
        "networks.py",
        "std=std if k else 0.01",
        "std=std",
        "networks",
    ),
    (
        "maps do not start near zero",
        "networks.py",
        "        nn.init.normal_(self.out.weight, std=1e-3)\n",
        "",
        "networks",
    ),
    (
        "no ReLU in `mixing`",
        "networks.py",
        "x = F.relu(self.mix[level](x))",
        "x = self.mix[level](x)",
        "networks",
    ),
    (
        "a patch's border a straight ramp",
        "use/editing.py",
        "(edge**2 * (3 - 2 * edge))",
        "edge",
        "editing",
    ),
    (
        "a patch's border hard",
        "use/editing.py",
        "(edge**2 * (3 - 2 * edge))",
        "((edge > 0.5) * 1.0)",
        "editing",
    ),
    (
        "finite difference backward",
        "fields.py",
        "field(points + FINITE_STEP * step)",
        "field(points - FINITE_STEP * step)",
        "fields",
    ),
    (
        "outside the picture maps are 0",
        "fields.py",
        'padding_mode="border"',
        'padding_mode="zeros"',
        "fields",
    ),
    (
        "a mesh's field asked in parts, only the first kept",
        "fields.py",
        "flat.split(65_536)]",
        "flat.split(65_536)][:1]",
        "fields",
    ),
    (
        "the stencil's right neighbour not looked at",
        "laplacian.py",
        "((1, 1), (1, -1), (2, 1), (2, -1))",
        "((1, 1), (1, -1), (2, 1))",
        "laplacian",
    ),
    (
        "focal length not in the maps' pixels",
        "laplacian.py",
        "cameras[:, 12] * depth.shape[-1] / cameras[:, 15]",
        "cameras[:, 12]",
        "laplacian",
    ),
    (
        "points beside the picture take part",
        "losses.py",
        "gather(1, index) & inside",
        "gather(1, index)",
        "losses",
    ),
    (
        "a pixel's points go to the next one",
        "losses.py",
        "(x * width).floor()",
        "(x * width).round()",
        "losses",
    ),
    (
        "points of a triangle not folded back",
        "sampling.py",
        "outside = u + v > 1",
        "outside = u + v > 2",
        "sampling",
    ),
    (
        "crowded points drawn more often",
        "sampling.py",
        "dtype=np.float32) / weights[index]",
        "dtype=np.float32) * weights[index]",
        "sampling",
    ),
    (
        "points leave the box",
        "sampling.py",
        "return points.clip(-HALF_BOX, HALF_BOX)",
        "return points",
        "sampling",
    ),
    (
        "wrong normals beside needles trusted",
        "sampling.py",
        "along < 0.5 * np.abs(sdf)",
        "along < 0",
        "sampling",
    ),
    (
        "rays of sub-pixels off by a part of a pixel",
        "camera.py",
        "(np.arange(self.size * per_side) + 0.5) / per_side",
        "np.arange(self.size * per_side) / per_side + 0.5",
        "camera",
    ),
    (
        "random cameras from below, too",
        "camera.py",
        "elevation: Range = (0, 40)",
        "elevation: Range = (-40, 40)",
        "camera",
    ),
    (
        "a resized camera keeps its centre",
        "camera.py",
        "self.centre * scale",
        "self.centre",
        "camera",
    ),
    (
        "means instead of maxima behind the first convolution",
        "networks.py",
        "F.max_pool2d(x, 3, 2, 1)",
        "F.avg_pool2d(x, 3, 2, 1)",
        "networks",
    ),
    (
        "L_lap takes scaled displacement",
        "training/objectives.py",
        "laplacian_maps(displacement[:, 0] / SDF_SCALE, batch",
        "laplacian_maps(displacement[:, 0], batch",
        "training",
    ),
    (
        "DISN's near points ten times as far",
        "training/objectives.py",
        "sdf.abs() < DISN_NEAR",
        "sdf.abs() < 10 * DISN_NEAR",
        "training",
    ),
    (
        "P_F is the back",
        "training/objectives.py",
        "cameras[:, None, 6:9]).sum(-1) < 0",
        "cameras[:, None, 6:9]).sum(-1) > 0",
        "training",
    ),
    (
        "no warm-up",
        "training/loop.py",
        "factor = warm * (",
        "factor = (",
        "training",
    ),
    (
        "normals change where a patch's border begins",
        "training/patches.py",
        "torch.where(weight[:, None] > 0.5, normals",
        "torch.where(weight[:, None] > 0, normals",
        "patches",
    ),
    (
        "a training patch's border a straight ramp",
        "training/patches.py",
        "torch.where(both, edge**2 * (3 - 2 * edge), 0.0)",
        "torch.where(both, edge, 0.0)",
        "patches",
    ),
    (
        "a patch from beyond the other picture's edge",
        "training/patches.py",
        "    both &= (source.abs() <= 1).all(-1).unflatten(1, size)\n",
        "",
        "patches",
    ),
    (
        "a checkpoint's left-over files stay",
        "training/checkpoints.py",
        "            (out / name).unlink(missing_ok=True)\n        for name in FILES:",
        "            pass\n        for name in FILES:",
        "checkpoints",
    ),
    (
        "a file's content not compared",
        "training/checkpoints.py",
        'if found["crc32"] != expected["crc32"]:',
        "if False:",
        "checkpoints",
    ),
    (
        "the last level's band too narrow",
        "surface/extract.py",
        "LAST_GRADIENT = 1.04, 0.7",
        "LAST_GRADIENT = 1.04, 0.2",
        "meshing",
    ),
    (
        "jumps between front and back not searched for",
        "surface/extract.py",
        "BISECTIONS = 3",
        "BISECTIONS = 0",
        "meshing",
    ),
    (
        "a window's far side not widened",
        "surface/extract.py",
        "inner = tuple(slice(start, -end or None) for start, end in more)",
        "inner = tuple(slice(start, None) for start, _ in more)",
        "meshing",
    ),
    (
        "ambiguous faces always decided alike",
        "surface/cubes.py",
        "joined = torch.where(ring[..., 0] <= 0, gap, -gap) > 0",
        "joined = gap > 0",
        "cubes",
    ),
    (
        "any fan fills a loop",
        "surface/cubes.py",
        "if not any((f[0], b) in FLAT for b in f[2:-1])",
        "if True",
        "cubes",
    ),
    (
        "an object stands too high in its picture",
        "use/pictures.py",
        "0.5 + DROP * radius",
        "0.5 - DROP * radius",
        "pictures",
    ),
    (
        "what an object encloses stays",
        "use/cutting.py",
        "for reach in (np.inf, 4):",
        "for reach in (4,):",
        "pictures",
    ),
    (
        "a patch's pixels half a pixel off",
        "use/editing.py",
        "translation=(0.5, 0.5)",
        "translation=(0.0, 0.0)",
        "editing",
    ),
    (
        "the worst squared distance counted once",
        "evaluate/metrics.py",
        "(2 * far**2 if",
        "(far**2 if",
        "metrics",
    ),
    (
        "a protocol's box not about the truth's middle",
        "evaluate/metrics.py",
        'points += 0 if rule.frame == "world" else',
        "points += 0 if True else",
        "metrics",
    ),
    (
        "the visible IoU looks deeper",
        "evaluate/metrics.py",
        "SKIN = 0.1",
        "SKIN = 0.3",
        "metrics",
    ),
    (
        "the high-pass reads what lies beside the mask",
        "evaluate/decomposition.py",
        "blurred[0] / np.maximum(blurred[1], 1e-9)",
        "blurred[0]",
        "metrics",
    ),
    (
        "the back's points count as front",
        "evaluate/decomposition.py",
        "@ camera.rotation[2] < 0)",
        "@ camera.rotation[2] < 2)",
        "metrics",
    ),
    (
        "each epoch the same points",
        "data/dataset.py",
        "default_rng([self.seed, index, draw])",
        "default_rng([self.seed, index])",
        "dataset",
    ),
    (
        "another draw of points is no other data",
        "data/dataset.py",
        "json.dumps([shapes, draws, made])",
        "json.dumps([shapes, made])",
        "dataset",
    ),
    (
        "depth and normals mix two surfaces",
        "data/rendering.py",
        "(depth <= near[pixel] + SAME_SURFACE)",
        "(depth < np.inf)",
        "rendering",
    ),
    (
        "the key light from below",
        "data/rendering.py",
        "np.array([x, -abs(y), -np.cos(tilt)])",
        "np.array([x, abs(y), -np.cos(tilt)])",
        "rendering",
    ),
    (
        "a pixel a quarter covered is the object's",
        "data/rendering.py",
        "mask = covered[..., 0] >= 0.5",
        "mask = covered[..., 0] >= 0.25",
        "rendering",
    ),
    (
        "a time's seconds not rounded",
        "show/pages.py",
        "divmod(round(seconds), 60)",
        "divmod(seconds, 60)",
        "run",
    ),
    (
        "a value for all wins over a notebook's own",
        "show/run.py",
        "sorted(layer.items(), key=lambda x: isinstance(x[1], dict))",
        "sorted(layer.items(), key=lambda x: not isinstance(x[1], dict))",
        "run",
    ),
]


def copy_tree(root, folder):
    """Copy what tests read of a checkout."""
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "shared")
    for path in root.iterdir():
        if path.is_file() and not path.name == ".git":
            shutil.copy(path, folder)
        elif path.name in PARTS:
            shutil.copytree(path, folder / path.name, ignore=ignore)


def mutate(path, before, after):
    """Replace a text that a file holds once.

    Raises: ValueError: it does not.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(before) != 1:
        found = f"{path.name} holds {before!r} {text.count(before)} times, not once"
        raise ValueError(f"{found}: the code has changed; change the list as well")
    path.write_text(text.replace(before, after), encoding="utf-8")


def run_tests(folder, file, timeout, tests=""):
    """Run a test file until a test fails; return its name, or "" where none does.

    Args: folder: a checkout. file: within it, or a test of it. timeout: seconds.
        tests: of pytest's -k.
    Raises: RuntimeError: pytest could not run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # Plugins, which our tests do not need, take longer to start than many of them.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["PYTHONPATH"] = str(folder)
    try:
        done = subprocess.run(
            [*command, "--tb=no", "-k", tests, str(file)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired:
        return f"more than {timeout} s"
    failed = re.search(
        r"^(?:FAILED|ERROR) \S+?(?:::(.+?))?(?: - |$)", done.stdout, re.M
    )
    if done.returncode not in (0, 1, 2) or (done.returncode and not failed):
        raise RuntimeError(f"pytest could not run:\n{done.stdout}{done.stderr}")
    return (failed[1] or "its import") if failed else ""


def try_mutation(root, package, mutation, timeout, tests=""):
    """Make a change in a copy of a checkout and run its test file there.

    Args: root: the checkout. package: folder in it. mutation: see MUTATIONS.
        timeout, tests: see `run_tests`.
    Returns: the name of the test that failed, "" where the change survived.
    Raises: RuntimeError: the test fails without the change, too.
    """
    _, file, before, after, of = mutation
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_tree(root, copy)
        mutate(copy / package / file, before, after)
        test_file = f"tests/test_{of}.py"
        failed = run_tests(copy, test_file, timeout, tests)
        shutil.copy(root / package / file, copy / package / file)
        if failed.startswith("test_"):
            if run_tests(copy, f"{test_file}::{failed}", timeout):
                raise RuntimeError(f"{failed} fails without the change, too")
        return failed


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--only", default=".", help="expression, in a file's path")
    parser.add_argument("--timeout", type=int, default=400, help="s for a test file")
    parser.add_argument("--tests", default="", help="that alone run, as pytest's -k")
    options = common.opening(parser)
    survived, chosen = 0, [m for m in MUTATIONS if re.search(options.only, m[1])]
    print("\n| change | in | test file | |\n|---|---|---|---|", flush=True)
    start = time.perf_counter()
    for mutation in chosen:
        name, file, *_, tests = mutation
        limits = options.timeout, options.tests
        failed = try_mutation(ROOT, "d2im", mutation, *limits)
        survived += not failed
        outcome = f"killed: `{failed}`" if failed else "**survived**"
        print(f"| {name} | {file} | test_{tests} | {outcome} |", flush=True)
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{survived} of {len(chosen)} survived; {minutes:.1f} min")


if __name__ == "__main__":
    main()
