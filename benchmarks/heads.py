"""Heads against scikit-learn, side by side on the same rows.

    python benchmarks/heads.py [--only single easy path wide stack knn] [--repeats 3]

`single` is one logistic regression, `path` ten C by five folds, `wide` twenty C by five folds where
features outnumber rows, `stack` 64 linear heads (learning rates x weight decays) trained at once,
one, and 64 one after the other, `knn` nearest neighbours. Rows are made up: noisy classes,
features of falling variance, as networks give them. Medians of repeats, interleaved, set-up
included; the objective is computed the same way, in float64, from everybody's coefficients. `easy`
is `single` where classes are far apart, which plain L-BFGS solves in a few steps. Results go to
benchmarks/results/heads.json, section by section.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors

from featpipe.device import machine_facts
from featpipe.heads import make_head
from featpipe.logistic import Rows, Solver
from featpipe.problems import Problem, Shape, Trained
from featpipe.stacked import train_stacked
from featpipe.streamed import ResidentRows

RESULTS = Path(__file__).parent / "results" / "heads.json"
Data = tuple[np.ndarray, np.ndarray]


def made_up(n: int, d: int, classes: int, apart: float = 0.3) -> Data:
    """float32 rows and labels: what classes differ in is mixed, with much else, into ReLUs.

    The factors' variance falls as in real features, which are correlated and not standardised; a
    fifth of the labels is drawn by lot.
    """
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    factors = min(d, 2048)
    scale = 1 / np.sqrt(1 + np.arange(factors) / 8)
    centres = apart * random.normal(size=(classes, factors)) * (random.random(factors) < 0.1)
    Z = (random.normal(size=(n, factors)) + centres[labels]) * scale
    X = np.maximum(Z @ (3 * random.normal(size=(factors, d)) / np.sqrt(factors)) + 0.5, 0)
    lot = random.random(n) < 0.2
    return X.astype(np.float32), np.where(lot, random.integers(0, classes, n), labels)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def objective(X: np.ndarray, y: np.ndarray, C: float, coef: np.ndarray, intercept: Any) -> float:
    """What both minimise."""
    logits = X.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return float(C * losses.sum() + (coef.astype(np.float64) ** 2).sum() / 2)


def single(
    repeats: int, n: int = 20_000, d: int = 2048, C: float = 0.01, apart: float = 0.3
) -> dict[str, Any]:
    """One fit, cold."""
    X, y = made_up(n, d, 10, apart)
    seconds: dict[str, list[float]] = {"featpipe": [], "scikit-learn": []}
    objectives = {}
    for _ in range(repeats):
        took, head = timed(lambda: make_head("logistic", {"C": C, "standardize": False}).fit(X, y))
        seconds["featpipe"].append(took)
        state = head.arrays()
        objectives["featpipe"] = objective(X, y, C, state["coef"], state["intercept"])
        took, model = timed(lambda: LogisticRegression(C=C, max_iter=10_000).fit(X, y))
        seconds["scikit-learn"].append(took)
        objectives["scikit-learn"] = objective(X, y, C, model.coef_, model.intercept_)
        print(seconds, objectives, head.n_iter_, model.n_iter_, flush=True)
    return _compared(seconds) | {"objectives": objectives, "rows": n, "features": d, "C": C}


def grid(
    repeats: int, n: int, d: int, classes: int, Cs: np.ndarray, folds: int = 5
) -> dict[str, Any]:
    """Every C on every fold, the best by accuracy, refitted on all rows."""
    X, y = made_up(n, d, classes)
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(X, y))
    seconds: dict[str, list[float]] = {"featpipe": [], "scikit-learn": []}
    for _ in range(repeats):
        took, ours = timed(lambda: _our_grid(X, y, classes, Cs, splits))
        seconds["featpipe"].append(took)
        print("featpipe", took, flush=True)
        took, theirs = timed(
            lambda: LogisticRegressionCV(
                Cs=Cs, cv=splits, n_jobs=2, max_iter=10_000, scoring="accuracy",
                use_legacy_attributes=False, l1_ratios=(0,),
            ).fit(X, y)
        )  # fmt: skip
        seconds["scikit-learn"].append(took)
        print("scikit-learn", took, flush=True)
    higher = []
    paths = np.asarray(theirs.coefs_paths_).reshape(folds, len(Cs), -1, d + 1)
    for fold, (train, _) in enumerate(splits):
        for place, C in enumerate(Cs):
            mine = ours["path"][place]
            one = objective(
                X[train], y[train], C, mine.coef[fold].numpy(), mine.intercept[fold].numpy()
            )
            coef, intercept = paths[fold, place, :, :-1], paths[fold, place, :, -1]
            higher.append(one / objective(X[train], y[train], C, coef, intercept) - 1)
    return _compared(seconds) | {
        "rows": n, "features": d, "classes": classes, "Cs": Cs.tolist(), "folds": folds,
        "largest_excess_of_an_objective": max(higher), "median_excess": statistics.median(higher),
        "winner": {"featpipe": ours["C"], "scikit-learn": float(np.ravel(theirs.C_)[0])},
        "accuracy": {
            "featpipe": ours["accuracy"].tolist(),
            "scikit-learn": np.asarray(theirs.scores_).reshape(folds, -1).mean(0).tolist(),
        },
        "iterations": [one.iterations.tolist() for one in ours["path"]],
    }  # fmt: skip


def _our_grid(
    X: np.ndarray, y: np.ndarray, classes: int, Cs: np.ndarray, splits: list[Data]
) -> dict[str, Any]:
    rows, codes = Rows.of(torch.from_numpy(X)), torch.from_numpy(y)
    weights = torch.zeros(len(splits), len(y))
    for fold, (train, _) in enumerate(splits):
        weights[fold, train] = 1
    solver = Solver(rows)
    path = solver.fit(codes, classes, Cs.tolist(), weights)
    accuracy = np.zeros(len(Cs))
    for fold, (_, held) in enumerate(splits):
        coef = torch.stack([one.coef[fold] for one in path]).numpy().astype(X.dtype)
        intercept = torch.stack([one.intercept[fold] for one in path]).numpy()
        logits = np.tensordot(X[held], coef, (1, 2)) + intercept  # of each row, C and class
        said = logits.argmax(2) if classes > 2 else logits[:, :, 0] > 0
        accuracy += (said == y[held, None]).mean(0) / len(splits)
    best = float(Cs[int(accuracy.argmax())])
    (final,) = solver.fit(codes, classes, [best])
    return {"path": path, "accuracy": accuracy, "C": best, "final": final}


def path(repeats: int) -> dict[str, Any]:
    """Ten C by five folds."""
    return grid(repeats, 20_000, 2048, 10, np.logspace(-5, 0, 10))


def wide(repeats: int) -> dict[str, Any]:
    """Twenty C by five folds, VGG16's `features` of 1,481 images."""
    return grid(repeats, 1481, 25_088, 2, np.logspace(-6, 1, 20))


