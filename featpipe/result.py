"""What a training run found, and the files that it leaves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.budget import BudgetCurve
from featpipe.classifier import Classifier
from featpipe.descent import Epochs
from featpipe.durable import save_json
from featpipe.metrics import MultilabelScores, PairedTest, Scores
from featpipe.split import Split, save_split
from featpipe.sweep import Sweep
from featpipe.table import ImageTable


@dataclass(frozen=True, eq=False)
class Result:
    """What a training run found.

    Attributes
    ----------
    scores : dict of str to Scores or MultilabelScores
        Of ``train``, ``val``, ``folds`` and ``test``, those that have rows. ``folds`` is each
        training row as a fit without it says. Of ``train`` only the predicted classes are scored.
    curves : list of dict
        One an epoch; empty for heads without epochs.
    seconds : float
        Reading the features, fitting and scoring.
    parameters : int
        Numbers that were learnt.
    conditions : dict
        Everything the figures depend on.
    sweep : Sweep or None
        The candidates, where there was a choice or there were folds.
    budget : BudgetCurve or None
    calibration : dict
        ``temperature``, ``threshold`` and where they were fitted; ``reliability`` before and
        after, of test rows where there are some. Empty without validation rows.
    split : Split or None
        The rows, as numbers of the table's.
    proba : dict of str to float array, shape (rows, classes)
        Calibrated, of each part but ``train``.
    paired : dict of str to PairedTest
        This head against others on the same rows.
    """

    scores: Mapping[str, Scores | MultilabelScores]
    curves: Epochs
    seconds: float
    parameters: int
    conditions: dict[str, Any]
    sweep: Sweep | None = None
    budget: BudgetCurve | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    split: Split | None = None
    proba: Mapping[str, np.ndarray] = field(default_factory=dict)
    paired: Mapping[str, PairedTest] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "curves": self.curves,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "conditions": self.conditions,
            "sweep": self.sweep.to_dict() if self.sweep else None,
            "budget": self.budget.to_dict() if self.budget else None,
            "calibration": self.calibration,
            "paired": {name: asdict(test) for name, test in self.paired.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        save_json(Path(path), self.to_dict())


def save_run(folder: str | Path, classifier: Classifier, result: Result, table: ImageTable) -> None:
    """Write ``classifier.safetensors``, ``result.json`` and ``split.csv`` of a run."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / "result.json")
    classifier.save(folder / "classifier.safetensors")
    assert result.split is not None
    save_split(result.split, table, folder / "split.csv")
