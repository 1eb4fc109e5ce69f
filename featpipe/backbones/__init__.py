"""Where frozen networks come from. Each file here is one source.

A plug-in has ``load(name, weights, seed) -> Backbone`` and ``names() -> list of str``. A
backbone is written ``[source:]name[@weights]``; without a source it is torchvision's, or the
plug-in of that very name (``pixels``).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from featpipe.decode import Preprocessing
from featpipe.errors import BackboneError, FeatpipeError, LayerError, WeightsError
from featpipe.layers import (
    HookedLayers,
    TracedLayers,
    needed_tensors,
    open_layers,
    structure_of,
)
from featpipe.registry import load_plugin, plugin_names
from featpipe.weights import Loaded, digest_weights, listing

DEFAULT_SOURCE = "torchvision"
IMPORTED = "import"  # in place of a source: the features were computed elsewhere


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network with its own preprocessing.

    Attributes
    ----------
    source, name, weights : str
        Its identity, written ``source:name@weights``, as its source takes it.
    model : nn.Module
        In eval mode.
    preprocessing : Preprocessing
        The weights' own.
    seed : int
        Of what is random in it.
    loaded : Loaded
        What a weights file lacked, or had too much.
    random : bool
        True if the weights are random: nothing was learnt from any image.
    """

    source: str
    name: str
    weights: str
    model: nn.Module
    preprocessing: Preprocessing
    seed: int = 0
    loaded: Loaded = field(default_factory=Loaded)
    random: bool = False

    def __str__(self) -> str:
        """As it is written: ``[source:]name@weights``."""
        source = "" if self.source in (DEFAULT_SOURCE, self.name) else f"{self.source}:"
        return f"{source}{self.name}@{self.weights}"

    @property
    def title(self) -> str:
        """What it is called in tables: ``vgg16``, ``timm:resnet50 (random weights)``."""
        source = "" if self.source in (DEFAULT_SOURCE, self.name) else f"{self.source}:"
        return f"{source}{self.name}" + (" (random weights)" if self.random else "")

    def layers(self) -> TracedLayers | HookedLayers:
        """Its named layers, for its input size."""
        try:
            return open_layers(self.model, torch.zeros(2, 3, *self.preprocessing.crop))
        except FeatpipeError:
            raise
        except Exception as error:  # the user's own network may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BackboneError(
                f"{self.title} does not run on inputs of {self.preprocessing.crop[0]} x "
                f"{self.preprocessing.crop[1]} pixels: {reason}. "
                "Try another --input-size."
            ) from error

    def cut(self, layers: TracedLayers | HookedLayers, names: list[str]) -> nn.Module:
        """The part of the network up to the named layers, checked to have all its weights.

        Raises
        ------
        WeightsError
            If the layers need a tensor that the weights file did not have.
        """
        cut = layers.cut(names)
        absent = sorted(set(needed_tensors(cut)) & set(self.loaded.missing))
        if absent:
            raise WeightsError(
                f"{self.weights} lacks tensors that {', '.join(names)} of {self.title} needs: "
                f"{listing(absent)}. It has, unused: {listing(self.loaded.unexpected)}. "
                "Give complete weights, or an earlier --layer."
            )
        return cut

    def digest(self, cut: nn.Module) -> str:
        """BLAKE2b-128, hex, of the tensors that a cut of it computes with."""
        # A name stands for one architecture, but for the user's own, whose code may change.
        structure = structure_of(cut) if self.source == "python" else ""
        return digest_weights(needed_tensors(cut), structure)


def parse_backbone(text: str) -> tuple[str, str, str | None]:
    """Divide ``[source:]name[@weights]`` into source, name and weights (None: not said).

    >>> parse_backbone("vgg16@random")
    ('torchvision', 'vgg16', 'random')
    >>> parse_backbone("timm:resnet50.a1_in1k")
    ('timm', 'resnet50.a1_in1k', None)
    """
    model, at, weights = text.partition("@")
    source, colon, name = model.partition(":")
    if not colon:
        name = model
        source = model if model in plugin_names("backbones") else DEFAULT_SOURCE
    if not name or (at and not weights):
        raise BackboneError(f"{text!r} is no backbone; write [source:]name[@weights].")
    return source, name, weights or None


def load_backbone(
    backbone: str | Backbone,
    weights: str | None = None,
    seed: int = 0,
    input_size: int | None = None,
) -> Backbone:
    """Build a frozen network with its weights and their preprocessing.

    Parameters
    ----------
    backbone : str or Backbone
        ``[source:]name[@weights]``, such as ``vgg16``, ``vgg16@random``,
        ``timm:resnet50.a1_in1k``, ``python:pkg.mod:factory``, ``checkpoint:PATH`` (what
        ``featpipe train-scratch`` left), ``pixels``.
    weights : str
        ``DEFAULT``, an enum name, a ``.pth`` or ``.safetensors`` file, or ``random``; instead
        of ``@weights``.
    seed : int
        Of random weights.
    input_size : int
        Side of the square input in pixels, if not the weights' own.

    Raises
    ------
    UnknownNameError
        If the source or the model is not known.
    BackboneError
        If it stands for features that were imported.
    WeightsError
        If the weights cannot be downloaded or read, or do not fit.
    """
    if isinstance(backbone, Backbone):
        loaded = backbone
    else:
        source, name, written = parse_backbone(backbone)
        if source == IMPORTED:
            raise BackboneError(
                f"{backbone} stands for features that were imported: the network that computed "
                "them is not featpipe's to load. Compute the features of new images as theirs were "
                "computed and import them too; or extract with featpipe, and train on that."
            )
        if written and weights and written != weights:
            raise WeightsError(f"{backbone} and --weights {weights} disagree; say it once.")
        loaded = load_plugin("backbones", source).load(name, written or weights or "DEFAULT", seed)
    loaded.model.eval().requires_grad_(False)
    return replace(loaded, preprocessing=loaded.preprocessing.at(input_size))


def backbone_names(source: str | None = None) -> dict[str, list[str]]:
    """Names of the models of one source, or of each, by source."""
    sources = [source] if source else plugin_names("backbones")
    return {name: load_plugin("backbones", name).names() for name in sources}


def choose_pool(pool: str, layer_was_named: bool, shape: tuple[int, ...]) -> str:
    """Turn ``auto`` into what it stands for.

    The default layer is averaged over space, so that it is a vector of modest length; a layer
    that was asked for by name is kept whole.
    """
    if len(shape) == 1:
        return "flatten"  # a vector already; every pooling leaves it as it is
    if pool != "auto":
        if pool in ("avg", "max") and len(shape) > 3:
            raise LayerError(f"A layer of shape {shape} cannot be pooled by {pool}; use flatten.")
        return pool
    return "flatten" if layer_was_named else "avg"
