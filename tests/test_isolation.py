import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2im.data import isolation
from d2im.data.isolation import close_idle, fair_memory_gb, run_isolated


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    close_idle()


def test_a_result_comes_back():
    assert run_isolated(divmod, 7, 3) == (2, 1)


def test_a_worker_serves_again_and_is_another_process():
    first = run_isolated(os.getpid)
    assert first == run_isolated(os.getpid) != os.getpid()


def test_an_error_comes_back_in_one_line():
    with pytest.raises(RuntimeError, match="FileNotFoundError: .*nowhere") as caught:
        run_isolated(os.listdir, "nowhere")
    assert "\n" not in str(caught.value)


def test_a_crash_ends_the_worker_alone():
    with pytest.raises(RuntimeError, match="ended with code 7"):
        run_isolated(os._exit, 7)
    assert run_isolated(os.getpid) != os.getpid()


def test_a_hanging_job_is_ended_at_its_time_limit():
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="longer than 1 s"):
        run_isolated(time.sleep, 600, timeout=1)
    assert time.perf_counter() - start < 30


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_job_that_eats_memory_is_refused_it():
    wanted = "MemoryError: needs more than 1 GB: give a larger memory_gb$"
    with pytest.raises(RuntimeError, match=wanted):
        run_isolated(bytes, 3_000_000_000, memory_gb=1)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_worker_that_ran_out_of_memory_does_not_serve_again():
    first = run_isolated(os.getpid)
    with pytest.raises(RuntimeError, match="MemoryError"):
        run_isolated(bytes, 3_000_000_000, memory_gb=1)
    assert run_isolated(os.getpid) != first


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_an_infinite_limit_is_none():
    run_isolated(os.getpid, memory_gb=1)
    resource = pytest.importorskip("resource")
    found = run_isolated(
        resource.getrlimit, resource.RLIMIT_DATA, memory_gb=float("inf")
    )
    assert found[0] == found[1]


def test_a_limit_that_the_system_does_not_know_is_left_out(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert fair_memory_gb(1) is None
    assert run_isolated(divmod, 7, 3, memory_gb=None) == (2, 1)


@pytest.mark.parametrize(
    "gigabytes, workers, share", [(8, 1, 4), (8, 2, 2), (8, 16, 1), (512, 8, 4)]
)
def test_workers_share_half_the_memory_between_one_and_four_gb(
    monkeypatch, gigabytes, workers, share
):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 10**9 // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.get)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(Path, "read_text", lambda *_: "max")
    assert fair_memory_gb(workers) == pytest.approx(share + 0.1)


def test_what_a_job_prints_does_not_get_among_the_answers():
    assert run_isolated(print, "hello") is None


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_memory_limit_ends_with_its_job():
    worker = run_isolated(os.getpid, memory_gb=1)
    resource = pytest.importorskip("resource")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    for limit in (1, 4, None):
        soft, _ = run_isolated(
            resource.getrlimit, resource.RLIMIT_DATA, memory_gb=limit
        )
        assert soft == (most if limit is None else limit * 1e9)
    assert run_isolated(os.getpid) == worker


@pytest.mark.parametrize("timeout", [float("inf"), 1e12])
def test_a_time_limit_beyond_a_lifetime_is_none(timeout):
    assert run_isolated(divmod, 7, 3, timeout=timeout) == (2, 1)


def late_note(path):
    """Write a file as an example is written: after a while, if it still may."""
    Path(path).with_suffix(".begun").touch()
    time.sleep(0.1)
    while os.getppid() == isolation._parent:
        time.sleep(0.01)
    isolation.end_if_orphaned()
    Path(path).touch()


def nap(path):
    Path(path).with_suffix(".begun").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.skipif(sys.platform == "win32", reason="a parent's number stays there")
@pytest.mark.parametrize("job", [late_note, nap])
def test_a_worker_ends_with_its_killed_parent_and_writes_nothing(tmp_path, job):
    code = "import sys; from d2im.data.isolation import run_isolated\n"
    code += f"from tests.test_isolation import {job.__name__} as job\n"
    code += f"run_isolated(job, {str(tmp_path / 'x.note')!r}, timeout=60)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
    )
    begun = tmp_path / "x.begun"
    while not begun.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.communicate(timeout=30)  # the worker has its end of the pipe, too
    assert not (tmp_path / "x.note").exists()
