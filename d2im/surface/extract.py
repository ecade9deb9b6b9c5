"""Zero surfaces of fields as triangle meshes, found coarse to fine.

A dense grid spends almost every evaluation far from the surface. Here each level halves
the cells of the one before: its values are predicted by trilinear interpolation, and
the field is asked only where they may be zero, in a window that closes in on the
object. Then both ends of every edge with a change of sign are made exact, and where the
surface leaves the window it is followed: the mesh is the dense grid's. Only a detached
piece that no level's band touches can be lost; with a Lipschitz bound, nothing can.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import trimesh
from torch.nn.functional import interpolate, max_pool2d, pad

from ..fields import sample_maps, value_and_front
from ..sampling import HALF_BOX
from .cubes import marching_cubes

if TYPE_CHECKING:
    from ..fields import Field

# Gradients that the band reckons with where no bound is given. At the last level it
# need only touch a surface, which is then followed, hence less (of sheets, rods and
# balls about a cell thick, 0.4 lost one in five, 0.7 none). Half of that does where
# the prediction has the slope of a distance: a thin part in between would flatten it.
GRADIENT, LAST_GRADIENT = 1.04, 0.7
# Slope along the view from which differences on the grid tell its sign: of 100 true and
# trained fields always; of an untrained one 8 of 147,600 faces differed.
STEEP = 0.3
SMALL_JUMP = 0.1  # cells between front and back that interpolation may smooth over
BISECTIONS = 3  # of an edge with a larger one: to a 16th of a cell
WIDENING = 16  # layers that a window gets at once where a surface leaves it
POINT_BYTES = 32_768  # that the paper's decoder takes for a point with its derivative
CPU_BYTES = 2**26  # for a chunk: more would not stay in a processor's cache
DIAGONAL = 3**0.5 / 2  # from a cell's middle to its corner, in sides


class NoSurface(ValueError):
    """A field that is nowhere negative, or nowhere positive, at a grid's samples."""


@torch.no_grad()
def extract_mesh(
    field: Field,
    resolution: int = 128,
    *,
    relief: tuple | None = None,
    both: bool = False,
    device: str | torch.device = "cpu",
    lipschitz: float | None = None,
    chunk: int | None = None,
    coarse: int | None = None,
) -> trimesh.Trimesh | tuple[trimesh.Trimesh, trimesh.Trimesh]:
    """Triangulate the zero surface of a field in the box [-0.55, 0.55]^3.

    The grid has `resolution` samples along each axis, the first and the last on the
    box's faces. This outermost layer counts as outside, so a surface that leaves the
    box is closed there by a flat cut.

    Args:
        field: callable on float32 tensors, (P, 3) world points -> (P,) signed distance
            in world units, negative inside. It is called without gradient tracking.
        resolution: samples along an axis, at least 8; any number.
        relief: (displacement, camera, way) of `fields.displaced_field`, for the surface
            of the sum F. On an edge where front turns to back F jumps: bisection, not
            interpolation, finds there where the sign changes.
        both: return (the field's mesh, F's mesh), made from the same values.
        device: where the points given to the field live. On a GPU the derivative tells
            front from back everywhere; else only where differences may not.
        lipschitz: a bound on the field's gradient (1 for a true signed distance). The
            mesh is then the dense grid's for certain, at more evaluations.
        chunk: points in one call of the field; by default by memory.
        coarse: the first level has at least as many samples along an axis; by default
            16, and 64 on a GPU, where a level costs more than its evaluations.
            `coarse=resolution` evaluates the dense grid.

    Returns:
        A watertight trimesh.Trimesh in world units, normals outward. Its metadata hold
        evaluations, the number of points at which field or derivative was asked, and
        jumps, that of vertices between front and back.

    Raises:
        ValueError: the field answers with another shape or with NaN, it has no surface
            in the box, or the resolution is below 8.
    """
    if resolution < 8:
        raise ValueError(f"resolution must be 8 samples or more, got {resolution}")
    if relief and not torch.isfinite(relief[0]).all():
        raise ValueError("the displacement must be finite, got NaN or inf")
    if relief:
        relief = relief[0].float().to(device), *relief[1:]
    plain = both or not relief
    grid = _Grid(field, resolution, relief, plain, lipschitz, chunk, coarse, device)
    grid.start()
    while grid.stride > 1:
        grid.halve()
    grid.repair()
    mesh = grid.triangulate(grid.sums, relief)
    return (grid.triangulate(grid.values), mesh) if both else mesh


