"""Remake the sample pictures that lie beside this script.

Run ``python data/make_samples.py``. Everything is rendered here from seeded random numbers, so a
second run with the same Pillow and NumPy gives the same bytes.
"""

import csv
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HERE = Path(__file__).resolve().parent
SEED = 32

CLASSES = ("circle", "square", "triangle")
PICTURES_PER_CLASS = 12
OTHER_EXTENSIONS = {  # by class and number; every other picture is a JPEG
    "circle": {4: "png", 8: "webp", 11: "bmp"},
    "square": {2: "png", 6: "gif", 9: "tif", 10: "webp"},
    "triangle": {5: "bmp", 7: "png", 10: "tif", 12: "webp"},
}
SPECIAL_NAMES = {("square", 5): "square 05", ("triangle", 3): "dreieck ä 03"}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 85},
    "png": {"optimize": True},
    "webp": {"quality": 85},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "gif": {},
}

SCENE_SIZE = (96, 64)
RED, GREEN, BLUE, WHITE, BLACK = range(5)
COLOURS = np.array(
    [(224, 48, 48), (48, 200, 80), (24, 48, 200), (255, 255, 255), (0, 0, 0)], dtype=np.uint8
)
MARK = 8  # side of the black mark in the scene's top-left corner
ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Backdrop:
    """The look of one scene: what lies behind the shape."""

    colour: NDArray[np.float64]
    angle: float
    wavelength: float
    stripes: float
    blotches: float
    grain: float


def draw_backdrop(rng: np.random.Generator) -> Backdrop:
    """Choose the look of one scene."""
    return Backdrop(
        colour=rng.uniform(50, 205, 3),
        angle=rng.uniform(0, np.pi),
        wavelength=rng.uniform(8, 30),
        stripes=rng.uniform(6, 22),
        blotches=rng.uniform(10, 30),
        grain=rng.uniform(4, 10),
    )


def paint_backdrop(
    backdrop: Backdrop, size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Paint stripes, soft blotches and grain over the scene's colour."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    along = x * np.cos(backdrop.angle) + y * np.sin(backdrop.angle)
    stripes = backdrop.stripes * np.sin(2 * np.pi * along / backdrop.wavelength)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    blotches = backdrop.blotches * (soft / 127.5 - 1)
    grain = rng.normal(0, backdrop.grain, (height, width, 1))
    pixels: NDArray[np.float64] = backdrop.colour + stripes[..., None] + blotches + grain
    return pixels


def corners(name: str, centre: tuple[float, float], radius: float, turn: float) -> list[float]:
    """Give the corners of a square or an equilateral triangle as a flat list."""
    count = {"square": 4, "triangle": 3}[name]
    angles = turn + 2 * np.pi * np.arange(count) / count
    xs, ys = centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)
    return [float(value) for value in np.stack([xs, ys], axis=1).ravel()]


