"""Views: seeded variations of a picture, by torchvision's transforms.

``RandomResizedCrop(0.8,1.0),RandomRotation(15),HorizontalFlip`` names classes of
`torchvision.transforms.v2` with arguments that are plain values; nothing in such a text is run.
View 0 of an image is the plain one. Any other is drawn from what the image's digest, the view's
number and a seed say, whatever else is drawn in whatever thread: torch's global generators are
neither read nor moved.
"""

import ast
import importlib
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from featpipe import lean
from featpipe.canvas import refuse_large, refuse_unknown, room
from featpipe.checksums import checksum, digest_bytes
from featpipe.decode import Preprocessing, decode
from featpipe.errors import DecodeError, FeatpipeError, SettingsError
from featpipe.registry import no_such

ALIASES = {
    "HorizontalFlip": "RandomHorizontalFlip",
    "VerticalFlip": "RandomVerticalFlip",
    "Flip": "RandomHorizontalFlip",
}
CONTAINERS = ("Transform", "Compose", "RandomApply", "RandomChoice", "RandomOrder", "Lambda")
SMOOTH = ("bilinear", "bicubic")
TRIALS = 16  # of a transform before it is believed,
SIZES = ((96, 64), (640, 480), (1600, 1200))  # and the pictures: one may be too small for a crop
MOST_SHOWN = 50  # letters of a transform in the reason why an image has no features
MOST_LETTERS = 2000  # of the text,
MOST_NUMBER = 10_000  # and of what a number in it can be: it may come from somebody's file
# What torch draws with; all of these take a generator.
DRAWS = {
    "_sample_dirichlet", "bernoulli", "bernoulli_", "exponential_", "log_normal_", "multinomial",
    "normal", "normal_", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "random_", "randperm", "uniform_",
}  # fmt: skip


