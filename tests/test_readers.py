"""DISN's and Occupancy Networks' layouts, written here from their description alone."""

import builtins
import io
import json
import re
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.ndimage import binary_erosion

from d2im.camera import Camera
from d2im.data.dataset import ShapeDataset, read_example, read_index
from d2im.data.locks import hold
from d2im.data.readers import (
    MISFIT,
    check_yaw,
    estimate_gradients,
    read_disn,
    read_occnet,
    view_misfit,
    write_set,
)
from d2im.data.rendering import Renderer
from d2im.data.shapes import make_shape
from d2im.sampling import sample_surface, signed_distance

CHAIR = "03001627"
NAMES = ("1a2b", "3c4d")


def shapenet_mesh(seed):
    """A chair as ShapeNet has it: front at +x, another size, not quite centred."""
    mesh = make_shape("chair", seed).detailed
    x, y, z = 0.9 * mesh.vertices.T
    source = trimesh.Trimesh(
        np.stack([z, y, -x], 1) + [0.02, -0.01, 0.015], mesh.faces, process=False
    )
    source.metadata["solid"] = True
    return source


def look_at_origin(azimuth, elevation, ratio):
    """World-to-camera matrices (OpenCV) in ShapeNet's frame, by the camera's centre."""
    a, e = np.radians([azimuth, elevation])
    centre = np.array([np.cos(e) * np.cos(a), np.sin(e), np.cos(e) * np.sin(a)])
    forward = -centre
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -rotation @ (1.75 * ratio * centre)


def draw_views(mesh, size, poses, rng):
    """Pictures of the source mesh by its own cameras; shifts move the object."""
    views = []
    for azimuth, elevation, ratio, *shift in poses:
        rotation, translation = look_at_origin(azimuth, elevation, ratio)
        if shift:  # Blender's (x, y, z) is ShapeNet's (x, z, -y)
            translation = translation + rotation @ [shift[0], shift[2], -shift[1]]
        focal, centre = 35 * size / 32, [size / 2, size / 2]
        camera = Camera.from_matrices(rotation, translation, focal, centre, size)
        view = Renderer(mesh).view(camera, rng)
        pose = rotation, translation, focal, size / 2
        views.append(SimpleNamespace(view=view, camera=camera, pose=pose))
    return views


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(array).astype(np.uint8)).save(path, **options)


def save_rgba(path, view):
    rgb = np.where(view.mask, view.image, 0) * 255  # transparent pixels are black
    save(path, np.dstack([*rgb, view.mask * 255]))


def encode_normals(view, rng):
    """x right, y up, z to the viewer; some face away; sRGB; background 188."""
    normals = view.normals * np.array([1, -1, -1])[:, None, None]
    normals *= np.where(rng.random(view.mask.shape) < 0.4, -1, 1)
    v = (normals + 1) / 2
    srgb = np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)
    rgb = np.where(view.mask, srgb * 255, 188)
    return np.dstack([*rgb, np.full(view.mask.shape, 255)])


POSES = {
    "easy": [(31.5, 24, 0.8), (118.2, 28, 0.95), (285, 21, 0.7)],
    "hard": [(31.5, 5, 0.9, 0.1, -0.05, 0.08), (200, 40, 1.0, -0.1, 0.1, 0.0)],
}


