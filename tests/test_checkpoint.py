"""A training that is interrupted anywhere goes on, and ends as if it had not been."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featpipe.checkpoint import checkpointing, present
from featpipe.descent import Descent, Epochs, descend, seeded
from featpipe.streamed import ResidentRows

PLAIN = Descent(4, 8, 0.02)


class Interrupted(Exception):
    """As Ctrl-C would be, at a chosen moment."""


class Rows(ResidentRows):
    """Rows that are interrupted when so many batches have been taken."""

    def __init__(self, X: Tensor, most: int | None) -> None:
        super().__init__(X)
        self.left = most
        self.taken = 0

    def take(self, rows: Tensor, slot: int = 0) -> Tensor:
        if self.left is not None and self.taken >= self.left:
            raise Interrupted
        self.taken += 1
        return super().take(rows, slot)


def noisy(batch: Tensor) -> Tensor:
    """An augmentation that draws from the global generator, and mixes rows."""
    share = torch.rand(len(batch), 1)
    return share * batch + (1 - share) * batch[torch.randperm(len(batch))]


def network() -> nn.Module:
    """With dropout, and buffers that training changes."""
    return seeded(
        0,
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        ),
    )


def run(
    settings: Descent = PLAIN,
    most: int | None = None,
    on_epoch: object = None,
    views: int = 1,
    labels: Tensor | None = None,
    taken: list[int] | None = None,
) -> tuple[dict[str, Tensor], Epochs]:
    """Train on 40 images and validate on 12, which get worse; weights and curves."""
    generator = torch.Generator().manual_seed(1)
    if labels is None:
        labels = torch.arange(52) % 3
        labels[40:] = labels[40:].flip(0)
    X = torch.randn(52 * views, 5, generator=generator)
    X[::views] += 2 * torch.eye(3, 5)[labels]
    rows = Rows(X, most)
    trained = network()
    try:
        curves = descend(
            trained, rows, labels, torch.arange(40), torch.arange(40, 52), settings, views,
            augment=noisy, on_epoch=on_epoch,
        )  # fmt: skip
    finally:
        if taken is not None:
            taken.append(rows.taken)
    return trained.state_dict(), curves


def same(one: tuple[dict[str, Tensor], Epochs], other: tuple[dict[str, Tensor], Epochs]) -> bool:
    """Bit for bit."""
    tensors = all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    return tensors and one[1] == other[1]


VARIANTS = {
    "adam": PLAIN,
    "adamw": replace(PLAIN, optimizer="adamw", schedule="one-cycle", weight_decay=0.1),
    "sgd": replace(PLAIN, optimizer="sgd", schedule="cosine", clip=0.5),
    "patience": replace(PLAIN, epochs=30, lr=0.1, patience=2, label_smoothing=0.1),
    "bfloat16": replace(PLAIN, precision="bfloat16"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_between_any_two_steps_it_ends_the_same(variant: str, tmp_path: Path) -> None:
    settings = VARIANTS[variant]
    if variant == "patience":
        assert len(run(settings)[1]) < 30
    taken: list[int] = []
    whole = run(settings, taken=taken)
    for most in (0, 4, 5, 8, 12):  # within an epoch, before its validation, between two
        folder = tmp_path / str(most)
        with checkpointing(folder, seconds=0), pytest.raises(Interrupted):
            run(settings, most)
        with checkpointing(folder, seconds=0):
            assert same(run(settings, taken=taken), whole), most
        assert most == 0 or taken[-1] < taken[0]


def test_interrupted_again_and_again_it_ends_the_same(tmp_path: Path) -> None:
    settings, times = replace(PLAIN, epochs=5), 0
    whole = run(settings, views=3)
    while times < 100:
        with checkpointing(tmp_path, seconds=0):
            try:
                found = run(settings, 2, views=3)
            except Interrupted:
                times += 1
                continue
        break
    assert same(found, whole)
    assert times > 10


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_interrupted_in_a_report_it_ends_the_same_and_reports_every_epoch(
    epoch: int, tmp_path: Path
) -> None:
    def report(row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise Interrupted

    with checkpointing(tmp_path, seconds=0):
        with pytest.raises(Interrupted):
            run(on_epoch=report)
        reported: Epochs = []
        found = run(on_epoch=reported.append)
    assert same(found, run())
    assert reported == found[1]


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    taken: list[int] = []
    with checkpointing(tmp_path, seconds=0):
        first = run()
        assert same(run(taken=taken), first)
    assert taken == [0]


def test_a_training_of_milliseconds_leaves_nothing(tmp_path: Path) -> None:
    with checkpointing(tmp_path / "unfinished"):
        run()
    assert not (tmp_path / "unfinished").exists()


def test_several_trainings_share_a_folder(tmp_path: Path) -> None:
    other = replace(PLAIN, seed=5)
    with checkpointing(tmp_path, seconds=0) as kept:
        for settings in (PLAIN, other):
            with pytest.raises(Interrupted):
                run(settings, 9)
        assert len([*tmp_path.iterdir()]) == 2
        assert same(run(other), run(other))
        assert same(run(PLAIN), run(PLAIN))
        kept.clear()
    assert not tmp_path.exists()
    assert present() is None


def test_clearing_takes_nothing_of_others_away(tmp_path: Path) -> None:
    mine = ["best.pt", "notes.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    with checkpointing(tmp_path, seconds=0) as kept:
        run()
        kept.clear()
    assert sorted(file.name for file in tmp_path.iterdir()) == mine


@contextmanager
def begun(folder: Path) -> Iterator[None]:
    """A training that was interrupted in its third epoch."""
    with checkpointing(folder, "these images", seconds=0), pytest.raises(Interrupted):
        run(most=20)
    yield


@pytest.mark.parametrize("other", ["identity", "settings", "labels", "views"])
def test_what_is_another_training_begins_anew(other: str, tmp_path: Path) -> None:
    changed: dict[str, object] = {
        "settings": {"settings": replace(PLAIN, lr=0.03)},
        "labels": {"labels": (torch.arange(52) + 1) % 3},
        "views": {"views": 2},
    }.get(other, {})  # type: ignore[assignment]
    whole: list[int] = []
    plain = run(**changed, taken=whole)
    with begun(tmp_path):
        name = "other images" if other == "identity" else "these images"
        taken: list[int] = []
        with checkpointing(tmp_path, name):
            assert same(run(**changed, taken=taken), plain)
    assert taken == whole


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "replaced", "folder"])
def test_a_damaged_checkpoint_is_told_of_and_not_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with begun(tmp_path):
        (file,) = tmp_path.iterdir()
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 4
        kept = {"truncated": content[:-100], "emptied": b"", "replaced": b"nonsense"}
        file.unlink()
        if damage == "folder":
            file.mkdir()
        else:
            file.write_bytes(kept.get(damage, content))
        with checkpointing(tmp_path, "these images"):
            assert same(run(), run())
    assert "begins anew" in caplog.text


def test_a_folder_that_cannot_be_written_to_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with checkpointing(tmp_path / "file", seconds=0):
        found = run()
    assert same(found, run())
    told = [record.getMessage() for record in caplog.records]
    assert sum("cannot be saved" in text for text in told) == 1


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes")
def test_a_full_disk_stops_nothing_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with checkpointing(tmp_path / "unfinished", seconds=0):
            found = run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(found, run())
    assert "cannot be saved" in caplog.text
    assert [*(tmp_path / "unfinished").iterdir()] == []


def test_what_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    with begun(tmp_path):
        (file,) = tmp_path.iterdir()
        (tmp_path / f".{file.name}.99999.tmp").write_bytes(bytes(1000))
        with checkpointing(tmp_path, "these images", seconds=0):
            run()
        assert [*tmp_path.iterdir()] == [file]


def test_going_on_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "featpipe"),
        begun(tmp_path),
        checkpointing(tmp_path, "these images"),
    ):
        run()
    assert "Going on" in caplog.text


def test_time_that_saving_takes_is_a_small_share(tmp_path: Path) -> None:
    with checkpointing(tmp_path, seconds=1e-9) as kept:
        assert kept.due
        kept.save("key", {"weights": torch.zeros(1 << 20)})
        assert not kept.due
        assert kept.load("key")["weights"].shape == (1 << 20,)


SCRIPT = """
import sys, time, torch
from dataclasses import replace
import test_checkpoint as here
from featpipe.checkpoint import checkpointing
from featpipe.durable import put
from pathlib import Path

