"""Zero surfaces of fields as triangle meshes, found coarse to fine.

A dense grid spends almost every evaluation far from the surface. Here each level halves
the cells of the one before: its values are predicted by trilinear interpolation, and
the field is asked only where they may be zero, in a window that closes in on the
object. Then both ends of every edge with a change of sign are made exact: the mesh is
the dense grid's. Only a detached piece that no level's band touches can be lost; with a
Lipschitz bound, nothing can.
"""

import math

import torch
import trimesh
from skimage.measure import marching_cubes
from torch.nn.functional import interpolate, max_pool2d

from .fields import front_mask, sample_maps
from .sampling import HALF_BOX

# Gradients that the band reckons with where no bound is given. At the last level it
# need only touch a surface, which is then followed, hence less (of sheets, rods and
# balls about a cell thick, 0.4 lost one in five, 0.7 none). Half of that does where
# the prediction has the slope of a distance: a thin part in between would flatten it.
GRADIENT, LAST_GRADIENT = 1.04, 0.7
STEEP = 0.3  # slope along the view whose sign differences on the grid tell for certain
SMALL_JUMP = 0.1  # cells between front and back that interpolation may smooth over
BISECTIONS = 3  # of an edge with a larger one: to a 16th of a cell
POINT_BYTES = 32_768  # that the paper's decoder takes for a point with its derivative
CPU_BYTES = 2**26  # for a chunk: more would not stay in a processor's cache
DIAGONAL = 3**0.5 / 2  # from a cell's middle to its corner, in sides


def extract_mesh(
    field,
    resolution=128,
    *,
    relief=None,
    both=False,
    device="cpu",
    lipschitz=None,
    chunk=None,
    coarse=16,
):
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
        device: where the points given to the field live.
        lipschitz: a bound on the field's gradient (1 for a true signed distance). The
            mesh is then the dense grid's for certain, at more evaluations.
        chunk: points in one call of the field; by default by memory.
        coarse: the first level has at least as many samples along an axis;
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
    if chunk is None:
        on_gpu = torch.device(device).type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else CPU_BYTES
        chunk = free // POINT_BYTES
    grid = _Grid(field, resolution, relief, both or not relief, chunk)
    grid.refine(device, lipschitz, coarse)
    final = grid.settle()
    mesh = grid.triangulate(final, relief)
    return (grid.triangulate(grid.values), mesh) if both else mesh


