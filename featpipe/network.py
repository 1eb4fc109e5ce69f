"""A network from pixels to pooled features: what a runtime runs."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from featpipe.decode import Preprocessing
from featpipe.layers import Shape, pool


@dataclass(frozen=True)
class PooledLayer:
    """A layer that is wanted, how it is pooled, and the shape before pooling."""

    name: str
    pool: str
    shape: Shape


class Network(nn.Module):
    """A cut of a frozen network, from pixels to pooled features: what every runtime runs.

    Attributes
    ----------
    layers : list of PooledLayer
        One for each output of the cut.
    size : pair of int
        Height and width of its input.
    reshaped : bool
        As of `featpipe.decode.Preprocessing`.
    identity : str
        Networks of one identity compute the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        cut: nn.Module,
        layers: list[PooledLayer],
        preprocessing: Preprocessing,
        identity: str,
    ) -> None:
        super().__init__()
        self.cut, self.layers, self.identity = cut, layers, identity
        self.size, self.reshaped = preprocessing.crop, preprocessing.reshaped
        self.dtype = torch.float32
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value)
        self.eval()

    @property
    def learnt(self) -> bool:
        """Whether there is anything to compute with: plain pixels are only reshaped."""
        return next(self.cut.parameters(), None) is not None

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pooled features of each layer, float32.

        Parameters
        ----------
        pixels : uint8 Tensor, shape (batch, height, width, 3)
            Scaled and normalised here, by the operations and in the order of torchvision's
            presets, in float32 whatever the network's own precision is.
        """
        if self.reshaped:
            images = pixels.reshape(-1, 3, *self.size).float() / 255
        else:
            images = pixels.permute(0, 3, 1, 2).float() / 255
        images = (images - self.mean) / self.std
        outputs = self.cut(images.to(self.dtype))
        return tuple(
            pool(output.float(), layer.pool, layer.shape)
            for output, layer in zip(outputs, self.layers, strict=True)
        )

    def at(self, dtype: torch.dtype) -> "Network":
        """A copy that computes in another precision, batch norm folded into convolutions."""
        made = copy.copy(self)
        made._modules, made._buffers = dict(self._modules), dict(self._buffers)
        made.cut, made.dtype = _folded(copy.deepcopy(self.cut)).to(dtype), dtype
        return made


def _folded(cut: nn.Module) -> nn.Module:
    if not isinstance(cut, fx.GraphModule):
        return cut
    from torch.fx.experimental.optimization import fuse

    try:
        folded: nn.Module = fuse(cut)
    except Exception:  # not every graph is of its kind; it is only a saving
        return cut
    return folded
