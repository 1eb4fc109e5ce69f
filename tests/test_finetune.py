"""Fine-tuning from a cut: from images to a classifier, and on after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_cli import invoke

from featpipe.classifier import Classifier
from featpipe.errors import FeatpipeError, HeadError, LayerError, SettingsError, SplitError
from featpipe.finetune import finetune
from featpipe.settings import ExtractSettings, ImageSettings, TrainSettings

NET, CUT = "squeezenet1_1@random", "features.9"
CPU = TrainSettings(device="cpu", test=0.2)
SMALL = ExtractSettings(
    input_size=48, batch_size=4, precision="float32", decode="exact", dtype="float16"
)
QUICK = {"epochs": 3, "lr": 1e-3, "precision": "float32"}


def test_activations_are_computed_once_and_the_result_is_left(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "featpipe")
    done: list[int] = []

    def report(images: int, _: int) -> None:
        done.append(images)

    classifier, result = finetune(
        shapes, NET, CUT, tmp_path, CPU, SMALL, on_progress=report, **QUICK
    )
    assert done[-1] == 36
    assert "36 images, 384x2x2 values of features.9 each: 0.00 GB of float16" in caplog.text
    assert result.conditions["options"]["train"] == "all"
    assert result.conditions["spec"]["dtype"] == "float16"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"features.h5", "classifier.safetensors", "result.json", "split.csv"}
    read = Classifier.load(tmp_path / "classifier.safetensors")
    assert read.classes == classifier.classes
    done.clear()
    again, _ = finetune(shapes, NET, CUT, tmp_path, CPU, SMALL, on_progress=report, **QUICK)
    assert done == []
    for name, array in classifier.head.arrays().items():
        assert np.array_equal(array, again.head.arrays()[name]), name


def test_what_cannot_be_done_is_refused_before_anything_is_computed(
    shapes: Path, tmp_path: Path
) -> None:
    wrong: list[tuple[str, str, type[FeatpipeError], dict[str, object]]] = [
        ("densenet121@random", "features.denseblock3.denselayer5", LayerError, {}),
        (NET, "features.99", LayerError, {}),
        (NET, CUT, HeadError, {"epochs": 0}),
        (NET, CUT, HeadError, {"flux": 1}),
    ]
    for backbone, cut, error, options in wrong:
        with pytest.raises(error):
            finetune(shapes, backbone, cut, tmp_path / "out", CPU, SMALL, **options)
    with pytest.raises(SettingsError, match="cut"):
        finetune(shapes, NET, CUT, tmp_path / "out", replace(CPU, layer=CUT), SMALL)
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_trained_on_are_refused_before_any_is_computed(
    shapes: Path, tmp_path: Path
) -> None:
    table = tmp_path / "images.csv"
    rows = sorted(path.relative_to(shapes) for path in shapes.glob("*/*"))
    for names, said in (
        (rows[:6], "only one class among the training images: circle"),
        ([rows[0], rows[1], rows[-2], rows[-1]], "cannot give 20% away"),
    ):
        lines = [f"{shapes / name},{name.parent}" for name in names]
        table.write_text("\n".join(["path,label", *lines]))
        outside = ImageSettings(allow_outside=True)
        with pytest.raises(SplitError, match=said):
            finetune(table, NET, CUT, tmp_path / "out", CPU, SMALL, outside)
    table.write_text("\n".join(["path", *(str(shapes / name) for name in rows)]))
    with pytest.raises(SplitError, match="None of the images has a label"):
        finetune(table, NET, CUT, tmp_path / "out", CPU, SMALL, outside)
    strict = replace(CPU, val=0.0, min_precision=0.9)
    with pytest.raises(SplitError, match="fitted on validation rows, and there are none"):
        finetune(shapes, NET, CUT, tmp_path / "out", strict, SMALL)
    assert not (tmp_path / "out").exists()


def test_batches_that_batch_norm_cannot_learn_from_are_one_message(
    shapes: Path, tmp_path: Path
) -> None:
    common = ["-b", "resnet18@random", "--cut", "layer3", "--epochs", "1", "--device", "cpu",
              "--batch-size", "1"]  # fmt: skip
    tiny, out = [*common, "--input-size", "32"], tmp_path / "out"
    done = invoke("finetune", shapes, *tiny, "-o", out, rc=1)
    said = " ".join(done.stderr.split())
    assert "Batches of 1 cannot be trained on" in said
    assert "--batch-size above 1" in said
    assert "--freeze-norm" in said
    assert not out.exists()
    frozen = invoke("finetune", shapes, *tiny, "-o", out, "--freeze-norm")
    assert "Kept: epoch 1" in frozen.stdout
    done = invoke("train-head", out / "features.h5", "--head", "tail", "--train", "all", "--device",
                  "cpu", "--batch-size", "1", "-o", tmp_path / "head", rc=1)  # fmt: skip
    assert "Batches of 1 cannot be trained on" in " ".join(done.stderr.split())


def test_batches_of_one_are_trained_on_where_a_channel_has_several_values(
    shapes: Path, tmp_path: Path
) -> None:
    settings = replace(SMALL, input_size=64)
    options = {**QUICK, "epochs": 1, "batch_size": 1}
    _, result = finetune(shapes, "resnet18@random", "layer3", tmp_path, CPU, settings, **options)
    assert len(result.curves) == 1


def test_all_views_count_in_what_is_to_be_stored(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "featpipe")
    viewed = replace(SMALL, input_size=96, views=40, augment="HorizontalFlip")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(shapes, NET, CUT, tmp_path, CPU, viewed, on_progress=stop)
    # 36 x 40 x 384 x 5 x 5 halves
    assert "36 images in 40 views, 384x5x5 values of features.9 each: 0.03 GB" in caplog.text


SCRIPT = """
import sys
from pathlib import Path
import featpipe.train
from featpipe import checkpoint
from featpipe.finetune import finetune
sys.path.insert(0, {tests!r})
from test_finetune import CPU, CUT, NET, QUICK, SMALL
checkpoint.SHARE = 1e9
load = checkpoint.Checkpoints.load
def loaded(self, key):
    state = load(self, key)
    if state:
        print("after", len(state["curves"]), flush=True)
    return state
