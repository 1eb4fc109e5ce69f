"""The fast way from bytes to pixels: TorchCodec for JPEG, resizing in uint8, large JPEGs scaled.

What is refused, and what a picture looks like, are those of `decode`: Pillow reads the header
first, and whatever is not a plain JPEG goes through it. What differs is rounding, since torch
resizes bytes where Pillow keeps more digits between its two passes; and a JPEG of at least four
times the sides that are needed is halved, once or more, as it is decoded (of its cosine
transforms only the low frequencies are computed).
"""

import functools
import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from featpipe.decode import (
    FORMATS,
    Decoder,
    Preprocessing,
    decode,
    refuse_bomb,
    refuse_slow,
    turn_of,
)
from featpipe.lean import transforms

MODES = ("bilinear", "bicubic")  # what torch resizes in uint8
SPARE = 2  # times the sides that are needed: a JPEG is never halved below


def to_pixels(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Decode, resize and crop one image: uint8 array, shape (height, width, 3).

    Raises
    ------
    DecodeError
        As `decode` does.
    """
    how = preprocessing
    if not resizes(how):
        return how.pixels(decode(data, how.exif))
    picture = _jpeg(data, how)
    if picture is None:
        picture = _to_tensor(decode(data, how.exif))
    how.refuse_narrow(picture.shape[1], picture.shape[0])
    pixels: np.ndarray = resize(picture[None], how)[0].numpy()
    return pixels


FAST = Decoder(
    "torchcodec: uint8 resize, large JPEG halved; "
    "alpha over white, 16 bit scaled to 8, first frame",
    to_pixels,
)


def resizes(how: Preprocessing) -> bool:
    """Whether `resize` can do what is asked for."""
    return how.interpolation in MODES and how.antialias and how.resize is not None


def resize(pictures: Tensor, how: Preprocessing) -> Tensor:
    """Resize and crop: uint8, from shape (batch, any, any, 3) to (batch, height, width, 3)."""
    pictures = pictures.permute(0, 3, 1, 2)
    size = how.resized(*pictures.shape[2:])
    if size != tuple(pictures.shape[2:]):
        on_cpu = pictures.device.type == "cpu"  # elsewhere torch resizes no bytes
        found = interpolate(
            pictures if on_cpu else pictures.float(), size, mode=how.interpolation, antialias=True
        )
        pictures = found if on_cpu else found.clamp_(0, 255).round_().byte()
    cropped: Tensor = transforms.center_crop(pictures, list(how.crop))
    return cropped.movedim(1, -1).contiguous()


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture))


def _jpeg(data: bytes, how: Preprocessing) -> Tensor | None:
    """A picture of shape (height, width, 3), or None if Pillow is to say what it is."""
    found = open_jpeg(data)
    if found is None:
        return None
    try:
        with found as opened:
            turn, full = turn_of(opened), opened.size
            opened.draft("RGB", _spacious(full, how))
            if opened.size != full:
                scaled = opened.convert("RGB")
                return _to_tensor(
                    scaled if turn is None or not how.exif else scaled.transpose(turn)
                )
        return None if turn is not None and not how.exif else _decoder()(data).permute(1, 2, 0)
    except Exception:  # Pillow finds the words, when it decodes the whole
        return None


def open_jpeg(data: bytes) -> Image.Image | None:
    """A colour or grey JPEG of which only the header is read; None if it is anything else.

    Raises
    ------
    DecodeError
        If it would take memory or time beyond all proportion.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    refuse_slow(data)
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:
        return None
    if opened.format != "JPEG" or opened.mode not in ("RGB", "L"):
        return None
    refuse_bomb(opened, data)
    return opened


def is_complete(data: bytes) -> bool:
    """Whether a JPEG ends as it should; some decoders fill what is missing with grey."""
    return data.rstrip(b"\0").endswith(b"\xff\xd9")


def _spacious(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """Width and height that are enough for an exact resize; a turned picture needs no others."""
    least = how.resize if isinstance(how.resize, int) else max(how.resize or size)
    scale = SPARE * least / min(size)
    return round(size[0] * scale), round(size[1] * scale)


@functools.cache
def _decoder() -> Callable[[bytes], Tensor]:
    """A strict JPEG decoder that turns pictures upright."""
    try:
        from torchcodec import decoders
    except Exception:  # not installed, or its libraries do not fit this torch
        return _by_torchvision
    decoder: Callable[[bytes], Tensor] = decoders.decode_jpeg
    return decoder


def _by_torchvision(data: bytes) -> Tensor:
    """What there was before TorchCodec."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if not is_complete(data):
        raise ValueError("the end of the picture is missing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since torchvision 0.29, for TorchCodec
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        picture: Tensor = decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
    return picture
