"""The training loop: L = L_B + L_sdf + λ L_lap, a record a step, exact resume.

The rivals and the camera network run in the same loop, each with its own loss. A batch
is a function of (seed, step) alone, so what a run must keep to go on bit for bit is the
weights, the optimiser and the generators' states; they stand in one folder:

    config.json, model.safetensors        the model, as `save_pretrained` writes it
    optimizer.safetensors, training.json  the optimiser's tensors; step and settings
    metrics.csv                           the records so far
"""

import csv
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from . import losses
from .camera import project
from .dataset import ShapeDataset
from .fields import displaced_sdf
from .networks import DISN, SDF_SCALE, CameraNet, D2IMNet

DISN_NEAR = 0.01  # world units: nearer points weigh more in DISN's loss


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run; the defaults suit the small preset.

    The paper: rate 5e-5, batch 16, 400 epochs, weight decay 1e-5, λ = 1.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 2e-3  # peak: after warm-up, before the cosine's fall
    warmup_steps: int = 50
    weight_decay: float = 1e-5
    clip_norm: float = 100.0  # for a bad step only: at 1, learning took a third longer
    laplacian_weight: float = 1.0  # λ
    laplacian_form: str = "transformed"  # or "image"
    seed: int = 0
    checkpoint_every: int = 200


def batch_losses(model, batch, config):
    """The loss terms of one batch, unweighted.

    Args:
        model: D2IMNet, IMNet, DISN or CameraNet. config: TrainingConfig.
        batch: collated items of ShapeDataset on the model's device.

    Returns:
        dict of scalars: base, sdf, laplacian; of IMNet base, of DISN sdf alone; of
        CameraNet camera.
    """
    points, cameras, target = batch["points"], batch["camera"], batch["sdf"]
    if isinstance(model, CameraNet):
        return {"camera": losses.camera_loss(model(batch["image"]), cameras, points)}
    code, features = model.encode(batch["image"])
    uv, camera_points = project(points, cameras)
    scaled = target * SDF_SCALE
    if isinstance(model, DISN):
        field, near = model.decode(code, features, points, uv), target.abs() < DISN_NEAR
        return {"sdf": losses.near_loss(field, scaled, near)}
    base = model.base_decoder(code, points)  # (B, P), scaled
    terms = {"base": losses.base_loss(base, scaled)}
    if not isinstance(model, D2IMNet):
        return terms
    displacement = model.displacement_decoder(features)  # (B, 2, H, W), scaled
    # P_F: the true SDF falls along the camera's z axis (third row of the rotation)
    front = (batch["gradients"] * cameras[:, None, 6:9]).sum(-1) < 0
    displaced = displaced_sdf(base, displacement, uv, front)
    terms["sdf"] = losses.sdf_loss(displaced, scaled)
    predicted, lap_target, valid = losses.laplacian_maps(
        displacement[:, 0] / SDF_SCALE, batch, config.laplacian_form
    )
    chosen = losses.visible_near(
        uv, camera_points[..., 2], front, target, batch["mask"], batch["depth"]
    )
    terms["laplacian"] = losses.laplacian_loss(predicted, lap_target, valid, uv, chosen)
    return terms


def train(model, dataset, out, config=None, *, resume=True, workers=0):
    """Train a model; a generator that yields one record a step.

    Args:
        model: see `batch_losses`. dataset: ShapeDataset. config: TrainingConfig.
        out: folder of the checkpoint, see the module's docstring.
        resume: go on from the checkpoint in `out`, if there is one.
        workers: processes that read data.

    Yields:
        dict: step (from 1), loss, its terms, learning_rate, seconds.

    Raises:
        ValueError: the checkpoint is of another model, other data or settings, or
            damaged; `out` holds something else; several processes.
        FloatingPointError: the loss is no longer finite; names the step.
    """
    config = config or TrainingConfig()
    out = Path(out)
    if not out.exists() and _beside(out, ".old").exists():
        os.replace(_beside(out, ".old"), out)  # killed while they changed places
    known = (out / "training.json").is_file()
    if not known and out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds files that are no checkpoint, and training would replace the "
            "folder: name another one"
        )
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError("training runs in one process for now, not in several")
    torch.manual_seed(config.seed)
    optimizer = torch.optim.Adam(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    start, records = 0, []
    if resume and known:
        start = load_checkpoint(out, model, optimizer, config, dataset)
        records = read_records(out)
    # Not in channels_last: it is faster, but torch 2.13 crashes on a CPU in training
    # convolutions with few channels.
    model, optimizer = accelerator.prepare(model, optimizer)
    keys = _batch_keys(len(dataset), config, start)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=keys, num_workers=workers
    )
    model.train()
    for step, batch in enumerate(loader, start + 1):
        begun = time.perf_counter()
        batch = {k: v.to(accelerator.device) for k, v in batch.items()}
        terms = batch_losses(model, batch, config)
        weights = {"laplacian": config.laplacian_weight}  # the others weigh 1
        loss = sum(weights.get(name, 1) * term for name, term in terms.items())
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}: train anew with a lower "
                f"learning rate; the last checkpoint is in {out}"
            )
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        rate = config.learning_rate * _learning_rate_factor(step - 1, config)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        record = {
            "step": step,
            "loss": loss.item(),
            **{name: term.item() for name, term in terms.items()},
            "learning_rate": rate,
            "seconds": time.perf_counter() - begun,
        }
        records.append(record)
        if step % config.checkpoint_every == 0 or step == config.steps:
            save_checkpoint(out, model, optimizer, records, config, dataset)
        yield record
    model.eval()


