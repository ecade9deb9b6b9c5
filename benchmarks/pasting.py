"""How much of a pasted relief arrives in the mesh, where the truth is known.

    python benchmarks/pasting.py --model FOLDER

Pairs of procedural cabinets seen from the front: one with relief, and the next one
whose plain front has room for its largest panel (a door, say, with its handle). The
rectangle holds the panel and a margin, as a hand would draw it, since the patch's
border is blended; it keeps its size. Once the true map is transferred onto the true
plain body; once the picture is pasted into the other's and the model reconstructs it.
"Arrived" is the slope of what was found over what was asked for, pixel by pixel: of
the map, and of the mesh's rise toward the camera. 1 is all of the amplitude, 0 none.
Beside it stand how much of the relief the model's map has for the first picture as it
is, what it sees on the bare front, and how fast f_B falls along the view at the visible
surface: a displacement moves the surface by its size over that.
"""

import common
import numpy as np
import torch
from scipy.ndimage import label

from d2im import editing
from d2im.camera import Camera
from d2im.data.rendering import Renderer
from d2im.data.shapes import make_shape
from d2im.networks import D2IMNet
from d2im.sampling import signed_distance
from d2im.use.reconstruction import Prediction, predict, reconstruct, triangulate

MARGIN = 0.12  # of the panel's sides: more than the border that is blended


def seen(mesh, camera):
    """Which pixels see a mesh, and the points that they see (H, W, 3)."""
    hit, depth, *_ = Renderer(mesh).cast(camera)
    origins, rays = camera.rays()
    return hit, origins + depth[..., None] * rays


def box_around(mask):
    """(left, top, right, bottom) of a mask."""
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def front_plane(mesh, camera):
    """Which pixels show the largest flat face toward +z, (H, W) bool."""
    hit, points = seen(mesh, camera)
    values, counts = np.unique(points[hit][:, 2].round(3), return_counts=True)
    return hit & (np.abs(points[..., 2] - values[counts.argmax()]) < 1e-3)


def panel(front, plane):
    """The box of the largest connected relief on a plane, with a margin within it.

    Args: front: relief toward the camera, (H, W). plane: (H, W) bool.
    """
    parts, count = label(plane & (np.abs(front) > 0.1 * np.abs(front).max()))
    if not count:
        raise SystemExit("a front without relief: choose other seeds or another family")
    left, top, right, bottom = box_around(
        parts == 1 + np.bincount(parts[parts > 0] - 1).argmax()
    )
    x, y = (1 + int(MARGIN * side) for side in (right - left, bottom - top))
    edge = box_around(plane)
    low = np.maximum([left - x, top - y], edge[:2])
    return *low, *np.minimum([right + x, bottom + y], edge[2:])


def middle(plane, box):
    """A box of the same size in the middle of a plane; None where it has no room."""
    size, edge = np.subtract(box[2:], box[:2]), box_around(plane)
    start = (np.add(edge[:2], edge[2:]) - size) // 2
    (left, top), (right, bottom) = start.clip(0), start + size
    if plane[top:bottom, left:right].sum() == size.prod():
        return left, top, right, bottom


def arrived(asked, found):
    """Slope of the best line through pairs, its offset free."""
    return np.polyfit(asked, found, 1)[0]


def slope(field, points, camera):
    """How fast a field falls along the view at points (P, 3), their median."""
    step = 0.005 * camera.rotation[2]
    with torch.no_grad():
        ahead, behind = (field(torch.tensor(points + s).float()) for s in (step, -step))
    return (behind - ahead).median().item() / 0.01


def true_prediction(shape, camera, relief):
    """The true fields of a shape, with its relief or of the plain body."""

    def plain(points):
        return torch.as_tensor(signed_distance(shape.coarse, points)[0]).to(points)

    maps = torch.zeros(2, camera.size, camera.size)
    if relief:
        hit, points = seen(shape.detailed, camera)
        maps[0][torch.tensor(hit)] = -plain(torch.tensor(points[hit])).float()
    image = torch.zeros(3, camera.size, camera.size)
    return Prediction(maps, camera, plain, plain, image, way="finite_difference")


def corners_of(box):
    left, top, right, bottom = box
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--model", help="folder; without it only true fields")
    parser.add_argument("--family", default="cabinet")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10_100, 10_148))
    parser.add_argument("--resolution", type=int, default=128)
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model) if options.model else None
    size = model.image_size if model else 112
    camera, table = Camera(0, 5, 1, size), []
    for seed in options.seeds:
        shape = make_shape(options.family, seed)
        giver = true_prediction(shape, camera, relief=True)
        front = -giver.displacement[0].numpy()
        box = panel(front, front_plane(shape.coarse, camera))
        for other in range(seed + 1, seed + 1000):
            plain = make_shape(options.family, other)
            if place := middle(front_plane(plain.coarse, camera), box):
                break
        else:
            raise SystemExit(f"no {options.family} has room for {seed}'s panel")
        taker = true_prediction(plain, camera, relief=False)
        hit, _ = seen(plain.coarse, camera)
        edited = editing.transfer_detail(
            giver, taker, corners_of(box), corners_of(place)
        )
        asked = -edited.displacement[0].numpy()
        flat = hit & (asked != 0)
        mesh = triangulate(edited, options.resolution, base_mesh=False).mesh
        now, there = seen(mesh, camera)
        rise = taker.base_sdf(torch.tensor(there[flat & now])).numpy()
        row = [np.abs(asked).max(), arrived(asked[flat & now], rise)]
        if model:
            images = []
            for mesh in (shape.detailed, plain.coarse):
                view = Renderer(mesh).view(camera, np.random.default_rng(seed))
                images.append(torch.tensor(view.image))
            own = -predict(model, images[0], camera).displacement[0].numpy()
            inside = tuple(slice(*box[k::2]) for k in (1, 0))
            before = reconstruct(model, images[1], camera, options.resolution)
            after = editing.paste_and_reconstruct(
                model, *images, box, corners_of(place), camera, options.resolution
            )
            change = before.displacement[0] - after.displacement[0]
            was, old = seen(before.mesh, camera)
            now, new = seen(after.mesh, camera)
            rise = (old - new) @ camera.rotation[2]
            both = flat & was & now
            row += [arrived(front[inside].ravel(), own[inside].ravel())]
            row += [arrived(asked[flat], change.numpy()[flat])]
            row += [arrived(asked[both], rise[both])]
            bare = before.displacement[0].numpy()[hit]
            row += [np.sqrt((bare**2).mean()), slope(after.base_sdf, new[now], camera)]
        table.append(row)
        print(f"{options.family}:{seed} on {other} ", *(f"{x:8.3f}" for x in row))
    names = "amplitude", "true fields", "model's map of the source alone"
    names += "model's map", "model's mesh", "front map of a bare one, RMS"
    names += ("slope of f_B at the surface",)
    for name, values in zip(names, np.transpose(table), strict=False):
        low, middle_one, high = np.quantile(values, [0.25, 0.5, 0.75])
        line = f"median {middle_one:.4f}, least {values.min():.4f}, quartiles {low:.4f}"
        half = np.count_nonzero(values >= 0.5)
        print(f"{name:32} {line} and {high:.4f}, {half} of {len(values)} at least half")


if __name__ == "__main__":
    main()
