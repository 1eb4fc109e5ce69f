"""Bytes to pixels: what a person would see, as RGB uint8, resized as the weights ask.

The picture that is embedded is the one a viewer shows: EXIF orientation is applied,
transparency lies over white, 16-bit samples are scaled to 8, of an animation the first frame
counts. Colour profiles are not applied. Anything that is no picture raises `DecodeError`;
no stand-in is ever made up.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from featpipe.errors import DecodeError
from featpipe.lean import InterpolationMode, transforms

MOST_PIXELS = 178_956_970  # Pillow's own guard against decompression bombs
MOST_SIDE = 1 << 20  # each row costs memory of its own, and no picture is so narrow
MOST_SCANS = 100  # of a progressive JPEG, as libtiff has it; real ones have ten
MOST_PARTS = 500  # segments before a JPEG's picture, comments of a plain PPM
STRIP_PIXELS = 1 << 20  # converted at once
# Pillow also knows formats that it hands to other programs, or that no photograph has.
Image.init()
_KNOWN = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "AVIF", "JPEG2000")
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)


@dataclass(frozen=True)
class Preprocessing:
    """What happens between a decoded picture and the network.

    Attributes
    ----------
    resize : int, pair of int, or None
        Pixels of the shorter side; or exact (height, width); or no resizing.
    crop : pair of int
        Height and width of the centre crop: the network's input.
    interpolation : str
        A torchvision interpolation mode: ``bilinear``, ``bicubic``, ...
    mean, std : three floats
        Of each channel, after scaling to [0, 1].
    antialias : bool
        Whether shrinking averages over all pixels; OpenCV's plain resize does not.
    exif : bool
        Whether a picture is turned as its EXIF orientation says, as viewers do.
    reshaped : bool
        Whether height x width x channel values are read as if they lay channel by channel, which
        scrambles every picture: a mistake that others have published, and recipes reproduce.
    """

    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    antialias: bool = True
    exif: bool = True
    reshaped: bool = False

    def at(self, input_size: int | None) -> "Preprocessing":
        """The same for another input size, in pixels; the resize keeps its proportion."""
        if input_size is None:
            return self
        resize = self.resize
        if isinstance(resize, int):
            resize = max(input_size, round(input_size * resize / min(self.crop)))
        elif resize is not None:
            resize = (input_size, input_size)
        return replace(self, resize=resize, crop=(input_size, input_size))

    def describe(self) -> str:
        """One line for people."""
        size = f"{self.resize}" if isinstance(self.resize, int) else f"{self.resize or 'none'}"
        smooth = "antialias" if self.antialias else "no antialias"
        turned = "" if self.exif else ", EXIF orientation ignored"
        turned += ", RESHAPED WITHOUT TRANSPOSING" if self.reshaped else ""
        return (
            f"resize {size} ({self.interpolation}, {smooth}), centre crop {self.crop[0]} x "
            f"{self.crop[1]}, mean {_three(self.mean)}, std {_three(self.std)}{turned}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        if not self.reshaped:  # files from before it could be said hold the same features
            del values["reshaped"]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB picture: uint8 array, shape (height, width, 3).

        Equal to torchvision's ``ImageClassification`` preset on PIL up to its conversion to
        float, which the runtime does.
        """
        if self.resize is not None:
            self.refuse_narrow(*image.size)
            size = self.resize if isinstance(self.resize, int) else list(self.resize)
            image = self._resized(image, size)
        image = transforms.center_crop(image, list(self.crop))
        return np.array(image)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture before it is cropped."""
        if not isinstance(self.resize, int):
            return self.resize or (height, width)
        if height < width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

    def refuse_narrow(self, width: int, height: int) -> None:
        """Raise DecodeError if a picture, resized by its shorter side, would fill the memory."""
        if isinstance(self.resize, int):
            pixels = self.resize**2 * max(width, height) / min(width, height)
            if pixels > MOST_PIXELS:
                raise DecodeError(f"{width} x {height} is too narrow to be resized")

    def _resized(self, image: Image.Image, size: int | list[int]) -> Image.Image:
        mode = InterpolationMode(self.interpolation)
        if self.antialias:
            return transforms.resize(image, size, mode)  # type: ignore[no-any-return]
        plain = transforms.resize(transforms.pil_to_tensor(image), size, mode, antialias=False)
        return Image.fromarray(plain.permute(1, 2, 0).numpy())


def _three(values: tuple[float, float, float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def to_pixels(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Decode, resize and crop one image: uint8 array, shape (height, width, 3).

    Raises
    ------
    DecodeError
        As `decode` does.
    """
    return preprocessing.pixels(decode(data, preprocessing.exif))


