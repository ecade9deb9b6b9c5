"""A run's checkpoint: one folder, written beside the last one, which it then replaces.

    config.json, model.safetensors        the model that `from_pretrained` loads: the
                                          best by validation, else the last one
    last.safetensors                      the last one's weights, where it is not that
    optimizer.safetensors, training.json  the optimiser's tensors; step and settings
    metrics.csv                           the records so far

Whatever stops a writer, a kill or a full disk, a whole checkpoint stays behind.
"""

import csv
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file


def find_checkpoint(out):
    """Whether a folder holds a checkpoint; a swap that was cut short is finished.

    Raises: ValueError: it holds something else, which training would replace.
    """
    old = out.with_name(out.name + ".old")
    if not out.exists() and old.exists():
        os.replace(old, out)
    known = (out / "training.json").is_file()
    if not known and out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds files that are no checkpoint, and training would replace the "
            "folder: name another one"
        )
    return known


def on_host(tensors):
    """Contiguous copies of named tensors in main memory.

    They come over in one piece a type: each piece waits for the GPU's turn, which
    other trainings there may hold.
    """
    kinds = {}
    for name, tensor in tensors.items():
        kinds.setdefault(tensor.dtype, []).append(name)
    copies = {}
    for names in kinds.values():
        flat = torch.cat([tensors[name].detach().reshape(-1) for name in names]).cpu()
        parts = flat.split([tensors[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            copies[name] = part.reshape(tensors[name].shape).clone()
    return copies


def save_checkpoint(out, model, best, optimizer, records, settings):
    """Write a checkpoint beside the last one, then change places with it.

    Args: out: folder. model: its weights are the last ones.
        best: state dict of the best model by validation, or None.
        optimizer: of the model. records: of all steps so far.
        settings: dict; a run that goes on has to have the same.
    Raises: OSError: it could not be written; the checkpoint before stays.
    """
    fresh, old = (out.with_name(out.name + suffix) for suffix in (".new", ".old"))
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        config = json.dumps(model._hub_mixin_config, sort_keys=True, indent=2)
        (fresh / "config.json").write_text(config)  # as save_pretrained does
        last = on_host(model.state_dict())
        save_file(last if best is None else best, fresh / "model.safetensors")
        if best is not None:
            save_file(last, fresh / "last.safetensors")
        tensors = {
            f"{index}.{name}": value
            for index, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        save_file(on_host(tensors), fresh / "optimizer.safetensors")
        with open(fresh / "metrics.csv", "w", newline="", encoding="utf-8") as file:
            names = dict.fromkeys(name for record in records for name in record)
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(records)
        state = {"step": records[-1]["step"], "settings": settings}
        (fresh / "training.json").write_text(json.dumps(state, indent=1))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        kept = f"the last good one is in {out}" if out.exists() else "there is none yet"
        step = records[-1]["step"]
        raise OSError(
            f"cannot write the checkpoint of step {step} ({error}); {kept}: make room "
            "and train on"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(fresh, out)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(out, model, optimizer, settings, free=("checkpoint_every",)):
    """Put a checkpoint's weights and optimiser back.

    Args: out: folder. model, optimizer: filled in place.
        settings: of the run that goes on. free: those that may be others now.
    Returns: the records so far, and the best model's state dict or None.
    Raises: ValueError: it is damaged, of another model or of other settings.
    """
    try:
        state = json.loads((out / "training.json").read_text())
        trained = dict(state["settings"])
        # Read, not mapped: a mapped file cannot be replaced on Windows.
        tensors = load((out / "optimizer.safetensors").read_bytes())
        weights, best = load((out / "model.safetensors").read_bytes()), None
        if (out / "last.safetensors").is_file():
            weights, best = load((out / "last.safetensors").read_bytes()), weights
        records = read_records(out)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the checkpoint in {out} is damaged: {error}") from error
    # A loss term that came later was off, 0, in an older run.
    other = [k for k in settings if k not in free and trained.get(k, 0) != settings[k]]
    if other:
        raise ValueError(
            f"the checkpoint in {out} was trained with other settings "
            f"({', '.join(other)}): choose another folder, delete this one, or take "
            "resume=False"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # names or sizes differ
        raise ValueError(f"the checkpoint in {out} is of another model") from error
    slots = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return records, best


def read_records(out):
    """The records of a run up to its last checkpoint, as dicts of numbers."""
    with open(Path(out) / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    return [{**row, "step": int(row["step"])} for row in rows]