def shape_mask(name: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw one shape of random position, size and turn as a smooth-edged mask."""
    scale = 4
    width, height = size
    radius = min(size) * rng.uniform(0.24, 0.42)
    centre = (
        float(rng.uniform(radius + 1, width - radius - 1)),
        float(rng.uniform(radius + 1, height - radius - 1)),
    )
    turn = rng.uniform(0, 2 * np.pi)
    mask = Image.new("L", (width * scale, height * scale))
    pen = ImageDraw.Draw(mask)
    big = (centre[0] * scale, centre[1] * scale)
    if name == "circle":
        pen.circle(big, radius * scale * 0.9, fill=255)
    else:
        pen.polygon(corners(name, big, radius * scale, turn), fill=255)
    return mask.resize(size, Image.Resampling.BOX)


def contrasting_colour(
    colour: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw colours until one stands out from the given colour."""
    while True:
        candidate = rng.uniform(0, 255, 3)
        if np.linalg.norm(candidate - colour) > 140:
            return candidate


def render_shape(
    name: str, backdrop: Backdrop, size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """Render one picture of a shape before a scene's backdrop."""
    ground = paint_backdrop(backdrop, size, rng)
    mask = np.asarray(shape_mask(name, size, rng), dtype=np.float64)[..., None] / 255
    fill = contrasting_colour(backdrop.colour, rng) + rng.normal(0, 6, ground.shape)
    pixels = np.clip(np.rint(mask * fill + (1 - mask) * ground), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.4))


def draw_size(extension: str, rng: np.random.Generator) -> tuple[int, int]:
    """Choose a picture's size, small where the format compresses badly."""
    most = (160, 120) if extension in ("jpg", "webp") else (84, 64)
    width, height = int(rng.integers(60, most[0] + 1)), int(rng.integers(48, most[1] + 1))
    return (height, width) if rng.random() < 0.2 else (width, height)


def scene_of(name: str, number: int) -> int:
    """Give the scene of a picture: 1 to 6 hold every class, 7 to 12 three pictures of one class."""
    if number <= 6:
        return number
    return 7 + CLASSES.index(name) + (3 if number >= 10 else 0)


def split_of(scene: int) -> str:
    """Give the split of a scene; no scene lies in two splits."""
    if scene in (4, 5):
        return "val"
    return "test" if scene == 6 or scene >= 10 else "train"


def make_shapes(folder: Path, table: Path) -> None:
    """Write the pictures of the three classes and the table that lists them."""
    rng = np.random.default_rng(SEED)
    backdrops = [draw_backdrop(rng) for _ in range(12)]
    rows = []
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, PICTURES_PER_CLASS + 1):
            extension = OTHER_EXTENSIONS[name].get(number, "jpg")
            scene = scene_of(name, number)
            size = draw_size(extension, rng)
            picture = render_shape(name, backdrops[scene - 1], size, rng)
            if extension == "gif":
                picture = picture.quantize(64, dither=Image.Dither.NONE)
            stem = SPECIAL_NAMES.get((name, number), f"{name}_{number:02d}")
            path = f"{name}/{stem}.{extension}"
            picture.save(folder / path, **SAVE_OPTIONS[extension])
            rows.append((path, name, split_of(scene), f"scene_{scene:02d}"))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(rows)


