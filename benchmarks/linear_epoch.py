"""An epoch of a linear head on 1,481 x 25,088 features, against a DataLoader's epoch.

    python benchmarks/linear_epoch.py [--repeats 5] [--out benchmarks/results/linear_epoch.json]

The peer is the usual loop: TensorDataset, DataLoader, the same network, optimizer and batch
size. Both train in one run, interleaved; medians of an epoch's seconds, and their ratio.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from featpipe.device import choose_device, machine_facts
from featpipe.problems import Problem, Shape
from featpipe.stacked import train_stacked
from featpipe.streamed import ResidentRows

ROWS, DIMENSIONS, CLASSES, EPOCHS = 1481, 25_088, 2, 3


def ours(features: np.ndarray, labels: np.ndarray, device: str, batch_size: int) -> float:
    rows = ResidentRows(torch.tensor(features, device=device))
    targets = torch.tensor(labels, device=device)
    every = np.arange(ROWS)
    shape = Shape((DIMENSIONS, CLASSES), EPOCHS, batch_size)
    begun = time.perf_counter()
    train_stacked(rows, targets, shape, [Problem(every, every[:0], 1e-5)])
    _finish(device)
    return (time.perf_counter() - begun) / EPOCHS


def plain_loop(features: np.ndarray, labels: np.ndarray, device: str, batch_size: int) -> float:
    network = torch.nn.Linear(DIMENSIONS, CLASSES).to(device)
    data = TensorDataset(torch.from_numpy(features), torch.from_numpy(labels))
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-5)
    begun = time.perf_counter()
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            loss = torch.nn.functional.cross_entropy(network(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
    _finish(device)
    return (time.perf_counter() - begun) / EPOCHS


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results/linear_epoch.json"))
    arguments = parser.parse_args()
    device = choose_device("auto")
    random = np.random.default_rng(0)
    features = random.standard_normal((ROWS, DIMENSIONS), dtype=np.float32)
    labels = random.integers(0, CLASSES, ROWS)
    seconds: dict[str, list[float]] = {"featpipe": [], "plain loop": []}
    for _ in range(arguments.repeats):
        seconds["featpipe"].append(ours(features, labels, device, arguments.batch_size))
        seconds["plain loop"].append(plain_loop(features, labels, device, arguments.batch_size))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "what": f"one epoch of a linear head, {ROWS} x {DIMENSIONS}, batch {arguments.batch_size}",
        "median_seconds": medians,
        "ratio": medians["plain loop"] / medians["featpipe"],
        "seconds": seconds,
        "machine": machine_facts(device),
    }
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("what", "median_seconds", "ratio")}, indent=1))


if __name__ == "__main__":
    main()
