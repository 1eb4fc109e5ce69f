"""The command line: what goes to stdout, what to stderr, and how it ends."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from featpipe.cli import cli
from featpipe.cli._output import print_table

DATA = Path(__file__).parents[1] / "data"
SHAPES = str(DATA / "shapes")
COMMANDS = cli.list_commands(None)  # type: ignore[arg-type]
NET = "squeezenet1_1@random"


def invoke(*arguments: object, rc: int = 0) -> Result:
    """Run a command in this process and check how it ends."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == rc, result.output
    return result


def shell(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "featpipe", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )


@dataclass(frozen=True)
class Run:
    """Files of one run over the sample images."""

    features: Path
    classifier: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Extracted and trained once."""
    folder = tmp_path_factory.mktemp("cli")
    features, out = folder / "f.h5", folder / "head"
    invoke("extract", SHAPES, "--backbone", "pixels", "-o", features)
    invoke("train-head", features, "-o", out, "--epochs", 8, "--device", "cpu")
    return Run(features, out / "classifier.safetensors")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = invoke(command, "--help")
    assert "Usage:" in result.stdout
    listed = [line for line in invoke("--help").stdout.splitlines() if f"  {command} " in line]
    assert len(listed[0].split()) > 3  # a name and a sentence


def test_every_option_says_what_it_is_for_or_names_a_head_parameter() -> None:
    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help, name
        bare = {o.name for o in command.params if o.param_type_name == "option" and not o.help}
        assert bare <= {
            "dropout",
            "optimizer",
            "weight_decay",
            "epochs",
            "batch_size",
            "standardize",
        }


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, featpipe\n"
        "from featpipe.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'h5py', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-head" in done.stdout


def test_the_whole_pipeline_as_a_user_runs_it(tmp_path: Path) -> None:
    extracted = shell("extract", SHAPES, "--backbone", "pixels", "--json", cwd=tmp_path)
    assert extracted.returncode == 0, extracted.stderr
    assert json.loads(extracted.stdout)["path"] == "shapes-pixels.h5"
    trained = shell(
        "train-head", "shapes-pixels.h5", "--epochs", "8", "--device", "cpu", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    made = tmp_path / "shapes-pixels-linear"
    assert {path.name for path in made.iterdir()} == {
        "report.html",
        "results.json",
        "results.csv",
        "thumbnails",
        "classifier.safetensors",
        "result.json",
        "curves.json",
        "curves.png",
        "reliability.png",
        "split.csv",
    }
    predicted = shell(
        "predict", str(made / "classifier.safetensors"), SHAPES, cwd=tmp_path,
        PYTHONIOENCODING="utf-8",
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    rows = list(csv.DictReader(io.StringIO(predicted.stdout.decode("utf-8"), newline="")))
    assert len(rows) == 36
    assert b"Traceback" not in extracted.stderr + trained.stderr + predicted.stderr


def test_json_is_one_document_and_nothing_else_is_on_stdout(run: Run, tmp_path: Path) -> None:
    def document(*arguments: object) -> Any:
        return json.loads(invoke(*arguments, "--json").stdout)

    extracted = document("extract", SHAPES, "-b", "pixels", "-o", tmp_path / "f.h5")
    assert extracted["rows"] == 36
    assert extracted["classes"] == {"circle": 12, "square": 12, "triangle": 12}
    info = document("info", tmp_path / "f.h5")
    assert info == extracted
    assert document("info", run.classifier)["classes"] == ["circle", "square", "triangle"]
    layers = document("layers", NET, "--input-size", 64)
    assert layers["layers"][layers["default"]]
    assert document("backbones", "--source", "pixels") == {"pixels": ["pixels"]}
    trained = document(
        "train-head", run.features, "-o", tmp_path / "h", "--epochs", 3, "--device", "cpu"
    )
    assert trained["scores"]["train"]["n"] == 29
    assert len(trained["curves"]) == 3
    predicted = document("predict", run.classifier, SHAPES)
    assert len(predicted["predictions"]) == 36
    compared = document(
        *("compare", SHAPES, "-b", "pixels", "--no-scratch", "-o", tmp_path / "c"),
        *("--device", "cpu", "--folds", 2, "--budgets", ""),
    )
    assert [route["name"] for route in compared["routes"]] == ["pixels + linear"]


def test_text_names_what_was_made(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "g.h5"
    assert "36 of 36 images" in invoke("extract", SHAPES, "-b", "pixels", "-o", out).stdout
    cache = invoke("info", run.features).stdout
    for text in ("36 rows", "circle 12", "pixels:pixels", "flatten (3072,)"):
        assert text in cache
    assert "linear on flatten" in invoke("info", run.classifier).stdout
    assert "(default)" in invoke("layers", NET, "--input-size", 64).stdout
    assert "squeezenet1_1\n" in invoke("backbones", "squeezenet").stdout
    result = invoke("train-head", run.features, "--head", "sklearn-logistic", "-o", tmp_path / "h")
    assert "Confusion" in result.stdout
    assert f"Saved in {tmp_path / 'h'}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "nowhere", "-b", "pixels"], "Nothing of that name exists"),
        (["extract", SHAPES, "-b", "pixel"], "pixel"),
        (["extract", SHAPES, "-b", "squeezenet1_2@random"], "squeezenet1_1"),
        (["extract", SHAPES, "-b", NET, "--layer", "nope", "--input-size", "64"], "no layer"),
        (["info", "nothing.h5"], "no feature cache"),
        (["info", "nothing.safetensors"], "no classifier file"),
        (["train-head", "nothing.h5"], "no feature cache"),
        (["predict", "nothing.safetensors", SHAPES], "no classifier file"),
        (["layers", "squeezenet1_2"], "squeezenet1_1"),
        (["backbones", "--source", "nowhere"], "nowhere"),
        (["compare", "nowhere", "-b", "pixels"], "Nothing of that name exists"),
    ],
)
def test_what_the_user_got_wrong_is_one_message_and_exit_1(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments, rc=1)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["extract", SHAPES],
        ["extract", SHAPES, "-b", "pixels", "--pool", "nope"],
        ["train-head"],
        ["train-head", "f.h5", "--hidden", "a,b"],
        ["train-head", "f.h5", "--epochs", "many"],
        ["predict", "c.safetensors"],
        ["compare", SHAPES],
        ["info", "--nope"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = invoke(*arguments, rc=2)
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_an_error_in_a_process_of_its_own_has_no_traceback(run: Run, tmp_path: Path) -> None:
    done = shell("train-head", str(run.features), "--set", "flux=1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train-head", "--lr -1"),
        ("train-head", "--batch-size 0"),
        ("train-head", "--weight-decay -1"),
        ("train-head", "--head mlp --dropout 2"),
        ("train-head", "--head mlp --hidden=-5"),
        ("train-head", "--head sklearn-logistic --set C=abc"),
        ("train-head", "--seed 99999999999"),
        ("predict", "--top 0"),
        ("predict", "--top -1"),
        ("predict", "--workers -1"),
        ("predict", "--batch-size -1"),
        ("extract", "--workers -1"),
        ("extract", "--batch-size -1"),
        ("extract", "--input-size 0"),
        ("extract", "--input-size -3"),
    ],
)
def test_impossible_values_are_messages(
    run: Run, command: str, options: str, tmp_path: Path
) -> None:
    arguments = {
        "train-head": [str(run.features), "-o", str(tmp_path / "o")],
        "predict": [str(run.classifier), SHAPES],
        "extract": [SHAPES, "-b", "pixels", "-o", str(tmp_path / "f.h5")],
    }[command]
    result = CliRunner().invoke(cli, [command, *arguments, *options.split()])
    assert isinstance(result.exception, SystemExit), result.exception or result.stdout[:80]
    assert result.exit_code in (1, 2)


def test_extracting_again_computes_nothing(tmp_path: Path) -> None:
    arguments = ("extract", SHAPES, "-b", "pixels", "-o", tmp_path / "f.h5")
    first = invoke(*arguments)
    with h5py.File(tmp_path / "f.h5") as file:
        features = file["features"]["flatten"][:].tobytes()
    second = invoke(*arguments)
    assert "already computed" not in first.stderr
    assert "36 of 36 rows are already computed" in second.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"]["flatten"][:].tobytes() == features


def test_other_settings_on_an_existing_file_are_named(run: Run) -> None:
    before = run.features.read_bytes()
    result = invoke(
        "extract", SHAPES, "-b", "pixels", "-o", run.features, "--dtype", "float16", rc=1
    )
    assert "dtype: cached float32, requested float16" in result.stderr
    assert run.features.read_bytes() == before


def test_on_error_raise_names_the_file(tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    result = invoke(
        "extract", DATA / "broken", "-b", "pixels", "-o", out, "--on-error", "raise", rc=1
    )
    names = [path.name for path in (DATA / "broken").iterdir()]
    assert any(name in result.stderr for name in names)
    assert not out.exists()


def test_broken_images_are_recorded_with_reasons(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(DATA / "broken", mixed / "bad")
    shutil.copytree(DATA / "shapes" / "circle", mixed / "good")
    result = invoke("extract", mixed, "-b", "pixels", "-o", tmp_path / "f.h5", "--json")
    lost = {row["id"]: row["reason"] for row in json.loads(result.stdout)["without_features"]}
    assert set(lost) == {f"bad/{path.name}" for path in (DATA / "broken").iterdir()}
    assert all(lost.values())


def test_quiet_prints_no_notes(tmp_path: Path) -> None:
    arguments = ("extract", SHAPES, "-b", "pixels", "-o", tmp_path / "f.h5")
    invoke("-q", *arguments)
    assert invoke("-q", *arguments).stderr == ""


def test_predict_writes_one_csv_row_an_image_whatever_it_is_called(
    run: Run, tmp_path: Path
) -> None:
    names = ['a,b "c".jpg', "[red]x[bold].jpg", "새 ä.jpg", "line\nbreak.jpg", "$x^2$.jpg"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in names:
        shutil.copy(DATA / "shapes" / "circle" / "circle_01.jpg", folder / name)
    (folder / "empty.jpg").write_bytes(b"")
    out = tmp_path / "p.csv"
    result = invoke("predict", run.classifier, folder, "-o", out, "--top", 2)
    with out.open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*names, "empty.jpg"}
    assert list(rows["empty.jpg"].values())[1:] == ["", "", "", "", "", "the file is empty"]
    assert "1 of 6 images could not be used" in result.stderr
    for name in names:
        first, second = (float(rows[name][f"probability_{rank}"]) for rank in (1, 2))
        assert 1 >= first >= second >= 0
        assert rows[name]["label_1"] != rows[name]["label_2"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 need a Unix disk")
def test_class_names_that_are_not_utf_8_go_through_every_stage(tmp_path: Path) -> None:
    for name, shape in ((b"caf\xe9", "circle"), (b"sq", "square")):
        folder = os.path.join(os.fsencode(tmp_path), b"images", name)
        shutil.copytree(os.fsencode(DATA / "shapes" / shape), folder)
    invoke("extract", tmp_path / "images", "-b", "pixels", "-o", tmp_path / "f.h5")
    trained = shell("train-head", "f.h5", "-o", "h", "--epochs", "3", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr.decode()[-300:]
    classifier, grid = "h/classifier.safetensors", "g.png"
    predicted = shell("predict", classifier, "images", "--grid", grid, cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr.decode()[-300:]
    assert len(predicted.stdout.splitlines()) == 25


def test_files_and_folders_may_be_mixed(run: Run) -> None:
    one = DATA / "shapes" / "square" / "square 05.jpg"
    result = invoke("predict", run.classifier, one, DATA / "shapes" / "circle", "--json")
    ids = [row["id"] for row in json.loads(result.stdout)["predictions"]]
    assert len(set(ids)) == 13
    assert ids[0].endswith("square 05.jpg")


def test_json_can_be_written_to_a_file_too(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    printed = invoke("predict", run.classifier, SHAPES, "--json", "-o", out).stdout
    text = out.read_text(encoding="utf-8") if out.exists() else printed
    assert len(json.loads(text)["predictions"]) == 36
    assert out.exists()


def test_the_grid_is_a_png_with_room_for_its_pictures(run: Run, tmp_path: Path) -> None:
    heights = []
    for count in (6, 12):
        grid = tmp_path / f"{count}.png"
        arguments = ("--grid", grid, "--grid-size", count, "-o", tmp_path / "p.csv")
        invoke("predict", run.classifier, SHAPES, *arguments)
        with Image.open(grid) as image:
            assert image.format == "PNG"
            assert image.width > 1000
            heights.append(image.height)
    assert heights[1] == 2 * heights[0]


def test_compare_writes_its_routes_as_csv_and_json(tmp_path: Path) -> None:
    out = tmp_path / "c"
    result = invoke(
        *("compare", DATA / "shapes.csv", "--root", SHAPES, "-b", NET, "--input-size", 64),
        *("--scratch-epochs", 1, "--scratch-input-size", 32, "-o", out, "--device", "cpu"),
        *("--folds", 3, "--route", "pixels=centroid"),
    )
    wanted = {"CNN from scratch", "pixels + linear", "squeezenet1_1 (random weights) + linear"}
    wanted |= {"pixels + centroid"}
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        assert {row["route"] for row in csv.DictReader(file)} == wanted
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {route["name"] for route in document["routes"]} == wanted
    assert document["verdict"]["sentences"][0] in result.stdout
    assert all(name in result.stdout for name in wanted)
    assert "random weights" in result.stderr


def test_class_names_are_never_markup_and_tables_are_never_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["[/x]", "[red]", ":cat:", "a class name that is longer than a narrow terminal is wide"]
    print_table(names, [names, names])
    printed = capsys.readouterr().out
    assert all(printed.count(name) == 3 for name in names)


def test_predict_gives_a_reason_for_each_file_it_cannot_use(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    good = next(Path(SHAPES).rglob("*.jpg"))
    result = invoke("predict", run.classifier, tmp_path / "empty.jpg", good, "--json")
    first, second = json.loads(result.stdout)["predictions"]
    assert first["label"] is None
    assert first["reason"] == "the file is empty"
    assert second["label"] in ("circle", "square", "triangle")