plain = here.noisy
def noisy(batch):
    time.sleep(0.004)
    return plain(batch)
noisy.__qualname__ = "noisy"
here.noisy = noisy
out = Path(sys.argv[1])
print("begun", flush=True)
with checkpointing(out / "unfinished", seconds=0) as kept:
    state, curves = here.run(replace(here.PLAIN, epochs=30))
torch.save((state, curves), out / "made.pt")
kept.clear()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_at_any_moment_it_ends_as_one_that_never_was(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    when, kills = random.Random(0), 0
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    for attempt in range(30):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if attempt < 4:
            time.sleep(when.uniform(0.02, 0.4))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        process.communicate()
        if process.returncode == 0:
            break
    assert kills >= 2
    state, curves = torch.load(tmp_path / "made.pt", weights_only=True)
    assert same((state, curves), run(replace(PLAIN, epochs=30)))
    assert not (tmp_path / "unfinished").exists()


def test_an_interrupted_training_takes_as_long_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featpipe import checkpoint

    ticks = 0.0

    class Ticking(Rows):
        """A batch takes a second."""

        def take(self, rows: Tensor, slot: int = 0) -> Tensor:
            nonlocal ticks
            ticks += 1
            return super().take(rows, slot)

    monkeypatch.setitem(globals(), "Rows", Ticking)
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: ticks)
    took: dict[str, float] = {}
    every: list[tuple[str, list[int | None]]] = [("whole", [None]), ("resumed", [5, 6, None])]
    for name, interruptions in every:
        for most in interruptions:
            with checkpointing(tmp_path / name, seconds=0):
                begun = checkpoint.clock()
                try:
                    run(most=most)
                except Interrupted:
                    continue
                took[name] = checkpoint.clock() - begun
    # The batch that was interrupted is begun again.
    assert took == {"whole": 24, "resumed": 24}
