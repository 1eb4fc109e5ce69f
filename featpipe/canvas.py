"""How much a transform may make of a picture, told before it is made.

A few letters can ask for more than all memory, ``RandomZoomOut(side_range=(1, 9999))``, and they
may come out of somebody else's file. Transforms that are named here keep a picture's size, or say
by their arguments what the largest is that they may make of it; others are refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from featpipe.decode import MOST_PIXELS
from featpipe.errors import SettingsError

MOST_MADE = 1 << 26  # pixels; every worker makes a picture of its own
MOST_GROWTH = 3  # of a picture that is larger than that already; a turn by 45 degrees takes 2.2
MOST_WEIGHTS = 1 << 18  # of a blur: torchvision lays out all of them, as many as its square has

Arguments = Mapping[str, Any]  # all of a transform's, by name

# What a result or a part of it is never larger than the picture. Some are of no use for pictures:
# trying them says why.
KEEPING = {
    "AugMix", "AutoAugment", "ClampBoundingBoxes", "ClampKeyPoints", "ColorJitter",
    "ConvertBoundingBoxFormat", "ConvertImageDtype", "CutMix", "ElasticTransform", "FiveCrop",
    "GaussianBlur", "GaussianNoise", "Grayscale", "Identity", "JPEG", "LinearTransformation",
    "MixUp", "Normalize", "PILToTensor", "RGB", "RandAugment", "RandomAdjustSharpness",
    "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomEqualize",
    "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomIoUCrop",
    "RandomPerspective", "RandomPhotometricDistort", "RandomPosterize", "RandomSolarize",
    "RandomVerticalFlip", "SanitizeBoundingBoxes", "SanitizeKeyPoints", "SetClampingMode",
    "TenCrop", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor",
    "TrivialAugmentWide", "UniformTemporalSubsample",
}  # fmt: skip


def room(width: int, height: int) -> int:
    """Pixels that transforms may make of a picture as it was decoded."""
    return max(MOST_MADE, min(MOST_GROWTH * width * height, MOST_PIXELS))


def refuse_unknown(name: str, arguments: Arguments) -> None:
    """Raise SettingsError for a transform whose need of memory cannot be told, or fits nowhere.

    Parameters
    ----------
    name : str
        Of a class of `torchvision.transforms.v2`.
    arguments : mapping
        All of them, defaults among them.
    """
    if name not in KEEPING and name not in LARGEST:
        raise SettingsError(
            f"--augment: how large a picture {name} makes is not known here, and it might fill the "
            f"memory. Use others: {', '.join(sorted({*KEEPING, *LARGEST}))}."
        )
    if name in WEIGHTS and (weights := WEIGHTS[name](arguments)) > MOST_WEIGHTS:
        raise SettingsError(
            f"--augment: {name} would blur with {weights:,} weights, more than {MOST_WEIGHTS:,}. "
            "Give it a smaller kernel_size or sigma."
        )


def refuse_large(name: str, arguments: Arguments, size: tuple[int, int], most: int) -> None:
    """Raise SettingsError if a transform may make more pixels than `most` of a picture.

    Parameters
    ----------
    name : str
    arguments : mapping
        As of `refuse_unknown`.
    size : pair of int
        Width and height of the picture.
    most : int
    """
    made = LARGEST[name](arguments, *size) if name in LARGEST else 0
    if made > most:
        raise SettingsError(
            f"may make {made:,.0f} pixels of a picture of {size[0]} x {size[1]}, more than "
            f"{most:,}: give smaller numbers, or a Resize before it"
        )


# ---- what each may make ------------------------------------------------------------------------


def _resized(width: float, height: float, new_width: float, new_height: float) -> float:
    # Pillow changes the width first: there is a picture of the new width and the old height.
    return new_width * max(new_height, height)


def _scaled(width: int, height: int, factor: float) -> float:
    return _resized(width, height, width * factor, height * factor)


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of a size as torchvision takes it."""
    sides = list(size) if isinstance(size, tuple | list) else [size]
    return sides[0], sides[-1]