@dataclass(frozen=True)
class Decoder:
    """A way from bytes to pixels.

    Attributes
    ----------
    name : str
        What stands in the Spec: decoders of one name give the same pixels, but for rounding
        where a card that is short of memory leaves an image to the CPU.
    one : callable
        ``one(data, preprocessing)``: uint8 array, shape (height, width, 3); raises DecodeError.
    many : callable or None
        ``many(datas, preprocessing)``: such an array for each, or None for those that `one` is
        to decode, or to say why it cannot. For decoders that are faster on several at once.
    """

    name: str
    one: Callable[[bytes, Preprocessing], np.ndarray]
    many: Callable[[Sequence[bytes], Preprocessing], list[np.ndarray | None]] | None = None


EXACT = Decoder("pillow: alpha over white, 16 bit scaled to 8, first frame", to_pixels)


def decode(data: bytes, exif: bool = True) -> Image.Image:
    """Decode one image's bytes to an RGB picture, upright if `exif` is to be heeded.

    Beside its own bytes, no more memory is used than some 25 bytes for each of the 178,956,970
    pixels that a picture may have (4.5 GB; for all but JPEG 2000 and WebP, half of that),
    whatever the bytes claim. So many pixels take some ten seconds.

    Raises
    ------
    DecodeError
        With the reason, if the bytes are no complete picture, or one of more than 178,956,970
        pixels (Pillow's guard against decompression bombs).
    """
    if not data:
        raise DecodeError("the file is empty")
    refuse_slow(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            refuse_bomb(opened, data)
            opened.load()
            turn = turn_of(opened) if exif else None
            picture = _to_rgb(opened)
        del opened  # with whatever its decoder holds
        return picture if turn is None else picture.transpose(turn)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format (begins with {data[:8]!r})") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's format readers raise anything at all
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def refuse_slow(data: bytes) -> None:
    """Refuse headers that keep Pillow busy for minutes, since each part costs all before it."""
    if data.startswith((b"P1", b"P2", b"P3")) and data.count(b"#") > MOST_PARTS:
        raise DecodeError(f"more than {MOST_PARTS} comments before or in the picture")
    if not data.startswith(b"\xff\xd8"):
        return
    at = 2
    for _ in range(MOST_PARTS):
        at = data.find(b"\xff", at)  # as Pillow, over whatever lies between
        marker = data[at + 1] if 0 <= at < len(data) - 1 else 0xDA
        if marker == 0xDA:  # the picture itself
            return
        if marker in (0x00, 0xFF):
            at += 1
        elif 0xD0 <= marker <= 0xD9:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise DecodeError(f"more than {MOST_PARTS} segments before the picture")


def refuse_bomb(opened: Image.Image, data: bytes) -> None:
    """Refuse what would take memory or time beyond all proportion; nothing is decoded yet."""
    if opened.width * opened.height > MOST_PIXELS:
        raise DecodeError(f"{opened.width} x {opened.height} is more than {MOST_PIXELS:,} pixels")
    if max(opened.size) > MOST_SIDE:
        raise DecodeError(f"{opened.width} x {opened.height} is too narrow for a picture")
    # A scan that changes nothing is a few bytes, and a pass over all pixels.
    if "progressive" in opened.info and data.count(b"\xff\xda") > MOST_SCANS:
        scans = len(re.findall(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)", data))
        if scans > MOST_SCANS:
            raise DecodeError(f"{scans:,} scans are more than the {MOST_SCANS} that are read")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright. ImageOps.exif_transpose would also write the EXIF anew."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        full, clear = _full_scale(image), image.info.get("transparency")
        return _in_strips(image, lambda strip: _grey(strip, full, clear))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        return _in_strips(image, _over_white)
    return image.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """A picture's top rows, the next ones, and so on, each with the number of its first row."""
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert strip by strip, since what lies between would take several times the memory."""
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _over_white(image: Image.Image) -> Image.Image:
    visible = image.convert("RGBA")
    white = Image.new("RGBA", visible.size, "white")
    return Image.alpha_composite(white, visible).convert("RGB")


def _full_scale(image: Image.Image) -> float:
    """The brightest that wide samples can be, by the range their type stands for."""
    each = (np.asarray(strip) for _, strip in _strips(image))
    limits = [(float(samples.min()), float(samples.max())) for samples in each]
    low, high = float(np.min(limits)), float(np.max(limits))
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0):
        raise DecodeError(f"samples from {low:g} to {high:g} have no known brightness")
    if image.mode == "F" and high <= 1:
        return 1.0
    if image.mode == "F" and high <= 255:
        return 255.0
    if high <= 65535:
        return 65535.0
    raise DecodeError(f"samples up to {high:g} have no known brightness")


def _grey(image: Image.Image, full: float, clear: object) -> Image.Image:
    """Scale wide samples to 8 bit; those of the colour that stands for clear become white."""
    samples = np.asarray(image)
    grey = np.round(samples.astype(np.float64) * (255 / full)).astype(np.uint8)
    if isinstance(clear, int):
        grey[samples == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """PNG bytes of a PIL picture, or of a uint8 array of shape (h, w) or (h, w, 3)."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
