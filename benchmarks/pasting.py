"""How much of a pasted relief arrives in the mesh, where the truth is known.

    python benchmarks/pasting.py --model FOLDER

Pairs of procedural cabinets seen from the front: one with relief, one without. The
rectangle holds the first one's relief and goes to the middle of the second one's front.
Once the true map is transferred onto the true plain body; once the picture is pasted
into the other's and the model reconstructs it. "Arrived" is the slope of what was found
over what was asked for, pixel by pixel: of the map, and of the mesh's rise toward the
camera. 1 is all of the amplitude, 0 none. Beside it stands how much of the relief the
model's map has for the first picture as it is.
"""

import argparse

import numpy as np
import torch

from d2im import editing
from d2im.camera import Camera
from d2im.networks import D2IMNet
from d2im.reconstruction import Prediction, predict, reconstruct, triangulate
from d2im.rendering import Renderer
from d2im.sampling import signed_distance
from d2im.shapes import make_shape


def seen(mesh, camera):
    """Which pixels see a mesh, and the points that they see (H, W, 3)."""
    hit, depth, *_ = Renderer(mesh).cast(camera)
    origins, rays = camera.rays()
    return hit, origins + depth[..., None] * rays


def box_around(mask):
    """(left, top, right, bottom) of a mask."""
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def arrived(asked, found):
    """Slope of the best line through pairs, its offset free."""
    return np.polyfit(asked, found, 1)[0]


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder; without it only true fields")
    parser.add_argument("--family", default="cabinet")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10_100, 10_124))
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()
    model = D2IMNet.from_pretrained(options.model) if options.model else None
    size = model.image_size if model else 112
    camera, table = Camera(0, 5, 1, size), []
    for seed, other in zip(options.seeds, np.roll(options.seeds, -1), strict=True):
        shapes = [make_shape(options.family, int(s)) for s in (seed, other)]
        giver = true_prediction(shapes[0], camera, relief=True)
        taker = true_prediction(shapes[1], camera, relief=False)
        front = -giver.displacement[0].numpy()
        box = np.array(box_around(front > 0.5 * front.max())).astype(float)
        hit, points = seen(shapes[1].coarse, camera)
        left, top, right, bottom = box_around(hit)
        middle = np.array([left + right, top + bottom]) / 2
        half = np.minimum(
            box[2:] - box[:2], 0.7 * np.array([right - left, bottom - top])
        )
        place = corners_of([*(middle - half / 2), *(middle + half / 2)])
        edited = editing.transfer_detail(giver, taker, corners_of(box), place)
        asked = -edited.displacement[0].numpy()
        flat = hit & (asked != 0)
        mesh = triangulate(edited, options.resolution, base_mesh=False).mesh
        now, there = seen(mesh, camera)
        rise = taker.base_sdf(torch.tensor(there[flat & now])).numpy()
        row = [np.abs(asked).max(), arrived(asked[flat & now], rise)]
        if model:
            images = []
            for mesh in (shapes[0].detailed, shapes[1].coarse):
                view = Renderer(mesh).view(camera, np.random.default_rng(seed))
                images.append(torch.tensor(view.image))
            own = -predict(model, images[0], camera).displacement[0].numpy()
            inside = tuple(slice(*map(round, box[k::2])) for k in (1, 0))
            before = reconstruct(model, images[1], camera, options.resolution)
            after = editing.paste_and_reconstruct(
                model, *images, tuple(box), place, camera, options.resolution
            )
            change = before.displacement[0] - after.displacement[0]
            was, old = seen(before.mesh, camera)
            now, new = seen(after.mesh, camera)
            rise = (old - new) @ camera.rotation[2]
            both = flat & was & now
            row += [arrived(front[inside].ravel(), own[inside].ravel())]
            row += [arrived(asked[flat], change.numpy()[flat])]
            row += [arrived(asked[both], rise[both])]
        table.append(row)
        print(f"{options.family}:{seed} on {other} ", *(f"{x:8.3f}" for x in row))
    names = "amplitude", "true fields", "model's map of the source alone"
    names += "model's map", "model's mesh"
    for name, values in zip(names, np.transpose(table), strict=False):
        print(f"{name:32} median {np.median(values):.3f}, least {values.min():.3f}")


if __name__ == "__main__":
    main()
