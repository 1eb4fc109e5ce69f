"""`featpipe compare` on real photographs, with two pretrained backbones.

    python benchmarks/real_images.py SHARED WORK

SHARED holds `data/` and `weights/`; WORK is a folder to keep the caches in. A data set whose
WORK/NAME/compare.json is there is not run again. Writes benchmarks/results/real_images.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from featpipe import ImageSettings, compare_routes

COLUMNS = (
    "route",
    "train_accuracy",
    "val_accuracy",
    "interval_95",
    "seconds_cold",
    "seconds_warm",
    "parameters",
)


def compare(name: str, shared: Path, work: Path) -> dict[str, Any]:
    """Run one data set's comparison, or read it, and keep what a table shows."""
    document = work / name / "compare.json"
    if not document.exists():
        images, settings = shared / "data" / name, ImageSettings()
        if name == "emergency":
            settings = ImageSettings(
                path_column="image_names",
                label_column="emergency_or_not",
                group_column="source_image",
                root=str(images / "images"),
            )
            images = images / "emergency_train.csv"
        weights = shared / "weights"
        backbones = [
            f"{model}@{weights / model}.pth" for model in ("mobilenet_v2", "squeezenet1_1")
        ]
        heads = ["linear", "sklearn-logistic"]
        compare_routes(images, backbones, heads, work / name, image_settings=settings)
    result = json.loads(document.read_text(encoding="utf-8"))
    machine = result["routes"][0]["conditions"]["machine"]
    routes = [{column: route[column] for column in COLUMNS} for route in result["routes"]]
    return {
        "classes": result["classes"],
        "split": result["split"],
        "routes": routes,
        "machine": machine,
    }


def main() -> None:
    shared, work = Path(sys.argv[1]), Path(sys.argv[2])
    results = {
        name: compare(name, shared, work) for name in ("hymenoptera", "emergency", "flowers")
    }
    out = Path(__file__).parent / "results" / "real_images.json"
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, result in results.items():
        print(f"\n{name}: {result['split']}")
        for route in result["routes"]:
            print(
                f"| {route['route']} | {100 * route['train_accuracy']:.1f} "
                f"| {100 * route['val_accuracy']:.1f} | {route['seconds_cold']:.1f} "
                f"| {route['seconds_warm']:.2f} | {route['parameters']:,} |"
            )


if __name__ == "__main__":
    main()
