"""The command line: d2im reconstruct | refine | prepare | run | table | benchmark.

Help costs no import of torch: each command brings in its module when it works.
"""

import argparse
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import __version__
from .data.files import one_line


def main(arguments=None):
    """Run a command; return its exit code: 0 done, 1 a failure, 2 a wrong argument."""
    parser = argparse.ArgumentParser("d2im", description="Shapes from single images.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_reconstruct, _refine, _prepare, _run, _table, _benchmark):
        add(commands)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    own = {"shapenet": _shapenet, "sweethome3d": _sweethome}  # ./shapenet is a folder
    if arguments[:1] == ["prepare"] and (make := own.get("".join(arguments[1:2]))):
        parser, arguments = make(), arguments[2:]
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    try:
        command(**given)
    except KeyboardInterrupt:
        return _failed("interrupted")
    except ModuleNotFoundError as error:
        noted = command is run or (command is benchmark and given["model"])
        extra = "notebooks" if noted else "data"
        return _failed(f"{error}: pip install 'd2im[{extra}]'")
    except ImportError as error:  # it says what to install
        return _failed(error)
    except (ValueError, FileNotFoundError) as error:
        return _failed(error, 2)
    except (OSError, MemoryError, RuntimeError) as error:
        return _failed(error)
    return 0


def _failed(error, code=1):
    print(f"error: {one_line(error) or type(error).__name__}", file=sys.stderr)
    return code


def _command(commands, function, about, usage=None):
    """A parser of its own for a command, and its `add_argument`."""
    name = function.__name__
    parser = commands.add_parser(name, help=about, description=about, usage=usage)
    parser.set_defaults(command=function)
    return parser.add_argument


def _reconstruct(commands):
    add = _command(commands, reconstruct, "Make a mesh of the object in a picture.")
    about = "picture of one object; or several, or a folder of them"
    add("images", nargs="+", metavar="image", help=about)
    about = ".glb, .obj, .ply, .stl or .3mf file; of several pictures a folder"
    add("-o", "--out", required=True, help=about)
    add("--model", help="folder of a model (data/models/d2im-base)")
    _camera(add, "a model guesses")
    add("--camera-model", help="folder of that model (data/models/camera-small)")
    about = "move the camera until the base's outline is the picture's"
    add("--fit-camera", action="store_true", help=about)
    add("--resolution", type=int, default=128, metavar="N", help="grid a side (128)")
    add("--mesh", default="final", choices=["final", "base", "colored"])
    about = "what out holds for several pictures: glb, obj, ply, stl or 3mf (glb)"
    add("--format", default="glb", metavar="KIND", help=about)
    _results(add)


def _refine(commands):
    about = "Put the relief that a picture shows on a body of one's own."
    add = _command(commands, refine, about)
    add("body", help="mesh file, in any unit and place")
    add("image", help="picture of it, or of an object of that shape")
    about = ".glb, .obj, .ply, .stl or .3mf file, in the body's axes and unit"
    add("-o", "--out", required=True, help=about)
    add("--model", help="folder of a model (data/models/d2im-base)")
    _camera(add, "it is found by the body's outline")
    about = "of the cameras that were found, take this one (1)"
    add("--fit", type=int, default=1, metavar="N", help=about)
    add("--strength", type=float, default=1.0, help="of the relief (1)")
    backs = ["body", "model"]
    about = "side that is not seen: body as it is, model's guess (body)"
    add("--back", choices=backs, default="body", help=about)
    about = "length of the lens: known, as the library's, or free (known)"
    add("--focal", choices=["known", "free"], default="known", help=about)
    add("--up", default="y", help="the body's up axis (y)")
    add("--yaw", type=float, default=0.0, help="degrees to turn it by (0)")
    add("--resolution", type=int, default=160, metavar="N", help="grid a side (160)")
    _results(add)


def _camera(add, otherwise):
    about = "degrees azimuth (0 in front, positive where the picture's right shows a "
    about += "side), elevation, and distance (near 0.9); without it " + otherwise
    add("--camera", type=float, nargs=3, metavar=("A", "E", "R"), help=about)
    about = "the camera that --camera-file wrote, roll and all, in place of --camera"
    add("--camera-from", metavar="JSON", help=about)


def _results(add):
    """What is written beside the mesh, and how the mesh is."""
    about = "of the picture (not in .stl and .3mf), or none (picture)"
    add("--color", choices=["picture", "none"], default="picture", help=about)
    about = "parts and closed cavities: large, all but specks, or all (large)"
    add("--keep", choices=["large", "all"], default="large", help=about)
    add("--faces", type=int, metavar="N", help="at most, by fast_simplification")
    about = "longest side; it stands on the floor then (of pictures' .stl, .3mf 100)"
    add("--size-mm", type=float, metavar="MM", help=about)
    add("--maps", help="folder for the displacement maps, mask and camera")
    add("--overlay", metavar="PNG", help="picture with the final mesh drawn on it")
    add("--cut-out", metavar="PNG", help="the object, framed, with alpha")
    add("--camera-file", metavar="JSON", help="K, R, t; for Blender and three.js")
    add("--turntable", metavar="GIF", help="the final mesh turning around")


def reconstruct(
    images, out, model, camera, camera_from, camera_model, format, **options
):
    from .networks import CameraNet, D2IMNet
    from .use import reconstruction as use
    from .use.export import KINDS
    from .use.pictures import find_pictures

    folder = len(images) > 1 or Path(images[0]).is_dir()
    single = SINGLE & {name for name, value in options.items() if value}
    if folder and single:
        single = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(single))
        raise ValueError(f"{single} is for one picture; it makes its own files")
    if folder and (Path(out).is_file() or Path(out).suffix.lower()[1:] in KINDS):
        raise ValueError(f"several pictures go into a folder: -o FOLDER, not {out}")
    read = [] if folder else [images[0], camera_from]  # several: see below
    _check(Path(out) / f"index.{format}" if folder else out, read, **options)
    network = D2IMNet.from_pretrained(model or use.MODEL)
    pictures = find_pictures(images)
    own = {(Path(out) / f"{p.stem}-camera.json").resolve() for p in pictures}
    if folder and camera_from and Path(camera_from).resolve() in own:
        raise ValueError(f"{camera_from} would be written over: choose another folder")
    camera, framed_for = _given(camera, camera_from, network.image_size)
    if guessed := camera is None:
        camera = CameraNet.from_pretrained(camera_model or use.CAMERA_MODEL).camera
    known = {"resolution": options.pop("resolution"), "fit": options.pop("fit_camera")}
    known |= {"base_mesh": options["mesh"] == "base", "framed_for": framed_for}

    def work(picture):
        return use.reconstruct(network, picture, camera, **known)

    how = "fitted" if known["fit"] else "guessed" if guessed else "given"
    if not folder:
        with _notes():
            found = work(pictures[0])
            print(_understood(found, how))
        return _write(found, out, **options)
    _reconstruct_all(pictures, Path(out), work, how, format, options)


