"""`featpipe compare` on real images: one command for each of four data sets.

    python benchmarks/real_images.py SHARED WORK [NAME ...]

SHARED holds `data/` and `weights/`; WORK is a folder to keep the comparisons in. The commands are
printed; what they finished before is not run again. Writes benchmarks/results/real_images.json.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from featpipe.recipes.malaria import PATIENT
from featpipe.results import Results

NAMES = ("hymenoptera", "vehicles", "flowers", "malaria")
COLUMNS = (
    "name", "status", "accuracy", "test", "difference", "seconds", "peak_bytes", "parameters",
    "images_per_second", "budget", "reliability",
)  # fmt: skip


def arguments(name: str, shared: Path) -> list[str]:
    """The images, and what is particular to them."""
    images = shared / "data" / ("emergency" if name == "vehicles" else name)
    if name == "vehicles":
        of_table = ["--path-column", "image_names", "--label-column", "emergency_or_not"]
        of_table += ["--group-column", "source_image", "--root", str(images / "images")]
        return [str(images / "emergency_train.csv"), *of_table]
    if name == "malaria":  # cells of one patient stay together; they are 50 pixels wide
        return [str(images), "--group", PATIENT]
    if name == "hymenoptera":  # folds of all photographs, not of its training part only
        return [str(images), "--split", "random"]
    return [str(images)]


def command(name: str, shared: Path, work: Path) -> list[str]:
    """The one command of a data set."""
    given = ["featpipe", "-q", "compare", *arguments(name, shared)]
    for model in ("mobilenet_v2", "squeezenet1_1"):
        given += ["--backbone", f"{model}@{shared / 'weights' / model}.pth"]
    given += ["--head", "logistic", "--head", "linear", "--scratch-epochs", "30"]
    return [*given, "--scratch-input-size", "64", "--out", str(work / name)]


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """What a table shows."""
    routes = [{column: route[column] for column in COLUMNS} for route in result["routes"]]
    names = ("design", "images", "verdict", "machine")
    leaks = result["leaks"]
    pairs = {name: len(leaks[name]) for name in ("exact", "near")} if leaks else None
    return {**{name: result[name] for name in names}, "pairs": pairs, "routes": routes}


def main() -> None:
    shared, work = Path(sys.argv[1]), Path(sys.argv[2])
    out = Path(__file__).parent / "results" / "real_images.json"
    kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for name in sys.argv[3:] or NAMES:
        line = command(name, shared, work)
        print(f"\n{name}: {shlex.join(line)}", flush=True)
        subprocess.run([sys.executable, "-m", *line], check=True)
        result = shown(Results.load(work / name).to_dict())
        result["images"]["location"] = name
        text = shlex.join(line).replace(str(shared), "SHARED").replace(str(work), "WORK")
        kept[name] = {"command": text, **result}
        ordered = {one: kept[one] for one in NAMES if one in kept}
        out.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
