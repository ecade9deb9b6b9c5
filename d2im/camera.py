"""The pinhole camera: poses, projection u(p) and rays.

World frame: right-handed, y up, the object's front faces +z. Camera frame: x right,
y down, z forward (OpenCV); depth is the camera's z, not the ray's length.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

if TYPE_CHECKING:  # cameras are used without torch, too
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")
Range = tuple[float, float]

LENS_MM, SENSOR_MM = 35.0, 32.0  # focal px = 35 * size / 32: 245 at 224 px
DISTANCE = 1.75  # world units at ratio 1: the object (radius 0.5) fills the picture


def project(points: Array, cameras: Array) -> tuple[Array, Array]:
    """Project world points: u(p) of the paper.

    u = focal * (x/z, y/z) + centre in pixels, then uv = u * 2/size - 1, which is what
    `grid_sample(align_corners=False)` reads.

    Args: points: (..., P, 3) world, numpy or torch.
        cameras: (..., 16) of the same kind, rows of `Camera.to_array`.
    Returns: uv (..., P, 2), pixel edges at ±1, and the points in their camera's frame,
        rotation @ p + translation, (..., P, 3).
    """
    rotation = cameras[..., :9].reshape(*cameras.shape[:-1], 3, 3)
    # No matrix product: half precision is for these, and its 8 bits miss the pixel.
    x, y, z = (rotation[..., None, :, k] for k in range(3))  # where the axes lead
    turned = points[..., :1] * x + points[..., 1:2] * y + points[..., 2:] * z
    camera_points = turned + cameras[..., None, 9:12]
    focal, size = cameras[..., 12, None, None], cameras[..., 15, None, None]
    centre = cameras[..., None, 13:15]
    pixels = focal * camera_points[..., :2] / camera_points[..., 2:] + centre
    return pixels * (2.0 / size) - 1.0, camera_points


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera that looks at the origin, or a general one by matrices.

    Args: azimuth: degrees; 0 in front of the object (+z), growing toward +x.
        elevation: degrees, growing toward +y.
        ratio: distance from the origin in units of 1.75 world units.
        size: side of the square picture, pixels.
    Attributes: rotation (3, 3) and translation (3,), x_cam = rotation @ x_world +
        translation; focal, pixels; centre (2,), pixels, pixel centres at k + 0.5.
    Raises: ValueError: a number that is not finite, a ratio or size not positive.
    """

    rotation: np.ndarray
    translation: np.ndarray
    focal: float
    centre: np.ndarray
    size: int

    def __init__(self, azimuth: float, elevation: float, ratio: float, size: int):
        pose = np.array([azimuth, elevation, ratio], dtype=float)
        if not np.isfinite([*pose, size]).all() or ratio <= 0 or size < 1:
            raise ValueError(
                "Camera needs finite degrees, ratio > 0 and size >= 1, got "
                f"azimuth={azimuth}, elevation={elevation}, ratio={ratio}, size={size}"
            )
        size = int(size)
        a, e = np.radians(pose[:2])
        forward = -np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        right = np.array([np.cos(a), 0.0, -np.sin(a)])  # level at every elevation
        rotation = np.stack([right, np.cross(forward, right), forward])
        translation = np.array([0.0, 0.0, DISTANCE * ratio])  # it looks at the origin
        focal = LENS_MM * size / SENSOR_MM
        self._set(rotation, translation, focal, np.full(2, size / 2), size)

    @classmethod
    def from_matrices(
        cls,
        rotation: np.ndarray,
        translation: np.ndarray,
        focal: float,
        centre: np.ndarray,
        size: int,
    ) -> Self:
        """Make a camera from its matrices.

        Args: rotation: (3, 3) orthonormal, determinant 1, world to camera.
            translation: (3,). focal: pixels. centre: (2,) pixels. size: pixels.
        Raises: ValueError: wrong shapes, a matrix that is no rotation, a number that is
            not finite, a focal length not above 0 or a size below 1.
        """
        rotation, translation, centre = (
            np.asarray(x, dtype=float) for x in (rotation, translation, centre)
        )
        shapes = rotation.shape, translation.shape, centre.shape
        if shapes != ((3, 3), (3,), (2,)):
            raise ValueError(
                "Camera.from_matrices needs rotation (3, 3), translation (3,), centre "
                f"(2,), got {', '.join(map(str, shapes))}"
            )
        off = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if not (off < 1e-4 and np.linalg.det(rotation) > 0):
            raise ValueError(
                "Camera.from_matrices needs a rotation matrix (orthonormal, "
                f"determinant 1), got one that is off by {off:.2g}"
            )
        camera = cls.__new__(cls)
        camera._set(rotation, translation, focal, centre, size)
        return camera

    def _set(self, rotation, translation, focal, centre, size):
        numbers = np.array([*translation, focal, *centre, size], dtype=float)
        if not np.isfinite(numbers).all():
            raise ValueError(f"a camera has finite numbers, got {numbers.tolist()}")
        if not (focal > 0 and size >= 1 and size == int(size)):
            wrong = f"got focal={focal:g}, size={size:g}"
            raise ValueError(f"a camera has focal > 0 and a whole size >= 1, {wrong}")
        values = rotation, translation, float(focal), centre, int(size)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)  # the dataclass is frozen

    @property
    def position(self) -> np.ndarray:
        """The camera's centre in world coordinates, (3,)."""
        return -self.rotation.T @ self.translation

    @property
    def pose(self) -> tuple[float, float, float]:
        """Azimuth and elevation in degrees, and the ratio, of where the camera is."""
        x, y, z = self.position
        distance = float(np.linalg.norm(self.position))
        azimuth, elevation = np.degrees([np.arctan2(x, z), np.arcsin(y / distance)])
        return float(azimuth), float(elevation), distance / DISTANCE

    def project(self, points: Array) -> tuple[Array, Array]:
        """Project world points, see the function `project`.

        Args: points: (P, 3) world, numpy or torch.
        Returns: uv (P, 2) in [-1, 1] inside the picture, and depth (P,) = camera z.
        """
        camera = self.to_array()
        if hasattr(points, "new_tensor"):  # torch, without importing it here
            camera = points.new_tensor(camera)
        uv, camera_points = project(points, camera)
        return uv, camera_points[..., 2]

    def rays(self, per_side: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """World rays through each pixel, or through a grid of sub-pixels.

        Directions have camera z = 1, so that a ray's parameter at a hit is its depth.

        Args: per_side: sub-pixels along a pixel's side.
        Returns: origins and directions, each (size * per_side, size * per_side, 3), f4.
        """
        steps = (np.arange(self.size * per_side) + 0.5) / per_side
        x, y = ((steps - centre)[:, None] / self.focal for centre in self.centre)
        right, down, forward = self.rotation
        directions = (y * down)[:, None] + (x * right + forward)
        directions = directions.astype(np.float32)
        return np.full_like(directions, self.position), directions

    def resized(self, size: int) -> Self:
        """The same camera for a picture of another size in pixels."""
        scale = size / self.size
        lens = self.focal * scale, self.centre * scale
        return Camera.from_matrices(self.rotation, self.translation, *lens, size)

    def to_array(self) -> np.ndarray:
        """The camera as 16 floats: rotation, translation, focal, centre, size."""
        lens = self.focal, *self.centre, self.size
        return np.concatenate([self.rotation.ravel(), self.translation, lens])

    @classmethod
    def from_array(cls, array: np.ndarray) -> Self:
        """The inverse of `to_array`."""
        array = np.asarray(array, dtype=float)
        if array.shape != (16,):
            raise ValueError(f"a camera array has 16 numbers, got {array.shape}")
        rotation = array[:9].reshape(3, 3)
        lens = array[12], array[13:15], array[15]
        return cls.from_matrices(rotation, array[9:12], *lens)


def yaw_rotation(degrees: float) -> np.ndarray:
    """Rotation (3, 3) about y, from +z toward +x."""
    s, c = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def random_camera(
    rng: np.random.Generator,
    size: int,
    *,
    azimuth: Range = (-60, 60),
    elevation: Range = (0, 40),
    ratio: Range = (0.8, 1),
) -> Camera:
    """Draw a camera that sees the object's front.

    Args: rng: numpy Generator. size: pixels.
        azimuth, elevation: ranges in degrees; ratio: range of distances.
    """
    pose = [rng.uniform(*bounds) for bounds in (azimuth, elevation, ratio)]
    return Camera(*pose, size)
