"""Whether a comparison finds differences where there are none.

    python benchmarks/null.py [RUNS] [COPIES] [LINE]

Copies of one route that differ in nothing but the seed are compared on handwritten digits, RUNS
(40) times, on other images and by other folds each time. Goes on for a minute where it was, when it
is called again; benchmarks/results/null.json has how often any of them was called better.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from featpipe.compare import compare_routes
from featpipe.device import machine_facts
from featpipe.images import open_images
from featpipe.route_results import Difference
from featpipe.routes import parse_route
from featpipe.settings import CompareSettings

LINE = "pixels=mlp options.epochs=4 options.hidden=[16]"
MOST_SECONDS = 45.0  # of one call


def run(number: int, copies: int, line: str) -> list[Difference]:
    """Differences to the best of the copies."""
    digits = open_images("digits")
    rows = np.random.default_rng(number).choice(len(digits), 400, replace=False)
    seeds = [1000 * number + copy for copy in range(copies)]
    routes = [route for seed in seeds for route in parse_route(f"{line} seed={seed}")]
    settings = CompareSettings(seed=number, budgets=(), device="cpu")
    with tempfile.TemporaryDirectory() as out:
        found = compare_routes(
            digits.only(np.sort(rows)), out=out, settings=settings, routes=routes
        ).results
    return [route.difference for route in found.routes if route.difference]


def main() -> None:
    given = sys.argv[1:]
    runs, copies = int(given[0]) if given else 40, int(given[1]) if given[1:] else 2
    line, begun = given[2] if given[2:] else LINE, time.monotonic()
    out = Path(__file__).parent / "results" / "null.json"
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    mine = [one for one in known if (one["route"], one["copies"]) == (line, copies)]
    others = [one for one in known if one not in mine]
    result = mine[0] if mine else {"route": line, "copies": copies, "runs": 0, "told_apart": 0,
                                   "largest_difference": 0.0}  # fmt: skip
    while result["runs"] < runs and time.monotonic() - begun < MOST_SECONDS:
        found = run(result["runs"], copies, line)
        result["runs"] += 1
        result["told_apart"] += any(one.sure for one in found)
        most = max(-one.value for one in found)
        result["largest_difference"] = max(most, result["largest_difference"])
        result["cannot_tell"] = 1 - result["told_apart"] / result["runs"]
        result["machine"] = machine_facts()
    out.write_text(json.dumps([*others, result], indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in result.items() if name != "machine"})


if __name__ == "__main__":
    main()
