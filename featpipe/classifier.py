"""The artefact: one safetensors file that turns images into labels."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featpipe.backbones import Backbone
from featpipe.calibration import apply_temperature
from featpipe.device import available_cores
from featpipe.durable import placing
from featpipe.engines import Batch
from featpipe.errors import ClassifierError, FeatpipeError
from featpipe.extract import Progress
from featpipe.extractor import Extractor, rebuild
from featpipe.head import Head
from featpipe.heads import make_head
from featpipe.images import ImageSource
from featpipe.registry import load_plugin
from featpipe.settings import ExtractSettings
from featpipe.spec import Spec
from featpipe.table import UNLABELLED, ImageTable, Status
from featpipe.viewing import Viewing

FORMAT = "featpipe-classifier"
FORMAT_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says of one image.

    Attributes
    ----------
    id : str
    true : str or None
        Its label, where the source has one.
    proba : float array, shape (classes,), or None
        None if the image could not be used; `reason` says why.
    reason : str
    sure : bool
        Whether it is as confident as was asked for; True where nothing was.
    """

    id: str
    true: str | None
    proba: np.ndarray | None
    reason: str = ""
    sure: bool = True


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted head with everything needed to apply it to new images.

    Attributes
    ----------
    spec : Spec
        Of the features it takes: of several views if it averages over them.
    layer : str
    head_name : str
    head : Head
        Its ``classes_`` are indices into `classes`.
    classes : tuple of str
    result : dict
        Metrics and conditions of the training run.
    temperature : float
        By which logits are divided, so that probabilities are how often it is right.
    threshold : float or None
        Probability of the likeliest class below which it abstains.
    """

    spec: Spec
    layer: str
    head_name: str
    head: Head
    classes: tuple[str, ...]
    result: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    threshold: float | None = None

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.head.multilabel_

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the head's arrays, and the rest as JSON metadata."""
        head = {
            "name": self.head_name,
            "params": self.head.get_params(),
            "classes": self.head.classes_.tolist(),
            "n_features": self.head.n_features_in_,
            "multilabel": self.multilabel,
        }
        calibration = {"temperature": self.temperature, "threshold": self.threshold}
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": json.dumps(self.spec.to_dict()),
            "layer": self.layer,
            "head": json.dumps(head),
            "classes": json.dumps(self.classes),
            "calibration": json.dumps(calibration),
            "result": json.dumps(self.result),
        }
        with placing(Path(path)) as temporary:
            save_file(self.head.state(), temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, trust_code: bool = False) -> "Classifier":
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or Path
        trust_code : bool
            Import and run the network's code, where the file names a ``python:`` backbone and
            its head is a part of that network. The file itself cannot ask for it.

        Raises
        ------
        ClassifierError
            If there is no such file, or it is none of featpipe's.
        BackboneError
            If it needs code of the user's own that is not said to be trusted.
        """
        path = Path(path)
        if not path.is_file():
            raise ClassifierError(f"There is no classifier file {path}.")
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ClassifierError(
                f"{path} is not a safetensors file, or damaged: {error}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ClassifierError(f"{path} is a safetensors file, but not featpipe's classifier.")
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise ClassifierError(
                f"{path} has format version {version}; this featpipe reads {FORMAT_VERSION}. "
                "Install a newer featpipe."
            )
        try:
            described, result = json.loads(metadata["head"]), json.loads(metadata["result"])
            params = described["params"]
            if "trust_code" in params:
                params["trust_code"] = trust_code
            made_head = make_head(described["name"], params)
            made_head.check_width(described["n_features"], state)
            head = made_head.restore(
                state,
                np.array(described["classes"]),
                described["n_features"],
                bool(described.get("multilabel", False)),
            )
            calibration = json.loads(metadata.get("calibration", "{}"))
            spec, classes = json.loads(metadata["spec"]), tuple(json.loads(metadata["classes"]))
            made = cls(
                Spec.from_dict(spec),
                metadata["layer"],
                described["name"],
                head,
                classes,
                result,
                float(calibration.get("temperature", 1.0)),
                calibration.get("threshold"),
            )
            made._check()
            return made
        except FeatpipeError:
            raise
        except Exception as error:  # nobody knows all that a strange file can lead to
            raise ClassifierError(f"{path} is not a whole classifier: {error!r}") from error

    def _check(self) -> None:
        """Raise ValueError where parts of a file contradict each other."""
        if self.layer not in self.spec.layers:
            raise ValueError(f"its layer {self.layer!r} is none of its Spec's")
        if not all(isinstance(name, str) for name in self.classes):
            raise ValueError("a class's name is no text")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("its classes have no names, or one has the name of another")
        codes = self.head.classes_
        known = np.issubdtype(codes.dtype, np.integer) and codes.ndim == 1 and len(codes)
        if (
            not known
            or (np.diff(codes) <= 0).any()
            or not 0 <= codes[0] <= codes[-1] < len(self.classes)
        ):
            raise ValueError("its head's classes are none of its classes")
        proba = self.predict_features(np.zeros((1, self.head.n_features_in_), np.float32))
        whole = self.multilabel or abs(proba.sum() - 1) <= 1e-3
        if not (np.isfinite(proba).all() and proba.min() >= 0 and proba.max() <= 1 and whole):
            raise ValueError("its head gives no probabilities")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"its temperature is {self.temperature!r}")
        if self.threshold is not None and not 0 <= float(self.threshold) <= 1:
            raise ValueError(f"its threshold is {self.threshold!r}")
        for scores in self.result.get("scores", {}).values():
            low, high = map(float, scores["accuracy_interval_95"])
            if not low <= float(scores["accuracy"]) <= high or int(scores["n"]) < 0:
                raise ValueError("its scores contradict each other")

    def predict_features(self, features: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, shape (n, classes), of features, shape (n, ...).

        A classifier of several views averages over those of each image, shape (n, views, ...);
        it takes features of single views as well.
        """
        width, count = self.head.n_features_in_, self.spec.view_count
        flat = features.reshape(len(features), -1).astype(np.float32, copy=False)
        viewing = Viewing(1, count if flat.shape[1] == count * width else 1)
        proba = np.zeros((len(features), len(self.classes)))
        said = self.head.predict_proba(flat.reshape(-1, flat.shape[1] // viewing.scored))
        proba[:, self.head.classes_] = viewing.mean(said)
        return apply_temperature(proba, self.temperature, self.multilabel)

    def predict(
        self,
        images: ImageSource,
        settings: ExtractSettings | None = None,
        backbone: Backbone | None = None,
        on_progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Classify images, one `Prediction` each, in the source's order.

        Parameters
        ----------
        images : ImageSource
        settings : ExtractSettings
            ``weights`` (where the backbone's weights file lies now), ``device``,
            ``batch_size`` and ``workers`` are used; the rest is the classifier's.
        backbone : Backbone
            The network, if it is loaded already.

        Raises
        ------
        ClassifierError
            If the weights are not those it was trained with.
        """
        asked = settings or ExtractSettings()
        extractor = self._extractor(asked, backbone)
        size, table, load = extractor.batch_size, images.table, extractor.loader(images)
        batches = (
            list(range(start, min(start + size, len(images))))
            for start in range(0, len(images), size)
        )
        workers = asked.workers or available_cores()
        engine = load_plugin("engines", "local")
        with extractor.forward as forward:
            results = engine.run(batches, load, extractor.features, workers, forward.lanes)
            with closing(results):
                for batch in results:
                    yield from self._predictions(batch, table)
                    if on_progress:
                        on_progress(batch.items[-1] + 1, len(images))

    def _predictions(self, batch: Batch, table: ImageTable) -> Iterator[Prediction]:
        features = batch.features.get(self.layer)
        usable = np.array([image.status == Status.OK for image in batch.images])
        finite = np.zeros(len(usable), bool)
        if features is not None:
            finite = np.isfinite(features.reshape(len(features), -1)).all(axis=1)
        good = usable & finite
        proba = iter(self.predict_features(features[good]) if good.any() else ())  # type: ignore[index]
        for i, (row, image) in enumerate(zip(batch.items, batch.images, strict=True)):
            label = UNLABELLED if table.labels is None else int(table.labels[row])
            true = None if label == UNLABELLED else table.classes[label]
            if true not in self.classes:
                true = None  # a folder's name, but no class of this classifier
            reason = f"{self.layer} has NaN or infinity" if usable[i] and not finite[i] else ""
            found = next(proba) if good[i] else None
            sure = self.threshold is None or (found is not None and found.max() >= self.threshold)
            yield Prediction(table.ids[row], true, found, image.reason or reason, sure)

    def _extractor(self, asked: ExtractSettings, backbone: Backbone | None) -> Extractor:
        """The backbone it was trained on, cut at its layer, checked to be the same."""
        extractor, differences = rebuild(self.spec, [self.layer], asked, backbone)
        if differences:
            raise ClassifierError(
                "The classifier was trained on features made otherwise:\n  "
                + "\n  ".join(differences).replace("cached", "trained with")
                + "\nGive the weights it was trained with as --weights PATH."
            )
        return extractor