def _given(camera, camera_from, size):
    """The camera that was given, and for which one the picture is framed, or None."""
    from .camera import Camera
    from .use.export import read_camera

    if camera and camera_from:
        raise ValueError("give --camera or --camera-from, not both")
    if camera_from:
        return read_camera(camera_from, size)
    return (Camera(*camera, size) if camera else None), None


def _check(out, read, maps, keep, color, faces, size_mm, turntable, **options):
    """Say before the work which file cannot be written, or is one of those read."""
    from .data.files import check_writable
    from .use.export import MAP_FILES, check_export

    check_export(out, keep, color, faces, size_mm)
    if turntable and Path(turntable).suffix.lower() != ".gif":
        raise ValueError(f"a turntable is written as .gif, not {turntable}")
    files = [out, turntable, *(options[name] for name in BESIDE)]
    files += [Path(maps) / name for name in MAP_FILES] if maps else []
    taken = {Path(file).resolve(): f"{file} is read" for file in filter(None, read)}
    for file in map(Path, filter(None, files)):
        if why := taken.get(file.resolve()):
            raise ValueError(f"{why} and would be written over: choose another name")
        taken[file.resolve()] = f"{file} is made twice"
        check_writable(file)


def _reconstruct_all(pictures, out, work, how, kind, options):
    """Mesh, overlay and camera of each picture, and a page of all."""
    from .use.overlay import strip, write_sheet

    stems = [picture.stem for picture in pictures]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise ValueError(f"several pictures are named {twice[0]}: rename them")
    overlays = [out / f"{stem}-overlay.png" for stem in stems]
    own = {picture.resolve() for picture in pictures}
    if lost := [path for path in overlays if path.resolve() in own]:
        raise ValueError(f"{lost[0]} is one of the pictures: choose another folder")
    rows, failed = [], 0
    for picture, over in zip(pictures, overlays, strict=True):
        said = []
        try:
            with _notes(said.append):
                found = work(picture)
                said.insert(0, _understood(found, how))
            shown = strip(found, options["keep"])
            name = out / f"{picture.stem}.{kind}"
            given = out / f"{picture.stem}-camera.json"
            beside = {"overlay": over, "camera_file": given}
            _write(found, name, **options | beside)
        except (ValueError, OSError, RuntimeError) as error:
            failed, shown = failed + 1, None
            said.append(f"failed: {one_line(error)}")
        print(f"{picture.name}: {'; '.join(said)}")
        rows.append((picture.name, "; ".join(said), shown))
    write_sheet(out / "index.html", rows)
    if failed == len(rows):
        raise ValueError(f"no picture could be used, see {out / 'index.html'}")
    print(f"{out}: {len(rows) - failed} meshes, {failed} failed, see index.html")


