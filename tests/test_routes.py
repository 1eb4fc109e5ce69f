"""How routes are written, what is refused, and what they are called."""

from pathlib import Path

import pytest

from featpipe.backbones import load_backbone
from featpipe.compare import settled
from featpipe.errors import RouteError
from featpipe.route import Route, checked
from featpipe.routes import named, parse_route, read_routes
from featpipe.settings import CompareSettings, ScratchSettings

FILE = """
[[route]]
scratch = "small"
widths = [16, 32]
epochs = 30

[[route]]
backbone = ["mobilenet_v2", "vgg16@random"]
head = ["linear", "logistic"]

[[route]]
name = "by neighbours"
pixels = "knn"
options = {k = 3}

[[route]]
backbone = "mobilenet_v2"
head = "logistic"
sweep.C = [0.1, 1]

[[route]]
backbone = "mobilenet_v2"
cut = "features.14"
options.epochs = 3
"""


def written(tmp_path: Path, text: str) -> Path:
    """A file of routes."""
    path = tmp_path / "routes.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_holds_every_kind_of_route(tmp_path: Path) -> None:
    routes = named(read_routes(written(tmp_path, FILE)))
    assert [(route.kind, route.name) for route in routes] == [
        ("scratch", "small from scratch"),
        ("head", "mobilenet_v2 + linear"),
        ("head", "mobilenet_v2 + logistic"),
        ("head", "vgg16 (random weights) + linear"),
        ("head", "vgg16 (random weights) + logistic"),
        ("pixels", "by neighbours"),
        ("head", "mobilenet_v2 + logistic (C of 0.1 1)"),
        ("finetune", "mobilenet_v2 fine-tuned from features.14"),
    ]
    assert routes[0].scratch(routes[0].options) == ScratchSettings(
        "small", widths=(16, 32), epochs=30
    )
    assert routes[6].candidates == [{"C": 0.1}, {"C": 1}]
    assert routes[7].options == {"train": "all", "epochs": 3}
    assert routes[7].extract == {"dtype": "float16", "pool": "flatten"}


def test_a_line_is_the_same_as_a_table(tmp_path: Path) -> None:
    line = "backbone=mobilenet_v2 head=mlp layer=features.18 options.hidden=[8] sweep.lr=0.1,0.01"
    table = """[[route]]
    backbone = "mobilenet_v2"
    head = "mlp"
    layer = "features.18"
    options.hidden = [8]
    sweep.lr = [0.1, 0.01]
    """
    assert parse_route(line) == read_routes(written(tmp_path, table))
    assert len(parse_route("backbone=mobilenet_v2,vgg16 head=linear,knn")) == 4
    assert parse_route("scratch=small widths=8,16")[0].options["widths"] == (8, 16)
    assert parse_route("pixels=knn name=3")[0].name == "3"
    assert parse_route("scratch=small input-size=32")[0].options["input_size"] == 32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no \[\[route\]\]"),
        ("[[route]]\npixels = \n", "is no TOML.*line 2"),
        ("[[routes]]\npixels = 'knn'", r"no table 'routes'. Did you mean route"),
        ("\n\n[[route]]\nhead = 'knn'", "line 3, route 1 has none of scratch, pixels"),
        ("[[route]]\nscratch = 'small'\npixels = 'knn'", "has scratch and pixels"),
        (
            "[[route]]\npixels='knn'\n[[route]]\npixels='nkn'",
            "line 3, route 2: .*Did you mean.*knn",
        ),
        ("[[route]]\nscratch = 'small'\nepoch = 3", "'epoch'. Did you mean epochs"),
        ("[[route]]\nname='x'\nscratch='smal'", r"route 1 \(x\): There is no network 'smal'"),
        ("[[route]]\nscratch='small'\nepochs=0", "epochs is 0; it must be at least 1"),
        ("[[route]]\npixels='linear'\noptions.lrr=1", "'lrr'. Did you mean lr"),
        ("[[route]]\npixels='linear'\nsweep.lrr=[1]", "'lrr'. Did you mean lr"),
        ("[[route]]\npixels='linear'\nsweep.lr=1", "sweep of lr has no values"),
        ("[[route]]\nscratch='small'\nsweep.input_size=[32, 64]", "cannot be swept"),
        ("[[route]]\nscratch='small'\nsweep.hidden=[3]", "no setting of a network from scratch"),
        ("[[route]]\nbackbone='mobilenet_v3'", "no backbone 'mobilenet_v3'. Did you mean"),
        ("[[route]]\nbackbone='vgg16'\ncut='a'\nhead='knn'", "leave layer and head out"),
        ("[[route]]\nbackbone='vgg16'\npool='mean'", "pool is 'mean'; it can be"),
        ("[[route]]\nname='a'\nbackbone=['vgg16','vgg11']", "several routes"),
        ("[[route]]\npixels='knn'\nname=3", "name is 3, which is no text"),
        ("[[route]]\npixels='knn'\nseed=-1", "seed is -1"),
        ("[[route]]\nbackbone=3", "backbone is 3, which is no text"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RouteError, match=said):
        read_routes(written(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("backbone", "write NAME=VALUE"),
        ("pixels=knn pixels=linear", "pixels twice"),
        ("pixels='knn", "cannot be read"),
        ("pixels=linear sweep.lr=", "no values"),
    ],
)
def test_lines_are_refused_alike(line: str, said: str) -> None:
    with pytest.raises(RouteError, match=said):
        parse_route(line)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RouteError, match=r"nowhere\.toml cannot be read"):
        read_routes(tmp_path / "nowhere.toml")


