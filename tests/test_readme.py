"""The README's commands and snippets work as they stand."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from featpipe.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.partition("#")[0].strip() for line in text.splitlines() if line.strip()]


COMMANDS = [line for line in shell_lines() if line.startswith("featpipe ")]


def test_it_opens_with_two_commands_that_do_all_the_set_up() -> None:
    first, second = [line for line in shell_lines() if "venv" in line]
    begin = "python3 -m venv .venv && .venv/bin/pip install "
    assert first == begin + ". && .venv/bin/featpipe demo"
    assert second == begin + "-e '.[test]' && .venv/bin/pytest"


def test_the_gate_runs_the_test_command_to_the_letter() -> None:
    (line,) = [line for line in README.splitlines() if "pytest" in line and "venv" in line]
    assert 'grep -m1 -F "pytest" README.md' in (ROOT / ".ci" / "run").read_text()
    assert next(text for text in README.splitlines() if "pytest" in text) == line


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_featpipe_takes(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None, name
    command.make_context(name, arguments)  # raises on an unknown or missing option


def test_commands_were_found() -> None:
    assert {shlex.split(line)[1] for line in COMMANDS} >= {
        "extract", "train-head", "compare", "predict", "info",
    }  # fmt: skip


def test_the_python_snippet_runs(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extractor, snippet = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, Any] = {}
    exec(extractor.replace('"vgg16"', f'"pixels", cache="{tmp_path}"'), names)
    paths = sorted(shapes.rglob("*_*.*"))
    model = names["model"].fit(paths, [path.parent.name for path in paths])
    assert model.score(paths, [path.parent.name for path in paths]) > 0.9
    shutil.copytree(shapes, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace('"resnet50"', '"pixels"'), {})
    accuracy, low, _ = re.findall(r"[\d.]+", capsys.readouterr().out)
    assert 0 <= float(low) <= float(accuracy) <= 1
    assert (tmp_path / "photos.safetensors").is_file()


def test_the_layers_shown_are_those_there_are() -> None:
    shown = re.search(r"grep -E .*?\n(.*?)\.\.\.", README, re.S)
    assert shown
    printed = CliRunner().invoke(cli, ["layers", "vgg16"]).stdout
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    for line in shown[1].splitlines():
        expected = " ".join(line.split()).rstrip(",")
        assert any(line.startswith(expected) for line in lines), expected


def test_the_refusal_shown_is_the_one_that_is_printed(shapes: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = str(tmp_path / "photos.h5")
    first = ["extract", str(shapes), "--backbone", "resnet50@random", "--input-size", "32",
             "--out", out]  # fmt: skip
    assert runner.invoke(cli, first).exit_code == 0
    refused = runner.invoke(cli, [*first, "--layer", "layer3"])
    assert refused.exit_code == 1
    shown = re.search(r"(Error: photos\.h5 was extracted.*?--overwrite\.)", README, re.S)
    assert shown
    assert shown[1] in refused.stderr.replace(str(tmp_path) + "/", "")
