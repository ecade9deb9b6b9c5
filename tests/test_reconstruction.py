import numpy as np
import pytest
import torch
from PIL import Image

from d2im.camera import Camera
from d2im.reconstruction import load_image, reconstruct

CAMERA = Camera(20, 10, 1, 32)


@pytest.fixture
def ball_model(tiny_model):
    """A model whose base is a ball-like blob and whose maps are constants."""
    with torch.no_grad():
        for layer in tiny_model.base_decoder.layers:
            layer.weight.zero_()
            layer.bias.zero_()
        first, *rest = tiny_model.base_decoder.layers
        # |x|, |y|, |z| through ReLU pairs, carried to the end: an octahedron
        for axis in range(3):
            first.weight[2 * axis, -3 + axis] = 1
            first.weight[2 * axis + 1, -3 + axis] = -1
        for layer in rest:
            for unit in range(6):
                layer.weight[unit, unit] = 1
        tiny_model.base_decoder.out.weight.zero_()
        tiny_model.base_decoder.out.weight[:, :6] = 10
        tiny_model.base_decoder.out.bias.fill_(-3.0)  # |x| + |y| + |z| = 0.3
        tiny_model.displacement_decoder.out.weight.zero_()
        tiny_model.displacement_decoder.out.bias.copy_(torch.tensor([-0.5, 0.2]))
    return tiny_model.eval()


def test_base_and_final_mesh_are_the_zero_sets_of_f_b_and_f(ball_model):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, resolution=48)
    octahedron = 0.3**3 * 4 / 3
    assert found.base_mesh.volume == pytest.approx(octahedron, rel=0.02)
    assert found.displacement.shape == (2, 32, 32)
    assert torch.allclose(found.displacement[0], torch.tensor(-0.05))
    assert torch.allclose(found.displacement[1], torch.tensor(0.02))
    # front half of an octahedron of 0.35, back half of one of 0.28
    expected = (0.35**3 + 0.28**3) / 2 * 4 / 3
    assert found.mesh.volume == pytest.approx(expected, rel=0.03)
    points = torch.rand(100, 3) - 0.5
    axis = torch.tensor(CAMERA.rotation[2]).float()
    base = points.abs().sum(-1) - 0.3
    assert torch.allclose(found.base_sdf(points), base, atol=1e-6)
    front = (points.sign() @ axis) < 0
    expected = base + torch.where(front, -0.05, 0.02)
    assert torch.allclose(found.sdf(points), expected, atol=1e-6)


def test_the_models_mode_is_left_as_it_was(ball_model):
    ball_model.train()
    reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, resolution=16)
    assert ball_model.training


def test_a_missing_camera_is_asked_for(ball_model):
    with pytest.raises(ValueError, match="camera=Camera"):
        reconstruct(ball_model, torch.ones(3, 32, 32))


def picture(alpha=True):
    """A red square in the middle of a transparent (or white) picture."""
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[16:48, 16:48] = (255, 0, 0, 255)
    if not alpha:
        rgba[rgba[..., 3] == 0] = 255
        rgba = rgba[..., :3]
    return rgba


@pytest.mark.parametrize("alpha", [True, False])
def test_every_kind_of_picture_gives_the_same_tensor(alpha, tmp_path):
    rgba = picture(alpha)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = load_image(tmp_path / "a.png", 32)
    assert expected.shape == (3, 32, 32)
    assert expected[:, 16, 16].tolist() == [1, 0, 0]
    assert expected[:, 0, 0].tolist() == [1, 1, 1]
    white = torch.from_numpy(picture(False)).permute(2, 0, 1) / 255
    for source in (rgba, Image.fromarray(rgba), str(tmp_path / "a.png"), white,
                   white.numpy()):  # fmt: skip
        assert torch.allclose(load_image(source, 32), expected, atol=1e-6)


def test_a_busy_background_is_refused():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="cut the object out"):
        load_image(noise, 32)


@pytest.mark.parametrize(
    "source, error, message",
    [
        (np.ones((3, 40, 32)), ValueError, "square"),
        (np.ones((3, 1, 1)), ValueError, "at least 16 px"),
        (np.ones((32, 32, 3)), ValueError, r"\(3, H, W\)"),
        (np.full((3, 32, 32), 255.0), ValueError, r"\[0, 1\]"),
        (np.full((3, 32, 32), np.nan), ValueError, r"\[0, 1\]"),
        (np.ones((3, 32, 32), dtype=int), ValueError, "float"),
        (np.zeros((32, 32, 2), dtype=np.uint8), ValueError, "3 or 4"),
        (np.zeros((32, 32, 4), dtype=np.uint8), ValueError, "fully transparent"),
        ([1, 2, 3], TypeError, "not list"),
    ],
)
def test_a_wrong_picture_is_refused_in_one_line(source, error, message):
    with pytest.raises(error, match=message) as caught:
        load_image(source, 32)
    assert "\n" not in str(caught.value)


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file .*none.png"):
        load_image(tmp_path / "none.png", 32)
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n broken"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match="bad.png is not a readable image"):
            load_image(tmp_path / "bad.png", 32)


def test_an_object_with_alpha_may_fill_its_picture():
    rgba = picture()[16:48, 16:48].copy()
    rgba[:2, :2, 3] = 0
    assert load_image(rgba, 32)[:, 16, 16].tolist() == [1, 0, 0]


def test_more_than_8_bits_are_refused_not_clipped():
    image = Image.fromarray(np.full((64, 64), 30000, dtype=np.uint16))
    with pytest.raises(ValueError, match="8 bits"):
        load_image(image, 32)


def test_flipped_and_half_precision_arrays_are_read():
    white = np.ones((3, 32, 32), dtype=np.float32)
    white[0, 8:24, 8:20] = 0.25
    flipped = load_image(white[:, :, ::-1], 32)
    assert torch.equal(flipped, torch.tensor(white).flip(2))
    half = load_image(torch.tensor(white).bfloat16(), 32)
    assert torch.equal(half, torch.tensor(white))