class _Drawing(TorchFunctionMode):
    """Has all that torch draws within it, in this thread, drawn from a generator of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator, self.draws = torch.Generator().manual_seed(seed), 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") in DRAWS and given.get("generator") is None:
            given["generator"] = self._generator
            self.draws += 1
        return func(*args, **given)


@dataclass(frozen=True)
class _Step:
    """One of the transforms; `arguments` are all that it has, defaults among them."""

    name: str
    text: str
    arguments: dict[str, Any]
    transform: Any

    def __call__(self, picture: Any, most: int) -> Any:
        """The picture transformed; raises SettingsError before it has more than `most` pixels."""
        refuse_large(self.name, self.arguments, picture.size, most)
        return self.transform(picture)


@dataclass(frozen=True)
class Views:
    """The views of an image: how many, by which transforms, from which seed.

    Made by `make_views`; equal views of equal bytes are equal, but for another torchvision.

    Attributes
    ----------
    count : int
        At least 2; view 0 is the plain one.
    transforms : str
        In canonical form.
    seed : int
    preprocessing : Preprocessing
        Of the plain view. Transforms are applied to the whole upright picture, as Pillow decodes
        it; a result that has not the size of the network's input is resized and cropped as the
        plain one.
    """

    count: int
    transforms: str
    seed: int
    preprocessing: Preprocessing

    def to_dict(self) -> dict[str, Any]:
        """What stands in the Spec."""
        return {"count": self.count, "transforms": self.transforms, "seed": self.seed}

    @cached_property
    def _chain(self) -> list[_Step]:
        return _built(_parsed(self.transforms), self.preprocessing)

    def pixels(self, data: bytes, plain: np.ndarray | None = None) -> np.ndarray:
        """All views of an image: uint8 array, shape (count, height, width, 3).

        Parameters
        ----------
        data : bytes
        plain : uint8 array, shape (height, width, 3)
            View 0, if it is decoded already.

        Raises
        ------
        DecodeError
            If the bytes are no picture, or a transform cannot be applied to it.
        """
        picture = decode(data, self.preprocessing.exif)
        first = self.preprocessing.pixels(picture) if plain is None else plain
        digest = digest_bytes(data)
        others = [self._view(picture, digest, view) for view in range(1, self.count)]
        return np.stack([first, *others])

    def _view(self, picture: Image.Image, digest: bytes, view: int) -> np.ndarray:
        named = digest + view.to_bytes(4, "little") + self.seed.to_bytes(8, "little")
        most = room(*picture.size)
        with _Drawing(checksum(np.frombuffer(named, np.uint8))):
            for step in self._chain:
                try:
                    picture = step(picture, most)
                except MemoryError:
                    raise
                except Exception as error:  # a crop larger than the picture, and whatever else
                    which = f"view {view} by {_shortened(step.text)}"
                    raise DecodeError(f"{which}: {_first_line(error)}") from error
        height, width = self.preprocessing.crop
        if picture.size == (width, height):
            return np.array(picture)
        return self.preprocessing.pixels(picture)


def make_views(text: str, count: int, seed: int, preprocessing: Preprocessing) -> Views:
    """Views by the transforms that `text` names, each of which is tried.

    Parameters
    ----------
    text : str
        Names of `torchvision.transforms.v2` between commas, with arguments in brackets.
        ``HorizontalFlip``, ``VerticalFlip`` and ``Flip`` are short for the random ones; plain
        numbers of ``RandomResizedCrop`` are the range of its scale. A ``size`` that is not given
        is the network's input, an ``interpolation`` the one of its preprocessing.
    count : int
    seed : int
    preprocessing : Preprocessing

    Raises
    ------
    UnknownNameError
        If torchvision has no transform of a name.
    SettingsError
        If the text cannot be read, a transform does not take its arguments, may make more of a
        picture than memory should hold, or gives anything but an RGB picture, or none of them
        draws anything.
    """
    calls = _parsed(text)
    chain, drawn = _built(calls, preprocessing), 0
    for call, step in zip(calls, chain, strict=True):
        drawn += _tried([step], _text([call]))
    _tried(chain, _text(calls))  # what one gives may be too small for the next
    if not drawn:
        raise SettingsError(
            f"--augment {text} draws nothing: all views would be the same. Add a random transform, "
            "such as RandomResizedCrop(0.8,1.0)."
        )
    return Views(count, _text(calls), seed, preprocessing)


# ---- from text to transforms -----------------------------------------------------------------

Call = tuple[str, dict[str, Any]]  # a name of torchvision's, and arguments by name


def _known() -> dict[str, type]:
    assert lean  # torchvision is to be imported by it first
    v2 = importlib.import_module("torchvision.transforms.v2")
    return {
        name: kind
        for name, kind in vars(v2).items()
        if inspect.isclass(kind) and issubclass(kind, v2.Transform) and name not in CONTAINERS
    }


def _parsed(text: str) -> list[Call]:
    try:
        if len(text) > MOST_LETTERS:
            raise ValueError(f"it is longer than {MOST_LETTERS} letters")
        tree = ast.parse(f"[{text}\n]", mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            raise ValueError("it names no transform")
        found = [_call(node) for node in tree.elts]
    except FeatpipeError:
        raise
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise SettingsError(
            f"--augment {text[:200]!r} cannot be read: {getattr(error, 'msg', error)}. Give names "
            "of torchvision.transforms.v2 with plain values, such as "
            "RandomResizedCrop(0.8,1.0),RandomRotation(15),HorizontalFlip."
        ) from error
    return found


def _call(node: ast.expr) -> Call:
    inner = node.func if isinstance(node, ast.Call) else node
    if not isinstance(inner, ast.Name):
        raise ValueError(f"{ast.unparse(node)} is no name with arguments in brackets")
    given = [ast.literal_eval(value) for value in node.args] if isinstance(node, ast.Call) else []
    named = {
        str(keyword.arg): ast.literal_eval(keyword.value)
        for keyword in (node.keywords if isinstance(node, ast.Call) else ())
    }
    for value in [*given, *named.values()]:
        _check_value(value)
    name, known = ALIASES.get(inner.id, inner.id), _known()
    if name in CONTAINERS:
        raise SettingsError(f"--augment: {name} holds other transforms; list them by themselves.")
    if name not in known:
        raise SettingsError(f"--augment: {no_such('transform', inner.id, [*known, *ALIASES])}")
    if name == "RandomResizedCrop" and given:  # whose size is the network's
        scale = given[0] if len(given) == 1 else tuple(given)
        given, named = [], {"scale": scale, **named}
        if not isinstance(scale, tuple | list) or len(scale) != 2:
            raise ValueError(
                "RandomResizedCrop takes two numbers, the least and the largest share of the "
                "picture; its size is the network's"
            )
    try:
        bound = inspect.signature(known[name]).bind_partial(*given, **named)
    except TypeError as error:
        raise _misfit(name, known[name], ast.unparse(node), error) from error
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in bound.arguments.items()}
    return name, plain


def _check_value(value: Any) -> None:
    """Numbers, texts, and sequences of them; nothing large enough to fill the memory."""
    if isinstance(value, tuple | list):
        for one in value:
            _check_value(one)
    elif isinstance(value, int | float) and not abs(value) <= MOST_NUMBER:
        raise ValueError(f"{value} is no number from -{MOST_NUMBER} to {MOST_NUMBER}")
    elif not isinstance(value, int | float | str | None):
        raise ValueError(f"{value!r} is no number, text, or list of them")


def _text(calls: Sequence[Call]) -> str:
    return ", ".join(
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    )


def _built(calls: Sequence[Call], how: Preprocessing) -> list[_Step]:
    known, found = _known(), []
    for name, arguments in calls:
        kind, filled = known[name], dict(arguments)
        takes = inspect.signature(kind).parameters
        if "size" in takes:
            filled.setdefault("size", how.crop)
        if "interpolation" in takes:
            own = how.interpolation if how.interpolation in SMOOTH else "bilinear"
            filled.setdefault("interpolation", own)
            if isinstance(filled["interpolation"], str):
                modes = {mode.value: mode for mode in lean.InterpolationMode}
                filled["interpolation"] = modes.get(
                    filled["interpolation"], filled["interpolation"]
                )
        text = _text([(name, arguments)])
        try:
            transform = kind(**filled)
        except Exception as error:  # whatever it finds wrong with its arguments
            raise _misfit(name, kind, text, error) from error
        every = inspect.signature(kind).bind(**filled)
        every.apply_defaults()
        refuse_unknown(name, every.arguments)
        found.append(_Step(name, text, every.arguments, transform))
    return found


def _misfit(name: str, kind: type, text: str, error: Exception) -> FeatpipeError:
    takes = ", ".join(inspect.signature(kind).parameters)
    return SettingsError(
        f"--augment: torchvision refuses {text}: {_first_line(error)}. {name} takes {takes}."
    )


def _tried(steps: Sequence[_Step], text: str) -> int:
    """How often transforms draw, on a few pictures; raises SettingsError if they are of no use."""
    failed: Exception | None = None
    for width, height in SIZES:
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        try:
            return sum(_trial(steps, Image.fromarray(noise), seed) for seed in range(TRIALS))
        except SettingsError as error:
            raise SettingsError(f"--augment: {text} {str(error).rstrip('.')}.") from None
        except Exception as error:  # whatever a transform has against a picture
            failed = error
    assert failed is not None
    raise SettingsError(
        f"--augment: {text} cannot be applied to a picture: {_first_line(failed)}."
    ) from failed


def _trial(steps: Sequence[_Step], picture: Any, seed: int) -> int:
    most = room(*picture.size)
    with warnings.catch_warnings(), _Drawing(seed) as drawing:
        warnings.simplefilter("error")  # of what is passed through as it is
        for step in steps:
            picture = step(picture, most)
    if not isinstance(picture, Image.Image) or picture.mode != "RGB" or not min(picture.size):
        is_picture = isinstance(picture, Image.Image)
        what = f"a picture of mode {picture.mode}" if is_picture else type(picture).__name__
        raise SettingsError(
            f"gives {what}, not an RGB picture. What the network's input needs is done after all "
            "transforms: leave it out."
        )
    draws: int = drawing.draws
    return draws


def _first_line(error: BaseException) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[0][:200].rstrip(".")


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