def refine(body, image, out, model, camera, camera_from, fit, strength, **options):
    from .networks import D2IMNet
    from .use.cameras import rivals
    from .use.reconstruction import MODEL
    from .use.refinement import RefineOptions, refine

    _check(out, [body, image, camera_from], **options)
    network = D2IMNet.from_pretrained(model or MODEL)
    camera, framed_for = _given(camera, camera_from, network.image_size)
    known = {name: options.pop(name) for name in REFINED}
    known = RefineOptions(**known, framed_for=framed_for)
    how = "given" if camera else "found"
    with _notes():
        found = refine(network, body, image, camera, strength, known, fit=fit)
        print(_understood(found, how))
        alike = enumerate(rivals(found.fits), 1)
        alike = [f"{k}: {_pose(f.camera)} (score {f.score:.2f})" for k, f in alike]
        if len(alike) > 1:
            about = "the body looks alike from other sides, --fit N takes one: "
            print(f"note: {about}{', '.join(alike)}", file=sys.stderr)
    _write(found, out, mesh="final", **options)


BESIDE = "overlay", "cut_out", "camera_file"
SINGLE = {"maps", "turntable", *BESIDE}
REFINED = ("back", "focal", "up", "yaw", "resolution")


@contextmanager
def _notes(tell=None):
    """Tell a picture's warnings, by default on stderr."""
    from .use.pictures import PictureWarning

    tell = tell or (lambda text: print(text, file=sys.stderr))
    with warnings.catch_warnings(action="always", category=PictureWarning):
        warnings.showwarning = lambda said, *_: tell(f"note: {one_line(said)}")
        yield


def _pose(camera):
    azimuth, elevation, ratio = camera.pose
    return f"{azimuth:.0f} {elevation:.0f} {ratio:.2f}"


def _understood(found, how):
    """What was made of a picture, in words; what may be wrong is a warning."""
    from .use.cutting import PictureWarning
    from .use.pictures import outside_training

    for text in outside_training(found.camera):
        warnings.warn(text, PictureWarning, stacklevel=2)
    text = f"object covers {found.covers:.0%} of the picture; "
    text += f"camera {how} {_pose(found.camera)}"
    if how == "given":
        return text
    if how != "guessed":  # it may roll, and look beside the object's middle
        text += " (in full in a camera file, which --camera-from reads)"
    other = "another --camera, or no --fit-camera," if how == "fitted" else "--camera"
    return f"{text}, give {other} if that is wrong"


def _write(found, out, mesh, maps, overlay, cut_out, camera_file, turntable, **options):
    """Write a mesh and what else was asked for; say how many faces it has."""
    from .use import export

    made = export.export_mesh(found, out, mesh, **options)
    # Maps and camera are in the mesh file's frame and unit.
    placed = replace(found, to_world=made.metadata["to_world"])
    kind, keep = export.mesh_kind(out), options["keep"]
    if maps:
        export.export_maps(placed, maps, kind)
    if cut_out:
        export.export_cut_out(found, cut_out)
    if camera_file:
        export.export_camera(placed, camera_file, kind)
    if overlay or turntable:
        from .use import overlay as drawing

        if overlay:
            drawing.export_overlay(found, overlay, keep)
        if turntable:
            drawing.export_turntable(found, turntable, keep)
    print(f"{out}: {len(made.faces):,} faces")