def test_names_tell_apart_what_differs() -> None:
    lines = [
        "backbone=vgg16 head=knn layer=features.5", "backbone=vgg16 head=knn layer=features.9",
        "backbone=vgg16@a.pth", "backbone=vgg16@b.pth", "scratch=small", "scratch=small epochs=3",
        "scratch=small seed=1",
    ]  # fmt: skip
    names = [one.name for one in named([route for line in lines for route in parse_route(line)])]
    assert names == [
        "vgg16 features.5 + knn", "vgg16 features.9 + knn", "vgg16@a.pth + linear",
        "vgg16@b.pth + linear", "small from scratch", "small from scratch (epochs 3)",
        "small from scratch (seed 1)",
    ]  # fmt: skip


def test_the_same_route_twice_and_the_same_name_twice_are_refused() -> None:
    with pytest.raises(RouteError, match="Two routes are the same"):
        named([*parse_route("pixels=knn"), *parse_route("pixels=knn name=other")])
    with pytest.raises(RouteError, match="2 routes are called 'a'"):
        named([*parse_route("pixels=knn name=a"), *parse_route("pixels=linear name=a")])


def test_a_loaded_backbone_has_its_own_title() -> None:
    loaded = load_backbone("squeezenet1_1", "random")
    route = checked(Route("", "head", str(loaded), head="linear"))
    [one] = named([route], {str(loaded): loaded})
    assert one.name == "squeezenet1_1 (random weights) + linear"


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    block = text.partition("```toml\n")[2].partition("```")[0]
    routes = named(read_routes(written(tmp_path, block)))
    assert [route.kind for route in routes] == ["scratch", *["head"] * 7, "finetune", "pixels"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('backbone="mobilenet_v2"\ncut=""', "cut is empty"),
        ('backbone="pixels"\ncut="x"', "no layer to cut behind"),
        ('pixels="knn"\nname="  "', "something to read"),
        (f'pixels="knn"\nname="{"n" * 100_000}"', "of 100,000 characters"),
        ('scratch="small"\nlr=inf', "lr is inf; it must be finite"),
        ('pixels="logistic"\nsweep.C=[1.0,nan]', "C is nan; it must be finite"),
        ('pixels="logistic"\nsweep.C=[1,1.0]', "a value twice"),
        ('scratch="small"\nepochs=2020-01-01', "epochs is 2020-01-01, which is a date"),
        ('scratch="small"\nwidths="a"', "widths are 'a'; give whole numbers"),
        ('scratch="small"\ninput_size=[1,2,3]', r"input_size is \(1, 2, 3\); it must be from 4"),
        ('scratch="small"\nsweep.epochs=[1,"x"]', "epochs is 'x'; it must be at least 1"),
    ],
)
def test_what_no_option_can_be_is_told_in_words(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RouteError, match=told) as raised:
        read_routes(written(tmp_path, f"[[route]]\n{text}\n"))
    assert "not supported between" not in str(raised.value)


def test_a_mark_at_the_beginning_of_the_file_is_no_matter(tmp_path: Path) -> None:
    assert len(read_routes(written(tmp_path, '\ufeff[[route]]\npixels = "knn"\n'))) == 1


def test_more_candidates_than_could_be_listed_are_refused_at_once() -> None:
    many = ",".join(map(str, range(1, 60)))
    sweeps = " ".join(f"sweep.{name}={many}" for name in ("C", "max_iter", "tol"))
    [route] = parse_route(f"pixels=logistic {sweeps}")
    assert route.count == 59**3
    with pytest.raises(RouteError, match="has 205379 candidates, more than the 20"):
        settled([route], CompareSettings(), {})
