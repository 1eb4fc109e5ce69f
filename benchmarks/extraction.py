"""Extraction against its peers, against its own ceiling, and against float32.

    python benchmarks/extraction.py SHARED WORK [--thingsvision PYTHON]
        [--only peers efficiency fidelity pixels startup memory vehicles]

SHARED holds `data/` and `weights/`; WORK is a folder to work in, best on the disk that features
would go to. PYTHON is that of an environment with thingsvision, which wants a torch of its own;
without it that peer is left out. VGG16's and ResNet50's weights are random (seed 0), the same file
for everyone; speed does not depend on them. Everything runs in processes of its own, interleaved,
and medians count. Results go to benchmarks/results/extraction.json, section by section.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps, PngImagePlugin

from featpipe import ExtractSettings, TrainSettings, extract_features, train_head
from featpipe.decode import EXACT, Preprocessing
from featpipe.decode_fast import FAST
from featpipe.device import machine_facts

HERE = Path(__file__).parent.resolve()
ROUNDS = 3
FEATURES = {"vgg16": ("features",), "resnet50": (), "mobilenet_v2": ()}
REFERENCE = {"runtime": "torch", "precision": "float32", "decode": "exact"}


# ---- what is worked on -------------------------------------------------------------------


def photographs(shared: Path, work: Path, count: int, size: tuple[int, int] = (500, 375)) -> Path:
    """Real photographs, cut to a size, as JPEG of quality 90 in two folders.

    Beyond as many as there are, they come again, cut otherwise.
    """
    folder = work / (f"jpeg-{count}" if size == (500, 375) else f"jpeg-{count}-{size[0]}x{size[1]}")
    paths = sorted((shared / "data" / "hymenoptera").rglob("*.jpg"))
    paths += sorted((shared / "data" / "flowers").rglob("*.jpg"))
    for number in range(count):
        again, place = divmod(number, len(paths))
        target = folder / "ab"[number % 2] / f"{number:04d}.jpg"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            middle = (0.5 - 0.2 * again, 0.5 - 0.2 * again)
            with Image.open(paths[place]) as picture:
                cut = ImageOps.fit(picture.convert("RGB"), size, centering=middle)
            cut.save(target, quality=90)
    return folder


def weights_file(model: str, shared: Path, work: Path) -> Path:
    """The real weights where they are, else random ones that every peer loads."""
    real, made = shared / "weights" / f"{model}.pth", work / f"{model}.pth"
    if real.exists():
        return real
    if not made.exists():
        torch.manual_seed(0)
        torch.save(getattr(torchvision.models, model)().state_dict(), made)
    return made


_CHILD = """
import json, sys, time
begun = time.perf_counter()
from featpipe import ExtractSettings, extract, extract_features
asked = json.loads(sys.argv[1])
spent = {"ready": 0.0}
def timed(call):
    def run(*arguments):
        start = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            spent["ready"] += time.perf_counter() - start
    return run
extract.prepare, extract.choose = timed(extract.prepare), timed(extract.choose)
first = []
start = time.perf_counter()
settings = ExtractSettings(**{**asked["settings"], "layer": tuple(asked["layer"])})
cache = extract_features(asked["images"], asked["backbone"], asked["out"], settings,
                         on_progress=lambda done, total: first or first.append(time.time()))