def _prepare(commands):
    about = "Turn meshes into examples. Or: shapenet -h, sweethome3d -h."
    usage = "d2im prepare [options] -o OUT [meshes ...]"  # all of them take a screen
    add = _command(commands, prepare, about, usage)
    add("meshes", nargs="*", help=argparse.SUPPRESS)
    add("-o", "--out", required=True, help="folder of the examples and index.csv")
    about = "this many procedural shapes a family instead"
    add("--procedural", type=int, metavar="COUNT", help=about)
    add("--split", default="train", help="train, val, test or unseen (train)")
    add("--views", type=int, default=12, help="pictures of each (12)")
    add("--size", type=int, default=224, help="their side in pixels (224)")
    add("--count", type=int, default=100_000, help="points of each (100,000)")
    add("--seed", type=int, default=0, help="of points, views and lights (0)")
    add("--workers", type=int, default=1, help="processes (1)")
    add("--up", default="y", help="the meshes' up axis (y)")
    add("--yaw", type=float, default=0.0, help="degrees to turn them by (0)")
    modes = ["auto", "close", "keep"]
    about = "open cups and holes: auto, close or keep (auto)"
    add("--caps", choices=modes, metavar="MODE", help=about)
    about = "hollows that are not seen: fill or keep (fill)"
    add("--interior", choices=["fill", "keep"], metavar="MODE", help=about)
    about = "bodies without relief, for L_rel: none or levels (none)"
    add("--coarse", choices=["none", "levels"], metavar="MODE", help=about)
    add("--timeout", type=float, default=600.0, help="seconds for one (600)")
    about = "of memory for one (1 to 4, by what there is)"
    add("--memory-gb", type=float, metavar="GB", help=about)


def prepare(meshes, procedural, **options):
    from .data.dataset import prepare
    from .data.shapes import split_pairs

    if bool(meshes) == bool(procedural):
        raise ValueError("name mesh files or a folder of them, or give --procedural")
    if procedural:
        source = split_pairs(options["split"], procedural)
    else:
        source = meshes if len(meshes) > 1 or Path(meshes[0]).is_file() else meshes[0]
    out = options.pop("out")
    options = {name: value for name, value in options.items() if value is not None}
    rows = prepare(source, out, **options)
    failed = sum(row["status"] != "ok" for row in rows)
    print(f"{out}: {len(rows) - failed} examples, {failed} failed, see index.csv")


def _shapenet():
    about = "Turn ShapeNet in the layout of others (docs/shapenet.md) into examples."
    usage = "%(prog)s [options] --root R --layout L --split S -o OUT"
    parser = argparse.ArgumentParser("d2im prepare shapenet", usage, about)
    parser.set_defaults(command=shapenet)
    add = parser.add_argument
    add("--root", required=True, metavar="R", help="folder that has that layout")
    layouts = ["disn", "occnet"]
    add("--layout", required=True, metavar="L", choices=layouts, help="disn or occnet")
    add(
        "--split", required=True, metavar="S", help="of its lists: train, test (or val)"
    )
    add("-o", "--out", required=True, help="folder of the examples and index.csv")
    about = "their names or numbers (all)"
    add("--categories", nargs="+", default=["all"], metavar="C", help=about)
    add("--views", type=int, help="of each (36 of disn, 24 of occnet)")
    add("--size", type=int, default=224, help="their side in pixels (224)")
    variants, about = ["easy", "hard"], "disn's pictures: easy or hard (easy)"
    add("--variant", choices=variants, metavar="V", help=about)
    add("--iso", type=float, help="taken off disn's distances (0)")
    add("--choy", metavar="FOLDER", help="3D-R2N2's pictures, for occnet")
    add("--yaw", type=float, help="degrees from ShapeNet's front to +z (-90)")
    about = "share of a view that may not fit its mask (0.05)"
    add("--misfit", type=float, metavar="SHARE", help=about)
    add("--workers", type=int, default=1, help="processes (1)")
    add("--timeout", type=float, default=600.0, help="seconds for one (600)")
    add("--memory-gb", type=float, metavar="GB", help="for one (1 to 4)")
    return parser


def shapenet(root, out, workers, timeout, memory_gb, **options):
    from .data.dataset import Effort
    from .data.shapenet import prepare_shapenet, summary

    effort = Effort(workers, timeout=timeout, memory_gb=memory_gb)
    rows = prepare_shapenet(root, out, effort=effort, **options)
    print(f"{summary(rows)}\n{out}: {len(rows):,} shapes, see index.csv for reasons")


