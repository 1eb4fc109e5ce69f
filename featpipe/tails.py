"""The part of a pretrained network behind a cut, as something that is trained on cached rows."""

import copy
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featpipe.backbones import Backbone, load_backbone, parse_backbone
from featpipe.behind import NORMS, behind
from featpipe.descent import seeded
from featpipe.errors import BackboneError, LayerError, WeightsError
from featpipe.layers import Shape
from featpipe.weights import Uninitialised, listing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The layer of a network that a tail begins behind.

    Attributes
    ----------
    backbone : str
        ``[source:]name``.
    weights : str
    seed : int
        Of random weights.
    input_size : int or None
        Side of the network's input; None for its own.
    layer : str
    """

    backbone: str
    weights: str
    seed: int
    input_size: int | None
    layer: str


@dataclass(frozen=True, eq=False)
class Stump:
    """What a network has behind a layer, as it was loaded; copies of it are trained.

    Attributes
    ----------
    body : nn.Module
        From the layer's output, shape (batch, *shape), to the network's own logits.
    last : str
        Name in `body` of the last layer with parameters.
    shape : tuple of int
        Of the layer's output for one image.
    digest : str
        Of the weights before the cut, as a Spec has it.
    """

    body: Any
    last: str
    shape: Shape
    digest: str


def load_stump(origin: Origin, still: bool, trust_code: bool = False, bare: bool = False) -> Stump:
    """Load a network and keep what is behind a layer; the last one is kept for the next call.

    Parameters
    ----------
    origin : Origin
    still : bool
        Whether batch norm keeps its statistics in training, too.
    trust_code : bool
        Whether code of the user's own may be imported and run.
    bare : bool
        Without the weights: its parameters hold anything at all.

    Raises
    ------
    BackboneError
        If the network is code of the user's own, and not said to be trusted.
    WeightsError
        If its weights cannot be had, or lack what is behind the layer.
    LayerError
        If it cannot be cut there.
    """
    if parse_backbone(origin.backbone)[0] == "python" and not trust_code:
        raise BackboneError(
            f"The file names {origin.backbone}, code that is looked for here and would be run. If "
            "you trust both, say --trust-code, or --set trust_code=true where a head is trained "
            "(in Python: trust_code=True)."
        )
    file = Path(origin.weights)
    return _load(origin, still, bare, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=1)  # all fits of a sweep begin with the same one
def _load(origin: Origin, still: bool, bare: bool, written: int) -> Stump:
    # A network trained here is built as its file says: there is no other with its shapes.
    own = parse_backbone(origin.backbone)[0] == "checkpoint"
    weights = "random" if bare and not own else origin.weights
    try:
        with Uninitialised() if bare and not own else nullcontext():
            loaded = load_backbone(origin.backbone, weights, origin.seed, origin.input_size)
    except WeightsError as error:
        if bare:
            raise WeightsError(f"{error} The tail is built as that file says.") from error
        raise WeightsError(f"{error} Say where they lie now with --weights PATH.") from error
    return cut_off(loaded, origin.layer, still, bare)


def cut_off(loaded: Backbone, layer: str, still: bool, bare: bool = False) -> Stump:
    """What a loaded network has behind a layer; see `load_stump`."""
    layers = loaded.layers()
    name = layers.resolve(layer)
    body = behind(layers, name, still)
    last = _last(body, name)
    absent = sorted(set(body.state_dict()) & set(loaded.loaded.missing))
    absent = [tensor for tensor in absent if not tensor.startswith(f"{last}.")]
    if absent:
        raise WeightsError(
            f"{loaded.weights} lacks tensors that {loaded.title} needs behind {name}: "
            f"{listing(tuple(absent))}. Give complete weights."
        )
    shape = layers.shapes[name]
    with torch.no_grad():
        found = body(torch.zeros(2, *shape)).shape
    if len(found) != 2:
        raise LayerError(
            f"{loaded.title} gives an array of shape {tuple(found[1:])} for an image, not one "
            "logit a class: it has no last layer to replace."
        )
    if not (bare or loaded.random or still) and any(map(_folded, body.modules())):
        log.warning(
            "The batch norm of %s has been folded into its convolutions: in training it would "
            "normalise anew what is normalised. Freeze it (freeze_norm).",
            loaded.title,
        )
    body.to(memory_format=_format(body, shape))
    digest = "" if bare else loaded.digest(loaded.cut(layers, [name]))
    return Stump(body, last, shape, digest)


def _last(body: Any, name: str) -> str:
    for node in reversed(body.eval_graph.nodes):
        module = body.get_submodule(node.target) if node.op == "call_module" else None
        if module is None or next(module.parameters(), None) is None:
            continue
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        )
        if not plain:
            raise LayerError(
                f"The network's last layer with weights, {node.target}, is no linear layer or "
                f"convolution but a {type(module).__name__}: it cannot be replaced for other "
                "classes. Train a head on its features instead."
            )
        return str(node.target)
    raise LayerError(f"Nothing behind {name} has weights that could be trained: cut earlier.")


def _folded(module: nn.Module) -> bool:
    if not isinstance(module, NORMS) or module.running_mean is None or module.running_var is None:
        return False
    return bool((module.running_mean == 0).all() and ((module.running_var - 1).abs() < 1e-3).all())


class Tail(nn.Module):
    """The trainable rest of a network, for rows of a cache.

    Parameters
    ----------
    body : nn.Module
        From (batch, *shape), float32, to logits.
    last : str
        Name in it of the layer that is always trained.
    shape : tuple of int
    train : {"last", "all"}
        Whether the rest of it is trained, too.
    freeze_norm : bool
        Batch norm keeps its statistics, its weights and its biases. What is not trained keeps
        them anyway. Dropout works in training, whatever is trained.
    """

    def __init__(
        self, body: nn.Module, last: str, shape: Shape, train: str, freeze_norm: bool
    ) -> None:
        super().__init__()
        self.body, self.shape = body, shape
        body.requires_grad_(train == "all")
        body.get_submodule(last).requires_grad_(True)
        self._still: list[nn.Module] = []
        if train == "last" or freeze_norm:
            self._still = [module for module in body.modules() if isinstance(module, NORMS)]
        for module in self._still:
            module.requires_grad_(False)
        self._format = _format(body, shape)
        self.eval()

    def train(self, mode: bool = True) -> "Tail":
        """Training mode, but for batch norm that is frozen."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def extra_repr(self) -> str:
        """What its modules do not say: how they are joined, and which are not trained."""
        graphs = [str(getattr(self.body, name, "")) for name in ("train_graph", "eval_graph")]
        still = [name for name, module in self.body.named_modules() if module in self._still]
        return f"shape={self.shape}, still={still}, graphs={graphs}"

    def forward(self, rows: Tensor) -> Tensor:
        """Logits, shape (batch, classes), of rows, any float type, shape (batch, values)."""
        maps = rows.view(len(rows), *self.shape)
        inputs = maps.to(torch.float32, memory_format=self._format)
        if inputs.data_ptr() == rows.data_ptr():
            inputs = inputs.clone()  # an in-place ReLU must not reach the cached rows
        logits: Tensor = self.body(inputs)
        return logits


