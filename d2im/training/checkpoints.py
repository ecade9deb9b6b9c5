"""A run's checkpoint: the files of one folder, which is always a whole one's.

    config.json, model.safetensors        the model that `from_pretrained` loads: the
                                          best by validation, else the last one
    last.safetensors                      the last one's weights, where it is not that
    optimizer.safetensors                 the optimiser's tensors
    metrics.csv                           the records so far; more rows follow it
    training.json                         step, settings; each file's size and checksum

A new one is written into a hidden folder within, which carries a file of its own name
as a mark. With its training.json, which comes last, it is valid; then its files take
the old ones' places one by one, and that training.json again comes last. Whatever stops
a writer, a kill or a full disk: the next training finishes a valid one's moves and
deletes one that is not. Nothing else in the folder, or beside it, is touched.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ..data.locks import hold
from ..networks import UNSEALED, seal_weights
from .records import read_records, set_aside, write_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

FILES = (  # in the order in which they take their places
    "config.json",
    "model.safetensors",
    "last.safetensors",
    "optimizer.safetensors",
    "metrics.csv",
    "training.json",
)
HIDDEN = ".d2im-"  # begins the names of the folders of new checkpoints


@contextmanager
def checkpoint_folder(out: Path) -> Iterator[int]:
    """Hold a folder for one training; what a killed one left there is finished.

    Args: out: Path of the folder; it is made. Yields: the checkpoint's step, or 0.
    Raises: ValueError: another training holds it, its checkpoint is damaged, or files
            there are of no checkpoint and training would replace them.
        OSError: it cannot be made, or what was left not be moved.
    """
    with _told(out):
        out.mkdir(parents=True, exist_ok=True)
    with hold(out, "training"):
        with _told(out):
            for stage in out.glob(HIDDEN + "*"):
                if (stage / stage.name).is_file() and not stage.is_symlink():
                    _finish(out, stage)
            set_aside(out)
        owned = _owned(out)
        there = [name for name in FILES if os.path.lexists(out / name)]
        others = [x for x in there if x not in owned or (out / x).is_dir()]
        if others:
            raise ValueError(
                f"{out} holds {', '.join(others)}, which training would replace, but "
                "of no checkpoint: move what is yours, or name another folder"
            )
        yield _read_state(out)["step"] if owned else 0


def try_saving(out: Path, model: nn.Module, copies: int) -> None:
    """Write and exchange files in a folder, before a step is spent.

    Args: out: folder. model: to be trained.
        copies: how many times its weights there has to be room for.
    Raises: OSError: it cannot be written to, or has no room.
    """
    size = copies * sum(tensor.nbytes for tensor in model.state_dict().values())
    with _told(out):
        stage = _new_stage(out)
        try:
            with open(stage / "trial", "wb") as file:
                _reserve(file, size)
            os.replace(stage / "trial", stage / stage.name)
            if (out / "training.json").exists():  # by its like
                shutil.copyfile(out / "training.json", stage / "trial")
                os.replace(stage / "trial", stage / "training.json")
            _finish(out, stage)
        finally:
            with suppress(OSError):
                _discard(stage)


def on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies of named tensors in main memory.

    From a GPU they come over in one piece a type: each piece waits for the GPU's turn,
    which other trainings there may hold.
    """
    kinds, copies = {}, {}
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu":
            copies[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        else:
            kinds.setdefault(tensor.dtype, []).append(name)
    for names in kinds.values():
        flat = torch.cat([tensors[name].detach().reshape(-1) for name in names]).cpu()
        parts = flat.split([tensors[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            copies[name] = part.reshape(tensors[name].shape).clone()
    return copies


def save_checkpoint(
    out: Path,
    model: nn.Module,
    best: dict[str, Tensor] | None,
    optimizer: torch.optim.Optimizer,
    records: list[dict],
    settings: dict,
) -> None:
    """Write a checkpoint, whose files then take the places of the last one's.

    Args: out: folder. model: its weights are the last ones.
        best: state dict of the best model by validation, or None.
        optimizer: of the model. records: of all steps so far.
        settings: dict; a run that goes on has to have the same.
    Raises: OSError: it could not be written; the checkpoint before stays.
    """
    step, stage, valid = records[-1]["step"], None, False
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = _new_stage(out)
        slots = optimizer.state_dict()["state"]
        moments = {f"{k}.{x}": slot[x] for k, slot in slots.items() for x in slot}
        last = _to_save(model.state_dict())
        tensors = {
            "optimizer.safetensors": _to_save(moments),
            "model.safetensors": last if best is None else best,
        }
        if best is not None:
            tensors["last.safetensors"] = last
        sums = {}
        with ThreadPoolExecutor(1) as pool:  # sums up one while the next is written
            for name, values in tensors.items():
                known = UNSEALED if name == "model.safetensors" else None
                save_file(values, stage / name, known)
                sums[name] = pool.submit(_sealed, stage / name)
            config = json.dumps(model.settings, sort_keys=True, indent=2)
            # as save_pretrained does
            (stage / "config.json").write_text(config, encoding="utf-8")
            write_records(stage / "metrics.csv", records)
            for name in ("config.json", "metrics.csv"):
                sums[name] = pool.submit(_checksum, stage / name)
        files = {name: found.result() for name, found in sums.items()}
        state = {"step": step, "settings": settings, "files": files}
        (stage / "trial").write_text(json.dumps(state, indent=1), encoding="utf-8")
        os.replace(stage / "trial", stage / "training.json")
        valid = True
    except (OSError, SafetensorError) as error:
        known = (out / "training.json").exists()
        kept = f"the last good one is in {out}" if known else "there is none yet"
        raise OSError(
            f"cannot write the checkpoint of step {step} ({error}); {kept}: make room "
            "and train on"
        ) from error
    finally:
        if stage and not valid:
            with suppress(OSError):
                _discard(stage)
    try:
        _finish(out, stage)
    except OSError as error:
        raise OSError(
            f"the checkpoint of step {step} is whole in {stage}, but its files cannot "
            f"take their places in {out} ({error}): see what holds them and train on"
        ) from error


def load_checkpoint(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict,
    free: Sequence[str] = ("checkpoint_every",),
) -> tuple[list[dict], dict | None]:
    """Put a checkpoint's weights and optimiser back.

    Args: out: folder. model, optimizer: filled in place.
        settings: of the run that goes on. free: those that may be others now.
    Returns: the records so far, and the best model's state dict or None.
    Raises: ValueError: it is damaged, of another model or of other settings.
    """
    state = _read_state(out)
    step, trained, files = state["step"], state["settings"], state.get("files", {})
    name = ""
    try:
        for name in files:
            _compare(out / name, files[name])
        name = "metrics.csv"
        if name in files and (out / name).stat().st_size > files[name]["size"]:
            os.truncate(out / name, files[name]["size"])  # later rows
        # Read, not mapped: a mapped file cannot be replaced on Windows.
        name = "optimizer.safetensors"
        slots = _slots(load((out / name).read_bytes()))
        name = "model.safetensors"
        weights, best = load((out / name).read_bytes()), None
        name = "last.safetensors"
        if name in files or (not files and (out / name).is_file()):
            weights, best = load((out / name).read_bytes()), weights
        name = "metrics.csv"
        records = read_records(out)
        steps = [record["step"] for record in records]
        if len(steps) != step or steps != list(range(1, len(steps) + 1)):
            raise ValueError(f"not the rows of {step} steps, as training.json says")
        if not all("loss" in record for record in records):
            raise ValueError("a row without a loss")
        scores = [r.get("validation", math.nan) for r in records]
        lowest = min((x for x in scores if math.isfinite(x)), default=scores[-1])
        name = "last.safetensors"
        if best is None and lowest < scores[-1]:
            raise ValueError("not there, but the best model is not the last one")
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise _damaged(out, name, error) from error
    # What came later was off, 0, in an older run, or as here.
    trained = dict.fromkeys(settings, 0) | {"learn": "all"} | trained
    other = [k for k in settings if k not in free and trained[k] != settings[k]]
    if other:
        raise ValueError(
            f"the checkpoint in {out} was trained with other settings "
            f"({', '.join(other)}): choose another folder, or delete this one"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # names or sizes differ
        raise ValueError(f"the checkpoint in {out} is of another model") from error
    groups = optimizer.state_dict()["param_groups"]
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = {
        index: {"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape}
        for index, p in enumerate(learned)
        if p.requires_grad
    }
    found = {i: {k: v.shape for k, v in slot.items()} for i, slot in slots.items()}
    if found != wanted:
        raise _damaged(out, "optimizer.safetensors", "not the model's moments")
    if {float(slot["step"]) for slot in slots.values()} != {step}:
        wrong = f"of another step than training.json, which says {step}"
        raise _damaged(out, "optimizer.safetensors", wrong)
    for index, slot in slots.items():  # laid out as the weights: a fused step wants it
        for name in ("exp_avg", "exp_avg_sq"):
            slot[name] = torch.empty_like(learned[index]).copy_(slot[name])
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return records, best


def _to_save(tensors):
    """Tensors as safetensors takes them; on a CPU they need not be copied for it."""
    if any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return on_host(tensors)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _slots(tensors):
    """The optimiser's tensors by parameter and name."""
    slots = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = value
    return slots


def _damaged(out, name, why):
    return ValueError(
        f"the checkpoint in {out} is damaged: {name}: {why}. Put the file back from a "
        "copy, or train anew in another folder"
    )


def _read_state(out):
    """What training.json says: step, settings and, but of an old one, files."""
    try:
        state = json.loads((out / "training.json").read_text(encoding="utf-8"))
        files = state.get("files", {})
        step, settings = state["step"], state["settings"]
        if not (isinstance(step, int) and isinstance(settings, dict)):
            raise ValueError("no step or no settings")
        if not files.keys() <= set(FILES):
            raise ValueError("files that are not a checkpoint's")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(out, "training.json", repr(error)) from error
    except RecursionError as error:
        raise _damaged(out, "training.json", "brackets without end") from error
    return state


def _owned(out):
    """The names of the files that the checkpoint in a folder consists of."""
    if not os.path.lexists(out / "training.json"):
        return set()
    return {*_read_state(out).get("files", FILES), "training.json"}


def _checksum(path, most=math.inf):
    """The size and the CRC-32 of a file, or of its first bytes."""
    found = {"size": 0, "crc32": 0}
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(min(1 << 17, most - found["size"])):
            found["size"] += len(piece)
            found["crc32"] = zlib.crc32(piece, found["crc32"])
    return found


def _sealed(path):
    """The same of a file that is to carry a checksum of its own, if it is."""
    seal_weights(path)
    return _checksum(path)


def _compare(path, expected):
    grows = path.name == "metrics.csv"
    found = _checksum(path, expected["size"] if grows else math.inf)
    if found["size"] != expected["size"]:
        raise ValueError(f"{found['size']} bytes, not {expected['size']}")
    if found["crc32"] != expected["crc32"]:
        raise ValueError("its content is another one than was written")


def _new_stage(out):
    """A hidden folder in a folder, with our mark: a file of its own name."""
    stage = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=out))
    says = "A checkpoint that is being written. The next training here clears it up.\n"
    try:
        (stage / stage.name).write_text(says, encoding="utf-8")
    except OSError:  # of a full disk, which many may come to
        _discard(stage)
        raise
    return stage


def _discard(stage):
    """Delete a hidden folder of ours; the mark is the last file to go."""
    for name in (*FILES, "trial", stage.name):
        (stage / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else
        stage.rmdir()


def _finish(out, stage):
    """Move a valid checkpoint's files to their places, and clear up.

    Cut short at any point and called again, it comes to the same.
    """
    if (stage / "training.json").exists():
        for name in _owned(out) - _owned(stage):
            (out / name).unlink(missing_ok=True)
        for name in FILES:
            if (stage / name).exists():
                os.replace(stage / name, out / name)
    _discard(stage)


def _reserve(file, size):
    """Take room on the disk for a file, or raise OSError."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    if shutil.disk_usage(Path(file.name).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _told(out):
    """Say of an OSError what could not be done, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write checkpoints to {out} ({error}): make room there, or name "
            "another folder"
        ) from error
