"""What the benchmarks share: how they open, and how they count core time.

They import it before torch, which reads only once how its threads wait.
"""

import argparse
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import d2im  # sets OMP_WAIT_POLICY

CPUINFO = Path("/proc/cpuinfo")  # Linux's; elsewhere platform knows less


def arguments(about):
    """A parser for a benchmark whose docstring is `about`; see `opening`."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    return parser


def opening(parser):
    """Read the arguments, set torch's threads, print what the figures depend on."""
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(
        f"{processor()}, {os.cpu_count()} cores{device}; "
        f"threads: {torch.get_num_threads()}, {os.environ['OMP_WAIT_POLICY']}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {version('numpy')}; d2im {d2im.__version__} at {commit()}",
        flush=True,
    )
    return options


def processor():
    """The processor's name."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0].strip()


def commit():
    """The checkout's commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
    except FileNotFoundError:  # no git
        return "no commit"
    return done.stdout.strip() or "no commit"


def core_time(work):
    """Run `work()`; return what it returned and its core time in seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start
