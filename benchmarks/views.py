"""What eight views of each photograph are worth to a head, and what averaging over them is.

    python benchmarks/views.py SHARED WORK [--repeats 10] [--heads linear logistic ...]

SHARED holds `data/` and `weights/`; features of flowers (5 classes of 240) by pretrained
MobileNetV2, eight views an image, are kept in WORK, and taken from there the next time. Each head
is trained on the plain views or on all, and scored on the plain views or on the mean probabilities
of all (`--tta`): four ways on one file and on the same five folds, made ten times (for mlp and
ridge, which take longer, three times). A way less the plain one is taken fold by fold, with
Nadeau's and Bengio's corrected interval.

The rows that a fold scores also choose the epoch of linear and mlp, as `train-head --folds` has it;
"all epochs" chooses none and runs to the end. Settings are the heads' defaults but for those named.
The eighteen comparisons of the table are not corrected for being so many.

The whole goes to benchmarks/results/views.json, any shorter form to WORK/views.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from featpipe import ExtractSettings, FeatureCache, TrainSettings, extract_features
from featpipe.crossfit import SharedRows
from featpipe.device import machine_facts
from featpipe.heads import build_head
from featpipe.metrics import Figure, corrected_interval
from featpipe.preparation import prepare
from featpipe.sweep import validation_figures
from featpipe.tasks import Task

VIEWS = ExtractSettings(
    views=8, augment="RandomResizedCrop(0.8,1.0),RandomRotation(15),HorizontalFlip"
)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "linear, all epochs": ("linear", {"patience": 0}),
    "mlp": ("mlp", {}),
    "logistic": ("logistic", {}),
    "logistic, C 0.1": ("logistic", {"C": 0.1}),
    "ridge": ("ridge", {}),
}
WAYS = {
    "plain": {"views": "plain", "tta": False},
    "views in training": {"views": "all", "tta": False},
    "views in prediction": {"views": "plain", "tta": True},
    "views in both": {"views": "all", "tta": True},
}
REPEATS = 10
COSTLY = {"mlp": 3, "ridge": 3}
FIGURES = ("accuracy", "log_loss")


def folds_of(
    cache: FeatureCache, name: str, way: str, repeats: int
) -> tuple[dict[str, list[float]], float, float]:
    """Figures of each fold, a fold's scored rows to its training rows, and the seconds."""
    head, options = HEADS[name]
    settings = TrainSettings(folds=5, repeats=repeats, group="none", split="random", **WAYS[way])
    targets, split = prepare(cache, settings)
    tasks = []
    for train, val in split.folds:
        tasks.append(Task(train, val[:0] if "all epochs" in name else val, val))
    unfitted = build_head(head, settings, options)
    begun = time.perf_counter()
    layer = cache.layer()
    shared = SharedRows(cache, layer, split.train, split.train, targets, settings, unfitted)
    found: dict[int, dict[str, float]] = {}
    for outcome in shared.run([unfitted], tasks):
        assert outcome.proba is not None, outcome.note
        truth = targets.values[tasks[outcome.task].scored]
        found[outcome.task] = validation_figures(truth, outcome.proba)
    seconds = time.perf_counter() - begun
    share = float(np.mean([len(task.scored) / len(task.train) for task in tasks]))
    columns = {one: [found[place][one] for place in sorted(found)] for one in FIGURES}
    return columns, share, seconds


def table(cache: FeatureCache, name: str, repeats: int) -> dict[str, Any]:
    """One head in all ways, each less the plain one."""
    ways: dict[str, Any] = {}
    plain: dict[str, list[float]] = {}
    for way in WAYS:
        folds, share, seconds = folds_of(cache, name, way, repeats)
        plain = plain or folds
        apart = {
            one: corrected_interval(np.subtract(folds[one], plain[one]).tolist(), share)
            for one in FIGURES
        }
        ways[way] = {
            **{one: corrected_interval(folds[one], share) for one in FIGURES},
            **({} if folds is plain else {"less_plain": apart}),
            "folds": folds,
            "seconds": seconds,
        }
        mean = 100 * float(np.mean(folds["accuracy"]))
        print(f"{name}, {way}: {mean:.2f} %, {seconds:.1f} s", flush=True)
    return ways


def percent(figure: Figure, sign: str = "") -> str:
    """A share and its interval, in percent."""
    value, low, high = (100 * part for part in figure if part is not None)
    return f"{value:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def markdown(found: dict[str, Any]) -> str:
    """A table to read."""
    lines = [
        "| head | views | accuracy, % | less plain, points | log-loss | less plain | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, ways in found.items():
        for way, one in ways.items():
            apart = one.get("less_plain")
            gained = percent(apart["accuracy"], "+") if apart else ""
            lost = "{:+.3f} ({:+.3f} to {:+.3f})".format(*apart["log_loss"]) if apart else ""
            lines.append(
                f"| {name} | {way} | {percent(one['accuracy'])} | {gained} "
                f"| {one['log_loss'][0]:.3f} | {lost} | {one['seconds']:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Make the features if they are missing, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    arguments = parser.parse_args()
    shared, work = arguments.shared, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    backbone = f"mobilenet_v2@{shared / 'weights' / 'mobilenet_v2.pth'}"
    with extract_features(
        shared / "data" / "flowers", backbone, work / "flowers-views.h5", VIEWS
    ) as cache:
        found = {
            name: table(cache, name, min(arguments.repeats, COSTLY.get(name, arguments.repeats)))
            for name in arguments.heads
        }
        conditions = {
            "images": len(cache),
            "views": cache.spec.views,
            "extraction_seconds": cache.conditions["seconds"],
            "execution": cache.conditions.get("execution"),
        }
    whole = arguments.heads == list(HEADS) and arguments.repeats == REPEATS
    folder = Path(__file__).parent / "results" if whole else work
    document = {"heads": found, "conditions": conditions, "machine": machine_facts()}
    (folder / "views.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{markdown(found)}")


if __name__ == "__main__":
    main()
