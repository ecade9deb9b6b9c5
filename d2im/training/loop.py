"""The training loop: L = L_B + L_sdf + λ L_lap, a record a step, exact resume.

The rivals and the camera network run in the same loop, each with its own loss. A batch
is a function of (seed, step) alone, so what a run must keep to go on bit for bit is the
weights and the optimiser, see `checkpoints`. They are saved every few minutes, when the
run is interrupted, and at its end. Several processes, started by torchrun,
share each batch and do what one would do with it, see `distributed` (but for patches,
which come from the process's own pictures). On one GPU with its data there a step is
recorded and replayed, see `replay`.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import warnings
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from ..data.dataset import ShapeDataset
from ..networks import D2IMNet
from .checkpoints import (
    checkpoint_folder,
    load_checkpoint,
    on_host,
    save_checkpoint,
    try_saving,
)
from .depthwise import quicken
from .distributed import average_gradients, mean_over_processes, share_batch_norms
from .objectives import NO_COARSE, batch_losses
from .records import append_records
from .replay import BLOCK, ReplayedStep
from .resident import ResidentShapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

REFRESH = 256  # pictures of which a checkpoint's batch norms take their statistics
# What of a D2IMNet learns alone, the encoder first, where `learn` names it.
PARTS = {"base": ("code_encoder", "base_decoder", "local_decoder")}
PARTS["maps"] = "image_encoder", "displacement_decoder"
PATIENCE = 1.0  # seconds after a Ctrl-C from which another one ends a step that hangs
SHOW_SECONDS = 3.0  # between the rows that metrics.csv gets while a run trains
# Settings that a run may change when it goes on: when it is looked at, and how far it
# goes. (The paper trains on at another rate in the same way.)
FREE = ("checkpoint_every", "save_minutes", "steps", "warmup_steps")


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
    base_quantile: float = 0.0  # of L_B, see `losses.base_loss`
    visible_weight: float = 0.0  # of L_vis, which the paper does not have
    relief_weight: float = 0.0  # of L_rel, for L_sdf and L_vis; base learns F_coarse
    patch_share: float = 0.0  # of pictures with another's patch in them; with L_rel
    laplacian_form: str = "transformed"  # or "image"
    learn: str = "all"  # or "base", "maps" alone: of a D2IMNet that has two encoders
    precision: str = "float32"  # or "bf16": matrix products alone, losses stay float32
    compile: bool = False  # torch.compile: pays on a GPU, after a minute
    seed: int = 0
    checkpoint_every: int = 200  # steps; also between validations
    save_minutes: float = 5.0  # at most so long between checkpoints

    def __post_init__(self):
        for name, least in {"steps": 0, "batch_size": 1, "checkpoint_every": 1}.items():
            if getattr(self, name) < least:
                wrong = f"{name} must be {least} or more, not {getattr(self, name)}"
                raise ValueError(wrong)
        if self.patch_share and not self.relief_weight:
            raise ValueError("patch_share needs relief_weight: L_rel knows their truth")
        if not 0 <= self.base_quantile < 1:
            wrong = f"base_quantile must be in [0, 1), not {self.base_quantile}"
            raise ValueError(wrong)
        if self.learn not in ("all", *PARTS):
            raise ValueError(f"learn must be all, base or maps, not {self.learn!r}")
        if self.learn == "maps" and not self.relief_weight:
            raise ValueError("maps alone need relief_weight: L_sdf needs the base, too")
        if self.precision not in ("float32", "bf16"):
            wrong = f"precision must be 'float32' or 'bf16', not {self.precision!r}"
            raise ValueError(wrong)
        if not self.save_minutes > 0:
            raise ValueError(f"save_minutes must be above 0, not {self.save_minutes}")


def train(
    model: nn.Module,
    dataset: ShapeDataset,
    out: str | Path,
    config: TrainingConfig | None = None,
    *,
    validation: ShapeDataset | None = None,
    resume: bool = True,
    workers: int = 0,
    resident: bool | ResidentShapes | None = None,
) -> Iterator[dict]:
    """Train a model; a generator that yields one record a step.

    Args: model: see `batch_losses`. dataset: ShapeDataset. config: TrainingConfig.
        out: folder of the checkpoint, see `checkpoints`; this training's alone until
            the generator ends or is closed.
        validation: ShapeDataset, scored with every checkpoint; the best model is kept.
        resume: go on from the checkpoint in `out`, if there is one.
        workers: processes that read data, where they are not on the device.
        resident: True keeps the data on the device, which None does on a GPU where
            they fit; or ResidentShapes of the same shapes, which trainings may share.
    Yields: dict: step (from 1), loss, its terms, learning_rate, seconds, and, every
        `checkpoint_every` steps, validation (the loss there). Ctrl-C waits for the
        step's end, on a GPU for that of a block of steps; then, and when the generator
        is closed, the run is saved. A second Ctrl-C does not wait. A script that breaks
        its loop has to close it before it ends, as by `contextlib.closing`.
    Raises: ValueError: the checkpoint is of another model, other data or settings, or
            damaged; another training writes to `out`, or files there would be replaced
            that are not a checkpoint's; the batch has no equal shares; `learn` names a
            part of a model that has none.
        FloatingPointError: the loss is not finite any more, or grows; names the step.
        OSError: a checkpoint cannot be written, which is tried before the first step;
            the one before stays. Amid a run that is a warning, and tried again.
    """
    config = config or TrainingConfig()
    state = PartialState(cpu=not torch.cuda.is_available())
    if config.batch_size % state.num_processes:
        shares = f"no equal shares for {state.num_processes} processes"
        raise ValueError(f"a batch of {config.batch_size} has {shares}")
    has_parts = isinstance(model, D2IMNet) and model.code_encoder is not None
    if config.learn != "all" and not has_parts:
        wanted = "a D2IMNet with an encoder for its code alone, as 'mobile' and 'local'"
        raise ValueError(f"learn={config.learn!r} needs {wanted}")
    out = Path(os.path.realpath(out))  # where a link leads; "." as it is now
    with ExitStack() as stack:
        held = _by_main(state, stack.enter_context, checkpoint_folder(out))
        start = held if resume else 0
        if start < config.steps:
            parts = 3 + (validation is not None)  # weights, two moments, the best model
            several = config.steps > config.checkpoint_every  # the last one stays, too
            copies = parts * (2 if several and not held else 1)
            _by_main(state, try_saving, out, model, copies)
        if config.relief_weight and not dataset.knows_coarse():
            raise ValueError(NO_COARSE)
        run = _Training(model, dataset, out, config, state, validation, resident)
        run.replaces = held > start
        if start:
            run.resume()
        if start > config.steps:
            raise ValueError(f"the run in {out} has {start} steps, not {config.steps}")
        yield from run.go_on(workers)


def _by_main(state, function, *given):
    """What a function gives the main process, or its error, for every process."""
    found = [None, None]
    if state.is_main_process:
        try:
            found[0] = function(*given)
        except (OSError, ValueError) as error:
            found[1] = error
    result, error = broadcast_object_list(found)
    if error:
        raise error
    return result


class _Training:
    """A training's model, optimiser and data on their device, and its records so far.

    Args: as of `train`; state: accelerate's PartialState.
    """

    def __init__(self, model, dataset, out, config, state, validation, resident):
        self.model, self.dataset, self.out, self.config = model, dataset, out, config
        self.state, self.device, self.validation = state, state.device, validation
        self.settings = {**asdict(config), "data": dataset.fingerprint()}
        self.records, self.best = [], None  # the best model's weights by validation
        self.saved, self.shown = 0, 0  # how many records are in the folder
        self.settled = True  # the weights are those of the last record
        self.replaces = False  # another run's checkpoint, until this one has its first
        self.saved_at = self.shown_at = time.monotonic()
        self.process = os.getpid()
        on_gpu = self.device.type == "cuda"
        model.to(self.device)
        share_batch_norms(model)
        # On a CPU torch 2.13 crashes of few channels in float32, in bf16 of none.
        if on_gpu or config.precision == "bf16":
            model.to(memory_format=torch.channels_last)
        if not on_gpu:
            quicken(model)
        names = PARTS.get(config.learn, ())  # the other part has no moments
        learning = [part for name in names if (part := getattr(model, name, None))]
        learning = learning or [model]
        self.parameters = [*nn.ModuleList(learning).parameters()]
        self.optimizer = torch.optim.Adam(
            self.parameters,
            torch.tensor(config.learning_rate, device=self.device),
            weight_decay=config.weight_decay,
            capturable=on_gpu,
            fused=on_gpu,
        )
        self.losses = torch.compile(batch_losses) if config.compile else batch_losses
        self.shapes = _on_device(dataset, self.device, resident)
        self.held_out = validation
        if self.shapes and validation is not None:
            self.held_out = _on_device(validation, self.device, None) or validation

    def resume(self):
        """Go on from the folder's checkpoint."""
        given = self.out, self.model, self.optimizer, self.settings
        self.records, self.best = load_checkpoint(*given, FREE)
        self.saved = self.shown = len(self.records)

    def go_on(self, workers):
        """Take the steps that are left; yields their records."""
        # Closed, since an error that a notebook keeps would keep a loader's workers.
        with closing(self.steps(workers)) as steps:
            yield from self.records_of(steps)
        self.model.eval()

    def records_of(self, steps):
        """Count steps; where they end before the last one, save what was done."""
        while len(self.records) < self.config.steps:
            with _no_interrupt() as asked:  # amid a step the weights are half a step's
                try:
                    self.count(*next(steps))
                except RuntimeError:  # a loader's worker has heard Ctrl-C, too
                    if not asked:
                        raise
            if asked:
                self.leave(steps)
                raise KeyboardInterrupt
            try:
                yield self.records[-1]
            except BaseException:  # of the caller's loop, or its generator is closed
                self.leave(steps)
                raise

    def count(self, values, settled):
        """Keep a step's record, and the run where it is time to."""
        step, self.settled = len(self.records) + 1, settled
        self.records.append(record := {"step": step, **values})
        if problem := _problem(self.records):
            raise FloatingPointError(
                f"{problem} at step {step}: train anew with a lower learning rate; "
                f"the last checkpoint is in {self.out}"
            )
        is_last = step == self.config.steps
        scored = step % self.config.checkpoint_every == 0 or is_last
        if scored or (settled and self.is_due()):
            self.refresh()
            if scored and self.validation is not None:
                self.score(record)
            self.save(is_last)
        elif time.monotonic() - self.shown_at > SHOW_SECONDS:
            self.show()

    def refresh(self):
        """Let the batch norms' statistics be those of the weights of now."""
        some = islice(self.keys(0), max(1, REFRESH // self.config.batch_size))
        batches = _batches(self.shapes or self.dataset, list(some), self.device)
        refresh_batch_norms(self.model, batches, self.config.learn)

    def is_due(self):
        """Whether the last checkpoint is old; several processes ask now and then."""
        due = time.monotonic() - self.saved_at > 60 * self.config.save_minutes
        if self.state.num_processes > 1:
            due = len(self.records) % 20 == 0 and broadcast_object_list([due])[0]
        return due

    def show(self):
        """Add the last rows to metrics.csv, unless it is another run's."""
        if self.state.is_main_process and self.is_ours():
            with suppress(OSError):  # of a full disk; a checkpoint will say so
                append_records(self.out, self.records[self.shown :])
                self.shown = len(self.records)
        self.shown_at = time.monotonic()

    def save(self, must=True):
        """Save the run; where it need not be, a full disk is but a warning."""
        parts = self.model, self.best, self.optimizer, self.records, self.settings
        try:
            _by_main(self.state, save_checkpoint, self.out, *parts)
            self.saved = self.shown = len(self.records)
        except OSError as error:
            if must:
                raise
            warnings.warn(f"{error}; it goes on and tries again", stacklevel=2)
        self.saved_at = self.shown_at = time.monotonic()

    def is_ours(self):
        """Whether the folder's files are this run's, or there are none."""
        return bool(self.saved or not self.replaces)

    def leave(self, steps):
        """Save what has been done since the last checkpoint, without the others."""
        if not (self.state.is_main_process and self.is_ours()):
            return
        if sys.is_finalizing() or os.getpid() != self.process:
            return  # torch is half gone; or it is a fork's copy, and the run goes on
        while not self.settled:  # the block's other steps have been taken, too
            self.count(*next(steps))
        if self.saved < len(self.records):
            if self.state.num_processes == 1:  # several would wait for each other
                self.refresh()
            parts = self.model, self.best, self.optimizer, self.records, self.settings
            save_checkpoint(self.out, *parts)
            self.saved = len(self.records)

    def steps(self, workers):
        """What each step's record says of it, in the way that is fastest here."""
        start, processes = len(self.records), self.state.num_processes
        keys, about = self.keys(start), (self.optimizer, self.config, start)
        if _can_replay(self.shapes, self.device, processes):
            return _replayed_steps(self.update, self.shapes, keys, *about)
        batches = _batches(self.shapes or self.dataset, keys, self.device, workers)
        return _single_steps(self.update, batches, *about)

    def keys(self, start):
        """This process's part of every batch's keys, from a step on."""
        first, processes = self.state.process_index, self.state.num_processes
        for keys in _batch_keys(len(self.dataset), self.config, start):
            yield keys[first::processes]

    def update(self, batch):
        """One step with a batch; its loss and terms."""
        half = self.config.precision == "bf16"
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, half):
            terms = self.losses(self.model, batch, self.config)
        loss = total_loss(terms, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        return {"loss": loss.detach()} | {k: v.detach() for k, v in terms.items()}

    def score(self, record):
        """Score the model on the shapes held out, and keep it where it is the best."""
        scored = [r["validation"] for r in self.records if "validation" in r]
        found = validation_loss(self.model, self.held_out, self.config)
        record["validation"] = found
        if found < min(scored, default=math.inf):
            self.best = on_host(self.model.state_dict())


@contextmanager
def _no_interrupt():
    """Note Ctrl-C instead of heeding it, but for a second one, in the main thread."""
    asked = []
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after nohup
        yield asked
        return

    def note(*_):
        if asked and time.monotonic() - asked[0] > PATIENCE:
            raise KeyboardInterrupt
        asked.append(time.monotonic())  # some programs pass one on twice

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _single_steps(update, batches, optimizer, config, start):
    """Take a step a batch; yields what a record says of it, and that it is the last."""
    begun = time.perf_counter()
    for step, batch in enumerate(batches, start):
        rate = _learning_rate(step, config)
        optimizer.param_groups[0]["lr"].fill_(rate)
        terms = update(batch)
        values = mean_over_processes(torch.stack(list(terms.values())))
        record = dict(zip(terms, values.tolist(), strict=True))  # waits for the device
        seconds = time.perf_counter() - begun
        yield record | {"learning_rate": rate, "seconds": seconds}, True
        begun = time.perf_counter()


def _can_replay(shapes, device, processes):
    return shapes is not None and device.type == "cuda" and processes == 1


def _replayed_steps(update, shapes, keys, optimizer, config, start):
    """The same in blocks of replayed steps; one ends with every checkpoint."""
    replayed = ReplayedStep(update, optimizer, shapes, config.batch_size)
    done = start
    while done < config.steps:
        begun, every = time.perf_counter(), config.checkpoint_every
        count = min(BLOCK, every - done % every, config.steps - done)
        rates = [_learning_rate(done + k, config) for k in range(count)]
        found = replayed.block(list(islice(keys, count)), rates)
        seconds = (time.perf_counter() - begun) / count
        done += count
        for left, values, rate in zip(range(count)[::-1], found, rates, strict=True):
            yield values | {"learning_rate": rate, "seconds": seconds}, left == 0


def total_loss(terms: dict[str, Tensor], config: TrainingConfig) -> Tensor:
    """L: the weighted sum of the terms of `batch_losses`."""
    weights = {"laplacian": config.laplacian_weight, "visible": config.visible_weight}
    weights["relief"] = config.relief_weight
    return sum(weights.get(name, 1) * term for name, term in terms.items())


def refresh_batch_norms(
    model: nn.Module, batches: Iterable[dict], learn: str = "all"
) -> None:
    """Take the batch norms' running statistics anew, as means over some batches.

    While the learning rate is high they lag behind the weights by more than a model
    bears that is asked with them. Training itself does not look at them.

    Args: batches: of which the images are used. learn: whose they are; the others stay.
    """
    images = (batch["image"] for batch in batches)
    encoder = getattr(model, PARTS[learn][0]) if learn in PARTS else _Encoding(model)
    torch.optim.swa_utils.update_bn(images, encoder)


class _Encoding(nn.Module):
    """What of a model has batch norms, as a network of pictures alone."""

    def __init__(self, model):
        super().__init__()
        self.model, self.training = model, model.training

    def forward(self, image):
        return self.model.encode(image)


@torch.no_grad()
def validation_loss(
    model: nn.Module, dataset: ShapeDataset | ResidentShapes, config: TrainingConfig
) -> float:
    """The mean of `total_loss` over the shapes, each with one fixed draw, and patches.

    Args: dataset: ShapeDataset, or ResidentShapes on the model's device.
    """
    model.eval()
    device, size = next(model.parameters()).device, config.batch_size
    count, total = len(getattr(dataset, "dataset", dataset)), 0.0
    keys = [(index, 0) for index in range(count)]
    parts = (keys[k : k + size] for k in range(0, count, size))
    for batch in _batches(dataset, parts, device):
        loss = total_loss(batch_losses(model, batch, config), config)
        total += loss * len(batch["image"])
    return float(total) / count


def _on_device(dataset, device, resident):
    """ResidentShapes where they are wanted and fit, else None."""
    if isinstance(resident, ResidentShapes):
        return resident.drawn_as(dataset)
    if not (resident or (resident is None and device.type == "cuda")):
        return None
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    try:
        return ResidentShapes(dataset, device, 0.7 * free)
    except ValueError:
        if resident:
            raise
    return None


def _batches(source, keys, device, workers=0):
    """Batches of lists of keys on a device, from ResidentShapes or by a loader."""
    if isinstance(source, ResidentShapes):
        yield from map(source.batch, keys)
        return
    loader = torch.utils.data.DataLoader(
        source, batch_sampler=keys, num_workers=workers
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


def smoke_model(data: str | Path, out: str | Path) -> D2IMNet:
    """Train the small preset for 20 steps at the examples' size, for a notebook."""
    torch.manual_seed(0)
    dataset = ShapeDataset(data, None, points=512)
    size = dataset.example(0)["image_0"].shape[-1]
    model = D2IMNet.preset("small", image_size=size)
    config = TrainingConfig(steps=20, batch_size=4, warmup_steps=5)
    list(train(model, dataset, out, config, resume=False))
    return model.eval()


def _learning_rate(step, config):
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    rest = max(config.steps - config.warmup_steps, 1)
    done = min(max(0, step - config.warmup_steps) / rest, 1.0)
    factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    return config.learning_rate * factor


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
