"""Jobs in processes of their own: one that crashes, hangs or eats memory ends alone.

A worker is a Python process that reads pickled jobs from its parent and answers each
one. It imports the library once, so that a job costs no more than in the parent. It is
started by name, not forked: this works on every system and without a `__main__` guard.
"""

from __future__ import annotations

import faulthandler
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FEWEST_GB, MOST_GB = 1.0, 4.0  # of a job: about 0.7 and 4 million faces
THREAD_GB = 0.05  # that a thread for each core reserves, used or not: it counts as data
_parent = None  # of a worker, its number
_idle = queue.LifoQueue()  # workers of this process that wait for a job


def fair_memory_gb(workers: int) -> float | None:
    """How much memory each of several workers may take, where nobody has said it.

    Half the machine's (or the container's) in even shares, within sensible bounds:
    ordinary shapes and models take 0.4 to 0.8 GB. None where it is not known.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # as on Windows
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path("/sys/fs/cgroup", name).read_text("ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            pass
    share = min(max(total / 2e9 / workers, FEWEST_GB), MOST_GB)
    return share + THREAD_GB * (os.cpu_count() or 1)


def run_isolated(
    function: Callable,
    *arguments,
    timeout: float | None = None,
    memory_gb: float | None = None,
) -> object:
    """Call a module-level function in a worker process.

    Args: function: importable by its module and name; its arguments and its result can
            be pickled.
        timeout: seconds after which the worker is killed.
        memory_gb: of data, above which the worker's allocations fail (Linux); None or
            infinity: no limit.
    Returns: what the function returned.
    Raises: RuntimeError: it raised, crashed or took too long; the message says which.
    """
    try:
        worker = _idle.get_nowait()
    except queue.Empty:
        # A parent's number is what it says (but where a launcher stands between).
        parent = None if sys.platform == "win32" else os.getpid()
        command = f"from d2im.data.isolation import _serve; _serve({parent})"
        path = os.pathsep.join(p for p in sys.path if p)
        worker = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # libigl takes all cores for each of the workers where it is not told
            env={"IGL_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
        )
    late = threading.Event()
    wait = min(timeout or math.inf, threading.TIMEOUT_MAX)
    timer = threading.Timer(wait, lambda: (late.set(), worker.kill()))
    timer.daemon = True
    timer.start()
    job = function.__module__, function.__qualname__, arguments, timeout, memory_gb
    try:
        pickle.dump(job, worker.stdin)
        worker.stdin.flush()
        done, result = pickle.load(worker.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        _close(worker)
        if late.is_set():
            raise RuntimeError(f"took longer than {timeout:g} s") from error
        ended = f"its process ended with code {worker.returncode}"
        if memory_gb and worker.returncode < 0:  # not every library says it
            ended += f", perhaps for want of memory: {_more_than(memory_gb)}"
        raise RuntimeError(ended) from error
    except BaseException:  # Ctrl-C: the worker is in the middle of a job
        worker.kill()
        _close(worker)
        raise
    finally:
        timer.cancel()
        timer.join()
    # Its time ran out while it answered, or it may still hold what was too much.
    if late.is_set() or done is None:
        _close(worker)
    else:
        _idle.put(worker)
    if not done:
        raise RuntimeError(result)
    return result


def close_idle() -> None:
    """End the workers that wait for a job."""
    while not _idle.empty():
        _close(_idle.get_nowait())


def _close(worker):
    for pipe in (worker.stdin, worker.stdout):
        try:
            pipe.close()
        except OSError:  # what was not written will not be read
            pass
    worker.wait()


def end_if_orphaned() -> None:
    """End this process where it is a worker whose parent has been killed.

    The parent's folders are nobody's now: another run may hold them.
    """
    if _parent is not None and os.getppid() != _parent:
        os._exit(1)


def _watch_parent():
    while True:
        end_if_orphaned()
        time.sleep(0.5)


def _serve(parent):
    """What a worker does: answer jobs until its parent is gone."""
    global _parent
    _parent = parent
    threading.Thread(target=_watch_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    while True:
        try:
            module, name, arguments, timeout, memory_gb = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        # Also when the parent, and so its timer, has been killed.
        if timeout and timeout + 5 < threading.TIMEOUT_MAX:
            faulthandler.dump_traceback_later(timeout + 5, exit=True, file=sys.stderr)
        try:
            if sys.platform == "linux":  # elsewhere it is not there or not kept
                _limit_memory(memory_gb)
            answer = True, getattr(import_module(module), name)(*arguments)
        except MemoryError:
            answer = None, f"MemoryError: {_more_than(memory_gb)}"
        except Exception as error:  # told to the parent, which says what it was
            answer = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
        faulthandler.cancel_dump_traceback_later()
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent has been killed meanwhile
            return


def _limit_memory(memory_gb):
    import resource  # not on Windows

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(memory_gb * 1e9) if memory_gb and memory_gb < math.inf else most
    if most != resource.RLIM_INFINITY:  # not to be raised
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _more_than(memory_gb):
    """What to do about a job that has got no more memory."""
    if not memory_gb or memory_gb == math.inf:
        return "needs more memory than there is"
    return f"needs more than {memory_gb:.3g} GB: give a larger memory_gb"
