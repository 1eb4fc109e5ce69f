"""A stack of perceptrons of one shape: weights that have the perceptron as their first axis.

References
----------
Ioffe & Szegedy, "Batch normalization", ICML 2015. Srivastava et al., "Dropout", JMLR 2014.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

NORM_EPS, NORM_MOMENTUM = 1e-5, 0.1

# Weights, shape (perceptrons, outputs, inputs), and biases, shape (perceptrons, 1, outputs).
Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mixing:
    """Rows of a batch that are mixed with others of it.

    Attributes
    ----------
    partners : int64 Tensor, shape (perceptrons, rows)
    share : Tensor, shape (perceptrons, 1)
        How much of a row stays its own.
    """

    partners: Tensor
    share: Tensor

    def of_values(self, values: Tensor) -> Tensor:
        """Mixed rows of values, shape (perceptrons, rows, width)."""
        other = values.gather(1, self.partners[:, :, None].expand_as(values))
        share = self.share[:, :, None]
        return share * values + (1 - share) * other


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch for a whole stack.

    Attributes
    ----------
    blocks : list of Tensor, shape (rows, features)
        One for each run of perceptrons that see the same rows.
    runs : list of pair of int
        First and last place of these perceptrons in the stack.
    rows : int
        Of the longest block; shorter ones are filled up.
    real : Tensor, shape (perceptrons, rows), or None
        1 for rows, 0 for what fills up; None if nothing does.
    noise : iterator of Tensor, shape (perceptrons, rows, width)
        Uniform numbers for the dropout of one hidden layer after the other.
    dropout : Tensor, shape (perceptrons, 1, 1), or None
    mixing : Mixing or None
    """

    blocks: Sequence[Tensor]
    runs: Sequence[tuple[int, int]]
    rows: int
    real: Tensor | None
    noise: Iterator[Tensor]
    dropout: Tensor | None
    mixing: Mixing | None


