"""The pinhole camera: poses, projection u(p) and rays.

World frame: right-handed, y up, the object's front faces +z. Camera frame: x right,
y down, z forward (OpenCV); depth is the camera's z, not the ray's length.
"""

from dataclasses import dataclass

import numpy as np

LENS_MM, SENSOR_MM = 35.0, 32.0  # focal px = 35 * size / 32: 245 at 224 px
DISTANCE = 1.75  # world units at ratio 1: the object (radius 0.5) fills the picture


def world_to_camera(points, rotation, translation):
    """Turn world points into the camera frame.

    Args:
        points: (..., P, 3) world, numpy or torch.
        rotation: (..., 3, 3), world to camera.
        translation: (..., 3).

    Returns:
        (..., P, 3) in the camera frame: rotation @ p + translation.
    """
    return points @ rotation.swapaxes(-1, -2) + translation[..., None, :]


def camera_to_uv(camera_points, focal, centre, size):
    """Project camera-frame points to uv in [-1, 1], pixel edges at ±1.

    u = focal * (x/z, y/z) + centre in pixels, then uv = u * 2/size - 1, which is what
    `grid_sample(align_corners=False)` reads. Depth is kept apart by the caller.

    Args:
        camera_points: (..., P, 3), z > 0.
        focal: scalar or (..., 1, 1), pixels.
        centre: (2,) or (..., 1, 2), pixels.
        size: side of the picture in pixels.

    Returns:
        (..., P, 2).
    """
    pixels = focal * camera_points[..., :2] / camera_points[..., 2:] + centre
    return pixels * (2.0 / size) - 1.0


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera that looks at the origin, or a general one by matrices.

    Args:
        azimuth: degrees; 0 in front of the object (+z), growing toward +x.
        elevation: degrees, growing toward +y.
        ratio: distance from the origin in units of 1.75 world units.
        size: side of the square picture, pixels.

    Attributes:
        rotation (3, 3) and translation (3,): x_cam = rotation @ x_world + translation.
        focal: pixels. centre (2,): pixels, pixel centres at k + 0.5.

    Raises:
        ValueError: a number that is not finite, a ratio or a size that is not positive.
    """

    rotation: np.ndarray
    translation: np.ndarray
    focal: float
    centre: np.ndarray
    size: int

    def __init__(self, azimuth, elevation, ratio, size):
        pose = np.array([azimuth, elevation, ratio], dtype=float)
        if not np.isfinite(pose).all() or ratio <= 0 or size < 1:
            raise ValueError(
                "Camera needs finite degrees, ratio > 0 and size >= 1, got "
                f"azimuth={azimuth}, elevation={elevation}, ratio={ratio}, size={size}"
            )
        a, e = np.radians(pose[:2])
        forward = -np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        right = np.array([np.cos(a), 0.0, -np.sin(a)])  # level at every elevation
        rotation = np.stack([right, np.cross(forward, right), forward])
        translation = np.array([0.0, 0.0, DISTANCE * ratio])  # it looks at the origin
        focal = LENS_MM * size / SENSOR_MM
        self._set(rotation, translation, focal, np.full(2, size / 2), size)

    @classmethod
    def from_matrices(cls, rotation, translation, focal, centre, size):
        """Make a camera from its matrices.

        Args:
            rotation: (3, 3) orthonormal, determinant 1, world to camera.
            translation: (3,).
            focal: pixels.
            centre: (2,) pixels.
            size: pixels.

        Raises:
            ValueError: wrong shapes, or a matrix that is no rotation.
        """
        rotation, translation, centre = (
            np.asarray(x, dtype=float) for x in (rotation, translation, centre)
        )
        if (
            rotation.shape != (3, 3)
            or translation.shape != (3,)
            or centre.shape != (2,)
        ):
            raise ValueError(
                "Camera.from_matrices needs rotation (3, 3), translation (3,), centre "
                f"(2,), got {rotation.shape}, {translation.shape}, {centre.shape}"
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
        values = rotation, translation, float(focal), centre, int(size)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def position(self):
        """The camera's centre in world coordinates, (3,)."""
        return -self.rotation.T @ self.translation

    def project(self, points):
        """Project world points: u(p) of the paper.

        Args:
            points: (P, 3) world, numpy or torch.

        Returns:
            uv (P, 2) in [-1, 1] inside the picture, and depth (P,) = camera z.
        """
        rotation, translation, centre = self.rotation, self.translation, self.centre
        if hasattr(points, "new_tensor"):  # torch, without importing it here
            rotation, translation, centre = (
                points.new_tensor(x) for x in (rotation, translation, centre)
            )
        camera_points = world_to_camera(points, rotation, translation)
        uv = camera_to_uv(camera_points, self.focal, centre, self.size)
        return uv, camera_points[..., 2]

    def rays(self, per_side=1):
        """World rays through each pixel, or through a grid of sub-pixels.

        Directions have camera z = 1, so that a ray's parameter at a hit is its depth.

        Args:
            per_side: sub-pixels along a pixel's side.

        Returns:
            origins and directions, each (size * per_side, size * per_side, 3), f4.
        """
        steps = (np.arange(self.size * per_side) + 0.5) / per_side
        x, y = np.meshgrid(
            (steps - self.centre[0]) / self.focal, (steps - self.centre[1]) / self.focal
        )
        directions = np.stack([x, y, np.ones_like(x)], -1) @ self.rotation
        origins = np.broadcast_to(self.position, directions.shape)
        return origins.astype(np.float32), directions.astype(np.float32)

    def resized(self, size):
        """The same camera for a picture of another size in pixels."""
        scale = size / self.size
        return Camera.from_matrices(
            self.rotation,
            self.translation,
            self.focal * scale,
            self.centre * scale,
            size,
        )

    def to_array(self):
        """The camera as 16 floats: rotation, translation, focal, centre, size."""
        return np.concatenate(
            [
                self.rotation.ravel(),
                self.translation,
                [self.focal],
                self.centre,
                [self.size],
            ]
        )

    @classmethod
    def from_array(cls, array):
        """The inverse of `to_array`."""
        array = np.asarray(array, dtype=float)
        if array.shape != (16,):
            raise ValueError(f"a camera array has 16 numbers, got {array.shape}")
        rotation = array[:9].reshape(3, 3)
        return cls.from_matrices(
            rotation, array[9:12], array[12], array[13:15], array[15]
        )


def random_camera(rng, size, *, azimuth=(-60, 60), elevation=(0, 40), ratio=(0.8, 1)):
    """Draw a camera that sees the object's front.

    Args:
        rng: numpy Generator.
        size: pixels.
        azimuth, elevation: ranges in degrees; ratio: range of distances.
    """
    pose = [rng.uniform(*bounds) for bounds in (azimuth, elevation, ratio)]
    return Camera(*pose, size)


def project(points, cameras):
    """Project a batch of points through a batch of cameras, on torch tensors.

    Args:
        points: (B, P, 3) world.
        cameras: (B, 16), rows of `Camera.to_array`.

    Returns:
        uv (B, P, 2) and the points in their camera's frame (B, P, 3).
    """
    rotation, translation = cameras[:, :9].reshape(-1, 3, 3), cameras[:, 9:12]
    focal, centre, size = cameras[:, 12], cameras[:, 13:15], cameras[:, 15]
    camera_points = world_to_camera(points, rotation, translation)
    uv = camera_to_uv(
        camera_points, focal[:, None, None], centre[:, None], size[:, None, None]
    )
    return uv, camera_points
