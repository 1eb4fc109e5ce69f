"""`featpipe compare` killed at random instants: whether it ends with the same results.

    python benchmarks/kills.py WORK [KILLS]

Compares heads on pixels, a backbone's head, a network fine-tuned and one from scratch on the sample
pictures, in WORK/whole without a kill, and in WORK/killed, where each run is killed (SIGKILL) at a
random instant of what a whole one takes, and begun again. A run that ends by itself before its
kill is begun anew in an empty folder. May be called again: it goes on where it was, up to KILLS
(20) kills in all. Writes benchmarks/results/kills.json.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINES = (
    "pixels=linear,centroid",
    "backbone=squeezenet1_1@random input_size=64 head=logistic sweep.C=0.1,1",
    "backbone=squeezenet1_1@random input_size=64 cut=features.11 options.epochs=6",
    "scratch=small epochs=12 input_size=64",
)
TIMES = {"seconds", "created", "images_per_second", "cost", "peak_bytes", "verdict", "peak",
         "decode_seconds", "predict_seconds", "extraction_seconds", "fit_seconds_of_all",
         "resumed"}  # fmt: skip
MOST_SECONDS = 45.0  # of one call


def command(out: Path) -> list[str]:
    """What is killed."""
    routes = [word for line in LINES for word in ("--route", line)]
    images = str(ROOT / "data" / "shapes")
    return [sys.executable, "-m", "featpipe", "-q", "compare", images, *routes, "--folds", "3",
            "--device", "cpu", "-o", str(out)]  # fmt: skip


def without_times(value: Any) -> Any:
    """Results without what a clock says."""
    if isinstance(value, dict):
        return {name: without_times(one) for name, one in value.items() if name not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def found_in(out: Path) -> Any:
    """Results of a folder."""
    return without_times(json.loads((out / "results.json").read_text(encoding="utf-8")))


def main() -> None:
    work, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    work.mkdir(parents=True, exist_ok=True)
    began, state_file, killed = time.monotonic(), work / "state.json", work / "killed"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if not state_file.exists():
        begun = time.monotonic()
        subprocess.run(command(work / "whole"), check=True, **quiet)
        state = {"seconds": time.monotonic() - begun, "kills": 0, "ends": 0, "same": 0}
        state_file.write_text(json.dumps(state))
    state = json.loads(state_file.read_text())
    whole = found_in(work / "whole")
    chance = random.Random(100 * state["kills"] + state["ends"])

    def ended() -> None:
        state["ends"] += 1
        state["same"] += found_in(killed) == whole
        state["seconds"] *= 0.9  # a kill that comes too late kills nothing
        shutil.rmtree(killed)

    while state["kills"] < most and time.monotonic() - began < MOST_SECONDS:
        process = subprocess.Popen(command(killed), **quiet)
        try:
            if process.wait(chance.uniform(0.1, 1) * state["seconds"]):
                raise SystemExit(f"A run failed with {process.returncode}.")
            ended()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            state["kills"] += 1
        state_file.write_text(json.dumps(state))
        print(state, flush=True)
    if state["kills"] >= most and time.monotonic() - began < MOST_SECONDS:
        subprocess.run(command(killed), check=True, **quiet)
        ended()
        state_file.write_text(json.dumps(state))
        out = Path(__file__).parent / "results" / "kills.json"
        out.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        print(state)


if __name__ == "__main__":
    main()