def _format(body: nn.Module, shape: Shape) -> torch.memory_format:
    convolves = len(shape) == 3 and any(isinstance(m, nn.Conv2d) for m in body.modules())
    # Forward and back, convolutions take a tenth to a fifth less time so, measured with AVX512.
    return torch.channels_last if convolves else torch.contiguous_format


def grow(
    stump: Stump,
    classes: int,
    train: str,
    freeze_norm: bool,
    seed: int,
    device: str,
    share: bool = True,
) -> Tail:
    """A tail for some classes, its last layer new.

    What is not trained is the stump's own where that may be and `share` is true, not a copy.
    """
    body = stump.body
    old = body.get_submodule(stump.last)
    shared: dict[int, Any] = {}
    if (
        share and train == "last" and device == "cpu"
    ):  # moved to a device, the stump's would move along
        shared = {id(tensor): tensor for tensor in [*body.parameters(), *body.buffers()]}
    grown = copy.deepcopy(body, shared).eval()
    parent, _, own = stump.last.rpartition(".")
    setattr(grown.get_submodule(parent), own, seeded(seed, lambda: _like(old, classes)))
    return Tail(grown, stump.last, stump.shape, train, freeze_norm).to(device)


def linear(features: int, classes: int, seed: int) -> Tail:
    """One linear layer, for features without a network."""
    layer = nn.Sequential(seeded(seed, lambda: nn.Linear(features, classes)))
    return Tail(layer, "0", (features,), "all", freeze_norm=False)


def _like(old: nn.Module, classes: int) -> nn.Module:
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes)
    assert isinstance(old, nn.Conv2d)
    return nn.Conv2d(
        old.in_channels, classes, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
    )  # fmt: skip
