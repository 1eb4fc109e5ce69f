"""`featpipe compare` on real photographs, with two pretrained backbones.

    python benchmarks/real_images.py SHARED WORK

SHARED holds `data/` and `weights/`; WORK is a folder to keep the caches in. A data set whose
WORK/NAME/results.json is there is not run again. Writes benchmarks/results/real_images.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from featpipe import ImageSettings, compare_routes
from featpipe.results import Results

COLUMNS = (
    "name", "status", "accuracy", "test", "difference", "seconds", "peak_bytes", "parameters",
    "images_per_second", "budget",
)  # fmt: skip


def compare(name: str, shared: Path, work: Path) -> dict[str, Any]:
    """Run one data set's comparison, or read it, and keep what a table shows."""
    document = work / name / "results.json"
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
    return Results.load(document).to_dict()


def main() -> None:
    shared, work = Path(sys.argv[1]), Path(sys.argv[2])
    results = {
        name: compare(name, shared, work) for name in ("hymenoptera", "emergency", "flowers")
    }
    kept = {name: shown(result) for name, result in results.items()}
    out = Path(__file__).parent / "results" / "real_images.json"
    out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for name, result in kept.items():
        print(f"\n{name}: {result['design']['rows']}")
        for sentence in result["verdict"]["sentences"]:
            print(sentence)


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """What a table shows."""
    routes = [{column: route[column] for column in COLUMNS} for route in result["routes"]]
    names = ("design", "images", "verdict", "machine")
    return {**{name: result[name] for name in names}, "routes": routes}


if __name__ == "__main__":
    main()
