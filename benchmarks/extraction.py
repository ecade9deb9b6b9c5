"""Time from a picture to its meshes, against a dense evaluation the released way.

    python benchmarks/extraction.py

The model has the paper's sizes and random weights, but for the base decoder, which is
fitted to the signed distance of one procedural chair (an unfitted field is no surface),
and for the last layer of the maps, which is scaled to relief of up to `--relief`.

The released way: two decoder passes over the whole grid, the second a step along the
view, in chunks of 100,000 points, for each of which the picture is encoded again and
the code is repeated for each point. All chunks cost alike, so `--chunks` of them are
timed, spread over the grid, and the time is scaled up.

For scale stand what one evaluated point costs, and marching cubes of a whole grid: ours
where the field is and, where it is installed, scikit-image's on the CPU, with normals
that are not used here.
"""

import resource
import time
from importlib.util import find_spec

import common
import numpy as np
import torch
import torch.nn.functional as F

from d2im.camera import Camera
from d2im.data.rendering import render
from d2im.data.shapes import make_shape
from d2im.fields import FINITE_STEP, displaced_sdf, value_and_front
from d2im.networks import SDF_SCALE, D2IMNet
from d2im.sampling import sample_sdf, signed_distance
from d2im.surface.cubes import marching_cubes
from d2im.surface.extract import HALF_BOX
from d2im.use.reconstruction import reconstruct

CHUNK = 100_000


def timed(work, device, repeats=1):
    """Run `work()`; return its last result, and medians of wall and core seconds."""
    walls, cores = [], []
    for _ in range(repeats):
        wall, core = time.perf_counter(), time.process_time()
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return result, np.median(walls), np.median(cores)


def fitted_model(preset, shape, image, steps, relief, device):
    """A model whose base field for one picture is a shape's signed distance."""
    torch.manual_seed(0)
    model = D2IMNet.preset(preset).to(device).eval()
    rng = np.random.default_rng(0)
    samples = sample_sdf(shape.coarse, 200_000, rng)
    far = rng.uniform(-HALF_BOX, HALF_BOX, (50_000, 3)).astype("f4")
    points = torch.tensor(np.vstack([samples.points, far]), device=device)
    sdf = np.concatenate([samples.sdf, signed_distance(shape.coarse, far)[0]])
    sdf = torch.tensor(sdf, dtype=torch.float32, device=device) * SDF_SCALE
    with torch.no_grad():
        code, features = model.encode(image)
        out = model.displacement_decoder.out
        maps = model.displacement_decoder(features)
        gain = relief * SDF_SCALE / maps.std()
        out.weight *= gain
        out.bias -= gain * maps.mean((0, 2, 3))
    decoder = model.base_decoder
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        draw = torch.tensor(rng.integers(len(points), size=4096), device=device)
        error = decoder(code, points[draw][None])[0] - sdf[draw]
        optimizer.zero_grad()
        error.abs().mean().backward()
        optimizer.step()
        schedule.step()
    return model, error.abs().mean().item() / SDF_SCALE


def released_field(model, image, camera):
    """f_B + f_D of points as the released code computes it, a chunk at a time."""
    decoder = model.base_decoder
    layers = [*decoder.layers, decoder.out]
    view = torch.tensor(camera.rotation[2], dtype=torch.float32, device=image.device)

    def base(code, points):
        hidden = torch.cat([code.expand(len(points), -1), points], 1)
        for k, layer in enumerate(layers[:-1]):
            hidden = F.relu(layer(hidden))
            if k < len(layers) - 3:
                hidden = torch.cat([hidden, points], 1)
        return layers[-1](hidden)[:, 0]

    def field(points):
        code, features = model.encode(image)
        maps = model.displacement_decoder(features)
        value = base(code, points)
        front = base(code, points + FINITE_STEP * view) < value
        uv = camera.project(points)[0]
        return displaced_sdf(value[None], maps, uv[None], front[None])[0] / SDF_SCALE

    return field


