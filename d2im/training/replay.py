"""A training step as a CUDA graph: recorded once, then replayed.

A step is some hundred kernels, and of a small network each takes less time than Python
to start it. As a graph a whole step (drawing its batch, losses, gradients, the
optimiser) starts at once. It reads and writes the same memory each time: what differs
from step to step lies on the device, for a block of steps.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 50  # steps that a GPU takes without a word
WARM_UP = 3  # first steps, in which libraries and the optimiser make ready
_recording = threading.Lock()  # one graph at a time: several trainings share a GPU


class ReplayedStep:
    """Steps of one training on one GPU that holds the data.

    Args: update: batch -> dict of scalars, a step without its batch. optimizer: whose
        rate it takes. shapes: ResidentShapes. batch_size: of its batches.
    """

    def __init__(self, update, optimizer, shapes, batch_size):
        self.update, self.optimizer, self.shapes = update, optimizer, shapes
        device = shapes.device
        # Of each step of a block its batch's keys and its rate; the step that is next.
        self.keys = torch.zeros(BLOCK, batch_size, 2, dtype=torch.long, device=device)
        self.rates = torch.zeros(BLOCK, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.names, self.log = [], None  # of the block's scalars, (BLOCK, names)
        self.taken, self.graph = 0, None
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def block(self, keys: list, rates: list[float]) -> list[dict]:
        """Take a step for each list of keys and rate; their scalars by name."""
        count = len(rates)
        with torch.cuda.stream(self.stream):
            self.rates[:count] = torch.tensor(rates)
            self.keys[:count] = torch.tensor(keys)
            self.place.zero_()
            for _ in range(count):
                if self.taken < WARM_UP:
                    self.step()
                else:
                    self.graph = self.graph or record(self.step, self.stream)
                    self.graph.replay()
                self.taken += 1
            values = self.log[:count].tolist()  # waits for the device
        return [dict(zip(self.names, row, strict=True)) for row in values]

    def step(self) -> None:
        """The next step of the block, from what lies on the device alone."""
        rate = self.rates.index_select(0, self.place)[0]
        self.optimizer.param_groups[0]["lr"].copy_(rate)
        terms = self.update(self.shapes.batch(self.keys.index_select(0, self.place)[0]))
        values = torch.stack([value.float() for value in terms.values()])
        if self.log is None:
            self.names, self.log = [*terms], values.new_zeros(BLOCK, len(values))
        self.log.index_copy_(0, self.place, values[None])
        self.place.add_(1)


def record(step: Callable[[], None], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """The CUDA graph of a step; nothing of it is done yet."""
    graph = torch.cuda.CUDAGraph()
    only = {"stream": stream, "capture_error_mode": "thread_local"}
    with _recording, torch.cuda.graph(graph, **only):
        step()
    return graph
