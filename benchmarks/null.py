"""Whether a comparison finds differences where there are none.

    python benchmarks/null.py [RUNS] [COPIES] [LINE]

Copies of one route that differ in nothing but the seed are compared on handwritten digits, RUNS
(40) times, by other folds each time. Writes benchmarks/results/null.json: how often any of them was
called better.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from featpipe.compare import compare_routes
from featpipe.device import machine_facts
from featpipe.images import open_images
from featpipe.routes import parse_route
from featpipe.settings import CompareSettings

LINE = "pixels=mlp options.epochs=4 options.hidden=[16]"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    copies = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    line = sys.argv[3] if len(sys.argv) > 3 else LINE
    digits = open_images("digits")
    told, differences = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            rows = np.random.default_rng(run).choice(len(digits), 400, replace=False)
            images = digits.only(np.sort(rows))
            routes = [
                route
                for copy in range(copies)
                for route in parse_route(f"{line} seed={1000 * run + copy}")
            ]
            settings = CompareSettings(seed=run, budgets=(), device="cpu")
            out = Path(folder) / str(run)
            found = compare_routes(images, out=out, settings=settings, routes=routes).results
            some = [route.difference for route in found.routes if route.difference]
            told += any(one.sure for one in some)
            differences += [one.value for one in some]
            print(f"{run + 1} runs, {told} told apart", flush=True)
    result = {
        "route": line, "copies": copies, "runs": runs, "told_apart": told,
        "cannot_tell": 1 - told / runs, "largest_difference": -min(differences),
        "machine": machine_facts(),
    }  # fmt: skip
    out = Path(__file__).parent / "results" / "null.json"
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    known = [one for one in known if (one["route"], one["copies"]) != (line, copies)]
    out.write_text(json.dumps([*known, result], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