class _Grid:
    """A window of one level's samples; arrays have the axes x, y, z.

    `at` is always a list of samples, as flat indices.

    Attributes: stride: between samples, in those of the last level. low: (3,), the
        window's first sample. last, pace: (3, 1), its last index on each axis, and the
        step to the next one in flat indices.
        values, sums: (X, Y, Z), the field's and F's (the same array without relief),
        exact where known or settled (bool), else predicted. side: bool, front-facing.
        listed: samples that a surface may be near to. error: bound of a prediction's,
        with a Lipschitz bound.
    """

    def __init__(
        self, field, resolution, relief, plain, lipschitz, chunk, coarse, device
    ):
        on_gpu = torch.device(device).type == "cuda"
        if chunk is None:
            free = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else CPU_BYTES
            chunk = free // POINT_BYTES
        self.field, self.resolution, self.chunk = field, resolution, chunk
        self.relief, self.plain = relief, plain  # whether the field itself is meshed
        self.lipschitz = lipschitz
        self.steep = math.inf if on_gpu else STEEP  # a call costs more than its points
        self.step, self.evaluations, self.jumps = 2 * HALF_BOX / (resolution - 1), 0, 0
        self.nothing = ""  # what to say where there is no surface
        self.stride = 1
        while self.size(2 * self.stride) >= max(coarse or (64 if on_gpu else 16), 8):
            self.stride *= 2
        self.low = torch.zeros(3, dtype=torch.long, device=device)
        self.arrays(torch.zeros((self.size(self.stride),) * 3, device=device))
        self.listed = torch.arange(self.values.numel(), device=device)
        self.error = torch.zeros_like(self.values)

    def size(self, stride):
        """Samples along an axis at a stride; the last one may lie beyond the box."""
        return -(-(self.resolution - 1) // stride) + 1

    def points(self, at):
        """World points (P, 3) of samples, or of indices (P, 3) that may lie between."""
        index = at if at.ndim == 2 else self.split(at).T
        # What lies beyond the box goes to its face.
        index = ((index + self.low) * self.stride).clamp(max=self.resolution - 1)
        return (index * self.step - HALF_BOX).float()

    def split(self, at):
        """The indices (3, P) of samples."""
        return at // self.pace % self.last.add(1)

    def beside(self, at):
        """Six neighbours, (2, 3, P): below and above; at a border the sample itself."""
        index = self.split(at)
        low, high = index > 0, index < self.last
        return torch.stack([at - self.pace * low, at + self.pace * high])

    def gradient(self, at):
        """Differences of the field to the samples below and above: (2, 3, P)."""
        values, cell = self.values.view(-1), self.stride * self.step
        below, above = values[self.beside(at)]
        return torch.stack([values[at] - below, above - values[at]]) / cell

    def ask(self, at):
        """The field at samples."""
        points = self.points(at)
        self.evaluations += len(points)
        parts = [_check(self.field(p), p) for p in points.split(self.chunk)]
        return torch.cat(parts)

    def ask_both(self, at):
        """The field at samples, and which of them are front-facing."""
        points, (_, camera, way) = self.points(at), self.relief
        self.evaluations += len(points)
        view = camera.rotation[2]
        parts = points.split(self.chunk)
        parts = [value_and_front(self.field, part, view, way) for part in parts]
        value, front = map(torch.cat, zip(*parts, strict=True))
        return _check(value, points), front

    def displacement(self, at, cell=0.0):
        """Front, back, least and largest within half a cell of samples: (P,) each."""
        maps, camera, _ = self.relief
        points, maps = self.points(at), maps[None]
        if cell:
            bounds = torch.stack([-maps.amin(1), maps.amax(1)], 1)
            depth = camera.project(np.zeros((1, 3)))[1].item() - HALF_BOX
            pixels = camera.focal / camera.size * maps.shape[-1] / max(depth, 0.1)
            reach = min(math.ceil(pixels * cell * DIAGONAL), maps.shape[-1] // 2)
            for y, x in ((reach, 0), (0, reach)):
                bounds = max_pool2d(bounds, (2 * y + 1, 2 * x + 1), 1, (y, x))
            maps = torch.cat([maps, -bounds[:, :1], bounds[:, 1:]], 1)
        found = sample_maps(maps, camera.project(points)[0][None])[0]
        return found if cell else (*found, *found.aminmax(dim=0))

    def start(self):
        """Evaluate the first level."""
        self.values.view(-1)[:] = self.ask(self.listed)
        self.known[:] = True
        self.settle(self.listed, 2 * self.stride * self.step)
        low, high = (bound.item() for bound in self.values.aminmax())
        self.nothing = (
            f"field has no surface in the box [-{HALF_BOX}, {HALF_BOX}]^3: "
            f"its values run from {low:.4g} to {high:.4g}"
        )
        if high <= 0:
            raise NoSurface(self.nothing)

    def arrays(self, values, sums=None):
        """Take new values; nothing is known of them yet."""
        self.values, self.known = values, torch.zeros_like(values, dtype=torch.bool)
        self.sums, self.settled, self.side = self.values, self.known, None
        sizes = torch.tensor([values.shape, values.stride()], device=values.device)
        self.last, self.pace = (sizes - sizes.new_tensor([[1], [0]]))[..., None]
        if self.relief:
            self.sums = values.clone() if sums is None else sums
            self.settled, self.side = (torch.zeros_like(self.known) for _ in range(2))

    def halve(self):
        """Go to half the cells: predict, and evaluate what may be near a surface."""
        cell = self.stride * self.step
        band = (self.lipschitz or GRADIENT) * DIAGONAL * cell
        if self.lipschitz:
            band = band + self.error.view(-1)[self.listed]
        near = self.near(self.listed, band, cell, self.gradient(self.listed))[0]
        parents = _ends(self.close(self.values.clone())) & self.plain
        parents |= _ends(self.close(self.sums.clone()))
        parents.view(-1)[self.listed[near]] = True
        parents = parents.nonzero()
        if not len(parents):
            raise NoSurface(self.nothing)
        first = (parents.amin(0) - 1).clamp(min=0)
        window = tuple(map(slice, first.tolist(), (parents.amax(0) + 2).tolist()))
        self.stride //= 2
        self.low = 2 * (self.low + first)
        sizes = [self.size(self.stride) - low for low in self.low.tolist()]
        known, sums = self.known[window], self.sums[window]
        self.arrays(
            _upsample(self.values[window], sizes),
            _upsample(sums, sizes) if self.relief else None,
        )
        even = self.known[::2, ::2, ::2]
        even[:] = known[tuple(map(slice, even.shape))]
        # Listed are the samples that one of the parents is nearest to.
        nearest = torch.arange(-1, 2, device=parents.device)
        child = (2 * (parents - first).T[..., None] + nearest).clamp(min=0)  # (3, P, 3)
        x, y, z = torch.minimum(child, self.last[..., None]) * self.pace[..., None]
        children = x[:, :, None, None] + y[:, None, :, None] + z[:, None, None]
        listed = torch.zeros_like(self.known).view(-1)
        listed[children.view(-1)] = True
        self.listed = listed.nonzero()[:, 0]
        if self.lipschitz:
            # Interpolation with weights w is off by at most L * sum w |p - corner|,
            # that is L * sqrt(3) / 2 cells, plus the corners' own errors.
            error = _upsample(self.error[window], sizes)
            self.error = error + self.lipschitz * DIAGONAL * cell
            self.settle(self.listed, self.error.view(-1)[self.listed])
            self.error *= ~self.known
        else:
            reckoned = GRADIENT if self.stride > 1 else LAST_GRADIENT
            self.settle(self.listed, reckoned * DIAGONAL * cell)

    def sides(self, gradient):
        """Which samples are front-facing, and where the differences tell it surely."""
        view = gradient.new_tensor(self.relief[1].rotation[2])[:, None]
        ahead = torch.where(view > 0, gradient[1], gradient[0]).mul(view).sum(0)
        behind = torch.where(view > 0, gradient[0], gradient[1]).mul(view).sum(0)
        sure = torch.minimum(ahead * behind.sign(), behind * ahead.sign()) > self.steep
        slope = ahead + behind  # infinite beside a sample that nothing is known of
        sure &= slope.isfinite() & (self.relief[2] == "gradient")
        return slope < 0, sure

    def near(self, at, band, cell, gradient):
        """Which samples may have a surface within a band, and within half a cell.

        Returns:
            (P,) bool for either surface and for F's; front and back (2, P), which side
            is seen, and where the differences do not tell that for certain.
        """
        values = self.values.view(-1)[at]
        near = values.abs() <= band
        if not self.relief:
            return near, near, None, near, near & False
        *maps, low, high = self.displacement(at, cell)
        side, sure = self.sides(gradient)
        if not cell:
            shift = torch.where(side, *maps)
            low, high = (torch.where(sure, shift, bound) for bound in (low, high))
        final = (values + low <= band) & (values + high >= -band)
        return near & self.plain | final, final, maps, side, ~sure

    def settle(self, at, band):
        """Evaluate those samples near zero; know F at all of them.

        At the last level frontness is exact, too: where the differences do not tell it,
        value and derivative come in one pass.
        """
        gradient = self.gradient(at)
        if not self.lipschitz and band < math.inf:
            flat = (1 - gradient.mean(0).square().sum(0).sqrt()).clamp(min=0)
            band = band * (1 + flat) / 2
        last = self.stride == 1
        cell = 0.0 if last else self.stride * self.step / 2
        near, final, maps, side, unsure = self.near(at, band, cell, gradient)
        values, known = self.values.view(-1), self.known.view(-1)
        unsure &= final & last
        if len(missing := at[near & ~unsure & ~known[at]]):
            values[missing] = self.ask(missing)
        known[at[near]] = True
        if unsure.any():
            values[at[unsure]], side[unsure] = self.ask_both(at[unsure])
        if self.relief and last:  # the predicted differences against the true ones
            if len(easy := (final & ~unsure).nonzero()[:, 0]):
                side[easy], sure = self.sides(self.gradient(at[easy]))
                if len(hard := easy[~sure]):
                    side[hard] = self.ask_both(at[hard])[1]
        if self.relief:
            self.side.view(-1)[at] = side
            self.settled.view(-1)[at[final]] = True
            self.sums.view(-1)[at] = values[at] + torch.where(side, *maps)
        if last:
            self.close(self.values)
            self.close(self.sums)

    def repair(self):
        """Make both ends of every edge with a change of sign exact."""
        done = (self.values, self.known), (self.sums, self.settled)
        done = done if self.relief and self.plain else done[1:]
        missing = torch.stack([_ends(values) & ~known for values, known in done])
        at = missing.any(0).view(-1).nonzero()[:, 0]
        while len(at):
            self.settle(at, math.inf)
            beside, missing = self.beside(at), []
            for values, known in done:
                values, known = values.view(-1), known.view(-1)
                turns = (values[beside] <= 0) != (values[at] <= 0)
                missing.append(turns & ~known[beside])
            at = beside[torch.stack(missing).any(0)].unique()
        if self.widen([values for values, _ in done]):
            self.repair()

    def widen(self, surfaces):
        """Widen the window where a surface leaves it; whether one does.

        Of the new samples nothing is known: they are infinitely far outside, until the
        surface is followed there.
        """
        faces = [(axis, place) for axis in range(3) for place in (0, -1)]
        borders = [values.select(*face) for values in surfaces for face in faces]
        if (torch.cat([border.reshape(-1) for border in borders]) > 0).all():
            return False
        leaves = torch.stack([(border <= 0).any() for border in borders])
        leaves, sizes = leaves.view(-1, 3, 2).any(0), self.last[:, 0] + 1
        room = torch.stack([self.low, self.resolution - self.low - sizes], 1)
        more = (leaves * room.clamp(max=WIDENING)).tolist()  # (3, 2)
        inner = tuple(slice(start, -end or None) for start, end in more)
        pads = [layers for pair in reversed(more) for layers in pair]
        self.low = self.low - self.low.new_tensor(more)[:, 0]
        known, settled, side = self.known, self.settled, self.side
        self.arrays(
            pad(self.values, pads, value=math.inf), pad(self.sums, pads, value=math.inf)
        )
        self.known[inner] = known
        if self.relief:
            self.settled[inner], self.side[inner] = settled, side
        return True

    def close(self, values):
        """Make the samples on the box's faces outside ones, in place."""
        last = self.size(self.stride) - 1
        for axis, low in enumerate(self.low.tolist()):
            for place in (-low, last - low):
                if 0 <= place < values.shape[axis]:
                    values.select(axis, place).clamp_(min=self.step)
        return values

    def triangulate(self, values, relief=None):
        self.jumps = 0
        vertices, faces = marching_cubes(values, self.place_jumps if relief else None)
        if not len(faces):
            raise NoSurface(self.nothing)
        world = (vertices.double() + self.low).cpu().numpy() * self.step - HALF_BOX
        mesh = trimesh.Trimesh(world, faces.cpu().numpy(), process=False)
        about = {"evaluations": self.evaluations, "jumps": self.jumps, "solid": True}
        mesh.metadata.update(about)
        return mesh

    def place_jumps(self, ends, vertices):
        """Move vertices between front and back to where F changes sign."""
        jump = (self.side.view(-1)[ends[0]] != self.side.view(-1)[ends[1]]).nonzero()
        jump = jump[:, 0]
        self.jumps = len(jump)
        low, high = (self.split(at).T for at in ends[:, jump])
        front, back = self.displacement((low + high) / 2)[:2]
        large = (front - back).abs() > SMALL_JUMP * self.step
        low, high, jump = low[large], high[large], jump[large]
        inside = self.sums.view(-1)[ends[0, jump]] <= 0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            value, side = self.ask_both(middle)
            shift = torch.where(side, *self.displacement(middle)[:2])
            same = (value + shift <= 0) == inside
            low = torch.where(same[:, None], middle, low)
            high = torch.where(same[:, None], high, middle)
        vertices[jump] = ((low + high) / 2).to(vertices)


def _check(answer, points):
    """Return a field's answer, if it is one."""
    if not isinstance(answer, torch.Tensor) or answer.shape != points.shape[:1]:
        got = tuple(answer.shape) if hasattr(answer, "shape") else type(answer).__name__
        raise ValueError(
            f"field must turn a tensor of points {tuple(points.shape)} into a tensor "
            f"of values {tuple(points.shape[:1])}, got {got}"
        )
    if not torch.isfinite(answer).all():
        at = points[~torch.isfinite(answer)][0].tolist()
        raise ValueError(f"field must be finite in the box, got NaN or inf at {at}")
    return answer.to(points)


def _upsample(values, sizes):
    """Halve the cells; keep the first `sizes` samples of each axis."""
    doubled = [2 * size - 1 for size in values.shape]
    doubled = interpolate(
        values[None, None], size=doubled, mode="trilinear", align_corners=True
    )[0, 0]
    return doubled[tuple(map(slice, sizes))].contiguous()


def _ends(values):
    """Both ends of every grid edge along which the sign changes."""
    inside = values <= 0
    ends = torch.zeros_like(inside)
    for axis, size in enumerate(inside.shape):
        near, far = (axis, 0, size - 1), (axis, 1, size - 1)
        change = inside.narrow(*near) ^ inside.narrow(*far)
        ends.narrow(*near).logical_or_(change)
        ends.narrow(*far).logical_or_(change)
    return ends
