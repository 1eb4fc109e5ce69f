"""Recipes: what was published is what runs, each fault is in force until it is mended."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.adaptation import adapted, comparable_cut
from featpipe.backbones import Backbone, load_backbone
from featpipe.calibration import wilson
from featpipe.classifier import Classifier
from featpipe.decode import Preprocessing
from featpipe.errors import (
    ImagesError,
    LayerError,
    SettingsError,
    SplitError,
    UnknownNameError,
    WeightsError,
)
from featpipe.images import open_images
from featpipe.leakage import by_group, leak_of
from featpipe.loading import load_image
from featpipe.recipes import (
    AS_PUBLISHED,
    Pixels,
    Probe,
    Route,
    load_recipe,
    recipe_names,
)
from featpipe.reproduce import Reproduction, run_recipe
from featpipe.rungs import Runner
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.split import row_groups

NAMES = ["five-flowers", "malaria", "two-flowers", "vehicles"]
ROUTES = [(name, route) for name in NAMES for route in load_recipe(name).routes]
TINY = ExtractSettings(
    input_size=32, precision="float32", runtime="torch", decode="exact", device="cpu"
)
NET = "squeezenet1_1@random"


def picture(path: Path, shade: int, seed: int) -> None:
    """A noisy square, bright if `shade` is high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 90, (32, 32, 3))
    Image.fromarray((noise + shade).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty cells of ten patients, named as the example's; some have the class in the name."""
    root = tmp_path_factory.mktemp("cells")
    for number in range(60):
        kind = ("Uninfected", "Parasitized")[number % 2]
        before = "Parasitized" if number % 10 == 1 else ""
        name = f"{before}C{number % 10}P{number % 10 + 60}ThinF_IMG_2015_cell_{number}.png"
        picture(root / kind / name, 60 + 50 * (number % 2), number)
    return root


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twenty pictures."""
    root = tmp_path_factory.mktemp("flowers")
    for number in range(60):
        kind = ("daisy", "roses", "tulips")[number % 3]
        picture(root / kind / f"{number}.png", 60 * (number % 3), number)
    return root


@pytest.fixture(scope="session")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of forty crops of twenty photographs, two of each, both of one class."""
    root = tmp_path_factory.mktemp("cars")
    rows = ["image_names,emergency_or_not,source_image"]
    for number in range(40):
        label = number // 2 % 2
        picture(root / f"{number}.png", 40 + 60 * label, number)
        rows.append(f"{number}.png,{label},photo{number // 2}")
    (root / "train.csv").write_text("\n".join(rows), encoding="utf-8")
    return root / "train.csv"


@pytest.fixture(scope="session")
def found(
    cells: Path, flowers: Path, cars: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Reproduction]:
    """All recipes on their images, by a random network that is not theirs."""
    out = tmp_path_factory.mktemp("recipes")
    images: dict[str, Any] = {
        "five-flowers": flowers,
        "malaria": cells,
        "two-flowers": flowers,
        "vehicles": cars,
    }
    classes = {"two-flowers": ("daisy", "roses")}
    return {
        name: run_recipe(
            name, images[name], out / name, NET, classes=classes.get(name, ()), extract=TINY
        )
        for name in NAMES
    }


@pytest.fixture(scope="session")
def folders(found: dict[str, Reproduction], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they were run."""
    assert found
    return next(tmp_path_factory.getbasetemp().glob("recipes*"))


def plain(one: Reproduction) -> Any:
    """As a file has it."""
    return json.loads(json.dumps(one.to_dict()))


# ---- the descriptions --------------------------------------------------------------------------


def test_there_are_four_recipes_and_another_one_is_refused_with_their_names() -> None:
    assert recipe_names() == NAMES
    with pytest.raises(UnknownNameError, match="five-flowers, malaria, two-flowers, vehicles"):
        load_recipe("cats")


@pytest.mark.parametrize(("name", "route"), ROUTES)
def test_the_last_rung_is_what_was_published_with_every_fault_mended(
    name: str, route: Route
) -> None:
    recipe = load_recipe(name)
    rungs = recipe.ladder(route)
    assert rungs[0].name == AS_PUBLISHED
    assert rungs[0].way is route.way
    way = route.way
    for rung, fault in zip(rungs[1:], recipe.faults_of(route), strict=True):
        assert rung.fault is fault
        assert rung.way == way.mended(fault.mend) != way
        way = rung.way


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_has_a_reason_and_every_figure_a_source(name: str) -> None:
    recipe = load_recipe(name)
    assert "worked example" in recipe.source
    assert recipe.faults
    for fault in recipe.faults:
        assert fault.why.endswith(".")
        assert fault.mended
    assert set().union(*(fault.routes for fault in recipe.faults)) <= {
        route.name for route in recipe.routes
    }


def test_the_published_figures_are_those_of_the_examples() -> None:
    figures = {(name, route.name): route.published for name, route in ROUTES}
    accuracies = sorted(f.accuracy for f in figures.values() if f.accuracy is not None)
    assert accuracies == pytest.approx([0.7626, 0.8347, 2483 / 2756, 0.989])
    malaria = next(f for (name, _), f in figures.items() if name == "malaria")
    assert malaria.interval == pytest.approx((0.8892, 0.9115), abs=1e-4)
    unknown = next(f for (name, _), f in figures.items() if name == "two-flowers")
    assert unknown.interval is None


@pytest.mark.parametrize(("name", "route"), ROUTES)
def test_a_way_is_told_by_what_it_sets(name: str, route: Route) -> None:
    told = route.way.described()
    text = " ".join(told.values())
    assert (route.way.backbone or "none") in told["backbone"]
    if isinstance(route.way.learn, Probe):
        for option, value in route.way.learn.options.items():
            assert option.replace("_", " ") in text
            assert isinstance(value, bool | str | tuple | float) or str(value) in text
    assert json.loads(json.dumps(route.way.to_dict()))["train"]["seed"] == route.way.train.seed


# ---- what runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_runs_from_end_to_end(name: str, found: dict[str, Reproduction]) -> None:
    one = found[name]
    recipe = load_recipe(name)
    assert [outcome.route for outcome in one.routes] == list(recipe.routes)
    for outcome in one.routes:
        left_out = [one.fault for one in outcome.left_out]
        # Random weights have no statistics that training could spoil.
        assert left_out == (["batch norm learns from 32 at a time"] * (name == "two-flowers"))
        assert [step.name for step in outcome.steps] == [
            rung.name for rung in recipe.ladder(outcome.route, left_out)
        ]
        assert outcome.right
        for step in outcome.steps:
            assert step.interval[0] <= step.accuracy <= step.interval[1]
            assert len(step.wrong) == round((1 - step.accuracy) * step.n)
    assert json.loads(json.dumps(one.to_dict()))["recipe"] == name


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_is_what_is_written(name: str, found: dict[str, Reproduction]) -> None:
    for outcome in found[name].routes:
        rungs = load_recipe(name).ladder(outcome.route, [one.fault for one in outcome.left_out])
        for step, rung in zip(outcome.steps, rungs, strict=True):
            way = step.conditions["way"]
            written = json.loads(json.dumps(rung.way.to_dict()))
            ran = json.loads(json.dumps(way))
            for key in ("pixels", "stratified"):
                assert ran[key] == written[key]
            for key in ("split", "val", "test", "seed", "folds"):
                assert ran["train"][key] == written["train"][key]
            if isinstance(rung.way.learn, Probe):
                assert ran["learn"] == written["learn"]


def test_a_head_is_given_the_options_of_the_recipe(folders: Path) -> None:
    (file,) = folders.glob("malaria/*/0-as-published/result.json")
    ran = json.loads(file.read_text())["result"]["conditions"]
    (route,) = load_recipe("malaria").routes
    assert isinstance(route.way.learn, Probe)
    assert ran["head"] == route.way.learn.head
    for option, value in route.way.learn.options.items():
        assert ran["options"][option] == (list(value) if isinstance(value, tuple) else value)


def test_pictures_and_a_classifier_that_can_be_used_are_left(folders: Path, flowers: Path) -> None:
    (right,) = folders.glob("five-flowers/*/2-*")
    assert (right / "grid.png").read_bytes().startswith(b"\x89PNG")
    classifier = Classifier.load(right / "classifier.safetensors")
    predictions = list(classifier.predict(open_images(flowers)))
    assert {one.proba.argmax() for one in predictions if one.proba is not None} <= {0, 1, 2}
    assert list(folders.glob("five-flowers/*/0-as-published/curves.png"))


# ---- faults ------------------------------------------------------------------------------------


def test_a_reshaped_picture_is_scrambled_as_numpy_does_it(cars: Path, tmp_path: Path) -> None:
    plain = load_backbone("pixels", input_size=32)
    scrambled = replace(plain, preprocessing=Pixels(transposed=False).applied(plain.preprocessing))
    from featpipe.extract import extract_features

    with (
        extract_features(cars.parent, plain, tmp_path / "plain.h5", TINY_PIXELS) as right,
        extract_features(cars.parent, scrambled, tmp_path / "scrambled.h5", TINY_PIXELS) as wrong,
    ):
        (layer,) = right.spec.layers
        source = open_images(cars.parent)
        image = load_image(source, 0, plain.preprocessing).pixels
        assert image is not None
        expected = image.reshape(3, 32, 32)
        assert np.array_equal(wrong.features(layer)[0].reshape(3, 32, 32) * 255, expected)
        assert not np.array_equal(wrong.features(layer)[0], right.features(layer)[0])
        assert right.spec.differences(wrong.spec) == [
            "preprocessing reshaped: cached nothing, requested True"
        ]


TINY_PIXELS = replace(TINY, input_size=None)


def test_the_scratch_network_sees_the_same_scrambled_picture() -> None:
    from featpipe.pixel_rows import PixelRows

    given = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    how = Pixels(transposed=False, normalised=False).applied(Preprocessing())
    rows = PixelRows(torch.from_numpy(given), how, torch.device("cpu"))
    taken = rows.take(torch.tensor([1])).numpy()
    assert np.allclose(taken[0] * 255, given[1].reshape(3, 8, 8))


def test_pixels_change_only_what_they_say() -> None:
    own = Preprocessing()
    assert Pixels().applied(own) == own
    whole = Pixels(whole=True).applied(own)
    assert (whole.resize, whole.mean) == (own.crop, own.mean)
    bare = Pixels(normalised=False).applied(own)
    assert (bare.mean, bare.std, bare.resize) == ((0.0,) * 3, (1.0,) * 3, own.resize)
    assert not bare.reshaped


@pytest.mark.parametrize("name", ["malaria", "vehicles"])
def test_groups_leak_as_published_and_not_when_done_right(
    name: str, found: dict[str, Reproduction]
) -> None:
    for outcome in found[name].routes:
        first, last = outcome.steps[0].leak, outcome.steps[-1].leak
        assert first is not None
        assert last is not None
        assert first["torn"] > 0
        assert first["rows"] > first["scored"] / 2
        assert (last["torn"], last["rows"]) == (0, 0)


def test_a_patient_has_one_name_whatever_stands_before_it(cells: Path) -> None:
    table = open_images(cells).table
    groups = row_groups(table, load_recipe("malaria").group_by)
    assert groups is not None
    assert set(groups) == {f"C{number}P{number + 60}" for number in range(10)}


@pytest.mark.parametrize(
    ("file", "patient"),
    [
        ("Parasitized/C33P1thinF_IMG_20150619_114756a_cell_179.png", "C33P1"),
        ("Uninfected/C12N_IMG_20150609_cell_1.png", "C12N"),
        ("Parasitized/ParasitizedC62P23N_ThinF_IMG_2015_cell_9.png", "C62P23N"),
        ("x/Uninfected/C38P3thinF_original_IMG_2015_cell_9.png", "C38P3"),
    ],
)
def test_patients_are_read_off_the_files_names(file: str, patient: str) -> None:
    import re

    match = re.search(load_recipe("malaria").group_by, file)
    assert match
    assert match[1] == patient


def test_the_gap_is_of_the_same_rows_and_nothing_where_groups_are_alone(
    found: dict[str, Reproduction], folders: Path
) -> None:
    gap = found["malaria"].routes[0].gap
    assert gap is not None
    assert (gap.images, gap.groups, gap.folds) == (60, 10, 5)
    assert gap.difference.value == pytest.approx(gap.random.value - gap.grouped.value)  # type: ignore[operator]
    assert gap.difference.low <= gap.difference.value <= gap.difference.high  # type: ignore[operator]


def test_an_interval_over_groups_is_wider_where_rows_of_a_group_are_alike() -> None:
    right = np.repeat(np.random.default_rng(0).random(20) < 0.5, 20)
    groups = np.repeat([f"g{i}" for i in range(20)], 20).astype(object)
    alone = np.array([f"r{i}" for i in range(400)], object)
    _, low, high = by_group(right, groups)
    _, lower, higher = by_group(right, alone)
    assert high - low > 3 * (higher - lower)  # type: ignore[operator]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_interval_has_a_width_where_all_groups_agree(share: float) -> None:
    groups = np.repeat([f"g{i}" for i in range(8)], 50).astype(object)
    value, low, high = by_group(np.full(400, share), groups)
    assert value == share
    expected = wilson(round(8 * share), 8)  # as eight groups tell, not 400 images
    assert (low, high) == pytest.approx(expected)
    _, low, high = by_group(np.full(2, share), np.array(["a", "b"], object))
    assert (low, high) == pytest.approx(wilson(round(2 * share), 2))


def test_an_interval_over_groups_is_never_narrower_than_over_as_many_images() -> None:
    right = np.tile([1.0, 1.0, 1.0, 0.0], 5)  # each of five groups has three of four right
    groups = np.repeat([f"g{i}" for i in range(5)], 4).astype(object)
    _, low, high = by_group(right, groups)
    alone = wilson(15, 20)
    assert low is not None
    assert high is not None
    assert low <= alone[0] < alone[1] <= high


def test_no_difference_between_groups_is_no_proof_that_there_is_none() -> None:
    groups = np.repeat([f"g{i}" for i in range(10)], 3).astype(object)
    value, low, high = by_group(np.zeros(30), groups, signed=True)
    assert value == 0
    assert (low, high) == pytest.approx((-wilson(0, 10)[1], wilson(0, 10)[1]))


def test_every_route_of_a_recipe_scores_the_same_rows(found: dict[str, Reproduction]) -> None:
    vgg, cnn = found["vehicles"].routes
    for one, other in zip(vgg.steps, cnn.steps, strict=True):
        assert one.scored == other.scored


def test_a_change_is_paired_only_on_the_same_rows(found: dict[str, Reproduction]) -> None:
    for outcome in found["vehicles"].routes:
        steps = outcome.steps
        for one, before, after in zip(outcome.changes, steps, steps[1:], strict=False):
            assert (one.p_value is not None) == (before.scored == after.scored)
            if one.won is not None and one.lost is not None:
                assert one.points == pytest.approx(100 * (one.won - one.lost) / after.n)


def test_a_published_split_draws_blindly(flowers: Path, tmp_path: Path) -> None:
    """Of three equal classes, an unstratified fifth need not hold equal shares."""
    source = open_images(flowers)
    (route,) = load_recipe("five-flowers").routes
    counts = set()
    for seed in range(6):
        way = route.way.mended({"train": {"seed": seed}})
        runner = Runner(load_recipe("five-flowers"), source, tmp_path, NET, None, None, TINY, None)
        split = runner._split(way)
        assert source.table.labels is not None
        counts.add(tuple(np.bincount(source.table.labels[split.val], minlength=3)))
        even = runner._split(way.mended({"stratified": True}))
        assert set(np.bincount(source.table.labels[even.val])) == {4}
    assert counts != {(4, 4, 4)}


# ---- the run -----------------------------------------------------------------------------------


def test_what_is_finished_is_not_run_again(
    found: dict[str, Reproduction],
    folders: Path,
    flowers: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was run again")

    monkeypatch.setattr(Runner, "_run", fail)
    again = run_recipe("five-flowers", flowers, folders / "five-flowers", NET, extract=TINY)
    assert plain(again) == plain(found["five-flowers"])


def test_an_interrupted_recipe_goes_on_behind_its_last_rung(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run = Runner._run

    def stopping(self: Runner, way: Any, rung: Any, *rest: Any) -> Any:
        ran.append(rung.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(self, way, rung, *rest)

    monkeypatch.setattr(Runner, "_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_recipe("five-flowers", flowers, tmp_path, NET, extract=TINY)
    found = run_recipe("five-flowers", flowers, tmp_path, NET, extract=TINY)
    (route,) = load_recipe("five-flowers").routes
    first, second, third = (rung.name for rung in load_recipe("five-flowers").ladder(route))
    assert ran == [first, second, second, third]
    assert [step.name for step in found.routes[0].steps] == [first, second, third]


def test_another_image_or_setting_is_run_again(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for classes, seed in [((), 0), (("daisy", "roses"), 0), ((), 1)]:
        source = open_images(flowers)
        if classes:
            from featpipe.reproduce import with_classes

            source = with_classes(source, classes)
        recipe = load_recipe("five-flowers")
        asked = replace(TINY, seed=seed)
        runner = Runner(recipe, source, tmp_path, NET, None, None, asked, None)
        way, _, loaded, weights = runner._resolve(recipe.routes[0].way)
        keys.append(runner._key(way, loaded, weights))
    assert len(set(keys)) == 3


def test_both_ends_skip_what_lies_between_and_are_the_same_again(
    cars: Path, found: dict[str, Reproduction], tmp_path: Path
) -> None:
    short = run_recipe("vehicles", cars, tmp_path, NET, each_fault=False, extract=TINY)
    for outcome, whole in zip(short.routes, found["vehicles"].routes, strict=True):
        assert len(outcome.steps) == 2
        for again, step in zip(outcome.steps, (whole.steps[0], whole.steps[-1]), strict=True):
            assert (again.wrong, again.train_accuracy) == (step.wrong, step.train_accuracy)
        assert outcome.steps[-1].leak == {"groups": 4, "torn": 0, "rows": 0, "scored": 8}


def test_as_published_runs_nothing_else(flowers: Path, tmp_path: Path) -> None:
    only = run_recipe("five-flowers", flowers, tmp_path, NET, as_published=True, extract=TINY)
    assert [len(outcome.steps) for outcome in only.routes] == [1]


def test_weights_that_cannot_be_had_say_how_to_go_on(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> None:
        raise WeightsError("no connection")

    monkeypatch.setattr("featpipe.backbones.torchvision._download", offline)
    with pytest.raises(WeightsError, match="@random") as error:
        run_recipe("five-flowers", flowers, tmp_path, extract=TINY)
    assert "NAME@PATH" in str(error.value)


def test_batch_norm_of_random_weights_is_not_kept() -> None:
    recipe = load_recipe("two-flowers")
    right = recipe.ladder(recipe.routes[0])[-1].way
    assert isinstance(right.learn, Probe)
    assert right.learn.options["freeze_norm"]
    resnet = load_backbone("resnet18", "random", input_size=32)
    made, notes = adapted(replace(right, backbone="resnet18"), resnet)
    assert isinstance(made.learn, Probe)
    assert not made.learn.options["freeze_norm"]
    assert any("batch norm" in note for note in notes)
    learnt = replace(resnet, random=False)
    assert adapted(replace(right, backbone="resnet18"), learnt)[0].learn == right.learn


def test_folded_batch_norm_is_frozen_in_every_step_and_that_is_not_credited(
    flowers: Path, tmp_path: Path
) -> None:
    recipe, source = load_recipe("two-flowers"), open_images(flowers)
    resnet = load_backbone("resnet18", "random", input_size=32).model
    file = tmp_path / "folded.pth"
    torch.save(resnet.state_dict(), file)  # statistics of 0 and 1, as folding leaves them
    runner = Runner(recipe, source, tmp_path, f"resnet18@{file}", None, None, TINY, None)
    rungs, left_out = runner.plan(recipe.routes[0])
    assert [one.fault for one in left_out] == ["batch norm learns from 32 at a time"]
    assert "folded" in left_out[0].why
    assert not left_out[0].in_force
    assert [rung.name for rung in rungs if "batch norm" in rung.name] == []
    for rung in rungs:
        way, notes, _, _ = runner._resolve(rung.way)
        assert isinstance(way.learn, Probe)
        assert way.learn.options["freeze_norm"]
        assert any("folded" in note for note in notes)
    for name, tensor in resnet.state_dict().items():
        if name.endswith("running_mean"):
            tensor.fill_(0.1)
    torch.save(resnet.state_dict(), file)
    runner = Runner(recipe, source, tmp_path, f"resnet18@{file}", None, None, TINY, None)
    assert runner.plan(recipe.routes[0]) == (recipe.ladder(recipe.routes[0]), [])
    assert "folded" not in str(runner._resolve(recipe.routes[0].way)[1])


def test_five_flowers_tells_what_its_description_leaves_open() -> None:
    assumed = " ".join(load_recipe("five-flowers").assumed)
    assert "epoch of lowest validation loss" in assumed
    assert "batch norm" in assumed


def test_the_same_name_of_another_source_is_another_network() -> None:
    (route,) = load_recipe("five-flowers").routes
    resnet = load_backbone("resnet18", "random", input_size=32)
    assert adapted(route.way, resnet) == (route.way, [])
    made, notes = adapted(route.way, replace(resnet, source="timm"))
    assert made.backbone == "timm:resnet18"
    assert notes == ["timm:resnet18 (random weights) stands in for resnet18."]


def test_a_cut_is_refused_where_nothing_is_fine_tuned(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fine-tunes nothing.*--cut features"):
        run_recipe("malaria", cells, tmp_path, NET, cut="features", extract=TINY)


def test_other_code_of_the_same_weights_is_another_network() -> None:
    from featpipe.rungs import _identity

    class One(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class Other(One):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 2)

    made = []
    for kind in (One, Other):
        torch.manual_seed(0)
        model = kind(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2)).eval()
        own = Preprocessing(resize=(8, 8), crop=(8, 8))
        made.append(_identity(Backbone("python", "mine:net", "random", model, own)))
    assert made[0] != made[1]


def test_another_seed_and_a_replaced_file_are_run_beside_the_others(
    flowers: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "out", tmp_path / "net.pth"
    network = f"squeezenet1_1@{file}"
    for seed in (0, 1):
        run_recipe(
            "five-flowers", flowers, out, NET, as_published=True, extract=replace(TINY, seed=seed)
        )
        net = load_backbone("squeezenet1_1", "random", seed).model
        torch.save(net.state_dict(), file)
        run_recipe("five-flowers", flowers, out, network, as_published=True, extract=TINY)
    assert len(list(out.glob("features-*.h5"))) == 4


def test_the_published_network_is_meant_where_only_weights_are_given(
    flowers: Path, tmp_path: Path
) -> None:
    only = run_recipe("five-flowers", flowers, tmp_path, "@random", as_published=True, extract=TINY)
    (step,) = only.routes[0].steps
    assert step.backbone == "resnet18 (random weights)"
    assert step.notes == []


def test_classes_that_are_not_there_are_named(flowers: Path, tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"no class orchid; its classes: daisy, roses, tulips"):
        run_recipe("two-flowers", flowers, tmp_path, NET, classes=("orchid", "daisy"))


@pytest.mark.parametrize("what", ["one class", "no labels", "too few"])
def test_images_that_cannot_be_divided_are_refused_before_anything_is_extracted(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "one class": ["image_names,emergency_or_not", *(f"{n}.png,1" for n in range(12))],
        "no labels": ["image_names", *(f"{n}.png" for n in range(12))],
        "too few": ["image_names,emergency_or_not", *(f"{n}.png,{n % 2}" for n in range(4))],
    }
    said = {
        "one class": "one class only, 1.*--label-column",
        "no labels": "has no labels.*--label-column",
        "too few": "Emergency vehicles, as published, cannot be run.*Add images",
    }
    for number in range(12):
        picture(tmp_path / f"{number}.png", 90, number)
    (tmp_path / "train.csv").write_text("\n".join(rows[what]), encoding="utf-8")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was extracted")

    monkeypatch.setattr("featpipe.rungs.extract_features", fail)
    with pytest.raises(SplitError, match=said[what]):
        run_recipe("vehicles", tmp_path / "train.csv", tmp_path / "out", NET, extract=TINY)


def test_groups_that_make_no_folds_leave_the_gap_out_and_keep_the_rest(tmp_path: Path) -> None:
    lines = ["image_names,emergency_or_not,source_image"]
    for number in range(40):
        picture(tmp_path / f"{number}.png", 40 + 60 * (number % 2), number)
        lines.append(f"{number}.png,{number % 2},photo{number // 10}")
    (tmp_path / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    found = run_recipe("vehicles", tmp_path / "train.csv", out, NET, each_fault=False, extract=TINY)
    vgg, cnn = found.routes
    assert vgg.gap is None
    assert "4 groups cannot make 5 folds" in vgg.gap_note
    assert "Take fewer" not in vgg.gap_note
    assert (cnn.gap, cnn.gap_note) == (None, "")
    assert vgg.right
    assert (out / "recipe.json").exists()


def test_a_gap_is_measured_once(
    found: dict[str, Reproduction], folders: Path, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was measured again")

    monkeypatch.setattr("featpipe.rungs.measure_gap", fail)
    again = run_recipe("malaria", cells, folders / "malaria", NET, extract=TINY)
    assert plain(again) == plain(found["malaria"])
    assert again.routes[0].gap == found["malaria"].routes[0].gap
    intervals = plain(again)["routes"][0]["gap"]["intervals_95"]
    assert "bootstrap over whole groups" in intervals["difference"]
    assert "corrected resampled t" in intervals["of_folds"]


def test_ids_that_name_no_patient_are_no_groups_unless_asked_for(
    flowers: Path, tmp_path: Path
) -> None:
    found = run_recipe("malaria", flowers, tmp_path, NET, each_fault=False, extract=TINY)
    (route,) = found.routes
    assert found.groups is None
    assert "60 of 60 files are not named as the recipe's own" in found.notes[0]
    assert "--group REGEX" in found.notes[0]
    assert [(one.fault, one.in_force) for one in route.left_out] == [
        ("patients on both sides", True)
    ]
    assert [step.name for step in route.steps] == [AS_PUBLISHED, "logistic"]
    assert not route.right
    written = plain(found)
    assert written["notes"] == found.notes
    assert written["routes"][0]["done_right"] is False
    with pytest.raises(SplitError, match="does not match 60 of 60 ids"):
        run_recipe("malaria", flowers, tmp_path, NET, group=r"(P\d+)", extract=TINY)


def test_a_table_that_has_groups_needs_no_names(cars: Path, tmp_path: Path) -> None:
    recipe = load_recipe("malaria")
    source = open_images(cars, load_recipe("vehicles").images)
    runner = Runner(recipe, source, tmp_path, NET, None, None, TINY, None)
    assert runner.groups is not None
    assert set(runner.groups) == {f"photo{number}" for number in range(20)}
    assert runner.notes == []


def test_groups_too_few_for_a_step_leave_that_step_out(tmp_path: Path) -> None:
    for number in range(60):
        kind = ("Uninfected", "Parasitized")[number % 2]
        picture(tmp_path / kind / f"C1P{number % 3}ThinF_IMG_{number}.png", 60, number)
    recipe = load_recipe("malaria")
    runner = Runner(recipe, open_images(tmp_path), tmp_path / "out", NET, None, None, TINY, None)
    rungs, (left_out,) = runner.plan(recipe.routes[0])
    assert [rung.name for rung in rungs] == [AS_PUBLISHED, "logistic"]
    assert left_out.why == "3 groups cannot make 5 folds without tearing one apart."
    assert left_out.in_force


def test_without_groups_it_says_that_nothing_can_be_mended(
    cars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "plain.csv"
    lines = cars.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join(line.rpartition(",")[0] for line in lines), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="featpipe"):
        result = run_recipe(
            "vehicles",
            table,
            tmp_path / "out",
            NET,
            as_published=True,
            extract=TINY,
            image_settings=ImageSettings(root=str(cars.parent)),
        )
    assert "one source picture" in caplog.text
    assert result.groups is None
    assert all(step.leak is None for outcome in result.routes for step in outcome.steps)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("resnet18", "layer3.1.relu_1"),
        ("squeezenet1_1", "features.7.cat"),
        ("mobilenet_v2", "features.13.add"),
        ("vgg11", "features.19"),
    ],
)
def test_the_cut_is_before_the_maps_shrink_for_the_last_time(name: str, cut: str) -> None:
    assert comparable_cut(load_backbone(name, "random", input_size=64).layers()) == cut


def test_a_network_without_maps_has_no_such_cut() -> None:
    with pytest.raises(LayerError, match="--cut"):
        comparable_cut(load_backbone("pixels").layers())


def test_a_layer_that_another_network_lacks_becomes_its_penultimate() -> None:
    way = load_recipe("vehicles").routes[0].way
    made, notes = adapted(way, load_backbone("resnet18", "random", input_size=32))
    assert made.extract.layer == ()
    assert any("features" in note for note in notes)
    same, none = adapted(way, load_backbone("vgg16_bn", "random", input_size=32))
    assert (same, none) == (way, [])


def test_the_benchmark_takes_cells_of_every_patient(cells: Path) -> None:
    from recipes import part_of

    recipe, source = load_recipe("malaria"), open_images(cells)
    part = part_of(source, recipe, 20)
    groups = row_groups(part.table, recipe.group_by)
    assert groups is not None
    assert len(part) == 20
    assert set(groups) == set(row_groups(source.table, recipe.group_by))  # type: ignore[arg-type]


# ---- real data ---------------------------------------------------------------------------------


@pytest.mark.realdata
def test_patients_of_the_real_cells_are_on_both_sides_as_published(
    shared: Path, tmp_path: Path
) -> None:
    recipe, source = load_recipe("malaria"), open_images(shared / "data" / "malaria")
    runner = Runner(recipe, source, tmp_path, NET, None, None, TINY, None)
    assert runner.groups is not None
    assert len(set(runner.groups)) == 66
    first, *_, last = recipe.ladder(recipe.routes[0])
    published = leak_of(runner._split(first.way), "test", runner.groups)
    assert published.rows > 0.95 * published.scored
    right = leak_of(runner._split(last.way), "folds", runner.groups)
    assert (right.groups, right.rows, right.scored) == (66, 0, len(source))


@pytest.mark.realdata
def test_a_pretrained_backbone_knows_the_flowers(shared: Path, tmp_path: Path) -> None:
    source = open_images(shared / "data" / "flowers")
    some = source.only(np.arange(0, len(source), 8))
    weights = shared / "weights" / "squeezenet1_1.pth"
    found = run_recipe("five-flowers", some, tmp_path, f"squeezenet1_1@{weights}")
    assert found.routes[0].steps[-1].accuracy > 0.6
    assert found.routes[0].steps[-1].backbone == "squeezenet1_1"
