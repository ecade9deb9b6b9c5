"""A run's folder: what is a user's stays, and a checkpoint is one whole."""

import gc
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from d2im import checkpoints
from d2im.data.dataset import ShapeDataset
from d2im.networks import D2IMNet
from d2im.training.checkpoints import FILES
from d2im.training.loop import TrainingConfig, train

from .conftest import TINY

CONFIG = TrainingConfig(steps=6, batch_size=2, warmup_steps=2, checkpoint_every=3)
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "killed.py"


@pytest.fixture(scope="module")
def data(tiny_data):
    return ShapeDataset(tiny_data, points=64)


def run(data, out, config=CONFIG, **options):
    torch.manual_seed(0)
    return train(D2IMNet(**TINY), data, out, config, **options)


def test_the_moments_come_back_in_the_weights_layout(data, tmp_path):
    config = replace(CONFIG, precision="bf16")  # channels last, as on a GPU
    list(islice(run(data, tmp_path, config), 3))
    loaded = []

    def load_state_dict(optimizer, state):
        loaded.append((optimizer.param_groups, state["state"]))
        return load(optimizer, state)

    load = torch.optim.Adam.load_state_dict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "load_state_dict", load_state_dict)
        list(run(data, tmp_path, config))
    ((groups, slots),) = loaded
    learned = [p for group in groups for p in group["params"]]
    last = [p.is_contiguous(memory_format=torch.channels_last) for p in learned]
    assert any(p.ndim == 4 and wide for p, wide in zip(learned, last, strict=True))
    for index, slot in slots.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert slot[name].stride() == learned[index].stride()


def steps(records):
    return [record["step"] for record in records]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run; to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    list(run(data, folder, validation=data))
    return folder


@pytest.fixture(scope="module")
def half(data, tmp_path_factory):
    """A run that was stopped after step 3; to be copied."""
    folder = tmp_path_factory.mktemp("half") / "run"
    list(islice(run(data, folder), 3))
    return folder


@pytest.fixture
def copy(half, tmp_path):
    return Path(shutil.copytree(half, tmp_path / "run"))


