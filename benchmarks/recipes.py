"""The four recipes on real images, and what patients on both sides of a split are worth.

    python benchmarks/recipes.py SHARED WORK [--short] [--only malaria ...]

SHARED holds `data/` and `weights/`; what is finished is kept in WORK and not run again. Every
recipe is run with the architecture that was published, and with two backbones whose pretrained
weights are there. The published architectures have random weights: their ImageNet weights are not
among those of SHARED. Their rows say that everything runs, and nothing of how good it is; they are
run at both ends only. The malaria recipe, which needs eight views of each cell, is run on some
cells of every patient; the JSON says on how many.

The gap of malaria is measured apart, on all cells, without views: five folds, five times, with
patients torn apart and kept together, by a logistic regression. Its intervals are over patients.

Writes benchmarks/results/recipes.json; with --short or --only, WORK/recipes.json.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe import ExtractSettings, TrainSettings, extract_features, open_images
from featpipe.device import machine_facts
from featpipe.images import ImageSource
from featpipe.leakage import measure_gap
from featpipe.recipes import Recipe, load_recipe
from featpipe.reproduce import run_recipe, with_classes
from featpipe.split import row_groups

RECIPES = ("five-flowers", "two-flowers", "vehicles", "malaria")
PRETRAINED = ("mobilenet_v2", "squeezenet1_1")
TWO = ("daisy", "roses")
CELLS, CELLS_PUBLISHED = 1500, 400  # of malaria, each in eight views: DenseNet121 is slow
SHORT = 120
REPEATS = 5


def images_of(name: str, shared: Path) -> ImageSource:
    """The images of a recipe."""
    data = shared / "data"
    if name == "malaria":
        return open_images(data / "malaria")
    if name == "vehicles":
        root = data / "emergency"
        settings = replace(load_recipe(name).images, root=str(root / "images"))
        return open_images(root / "emergency_train.csv", settings)
    source = open_images(data / "flowers")
    return with_classes(source, TWO) if name == "two-flowers" else source


def part_of(source: ImageSource, recipe: Recipe, count: int) -> ImageSource:
    """About `count` images by lot: of every patient up to so many, or of every class."""
    table = source.table
    assert table.labels is not None
    groups = row_groups(table, recipe.group_by)
    if groups is None:
        groups = table.labels
    lot = np.random.default_rng(0)
    members = [lot.permutation(np.flatnonzero(groups == name)) for name in sorted(set(groups))]
    most = next(n for n in range(1, len(source)) if sum(len(m[:n]) for m in members) >= count)
    return source.only(np.sort(np.concatenate([some[:most] for some in members])))


def run(name: str, backbone: str | None, shared: Path, work: Path, short: bool) -> dict[str, Any]:
    """One recipe by one backbone, or what is kept of it; None stands for the published one."""
    label = backbone or "published"
    file = work / f"{name}-{label}{'-short' if short else ''}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    recipe, source = load_recipe(name), images_of(name, shared)
    if name == "malaria" or short:
        count = SHORT if short else CELLS if backbone else CELLS_PUBLISHED
        source = part_of(source, recipe, count)
    weights = f"{backbone}@{shared / 'weights' / backbone}.pth" if backbone else "@random"
    extract = ExtractSettings(input_size=64) if short else ExtractSettings()
    begun = time.perf_counter()
    found = run_recipe(
        name,
        source,
        work / f"{name}{'-short' if short else ''}",
        weights,
        each_fault=backbone is not None and not short,
        extract=extract,
    )
    document = found.to_dict() | {
        "backbone": found.routes[0].steps[0].backbone,
        "of_images": len(images_of(name, shared)),
        "run_on_images": len(source),
        "seconds": time.perf_counter() - begun,
        "machine": machine_facts(),
    }
    for route in document["routes"]:
        for step in route["steps"]:  # names of images are of no use to a reader
            step["wrong"], step["unusable"] = len(step["wrong"]), len(step["unusable"])
    text = json.dumps(document, indent=1).replace(str(shared), "SHARED")
    file.write_text(text + "\n", encoding="utf-8")
    print(f"{name}, {label}: {document['seconds']:.0f} s", flush=True)
    read: dict[str, Any] = json.loads(text)
    return read


def gap(model: str, shared: Path, work: Path, short: bool) -> dict[str, Any]:
    """Random against grouped folds on the cells as they are."""
    recipe, source = load_recipe("malaria"), images_of("malaria", shared)
    if short:
        source = part_of(source, recipe, SHORT)
    groups = row_groups(source.table, recipe.group_by)
    assert groups is not None
    out = work / f"gap-{model}{'-short' if short else ''}.h5"
    backbone = f"{model}@{shared / 'weights' / model}.pth"
    with extract_features(source, backbone, out) as cache:
        repeats = 1 if short else REPEATS
        begun = time.perf_counter()
        found = measure_gap(
            cache, groups, recipe.group_by, repeats=repeats, settings=TrainSettings()
        )
        return {"backbone": model, **found.to_dict(), "seconds": time.perf_counter() - begun}


def percent(value: float, interval: list[float] | None, n: int | None) -> str:
    """A share, its interval and its number of images."""
    text = f"{100 * value:.1f}"
    if interval:
        text += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{text}, n {n:,}" if n else text


def markdown(runs: list[dict[str, Any]]) -> str:
    """Published, as published and done right, a row a route and backbone."""
    lines = [
        "| recipe | backbone | published, % | as published, here, % | done right, % |",
        "|---|---|---|---|---|",
    ]
    for one in runs:
        for route in one["routes"]:
            told, (first, *_, last) = route["published"], route["steps"]
            published = "plots only"
            if told["accuracy"] is not None:
                published = percent(told["accuracy"], told["interval_95"], told["images"])
            cells = [
                percent(step["accuracy"], step["interval_by_group"] or step["interval"], step["n"])
                for step in (first, last)
            ]
            backbone = "from scratch" if first["backbone"] == "none" else first["backbone"]
            lines.append(
                f"| {one['title']}: {route['route']} | {backbone} | {published} "
                f"| {cells[0]} | {cells[1]} |"
            )
    return "\n".join(dict.fromkeys(lines))


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--short", action="store_true", help="a few images at 64 pixels")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--backbones", nargs="+", choices=("published", *PRETRAINED))
    arguments = parser.parse_args()
    shared, work, short = arguments.shared.resolve(), arguments.work, arguments.short
    work.mkdir(parents=True, exist_ok=True)
    chosen = arguments.backbones or [*PRETRAINED, "published"]
    runs = [
        run(name, None if label == "published" else label, shared, work, short)
        for label in chosen
        for name in arguments.only
    ]
    gaps = []
    if "malaria" in arguments.only:
        gaps = [gap(name, shared, work, short) for name in chosen if name != "published"]
    whole = not short and not arguments.backbones and arguments.only == list(RECIPES)
    folder = Path(__file__).parent / "results" if whole else work
    document = {
        "note": "Seconds were taken while the machine did other work: accuracies are meant here.",
        "recipes": runs,
        "malaria_gap": gaps,
        "machine": machine_facts(),
    }
    (folder / "recipes.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{markdown(runs)}\n")
    for one in gaps:
        value, low, high = (100 * part for part in one["difference"])
        print(
            f"{one['backbone']}: {100 * one['random'][0]:.2f} % over folds that tear patients "
            f"apart, {100 * one['grouped'][0]:.2f} % over folds that do not: {value:+.2f} points "
            f"({low:+.2f} to {high:+.2f}, {one['groups']} patients, {one['images']} cells)"
        )


if __name__ == "__main__":
    main()
