"""Ray casting of a mesh: image, mask, depth and smooth normals.

Normals come from crease-aware vertex normals, averaged over 2 x 2 rays a pixel: facet
normals would be constant on each triangle and leave the Laplacian target nothing.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import matplotlib.colors
import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter, zoom

if TYPE_CHECKING:
    import trimesh
    from embreex.rtcore_scene import EmbreeScene

    from ..camera import Camera

CREASE_DEGREES = 30.0  # sharper edges stay sharp in the vertex normals
SUBPIXELS = 2  # rays a pixel's side
OCCLUSION = 0.7  # of the light that a fully blocked place loses: never black
OCCLUSION_REACH = 0.2  # world units
OFF_SURFACE = 2e-3  # where such rays start, world units
# 64 directions spread over the sphere along a spiral.
_HEIGHT, _TURN = (np.arange(64) * 2 + 1) / 64 - 1, np.arange(64) * np.pi * (3 - 5**0.5)
_FLAT = np.sqrt(1 - _HEIGHT**2)
SPHERE = np.stack([_FLAT * np.cos(_TURN), _FLAT * np.sin(_TURN), _HEIGHT], axis=1)
DARKEST = 0.15  # brightest channel of a face's colour at least
SAME_SURFACE = 0.04  # depth range, world units, that one pixel averages over


def ray_scene(triangles: np.ndarray) -> EmbreeScene:
    """Triangles (F, 3, 3) made ready for rays: an embree scene."""
    from embreex.mesh_construction import TriangleMesh  # absent where one only trains
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, triangles.astype(np.float32))
    return scene


class View(NamedTuple):
    """One picture of a mesh and what lies behind its pixels."""

    image: np.ndarray  # (3, H, W) f4 RGB in [0, 1], on white
    mask: np.ndarray  # (H, W) bool, True on the object
    depth: np.ndarray  # (H, W) f4, camera z in world units, 0 outside the mask
    normals: np.ndarray  # (3, H, W) f4, camera frame, unit, toward the camera, or 0


class Renderer:
    """A mesh made ready for many views: ray-casting scene and corner normals.

    Args: mesh: trimesh.Trimesh, world frame. `face_attributes` may hold "part" (F,)
        ints, coloured at random a view, or "color" (F, 3) in [0, 1], kept unless black.
        textures: paint those of `load_mesh` over "color", which has their means.
    Raises: ValueError: the mesh has no face.
    """

    def __init__(self, mesh: trimesh.Trimesh, textures: bool = False):
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
        if len(faces) == 0:
            raise ValueError("cannot render a mesh without faces")
        self.colors = mesh.face_attributes.get("color")
        if self.colors is not None:  # black would hide the relief
            brightest = self.colors.max(1, keepdims=True)
            self.colors = self.colors + np.maximum(DARKEST - brightest, 0)
        parts = np.asarray(mesh.face_attributes.get("part", np.zeros(len(faces), int)))
        self.part_count, self.parts = 1 + parts.max(), parts
        import igl  # absent on a machine that only trains

        normals = igl.per_corner_normals(vertices, faces, CREASE_DEGREES)
        self.corner_normals = np.nan_to_num(normals).reshape(-1, 3, 3).astype("f4")
        self.corners = np.array(list(product(*mesh.bounds.T)))
        worn, self.textures = mesh.metadata.get("worn") if textures else None, []
        if worn:
            from .facets import rendered_texture  # likewise

            read = {}  # parts may share a picture
            for texture, tint in worn:
                key = texture, np.asarray(tint, float).tobytes()
                if key not in read:
                    read[key] = rendered_texture(texture, tint), texture.wrap
                self.textures.append(read[key])
            self.worn = mesh.face_attributes["worn"]
            self.uv = mesh.face_attributes["uv"].reshape(-1, 2, 4)
        self.scene = ray_scene(vertices[faces])

    def cast(self, camera: Camera, per_side: int = 1) -> list[np.ndarray]:
        """Cast rays and interpolate the surface's normals.

        Args: camera, a Camera; per_side, rays along a pixel's side.
        Returns: hit (R, R) bool, depth (R, R), normals (R, R, 3) in the camera frame
            turned toward the camera, face (R, R) int, with R = size * per_side.
        """
        index, _, depth, normals, face = self._hits(camera, per_side)
        side = camera.size * per_side
        maps = []
        for values in (np.ones(len(index), bool), depth, normals, face):
            whole = np.zeros((side * side, *values.shape[1:]), values.dtype)
            whole[index] = values
            maps.append(whole.reshape(side, side, *values.shape[1:]))
        return maps

    def _hits(self, camera, per_side):
        """The K rays that meet the surface: index, direction, and what `cast` gives."""
        side = camera.size * per_side
        uv, z = camera.project(self.corners)
        frame = ((uv + 1) / 2 * side) if z.min() > 0 else np.array([[0, 0], [side] * 2])
        left, top = np.floor(frame.min(0)).clip(0, side).astype(int)
        right, bottom = np.ceil(frame.max(0)).clip(0, side).astype(int)
        window = np.arange(side * side).reshape(side, side)[top:bottom, left:right]
        window = window.reshape(-1)
        origins, rays = (a.reshape(-1, 3)[window] for a in camera.rays(per_side))
        out = self.scene.run(origins, rays, output=True)
        hit = np.flatnonzero(out["primID"] >= 0)
        face = out["primID"][hit].astype(np.int64)
        u, v = out["u"][hit, None], out["v"][hit, None]
        a, b, c = np.moveaxis(self.corner_normals[face], 1, 0)
        normals = a + u * (b - a) + v * (c - a)
        # A soup's faces may look either way: what is seen is turned toward the camera.
        rays, index, depth = rays[hit], window[hit], out["tfar"][hit]
        normals[np.einsum("ki,ki->k", normals, rays) >= 0] *= -1
        normals = _unit(normals @ camera.rotation.T.astype(np.float32))
        return index, rays, depth, normals, face  # camera z of rays is 1

    def view(
        self,
        camera: Camera,
        rng: np.random.Generator,
        background: np.ndarray | None = None,
    ) -> View:
        """Render one view with a random light and random part colours.

        Args: camera: Camera. rng: numpy Generator for colours and lights.
            background: (H, W, 3) in [0, 1], see `random_background`; None is white.
        Returns: View of the camera's size.
        """
        size, side = camera.size, camera.size * SUBPIXELS
        index, rays, depth, normals, face = self._hits(camera, SUBPIXELS)
        pixel = index // side // SUBPIXELS * size + index % side // SUBPIXELS
        colors = self.colors
        if colors is None:  # such as a light can model: neither black nor nearly white
            ranges = (0, 1), (0.15, 0.7), (0.5, 0.95)  # hue, saturation, value
            hsv = [rng.uniform(*bounds, self.part_count) for bounds in ranges]
            colors = matplotlib.colors.hsv_to_rgb(np.stack(hsv, axis=-1))[self.parts]
        points = camera.position.astype("f4") + depth[:, None] * rays
        outward = normals @ camera.rotation.astype("f4")
        light = _shade(normals, rng)
        light *= self._openness(points, outward, index, pixel, size)
        colors = colors[face]
        if self.textures:
            colors = self._textured(colors, face, points, depth / camera.focal)
        shaded = colors * light[:, None]
        # A dark object is brightened, as by a photographer: black hides its relief.
        mean = shaded.mean() if len(shaded) else 1.0
        shaded = np.clip(shaded * np.clip(0.45 / max(mean, 1e-6), 1, 4), 0, 1)

        # Only rays that met the nearest surface count for depth and normal.
        near = np.full(size * size, np.inf, dtype=np.float32)
        np.minimum.at(near, pixel, depth)
        first = (depth <= near[pixel] + SAME_SURFACE)[:, None]
        one = np.ones_like(first)
        values = [shaded, one, normals * first, depth[:, None] * first, first]
        sums = np.stack(
            [np.bincount(pixel, v, size * size) for v in np.hstack(values).T], axis=-1
        ).reshape(size, size, -1)

        covered = sums[..., 3:4] / SUBPIXELS**2
        behind = 1.0 if background is None else background
        image = sums[..., :3] / SUBPIXELS**2 + (1 - covered) * behind
        mask = covered[..., 0] >= 0.5
        normals = _unit(sums[..., 4:7]) * mask[..., None]
        depth = sums[..., 7] / sums[..., 8].clip(1) * mask
        image, normals = (np.moveaxis(a, -1, 0).astype("f4") for a in (image, normals))
        return View(image, mask, depth.astype("f4"), normals)

    def _textured(self, colors, face, points, pixel):
        """Colours (K, 3) of hits, from textures where their faces wear some.

        A texture is made as small as the rays are wide apart there: a `pixel` (K,),
        world units, has SUBPIXELS a side.
        """
        from .facets import texels_at

        for k, (texels, wrap) in enumerate(self.textures):
            hit = np.flatnonzero(self.worn[face] == k)
            slope, start = np.split(self.uv[face[hit]], [3], axis=2)
            uv = (slope @ points[hit, :, None] + start)[..., 0]
            step = np.linalg.norm(slope, axis=2).max(axis=1) * pixel[hit] / SUBPIXELS
            level = np.log2((step * max(texels.shape)).clip(1, 1024)).round()
            for one in np.unique(level):
                small, own = Image.fromarray(texels).reduce(2 ** int(one)), level == one
                colors[hit[own]] = texels_at(np.asarray(small), uv[own], wrap) / 255
        return colors + np.maximum(DARKEST - colors.max(1, keepdims=True), 0)

    def _openness(self, points, normals, index, pixel, size):
        """Ambient occlusion of points (K, 3): 1 in the open, less in corners, (K,).

        One short ray a hit, in one of 64 cosine-weighted directions that take turns in
        blocks of 8 x 8 rays, whose mean is taken.
        """
        row, column = np.divmod(index, size * SUBPIXELS)
        directions = _unit(normals + SPHERE[row % 8 * 8 + column % 8]).astype("f4")
        reach = np.full(len(points), OCCLUSION_REACH, dtype=np.float32)
        points = points + OFF_SURFACE * normals
        found = self.scene.run(points, directions, dists=reach, query="OCCLUDED")
        sums = [
            np.bincount(pixel, w, size * size).reshape(size, size)
            for w in (found >= 0, np.ones(len(found)))
        ]
        blocked, asked = (uniform_filter(a, 8 // SUBPIXELS) for a in sums)
        return 1 - OCCLUSION * (blocked.flat[pixel] / asked.flat[pixel])


def render(mesh: trimesh.Trimesh, camera: Camera, rng: np.random.Generator) -> View:
    """One `Renderer(mesh).view(camera, rng)`; for many views make the Renderer once."""
    return Renderer(mesh).view(camera, rng)


def random_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a wall and mostly a floor: plain, striped, tiled or cloudy, of two tints.

    Args: size in pixels, rng a numpy Generator. Returns: (H, W, 3) f4 in [0, 1].
    """
    x, y = np.meshgrid(*2 * [(np.arange(size, dtype="f4") + 0.5) / size])
    planes = []
    for _ in range(2):
        kind, angle = rng.integers(4), rng.uniform(0, np.pi)
        mix = along = x * np.cos(angle) + y * np.sin(angle)
        if kind in (1, 2):
            across = y * np.cos(angle) - x * np.sin(angle)
            stripes, others = (np.sin(rng.uniform(15, 60) * a) for a in (along, across))
            mix = 0.5 + 0.5 * np.clip(stripes * (4 * others if kind == 2 else 1), -1, 1)
        elif kind == 3:
            clouds = [rng.random((n, n)).astype("f4") for n in (3, 8, 20)]
            mix = sum(zoom(a, size / len(a), order=1)[:size, :size] for a in clouds) / 3
        tint = rng.uniform(0.25, 0.95) + rng.uniform(-0.15, 0.15, 3)  # rooms are pale
        planes.append(tint + mix[..., None] * rng.uniform(-0.3, 0.3, 3))
    horizon = rng.uniform(0.45, 1.1) + rng.uniform(-0.1, 0.1) * (x - 0.5)
    floor = np.clip((y - horizon) * size, 0, 1)[..., None]  # smooth over a pixel
    image = planes[0] + floor * (planes[1] - planes[0])
    grain = rng.standard_normal(image.shape, dtype="f4") * rng.uniform(0, 0.03)
    return (image + grain).clip(0, 1).astype(np.float32)


def _unit(vectors):
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    return vectors / np.maximum(length, 1e-12)[..., None]


def _shade(normals, rng):
    """Brightness from an ambient, a slanting key light and a weak light at the camera.

    The key light stands up to 65° off the viewing axis, so that relief throws a
    gradient; ambient and camera light leave no visible face black.
    """
    angle = rng.uniform(0, 2 * np.pi)
    tilt = np.radians(rng.uniform(35, 65))
    x, y = np.sin(tilt) * np.cos(angle), np.sin(tilt) * np.sin(angle)
    diffuse = np.clip(normals @ np.array([x, -abs(y), -np.cos(tilt)]), 0, None)
    return 0.3 + 0.7 * diffuse + 0.2 * np.clip(-normals[..., 2], 0, None)
