"""Bytes to pixels: what a person would see, as RGB uint8, resized as the weights ask.

The picture that is embedded is the one a viewer shows: EXIF orientation is applied,
transparency lies over white, 16-bit samples are scaled to 8, of an animation the first frame
counts. Colour profiles are not applied. Anything that is no picture raises `DecodeError`;
no stand-in is ever made up.
"""

import io
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from featpipe.errors import DecodeError

MOST_PIXELS = 178_956_970  # Pillow's own guard against decompression bombs
DECODER = "pillow: EXIF applied, alpha over white, 16 bit scaled to 8, first frame"


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
    """

    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

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
        return (
            f"resize {size} ({self.interpolation}, antialias), centre crop "
            f"{self.crop[0]} x {self.crop[1]}, mean {_three(self.mean)}, std {_three(self.std)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB picture: uint8 array, shape (3, height, width).

        Equal to torchvision's ``ImageClassification`` preset on PIL up to its conversion to
        float, which the runtime does.
        """
        if self.resize is not None:
            size = self.resize if isinstance(self.resize, int) else list(self.resize)
            longer, shorter = max(image.size), min(image.size)
            if isinstance(size, int) and size * size * longer / shorter > MOST_PIXELS:
                raise DecodeError(f"{image.width} x {image.height} is too narrow to be resized")
            image = F.resize(image, size, InterpolationMode(self.interpolation))
        image = F.center_crop(image, list(self.crop))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _three(values: tuple[float, float, float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def decode(data: bytes) -> Image.Image:
    """Decode one image's bytes to an upright RGB picture.

    Raises
    ------
    DecodeError
        With the reason, if the bytes are no complete picture, or one of more than 178,956,970
        pixels (Pillow's guard against decompression bombs).
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _to_rgb(_upright(opened))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format (begins with {data[:8]!r})") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's format readers raise anything at all
        raise DecodeError(f"{type(error).__name__}: {error}") from error


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return image
    # ImageOps.exif_transpose would also write the EXIF block anew, and fail where it cannot.
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image)
        grey = _eight_bit(samples)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey[samples == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        visible = image.convert("RGBA")
        white = Image.new("RGBA", visible.size, "white")
        return Image.alpha_composite(white, visible).convert("RGB")
    return image.convert("RGB")


def _eight_bit(samples: np.ndarray) -> np.ndarray:
    """Scale wide samples to uint8 by the range their type stands for, never by their own."""
    low, high = float(np.min(samples)), float(np.max(samples))
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0):
        raise DecodeError(f"samples from {low:g} to {high:g} have no known brightness")
    if samples.dtype.kind == "f" and high <= 1:
        full = 1.0
    elif samples.dtype.kind == "f" and high <= 255:
        full = 255.0
    elif high <= 65535:
        full = 65535.0
    else:
        raise DecodeError(f"samples up to {high:g} have no known brightness")
    return np.round(samples.astype(np.float64) * (255 / full)).astype(np.uint8)


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """PNG bytes of a PIL picture, or of a uint8 array of shape (h, w) or (h, w, 3)."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