def tree(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# What is a user's


@pytest.mark.parametrize("name", ["run.old", "run.new", "run/.d2im-mine", "run/data"])
def test_a_users_folder_stays_whatever_its_name(data, copy, name):
    mine = copy.parent / name
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (mine / "model.safetensors").write_text("mine, too")
    before = tree(mine)
    assert steps(run(data, copy, resume=False)) == [1, 2, 3, 4, 5, 6]
    assert tree(mine) == before


def test_a_model_that_was_moved_aside_stays(data, copy):
    aside = copy.rename(copy.with_name("run.old"))
    before = tree(aside)
    list(run(data, copy, resume=False))
    assert tree(aside) == before


def test_a_folder_aside_is_not_taken_for_the_checkpoint(data, tmp_path):
    (tmp_path / "run.old").mkdir()
    (tmp_path / "run.old" / "thesis.txt").write_text("years of work")
    list(islice(run(data, tmp_path / "run"), 1))
    assert (tmp_path / "run.old" / "thesis.txt").exists()


def test_other_files_in_the_folder_stay(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    list(run(data, tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize("resume", [True, False])
def test_a_file_that_is_no_checkpoints_is_not_replaced(data, tmp_path, name, resume):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}.*no checkpoint"):
        next(run(data, tmp_path, resume=resume))
    assert (tmp_path / name).read_text() == "mine"


def test_another_programs_training_json_is_not_replaced(data, tmp_path):
    (tmp_path / "training.json").write_text('{"epochs": 3}')
    with pytest.raises(ValueError, match="damaged: training.json"):
        next(run(data, tmp_path, resume=False))
    assert (tmp_path / "training.json").read_text() == '{"epochs": 3}'


def test_a_file_that_the_checkpoint_does_not_list_is_not_replaced(data, copy):
    (copy / "last.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="holds last.safetensors"):
        next(run(data, copy, resume=False))


def test_a_file_list_that_leaves_the_folder_is_refused(data, copy):
    (copy.parent / "thesis.txt").write_text("mine")
    change_state(copy, lambda state: state["files"].update({"../thesis.txt": {}}))
    with pytest.raises(ValueError, match="damaged: training.json"):
        list(run(data, copy, resume=False))
    assert (copy.parent / "thesis.txt").exists()


def test_a_run_started_anew_replaces_only_with_its_first_checkpoint(data, copy):
    before = tree(copy)
    list(islice(run(data, copy, resume=False), 2))
    assert tree(copy) == before


def test_a_run_started_anew_drops_the_last_weights_of_the_one_before(
    data, finished, tmp_path
):
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    assert (out / "last.safetensors").exists()
    list(run(data, out, resume=False))
    assert {path.name for path in out.iterdir()} == {*FILES} - {"last.safetensors"}


def test_nothing_hidden_is_left(data, finished):
    assert {path.name for path in finished.iterdir()} == {*FILES}


# Kills

POINTS = {  # calls in a run's first two savings, whose place in them is counted
    "a checkpoint is written but not valid": ("replace", 8),
    "nothing is moved": ("replace", 9),
    "the model is moved, its optimizer not": ("replace", 11),
    "all but training.json is moved": ("replace", 14),
    "only the mark is left": ("unlink", 23),
}
KILLED = """
import os, runpy, sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]).parent))  # it shares what is beside it
killed = runpy.run_path(sys.argv[1])
killed["torch"].set_num_threads(1)
home, name, count = Path(sys.argv[2]), None, None
train, result = killed["train"], killed["result"]

def ended(*given):
    return os.waitpid(killed["in_a_fork"](*given), 0)[1]

def train_and_die(out, name, count):
    function, calls = getattr(os, name), iter(range(count))
    def dying(*given, **options):
        if next(calls, None) is None:
            os.kill(os.getpid(), 9)
        return function(*given, **options)
    setattr(os, name, dying)
    train(home / "data", out)

killed["prepare"](home / "data")
assert ended(train, home / "data", home / "whole") == 0
for name, count in POINTS:
    out = home / f"{name}-{count}"
    mine = out / ".d2im-mine" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    status = ended(train_and_die, out, name, count)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9
    ours = {path.name for path in out.iterdir() if path.name[0] == "."}
    same = ended(train, home / "data", out) == 0
    same = same and result(out) == result(home / "whole")
    hidden = [path.name for path in out.iterdir() if path.name[0] == "."]
    clear = hidden == [".d2im-mine"] and mine.read_text() == "mine"
    print(name, count, len(ours), same, clear)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_a_run_killed_in_an_exchange_goes_on_bit_for_bit(tmp_path):
    code = KILLED.replace("POINTS", str(list(POINTS.values())))
    command = [sys.executable, "-c", code, str(BENCHMARK), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    expected = [f"{name} {count} 3 True True" for name, count in POINTS.values()]
    assert done.stdout.splitlines() == expected, done.stderr


def test_a_hidden_folder_of_ours_without_a_valid_checkpoint_is_cleared(data, copy):
    stage = checkpoints._new_stage(copy)
    (stage / "model.safetensors").write_bytes(b"half of it")
    before, training = tree(copy), run(data, copy)
    next(training)
    assert not stage.exists()
    left = {k: v for k, v in tree(copy).items() if k.name != ".d2im-lock"}
    assert left == {k: v for k, v in before.items() if stage not in k.parents}
    training.close()


def test_a_copy_of_a_hidden_folder_of_ours_stays(data, copy):
    stage = checkpoints._new_stage(copy)
    stage.rename(copy / ".d2im-backup")
    list(islice(run(data, copy), 1))
    assert len(list((copy / ".d2im-backup").iterdir())) == 1


@pytest.mark.parametrize("when", ["replace", "save_file"])
def test_an_interrupted_saving_leaves_a_whole_checkpoint(data, copy, monkeypatch, when):
    training = run(data, copy)
    list(islice(training, 2))

    def interrupt(*given, **options):
        raise KeyboardInterrupt

    place = checkpoints if when == "save_file" else os
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, when, interrupt)
        next(training)
    assert {path.name for path in copy.iterdir()} == {*FILES} - {"last.safetensors"}
    assert steps(run(data, copy)) == [4, 5, 6]


def test_files_that_cannot_take_their_places_wait(data, copy, monkeypatch):
    training, replace = run(data, copy), os.replace
    list(islice(training, 2))

    def held(source, target):
        if Path(target) == copy / "optimizer.safetensors":  # open elsewhere, on Windows
            raise PermissionError(13, "in use")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", held)
        with pytest.raises(OSError, match=r"step 6 is whole in .*in use"):
            next(training)
    assert list(run(data, copy)) == []


# The lock


def test_a_second_training_of_a_process_is_refused(data, copy):
    first = run(data, copy)
    next(first)
    with pytest.raises(ValueError, match=f"another training .process {os.getpid()}"):
        next(run(data, copy))
    assert steps(first) == [5, 6]


def test_a_link_is_no_way_around_the_lock(data, copy):
    (copy.parent / "link").symlink_to(copy)
    first = run(data, copy)
    next(first)
    with pytest.raises(ValueError, match="another training"):
        next(run(data, copy.parent / "link"))
    first.close()


def fork(function):
    """Start a function, without torch, in a process of its own; its id."""
    with warnings.catch_warnings():  # of torch's threads, which a fork has not
        warnings.simplefilter("ignore", DeprecationWarning)
        if process := os.fork():
            return process
    try:
        function()
    finally:
        os._exit(1)


@pytest.fixture
def holder(copy):
    """A process that holds the folder, and forked another one that outlives it."""
    if not hasattr(os, "fork"):
        pytest.skip("forks")
    reading, writing = os.pipe()

    def hold():
        with checkpoints.checkpoint_folder(copy):
            worker = fork(lambda: time.sleep(100))
            os.write(writing, str(worker).encode())
            time.sleep(100)

    process = fork(hold)
    os.close(writing)
    worker = int(os.read(reading, 20))
    yield process
    for each in process, worker:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)
    os.close(reading)


def test_a_training_of_another_process_is_named(data, copy, holder):
    with pytest.raises(ValueError, match=f"process {holder} on .*{copy}"):
        next(run(data, copy))


def test_a_killed_process_holds_no_lock_though_its_workers_live_on(data, copy, holder):
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert (copy / ".d2im-lock").exists()
    assert steps(run(data, copy)) == [4, 5, 6]
    assert not (copy / ".d2im-lock").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forks_copy_of_a_training_saves_nothing(data, copy, monkeypatch):
    monkeypatch.setattr("d2im.training.loop.refresh_batch_norms", lambda *_: None)
    first, before = run(data, copy), (copy / "training.json").read_bytes()
    next(first)
    os.waitpid(fork(first.close), 0)
    assert (copy / "training.json").read_bytes() == before
    assert steps(first) == [5, 6]


def test_a_script_that_ends_amid_a_training_ends_quietly(tiny_data, tmp_path):
    script = f"""
        from d2im.data.dataset import ShapeDataset
        from d2im.networks import D2IMNet
        from d2im.training.loop import TrainingConfig, train
        data, config = ShapeDataset({str(tiny_data)!r}), TrainingConfig(batch_size=2)
        loop = train(D2IMNet(**{TINY}), data, {str(tmp_path / "run")!r}, config)
        next(loop)"""
    command = [sys.executable, "-c", inspect.cleandoc(script)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("how", ["closed", "collected", "failed"])
def test_a_training_that_ends_early_gives_its_folder_back(data, copy, how, monkeypatch):
    first = run(data, copy)
    next(first)
    if how == "closed":
        first.close()
    elif how == "failed":
        monkeypatch.setattr("d2im.training.loop._problem", lambda records: "bad")
        with pytest.raises(FloatingPointError):
            next(first)
        monkeypatch.undo()
    else:
        del first
        gc.collect()
    assert not (copy / ".d2im-lock").exists()
    assert steps(run(data, copy)) == ([4, 5, 6] if how == "failed" else [5, 6])


def test_a_file_that_is_no_lock_of_ours_is_not_written(data, copy):
    (copy / ".d2im-lock").write_text("mine")
    with pytest.raises(ValueError, match="rename it"):
        next(run(data, copy))
    assert (copy / ".d2im-lock").read_text() == "mine"


# Folders of every sort


def test_a_link_leads_to_its_folder(data, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    list(run(data, tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "training.json").is_file()


def test_a_dangling_link_gets_its_folder(data, tmp_path):
    (tmp_path / "link").symlink_to("disk")
    list(run(data, tmp_path / "link"))
    assert (tmp_path / "disk" / "training.json").is_file()


def test_the_working_folder_can_be_the_output(data, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    training = run(data, ".")
    next(training)
    monkeypatch.chdir(tmp_path)  # the run stays where it began
    list(training)
    assert os.listdir() == ["here"]
    assert (tmp_path / "here" / "training.json").is_file()


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system of its own."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder]
        if (
            not shutil.which("mount")
            or subprocess.run(command, capture_output=True).returncode
        ):
            pytest.skip("needs the right to mount")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_mount_point_can_be_the_output(data, mounted):
    out = mounted("size=4m")
    assert steps(run(data, out)) == [1, 2, 3, 4, 5, 6]
    assert list(run(data, out)) == []


def test_a_read_only_folder_is_told_before_a_step(data, copy, mounted):
    out = mounted("size=4m")
    shutil.copytree(copy, out, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", out], check=True)
    with pytest.raises(OSError, match="cannot write checkpoints to .*Read-only"):
        next(run(data, out))


def test_a_finished_run_can_be_read_from_a_read_only_folder(data, finished, mounted):
    out = mounted("size=4m")
    shutil.copytree(finished, out, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", out], check=True)
    assert list(run(data, out, validation=data)) == []


def test_a_disk_without_a_byte_keeps_no_folder_of_each_try(copy, monkeypatch):
    def full(path, *given, **options):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    before = sorted(copy.iterdir())
    with pytest.raises(OSError, match="No space left"):
        checkpoints._new_stage(copy)
    assert sorted(copy.iterdir()) == before


def test_a_full_disk_is_told_before_a_step(data, mounted):
    with pytest.raises(OSError, match="cannot write checkpoints to .*No space left"):
        next(run(data, mounted("size=64k")))


def test_a_disk_with_room_for_one_checkpoint_is_full_where_two_are_needed(
    data, finished, mounted
):
    size = sum(path.stat().st_size for path in finished.iterdir())
    out = mounted(f"size={size * 3 // 2}")
    with pytest.raises(OSError, match="No space left"):
        next(run(data, out, validation=data))
    assert os.listdir(out) == []


def test_a_file_in_the_folders_place_is_told(data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match="cannot write checkpoints to .*File exists"):
        next(run(data, tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"


def test_room_is_asked_for_where_a_system_cannot_reserve(copy, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.try_saving(copy, D2IMNet(**TINY), 10**15)
    assert {path.name for path in copy.iterdir()} == {*FILES} - {"last.safetensors"}


# One whole


def change_state(out, change):
    state = json.loads((out / "training.json").read_text())
    change(state)
    (out / "training.json").write_text(json.dumps(state))


def drop_rows(out):
    lines = (out / "metrics.csv").read_text().splitlines(keepends=True)
    (out / "metrics.csv").write_text("".join(lines[:-1]))


def drop_moments(out):
    tensors = load_file(out / "optimizer.safetensors")
    del tensors["3.exp_avg"]
    save_file(tensors, out / "optimizer.safetensors")


def empty_optimizer(out):
    save_file({}, out / "optimizer.safetensors")


def reshape_moments(out):
    tensors = load_file(out / "optimizer.safetensors")
    tensors["3.exp_avg"] = tensors["3.exp_avg"].flatten()[:-1].clone()
    save_file(tensors, out / "optimizer.safetensors")


def earlier_optimizer(out):
    tensors = load_file(out / "optimizer.safetensors")
    earlier = {k: v - 1 if k.endswith(".step") else v for k, v in tensors.items()}
    save_file(earlier, out / "optimizer.safetensors")


def lose_last(out):
    (out / "last.safetensors").unlink()


def flip(name):
    def change(out):
        content = bytearray((out / name).read_bytes())
        content[-5] ^= 1
        (out / name).write_bytes(content)

    return change


def cut(name):
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:-7])


def lose(name):
    return lambda out: (out / name).unlink()


LATER = {  # what a new checkpoint's sizes and checksums tell
    f"{change.__name__} {name}": (change(name), name)
    for change in (flip, cut, lose)
    for name in FILES[:-1]
    if name != "last.safetensors"
}


def far_step(out):
    change_state(out, lambda state: state.update(step=10**18))


def odd_row(out):
    lines = (out / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    lines[2] = ",".join(["inf", *lines[2].split(",")[1:]])
    assert columns[0] == "step"
    (out / "metrics.csv").write_text("\n".join(lines))


ALWAYS = {  # what the files tell of each other, in an old one, too
    "rows lost": (drop_rows, "metrics.csv"),
    "a parameter's moments gone": (drop_moments, "optimizer.safetensors"),
    "an empty optimiser": (empty_optimizer, "optimizer.safetensors"),
    "moments of another size": (reshape_moments, "optimizer.safetensors"),
    "a step that no list has room for": (far_step, "metrics.csv"),
    "an infinite step": (odd_row, "metrics.csv"),
    "an earlier optimiser": (earlier_optimizer, "optimizer.safetensors"),
    "a step of other rows": (
        lambda out: change_state(out, lambda state: state.update(step=2)),
        "metrics.csv",
    ),
}


def refused(data, out, name):
    pattern = rf"{re.escape(str(out))} is damaged: {name}.*another folder"
    before = tree(out)
    with pytest.raises(ValueError, match=pattern):
        list(run(data, out))
    assert tree(out) == before


@pytest.mark.parametrize("damage", LATER | ALWAYS)
def test_a_damaged_checkpoint_names_its_file(data, copy, damage):
    change, name = (LATER | ALWAYS)[damage]
    change(copy)
    refused(data, copy, name)


@pytest.mark.parametrize("damage", ALWAYS)
def test_an_old_checkpoint_that_cannot_be_is_damaged(data, copy, damage):
    change_state(copy, lambda state: state.pop("files"))
    change, name = ALWAYS[damage]
    change(copy)
    refused(data, copy, name)


def test_a_model_of_another_step_is_damaged(data, copy, finished):
    shutil.copy(finished / "last.safetensors", copy / "model.safetensors")
    refused(data, copy, "model.safetensors")


@pytest.mark.parametrize("old", [False, True])
def test_lost_last_weights_are_damage_where_the_best_are_others(data, tmp_path, old):
    out, rate = tmp_path / "run", 1.0  # such a rate overshoots
    config = TrainingConfig(
        steps=9, batch_size=2, warmup_steps=2, learning_rate=rate, checkpoint_every=1
    )
    list(islice(run(data, out, config, validation=data), 8))
    if old:
        change_state(out, lambda state: state.pop("files"))
    lose_last(out)
    with pytest.raises(ValueError, match="damaged: last.safetensors"):
        list(run(data, out, config, validation=data))


def test_a_checkpoint_without_checksums_goes_on_bit_for_bit(
    data, copy, finished, tmp_path
):
    change_state(copy, lambda state: state.pop("files"))
    list(run(data, copy))
    list(run(data, tmp_path / "whole"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (copy / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "", "{", '{"step": "3"}', "\xff"])
def test_a_damaged_training_json_is_one_clear_line(data, copy, text):
    (copy / "training.json").write_text(text, encoding="latin-1")
    refused(data, copy, "training.json")


@pytest.mark.parametrize(
    "text", ["step,loss\ninf,1", "loss\n1", "step\n1,2", "step\nx", "\xff"]
)
def test_records_that_are_none_are_named(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text + "\n", encoding="latin-1")
    with pytest.raises(ValueError, match=f"{tmp_path}/metrics.csv is damaged"):
        checkpoints.read_records(tmp_path)


def test_the_model_of_a_checkpoint_carries_its_checksum(copy):
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="another one than was written"):
        D2IMNet.from_pretrained(copy)
