"""What a measure's number means: the protocols of the field, written down.

The same name means different numbers in different papers: frame, count, square or not,
factor. `PROTOCOLS` holds them, and each `Result` prints with its own.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Protocol:
    """How one measure is taken.

    Lengths are in world units, or in a frame where the truth's farthest vertex ("unit
    sphere"), longest edge ("unit box") or box diagonal ("unit diagonal") is 1.
    """

    name: str  # of the protocol that it belongs to
    frame: str = "world"  # unit of its lengths
    points: int = 16_384  # drawn on each surface (IoU: in the box)
    sampling: str = "area"  # by what they are drawn
    squared: bool = False  # distances, before their mean
    factor: float = 1.0  # of the mean
    threshold: float | None = None  # F-score's distance, sharpness of ECD's edge points
    radius: float | None = None  # of ECD's neighbourhood
    limit: int | None = None  # of ECD's edge points
    seed: int = 0  # of the points

    def __str__(self):
        power = "squared" if self.squared else "rooted"
        drawn = f"{self.points:,} points by {self.sampling}"
        parts = [self.frame, drawn, power, f"x{self.factor:g}"]
        for name in ("radius", "threshold", "limit"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {getattr(self, name):g}")
        return f"{self.name}: {', '.join(parts)}, seed {self.seed}"


def _rules(name, frame, measures, **common):
    return {m: Protocol(name, frame, **common | own) for m, own in measures.items()}


_L1, _L2 = ("accuracy", "completeness", "chamfer_l1"), {"squared": True}
_BOX = {"points": 100_000, "sampling": "volume"}
_OURS = dict.fromkeys(_L1, {}) | {
    "chamfer_l2": _L2,
    "emd": {"points": 2048},
    "f_score": {"points": 50_000, "threshold": 0.01},
    "iou": _BOX,
    "normal_consistency": {},
    "ecd": _L2 | {"radius": 0.02, "threshold": 0.8},
}
_OCCNET = dict.fromkeys(_L1, {"factor": 10.0})  # printed in tenths of the edge
_OCCNET |= {"iou": _BOX, "normal_consistency": {}}
# EMD is a sum of 2,048 distances times 0.01; F-scores at shares of 2.5.
_DISN = {"chamfer_l2": _L2 | {"factor": 1e3}, "emd": {"factor": 20.48}}
_DISN |= {f"f_score@{s}%": {"threshold": s / 40} for s in (0.5, 1, 2, 5, 10, 20)}
_DISN |= {"iou": _BOX}
# Its ECD finds next to no edge on a rounded (learned, marched) surface: see the counts.
_BSPNET = {"chamfer_l2": {}, "ecd": {"radius": 0.01, "threshold": 0.1, "limit": 4096}}
PROTOCOLS = {  # name -> measure -> Protocol
    "d2im": _rules("d2im", "world", _OURS),
    "occnet": _rules("occnet", "unit box", _OCCNET, points=100_000),
    "disn": _rules("disn", "unit sphere", _DISN, points=2048, sampling="vertices"),
    "bspnet": _rules("bspnet", "unit diagonal", _BSPNET, squared=True),
}
HIGHER_IS_BETTER = ("f_score", "iou", "normal_consistency")


class Result(NamedTuple):
    """A number with what is needed to believe it."""

    value: float  # NaN: the truth has nothing to compare; inf: the prediction alone
    protocol: Protocol
    counts: tuple = ()  # points compared (ECD: at edges), of the prediction, the truth

    def __str__(self):
        counts = " against ".join(f"{n:,}" for n in self.counts)
        return f"{self.value:.6g} ({self.protocol}{counts and '; of them ' + counts})"