checkpoint.Checkpoints.load = loaded
checkpoint.SECONDS = 0.0
options = dict(QUICK, epochs=6, batch_size=5)
finetune({images!r}, NET, CUT, sys.argv[1], CPU, SMALL,
         on_epoch=lambda row: print(int(row["epoch"]), flush=True), **options)
"""


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    shapes: Path, tmp_path: Path
) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), images=str(shapes))

    def begin(out: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script, str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})

    whole = begin("whole")
    assert whole.communicate(timeout=120)[0].split() == list("123456")
    killed = begin("killed")
    assert killed.stdout is not None
    while killed.stdout.readline().strip() != "2":
        pass
    ended = time.monotonic() + 30
    while not list((tmp_path / "killed" / "unfinished").glob("[!.]*.pt")):
        assert time.monotonic() < ended
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "classifier.safetensors").exists()
    again = begin("killed")
    told = again.communicate(timeout=120)[0].split()
    assert told[0] == "after"
    assert int(told[1]) >= 1
    assert told[2:] == list("123456")
    assert not (tmp_path / "killed" / "unfinished").exists()
    first, second = (
        load_file(tmp_path / out / "classifier.safetensors") for out in ("whole", "killed")
    )
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name


def test_the_command_leaves_what_train_head_leaves(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["--input-size", "48", "--epochs", "2", "--device", "cpu", "--lr", "1e-3"]
    done = invoke("finetune", shapes, "-b", NET, "--cut", CUT, "-o", out, *common, "--json")
    document = json.loads(done.stdout)
    assert document["conditions"]["options"]["epochs"] == 2
    assert document["conditions"]["layer"] == "features.9.cat"
    names = {path.name for path in out.iterdir()}
    assert names >= {"classifier.safetensors", "result.json", "split.csv", "curves.json",
                     "curves.png", "reliability.png", "features.h5"}  # fmt: skip
    assert "unfinished" not in names
    predicted = invoke("predict", out / "classifier.safetensors", shapes / "circle").stdout
    assert len(predicted.splitlines()) == 13
    text = invoke("train-head", out / "features.h5", "--head", "tail", "--train", "last", "-o",
                  tmp_path / "last", "--epochs", "1", "--device", "cpu").stdout  # fmt: skip
    assert "Kept: epoch 1" in text
    assert "1,539 parameters" in text


def test_an_interrupted_command_says_how_to_go_on(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "unfinished").mkdir(parents=True)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featpipe.finetune.finetune", interrupted)
    done = invoke("finetune", shapes, "-b", NET, "--cut", CUT, "-o", tmp_path / "out", rc=130)
    assert "the same command goes on from there" in done.stderr.replace("\n", " ")


def test_a_cut_that_cannot_be_is_one_message(shapes: Path, tmp_path: Path) -> None:
    done = invoke("finetune", shapes, "-b", "densenet121@random", "--input-size", "64", "--cut",
                  "features.denseblock3.denselayer5", "-o", tmp_path / "out", rc=1)  # fmt: skip
    assert "nearest layers it can be cut at" in done.stderr.replace("\n", " ")
