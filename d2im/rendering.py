"""Ray casting of a mesh: image, mask, depth and smooth normals.

Normals come from crease-aware vertex normals, averaged over 2 x 2 rays a pixel: facet
normals would be constant on each triangle and leave the Laplacian target nothing.
"""

from dataclasses import dataclass

import igl
import matplotlib.colors
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

CREASE_DEGREES = 30.0  # sharper edges stay sharp in the vertex normals
SUBPIXELS = 2  # rays a pixel's side
SAME_SURFACE = 0.04  # depth range, world units, that one pixel averages over


@dataclass(frozen=True)
class View:
    """One picture of a mesh and what lies behind its pixels.

    Attributes:
        image: (3, H, W) f4 RGB in [0, 1], on white.
        mask: (H, W) bool, True on the object.
        depth: (H, W) f4, camera z in world units, 0 outside the mask.
        normals: (3, H, W) f4, camera frame, unit, toward the camera, 0 outside.
    """

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


class Renderer:
    """A mesh made ready for many views: ray-casting scene and corner normals.

    Args:
        mesh: trimesh.Trimesh, world frame. `face_attributes` may hold "part" (F,) ints,
            coloured at random a view, or "color" (F, 3) in [0, 1], used as it is.

    Raises:
        ValueError: the mesh has no face.
    """

    def __init__(self, mesh):
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
        if len(faces) == 0:
            raise ValueError("cannot render a mesh without faces")
        self.colors = mesh.face_attributes.get("color")
        parts = np.asarray(mesh.face_attributes.get("part", np.zeros(len(faces), int)))
        self.part_count, self.parts = 1 + parts.max(), parts
        normals = igl.per_corner_normals(vertices, faces, CREASE_DEGREES)
        self.corner_normals = np.nan_to_num(normals).reshape(-1, 3, 3)
        self.scene = EmbreeScene()
        triangles = vertices[faces].astype(np.float32)
        self.geometry = TriangleMesh(self.scene, triangles)

    def cast(self, camera, per_side=1):
        """Cast rays and interpolate the surface's normals.

        Args:
            camera: Camera.
            per_side: rays along a pixel's side.

        Returns:
            hit (R, R) bool, depth (R, R), normals (R, R, 3) in the camera frame turned
            toward the camera, face (R, R) int, with R = size * per_side.
        """
        origins, rays = (a.reshape(-1, 3) for a in camera.rays(per_side))
        out = self.scene.run(
            np.ascontiguousarray(origins), np.ascontiguousarray(rays), output=True
        )
        face = out["primID"].astype(np.int64)
        hit = face >= 0
        normals = np.zeros((len(face), 3))
        u, v = out["u"][hit, None], out["v"][hit, None]
        corners = self.corner_normals[face[hit]]
        blended = (1 - u - v) * corners[:, 0] + u * corners[:, 1] + v * corners[:, 2]
        blended = blended @ camera.rotation.T
        # A soup's faces may look either way: what is seen is turned toward the camera.
        toward = np.sum(blended * (rays[hit] @ camera.rotation.T), 1, keepdims=True) < 0
        normals[hit] = _unit(np.where(toward, blended, -blended))
        depth = np.where(hit, out["tfar"], 0.0)  # rays have camera z = 1
        side = camera.size * per_side
        shape = (side, side)
        return (
            hit.reshape(shape),
            depth.reshape(shape),
            normals.reshape(side, side, 3),
            face.reshape(shape),
        )

    def view(self, camera, rng):
        """Render one view with a random light and random part colours.

        Args:
            camera: Camera.
            rng: numpy Generator for colours and lights.

        Returns:
            View, at the camera's size.
        """
        hit, depth, normals, face = self.cast(camera, SUBPIXELS)
        colors = self.colors
        if colors is None:
            colors = _part_colors(self.part_count, rng)[self.parts]
        shaded = _expose(colors[face] * _shade(normals, rng)[..., None], hit)
        image = np.where(hit[..., None], np.clip(shaded, 0, 1), 1.0)

        hit, depth, normals, image = (_blocks(a) for a in (hit, depth, normals, image))
        mask = hit.mean(0) >= 0.5
        near = np.where(hit, depth, np.inf).min(0)
        # Only rays that met the nearest surface count for depth and normal.
        weight = hit & (depth <= near + SAME_SURFACE)
        total = np.maximum(weight.sum(0), 1)
        depth = np.where(mask, (depth * weight).sum(0) / total, 0.0)
        normals = _unit((normals * weight[..., None]).sum(0)) * mask[..., None]
        return View(
            image=np.moveaxis(image.mean(0), -1, 0).astype(np.float32),
            mask=mask,
            depth=depth.astype(np.float32),
            normals=np.moveaxis(normals, -1, 0).astype(np.float32),
        )


def render(mesh, camera, rng):
    """Render a mesh: image, mask, depth and normal map.

    For many views of one mesh, make a `Renderer` once and call its `view`.

    Args:
        mesh: trimesh.Trimesh, world frame.
        camera: Camera.
        rng: numpy Generator for colours and lights.

    Returns:
        View.

    Raises:
        ValueError: the mesh has no face.
    """
    return Renderer(mesh).view(camera, rng)


def _blocks(a):
    """(R, R, ...) -> (4, H, W, ...): the rays of each pixel along the first axis."""
    s = SUBPIXELS
    side = len(a) // s
    a = a.reshape(side, s, side, s, *a.shape[2:])
    return np.moveaxis(a, (1, 3), (0, 1)).reshape(s * s, side, side, *a.shape[4:])


def _unit(vectors):
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def _part_colors(count, rng):
    """Colours that a light can model: neither black nor as white as the background."""
    hsv = np.stack(
        [
            rng.random(count),
            rng.uniform(0.15, 0.7, count),
            rng.uniform(0.5, 0.95, count),
        ],
        axis=-1,
    )
    return matplotlib.colors.hsv_to_rgb(hsv)


def _expose(shaded, hit):
    """Brighten a dark object, as a photographer would: black hides its relief."""
    brightness = shaded[hit].mean() if hit.any() else 1.0
    return shaded * np.clip(0.45 / max(brightness, 1e-6), 1, 4)


def _shade(normals, rng):
    """Brightness from an ambient, a slanting key light and a weak light at the camera.

    The key light stands up to 65° off the viewing axis, so that relief throws a
    gradient; ambient and camera light leave no visible face black.
    """
    angle = rng.uniform(0, 2 * np.pi)
    tilt = np.radians(rng.uniform(35, 65))
    key = [
        np.sin(tilt) * np.cos(angle),
        -abs(np.sin(tilt) * np.sin(angle)),
        -np.cos(tilt),
    ]
    diffuse = np.clip(normals @ np.array(key), 0, None)
    return 0.3 + 0.7 * diffuse + 0.2 * np.clip(-normals[..., 2], 0, None)