class _Grid:
    """A window of one level's samples; arrays have the axes x, y, z."""

    def __init__(self, field, resolution, relief, plain, chunk):
        self.field, self.resolution, self.chunk = field, resolution, chunk
        self.relief, self.plain = relief, plain  # whether the field itself is meshed
        self.step, self.evaluations = 2 * HALF_BOX / (resolution - 1), 0

    def size(self, stride):
        """Samples along an axis at a stride; the last one may lie beyond the box."""
        return -(-(self.resolution - 1) // stride) + 1

    def points(self, index):
        """World points of samples (P, 3); what lies beyond the box goes to its face."""
        index = ((index + self.low) * self.stride).clamp(max=self.resolution - 1)
        return (index * self.step - HALF_BOX).float()

    def ask(self, field, points):
        self.evaluations += len(points)
        return torch.cat([_ask(field, part) for part in points.split(self.chunk)])

    def fill(self, where):
        index = where.nonzero()
        self.values[*index.T] = self.ask(self.field, self.points(index))
        self.known |= where

    def front(self, points):
        _, camera, way = self.relief
        return front_mask(self.field, points, camera.rotation[2], way)

    def slope(self):
        """The field's differences along the view; steep ones tell front from back."""
        parts = torch.gradient(self.values, spacing=self.stride * self.step)
        direction = self.relief[1].rotation[2]
        return sum(d * part for d, part in zip(direction, parts, strict=True))

    def displacement(self, points, cell=0.0):
        """Front and back at points, or the range within half a cell of them: (2, P)."""
        maps, camera, _ = self.relief
        maps = maps.to(points)[None]
        if cell:
            depth = camera.project(points.new_zeros(1, 3))[1].item() - HALF_BOX
            pixels = camera.focal / camera.size * maps.shape[-1] / max(depth, 0.1)
            pad = min(math.ceil(pixels * cell * DIAGONAL), maps.shape[-1] // 2)
            maps = torch.stack([-maps.amin(1), maps.amax(1)], 1)
            for y, x in ((pad, 0), (0, pad)):
                maps = max_pool2d(maps, (2 * y + 1, 2 * x + 1), 1, (y, x))
            maps = maps * maps.new_tensor([-1, 1])[:, None, None]
        return sample_maps(maps, camera.project(points)[0][None])[0]

    def near(self, band, cell=0.0):
        """Where a surface that is wanted may be within a band of zero."""
        near = (self.values.abs() <= band) & self.plain
        if self.relief:
            most = self.relief[0].abs().max().item()
            index = ((self.values.abs() <= band + most) & ~near).nonzero()
            shift = self.displacement(self.points(index), cell)
            if not cell:
                slope = self.slope()[*index.T]
                chosen = torch.where(slope < 0, *shift)
                shift = torch.where(slope.abs() > STEEP, chosen, shift)
            low, high = (shift + self.values[*index.T]).aminmax(dim=0)
            band = band[*index.T]
            near[*index.T] = (low <= band) & (high >= -band)
        return near

    def refine(self, device, lipschitz, coarse):
        """Predict and evaluate, from the first level to the last."""
        self.stride = 1
        while self.size(2 * self.stride) >= max(coarse, 8):
            self.stride *= 2
        self.low = torch.zeros(3, dtype=torch.long, device=device)  # of the window
        self.values = torch.zeros((self.size(self.stride),) * 3, device=device)
        self.known = torch.zeros_like(self.values, dtype=torch.bool)
        self.fill(~self.known)
        low, high = (bound.item() for bound in self.values.aminmax())
        self.nothing = (
            f"field has no surface in the box [-{HALF_BOX}, {HALF_BOX}]^3: "
            f"its values run from {low:.4g} to {high:.4g}"
        )
        if high <= 0:
            raise ValueError(self.nothing)
        error = torch.zeros_like(self.values)
        while self.stride > 1:
            cell = self.stride * self.step
            near = self.near(error + (lipschitz or GRADIENT) * DIAGONAL * cell, cell)
            near |= _ends(self.close(self.values.clone()))
            if not near.any():
                raise ValueError(self.nothing)
            bounds = near.nonzero().aminmax(dim=0)
            first = (bounds.min - 1).clamp(min=0)
            window = tuple(map(slice, first.tolist(), (bounds.max + 2).tolist()))
            self.stride //= 2
            self.low = 2 * (self.low + first)
            sizes = [self.size(self.stride) - low for low in self.low.tolist()]
            self.values = _upsample(self.values[window], sizes)
            self.known = torch.zeros_like(self.values, dtype=torch.bool)
            # Interpolation with weights w is off by at most L * sum w |p - corner|,
            # that is L * sqrt(3) / 2 cells, plus the corners' own errors.
            if lipschitz:
                error = _upsample(error[window], sizes) + lipschitz * DIAGONAL * cell
            else:
                parts = torch.gradient(self.values, spacing=cell / 2)
                flat = (1 - sum(part**2 for part in parts).sqrt()).clamp(min=0)
                reckoned = GRADIENT if self.stride > 1 else LAST_GRADIENT
                error = reckoned * DIAGONAL * cell * (1 + flat) / 2
            self.fill(self.near(error, cell / 2 if self.stride > 1 else 0.0))
            error *= ~self.known * bool(lipschitz)
        self.error = error

    def settle(self):
        """Make both ends of every edge with a change of sign exact; return F."""
        final, doubtful = self.close(self.values), torch.zeros_like(self.known)
        if self.relief:
            most = self.relief[0].abs().max() + self.error + 2 * self.step
            index = (self.values.abs() <= most).nonzero()
            shift = self.values.new_zeros(2, *self.values.shape)
            shift[:, *index.T] = self.displacement(self.points(index))
            self.side, exact = (
                torch.zeros_like(self.known),
                torch.zeros_like(self.known),
            )
        while True:
            ends = _ends(self.close(self.values)) & self.plain
            if self.relief:
                slope = self.slope()
                self.side = torch.where(exact, self.side, slope < 0)
                sure = exact | (slope.abs() > STEEP) & (self.relief[2] == "gradient")
                front, back = self.values + shift
                final = self.close(torch.where(self.side, front, back))
                final_ends = _ends(final)
                doubtful = (final_ends | ((front <= 0) != (back <= 0))) & ~sure
                ends |= final_ends
            missing = ends & ~self.known
            if not (missing.any() or doubtful.any()):
                return final
            self.fill(missing)
            if self.relief:
                index = doubtful.nonzero()
                self.side[*index.T] = self.ask(self.front, self.points(index))
                exact |= doubtful

    def close(self, values):
        """Make the samples on the box's faces outside ones, in place."""
        last = self.size(self.stride) - 1
        for axis, low in enumerate(self.low.tolist()):
            for place in (-low, last - low):
                if 0 <= place < values.shape[axis]:
                    values.select(axis, place).clamp_(min=self.step)
        return values

    def triangulate(self, values, relief=None):
        if not (values > 0).any() or not (values <= 0).any():
            raise ValueError(self.nothing)
        vertices, faces, _, _ = marching_cubes(values.cpu().numpy(), 0.0)
        vertices = torch.from_numpy(vertices.copy()).to(values.device)
        jumps = self.place_jumps(vertices, values) if relief else 0
        world = (vertices + self.low).double().cpu().numpy() * self.step - HALF_BOX
        mesh = trimesh.Trimesh(world, faces, process=False)
        mesh.metadata.update(evaluations=self.evaluations, jumps=jumps, solid=True)
        return mesh

    def place_jumps(self, vertices, values):
        """Move vertices at jumps to where F changes sign; return their number."""
        low, high = vertices.floor().long(), vertices.ceil().long()
        jump = self.side[*low.T] != self.side[*high.T]
        number = int(jump.sum())
        low, high = low[jump], high[jump]
        front, back = self.displacement(self.points((low + high) / 2))
        large = (front - back).abs() > SMALL_JUMP * self.step
        jump[jump.clone()] = large
        low, high = low[large], high[large]
        inside = values[*low.T] <= 0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            points = self.points(middle)
            shift = torch.where(
                self.ask(self.front, points), *self.displacement(points)
            )
            same = (self.ask(self.field, points) + shift <= 0) == inside
            low = torch.where(same[:, None], middle, low)
            high = torch.where(same[:, None], high, middle)
        vertices[jump] = (low + high) / 2
        return number


@torch.no_grad()
def _ask(field, points):
    answer = field(points)
    if not isinstance(answer, torch.Tensor) or answer.shape != points.shape[:1]:
        got = tuple(answer.shape) if hasattr(answer, "shape") else type(answer).__name__
        raise ValueError(
            f"field must turn a tensor of points {tuple(points.shape)} into a tensor "
            f"of values {tuple(points.shape[:1])}, got {got}"
        )
    if not torch.isfinite(answer).all():
        at = points[~torch.isfinite(answer)][0].tolist()
        raise ValueError(f"field must be finite in the box, got NaN or inf at {at}")
    return answer


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
