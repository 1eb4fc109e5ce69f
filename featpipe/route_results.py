"""What a route of a comparison came to, as plain values: a part of `featpipe.results`."""

from dataclasses import dataclass, field
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class Accuracy:
    """What routes are ranked by; ``part`` is ``folds``, ``val`` or ``test``."""

    value: float
    interval_95: Interval | None
    n: int
    part: str


@dataclass(frozen=True)
class Difference:
    """A route's accuracy less the best one's, on the same folds or images.

    Attributes
    ----------
    value : float
    interval_95 : pair of float or None
        Widened for the number of comparisons, and for the best being the best of them.
    p : float or None
        Corrected likewise.
    sure : bool
        Whether the interval leaves 0 out.
    method : str
        How they were made, in a few words.
    """

    value: float
    interval_95: Interval | None
    p: float | None
    sure: bool
    method: str = ""


@dataclass(frozen=True)
class Seconds:
    """Of one classifier, by one clock: cold is from image files, warm from cached features.

    Attributes
    ----------
    cold, warm : float
        ``cold`` is ``extract + fit``; ``warm`` is ``fit``.
    extract : float
        Reading, decoding and the frozen network for all images, recorded when that was done.
    fit : float
        Training and choosing among all candidates, predicting and scoring: the mean of a fold.
    """

    cold: float
    warm: float
    extract: float
    fit: float


@dataclass(frozen=True)
class SizePoint:
    """Accuracy with so many labelled images a class, None for all of them."""

    size: int | None
    value: float
    interval_95: Interval | None


@dataclass(frozen=True)
class CostPoint:
    """The best accuracy reached by a time, cold seconds."""

    seconds: float
    accuracy: float


@dataclass(frozen=True)
class ClassRow:
    """One class among the predictions: ``n`` images have it."""

    name: str
    n: int
    precision: float
    recall: float
    f1: float
    precision_interval_95: Interval | None
    recall_interval_95: Interval | None


@dataclass(frozen=True)
class Predictions:
    """Of images that the classifier had not seen; calibrated.

    Attributes
    ----------
    rows : list of int
    predicted : list of int
        Numbers of classes.
    confidence, true_confidence : list of float
        Probability of the predicted class, and of the true one.
    """

    rows: list[int]
    predicted: list[int]
    confidence: list[float]
    true_confidence: list[float]


@dataclass(frozen=True)
class Reliability:
    """Bins as of `featpipe.calibration.reliability`, and the calibration error after."""

    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    ece: float | None


@dataclass(frozen=True)
class FoldFigures:
    """A value a fold, in the order of the folds, repetition after repetition."""

    accuracy: list[float] = field(default_factory=list)
    balanced_accuracy: list[float] = field(default_factory=list)
    log_loss: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RouteResult:
    """One way from images to a classifier, and what it came to.

    Attributes
    ----------
    name : str
    kind : str
        ``head``, ``pixels``, ``tail``, ``finetune`` or ``scratch``.
    status : str
        ``finished`` or ``failed``; of a failed one only what describes it is known.
    reason : str
        Why it failed.
    backbone, layer, head : str or None
    options : dict
        Of the head or the network, as they were chosen or given.
    random_weights : bool
        Whether nothing in the backbone was ever learnt.
    accuracy : Accuracy or None
    test : dict or None
        `featpipe.metrics.Scores.to_dict` of the test rows, scored once.
    folds : FoldFigures
    difference : Difference or None
        None for the best route, and where there is nothing to compare.
    seconds : Seconds or None
    peak_bytes : int or None
        What ``conditions["peak"]`` says that it is.
    parameters : int or None
        Numbers trained.
    images_per_second : float or None
        Classifying image files.
    candidates : int
        Settings that validation rows chose among.
    budget : list of SizePoint
        By growing size.
    cost : list of CostPoint
        By growing seconds.
    per_class : list of ClassRow
    confusion : list of list of int, or None
        True classes by predicted ones, over the predictions.
    predictions : Predictions or None
    reliability : Reliability or None
    curves : list of dict
        One an epoch, where there are epochs.
    conditions : dict
        All that the figures depend on.
    """

    name: str
    kind: str
    status: str = "finished"
    reason: str = ""
    backbone: str | None = None
    layer: str | None = None
    head: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    accuracy: Accuracy | None = None
    test: dict[str, Any] | None = None
    folds: FoldFigures = field(default_factory=FoldFigures)
    difference: Difference | None = None
    seconds: Seconds | None = None
    peak_bytes: int | None = None
    parameters: int | None = None
    images_per_second: float | None = None
    candidates: int = 1
    budget: list[SizePoint] = field(default_factory=list)
    cost: list[CostPoint] = field(default_factory=list)
    per_class: list[ClassRow] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    predictions: Predictions | None = None
    reliability: Reliability | None = None
    curves: list[dict[str, float]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it has figures."""
        return self.status == "finished"
