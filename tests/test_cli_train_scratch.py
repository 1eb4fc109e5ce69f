"""``featpipe train-scratch``: what it prints, leaves, and does after an interruption."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from test_cli import invoke

from featpipe import checkpoint
from featpipe.cli import cli
from featpipe.network_file import load_network
from featpipe.weights import read_tensors

TINY = ("--network", "small", "--widths", "4,6", "--input-size", 16, "--device", "cpu")
FILES = {
    "report.html", "results.json", "results.csv", "thumbnails",
    "network.safetensors", "result.json", "split.csv", "curves.json", "curves.png",
    "reliability.png",
}  # fmt: skip


def train(images: Path, out: Path, *more: object, rc: int = 0) -> Result:
    return invoke("train-scratch", images, "-o", out, *TINY, *more, rc=rc)


@pytest.fixture(scope="module")
def made(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run over the sample images."""
    out = tmp_path_factory.mktemp("scratch") / "out"
    return out, train(shapes, out, "--epochs", 3, "--test", 0.25)


def test_everything_that_was_learnt_is_in_the_folder(made: tuple[Path, Result]) -> None:
    out, _ = made
    assert {file.name for file in out.iterdir()} == FILES
    result = json.loads((out / "result.json").read_text())
    assert result["curves"] == json.loads((out / "curves.json").read_text())
    assert len(result["curves"]) == 3
    network = load_network(out / "network.safetensors")
    assert network.classes == ("circle", "square", "triangle")
    assert network.result["scores"] == result["scores"]
    with (out / "split.csv").open(newline="") as file:
        parts = [row["part"] for row in csv.DictReader(file)]
    for part, scores in result["scores"].items():
        assert parts.count(part) == scores["n"]
    for name in ("curves.png", "reliability.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300


def test_the_tables_are_those_of_heads(made: tuple[Path, Result]) -> None:
    _, found = made
    for text in ("val loss", "Kept: epoch", "ROC-AUC %", "By class (test)", "Confusion (test",
                 "Temperature", "small from scratch, 16 pixels"):  # fmt: skip
        assert text in found.stdout


def test_json_is_the_result_and_nothing_else(shapes: Path, tmp_path: Path) -> None:
    found = train(shapes, tmp_path / "o", "--epochs", 1, "--json")
    document = json.loads(found.stdout)
    assert document["out"] == str(tmp_path / "o")
    assert document["conditions"]["options"]["widths"] == [4, 6]
    assert document["scores"]["val"]["n"] > 0


def test_its_network_is_a_backbone_for_every_command(
    made: tuple[Path, Result], shapes: Path, tmp_path: Path
) -> None:
    backbone = f"checkpoint:{made[0] / 'network.safetensors'}"
    assert "flatten (default)" in invoke("layers", backbone).stdout
    features, head = tmp_path / "f.h5", tmp_path / "head"
    invoke("extract", shapes, "-b", backbone, "-o", features, "--device", "cpu")
    invoke("train-head", features, "--head", "ridge", "-o", head)
    found = invoke("predict", head / "classifier.safetensors", shapes, "--json")
    assert len(json.loads(found.stdout)["predictions"]) == 36


def test_without_validation_rows_there_is_no_reliability(shapes: Path, tmp_path: Path) -> None:
    train(shapes, tmp_path / "o", "--epochs", 1, "--val", 0)
    assert {file.name for file in (tmp_path / "o").iterdir()} == FILES - {"reliability.png"}


@pytest.mark.parametrize(
    ("options", "rc", "message"),
    [
        (("--widths", "four"), 2, "whole numbers"),
        (("--epochs", 0), 2, "x>=1"),
        (("--batch-size", 1), 2, "x>=2"),
        (("--lr", 0), 2, "x>="),
        (("--optimizer", "lion"), 2, "lion"),
        (("--network", "resnet19", "--widths", ""), 1, "resnet18"),
        (("--network", "two-layer"), 1, "widths are those of small"),
        (("--input-size", 4, "--widths", "4,4,4"), 1, "from 8 to"),
        (("--min-precision", 0.9, "--val", 0), 1, "validation rows"),
        (("--device", "abacus"), 1, "no device 'abacus'"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: tuple[object, ...], rc: int, message: str, shapes: Path, tmp_path: Path
) -> None:
    found = train(shapes, tmp_path / "o", *options, rc=rc)
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_a_file_in_the_place_of_the_folder_is_refused(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "names a folder" in train(shapes, tmp_path / "file", rc=2).stderr


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    out, options = tmp_path / "o", ("--epochs", 5)
    plain = tmp_path / "plain"
    train(shapes, plain, *options)
    save, times = checkpoint.Checkpoints.save, []

    def interrupt(self: checkpoint.Checkpoints, key: str, state: dict[str, Any]) -> None:
        save(self, key, state)
        times.append(key)
        if len(times) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, "save", interrupt)
        stopped = train(shapes, out, *options, rc=130)
    assert f"kept in {out / 'unfinished'}" in " ".join(stopped.stderr.split())
    assert (out / "unfinished").is_dir()
    assert "Going on" in train(shapes, out, *options).stderr
    same_folders(out, plain)


SCRIPT = """
import sys
from featpipe import checkpoint
from featpipe.cli import main
checkpoint.SECONDS = 0
sys.argv = ["featpipe", *sys.argv[1:]]
print("begun", file=sys.stderr, flush=True)
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_and_run_again_it_ends_as_one_that_never_was(shapes: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "o", tmp_path / "plain"
    options = (*TINY, "--epochs", 12, "--batch-size", 4)
    arguments = [str(part) for part in ("train-scratch", shapes, "-o", out, *options)]
    when, kills = random.Random(1), 0
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        if attempt < 2:
            while process.poll() is None and not (out / "unfinished").exists():
                time.sleep(0.005)
            time.sleep(when.uniform(0, 0.6) if attempt else 0.2)
            process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 1
    invoke("train-scratch", shapes, "-o", plain, *options)
    same_folders(out, plain)


def same_folders(one: Path, other: Path) -> None:
    assert {file.name for file in one.iterdir()} == FILES
    states = [read_tensors(folder / "network.safetensors")[0] for folder in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (one, other))
    assert first["curves"] == second["curves"]
    assert first["scores"] == second["scores"]
    assert (first["conditions"]["resumed"], second["conditions"]["resumed"]) == (True, False)


def test_other_images_do_not_go_on_where_these_were(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(checkpoint.Checkpoints, "clear", lambda self: None)
    train(shapes, tmp_path / "o", "--epochs", 2)
    copy = tmp_path / "copy"
    for file in shapes.rglob("*.*"):
        moved = copy / file.relative_to(shapes)
        moved.parent.mkdir(parents=True, exist_ok=True)
        moved.write_bytes(file.read_bytes())
    again = json.loads(train(copy, tmp_path / "o", "--epochs", 2, "--json").stdout)
    assert again["conditions"]["resumed"]
    Image.new("RGB", (20, 20)).save(copy / "circle" / "circle_01.jpg")
    changed = json.loads(train(copy, tmp_path / "o", "--epochs", 2, "--json").stdout)
    assert not changed["conditions"]["resumed"]


def test_the_command_is_listed_and_compare_takes_its_settings() -> None:
    assert "train-scratch" in cli.list_commands(None)  # type: ignore[arg-type]
    text = invoke("compare", "--help").stdout
    for name in ("network", "widths", "epochs", "no-scratch-augment", "input-size"):
        assert f"--{'' if 'no-' in name else 'scratch-'}{name}" in text