seconds = time.perf_counter() - start - spent["ready"]
import resource
print(json.dumps({"images": len(cache), "seconds": seconds, "first_batch": first[0],
                  "execution": cache.conditions["execution"],
                  "fidelity": cache.conditions.get("fidelity"),
                  "throughput": cache.conditions["throughput"],
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def featpipe(
    images: Path, model: str, weights: Path, work: Path, **settings: object
) -> dict[str, Any]:
    """Extract in a process of its own: seconds from the ready network to the finished file."""
    out = work / "bench.h5"
    asked = {
        "images": str(images), "backbone": f"{model}@{weights}", "out": str(out),
        "layer": FEATURES[model], "settings": {"overwrite": True, **settings},
    }  # fmt: skip
    found = _run([sys.executable, "-W", "ignore", "-c", _CHILD, json.dumps(asked)])
    out.unlink()
    return found


def _run(command: list[str], **options: Any) -> dict[str, Any]:
    begun = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command[:4]} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "begun": begun}


def _peer(python: str, peer: str, model: str, weights: Path, images: Path, count: int) -> float:
    script = str(HERE / "extraction_peers.py")
    command = [python, "-W", "ignore", script, peer, model, str(weights), str(images), str(count)]
    found = _run(command)
    return float(found["images"] / found["seconds"])


# ---- sections ----------------------------------------------------------------------------


def peers(
    shared: Path, work: Path, other: str | None, count: int = 1000, slow: int = 64
) -> dict[str, Any]:
    """Images a second of each way, from the ready network to the features; medians of rounds."""
    images, results = photographs(shared, work, count), {}
    few = photographs(shared, work, min(count, 4 * slow))
    for model in ("vgg16", "resnet50"):
        weights = weights_file(model, shared, work)
        ways: dict[str, Callable[[], float]] = {
            "plain": lambda m=model, w=weights: _peer(sys.executable, "plain", m, w, images, slow),
            "timm": lambda m=model, w=weights: _peer(sys.executable, "timm", m, w, images, slow),
            "featpipe": lambda m=model, w=weights: _speed(featpipe(images, m, w, work)),
            "featpipe float32 exact": lambda m=model, w=weights: _speed(
                featpipe(few, m, w, work, precision="float32", decode="exact")
            ),
        }
        if other:
            ways["thingsvision"] = lambda m=model, w=weights: _peer(
                other, "thingsvision", m, w, images, slow
            )
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                speeds[name].append(way())
                print(f"{model} {name}: {speeds[name][-1]:.1f} images/s", flush=True)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        ratios = {
            f"{mine} / {name}": medians[mine] / medians[name]
            for mine in ("featpipe", "featpipe float32 exact")
            for name in medians
            if not name.startswith("featpipe")
        }
        results[model] = {"images_per_second": speeds, "medians": medians, "ratios": ratios}
    return results


def _speed(found: dict[str, Any]) -> float:
    return float(found["images"] / found["seconds"])


def efficiency(shared: Path, work: Path, count: int = 1000) -> dict[str, Any]:
    """End to end against what decoding and forward passes allow together, in the same run."""
    images, results = photographs(shared, work, count), {}
    jobs = {name: (images, name) for name in ("vgg16", "resnet50", "mobilenet_v2")}
    jobs["mobilenet_v2, 50 x 50 PNG"] = (shared / "data" / "malaria", "mobilenet_v2")
    for name, (folder, model) in jobs.items():
        runs = []
        for _ in range(ROUNDS):
            found = featpipe(folder, model, weights_file(model, shared, work), work)
            ceiling = found["throughput"]["ceiling"]
            runs.append(
                {
                    "images_per_second": _speed(found),
                    "pipeline_images_per_second": found["throughput"]["images_per_second"],
                    "ceiling": ceiling,
                    "share": _speed(found) / ceiling,
                    "pipeline_share": found["throughput"]["images_per_second"] / ceiling,
                    "alone": found["throughput"]["alone"],
                    "bound": found["throughput"]["bound"],
                }
            )
            print(name, json.dumps(runs[-1]), flush=True)
        results[name] = {
            "execution": found["execution"],
            "share": statistics.median(run["share"] for run in runs),
            "pipeline_share": statistics.median(run["pipeline_share"] for run in runs),
            "runs": runs,
        }
    return results


def fidelity(shared: Path, work: Path, seeds: int = 5) -> dict[str, Any]:
    """Every flower's cosine to float32 exact, and what a head makes of the difference."""
    results: dict[str, Any] = {}
    for model in ("mobilenet_v2", "squeezenet1_1"):
        backbone = f"{model}@{shared / 'weights' / model}.pth"
        found, accuracy = {}, {}
        ways: dict[str, dict[str, Any]] = {
            "reference": REFERENCE, "auto": {}, "bfloat16": {"precision": "bfloat16"}
        }  # fmt: skip
        executions = {}
        for name, asked in ways.items():
            out = work / f"fidelity-{model}-{name}.h5"
            settings = ExtractSettings(overwrite=True, **asked)
            with extract_features(shared / "data" / "flowers", backbone, out, settings) as cache:
                found[name] = cache.features().reshape(len(cache), -1).astype(np.float64)
                executions[name] = cache.conditions["execution"]
                scores = [
                    train_head(cache, "linear", TrainSettings(seed=seed))[1].scores["val"].accuracy
                    for seed in range(seeds)
                ]
                accuracy[name] = statistics.mean(scores)
        for name in ("auto", "bfloat16"):
            one, two = found["reference"], found[name]
            lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
            cosine = (one * two).sum(axis=1) / lengths
            results[f"{model}, {name}"] = {
                "execution": executions[name],
                "images": len(cosine),
                "lowest_cosine": float(cosine.min()),
                "median_cosine": float(np.median(cosine)),
                "below_0.999": int((cosine < 0.999).sum()),
                "accuracy": accuracy[name],
                "accuracy_of_float32": accuracy["reference"],
            }
            print(model, name, json.dumps(results[f"{model}, {name}"]), flush=True)
    return results


def pixels(shared: Path) -> dict[str, Any]:
    """How far fast decoding of the flowers is from exact decoding, in levels of 255."""
    gaps, means = [], []
    for path in sorted((shared / "data" / "flowers").rglob("*.jpg")):
        data = path.read_bytes()
        exact, fast = (decoder.one(data, Preprocessing()).astype(int) for decoder in (EXACT, FAST))
        gaps.append(int(np.abs(exact - fast).max()))
        means.append(float(np.abs(exact - fast).mean()))
    return {"images": len(gaps), "largest": max(gaps), "median_of_largest": statistics.median(gaps),
            "mean": statistics.mean(means)}  # fmt: skip


def startup(shared: Path, work: Path) -> dict[str, Any]:
    """Seconds from the command to the first batch, with converted models at hand; and of help."""
    images, results = photographs(shared, work, 64), {}
    for model in ("vgg16", "resnet50", "mobilenet_v2"):
        weights = weights_file(model, shared, work)
        runs = [featpipe(images, model, weights, work) for _ in range(ROUNDS + 1)][1:]
        results[model] = statistics.median(run["first_batch"] - run["begun"] for run in runs)
        print(f"{model}: {results[model]:.2f} s to the first batch", flush=True)
    script = str(Path(sys.executable).parent / "featpipe")
    for name, arguments in (
        ("--help", ["--help"]),
        ("train-head --help", ["train-head", "--help"]),
    ):
        seconds = []
        for _ in range(9):
            begun = time.perf_counter()
            subprocess.run([script, *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begun)
        results[name] = statistics.median(seconds)
        print(f"{name}: {results[name]:.3f} s", flush=True)
    return results


def memory(shared: Path, work: Path, few: int = 5000, many: int = 50_000) -> dict[str, Any]:
    """Peak memory of many images and of a tenth of them."""
    results: dict[str, Any] = {}
    cells = sorted((shared / "data" / "malaria").rglob("*.png"))
    for count in (few, many):
        folder = work / f"cells-{count}"
        if not folder.exists():
            making = work / f"cells-{count}.making"  # of an earlier run that was stopped
            shutil.rmtree(making, ignore_errors=True)
            for number in range(count):  # a comment of its own makes each another image
                target = making / f"{number % 10}" / f"{number:06d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                note = PngImagePlugin.PngInfo()
                note.add_text("number", str(number))
                with Image.open(cells[number % len(cells)]) as picture:
                    picture.save(target, pnginfo=note)
            making.rename(folder)
        found = featpipe(folder, "mobilenet_v2", weights_file("mobilenet_v2", shared, work), work)
        results[str(count)] = {"peak_bytes": found["peak_bytes"], "seconds": found["seconds"]}
        print(f"{count}: {found['peak_bytes'] / 1e6:.0f} MB", flush=True)
        if count == many:
            shutil.rmtree(folder)
    results["ratio"] = results[str(many)]["peak_bytes"] / results[str(few)]["peak_bytes"]
    return results


_RECIPE = """
import json, sys, time
begun = time.perf_counter()
import torch, torchvision
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder
images, weights, count, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
net = torchvision.models.vgg16_bn()
net.load_state_dict(torch.load(weights, weights_only=True))
net.eval().requires_grad_(False)
preset = torchvision.models.VGG16_BN_Weights.DEFAULT.transforms()
data = Subset(ImageFolder(images, preset), range(count))
features, labels = [], []
with torch.no_grad():
    for batch, label in DataLoader(data, 128, num_workers=2):
        features.append(net.features(batch).flatten(1))
        labels.append(label)
features, labels = torch.cat(features), torch.cat(labels)
order = torch.randperm(count, generator=torch.Generator().manual_seed(13))
train, val = order[count // 10:], order[:count // 10]
net.classifier[6] = nn.Linear(4096, 2)
optimiser = torch.optim.Adam(net.classifier[6].parameters(), lr=5e-4)
for epoch in range(epochs):
    net.classifier.train()
    rows = TensorDataset(features[train], labels[train])
    for batch, label in DataLoader(rows, 128, shuffle=True):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net.classifier(batch), label).backward()
        optimiser.step()
    net.classifier.eval()
    with torch.no_grad():
        for batch, label in DataLoader(TensorDataset(features[val], labels[val]), 128):
            right = (net.classifier(batch).argmax(1) == label).sum()
print(json.dumps({"seconds": time.perf_counter() - begun}))
"""


def vehicles(shared: Path, work: Path, count: int = 1646, slow: int = 200) -> dict[str, Any]:
    """The vehicles recipe, whole: the published script's loop against two commands.

    1,646 images of 224 x 224, VGG16-BN's `features`, its two frozen layers of 4,096 behind them,
    30 epochs of the last layer (Adam 5e-4, batches of 128, nine tenths to train on). The script
    runs the frozen layers in each epoch; featpipe caches what they give. The script is timed on
    `slow` images and on twice as many, epochs and all; its cost is linear in them.
    """
    images = photographs(shared, work, count, (224, 224))
    weights = weights_file("vgg16_bn", shared, work)

    def script(images_used: int) -> float:
        command = [sys.executable, "-W", "ignore", "-c", _RECIPE, str(images), str(weights),
                   str(images_used), "30"]  # fmt: skip
        return float(_run(command)["seconds"])

    out, folder = work / "vehicles.h5", work / "vehicles-linear"
    tool = str(Path(sys.executable).parent / "featpipe")
    extract = [tool, "-q", "extract", str(images), "-b", f"vgg16_bn@{weights}",
               "-o", str(out), "--overwrite"]  # fmt: skip
    train = [tool, "-q", "train-head", str(out), "--head", "linear", "--epochs", "30",
             "--lr", "5e-4", "--weight-decay", "0", "--batch-size", "128", "--patience", "0",
             "--val", "0.1", "-o", str(folder)]  # fmt: skip
    ours, theirs = [], []
    for number in range(ROUNDS + 1):
        begun = time.perf_counter()
        for command in (extract, train):
            subprocess.run(command, check=True, capture_output=True)
        if not number:  # which converts the model
            continue
        ours.append(time.perf_counter() - begun)
        one, two = script(slow), script(2 * slow)
        theirs.append(one + (two - one) * (count - slow) / slow)
        print(f"featpipe {ours[-1]:.1f} s, the script {theirs[-1]:.1f} s", flush=True)
    out.unlink()
    medians = statistics.median(ours), statistics.median(theirs)
    return {
        "images": count, "featpipe_seconds": ours, "script_seconds": theirs,
        "ratio": medians[1] / medians[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--thingsvision", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args()
    shared, work = asked.shared.resolve(), asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FEATPIPE_CACHE_DIR", str(work / "models"))
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "peers": lambda: peers(shared, work, asked.thingsvision),
        "efficiency": lambda: efficiency(shared, work),
        "fidelity": lambda: fidelity(shared, work),
        "pixels": lambda: pixels(shared),
        "startup": lambda: startup(shared, work),
        "memory": lambda: memory(shared, work),
        "vehicles": lambda: vehicles(shared, work),
    }
    file = HERE / "results" / "extraction.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in asked.only or sections:
        results[name] = {**sections[name](), "machine": machine_facts()}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
