"""Gradients and density weights against the released way, on the same points.

    python benchmarks/released_sampler.py

The released way, written again from its description: a point's gradient is the slope
of a linear regression on the signed distances of its 10 nearest neighbours, and its
density the count of same-side points in its neighbour list, each in a Python loop. The
regression is scikit-learn's where that is installed (it is not a dependency of d2im).
The shape is a torus, whose distance and gradient are known. Core time is the
processor's time over all threads.
"""

import common
import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

try:  # the released code's regression; without it a quicker one by numpy stands in
    from sklearn.linear_model import LinearRegression
except ImportError:
    LinearRegression = None

from d2im import fields
from d2im.sampling import (
    DENSITY_RADIUS,
    density_weights,
    sample_points,
    signed_distance,
)

NEIGHBOURS = 10
MAJOR, MINOR = 0.3, 0.12  # radii of the torus, world units


def slope(points, values):
    """Slope (3,) of the linear regression of values on points."""
    if LinearRegression is not None:
        return LinearRegression().fit(points, values).coef_[0]
    terms = np.column_stack([points, np.ones(len(points))])
    return np.linalg.lstsq(terms, values, rcond=None)[0][:3, 0]


def regressed_gradients(points, sdf):
    """Unit slopes of the linear regression on each point's nearest neighbours."""
    _, lists = cKDTree(points).query(points, NEIGHBOURS)
    gradients = []
    for near in lists:
        found = slope(points[near], sdf[near, None])
        gradients.append(found / max(np.linalg.norm(found), 1e-12))
    return np.array(gradients)


def listed_weights(points, sdf):
    """Inverse counts of the neighbours on the same side, list by list."""
    lists = cKDTree(points).query_ball_point(points, DENSITY_RADIUS)
    weights = np.zeros(len(points))
    for i, neighbours in enumerate(lists):
        values = sdf[neighbours]
        inside, outside = np.sum(values < 0), np.sum(values >= 0)
        weights[i] = 1 / (inside if sdf[i] < 0 else outside)
    return weights


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="points")
    count = common.opening(parser).count
    mesh = trimesh.creation.torus(MAJOR, MINOR, major_sections=128, minor_sections=64)
    mesh.vertices = mesh.vertices[:, [1, 2, 0]]  # the field's axis is y
    points = sample_points(mesh, count, np.random.default_rng(0))
    tensor = torch.tensor(points, requires_grad=True)
    (truth,) = torch.autograd.grad(fields.torus(MAJOR, MINOR)(tensor).sum(), tensor)

    signed_distance(mesh, points[:100])  # the first call costs imports
    (sdf, exact), ours = common.core_time(lambda: signed_distance(mesh, points))
    fitted, theirs = common.core_time(lambda: regressed_gradients(points, sdf))
    fitter = "numpy" if LinearRegression is None else "scikit-learn"
    print(f"{count:,} points on {len(mesh.faces):,} faces, regression by {fitter}")
    print("gradients: core s, mean and 99th percentile of the angle to the true ones")
    for name, seconds, found in (("ours", ours, exact), ("released", theirs, fitted)):
        cosine = np.clip((found * truth.numpy()).sum(axis=1), -1, 1)
        angle = np.rad2deg(np.arccos(cosine))
        far = np.percentile(angle, 99)
        print(f"  {name:9}{seconds:8.3f} s {angle.mean():8.2f} deg {far:8.2f} deg")
    print(f"  {theirs / ours:.0f} times faster, distances included")

    counted, ours = common.core_time(lambda: density_weights(points, sdf < 0))
    listed, theirs = common.core_time(lambda: listed_weights(points, sdf))
    print(f"density weights: ours {ours:.3f} s, released {theirs:.3f} s")
    worst = np.abs(counted / listed - 1).max()
    print(f"  {theirs / ours:.1f} times faster, equal to {worst:.0e}")


if __name__ == "__main__":
    main()