def stack(repeats: int) -> dict[str, Any]:
    """64 linear heads at once, beside one of them and all of them in sequence."""
    return {
        "1200 x 1280 x 5": _stack(repeats, 1200, 1280, 5, 20),
        "20000 x 2048 x 10": _stack(repeats, 20_000, 2048, 10, 1),
    }


def _stack(repeats: int, n: int, d: int, classes: int, epochs: int) -> dict[str, Any]:
    X, y = made_up(n, d, classes)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    rows, targets = ResidentRows(torch.from_numpy(X)), torch.from_numpy(y)
    train, val = np.arange(n // 5, n), np.arange(n // 5)
    problems = [
        Problem(train, val, lr, decay)
        for lr in np.geomspace(1e-5, 1e-2, 8).tolist()
        for decay in np.geomspace(1e-5, 1e-1, 8).tolist()
    ]
    shape = Shape((d, classes), epochs, 64)

    def all_at_once() -> list[Trained]:
        return train_stacked(rows, targets, shape, problems)

    def in_sequence() -> list[Trained]:
        return [train_stacked(rows, targets, shape, [problem])[0] for problem in problems]

    def one() -> list[Trained]:
        return train_stacked(rows, targets, shape, problems[36:37])

    seconds: dict[str, list[float]] = {"one": [], "64 at once": [], "64 in sequence": []}
    one()
    for _ in range(repeats):
        seconds["one"].append(timed(one)[0])
        took, stacked = timed(all_at_once)
        seconds["64 at once"].append(took)
        took, alone = timed(in_sequence)
        seconds["64 in sequence"].append(took)
        print(seconds, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    apart = max(
        float((first.layers[0][0] - second.layers[0][0]).abs().max())
        for first, second in zip(stacked, alone, strict=True)
    )
    return {
        "seconds": seconds, "medians": medians, "epochs": epochs,
        "times_one": medians["64 at once"] / medians["one"],
        "share_of_sequence": medians["64 at once"] / medians["64 in sequence"],
        "largest_difference_of_a_weight": apart,
    }  # fmt: skip


def knn(repeats: int, n: int = 50_000, d: int = 2048, queries: int = 5000) -> dict[str, Any]:
    """The 20 nearest of 50,000 rows."""
    X, y = made_up(n + queries, d, 10)
    seconds: dict[str, list[float]] = {"featpipe": [], "scikit-learn": []}
    for _ in range(repeats):
        took, mine = timed(lambda: make_head("knn").fit(X[:n], y[:n]).predict(X[n:]))
        seconds["featpipe"].append(took)
        took, theirs = timed(lambda: _their_votes(X[:n], y[:n], X[n:]))
        seconds["scikit-learn"].append(took)
        print(seconds, flush=True)
    return _compared(seconds) | {
        "rows": n,
        "queries": queries,
        "equal": float((mine == theirs).mean()),
    }


def _their_votes(X: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
    model = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute", n_jobs=2).fit(X)
    distance, rows = model.kneighbors(queries)
    votes = np.zeros((len(queries), int(y.max()) + 1))
    np.add.at(votes, (np.arange(len(queries))[:, None], y[rows]), np.exp(-distance / 0.07))
    return votes.argmax(axis=1)


def _compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    share = medians["featpipe"] / medians["scikit-learn"]
    return {"seconds": seconds, "medians": medians, "share_of_time": share}


SECTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "single": single, "easy": lambda repeats: single(repeats, apart=3.0),
    "path": path, "wide": wide, "stack": stack, "knn": knn,
}  # fmt: skip


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    for name in arguments.only:
        found = SECTIONS[name](arguments.repeats)
        print(name, json.dumps(found), flush=True)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known |= {name: found, "machine": machine_facts()}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