def read_records(out):
    """The records of a run up to its last checkpoint, as dicts of numbers."""
    with open(Path(out) / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows]


def smoke_model(data, out):
    """Train the small preset for 20 steps on examples at 112 px, for a notebook."""
    torch.manual_seed(0)
    model = D2IMNet.preset("small")
    config = TrainingConfig(steps=20, batch_size=4, warmup_steps=5)
    dataset = ShapeDataset(data, None, points=512)
    list(train(model, dataset, out, config, resume=False))
    return model.eval()


def _learning_rate_factor(step, config):
    """Linear warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    rest = max(config.steps - config.warmup_steps, 1)
    done = min(max(0, step - config.warmup_steps) / rest, 1.0)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _batch_keys(count, config, start):
    """Keys (index, draw) of every batch: shuffled epochs, fixed by (seed, step)."""
    shuffled = {}
    for step in range(start, config.steps):
        keys = []
        for position in range(step * config.batch_size, (step + 1) * config.batch_size):
            epoch, place = divmod(position, count)
            if epoch not in shuffled:
                order = np.random.default_rng([config.seed, epoch]).permutation(count)
                shuffled = {epoch - 1: shuffled.get(epoch - 1), epoch: order}
            keys.append((int(shuffled[epoch][place]), epoch))
        yield keys


def _beside(out, suffix):
    return out.with_name(out.name + suffix)


def save_checkpoint(out, model, optimizer, records, config, dataset):
    """Write a checkpoint beside the last one, then change places with it.

    Args: as of `train`; records: of all steps so far.
    """
    fresh, old = _beside(out, ".new"), _beside(out, ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.save_pretrained(fresh)
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    save_file(tensors, fresh / "optimizer.safetensors")
    with open(fresh / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    state = {
        "step": records[-1]["step"],
        "config": asdict(config),
        "data": dataset.fingerprint(),
        "torch_random_state": torch.get_rng_state().numpy().tobytes().hex(),
    }
    (fresh / "training.json").write_text(json.dumps(state, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(fresh, out)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(out, model, optimizer, config, dataset):
    """Put a checkpoint's weights, optimiser and random state back.

    Args: as of `train`; model and optimizer are filled in place.

    Returns:
        The step that it was written after.

    Raises:
        ValueError: it is damaged, of another model, data or other settings.
    """
    try:
        state = json.loads((out / "training.json").read_text())
        trained = {**state["config"], "data": state["data"]}
        # Read, not mapped: a mapped file cannot be replaced on Windows.
        tensors = load((out / "optimizer.safetensors").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the checkpoint in {out} is damaged: {error}") from error
    now = {**asdict(config), "data": dataset.fingerprint()}
    other = [k for k, v in trained.items() if now.get(k) != v]
    if other := [k for k in other if k != "checkpoint_every"]:
        raise ValueError(
            f"the checkpoint in {out} was trained with other settings "
            f"({', '.join(other)}): choose another folder, or resume=False"
        )
    try:
        model.load_state_dict(type(model).from_pretrained(out).state_dict())
    except RuntimeError as error:  # names or sizes differ
        raise ValueError(f"the checkpoint in {out} is of another model") from error
    slots = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    random_state = bytearray.fromhex(state["torch_random_state"])
    torch.set_rng_state(torch.frombuffer(random_state, dtype=torch.uint8))
    return state["step"]
