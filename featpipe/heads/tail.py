"""The rest of the pretrained network, behind the layer that is cached: fine-tuning from a cut."""

import copy
import time
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils._param_validation import Interval, StrOptions

from featpipe.descent import Descent, RowSource, descend, logits_of
from featpipe.device import choose_device, precisions
from featpipe.errors import HeadError, LayerError, UnknownNameError, WeightsError
from featpipe.head import Head as AnyHead
from featpipe.head import Validation
from featpipe.perceptron import LIMITS, class_weights
from featpipe.spec import Spec
from featpipe.streamed import HeldRows, StreamedRows
from featpipe.tails import Origin, Stump, Tail, grow, linear, load_stump
from featpipe.targets import probabilities
from featpipe.tasks import Outcome, Task

LR = {"last": 1e-3, "all": 1e-4}  # of Adam; SGD's is ten times that
LARGEST = 4096  # side of an input, in pixels
USED = ("lr", "epochs", "batch_size", "optimizer", "schedule", "momentum", "weight_decay",
        "label_smoothing", "clip", "class_weight", "patience", "seed")  # fmt: skip


class Head(AnyHead):
    """What the backbone has behind the cached layer, its last layer new.

    The last layer with weights, linear or a convolution, is replaced for the classes. Features are
    the layer's output as it is: not pooled, and not standardised. Without a backbone it is one
    linear layer.

    Parameters
    ----------
    train : {"last", "all"}
        The new layer alone, or all that is behind the cut. What is not trained stays to the bit,
        batch norm's statistics among it; dropout works in training either way, as in the published
        networks.
    freeze_norm : bool
        With all: batch norm keeps its statistics, its weights and its biases.
    backbone, layer : str or None
        What the cut is in and behind which layer; None: as the features' Spec has it.
    weights : str or None
        Where the backbone's weights lie; None: as the Spec has it.
    backbone_seed : int
        Of random weights, where the Spec does not say.
    input_size : int or None
        Of the backbone, where the Spec does not say.
    trust_code : bool
        Import and run the network's code, where the features name a ``python:`` backbone.
    lr : float or None
        Learning rate. None: 0.001 for the last layer, 0.0001 for all; ten times that with SGD.
    epochs, batch_size, optimizer, schedule, momentum, weight_decay, label_smoothing, clip
        As of `linear`.
    class_weight, patience, seed, device
        As of `linear`.
    precision : {"auto", "float32", "bfloat16"}
        What is computed in, weights staying float32; auto: bfloat16 where the hardware has it.
    """

    _parameter_constraints = {name: LIMITS[name] for name in USED} | {
        "train": [StrOptions({"last", "all"})],
        "freeze_norm": ["boolean"],
        "backbone": [str, None],
        "layer": [str, None],
        "weights": [str, None],
        "trust_code": ["boolean"],
        "backbone_seed": LIMITS["seed"],
        # A file may ask for any; the network's layers are found by running it.
        "input_size": [Interval(Integral, 1, LARGEST, closed="both"), None],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
    }
    multilabel = True
    streams = True
    halves = True

    def __init__(
        self,
        train: str = "last",
        freeze_norm: bool = False,
        backbone: str | None = None,
        layer: str | None = None,
        weights: str | None = None,
        backbone_seed: int = 0,
        input_size: int | None = None,
        trust_code: bool = False,
        lr: float | None = None,
        epochs: int = 20,
        batch_size: int = 32,
        optimizer: str = "adamw",
        schedule: str = "cosine",
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        label_smoothing: float = 0.0,
        clip: float | None = None,
        class_weight: Any = None,
        patience: int = 5,
        precision: str = "auto",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.train = train
        self.freeze_norm = freeze_norm
        self.backbone = backbone
        self.layer = layer
        self.weights = weights
        self.backbone_seed = backbone_seed
        self.input_size = input_size
        self.trust_code = trust_code
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.clip = clip
        self.class_weight = class_weight
        self.patience = patience
        self.precision = precision
        self.seed = seed
        self.device = device

    def on(self, spec: Spec, layer: str, shape: tuple[int, ...]) -> Self:
        """A copy that knows the layer of the network that the features are of.

        Raises
        ------
        LayerError
            If the features are pooled, or the network cannot be cut there.
        WeightsError
            If the weights are others than those the features were made with.
        """
        if self.backbone is not None:
            return self
        if spec.layers[layer] not in ("flatten", "none"):
            raise LayerError(
                f"The features of {layer} are pooled ({spec.layers[layer]}): what is behind the "
                f"layer needs them as they are. Extract them again, with --layer {layer} --pool "
                "flatten and best --dtype float16."
            )
        crop = spec.preprocessing["crop"]
        known: Self = clone(self).set_params(
            backbone=spec.backbone,
            layer=layer,
            weights=self.weights or spec.weights,
            backbone_seed=spec.seed,
            input_size=crop[0] if crop[0] == crop[1] else None,
        )
        known.on_epoch = self.on_epoch
        stump = known._stump()
        if stump.digest != spec.weights_digests[layer]:
            raise WeightsError(
                f"The features were made with other weights than {known.weights} holds now. Say "
                "where those lie with --weights PATH, or extract the features again."
            )
        return known

    def _stump(self, bare: bool = False) -> Stump:
        assert self.backbone is not None
        if self.layer is None:
            raise HeadError("The head tail needs a layer, where it is given a backbone.")
        origin = Origin(
            self.backbone, self.weights or "DEFAULT", self.backbone_seed, self.input_size,
            self.layer,
        )  # fmt: skip
        still = self.train == "last" or self.freeze_norm
        return load_stump(origin, still, self.trust_code, bare)

    def _grown(self, features: int, classes: int, device: str, bare: bool = False) -> Tail:
        if self.backbone is None:
            return linear(features, classes, self.seed).to(device)
        stump = self._stump(bare)
        if int(np.prod(stump.shape)) != features:
            raise HeadError(
                f"{self.layer} of {self.backbone} has {stump.shape} values an image; these "
                f"features have {features}."
            )
        # A bare one is filled with what was saved: nobody else's tensors may be its own.
        return grow(stump, classes, self.train, self.freeze_norm, self.seed, device, not bare)

    def _computing(self, device: str) -> str:
        if self.backbone is None:
            return "float32"
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if precisions(device)[0] == "bfloat16" else "float32"

    def check_stump(self, stump: Stump) -> None:
        """Raise HeadError if what is behind a cut cannot be trained, whatever the rows.

        Asked before any features are computed.
        """
        if self.batch_size == 1:
            self._refuse_lone_rows(
                grow(stump, 2, self.train, self.freeze_norm, self.seed, device="cpu")
            )

    def _refuse_lone_rows(self, network: Tail) -> None:
        """Refuse a batch size of 1 where batch norm would have one value of a channel to norm."""
        if self.batch_size > 1:  # a last row that is alone joins the batch before
            return
        tried = copy.deepcopy(network).cpu().train()  # its statistics move
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # dropout draws
            try:
                tried(torch.zeros(1, int(np.prod(network.shape))))
            except ValueError as error:
                raise HeadError(
                    "Batches of 1 cannot be trained on: batch norm behind the cut would see a "
                    "single value of each channel, and needs several. Give a --batch-size above "
                    "1, keep batch norm as it is (--freeze-norm), or extract at a larger "
                    "--input-size."
                ) from error

    def _descent(self, device: str) -> Descent:
        lr = self.lr
        if lr is None:
            lr = LR[self.train] * (10 if self.optimizer == "sgd" else 1)
        return Descent(
            self.epochs, self.batch_size, lr, self.optimizer, self.schedule, self.momentum,
            self.weight_decay, self.label_smoothing, self.clip, self.patience,
            self._computing(device), self.seed,
        )  # fmt: skip

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        rows, each, targets, views = [X], [1], codes, self._views
        if validation is not None:
            # The loop counts in images of so many rows, those that select among them; of those
            # there is one, which stands for all.
            selecting, wanted = validation
            rows, each = [X, selecting], [1, views]
            targets = np.concatenate([codes, wanted.repeat(views, axis=0)])
        device = torch.device(choose_device(self.device))
        train = np.arange(0, len(X), views)
        select = np.arange(len(X), len(targets), views)
        self._train(HeldRows(rows, device, each), targets, train, select)

    def _learn_streamed(
        self, rows: StreamedRows, codes: np.ndarray, train: np.ndarray, select: np.ndarray
    ) -> None:
        self._train(rows.on(torch.device(choose_device(self.device))), codes, train, select)

    def _train(self, rows: Any, targets: np.ndarray, train: np.ndarray, select: np.ndarray) -> None:
        self._network, self.curves_ = self._trained(
            rows, targets, len(self.classes_), Task(train, select, select, self._views),
            self.on_epoch,
        )  # fmt: skip

    def _trained(
        self, rows: Any, targets: np.ndarray, classes: int, task: Task, on_epoch: Any = None
    ) -> tuple[Tail, list[dict[str, float]]]:
        device = rows.device
        network = self._grown(rows.shape[1], classes, str(device))
        self._refuse_lone_rows(network)
        weights = class_weights(self.class_weight, targets[task.train], classes, self)
        kind = torch.float32 if targets.ndim == 2 else torch.int64
        curves = descend(
            network,
            rows,
            torch.tensor(targets[:: task.views], dtype=kind, device=device),
            torch.from_numpy(task.train // task.views),
            torch.from_numpy(task.select // task.views),
            self._descent(str(device)),
            views=task.views,
            class_weight=None
            if weights is None
            else torch.tensor(weights, dtype=torch.float32, device=device),
            on_epoch=on_epoch,
        )
        return network, curves

    @classmethod
    def cross_fit(
        cls,
        heads: Sequence[Self],
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        n_classes: int,
        tasks: Sequence[Task],
    ) -> Iterator[Outcome]:
        """Fit one after another on rows that all of them share; see `Head.cross_fit`."""
        device = torch.device(choose_device(heads[0].device))
        rows = X.on(device) if isinstance(X, StreamedRows) else HeldRows([X], device)
        for number, head in enumerate(heads):
            head.validate_options()
            for place, task in enumerate(tasks):
                begun = time.perf_counter()
                proba, note, kept = None, "", 0
                try:
                    drawing = head.drawing(task)
                    network, curves = drawing._trained(rows, targets, n_classes, task)
                except HeadError as error:
                    note = str(error)
                else:
                    logits = head._logits(network, rows, torch.from_numpy(task.scored))
                    proba = probabilities(logits, targets.ndim == 2, targets[task.train])
                    kept = _kept(curves)
                yield Outcome(number, place, proba, time.perf_counter() - begun, kept, note)

    def refit(self, epochs: Sequence[int]) -> Self:
        """An unfitted copy that trains for as many epochs as the median trial.

        With a schedule it trains for all of them: the schedule is made for its end.
        """
        copy = super().refit(epochs)
        if epochs and self.schedule == "constant":
            copy.set_params(epochs=max(1, round(float(np.median(epochs)))))
        return copy

    def _logits(self, network: Tail, rows: RowSource, places: torch.Tensor) -> np.ndarray:
        return logits_of(network, rows, places, self._computing(str(rows.device))).numpy()

    def _decision(self, X: np.ndarray) -> np.ndarray:
        if self.backbone is None:
            # In float64, from which comes no rounding that depends on the batch.
            arrays = {name: array.astype(np.float64) for name, array in self.arrays().items()}
            plain: np.ndarray = X.astype(np.float64) @ arrays["0.weight"].T + arrays["0.bias"]
            return plain
        device = next(self._network.parameters()).device
        return self._logits(self._network, HeldRows([X], device), torch.arange(len(X)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Every tensor behind the cut, by its name in the network."""
        state = self._network.body.state_dict()
        return {name: tensor.cpu().numpy() for name, tensor in state.items()}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self.validate_options()
        try:
            device = choose_device(self.device)
        except UnknownNameError:  # trained on one that is not here
            device = choose_device("auto")
        network = self._grown(self.n_features_in_, len(self.classes_), device, bare=True)
        own = network.body.state_dict()
        if own.keys() != arrays.keys():
            raise ValueError(f"its tensors are not those behind {self.layer} of {self.backbone}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.tensor(arrays[name]).view(tensor.shape))
        self._network = network

    def check_width(self, n_features: Any, state: dict[str, np.ndarray]) -> None:
        """Raise ValueError if it is no number of features; the network says whether it fits."""
        if self.backbone is None:
            super().check_width(n_features, state)
        elif type(n_features) is not int or n_features < 1:
            raise ValueError(f"n_features is {n_features!r}")

    @property
    def n_parameters(self) -> int:
        """How many numbers were trained."""
        return sum(p.numel() for p in self._network.parameters() if p.requires_grad)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "_network" in state:  # graphs of user's code cannot be pickled
            state["_network"] = self.arrays()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_network" in state:
            self.set_arrays(state["_network"])


def _kept(curves: list[dict[str, float]]) -> int:
    """The epoch of the lowest validation loss, or the last."""
    if curves and "val_loss" in curves[0]:
        return int(min(curves, key=lambda row: row["val_loss"])["epoch"])
    return len(curves)
