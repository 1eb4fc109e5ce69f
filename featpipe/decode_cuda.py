"""JPEGs on the graphics card: nvJPEG decodes a batch in one call, and the card resizes it.

Everything else, and whatever nvJPEG will not take, goes through `decode_fast` row by row. What is
refused, and for what reason, is said there.
"""

import functools
import io
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featpipe import decode_fast
from featpipe.decode import Decoder, Preprocessing, turn_of
from featpipe.errors import DecodeError, RuntimeUnavailableError

NAME = (
    "nvjpeg: uint8 resize on the card; others as torchcodec; "
    "alpha over white, 16 bit scaled to 8, first frame"
)
MOST_PIXELS = 1 << 25  # decoded by one call; a larger picture is halved as it is decoded, elsewhere

Batched = Callable[[list[bytes], str], list[Tensor]]
_own = threading.local()


def decoder(device: str) -> Decoder:
    """The decoder of a CUDA device.

    Raises
    ------
    RuntimeUnavailableError
        If nothing here decodes JPEG on that device.
    """
    nvjpeg(device)
    return Decoder(NAME, decode_fast.to_pixels, functools.partial(to_pixels, device))


def to_pixels(
    device: str, datas: Sequence[bytes], preprocessing: Preprocessing
) -> list[np.ndarray | None]:
    """Decode, resize and crop the plain JPEGs among some images.

    Returns
    -------
    list
        For each a uint8 array, shape (height, width, 3), or None if it is to be decoded elsewhere.
    """
    found: list[np.ndarray | None] = [None] * len(datas)
    if not decode_fast.resizes(preprocessing):
        return found
    pixels = {row: _pixels(data, preprocessing) for row, data in enumerate(datas)}
    with _stream(device):
        for rows in _calls(pixels):
            pictures = _decoded(device, [datas[row] for row in rows])
            _resize(dict(zip(rows, pictures, strict=True)), preprocessing, found)
    return found


def _pixels(data: bytes, how: Preprocessing) -> int:
    """How many pixels nvJPEG would give; 0 if it is not to be asked."""
    try:
        opened = decode_fast.open_jpeg(data)
        # What is missing from a file it would fill with grey, and it turns nothing upright.
        if opened is None or not decode_fast.is_complete(data) or turn_of(opened) is not None:
            return 0
        how.refuse_narrow(*opened.size)
    except DecodeError:
        return 0
    return opened.width * opened.height


def _calls(pixels: dict[int, int]) -> Iterator[list[int]]:
    """Rows that are decoded by one call each."""
    rows: list[int] = []
    total = 0
    for row, count in pixels.items():
        if not 0 < count <= MOST_PIXELS:
            continue
        if total + count > MOST_PIXELS:
            yield rows
            rows, total = [], 0
        rows.append(row)
        total += count
    if rows:
        yield rows


def _decoded(device: str, datas: list[bytes]) -> list[Tensor | None]:
    """Pictures of shape (3, height, width); one that fails takes none of the others with it."""
    try:
        return list(nvjpeg(device)(datas, device))
    except Exception:  # damaged, of a kind it does not know, or too much for the memory
        if len(datas) == 1:
            return [None]
    middle = len(datas) // 2
    return _decoded(device, datas[:middle]) + _decoded(device, datas[middle:])


def _resize(
    pictures: dict[int, Tensor | None], how: Preprocessing, found: list[np.ndarray | None]
) -> None:
    """Those of one size together, since each step on the card costs the same for one as for all."""
    sizes: dict[torch.Size, list[int]] = {}
    for row, picture in pictures.items():
        if picture is not None:
            sizes.setdefault(picture.shape, []).append(row)
    for rows in sizes.values():
        try:
            batch = decode_fast.resize(_stacked(pictures[row] for row in rows), how).cpu()
        except RuntimeError:  # no memory, or a scale that CUDA does not know
            continue
        for row, pixels in zip(rows, batch.numpy(), strict=True):
            found[row] = pixels


def _stacked(pictures: Iterable[Tensor | None]) -> Tensor:
    return torch.stack([picture for picture in pictures if picture is not None]).movedim(1, -1)


def _stream(device: str) -> AbstractContextManager[object]:
    """Each thread's own, beside those of the forward passes."""
    if not device.startswith("cuda"):
        return nullcontext()
    streams: dict[str, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(streams[device])


@functools.cache
def nvjpeg(device: str) -> Batched:
    """What decodes several JPEGs on a device at once; it has decoded one there.

    Raises
    ------
    RuntimeUnavailableError
        If nothing does.
    """
    if not device.startswith("cuda"):
        raise RuntimeUnavailableError(
            f"JPEG is decoded by nvJPEG on CUDA devices only, and this is {device}. Use "
            "--decode auto."
        )
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    reasons = []
    for library in (_torchcodec, _torchvision):
        try:
            (picture,) = library([buffer.getvalue()], device)
            if tuple(picture.shape) == (3, 16, 16):
                return library
            reasons.append(f"{library.__name__[1:]} gives {tuple(picture.shape)}")
        except Exception as error:  # not installed, built without CUDA, no library of the driver's
            said = (str(error) or type(error).__name__).strip().splitlines()[0]
            reasons.append(f"{library.__name__[1:]}: {said[:120]}")
    raise RuntimeUnavailableError(
        f"Nothing here decodes JPEG on {device} ({'; '.join(reasons)}). Use --decode auto."
    )


def _torchcodec(datas: list[bytes], device: str) -> list[Tensor]:
    from torchcodec.decoders import decode_jpeg

    pictures: list[Tensor] = decode_jpeg(datas, mode="RGB", device=device)
    return pictures


def _torchvision(datas: list[bytes], device: str) -> list[Tensor]:
    """What there was before TorchCodec."""
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in datas]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since torchvision 0.29, for TorchCodec
        pictures: list[Tensor] = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
    return pictures
