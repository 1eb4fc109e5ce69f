"""Features that do not fit in memory give what features in memory give."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featpipe.cache import FeatureCache
from featpipe.errors import HeadError
from featpipe.heads import make_head
from featpipe.settings import TrainSettings
from featpipe.streamed import ResidentRows, StreamedRows, moments, scales
from featpipe.train import train_head
from featpipe.transfer import import_features
from featpipe.whitening import Covariance, Rows

LITTLE = 1 / 1024  # GiB: 1 MiB, a seventh of the features below


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """3,000 rows of 640 features, 7.3 MiB, in three overlapping classes."""
    folder = tmp_path_factory.mktemp("streamed")
    random = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    X = random.normal(size=(3000, 640)) + 0.12 * random.normal(size=(3, 640))[labels]
    np.save(folder / "x.npy", X.astype(np.float32))
    names = "".join(f"{row}.jpg,{'abc'[label]}\n" for row, label in enumerate(labels))
    (folder / "t.csv").write_text("path,label\n" + names, encoding="utf-8")
    return import_features(folder / "x.npy", folder / "t.csv", folder / "f.h5", name="made-up")


def counted(X: np.ndarray, most_bytes: int) -> tuple[StreamedRows, list[int]]:
    """Rows of an array, and the list of how many were read each time."""
    reads: list[int] = []

    def read(rows: np.ndarray) -> np.ndarray:
        reads.append(len(rows))
        return X[rows]

    return StreamedRows(read, X.shape, most_bytes), reads


def test_mean_and_variance_are_those_of_all_rows() -> None:
    random = np.random.default_rng(0)
    X = (1000 + random.normal(size=(500, 7))).astype(np.float32)
    rows, _ = counted(X, 1000)
    used = np.flatnonzero(random.random(500) < 0.7)
    mean, scale = moments(X[used])
    found, variance = rows.moments(used)
    own_mean, own_scale = scales(found, np.sqrt(variance), X.dtype)
    np.testing.assert_allclose(own_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(own_scale, scale, rtol=1e-4)


@given(st.integers(1, 60), st.integers(1, 400), st.integers(0, 5))
def test_an_epoch_has_each_row_once_and_reads_little_more_than_once(
    n: int, most_bytes: int, seed: int
) -> None:
    X = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    rows, reads = counted(X, most_bytes)
    wanted = torch.arange(0, n, 1 + seed % 2)
    order = rows.shuffled(wanted, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == wanted.tolist()
    for batch in torch.split(order, 4):
        np.testing.assert_array_equal(rows.take(batch).numpy(), X[batch.numpy()])
    assert sum(reads) <= 2 * n


def test_orders_differ_from_epoch_to_epoch() -> None:
    rows, _ = counted(np.zeros((50, 2), np.float32), 100)
    generator = torch.Generator().manual_seed(0)
    first, second = (rows.shuffled(torch.arange(50), generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_what_is_held_stays_within_the_memory() -> None:
    X = np.zeros((400, 8), np.float32)
    rows, _ = counted(X, 4000)
    for row in torch.randperm(400, generator=torch.Generator().manual_seed(0)):
        rows.take(row[None])
        assert sum(part.nbytes for part in rows._held.values()) <= 4000


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("linear", {}),
        ("linear", {"optimizer": "sgd", "schedule": "cosine", "clip": 0.1, "label_smoothing": 0.1}),
        ("mlp", {"hidden": [7], "dropout": 0.0, "class_weight": "balanced"}),
    ],
)
def test_full_batches_from_disk_have_the_gradient_of_all_rows(
    head: str, options: dict[str, object]
) -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(80, 5)).astype(np.float32), np.arange(80) % 3
    X[:, 0] += 2 * (y == 1)
    common = {"batch_size": None, "epochs": 20, "lr": 0.05, "device": "cpu"} | options
    whole = make_head(head, common)
    whole.fit(X[:60], y[:60], validation=(X[60:], y[60:]))
    rows, reads = counted(X, 400)
    streamed = make_head(head, common)
    streamed.fit_streamed(rows, y, np.arange(60), np.arange(60, 80))
    assert max(reads) == rows.at_once == 2  # in thirty parts
    found, expected = streamed.arrays(), whole.arrays()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert [row["train_loss"] for row in streamed.curves_] == pytest.approx(
        [row["train_loss"] for row in whole.curves_], rel=1e-4
    )


@pytest.mark.parametrize("options", [{"batch_norm": True, "hidden": [4]}, {"mixup": 0.2}])
def test_a_batch_that_must_be_whole_and_does_not_fit_is_refused(options: dict[str, object]) -> None:
    rows, _ = counted(np.ones((60, 5), np.float32), 400)
    head = make_head("mlp", {"batch_size": None, "device": "cpu"} | options)
    with pytest.raises(HeadError, match=r"the 60 rows of a batch at once.* holds 20: lower"):
        head.fit_streamed(rows, np.arange(60) % 3, np.arange(60), np.arange(0))


def test_logistic_regression_is_the_same_from_disk(cache: FeatureCache) -> None:
    one, plain = train_head(cache, "logistic", TrainSettings(test=0.2))
    two, streamed = train_head(cache, "logistic", TrainSettings(test=0.2, memory=LITTLE))
    np.testing.assert_allclose(two.head.arrays()["coef"], one.head.arrays()["coef"], atol=2e-5)
    assert streamed.proba["test"] == pytest.approx(plain.proba["test"], abs=1e-4)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_perceptrons_from_disk_are_as_good(cache: FeatureCache, head: str) -> None:
    options = {"epochs": 6, "device": "cpu"}
    _, plain = train_head(cache, head, TrainSettings(test=0.2), **options)
    _, streamed = train_head(cache, head, TrainSettings(test=0.2, memory=LITTLE), **options)
    assert plain.scores["test"].accuracy > 0.75
    assert streamed.scores["test"].accuracy == pytest.approx(
        plain.scores["test"].accuracy, abs=0.06
    )


def test_a_sweep_over_folds_is_the_same_from_disk(cache: FeatureCache) -> None:
    sweep = {"C": [1e-4, 1e-2]}
    _, plain = train_head(cache, "logistic", TrainSettings(folds=3), sweep)
    _, streamed = train_head(cache, "logistic", TrainSettings(folds=3, memory=LITTLE), sweep)
    assert plain.sweep is not None
    assert streamed.sweep is not None
    for one, other in zip(plain.sweep.candidates, streamed.sweep.candidates, strict=True):
        assert one.folds["log_loss"] == pytest.approx(other.folds["log_loss"], abs=1e-4)
    assert streamed.sweep.best == plain.sweep.best


def test_stacked_perceptrons_over_folds_train_from_disk(cache: FeatureCache) -> None:
    settings = TrainSettings(folds=2, memory=LITTLE)
    _, result = train_head(cache, "linear", settings, {"lr": [1e-3, 1e-4]}, epochs=3)
    assert result.sweep is not None
    assert result.sweep.chosen.figure("accuracy").value > 0.7


def test_other_heads_say_what_they_need(cache: FeatureCache) -> None:
    with pytest.raises(HeadError, match=r"--memory"):
        train_head(cache, "lda", TrainSettings(memory=LITTLE))


def test_rows_in_memory_are_handed_out_as_they_are() -> None:
    X = torch.arange(12.0).view(6, 2)
    rows = ResidentRows(X.double())
    taken = rows.take(torch.tensor([4, 1]))
    assert taken.dtype == torch.float32
    assert taken.tolist() == [[8, 9], [2, 3]]
    order = rows.shuffled(torch.tensor([1, 3, 5]), torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == [1, 3, 5]


def test_the_cache_is_larger_than_the_memory(cache: FeatureCache) -> None:
    assert Path(cache.path).stat().st_size > 7 * LITTLE * 2**30


def test_the_solver_keeps_no_block_that_it_has_seen() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def blocks(size: int) -> Iterator[torch.Tensor]:
        for _ in range(20):
            block = torch.zeros(50, 8)
            seen.append(weakref.ref(block))
            yield block

    rows = Rows((1000, 8), blocks, "cpu", whole=False)
    Covariance.of(rows, torch.full((1000,), 1e-3, dtype=torch.float64), True)
    assert sum(one() is not None for one in seen) <= 1