class Perceptrons:
    """Linear layers with ReLU between them, and batch norm where it is wanted.

    Parameters
    ----------
    widths : sequence of int
        Features, hidden layers, outputs.
    seeds : sequence of int
        Of the initial weights, one for each perceptron: those of torch's own linear layers,
        uniform within 1 / sqrt(inputs).
    batch_norm : bool
        Before each hidden layer's ReLU.
    """

    def __init__(
        self, widths: Sequence[int], seeds: Sequence[int], batch_norm: bool, device: torch.device
    ) -> None:
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
        for inputs, outputs in pairwise(widths):
            bound = 1 / math.sqrt(inputs)
            drawn = {
                seed: [
                    torch.empty(shape).uniform_(-bound, bound, generator=generator)
                    for shape in ((outputs, inputs), (1, outputs))
                ]
                for seed, generator in generators.items()
            }
            self.weights.append(torch.stack([drawn[seed][0] for seed in seeds]).to(device))
            self.biases.append(torch.stack([drawn[seed][1] for seed in seeds]).to(device))
        self._gradient: Tensor | None = None
        # Scale, shift, running mean and running variance.
        self.norms = [
            [
                torch.full((len(seeds), 1, width), value, device=device)
                for value in (1.0, 0.0, 0.0, 1.0)
            ]
            for width in (widths[1:-1] if batch_norm else ())
        ]

    def parameters(self) -> list[Tensor]:
        """What is trained; the perceptron is the first axis of each."""
        # A bias before batch norm has no gradient but rounding, which Adam would follow.
        biases = self.biases[-1:] if self.norms else self.biases
        return [*self.weights, *biases, *(part for norm in self.norms for part in norm[:2])]

    def state(self) -> list[Tensor]:
        """The parameters, and the running statistics of batch norm."""
        return [*self.weights, *self.biases, *(part for norm in self.norms for part in norm)]

    def put(self, places: Tensor, source: "Perceptrons", taken: Tensor) -> None:
        """Copy perceptrons of another stack, those at `taken`, to `places` in this one."""
        for own, other in zip(self.state(), source.state(), strict=True):
            own.index_copy_(0, places, other.index_select(0, taken))

    def take(self, places: Tensor) -> None:
        """Go on with some of the perceptrons only."""
        self.weights = [part[places] for part in self.weights]
        self.biases = [part[places] for part in self.biases]
        self.norms = [[part[places] for part in norm] for norm in self.norms]

    def first(self, inputs: Inputs) -> Tensor:
        """What the first layer's weights make of a batch, shape (perceptrons, rows, width)."""
        weights = self.weights[0]
        values = weights.new_zeros(len(weights), inputs.rows, weights.shape[1])
        for (first, last), block in zip(inputs.runs, inputs.blocks, strict=True):
            inside = block @ weights[first:last].flatten(0, 1).T
            values[first:last, : len(block)] = inside.view(
                len(block), last - first, weights.shape[1]
            ).transpose(0, 1)
        return values

    def first_gradient(self, inputs: Inputs, of_values: Tensor, more: bool = False) -> Tensor:
        """The gradient of the first layer's weights, given that of what they make of a batch.

        By hand: it is most of the work, and is written where the last one was, or with `more`
        added to it.
        """
        if self._gradient is None or len(self._gradient) != len(self.weights[0]):
            self._gradient = torch.empty_like(self.weights[0])
        for (first, last), block in zip(inputs.runs, inputs.blocks, strict=True):
            own = of_values[first:last, : len(block)].transpose(0, 1).reshape(len(block), -1)
            self._gradient[first:last].flatten(0, 1).addmm_(own.T, block, beta=int(more))
        return self._gradient

    def rest(self, values: Tensor, inputs: Inputs) -> Tensor:
        """Logits in training, shape (perceptrons, rows, outputs), of what `first` made."""
        if inputs.mixing is not None:
            # The first layer is linear: mixing what it gives is mixing what it takes.
            values = inputs.mixing.of_values(values)
        values = values + self.biases[0]
        for layer in range(1, len(self.weights)):
            if self.norms:
                values = self._normalised(self.norms[layer - 1], values, inputs.real)
            values = values.relu()
            if inputs.dropout is not None:
                kept = next(inputs.noise) >= inputs.dropout
                values = values * kept / (1 - inputs.dropout)
            values = values @ self.weights[layer].transpose(1, 2) + self.biases[layer]
        return values

    @staticmethod
    def _normalised(norm: list[Tensor], values: Tensor, real: Tensor | None) -> Tensor:
        """By the batch's own mean and variance; a running average of both is kept."""
        scale, shift, running_mean, running_variance = norm
        weight = values.new_ones(1, values.shape[1], 1) if real is None else real[:, :, None]
        count = weight.sum(1, keepdim=True)
        mean = (values * weight).sum(1, keepdim=True) / count
        variance = ((values - mean).square() * weight).sum(1, keepdim=True) / count
        with torch.no_grad():
            running_mean.lerp_(mean, NORM_MOMENTUM)
            running_variance.lerp_(variance * count / (count - 1).clamp(min=1), NORM_MOMENTUM)
        return (values - mean) / (variance + NORM_EPS).sqrt() * scale + shift

    def layers(self) -> Layers:
        """As they predict: batch norm is part of the linear layer before it."""
        layers = list(zip(self.weights, self.biases, strict=True))
        for place, (scale, shift, mean, variance) in enumerate(self.norms):
            weight, bias = layers[place]
            factor = scale / (variance + NORM_EPS).sqrt()
            layers[place] = weight * factor.transpose(1, 2), (bias - mean) * factor + shift
        return layers


def logits_of(layers: Layers, rows: Tensor) -> Tensor:
    """Logits of rows, shape (n, features), by every perceptron: (perceptrons, n, outputs)."""
    weight, bias = layers[0]
    inside = (rows @ weight.flatten(0, 1).T).view(len(rows), *weight.shape[:2])
    values = inside.transpose(0, 1) + bias
    for weight, bias in layers[1:]:
        values = values.relu() @ weight.transpose(1, 2) + bias
    return values
