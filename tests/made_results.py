"""Results of a comparison that never was: made-up figures, generated pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from featpipe.calibration import reliability, wilson
from featpipe.results import Images, Items, Leaks, Map, Pair, Results, Suspect, Verdict
from featpipe.route_results import (
    Accuracy,
    ClassRow,
    CostPoint,
    Difference,
    FoldFigures,
    Predictions,
    Reliability,
    RouteResult,
    Seconds,
    SizePoint,
)
from featpipe.thumbnails import file_name

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
ROUTES = (  # name, kind, accuracy, seconds of extraction, of fitting, numbers trained
    ("mobilenet_v2 + logistic", "head", 0.934, 41.0, 1.9, 6405),
    ("mobilenet_v2 from features.14", "finetune", 0.931, 38.0, 210.0, 1_540_000),
    ("squeezenet1_1 + logistic", "head", 0.901, 29.0, 1.2, 2565),
    ("mobilenet_v2 + knn", "head", 0.882, 41.0, 0.1, 0),
    ("CNN from scratch", "scratch", 0.712, 0.0, 1330.0, 422_000),
    ("pixels + logistic", "pixels", 0.447, 6.0, 7.5, 15_365),
)


def make_results(
    count: int = 600,
    classes: Sequence[str] = CLASSES,
    routes: Sequence[tuple[str, str, float, float, float, int]] = ROUTES,
    seed: int = 0,
    ids: Sequence[str] | None = None,
) -> Results:
    """A comparison of some routes over images of some classes."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % len(classes))
    named = ids or [f"{classes[label]}/{row:05d}.jpg" for row, label in enumerate(labels)]
    test = rng.random(count) < 0.2
    made = [_route(rng, labels, classes, number, *one) for number, one in enumerate(routes)]
    made.sort(key=lambda route: -route.accuracy.value if route.accuracy else 0)
    for number, route in enumerate(made[1:], 1):
        assert route.accuracy is not None
        assert made[0].accuracy is not None
        gap = route.accuracy.value - made[0].accuracy.value
        span = gap - 0.029, gap + 0.026
        sure = not span[0] <= 0 <= span[1]
        how = "paired over 5 folds x 3, corrected for overlap and for 5 comparisons"
        made[number] = replace_difference(route, Difference(gap, span, 0.01, sure, how))
    centres = rng.normal(size=(len(classes), 2)) * 3
    points = centres[labels] + rng.normal(size=(count, 2))
    tally = {name: int((labels == n).sum()) for n, name in enumerate(classes)}
    suspects = [
        Suspect(int(row), int(labels[row]), int((labels[row] + 1) % len(classes)), 0.97 - 0.05 * n)
        for n, row in enumerate(rng.choice(count, min(9, count), replace=False))
    ]
    near = [
        Pair([int(a), int(a) + 1], 0.991 - 0.004 * n, 2 + n, [["split"], ["class"], []][n % 3])
        for n, a in enumerate(rng.choice(count - 1, min(5, count - 1), replace=False))
    ]
    best = made[0].name
    return Results(
        "flowers",
        "2026-11-21T18:00:00+00:00",
        Images("photos/flowers", count, 3, tally),
        {"folds": 5, "repeats": 3, "seed": 0, "test": 0.2, "select_budget": 20, "leaks": "group"},
        Items(list(named), labels.tolist(), None, ["test" if one else "train" for one in test]),
        made,
        Verdict(
            best,
            [
                f"{best} beats the CNN from scratch by 22.2 points (95 % interval 19.9 to 24.6) "
                "and trains 30 times faster.",
                "Between it and mobilenet_v2 from features.14 these images cannot tell.",
                "With 5 labelled images a class it is already as good as the CNN from scratch "
                "with all of them.",
            ],
        ),
        {"folder": "thumbnails"},
        Leaks("group", [[0, min(5, count - 1)]], near, 6),
        suspects,
        Map("PCA", "mobilenet_v2, flatten", [(float(x), float(y)) for x, y in points]),
        {"cpu": "a processor", "cores": 8, "versions": {"featpipe": "0.1.0", "torch": "2.15.0"}},
    )


def replace_difference(route: RouteResult, difference: Difference) -> RouteResult:
    """The route with a difference to the best one."""
    from dataclasses import replace

    return replace(route, difference=difference)


