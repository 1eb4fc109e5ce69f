"""Every head on real photographs: how good it is, and what its whole sweep takes.

    python benchmarks/real_heads.py SHARED WORK [--heads linear logistic ...] [--repeats 3]

SHARED holds `data/` and `weights/`; features are kept in WORK, and taken from there the next time.
Five folds, made three times, choose among each head's small grid. hymenoptera comes with its split,
and its 153 validation images are the test; of flowers a random fifth is. The test is scored once,
by the head that the folds chose.

Each head is set against the one of the best fold accuracy: fold by fold, and image by image on the
test. Nine comparisons a table are not corrected for being nine. The rows that a fold scores also
choose the epoch of linear and mlp, which flatters their folds a little; the test knows nothing of
that. Seconds are of `train_head` as a whole; the first call of each head, which loads its
libraries, is made before and does not count.

All heads and three repeats go to benchmarks/results/real_heads.json, any shorter form to
WORK/real_heads.json.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe import FeatureCache, TrainSettings, extract_features, train_head
from featpipe.device import machine_facts
from featpipe.metrics import Figure, Scores, compare_predictions, corrected_interval
from featpipe.result import Result
from featpipe.sweep import Candidate, plain
from featpipe.targets import targets_of

GRIDS: dict[str, dict[str, list[Any]]] = {
    "linear": {"lr": [3e-4, 1e-3, 3e-3], "weight_decay": [0.0, 1e-2]},
    "mlp": {"dropout": [0.2, 0.4]},
    "logistic": {"C": np.geomspace(1e-4, 1e1, 12).tolist()},
    "ridge": {},
    "lda": {},
    "knn": {"k": [1, 5, 10, 20, 50]},
    "centroid": {},
    "sklearn-logistic": {"C": [1e-3, 1e-2, 1e-1]},
    "sklearn:svm.SVC": {"C": [0.1, 1.0, 10.0]},
    "sklearn:ensemble.RandomForestClassifier": {},
}
DATA = {
    "hymenoptera": TrainSettings(split="given", folds=5),
    "flowers": TrainSettings(split="random", test=0.2, folds=5, group="none"),
}
BACKBONES = ("mobilenet_v2", "squeezenet1_1")
REPEATS = 3
ON_TEST = ("accuracy", "log_loss", "expected_calibration_error")


def table(cache: FeatureCache, heads: list[str], settings: TrainSettings) -> dict[str, Any]:
    """Every head on one cache, the best by its folds first."""
    found: dict[str, tuple[Result, float]] = {}
    for name in heads:
        train_head(cache, name, replace(settings, folds=2, repeats=1))  # loads its libraries
        begun = time.perf_counter()
        _, result = train_head(cache, name, settings, sweep=GRIDS[name])
        found[name] = result, time.perf_counter() - begun
        print(f"{cache.path.stem}, {name}: {found[name][1]:.2f} s", flush=True)
    order = sorted(found, key=lambda name: -np.mean(chosen(found[name][0]).folds["accuracy"]))
    best = found[order[0]][0]
    conditions = best.conditions
    return {
        "dimensions": conditions["dimensions"],
        "split": conditions["split"]["origin"],
        "rows": conditions["split"],
        "heads": [
            {"head": name, **row(*found[name])}
            | ({"against_the_best": against(cache, found[name][0], best)} if place else {})
            for place, name in enumerate(order)
        ],
    }


def row(result: Result, seconds: float) -> dict[str, Any]:
    """What one head's sweep found, as plain values."""
    one, test, sweep = chosen(result), result.scores["test"], result.sweep
    assert sweep is not None
    assert isinstance(test, Scores)
    return {
        "options": {name: plain(value) for name, value in one.options.items()},
        "fold_accuracy": one.figure("accuracy"),
        "test": {name: test.figures[name] for name in ON_TEST},
        "temperature": result.calibration["temperature"],
        "fits": len(sweep.candidates) * sweep.folds + 1,
        "seconds": seconds,
        "seconds_on_folds": sum(candidate.seconds for candidate in sweep.candidates),
        "candidates": [
            candidate.options
            | {name: candidate.figure(name) for name in ("accuracy", "log_loss")}
            | {"seconds": candidate.seconds, "note": candidate.note}
            for candidate in sweep.candidates
        ],
    }


def against(cache: FeatureCache, result: Result, best: Result) -> dict[str, Any]:
    """One head less the best: on the folds, which both share, and on the test's images."""
    one, other = chosen(result), chosen(best)
    apart = np.subtract(one.folds["accuracy"], other.folds["accuracy"])
    assert result.split is not None
    truth = targets_of(cache.table).values[result.split.test]
    paired = compare_predictions(truth, result.proba["test"], best.proba["test"])
    return {
        "fold_accuracy": corrected_interval(apart.tolist(), one.test_share),
        "test": asdict(paired),
    }


def chosen(result: Result) -> Candidate:
    """The candidate that the folds chose."""
    assert result.sweep is not None
    return result.sweep.chosen


def percent(figure: Figure, sign: str = "") -> str:
    """A share and its interval, in percent."""
    value, low, high = (100 * part for part in figure if part is not None)
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def markdown(found: dict[str, Any]) -> str:
    """A table to read."""
    lines = [
        "| head | folds, % | test, % | log-loss | calibration error, % | chosen | fits | seconds "
        "| folds, against the best | test, against the best |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found["heads"]:
        options = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in one["options"].items()
        )
        test, other = one["test"], one.get("against_the_best")
        apart = "the best | "
        if other:
            paired = other["test"]
            apart = (
                f"{percent(other['fold_accuracy'], '+')} | {paired['first_only']} to "
                f"{paired['second_only']}, p = {paired['p_value']:.2g}"
            )
        lines.append(
            f"| {one['head']} | {percent(one['fold_accuracy'])} | {percent(test['accuracy'])} "
            f"| {test['log_loss'][0]:.3f} | {100 * test['expected_calibration_error'][0]:.1f} "
            f"| {options or 'defaults'} | {one['fits']} | {one['seconds']:.2f} | {apart} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the features that are missing, and all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--heads", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    shared, work = arguments.shared, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name, settings in DATA.items():
        for model in BACKBONES:
            backbone = f"{model}@{shared / 'weights' / model}.pth"
            with extract_features(
                shared / "data" / name, backbone, work / f"{name}-{model}.h5"
            ) as cache:
                settings = replace(settings, repeats=arguments.repeats)
                results[f"{name}, {model}"] = table(cache, arguments.heads, settings)
    whole = arguments.heads == list(GRIDS) and arguments.repeats == REPEATS
    folder = Path(__file__).parent / "results" if whole else work
    document = {**results, "machine": machine_facts()}
    (folder / "real_heads.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for title, found in results.items():
        print(f"\n{title}, {found['dimensions']} features: {found['split']}\n\n{markdown(found)}")


if __name__ == "__main__":
    main()
