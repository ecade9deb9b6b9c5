"""The training loop: L = L_B + L_sdf + λ L_lap, a record a step, exact resume.

The rivals and the camera network run in the same loop, each with its own loss. A batch
is a function of (seed, step) alone, so what a run must keep to go on bit for bit is the
weights and the optimiser, see `checkpoints`. Several processes, started by torchrun,
share each batch and do what one would do with it, see `distributed`.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from . import losses
from .camera import project
from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from .dataset import ShapeDataset
from .distributed import average_gradients, mean_over_processes, share_batch_norms
from .fields import displaced_sdf
from .networks import DISN, SDF_SCALE, CameraNet, D2IMNet
from .resident import ResidentShapes

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
    precision: str = "float32"  # or "bf16": matrix products alone, losses stay float32
    compile: bool = False  # torch.compile: pays on a GPU, after a minute
    seed: int = 0
    checkpoint_every: int = 200  # steps; also between validations


def batch_losses(model, batch, config):
    """The loss terms of one batch, unweighted.

    Args: model: D2IMNet, IMNet, DISN or CameraNet. config: TrainingConfig.
        batch: collated items of ShapeDataset on the model's device.
    Returns: dict of scalars: base, sdf, laplacian; of IMNet base, of DISN sdf alone;
        of CameraNet camera.
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
    terms["laplacian"] = losses.laplacian_loss(
        predicted, lap_target, valid, uv, chosen, mean_over_processes
    )
    return terms


def train(model, dataset, out, config=None, *, validation=None, resume=True, **reading):
    """Train a model; a generator that yields one record a step.

    Args:
        model: see `batch_losses`. dataset: ShapeDataset. config: TrainingConfig.
        out: folder of the checkpoint, see `checkpoints`.
        validation: ShapeDataset, scored with every checkpoint; the best model is kept.
        resume: go on from the checkpoint in `out`, if there is one.
        reading: workers, a number of processes that read data; resident, True to keep
            the data on the device, which None does on a GPU where they fit.

    Yields:
        dict: step (from 1), loss, its terms, learning_rate, seconds, and validation
        (the loss there) with a checkpoint.

    Raises:
        ValueError: the checkpoint is of another model, other data or settings, or
            damaged; `out` holds something else; the batch has no equal shares.
        FloatingPointError: the loss is not finite any more, or grows; names the step.
        OSError: a checkpoint could not be written; the one before stays.
    """
    config, out = config or TrainingConfig(), Path(out)
    state = PartialState(cpu=not torch.cuda.is_available())
    device, processes = state.device, state.num_processes
    if config.batch_size % processes:
        shares = f"no equal shares for {processes} processes"
        raise ValueError(f"a batch of {config.batch_size} has {shares}")
    known = find_checkpoint(out)
    state.wait_for_everyone()
    model.to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    settings = {**asdict(config), "data": dataset.fingerprint()}
    records, best = [], None
    if resume and known:
        records, best = load_checkpoint(out, model, optimizer, settings)
    share_batch_norms(model)
    if device.type == "cuda":  # on a CPU torch 2.13 crashes where channels are few
        model.to(memory_format=torch.channels_last)
    step_losses = torch.compile(batch_losses) if config.compile else batch_losses
    every = _batch_keys(len(dataset), config, len(records))
    keys = (batch_keys[state.process_index :: processes] for batch_keys in every)
    for batch in _batches(dataset, keys, device, **reading):
        begun, step = time.perf_counter(), len(records) + 1
        model.train()
        with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
            terms = step_losses(model, batch, config)
        loss = total_loss(terms, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        rate = config.learning_rate * _learning_rate_factor(step - 1, config)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        values = torch.stack([loss, *terms.values()]).detach()
        values = mean_over_processes(values).tolist()  # the one wait for the device
        record = {"step": step, **dict(zip(["loss", *terms], values, strict=True))}
        record |= {"learning_rate": rate, "seconds": time.perf_counter() - begun}
        records.append(record)
        if problem := _problem(records):
            raise FloatingPointError(
                f"{problem} at step {step}: train anew with a lower learning rate; "
                f"the last checkpoint is in {out}"
            )
        if step % config.checkpoint_every == 0 or step == config.steps:
            if validation is not None:
                scored = [r["validation"] for r in records if "validation" in r]
                record["validation"] = validation_loss(model, validation, config)
                if record["validation"] < min(scored, default=math.inf):
                    best = {k: v.cpu().clone() for k, v in model.state_dict().items()}
            if state.is_main_process:
                save_checkpoint(out, model, best, optimizer, records, settings)
            state.wait_for_everyone()
        yield record
    model.eval()


def total_loss(terms, config):
    """L: the sum of the terms of `batch_losses`, of which only L_lap has a weight."""
    weights = {"laplacian": config.laplacian_weight}
    return sum(weights.get(name, 1) * term for name, term in terms.items())


@torch.no_grad()
def validation_loss(model, dataset, config):
    """The mean of `total_loss` over a ShapeDataset, each shape with one fixed draw."""
    model.eval()
    device = next(model.parameters()).device
    size, keys = config.batch_size, [(index, 0) for index in range(len(dataset))]
    parts = [keys[k : k + size] for k in range(0, len(keys), size)]
    total = 0.0
    for batch in _batches(dataset, parts, device, resident=False):
        loss = total_loss(batch_losses(model, batch, config), config)
        total += loss * len(batch["image"])
    return float(total) / len(keys)


def _batches(dataset, keys, device, workers=0, resident=None):
    """Batches of lists of keys on a device, drawn there or by a loader."""
    if resident or (resident is None and device.type == "cuda"):
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        try:
            shapes = ResidentShapes(dataset, device, 0.7 * free)
        except ValueError:
            if resident:
                raise
        else:
            yield from map(shapes.batch, keys)
            return
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=keys, num_workers=workers
    )
    for batch in loader:
        yield {name: value.to(device) for name, value in batch.items()}


def _problem(records, window=100, factor=5.0):
    """What is wrong with the losses so far, or None.

    A loss diverges when its mean over a window is many times the lowest mean before.
    """
    if not math.isfinite(records[-1]["loss"]):
        return f"the loss is {records[-1]['loss']}"
    if len(records) % window == 0:
        means = np.reshape([r["loss"] for r in records], (-1, window)).mean(1)
        if means[-1] > factor * means.min():
            return f"the loss diverges ({means[-1]:.3g} after {means.min():.3g})"
    return None


def smoke_model(data, out):
    """Train the small preset for 20 steps at the examples' size, for a notebook."""
    torch.manual_seed(0)
    dataset = ShapeDataset(data, None, points=512)
    size = dataset.example(0)["image_0"].shape[-1]
    model = D2IMNet.preset("small", image_size=size)
    config = TrainingConfig(steps=20, batch_size=4, warmup_steps=5)
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
