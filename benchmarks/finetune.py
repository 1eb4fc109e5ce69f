"""Fine-tuning from a cut against ordinary fine-tuning of the same layers.

    python benchmarks/finetune.py SHARED WORK [--repeats 3] [--short]

SHARED holds `data/` and `weights/`; activations go to WORK. Images are hymenoptera's at 224 pixels,
with its own split. resnet50 (random weights) is cut at layer3, mobilenet_v2 (ImageNet's) at three
quarters of its depth, features.13.

The peer is a good ordinary loop: threads decode ahead with the fastest decoder there is, the frozen
trunk runs under no_grad in eval mode, and the trained part is the very same module, in the same
precision and memory format, with the same optimizer and the same batches. Neither augments: what
changes from epoch to epoch cannot be cached. Epochs of both are interleaved; seconds are medians,
without validation. Extraction is `extract_features` as it is, in the same precision, stored as
float16. MobileNet's file has its batch norm folded, so it is frozen on both sides.

All repeats go to benchmarks/results/finetune.json, the short form to WORK/finetune.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featpipe import ExtractSettings, FeatureCache, extract_features, load_backbone
from featpipe.descent import _computing_in, _losses
from featpipe.device import available_cores, machine_facts
from featpipe.extractor import decoders
from featpipe.heads import make_head
from featpipe.images import ImageSource, open_images
from featpipe.loading import ImageLoader
from featpipe.network import Network
from featpipe.streamed import batch_sizes
from featpipe.tails import Tail, cut_off, grow

CASES = {
    "resnet50": ("resnet50@random", "layer3", {}),
    "mobilenet_v2": ("mobilenet_v2@{weights}/mobilenet_v2.pth", "features.13",
                     {"freeze_norm": True}),
}  # fmt: skip
PRECISIONS = ("float32", "bfloat16")
BATCH, LR, EPOCHS, SEEDS = 32, 1e-4, 5, 3
AHEAD = 2  # batches that are decoded ahead


class Ordinary:
    """The usual loop over images."""

    def __init__(
        self, source: ImageSource, backbone: str, cut: str, precision: str, options: dict[str, Any],
        classes: int, seed: int,
    ) -> None:  # fmt: skip
        loaded = load_backbone(backbone)
        layers = loaded.layers()
        trunk = loaded.cut(layers, [layers.resolve(cut)])
        self.network = Network(trunk, [], loaded.preprocessing, "")
        self.trunk = trunk.to(memory_format=torch.channels_last)
        freeze = options.get("freeze_norm", False)
        self.tail: Tail = grow(cut_off(loaded, cut, freeze), classes, "all", freeze, seed, "cpu")
        trained = [p for p in self.tail.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, LR, weight_decay=1e-2, fused=True)
        self.precision, self.generator = precision, torch.Generator().manual_seed(seed)
        decoder = next(iter(decoders("cpu").values()))
        self.load = ImageLoader(source, loaded.preprocessing, decoder)
        self.seed = seed

    def pixels(self, pool: ThreadPoolExecutor, batches: list[np.ndarray]) -> Iterator[Tensor]:
        """Normalised images of each batch, decoded ahead."""
        waiting: list[Any] = []
        for number in range(len(batches) + AHEAD):
            if number < len(batches):
                parts = [[int(row)] for row in batches[number]]
                waiting.append([pool.submit(self.load, part) for part in parts])
            if number >= AHEAD:
                images = [future.result()[0].pixels for future in waiting.pop(0)]
                yield self._normalised(np.stack(images))

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        images = (images - self.network.mean) / self.network.std
        return images.contiguous(memory_format=torch.channels_last)

    def _maps(self, images: Tensor) -> Tensor:
        with torch.no_grad(), _computing_in(self.precision, torch.device("cpu")):
            maps: Tensor = self.trunk(images)[0]
        return maps.flatten(1)

    def epoch(self, rows: np.ndarray, labels: Tensor) -> float:
        """Seconds of one epoch."""
        begun = time.perf_counter()
        order = rows[torch.randperm(len(rows), generator=self.generator).numpy()]
        ends = np.cumsum(batch_sizes(len(rows), BATCH))[:-1]
        batches = np.split(order, ends)
        self.tail.train()
        with ThreadPoolExecutor(available_cores()) as pool:
            for batch, images in zip(batches, self.pixels(pool, batches), strict=True):
                maps = self._maps(images)
                with _computing_in(self.precision, torch.device("cpu")):
                    logits = self.tail(maps)
                loss = _losses(logits.float(), labels[torch.from_numpy(batch)]).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return time.perf_counter() - begun

    @torch.no_grad()
    def accuracy(self, rows: np.ndarray, labels: Tensor) -> float:
        """Share of rows that it has right."""
        self.tail.eval()
        batches = np.array_split(rows, max(1, len(rows) // BATCH))
        right = 0
        with ThreadPoolExecutor(available_cores()) as pool:
            for batch, images in zip(batches, self.pixels(pool, batches), strict=True):
                with _computing_in(self.precision, torch.device("cpu")):
                    found = self.tail(self._maps(images)).argmax(1)
                right += int((found == labels[torch.from_numpy(batch)]).sum())
        return right / len(rows)


def ours(
    cache: FeatureCache, precision: str, options: dict[str, Any], rows: np.ndarray, epochs: int,
    seed: int,
) -> tuple[Any, list[float], float]:  # fmt: skip
    """A fitted tail, seconds of each epoch, and of reading."""
    begun = time.perf_counter()
    layer = cache.layer()
    X = cache.features(layer, rows).reshape(len(rows), -1)
    reading = time.perf_counter() - begun
    head = make_head("tail", {
        "train": "all", "lr": LR, "epochs": epochs, "batch_size": BATCH, "schedule": "constant",
        "precision": precision, "seed": seed, "device": "cpu", **options,
    }).on(cache.spec, layer, cache.layers[layer])  # fmt: skip
    ends: list[float] = []
    head.on_epoch = lambda row: ends.append(time.perf_counter())
    assert cache.table.labels is not None
    head._stump()
    begun = time.perf_counter()
    head.fit(X, cache.table.labels[rows])
    return head, np.diff([begun, *ends]).tolist(), reading


def case(
    name: str, precision: str, source: ImageSource, rows: dict[str, np.ndarray], work: Path,
    weights: Path, repeats: int, accuracies: bool,
) -> dict[str, Any]:  # fmt: skip
    """Both ways, interleaved."""
    backbone, cut, options = CASES[name]
    backbone = backbone.format(weights=weights)
    assert source.table.labels is not None
    labels = torch.from_numpy(source.table.labels)
    settings = ExtractSettings(layer=(cut,), precision=precision, dtype="float16", overwrite=True,
                               device="cpu")  # fmt: skip
    begun = time.perf_counter()
    cache = extract_features(source, backbone, work / f"{name}-{precision}.h5", settings)
    extraction = time.perf_counter() - begun
    classes = len(source.table.classes)
    peer = Ordinary(source, backbone, cut, precision, options, classes, seed=0)
    some = rows["train"][:: max(1, len(rows["train"]) // BATCH)]  # of every class
    ours(cache, precision, options, some, 1, 0)  # whatever is only done once
    peer.epoch(some, labels)
    seconds: dict[str, list[float]] = {"ordinary": [], "from the cut": []}
    beginnings = []
    for _ in range(repeats):
        seconds["ordinary"].append(peer.epoch(rows["train"], labels))
        # The first epoch has the building of the network and the optimizer in it.
        _, (first, second), reading = ours(cache, precision, options, rows["train"], 2, 0)
        seconds["from the cut"].append(second)
        beginnings.append(reading + max(0.0, first - second))
    ordinary, cut_epoch = (statistics.median(some) for some in seconds.values())
    begin = statistics.median(beginnings)
    totals = [
        {"epochs": n, "ordinary": n * ordinary,
         "from the cut": extraction + begin + n * cut_epoch}
        for n in (1, 2, 3, 5, 10, 20)
    ]  # fmt: skip
    found: dict[str, Any] = {
        "backbone": name, "cut": cut, "precision": precision, "images": len(rows["train"]),
        "epoch_seconds": seconds, "ratio": cut_epoch / ordinary,
        "extraction_seconds": extraction, "beginning_seconds": begin,
        "extracted_images": len(source), "total_seconds": totals,
    }  # fmt: skip
    if accuracies:
        found["accuracy"] = {"ordinary": [], "from the cut": []}
        X = cache.features(rows=rows["val"]).reshape(len(rows["val"]), -1)
        truth = source.table.labels[rows["val"]]
        for seed in range(SEEDS):
            peer = Ordinary(source, backbone, cut, precision, options, classes, seed)
            for _ in range(EPOCHS):
                peer.epoch(rows["train"], labels)
            found["accuracy"]["ordinary"].append(peer.accuracy(rows["val"], labels))
            head, _, _ = ours(cache, precision, options, rows["train"], EPOCHS, seed)
            found["accuracy"]["from the cut"].append(float((head.predict(X) == truth).mean()))
    cache.close()
    return found


def markdown(cases: list[dict[str, Any]]) -> str:
    """A table to read."""
    lines = [
        "| network, cut | precision | ordinary, s an epoch | from the cut | ratio | extraction, s "
        "| lower in total from epoch | accuracy, ordinary | from the cut |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in cases:
        ordinary, cut = (statistics.median(some) for some in one["epoch_seconds"].values())
        from_epoch = next(
            (t["epochs"] for t in one["total_seconds"] if t["from the cut"] < t["ordinary"]), "-"
        )
        accuracy = one.get("accuracy", {})
        shown = [
            " ".join(f"{100 * value:.1f}" for value in accuracy.get(way, [])) or "-"
            for way in ("ordinary", "from the cut")
        ]
        lines.append(
            f"| {one['backbone']}, {one['cut']} | {one['precision']} | {ordinary:.2f} | {cut:.2f} "
            f"| {one['ratio']:.2f} | {one['extraction_seconds']:.1f} | {from_epoch} | {shown[0]} "
            f"| {shown[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """All cases, both precisions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="few images, one repeat")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    source = open_images(arguments.shared / "data" / "hymenoptera")
    table = source.table
    assert table.splits is not None
    usable = np.array([not name.endswith("imageNotFound.gif") for name in table.ids])
    rows = {part: np.flatnonzero((table.splits == part) & usable) for part in ("train", "val")}
    repeats = arguments.repeats
    if arguments.short:
        rows = {part: some[:: max(1, len(some) // 24)][:24] for part, some in rows.items()}
        kept = np.sort(np.concatenate(list(rows.values())))
        source = _only(source, kept)
        rows = {part: np.searchsorted(kept, some) for part, some in rows.items()}
        repeats = 1
    weights = arguments.shared / "weights"
    cases = []
    for name in CASES:
        for precision in PRECISIONS:
            accuracies = name == "mobilenet_v2" and not arguments.short
            found = case(name, precision, source, rows, work, weights, repeats, accuracies)
            cases.append(found)
            print(json.dumps(found), flush=True)
    folder = work if arguments.short else Path(__file__).parent / "results"
    document = {"cases": cases, "batch_size": BATCH, "lr": LR, "machine": machine_facts()}
    (folder / "finetune.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(markdown(cases))


def _only(source: ImageSource, rows: np.ndarray) -> ImageSource:
    table = source.table
    assert table.labels is not None
    part = replace(table, ids=table.ids[rows], labels=table.labels[rows], splits=None, groups=None)
    return replace(source, table=part, read=lambda row: source.read(int(rows[row])), path_of=None)


if __name__ == "__main__":
    main()
