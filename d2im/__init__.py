"""D²IM-Net: a shape with its details from one image (Li and Zhang, CVPR 2021).

Nothing heavy is imported here: each name brings in its part on first use, so that
`import d2im` costs nothing and works where, say, libigl or embreex is absent.
"""

from importlib import import_module

__version__ = "0.1.0"

PARTS = {  # part -> the names it gives to the package
    "shapes": ("Shape", "make_shape", "split_pairs"),
    "mesh": ("load_mesh",),
    "camera": ("Camera",),
    "rendering": ("View", "render"),
    "sampling": ("SDFSamples", "sample_sdf"),
    "dataset": ("ShapeDataset", "prepare"),
    "readers": ("check_yaw", "read_disn", "read_occnet", "write_set"),
    "networks": ("DISN", "CameraNet", "D2IMNet", "IMNet", "ImageModel"),
    "released": ("load_imagenet_weights", "load_released_checkpoint"),
    "training": ("train",),
    "meshing": ("extract_mesh",),
    "reconstruction": ("Reconstruction", "reconstruct"),
}
OTHERS = """solids isolation resident fields losses checkpoints distributed pictures
cubes editing metrics plots benchmark widgets run"""  # as d2im.losses and so on
PARTS |= {part: () for part in OTHERS.split()}
_HOME = {name: part for part, names in PARTS.items() for name in names}

__all__ = ["__version__", *PARTS, *_HOME]


def __getattr__(name):
    if name in PARTS:
        return import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value  # the next look-up does not come here
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *PARTS, *_HOME])
