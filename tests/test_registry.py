"""Plug-ins: files and entry points, and what a wrong name says."""

import importlib
from pathlib import Path

import pytest

from featpipe.errors import UnknownNameError
from featpipe.registry import FOLDERS, load_plugin, no_such, plugin_names


def install(site: Path, module: str, *entries: str) -> None:
    """What installing a package leaves behind: a module and its entry points."""
    (site / f"{module}.py").write_text('name = "of another package"\n')
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = ["[featpipe.images]", *(f"{entry} = {module}" for entry in entries)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_image_plug_ins_are_the_files_of_the_folder() -> None:
    assert {"digits", "file", "folder", "manifest", "torchvision"} <= set(plugin_names("images"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_are_sorted_and_without_private_files(folder: str) -> None:
    names = plugin_names(folder)
    assert names == sorted(set(names))
    assert names
    assert not any(name.startswith(("_", "-")) or "_" in name for name in names)


def test_a_name_with_a_hyphen_is_a_file_with_an_underscore() -> None:
    assert "sklearn-logistic" in plugin_names("heads")
    plugin = load_plugin("heads", "sklearn-logistic")
    assert plugin is importlib.import_module("featpipe.heads.sklearn_logistic")


def test_every_image_plug_in_can_be_asked_and_opened() -> None:
    for name in plugin_names("images"):
        plugin = load_plugin("images", name)
        assert plugin.accepts("no such location") is False
        assert callable(plugin.open)


def test_an_unknown_name_lists_near_names() -> None:
    with pytest.raises(UnknownNameError, match=r"no images plug-in 'foldr'.* mean folder"):
        load_plugin("images", "foldr")


def test_a_name_like_none_lists_all_if_they_are_few() -> None:
    assert no_such("head", "xyz", ["linear", "mlp"]) == (
        "There is no head 'xyz'. There are: linear, mlp."
    )
    assert "none" in no_such("head", "xyz", [])
    assert "among the 99 known" in no_such("model", "xyz", (f"m{i}" for i in range(99)))


@pytest.mark.parametrize("name", ["__init__", "../errors", "", "folder.py"])
def test_only_plug_ins_can_be_loaded(name: str) -> None:
    with pytest.raises(UnknownNameError):
        load_plugin("images", name)


def test_another_package_adds_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "featpipe_test_bucket", "bucket")
    monkeypatch.syspath_prepend(tmp_path)
    assert "bucket" in plugin_names("images")
    assert "bucket" not in plugin_names("heads")
    assert load_plugin("images", "bucket").name == "of another package"


def test_another_package_cannot_replace_a_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "featpipe_test_usurper", "folder")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugin_names("images").count("folder") == 1
    assert load_plugin("images", "folder").__name__ == "featpipe.images.folder"
