"""Bytes to pixels: every mode, every sample file, and the weights' own preprocessing."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights, MobileNet_V2_Weights
from torchvision.transforms import functional as F

from featpipe.decode import Preprocessing, decode, encode_png
from featpipe.errors import DecodeError

DATA = Path(__file__).parents[1] / "data"
EXACT = {"rgb.png", "rgb16.png", "rgb.bmp", "rgb.tif", "rgb_lossless.webp", "palette.png",
         "palette_transparent.png", "rgba.png", "animated.gif"}  # fmt: skip
GREYS = {"grey.jpg", "grey_alpha.png", "grey16.png", "grey16.tif", "float32.tif"}
LOSSLESS = {
    "1": ("PNG", "TIFF", "BMP"), "L": ("PNG", "TIFF", "BMP"), "LA": ("PNG", "TIFF"),
    "P": ("PNG", "TIFF", "BMP"), "RGB": ("PNG", "TIFF", "BMP", "WebP"),
    "RGBA": ("PNG", "TIFF", "WebP"), "CMYK": ("TIFF",), "I;16": ("PNG", "TIFF"),
}  # fmt: skip
LOSSY = {"L": ("JPEG",), "RGB": ("JPEG", "WebP"), "RGBA": ("WebP",), "CMYK": ("JPEG",)}
CHANNELS = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def scene(greys: bool = False) -> np.ndarray:
    """The picture that data/README.md describes."""
    colours = [(224, 48, 48), (48, 200, 80), (24, 48, 200), (255, 255, 255)]
    if greys:
        colours = [(grey,) * 3 for grey in (100, 141, 58, 255)]
    picture = np.zeros((64, 96, 3), np.uint8)
    for quadrant, colour in enumerate(colours):
        top, left = 32 * (quadrant // 2), 48 * (quadrant % 2)
        picture[top : top + 32, left : left + 48] = colour
    picture[:8, :8] = 0
    return picture


@st.composite
def pictures(draw: st.DrawFn, modes: list[str]) -> tuple[Image.Image, np.ndarray]:
    """A picture of random samples in one of the modes, and what a viewer shows of it."""
    mode = draw(st.sampled_from(modes))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    depth = (CHANNELS[mode],) if mode in CHANNELS else ()
    values = noise.integers(0, 65536 if mode == "I;16" else 256, (height, width, *depth))
    samples = values.astype(np.uint16 if mode == "I;16" else np.uint8)
    if mode == "1":
        return Image.fromarray(samples > 127), three((samples > 127) * 255.0)
    if mode == "P":
        palette = noise.integers(0, 256, (256, 3)).astype(np.uint8)
        indexed = Image.frombytes("P", (width, height), samples.tobytes())
        indexed.putpalette(palette.tobytes())
        return indexed, palette[samples].astype(float)
    picture = Image.fromarray(samples) if mode == "I;16" else Image.frombytes(
        mode, (width, height), samples.tobytes()
    )  # fmt: skip
    if mode == "I;16":
        return picture, three(values / 257)
    if mode in ("LA", "RGBA"):
        alpha = values[..., -1:] / 255
        return picture, three(values[..., :-1] * alpha + 255 * (1 - alpha))
    if mode == "CMYK":
        return picture, (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    return picture, three(values.astype(float))


def three(values: np.ndarray) -> np.ndarray:
    shaped = values if values.ndim == 3 else values[..., None]
    return np.broadcast_to(shaped, (*shaped.shape[:2], 3))


@settings(deadline=None)
@given(pictures(sorted(LOSSLESS)), st.data())
def test_a_lossless_picture_of_any_mode_is_what_a_viewer_shows(
    drawn: tuple[Image.Image, np.ndarray], data: st.DataObject
) -> None:
    picture, shown = drawn
    form = data.draw(st.sampled_from(LOSSLESS[picture.mode]))
    options = {"lossless": True, "exact": True} if form == "WebP" else {}
    found = decode(saved(picture, form, **options))
    assert (found.mode, found.size) == ("RGB", picture.size)
    rounding = {"LA": 1, "RGBA": 1, "CMYK": 2, "I;16": 0.5}.get(picture.mode, 0)
    assert np.abs(np.asarray(found) - shown).max() <= rounding + 1e-9


@settings(deadline=None)
@given(pictures(sorted(LOSSY)), st.data())
def test_a_lossy_picture_of_any_mode_keeps_its_size(
    drawn: tuple[Image.Image, np.ndarray], data: st.DataObject
) -> None:
    picture, _ = drawn
    form = data.draw(st.sampled_from(LOSSY[picture.mode]))
    found = decode(saved(picture, form))
    assert (found.mode, found.size) == ("RGB", picture.size)


@pytest.mark.parametrize("path", sorted((DATA / "formats").iterdir()), ids=lambda path: path.name)
def test_every_form_of_the_scene_decodes_to_it(path: Path) -> None:
    found, expected = pixels(path.read_bytes()), scene(greys=path.name in GREYS)
    if path.name == "one_bit.png":
        expected = three(np.where(scene(greys=True)[..., :1] >= 128, 255, 0))
    if path.name in EXACT:
        assert np.array_equal(found, expected)
    assert found.shape == expected.shape
    inside = np.zeros((64, 96), bool)  # away from edges, where lossy forms ring
    for top, left in ((0, 0), (0, 48), (32, 0), (32, 48)):
        inside[top + 12 : top + 28, left + 12 : left + 44] = True
    inside[2:6, 2:6] = True
    assert np.abs(found[inside].astype(int) - expected[inside]).max() <= 4
    assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("path", sorted((DATA / "broken").iterdir()), ids=lambda path: path.name)
def test_every_broken_file_is_refused_with_a_reason(path: Path) -> None:
    with pytest.raises(DecodeError, match=r"\w+ \w+"):
        decode(path.read_bytes())


@settings(deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0"]), st.binary())
def test_bytes_that_are_no_picture_are_refused(start: bytes, data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(start + data)


@settings(deadline=None)
@given(st.sampled_from(["rgb.jpg", "rgb.png", "rgb.tif", "rgb.webp", "rgb.bmp"]), st.floats(0, 0.5))
def test_the_beginning_of_a_picture_is_refused(name: str, share: float) -> None:
    data = (DATA / "formats" / name).read_bytes()
    with pytest.raises(DecodeError):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    turned = {3: 2, 6: 1, 7: 2, 8: -1}.get(orientation, 0)
    stored = np.rot90(upright, turned)
    if orientation in (5, 7):
        stored = stored.transpose(1, 0, 2)
    elif orientation in (2, 4):
        stored = np.flip(stored, 1 if orientation == 2 else 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored))
    for form in ("PNG", "TIFF"):
        assert np.array_equal(pixels(saved(picture, form, exif=exif)), upright)


def test_a_damaged_exif_block_does_not_make_a_picture_unreadable() -> None:
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6, and a text that is a ratio
    entries += struct.pack("<HHII", 0x010E, 5, 1, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    assert decode(saved(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_transparent_colour_lies_over_white(mode: str) -> None:
    picture = Image.new(mode, (2, 1))
    white, clear = {"RGB": ((255,) * 3, (0,) * 3), "I;16": (65535, 0)}.get(mode, (255, 0))
    picture.putpixel((1, 0), white)  # type: ignore[arg-type]
    assert pixels(saved(picture, "PNG", transparency=clear)).min() == 255


@pytest.mark.parametrize("value", [0, 255, 256, 4095, 40000, 65535])
def test_sixteen_bits_are_scaled_not_clipped(value: int) -> None:
    wide = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert set(pixels(saved(wide, "PNG")).ravel()) == {round(value / 257)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e6])
def test_floats_of_unknown_brightness_are_refused(value: float) -> None:
    samples = np.array([[0, value]], np.float32)
    with pytest.raises(DecodeError, match="no known brightness"):
        decode(saved(Image.fromarray(samples), "TIFF"))


@pytest.mark.parametrize("weights", [MobileNet_V2_Weights, EfficientNet_B0_Weights])
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_pixels_equal_the_preset_of_the_weights(
    weights: Any, height: int, width: int, seed: int
) -> None:
    preset = weights.DEFAULT.transforms()
    ours = Preprocessing(
        preset.resize_size[0], (preset.crop_size[0],) * 2, preset.interpolation.value,
        tuple(preset.mean), tuple(preset.std),
    )  # fmt: skip
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    picture = Image.fromarray(noise.astype(np.uint8))
    found = ours.pixels(picture)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    scaled = torch.from_numpy(found).permute(2, 0, 1).float() / 255
    scaled = F.normalize(scaled, ours.mean, ours.std)
    assert torch.equal(scaled, preset(picture))


def test_an_exact_resize_and_none_at_all() -> None:
    picture = Image.fromarray(scene())
    assert Preprocessing((32, 40), (32, 40)).pixels(picture).shape == (32, 40, 3)
    assert np.array_equal(Preprocessing(None, (64, 96)).pixels(picture), scene())


SIDES = st.integers(1, 1000)
RESIZES = st.none() | SIDES | st.tuples(SIDES, SIDES)
PREPROCESSINGS = st.builds(Preprocessing, RESIZES, st.tuples(SIDES, SIDES), reshaped=st.booleans())


@settings(deadline=None)
@given(PREPROCESSINGS)
def test_preprocessing_survives_json(one: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert str(one.crop[0]) in one.describe()


@settings(deadline=None)
@given(PREPROCESSINGS, SIDES)
def test_another_input_size_never_needs_padding(one: Preprocessing, size: int) -> None:
    other = one.at(size)
    assert other.crop == (size, size)
    assert (other.resize is None) == (one.resize is None)
    assert other.resize is None or np.min(other.resize) >= size
    assert (other.mean, other.std) == (one.mean, one.std)


def test_another_input_size_keeps_the_proportion() -> None:
    assert Preprocessing(256, (224, 224)).at(448) == Preprocessing(512, (448, 448))
    assert Preprocessing((224, 224)).at(96) == Preprocessing((96, 96), (96, 96))
    assert Preprocessing(232).at(None) == Preprocessing(232)


def test_only_a_reshaped_preprocessing_says_so() -> None:
    """Files from before it could be said have no such key, and name the same features."""
    usual, scrambled = Preprocessing(), Preprocessing(reshaped=True)
    assert "reshaped" not in usual.to_dict()
    assert Preprocessing.from_dict(scrambled.to_dict()) == scrambled
    assert "RESHAPED" in scrambled.describe()
    assert "RESHAPED" not in usual.describe()


def test_encoding_as_png_loses_nothing() -> None:
    assert np.array_equal(pixels(encode_png(scene())), scene())
    assert np.array_equal(pixels(encode_png(scene()[..., 0]))[..., 1], scene()[..., 0])
