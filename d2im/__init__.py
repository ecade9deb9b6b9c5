"""D²IM-Net: a shape with its details from one image (Li and Zhang, CVPR 2021).

The six files beside this one are the method: networks, fields, laplacian, losses,
sampling, camera. The folders are the wings that serve it, see docs/architecture.md.

Nothing heavy is imported here: each name brings in its module on first use, so that
`import d2im` costs nothing and works where, say, libigl or embreex is absent.
"""

import os
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

__version__ = "0.1.0"

# Idle OpenMP threads spin by default, which slows a busy machine (benchmarks/busy.py).
# torch reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NAMES = {  # module -> the names that it gives to the package
    "camera": ("Camera",),
    "networks": ("DISN", "CameraNet", "D2IMNet", "IMNet", "ImageModel"),
    "sampling": ("SDFSamples", "sample_sdf"),
    "data.shapes": ("Shape", "make_shape", "split_pairs"),
    "data.mesh": ("load_mesh",),
    "data.rendering": ("View", "render"),
    "data.dataset": ("ShapeDataset", "prepare"),
    "data.readers": ("check_yaw", "read_disn", "read_occnet", "write_set"),
    "data.shapenet": ("prepare_shapenet",),
    "data.sweethome": ("prepare_sweethome",),
    "training.loop": ("train",),
    "surface.extract": ("extract_mesh",),
    "use.reconstruction": ("Reconstruction", "reconstruct"),
    "use.cameras": ("CameraFit", "fit_camera"),
    "use.refinement": ("RefineOptions", "refine"),
    "use.released": (
        "load_imagenet_weights",
        "load_mobile_weights",
        "load_released_checkpoint",
    ),
}
METHOD = "networks fields laplacian losses sampling camera".split()
# Modules that stood in one folder once, by their names there: d2im.metrics and so on.
MOVED = {
    "shapes": "data.shapes",
    "solids": "data.solids",
    "mesh": "data.mesh",
    "rendering": "data.rendering",
    "dataset": "data.dataset",
    "readers": "data.readers",
    "isolation": "data.isolation",
    "checkpoints": "training.checkpoints",
    "resident": "training.resident",
    "distributed": "training.distributed",
    "patches": "training.patches",
    "meshing": "surface.extract",
    "cubes": "surface.cubes",
    "pictures": "use.pictures",
    "reconstruction": "use.reconstruction",
    "editing": "use.editing",
    "released": "use.released",
    "metrics": "evaluate",
    "benchmark": "evaluate.benchmark",
    "plots": "show.plots",
    "widgets": "show.widgets",
    "pages": "show.pages",
    "run": "show.run",
}
_HOME = {name: module for module, names in NAMES.items() for name in names}
_MODULES = {name: name for name in (*METHOD, "training")} | MOVED

__all__ = ["__version__", *_MODULES, *_HOME]


def __getattr__(name):
    if name in _MODULES:
        value = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__():
    return sorted([*globals(), *_MODULES, *_HOME])


class _MovedModules(MetaPathFinder, Loader):
    """Finds the modules of MOVED under their old names, for `import` and `python -m`.

    They are the same objects under both names.
    """

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package == __name__ and name in MOVED:
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__.rpartition(".")[2]
        sys.modules[module.__name__] = import_module(f"{__name__}.{MOVED[name]}")

    def get_code(self, fullname):  # of `python -m`
        command = fullname.rpartition(".")[2].replace("reconstruction", "reconstruct")
        start = f"sys.exit(main(['{command}', *sys.argv[1:]]))"
        source = f"import sys\nfrom {__name__}.__main__ import main\n{start}"
        return compile(source, fullname, "exec")


sys.meta_path.append(_MovedModules())