def released(model, image, camera, resolution, share, device):
    """Seconds, wall and core, for the whole grid, and the share of chunks timed."""
    field = released_field(model, image, camera)
    axis = torch.linspace(-HALF_BOX, HALF_BOX, resolution, device=device)
    size = min(CHUNK, resolution**3)
    count = -(-(resolution**3) // size)
    chosen = np.unique(
        np.linspace(0, count - 1, max(2, round(share * count)), dtype=int)
    )
    full = [k for k in chosen if (k + 1) * size <= resolution**3]

    def chunk(k):
        index = torch.arange(k * size, (k + 1) * size, device=device)
        digits = [index // resolution**2, index // resolution % resolution]
        grid = torch.stack([axis[d] for d in (*digits, index % resolution)], 1)
        return field(grid)

    with torch.no_grad():
        chunk(full[0])
        _, wall, core = timed(lambda: [chunk(k) for k in full], device)
    whole = resolution**3 / size / len(full)
    return wall * whole, core * whole, len(full) / count


@torch.no_grad()
def point_costs(model, image, camera, device, repeats):
    """Print what a point's value costs, alone and with the derivative's sign."""
    field = model.fields(image, camera)[0]
    count = 2**17 if device == "cuda" else 2048  # there as extraction's chunks are
    points = (torch.rand(count, 3, device=device) * 2 - 1) * HALF_BOX
    view = camera.rotation[2]
    for name, ask in {
        "value": lambda: field(points),
        "value, front": lambda: value_and_front(field, points, view, "gradient"),
    }.items():
        ask()
        _, wall, core = timed(ask, device, 10 * repeats)
        wall, core = (1e6 * seconds / count for seconds in (wall, core))
        print(f"a point, {name:12}  {wall:.3f} us wall {core:.3f} us core")


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--preset", default="paper", help="paper or small")
    parser.add_argument("--shape", default="chair:0", help="family:seed")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--steps", type=int, default=500, help="of fitting the base")
    parser.add_argument("--relief", type=float, default=0.01, help="maps' deviation")
    parser.add_argument("--chunks", type=int, default=8, help="of the dense way timed")
    parser.add_argument("--repeats", type=int, default=3)
    options = common.opening(parser)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    family, seed = options.shape.split(":")
    shape = make_shape(family, int(seed))
    size = D2IMNet.preset(options.preset).image_size
    camera = Camera(30, 20, 1, size)
    view = render(shape.detailed, camera, np.random.default_rng(0))
    image = torch.tensor(view.image, device=device)
    model, error = fitted_model(
        options.preset, shape, image[None], options.steps, options.relief, device
    )
    print(
        f"{options.preset}, {options.shape}, {device}; base fitted in "
        f"{options.steps} steps to {error:.4f}"
    )
    point_costs(model, image[None], camera, device, options.repeats)
    for resolution in options.resolutions:
        share = options.chunks * CHUNK / resolution**3
        dense_wall, dense_core, share = released(
            model, image[None], camera, resolution, share, device
        )
        print(f"{resolution}^3")
        print(f"  released way  {dense_wall:8.2f} s wall {dense_core:8.2f} s core")
        print(f"                ({share:.0%} of its chunks timed, scaled up)")
        for name, both in (("final mesh", False), ("both meshes", True)):
            args = model, image, camera, resolution
            reconstruct(*args, base_mesh=both)
            found, wall, core = timed(
                lambda args=args, both=both: reconstruct(*args, base_mesh=both),
                device,
                options.repeats,
            )
            print(
                f"  {name:12}  {wall:8.3f} s wall {core:8.3f} s core: "
                f"{dense_wall / wall:.0f} and {dense_core / core:.0f} times faster, "
                f"{found.mesh.metadata['evaluations']:,} evaluations"
            )
        picture = image[None].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            _, wall, core = timed(
                lambda p=picture: model.displacement_decoder(model.encode(p)[1]),
                device,
                options.repeats,
            )
        print(f"  networks on the picture   {wall:.3f} s wall {core:.3f} s core")
        side = np.linspace(-HALF_BOX, HALF_BOX, resolution, dtype="f4")
        ball = np.sqrt((side**2)[:, None, None] + (side**2)[:, None] + side**2) - 0.4
        there = torch.tensor(ball, device=device)  # for scale: the whole grid
        ways = {"d2im": lambda v=there: marching_cubes(v)}
        if find_spec("skimage"):
            from skimage.measure import marching_cubes as other_cubes

            ways["scikit-image"] = lambda v=ball: other_cubes(v, 0.0)
        for name, cubes in ways.items():
            cubes()
            _, wall, core = timed(cubes, device, options.repeats)
            print(f"  marching cubes, {name:12} {wall:.3f} s wall {core:.3f} s core")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GB (fitting included)")


if __name__ == "__main__":
    main()