def write_disn(root, rng, count=2000, draws=40_000):
    """sdf/, {image,albedo,depth,normal}/, lists/; returns meshes and drawn views."""
    h5py = pytest.importorskip("h5py", reason="h5py (extra disn) is not installed")
    written = {}
    for seed, name in enumerate(NAMES):
        mesh = shapenet_mesh(seed)
        c, m = np.array([0.03, 0.0, -0.02]), 0.52
        axes = np.linspace(-1.15, 1.15, 257)  # nodes of the 256 grid, normalised frame
        nodes = axes[rng.integers(0, 257, (draws, 3))]
        sdf = signed_distance(mesh, m * nodes + c)[0] / m
        band = np.flatnonzero(np.abs(sdf) < 0.1)
        halves = [band[sdf[band] < 0], band[sdf[band] >= 0]]
        pick = np.concatenate([rng.choice(half, count // 2) for half in halves])
        folder = root / "sdf" / CHAIR / name
        folder.mkdir(parents=True)
        with h5py.File(folder / "ori_sample.h5", "w") as file:
            samples = np.column_stack([nodes, sdf])[pick].astype("f4")
            options = {"compression": "gzip", "compression_opts": 4}
            file.create_dataset("pc_sdf_original", data=np.zeros((1, 3), "f4"))
            file.create_dataset("pc_sdf_sample", data=samples, **options)
            file.create_dataset("norm_params", data=np.array([*c, m]), **options)
            file.create_dataset("sdf_params", data=np.array([-1.15] * 3 + [1.15] * 3))
        for variant, poses in POSES.items():
            views = draw_views(mesh, 224, poses, rng)
            written[name, variant] = mesh, views
            lines = ""
            for k, (pose, drawn) in enumerate(zip(poses, views, strict=True)):
                az, el, ratio, x, y, z = (*pose, 0.0, 0.0, 0.0)[:6]
                lines += f"[{az},{el},0,{ratio},35,32,1.75,{x},{y},{z}], \n"
                place = f"{CHAIR}/{name}/{variant}/{k:02d}.png"
                save_rgba(root / "image" / place, drawn.view)
                save_rgba(root / "albedo" / place, drawn.view)
                depth = np.clip(1.4 * (drawn.view.depth - 0.7), 0, 1) * 255
                save(root / "depth" / place, np.dstack([depth] * 3 + [depth * 0 + 255]))
                save(root / "normal" / place, encode_normals(drawn.view, rng))
            for kind in ("image", "albedo", "depth", "normal"):
                folder = root / kind / CHAIR / name / variant
                (folder / "rendering_metadata.txt").write_text(lines)
    (root / "lists").mkdir()
    (root / "lists" / f"{CHAIR}_train.lst").write_text("\n".join(NAMES) + "\n")
    (root / "lists" / f"{CHAIR}_test.lst").write_text(f"{NAMES[1]}\nmissing\n")
    return written


def write_occnet(root, rng, count=4001, cloud=30_000):
    """<cat>/<split>.lst, <id>/{points,pointcloud}.npz and img_choy2016; and Choy's."""
    written = {}
    (root / "choy").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        mesh = shapenet_mesh(seed)
        loc, scale = mesh.bounds.mean(0), mesh.extents.max()  # longest edge 1
        frame = {"loc": loc, "scale": scale}
        points = rng.uniform(-0.55, 0.55, (count, 3)).astype("f2")
        inside = signed_distance(mesh, points.astype(float) * scale + loc)[0] < 0
        folder = root / CHAIR / name
        (folder / "img_choy2016").mkdir(parents=True)
        bits = np.packbits(inside)
        np.savez(folder / "points.npz", points=points, occupancies=bits, **frame)
        surface, normals = sample_surface(mesh, cloud, rng)
        surface = ((surface - loc) / scale).astype("f2")
        arrays = {"points": surface, "normals": normals.astype("f2")}
        np.savez(folder / "pointcloud.npz", **arrays, **frame)
        views = draw_views(mesh, 137, POSES["easy"], rng)
        written[name] = mesh, views
        cameras, lines = {}, ""
        for k, drawn in enumerate(views):
            rotation, translation, f, c = drawn.pose
            cameras[f"world_mat_{k}"] = np.column_stack([rotation, translation])
            cameras[f"camera_mat_{k}"] = np.array([[f, 0, c], [0, f, c], [0, 0, 1.0]])
            path = folder / "img_choy2016" / f"{k:03d}.jpg"
            save(path, np.dstack([*drawn.view.image * 255]), quality=95)
            az, el, ratio = POSES["easy"][k]
            lines += f"{az} {el} 0 {ratio} 25\n"
            save_rgba(
                root / "choy" / CHAIR / name / "rendering" / f"{k:02d}.png", drawn.view
            )
        np.savez(folder / "img_choy2016" / "cameras.npz", **cameras)
        metadata = root / "choy" / CHAIR / name / "rendering" / "rendering_metadata.txt"
        metadata.write_text(lines)
    (root / CHAIR / "train.lst").write_text("\n".join(NAMES))
    (root / CHAIR / "test.lst").write_text(f"missing\n{NAMES[0]}\n")
    return written


@pytest.fixture(scope="module")
def disn(tmp_path_factory):
    root = tmp_path_factory.mktemp("disn")
    written = write_disn(root, np.random.default_rng(0))
    examples = {
        variant: dict(
            read_disn(root, CHAIR, "train", variant=variant, views=len(POSES[variant]))
        )
        for variant in POSES
    }
    return SimpleNamespace(root=root, written=written, examples=examples)


@pytest.fixture(scope="module")
def occnet(tmp_path_factory):
    root = tmp_path_factory.mktemp("occnet")
    written = write_occnet(root, np.random.default_rng(0))
    examples = {
        kind: dict(read_occnet(root, CHAIR, "train", choy=choy, views=3))
        for kind, choy in (("jpeg", None), ("choy", root / "choy"))
    }
    return SimpleNamespace(root=root, written=written, examples=examples)


def in_world(mesh, example):
    """The source mesh by the stored similarity, the yaw written out."""
    yaw, scale, *shift = example["similarity"]
    assert yaw == -90  # front +x to +z: (x, y, z) -> (-z, y, x)
    x, y, z = mesh.vertices.T
    moved = mesh.copy()
    moved.vertices = scale * np.stack([-z, y, x], 1) + shift
    return moved


@pytest.fixture(scope="module")
def read_shapes(disn, occnet):
    """(layout, name) -> example, source mesh, views drawn by the source's cameras."""
    shapes = {}
    for name in NAMES:
        for variant in POSES:
            example = disn.examples[variant][f"{CHAIR}_{name}"]
            shapes[variant, name] = example, *disn.written[name, variant]
        for kind in ("jpeg", "choy"):
            example = occnet.examples[kind][f"{CHAIR}_{name}"]
            shapes[kind, name] = example, *occnet.written[name]
    return shapes


layouts = pytest.mark.parametrize("layout", ["easy", "hard", "jpeg", "choy"])


@layouts
def test_an_example_has_the_members_and_types_of_a_made_one(read_shapes, layout):
    example, _, views = read_shapes[layout, NAMES[0]]
    size = 224 if layout in POSES else 137
    count = len(example["points"])
    assert count == (2000 if layout in POSES else 4001)
    wanted = {
        "points": ((count, 3), "f4"),
        "sdf": ((count,), "f4"),
        "gradients": ((count, 3), "f2"),
        "weights": ((count,), "f4"),
        "similarity": ((5,), "f8"),
    }
    for k in range(len(views)):
        wanted[f"image_{k}"] = ((3, size, size), "u1")
        wanted[f"mask_{k}"] = ((size, size), "u1")
        wanted[f"normals_{k}"] = ((3, size, size), "f2")
        wanted[f"depth_{k}"] = ((size, size), "f2")
        wanted[f"camera_{k}"] = ((16,), "f8")
    found = {name: (a.shape, a.dtype.str[1:]) for name, a in example.items()}
    assert {"depth", "gradients"} <= set(example["estimated"])
    assert str(example["source"]).endswith(("ori_sample.h5", "points.npz"))
    del found["estimated"], found["source"]
    assert found == wanted


@layouts
def test_the_world_frame_is_ours(read_shapes, layout):
    for name in NAMES:
        example, mesh, _ = read_shapes[layout, name]
        moved = in_world(mesh, example)
        # 2,000 samples on a grid know the surface to about a hundredth
        tolerance = 0.015 if layout in POSES else 2e-3
        assert np.abs(moved.bounds.mean(0)).max() < tolerance
        radius = np.linalg.norm(moved.vertices, axis=1).max()
        assert radius == pytest.approx(0.5, abs=tolerance)


def test_disn_distances_and_signs_are_those_of_the_mesh(read_shapes):
    for name in NAMES:
        example, mesh, _ = read_shapes["easy", name]
        sdf, _ = signed_distance(in_world(mesh, example), example["points"])
        assert np.abs(sdf - example["sdf"]).max() < 1e-6
        assert ((sdf < 0) == (example["sdf"] < 0)).all()


def test_occupancies_give_signs_and_the_cloud_distances(read_shapes):
    for name in NAMES:
        example, mesh, _ = read_shapes["jpeg", name]
        sdf, _ = signed_distance(in_world(mesh, example), example["points"])
        error = np.abs(np.abs(sdf) - np.abs(example["sdf"]))
        assert error.mean() < 1e-3 and error.max() < 0.01  # 30,000 points in the cloud
        clear = np.abs(sdf) > 5e-4  # float16 points
        assert ((sdf < 0) == (example["sdf"] < 0))[clear].all()


def angles(a, b, axis=-1):
    return np.degrees(np.arccos(np.clip((a * b).sum(axis), -1, 1)))


def test_the_clouds_gradients_are_those_of_the_mesh(read_shapes):
    example, mesh, _ = read_shapes["choy", NAMES[0]]
    _, exact = signed_distance(in_world(mesh, example), example["points"])
    off = angles(exact, example["gradients"].astype(float))
    assert np.median(off) < 3 and np.quantile(off, 0.9) < 12


def test_estimated_gradients_are_exact_on_a_plane_and_near_on_a_sphere(rng):
    points = rng.uniform(-0.5, 0.5, (20_000, 3))
    plane = np.array([2, -1, 2]) / 3
    assert angles(estimate_gradients(points, points @ plane + 0.1), plane).max() < 0.1
    radius = np.linalg.norm(points, axis=1)
    off = angles(estimate_gradients(points, radius - 0.3), points / radius[:, None])
    assert np.median(off) < 3 and np.median(off[np.abs(radius - 0.3) < 0.05]) < 3


def test_estimated_gradients_agree_with_a_naive_loop(rng):
    points = rng.uniform(-0.5, 0.5, (300, 3))
    sdf = np.abs(points).max(1) - 0.3
    fast = estimate_gradients(points, sdf)
    for i in range(0, 300, 17):
        near = np.argsort(np.linalg.norm(points - points[i], axis=1))[1:16]
        off, rise = points[near] - points[i], sdf[near] - sdf[i]
        length = np.linalg.norm(off, axis=1)
        slope = np.linalg.lstsq(off / length[:, None], rise / length, rcond=None)[0]
        assert angles(fast[i], slope / np.linalg.norm(slope)) < 1


def test_points_drawn_twice_do_not_disturb_their_gradients(rng):
    points = np.repeat(rng.uniform(-0.5, 0.5, (2000, 3)), 2, axis=0)
    assert angles(estimate_gradients(points, points[:, 1]), [0, 1, 0]).max() < 1


@layouts
def test_each_point_keeps_its_pixel(read_shapes, layout):
    for name in NAMES:
        example, mesh, views = read_shapes[layout, name]
        moved = in_world(mesh, example).vertices
        for k, drawn in enumerate(views):
            camera = Camera.from_array(example[f"camera_{k}"])
            uv, depth = camera.project(moved)
            wanted, source_depth = drawn.camera.project(mesh.vertices)
            assert uv == pytest.approx(wanted, abs=1e-6)
            assert depth == pytest.approx(source_depth * example["similarity"][1])


def test_easy_cameras_are_ours_of_the_mirrored_azimuth(disn):
    example = disn.examples["easy"][f"{CHAIR}_{NAMES[0]}"]
    for k, (azimuth, elevation, _) in enumerate(POSES["easy"]):
        camera = Camera.from_array(example[f"camera_{k}"])
        ours = Camera(-azimuth, elevation, 1, 224)
        assert camera.rotation == pytest.approx(ours.rotation)
        assert camera.focal == 245


@layouts
def test_image_and_mask_are_those_of_the_pictures(read_shapes, layout):
    for name in NAMES:
        example, _, views = read_shapes[layout, name]
        for k, drawn in enumerate(views):
            image, mask = example[f"image_{k}"], example[f"mask_{k}"] > 0
            truth = drawn.view.mask
            off = np.abs(image / 255.0 - drawn.view.image)[:, truth]
            if layout == "jpeg":  # lossy: its mask is a threshold
                assert (mask != truth).sum() < 0.05 * truth.sum()
                assert np.median(off) < 0.02
            else:
                assert (mask == truth).all()
                assert off.max() < 0.003
                assert (image[:, ~mask] == 255).all()  # on white, whatever lay there


@pytest.mark.parametrize("layout", list(POSES))
def test_stored_normals_are_decoded_and_turned_toward_the_camera(read_shapes, layout):
    for name in NAMES:
        example, mesh, views = read_shapes[layout, name]
        renderer = Renderer(in_world(mesh, example))
        for k in range(len(views)):
            camera = Camera.from_array(example[f"camera_{k}"])
            direct = renderer.view(camera, np.random.default_rng(0))
            mask = direct.mask & (example[f"mask_{k}"] > 0)
            found = example[f"normals_{k}"].astype(float)
            off = angles(found, direct.normals, axis=0)[mask]
            # 8 bits; a facet nearly edge-on may have been turned the other way
            assert np.quantile(off, 0.99) < 2
            assert not found[:, example[f"mask_{k}"] == 0].any()


def seen_truth(example, mesh, k):
    camera = Camera.from_array(example[f"camera_{k}"])
    view = Renderer(in_world(mesh, example)).view(camera, np.random.default_rng(0))
    return view, view.mask & (example[f"mask_{k}"] > 0)


@pytest.mark.parametrize("kind", ["easy", "choy"])
def test_views_brought_to_another_size_keep_mask_camera_and_normals(
    disn, occnet, read_shapes, kind
):
    if kind == "easy":
        readings = read_disn(disn.root, CHAIR, "train", views=3, size=112)
    else:
        choy = occnet.root / "choy"
        readings = read_occnet(
            occnet.root, CHAIR, "train", views=3, size=112, choy=choy
        )
    _, example = next(readings)
    _, mesh, _ = read_shapes[kind, NAMES[0]]
    for k in range(3):
        view, mask = seen_truth(example, mesh, k)
        assert example[f"image_{k}"].shape == (3, 112, 112)
        assert example[f"camera_{k}"][[12, 15]] == pytest.approx([122.5, 112])
        wrong = view.mask != (example[f"mask_{k}"] > 0)
        assert wrong.sum() < 0.05 * mask.sum()
        off = angles(example[f"normals_{k}"].astype(float), view.normals, 0)[mask]
        assert np.median(off) < 3
        assert not example[f"normals_{k}"][:, example[f"mask_{k}"] == 0].any()


def test_depth_of_the_cloud_tells_what_is_seen(read_shapes):
    for name in NAMES:
        example, mesh, views = read_shapes["choy", name]
        for k in range(len(views)):
            view, mask = seen_truth(example, mesh, k)
            depth = example[f"depth_{k}"].astype(float)
            error = np.abs(depth - view.depth)[mask]
            assert np.median(error) < 0.005 and np.mean(error < 0.02) > 0.9
            off = angles(example[f"normals_{k}"].astype(float), view.normals, 0)[mask]
            assert np.median(off) < 3
            assert not depth[example[f"mask_{k}"] == 0].any()


def test_data_without_h5py_are_refused_in_one_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"d2im\[disn\]") as caught:
        next(read_disn(tmp_path, CHAIR, "train"))
    assert "\n" not in str(caught.value)


@layouts
def test_the_stored_yaw_fits_cameras_and_fronts(read_shapes, layout):
    report = check_yaw([read_shapes[layout, name][0] for name in NAMES])
    assert report["on_mask"][0] > 0.99
    assert (report["on_mask"][1:] < 0.95).all()
    assert abs(report["facing"]) < 20 and report["back"] > 0.1


@pytest.mark.parametrize("yaw", [0, 90, 180])
def test_a_wrong_yaw_is_found_and_the_right_one_named(occnet, yaw):
    examples = [
        e for _, e in read_occnet(occnet.root, CHAIR, "train", views=1, yaw=yaw)
    ]
    with pytest.raises(ValueError, match=r"degrees from \+z.*with yaw=-90$"):
        check_yaw(examples)
    assert check_yaw(examples, has_back=False)["on_mask"][0] > 0.99


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_cameras_turned_against_the_points_are_found(read_shapes, turn):
    example = dict(read_shapes["choy", NAMES[0]][0])
    for k in range(3):
        camera = Camera.from_array(example[f"camera_{k}"])
        s, c = np.sin(np.radians(turn)), np.cos(np.radians(turn))
        about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        turned = Camera.from_matrices(
            camera.rotation @ about_y, camera.translation, camera.focal, [68.5] * 2, 137
        )
        example[f"camera_{k}"] = turned.to_array()
    with pytest.raises(ValueError, match="cameras do not fit the points"):
        check_yaw([example])


def test_a_category_without_a_back_is_not_said_to_face_anywhere(read_shapes):
    example = dict(read_shapes["choy", NAMES[0]][0])
    mirrored = example["points"] * np.float32([1, 1, -1])
    example["points"] = np.concatenate([example["points"], mirrored])
    example["sdf"] = np.tile(example["sdf"], 2)
    example["mask_0"] = np.ones_like(example["mask_0"])
    for name in ("camera_1", "camera_2"):
        del example[name]
    with pytest.raises(ValueError, match="stand 0.0. behind"):
        check_yaw([example])
    check_yaw([example], has_back=False)


def break_view(disn, root, fault):
    """Give the first shape a hard view that does not fit; return the view's number."""
    folder = root / "image" / CHAIR / NAMES[0] / "hard"
    lines = (folder / "rendering_metadata.txt").read_text().splitlines()
    if fault == "yaw":
        lines[1] = lines[1].replace("[200,", "[260,")
    elif fault == "shift":
        lines[0] = lines[0].replace("0.1,-0.05,0.08]", "0,0,0]")
    else:
        mesh = disn.written[NAMES[0], "hard"][0].copy()
        back = mesh.vertices[:, 1] > 0.05
        mesh.vertices[back] += [0.2, 0, 0.3]
        drawn = draw_views(mesh, 224, POSES["hard"], np.random.default_rng(0))
        for kind in ("image", "normal"):
            place = root / kind / CHAIR / NAMES[0] / "hard/01.png"
            save_rgba(place, drawn[1].view)
    (folder / "rendering_metadata.txt").write_text("\n".join(lines))
    return 0 if fault == "shift" else 1


@pytest.mark.parametrize("fault", ["yaw", "shift", "part"])
def test_a_view_that_does_not_fit_is_left_out_and_named(disn, copied, tmp_path, fault):
    root, _ = copied("disn")
    number = break_view(disn, root, fault)
    out, hard = tmp_path / "out", {"variant": "hard", "views": 2}
    rows = write_set(read_disn(root, CHAIR, "train", **hard), out, "train")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    pattern = rf"left out 1 of 2 views: view {number} \(\d+% of the inside points off"
    assert re.match(pattern, rows[0]["reason"]) and rows[1]["reason"] == ""
    data = ShapeDataset(out, points=64)
    assert [data.view_numbers(index) for index in (0, 1)] == [[1 - number], [0, 1]]
    assert [data.view_count(index) for index in (0, 1)] == [1, 2]
    # The rest is right: cameras, pictures and distances.
    example = data.example(0)
    mesh, views = disn.written[NAMES[0], "hard"]
    moved, drawn = in_world(mesh, example), views[1 - number]
    uv, _ = data.camera(0, 0).project(moved.vertices)
    assert np.abs(uv - drawn.camera.project(mesh.vertices)[0]).max() < 1e-5
    assert (example["mask_0"] == drawn.view.mask).all()
    sdf, _ = signed_distance(moved, example["points"])
    assert np.abs(sdf - example["sdf"]).max() < 1e-5


def test_an_example_without_a_view_that_fits_has_failed(disn, copied):
    root, _ = copied("disn")
    for fault in ("yaw", "shift"):
        break_view(disn, root, fault)
    readings = read_disn(root, CHAIR, "train", variant="hard", views=2)
    fails(lambda: dict(readings), "no view fits the points: view 0 .*; view 1 ")
    kept = next(read_disn(root, CHAIR, "train", variant="hard", views=2, misfit=1))[1]
    assert "camera_1" in kept and "left_out" not in kept


@pytest.mark.parametrize(
    "spoilt", [np.ones_like, lambda mask: np.roll(mask, 30, 1), np.zeros_like]
)
def test_a_mask_that_is_whole_moved_or_empty_does_not_fit(read_shapes, spoilt):
    for layout in ("easy", "choy"):
        example, _, _ = read_shapes[layout, NAMES[0]]
        camera = Camera.from_array(example["camera_0"])
        mask, near = example["mask_0"] > 0, np.abs(example["sdf"]) < 0.02
        points = example["points"][example["sdf"] < 0], example["points"][near]
        assert max(view_misfit(camera, mask, *points)) < MISFIT
        assert max(view_misfit(camera, spoilt(mask), *points)) > 2 * MISFIT


def test_windows_in_a_mask_are_no_misfit(read_shapes):
    example, _, _ = read_shapes["choy", NAMES[0]]
    mask = example["mask_0"] > 0
    outline = mask & ~binary_erosion(mask, iterations=2)
    inside = example["points"][example["sdf"] < 0]
    camera = Camera.from_array(example["camera_0"])
    assert view_misfit(camera, outline, inside, inside)[0] < MISFIT


def test_missing_shapes_are_listed_and_not_replaced(occnet, tmp_path):
    readings = read_occnet(occnet.root, CHAIR, "test", views=2)
    rows = write_set(readings, tmp_path, "test", family="chair")
    assert [(r["id"], r["status"]) for r in rows] == [
        (f"{CHAIR}_missing", "failed"),
        (f"{CHAIR}_{NAMES[0]}", "ok"),
    ]
    assert "points.npz is missing" in rows[0]["reason"]
    assert {r["id"]: (r["split"], r["family"]) for r in read_index(tmp_path)} == {
        row["id"]: ("test", "chair") for row in rows
    }
    assert [p.name for p in tmp_path.glob("*.npz")] == [f"{CHAIR}_{NAMES[0]}.npz"]


def test_a_written_set_has_the_rows_and_settings_of_a_prepared_one(occnet, tmp_path):
    out = tmp_path / "out"
    readings = read_occnet(occnet.root, CHAIR, "train", views=2)
    rows = write_set(readings, out, "train", "chair")
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["views"], settings["size"], settings["yaw"]) == (2, 137, -90)
    assert float(rows[0]["seconds"]) > 0
    stored = read_example(out / f"{rows[0]['id']}.npz", ["row"])["row"]
    for row in (json.loads(str(stored)), rows[0], read_index(out)[0]):
        assert row["source"] == str(occnet.root / CHAIR / NAMES[0] / "points.npz")
        assert (row["up"], float(row["yaw"]), row["family"]) == ("y", -90, "chair")
    with pytest.raises(ValueError, match="holds examples made with.*views"):
        write_set(read_occnet(occnet.root, CHAIR, "train", views=1), out, "train")
    assert len(read_index(out)) == 2  # as before


def test_a_written_set_trains(disn, tmp_path):
    for split in ("train", "test"):
        write_set(read_disn(disn.root, CHAIR, split, views=3), tmp_path, split)
    # the list of "test" names one of "train" again: the last reading counts
    assert {r["split"] for r in read_index(tmp_path) if r["status"] == "ok"} == {
        "train",
        "test",
    }
    data = ShapeDataset(tmp_path, points=256)
    assert len(data) == 1 and data.view_count(0) == 3
    item = data[0]
    assert item["image"].shape == (3, 224, 224) and item["mask"].any()
    assert (item["sdf"] < 0).sum() == 128
    stored = read_example(tmp_path / f"{CHAIR}_{NAMES[0]}.npz", ["similarity"])
    assert stored["similarity"][0] == -90


def test_what_is_skipped_is_not_read_again(occnet):
    skip = {f"{CHAIR}_{NAMES[0]}"}
    readings = read_occnet(occnet.root, CHAIR, "train", views=1, skip=skip)
    assert [name for name, _ in readings] == [f"{CHAIR}_{NAMES[1]}"]


@pytest.fixture
def copied(tmp_path, request):
    """A copy of the first shape of a layout, to be damaged; and how to read it."""
    import shutil

    def copy(layout):
        source = request.getfixturevalue(layout)
        root = tmp_path / layout
        shutil.copytree(source.root, root)
        if layout == "disn":
            return root, lambda: dict(read_disn(root, CHAIR, "train", views=3))
        return root, lambda: dict(
            read_occnet(root, CHAIR, "train", views=3, choy=root / "choy")
        )

    return copy


def fails(read, pattern):
    """The first shape's error matches, in one line; the second one is read."""
    results = read()
    error = results[f"{CHAIR}_{NAMES[0]}"]
    assert isinstance(error, FileNotFoundError | ValueError)
    assert re.search(pattern, str(error)) and "\n" not in str(error)
    assert isinstance(results[f"{CHAIR}_{NAMES[1]}"], dict)


FIRST = f"{CHAIR}/{NAMES[0]}"


@pytest.mark.parametrize(
    "path",
    [
        f"sdf/{FIRST}/ori_sample.h5",
        f"image/{FIRST}/easy/01.png",
        f"normal/{FIRST}/easy/02.png",
        f"image/{FIRST}/easy/rendering_metadata.txt",
    ],
)
def test_files_that_disn_lacks_or_cut_short_are_named(copied, path):
    root, read = copied("disn")
    whole = (root / path).read_bytes()
    for kept in (len(whole) // 2, 100, 0):
        (root / path).write_bytes(whole[:kept])
        fails(read, f"{path}.*(damaged|is not the 10 numbers)")
    (root / path).unlink()
    fails(read, f"{path} is missing")


@pytest.mark.parametrize(
    "path",
    [
        f"{FIRST}/points.npz",
        f"{FIRST}/pointcloud.npz",
        f"choy/{FIRST}/rendering/00.png",
        f"choy/{FIRST}/rendering/rendering_metadata.txt",
    ],
)
def test_files_that_occnet_lacks_or_cut_short_are_named(copied, path):
    root, read = copied("occnet")
    whole = (root / path).read_bytes()
    for kept in (len(whole) // 2, 20, 0):
        (root / path).write_bytes(whole[:kept])
        fails(read, f"{path}.*(damaged|is not the 5 numbers)")
    (root / path).unlink()
    fails(read, f"{path} is missing")


@pytest.mark.parametrize(
    "line",
    ["nonsense", "10 20 0 0.8", "nan 20 0 0.8 25", "10 20 0 -1 25", "1 2 3 4 5 6"],
)
def test_odd_metadata_name_file_and_line(copied, line):
    root, read = copied("occnet")
    path = root / "choy" / FIRST / "rendering" / "rendering_metadata.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]))
    fails(read, "rendering_metadata.txt: line 2 is not the 5 numbers of a view")


def test_other_contents_of_the_archives_are_named(copied):
    h5py = pytest.importorskip("h5py", reason="h5py (extra disn) is not installed")
    root, read = copied("disn")
    path = root / "sdf" / FIRST / "ori_sample.h5"
    with h5py.File(path, "r+") as file:
        samples, norm = file["pc_sdf_sample"][:], file["norm_params"][:]
    for arrays, pattern in (
        ({"pc_sdf_sample": samples}, "lacks one of pc_sdf_sample, norm_params"),
        ({"pc_sdf_sample": samples[:, :3], "norm_params": norm}, "wanted"),
        ({"pc_sdf_sample": np.abs(samples), "norm_params": norm}, "no point is inside"),
        (
            {"pc_sdf_sample": samples * np.nan, "norm_params": norm},
            "a number is not finite",
        ),
        ({"pc_sdf_sample": samples[:9], "norm_params": norm}, "16 or more rows"),
    ):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
        fails(read, pattern)
    root, read = copied("occnet")
    path = root / FIRST / "points.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "occupancies": np.unpackbits(arrays["occupancies"])})
    fails(read, "points.npz: occupancies are not the packed bits")
    np.savez(path, **arrays)
    path = root / FIRST / "pointcloud.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "normals": -arrays["normals"]})
    fails(read, "pointcloud.npz: the normals point inward")


def test_pictures_of_another_kind_are_named(copied):
    root, read = copied("disn")
    save(root / "image" / FIRST / "easy" / "01.png", np.zeros((224, 224, 3)))
    fails(read, "01.png: a square RGBA picture wanted, got .224, 224, 3.")
    save(root / "image" / FIRST / "easy" / "01.png", np.full((224, 224, 4), 9))
    save(root / "normal" / FIRST / "easy" / "01.png", np.zeros((137, 137, 4)))
    fails(read, "normal/.*01.png: 224 pixels wanted")


def test_a_missing_list_is_named(tmp_path, occnet):
    with pytest.raises(FileNotFoundError, match="val.lst is missing"):
        next(read_occnet(occnet.root, CHAIR, "val"))
    pytest.importorskip("h5py", reason="h5py (extra disn) is not installed")
    with pytest.raises(FileNotFoundError, match="03001627_val.lst is missing"):
        next(read_disn(tmp_path, CHAIR, "val"))


def test_a_grey_jpeg_is_read_as_colour(copied):
    root, _ = copied("occnet")
    path = root / FIRST / "img_choy2016" / "000.jpg"
    with Image.open(path) as picture:
        picture.convert("L").save(path)
    example = next(read_occnet(root, CHAIR, "train", views=1))[1]
    assert example["image_0"].shape == (3, 137, 137)


def test_a_giant_array_is_refused_and_the_next_shape_is_read(copied):
    h5py = pytest.importorskip("h5py", reason="h5py (extra disn) is not installed")
    root, read = copied("disn")
    path = root / "sdf" / FIRST / "ori_sample.h5"
    with h5py.File(path, "r+") as file:  # nothing is stored: all is its fill value
        del file["pc_sdf_sample"]
        file.create_dataset("pc_sdf_sample", (10**10, 4), "f4", chunks=(1000, 4))
    fails(read, "ori_sample.h5 .*pc_sdf_sample has 160 GB")


def test_texts_where_numbers_belong_are_named(copied):
    h5py = pytest.importorskip("h5py", reason="h5py (extra disn) is not installed")
    root, read = copied("disn")
    with h5py.File(root / "sdf" / FIRST / "ori_sample.h5", "r+") as file:
        del file["norm_params"]
        file["norm_params"] = ["a", "b"]
    fails(read, "ori_sample.h5: not numbers")


def test_a_listed_name_does_not_leave_the_folder(occnet, tmp_path):
    (_, example), *_ = read_occnet(occnet.root, CHAIR, "train", views=1)
    (row,) = write_set([("../away", example)], tmp_path / "out", "train")
    assert row["status"] == "ok" and not (tmp_path / "away.npz").exists()
    assert len(list((tmp_path / "out").glob("*.npz"))) == 1


def test_fewer_normals_than_points_and_other_shapes_are_named(copied):
    root, read = copied("occnet")
    path = root / FIRST / "pointcloud.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "normals": arrays["normals"][:-5]})
    fails(read, "pointcloud.npz: as many normals as points")
    np.savez(path, **arrays)
    path = root / FIRST / "points.npz"
    arrays = dict(np.load(path))
    for name, odd in (("points", np.zeros(9)), ("loc", 0.0), ("scale", np.ones(3))):
        np.savez(path, **{**arrays, name: odd})
        fails(read, "points.npz: points .P, 3., loc .3,. and one scale wanted")


@pytest.mark.parametrize("text", [b"(999999999999,)", b"{'", b"((((((((", b"1j"])
def test_a_damaged_header_of_an_array_is_named_and_takes_no_memory(copied, text):
    root, read = copied("occnet")
    path = root / FIRST / "points.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    known = members["points.npy"]
    members["points.npy"] = known.replace(b"(4001, 3), }     ", text.ljust(17))
    assert members["points.npy"] != known
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    fails(read, "points.npz is damaged")


def test_a_picture_of_a_billion_pixels_is_not_opened(copied):
    root, read = copied("occnet")
    for path in (
        root / FIRST / "img_choy2016" / "000.jpg",
        root / "choy" / FIRST / "rendering" / "00.png",
    ):
        kind = "JPEG" if path.suffix == ".jpg" else "PNG"
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, kind)
        data = bytearray(file.getvalue())
        place = data.index(b"\xff\xc0") + 5 if kind == "JPEG" else 16
        side = b"\x75\x30" if kind == "JPEG" else b"\0\0\x75\x30"  # 30,000
        data[place : place + 2 * len(side)] = side * 2
        if kind == "PNG":
            data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
    fails(read, "00.png is damaged .*(30000 x 30000|900000000) pixels")
    results = dict(read_occnet(root, CHAIR, "train", views=3))
    error = results[f"{CHAIR}_{NAMES[0]}"]
    assert isinstance(error, ValueError) and "000.jpg is damaged" in str(error)


@pytest.mark.parametrize("name", ["../away", "/etc/passwd", "a/b", ".."])
def test_a_name_that_leads_out_of_the_folder_is_not_read(copied, name):
    root, _ = copied("occnet")
    (root / CHAIR / "train.lst").write_text(f"{name}\n{NAMES[1]}")
    odd, (_, example) = read_occnet(root, CHAIR, "train", views=1)
    assert isinstance(odd[1], ValueError) and isinstance(example, dict)
    assert re.search("train.lst: .* is no name of a shape", str(odd[1]))


def test_a_list_that_is_no_text_is_named(copied):
    root, read = copied("occnet")
    (root / CHAIR / "train.lst").write_bytes(b"\xff\xfe1a")
    with pytest.raises(ValueError, match="train.lst is damaged"):
        read()


def test_an_error_of_any_kind_names_list_and_shape(copied, monkeypatch):
    def fails(*_):
        raise IndexError("index 5 is out of bounds")

    root, read = copied("occnet")
    monkeypatch.setattr("d2im.data.readers._splat", fails)
    error = read()[f"{CHAIR}_{NAMES[0]}"]
    assert isinstance(error, ValueError)
    assert f"{CHAIR}/train.lst: {NAMES[0]}: IndexError index 5" in str(error)


def test_one_shape_of_another_size_ends_no_reading_and_no_second_one(occnet, tmp_path):
    shapes = dict(read_occnet(occnet.root, CHAIR, "train", views=2))
    first, second = shapes.values()
    small = {k: v[..., :64, :64] if k[:4] == "mask" else v for k, v in first.items()}
    readings = [("a", first), ("b", small), ("c", second)]
    for given in (readings, readings[1:]):
        rows = write_set(given, tmp_path, "train")
        assert [r["status"] for r in rows if r["id"] != "a"] == ["failed", "ok"]
        (odd,) = [row for row in rows if row["id"] == "b"]
        assert "holds examples made with" in odd["reason"]
    assert {p.stem for p in tmp_path.glob("*.npz")} == {"a", "c"}


def test_a_reading_into_a_folder_that_is_written_is_refused(tmp_path):
    with hold(tmp_path, "preparation"):
        with pytest.raises(ValueError, match="another preparation"):
            write_set([], tmp_path, "train")


def test_a_name_that_stands_in_a_list_twice_is_read_once(copied):
    root, read = copied("occnet")
    (root / CHAIR / "train.lst").write_text("missing\n" * 5000 + NAMES[1])
    readings = list(read_occnet(root, CHAIR, "train", views=1))
    assert [name for name, _ in readings] == [f"{CHAIR}_missing", f"{CHAIR}_{NAMES[1]}"]