def scene_indices() -> NDArray[np.uint8]:
    """Give the scene of formats/ as colour numbers: four quadrants and a black mark."""
    width, height = SCENE_SIZE
    indices = np.empty((height, width), dtype=np.uint8)
    indices[: height // 2, : width // 2] = RED
    indices[: height // 2, width // 2 :] = GREEN
    indices[height // 2 :, : width // 2] = BLUE
    indices[height // 2 :, width // 2 :] = WHITE
    indices[:MARK, :MARK] = BLACK
    return indices


def with_palette(indices: NDArray[np.uint8], colours: NDArray[np.uint8]) -> Image.Image:
    """Make a palette picture from colour numbers."""
    picture = Image.frombytes("P", SCENE_SIZE, indices.tobytes())
    picture.putpalette(colours.ravel().tolist())
    return picture


def to_cmyk(rgb: NDArray[np.uint8]) -> Image.Image:
    """Separate RGB into CMYK with the shared grey moved to the black plate."""
    levels = rgb.astype(np.float64)
    lightest = levels.max(axis=2, keepdims=True)
    inks = 255 * (1 - levels / np.maximum(lightest, 1))
    inks[lightest[..., 0] == 0] = 0
    plates = np.concatenate([inks, 255 - lightest], axis=2)
    return Image.frombytes("CMYK", SCENE_SIZE, np.rint(plates).astype(np.uint8).tobytes())


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Frame one PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(size: tuple[int, int], depth: int, rows: bytes) -> bytes:
    """Write an RGB PNG of the given bit depth from rows that begin with their filter byte."""
    header = struct.pack(">IIBBBBB", *size, depth, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def rgb16_png(rgb: NDArray[np.uint8]) -> bytes:
    """Write a PNG with 16 bits a channel, which Pillow reads but does not write."""
    wide = (rgb.astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in wide)
    return png_bytes(SCENE_SIZE, 16, rows)


def make_colour_formats(folder: Path, scene: Image.Image) -> None:
    """Write the scene in the forms that keep its colours and need no alpha."""
    rgb = np.asarray(scene)
    cmyk = to_cmyk(rgb)
    scene.save(folder / "rgb.jpg", quality=95, subsampling=0)
    scene.save(folder / "progressive.jpg", quality=95, subsampling=0, progressive=True)
    cmyk.save(folder / "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    turned = scene.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "exif_rotated.jpg", quality=95, subsampling=0, exif=exif)
    scene.save(folder / "rgb.png")
    (folder / "rgb16.png").write_bytes(rgb16_png(rgb))
    scene.save(folder / "rgb.webp", quality=95)
    scene.save(folder / "rgb_lossless.webp", lossless=True)
    scene.save(folder / "rgb.bmp")
    scene.save(folder / "rgb.tif", compression="tiff_lzw")
    cmyk.save(folder / "cmyk.tif", compression="tiff_lzw")


def make_grey_formats(folder: Path, grey: Image.Image) -> None:
    """Write the luminance of the scene at several depths."""
    levels = np.asarray(grey)
    wide = Image.fromarray(levels.astype(np.uint16) * 257)
    grey.save(folder / "grey.jpg", quality=95)
    wide.save(folder / "grey16.png")
    wide.save(folder / "grey16.tif")
    unit = levels.astype(np.float32) / np.float32(255)
    Image.fromarray(unit).save(folder / "float32.tif", compression="tiff_adobe_deflate")
    grey.convert("1", dither=Image.Dither.NONE).save(folder / "one_bit.png")


def make_palette_and_alpha_formats(folder: Path, indices: NDArray[np.uint8]) -> None:
    """Write the scene with a palette, with transparency, and as an animation."""
    width, height = SCENE_SIZE
    clear = np.zeros_like(indices, dtype=bool)
    clear[height // 2 :, width // 2 :] = True
    hidden = np.where(clear, np.uint8(BLACK), indices)
    alpha = Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    below = Image.fromarray(COLOURS[hidden])
    rgba = below.copy()
    rgba.putalpha(alpha)
    rgba.save(folder / "rgba.png")
    Image.merge("LA", (below.convert("L"), alpha)).save(folder / "grey_alpha.png")

    with_palette(indices, COLOURS).save(folder / "palette.png")
    holed = indices.copy()
    holed[-16:, -16:] = len(COLOURS)
    holed_colours = np.concatenate([COLOURS, np.zeros((1, 3), dtype=np.uint8)])
    holed_picture = with_palette(holed, holed_colours)
    holed_picture.save(folder / "palette_transparent.png", transparency=len(COLOURS))

    black = with_palette(np.full_like(indices, BLACK), COLOURS)
    with_palette(indices, COLOURS).save(
        folder / "animated.gif", save_all=True, append_images=[black], duration=200, loop=0
    )


def make_formats(folder: Path) -> None:
    """Write one scene in every form that picture files commonly take."""
    folder.mkdir(parents=True, exist_ok=True)
    indices = scene_indices()
    scene = Image.fromarray(COLOURS[indices])
    make_colour_formats(folder, scene)
    make_grey_formats(folder, scene.convert("L"))
    make_palette_and_alpha_formats(folder, indices)


def make_broken(folder: Path) -> None:
    """Write files that carry a picture's name and cannot be read as one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED + 1)
    picture = render_shape("circle", draw_backdrop(rng), (96, 64), rng)
    jpeg, png = io.BytesIO(), io.BytesIO()
    picture.save(jpeg, "JPEG", quality=85)
    picture.save(png, "PNG")
    half_jpeg = jpeg.getvalue()[: len(jpeg.getvalue()) // 2]
    half_png = png.getvalue()[: len(png.getvalue()) // 2]
    flipped = bytearray(png.getvalue())
    flipped[flipped.index(b"IDAT") + 4 + 200] ^= 0xFF
    page = (
        "<!DOCTYPE html>\n<html>\n<head><title>404 Not Found</title></head>\n"
        "<body><h1>Not Found</h1><p>The picture was not found.</p></body>\n</html>\n"
    )
    (folder / "truncated.jpg").write_bytes(half_jpeg)
    (folder / "truncated.png").write_bytes(half_png)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"This is a sentence of text and not a picture.\n")
    (folder / "flipped.png").write_bytes(bytes(flipped))
    (folder / "huge_header.png").write_bytes(png_bytes((60000, 60000), 8, bytes(64)))
    (folder / "html.gif").write_bytes(page.encode("ascii"))


def main() -> None:
    """Write every sample file into the folder of this script."""
    make_shapes(HERE / "shapes", HERE / "shapes.csv")
    make_formats(HERE / "formats")
    make_broken(HERE / "broken")


if __name__ == "__main__":
    main()