def _route(
    rng: np.random.Generator,
    labels: np.ndarray,
    classes: Sequence[str],
    number: int,
    name: str,
    kind: str,
    accuracy: float,
    extract: float,
    fit: float,
    parameters: int,
) -> RouteResult:
    count, k = len(labels), len(classes)
    logits = rng.normal(size=(count, k))
    logits[np.arange(count), labels] += 7 * accuracy**2
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = rng.random(count) > accuracy
    proba[wrong] = np.roll(proba[wrong], 1, axis=1)
    predicted = proba.argmax(axis=1)
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = int((predicted == labels).sum())
    per_class = []
    for one, title in enumerate(classes):
        right, true, said = confusion[one, one], confusion[one].sum(), confusion[:, one].sum()
        per_class.append(
            ClassRow(
                title, int(true), right / max(1, said), right / max(1, true),
                2 * right / max(1, true + said),
                wilson(int(right), int(said)) if said else None,
                wilson(int(right), int(true)) if true else None,
            )
        )  # fmt: skip
    value = hits / count
    sizes: list[int | None] = [1, 2, 5, 10, 20, 50, None]
    budget = []
    for step, size in enumerate(sizes):
        mean = value - 0.42 * value * 0.55**step
        budget.append(SizePoint(size, mean, (mean - 0.03 / (1 + step), mean + 0.03 / (1 + step))))
    total = extract + fit
    cost = [CostPoint(extract + fit * s, value * a) for s, a in ((0.1, 0.6), (0.4, 0.9), (1, 1))]
    scratch = kind in ("scratch", "finetune")
    curves = [
        {"epoch": e, "train_loss": 1.6 * 0.8**e, "train_accuracy": 1 - 0.6 * 0.8**e,
         "val_loss": 1.6 * 0.84**e + 0.02 * e, "val_accuracy": value - 0.4 * 0.8**e}
        for e in range(1, 16)
    ]  # fmt: skip
    conditions: dict[str, Any] = {
        "spec": {"backbone": f"torchvision:{name.split()[0]}", "layers": {"flatten": "flatten"},
                 "preprocessing": {"resize": 232, "crop": [224, 224]}, "dtype": "float32"},
        "split": {"origin": "stratified, seed 0", "folds": 5},
    }  # fmt: skip
    sharper = proba**1.6 / (proba**1.6).sum(axis=1, keepdims=True)
    return RouteResult(
        name, kind, backbone=f"torchvision:{name.split()[0]}", layer="flatten", head="logistic",
        options={"C": 0.1, "max_iter": 1000},
        accuracy=Accuracy(value, wilson(hits, count), count, "folds"),
        folds=FoldFigures([value] * 5, [value] * 5, [0.3] * 5),
        seconds=Seconds(total, fit, extract, fit), peak_bytes=int(4e8 + 3e8 * number),
        parameters=parameters, images_per_second=410 / (number + 1), candidates=20,
        budget=budget, cost=cost, per_class=per_class, confusion=confusion.tolist(),
        predictions=Predictions(
            list(range(count)), predicted.tolist(), proba.max(axis=1).round(4).tolist(),
            proba[np.arange(count), labels].round(4).tolist(),
        ),
        reliability=Reliability(reliability(sharper, labels), reliability(proba, labels), 0.021),
        curves=curves if scratch else [], conditions=conditions,
    )  # fmt: skip


def make_pictures(results: Results, folder: Path, edge: int = 128, noise: int = 24) -> None:
    """A thumbnail for each image: petals, their number and colour by class, on some ground."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for row, label in enumerate(results.items.labels):
        ground = rng.integers(30, 150, 3)
        pixels = np.clip(ground + rng.normal(0, noise, (edge, edge, 3)), 0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels)
        draw = ImageDraw.Draw(picture)
        colour = [(250, 250, 245), (245, 200, 30), (200, 30, 60), (240, 150, 20), (190, 60, 160)][
            label % 5
        ]
        middle, turn = edge / 2 + rng.normal(0, 6, 2), rng.random()
        for petal in range(5 + 2 * (label % 5)):
            angle = 2 * np.pi * (petal / (5 + 2 * (label % 5)) + turn)
            x, y = middle + 0.26 * edge * np.array([np.cos(angle), np.sin(angle)])
            draw.ellipse((x - 15, y - 15, x + 15, y + 15), fill=colour)
        x, y = middle
        draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(90, 60, 20))
        picture.save(folder / file_name(row), "WEBP", quality=75)