def _sweethome():
    about = "Turn Sweet Home 3D's furniture (docs/sweethome3d.md) into examples."
    usage = "%(prog)s [options] -o OUT FILE.sh3f ..."
    parser = argparse.ArgumentParser("d2im prepare sweethome3d", usage, about)
    parser.set_defaults(command=sweethome)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE.sh3f", help=argparse.SUPPRESS)
    add("-o", "--out", required=True, help="folder of the examples and index.csv")
    splits = ["train", "val", "test", "all"]
    about = "of the fixed list: train, val, test or all (all)"
    add("--split", default="all", choices=splits, metavar="SPLIT", help=about)
    add("--views", type=int, default=12, help="pictures of each (12)")
    add("--size", type=int, default=224, help="their side in pixels (224)")
    add("--count", type=int, default=100_000, help="points of each (100,000)")
    add("--seed", type=int, default=0, help="of points, views and lights (0)")
    add("--backgrounds", action="store_true", help="draw one behind each picture")
    add("--textures", action="store_true", help="draw these, not their mean colours")
    ranges = {"azimuth": "degrees (-60 60)", "elevation": "degrees (0 40)"}
    ranges["ratio"] = "distance (0.8 1)"
    for name, about in ranges.items():
        about = f"of the views, {about}"
        add(f"--{name}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=about)
    about = "bodies without relief, for L_rel: none or levels (none)"
    modes = ["none", "levels"]
    add("--coarse", default="none", choices=modes, metavar="MODE", help=about)
    about = "of each to train on, stretched along the axes (0)"
    add("--copies", type=int, default=0, help=about)
    add("--workers", type=int, default=1, help="processes (1)")
    add("--memory-gb", type=float, metavar="GB", help="for one (1 to 4)")
    about = "print instead who made OUT's train and val"
    add("--credits", action="store_true", help=about)
    return parser


def sweethome(files, out, credits, azimuth, elevation, ratio, **options):
    from .data.dataset import read_index
    from .data.sweethome import credits_text, prepare_sweethome

    if credits == bool(files):
        raise ValueError("name .sh3f libraries, or ask for --credits of a folder")
    if credits:
        rows = [row for row in read_index(out) if row["status"] == "ok"]
        seen = [row for row in rows if row["split"] in ("train", "val")]
        return print(credits_text(seen), end="")
    poses = {"azimuth": azimuth, "elevation": elevation, "ratio": ratio}
    options["poses"] = {name: own for name, own in poses.items() if own} or None
    options = {name: value for name, value in options.items() if value is not None}
    rows = prepare_sweethome(files, out, **options)
    failed = sum(row["status"] != "ok" for row in rows)
    print(f"{out}: {len(rows) - failed} examples, {failed} failed, see index.csv")


def _run(commands):
    add = _command(commands, run, "Run notebooks in batch, with a page of the results.")
    add("notebooks", nargs="+", help='"03", "03_train" or a path')
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add("--params", action="append", default=[], metavar="FILE.yaml")
    add("--sweep", nargs="+", metavar="FILE.yaml", help="one run a file, one table")
    add("--seeds", nargs="+", type=int, metavar="N", help="one training a seed")
    add("--name", metavar="RUN", help="folder in reports/ (the time)")
    about = "seconds that one cell may take (an hour; training: no limit)"
    add("--timeout", type=float, help=about)


def run(notebooks, p, sweep, seeds, name, timeout, params):
    from .show import run as show

    options = {"values": p, "params": params, "timeout": timeout}
    options |= {"sweep_files": sweep or (), "seeds": seeds or ()}
    print(f"report: {show.run(notebooks, name, **options)}")


def _table(commands):
    add = _command(commands, table, "Print a paper's table of what 05 has measured.")
    add("runs", nargs="+", help="folders of runs or sweeps in reports/")
    about = "columns (chamfer_l1 f_score iou)"
    add("--measures", nargs="+", default=["chamfer_l1", "f_score", "iou"], help=about)
    add("--methods", nargs="+", help="of the runs, in this order (all)")
    add("--caption", default="", help="of the LaTeX table")
    add("-o", "--out", default="tables", help="folder of paper.tex, .csv, .md (tables)")


def table(runs, measures, methods, caption, out):
    from .data.files import write_whole
    from .evaluate.tables import gather, paper_table

    made = paper_table(gather(runs), measures, methods, caption)
    Path(out).mkdir(parents=True, exist_ok=True)
    for kind, text in made.items():
        path = Path(out) / f"paper.{kind}"
        write_whole(path, lambda file, text=text: file.write(text.encode()))
    print(made["md"])


def _benchmark(commands):
    about = "Score a model on the fixed list of shapes; without one, check the list."
    add = _command(commands, benchmark, about)
    add("model", nargs="?", help="folder of a model")
    add("others", nargs="*", help="more models, or folders of meshes by shape id")
    add("--name", metavar="RUN", default="benchmark", help="folder in reports/")
    add("--write", action="store_true", help="write the list anew")


def benchmark(model, others, name, write):
    if write or model is None:
        from .evaluate import benchmark

        count = benchmark.check_list(write)
        return print(f"{count} shapes are those of {benchmark.LIST.name}")
    from .show import run

    params = ["notebooks/params/benchmark.yaml"]
    values = {"model": model, "others": others}
    print(f"report: {run.run(['05'], name, params=params, values=values)}")


if __name__ == "__main__":
    sys.exit(main())