def _resize(given: Arguments, width: int, height: int) -> float:
    size, longest = given["size"], given["max_size"]
    if isinstance(size, tuple | list) and len(size) == 2:
        return _resized(width, height, size[1], size[0])
    factor = math.inf if size is None else _pair(size)[0] / min(width, height)
    if longest is not None:
        factor = min(factor, longest / max(width, height))
    return _scaled(width, height, factor)


def _random_resize(given: Arguments, width: int, height: int) -> float:
    shorter = max(given["min_size"], given["max_size"])
    return _scaled(width, height, shorter / min(width, height))


def _shortest_size(given: Arguments, width: int, height: int) -> float:
    sizes = given["min_size"]
    shorter = max(sizes) if isinstance(sizes, tuple | list) else sizes
    return _resize({"size": shorter, "max_size": given["max_size"]}, width, height)


def _scale_jitter(given: Arguments, width: int, height: int) -> float:
    first, second = given["target_size"]
    largest = max(given["scale_range"])
    return _scaled(width, height, largest * min(second / height, first / width))


def _resized_crop(given: Arguments, width: int, height: int) -> float:
    new_height, new_width = _pair(given["size"])
    return _resized(width, height, new_width, new_height)


def _center_crop(given: Arguments, width: int, height: int) -> float:
    high, wide = _pair(given["size"])  # what is smaller is padded first
    return max(width, wide) * max(height, high)


def _margins(padding: Any) -> tuple[int, int]:
    """What is added to a picture's width and height."""
    sides = list(padding) if isinstance(padding, tuple | list) else [padding]
    left, top, right, bottom = (sides * 4)[:4]  # of one or two they are left and top, too
    # Where one side is cut off and the other padded, the picture in between may be the larger.
    return max(0, left) + max(0, right), max(0, top) + max(0, bottom)


def _pad(given: Arguments, width: int, height: int) -> float:
    across, down = _margins(given["padding"])
    return (width + across) * (height + down)


def _random_crop(given: Arguments, width: int, height: int) -> float:
    across, down = _margins(given["padding"] or 0)
    sides = (width + across, height + down)
    if given["pad_if_needed"]:  # on both sides, each by all that is lacking
        high, wide = _pair(given["size"])
        sides = tuple(  # type: ignore[assignment]
            side + 2 * max(0, wanted - side)
            for side, wanted in zip(sides, (wide, high), strict=True)
        )
    return sides[0] * sides[1]


def _zoom_out(given: Arguments, width: int, height: int) -> float:
    factor: float = max(given["side_range"])
    return width * factor * height * factor


def _rotated(given: Arguments, width: int, height: int) -> float:
    if not given["expand"]:
        return width * height
    degrees = given["degrees"]
    most = max(map(abs, degrees)) if isinstance(degrees, tuple | list) else abs(degrees)
    sine = math.sin(math.radians(min(most, 90)))
    # Whole pixels, and no turn takes more than that by 45 degrees.
    turned = (width + height * sine + 2) * (height + width * sine + 2)
    return min(turned, (width + height + 4) ** 2 / 2)


LARGEST: dict[str, Callable[[Arguments, int, int], float]] = {
    "CenterCrop": _center_crop,
    "Pad": _pad,
    "RandomCrop": _random_crop,
    "RandomResize": _random_resize,
    "RandomResizedCrop": _resized_crop,
    "RandomRotation": _rotated,
    "RandomShortestSize": _shortest_size,
    "RandomZoomOut": _zoom_out,
    "Resize": _resize,
    "ScaleJitter": _scale_jitter,
}


def _blur_weights(given: Arguments) -> int:
    high, wide = _pair(given["kernel_size"])
    return high * wide


def _elastic_weights(given: Arguments) -> int:
    # As torchvision has it: a displacement is blurred by a square of eight deviations.
    return int((8 * max(_pair(given["sigma"])) + 2) ** 2)


WEIGHTS: dict[str, Callable[[Arguments], int]] = {
    "ElasticTransform": _elastic_weights,
    "GaussianBlur": _blur_weights,
}
