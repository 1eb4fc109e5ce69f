"""The page of results, as a file: what is in it, how large it is, and what it refuses."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_results import CLASSES, make_pictures, make_results

from featpipe.changes import changes_between
from featpipe.cli import cli
from featpipe.errors import ResultsError
from featpipe.report.charts import ticks
from featpipe.report.page import MOST_BYTES, write_page
from featpipe.report.pictures import embed
from featpipe.report.words import percent, points, printable, seconds, soft
from featpipe.results import Results
from featpipe.thumbnails import file_name

HOSTILE = "<img src=x onerror=alert(1)>"
CLOSING = "</script><!--\u2028\"'&"


def data_of(page: str) -> dict[str, object]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def test_the_policy_names_the_only_script_and_style(tmp_path: Path) -> None:
    page = write_page(make_results(40), tmp_path).read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//|file:)""", page)
    assert "style=" not in page


def test_names_are_escaped_in_markup_and_in_the_scripts_data(tmp_path: Path) -> None:
    classes = (HOSTILE, CLOSING, "\u202eabc\x00")
    results = make_results(30, classes, ids=[f"{HOSTILE}{CLOSING}{n}" for n in range(30)])
    results = replace(results, title=HOSTILE)
    page = write_page(results, tmp_path).read_text("utf-8")
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    assert "\u2028" not in page
    assert "\u202e" not in page
    assert "\x00" not in page
    data = data_of(page)
    assert data["classes"] == [HOSTILE, CLOSING.replace("\u2028", "\\u2028"), "\\u202eabc\\x00"]
    markup = page[: page.index('<script type="application/json"')]
    assert "<!--" not in markup


def test_bytes_of_a_name_that_are_no_utf8_do_not_matter(tmp_path: Path) -> None:
    results = make_results(20, ids=[f"a\udcff{n}.jpg" for n in range(20)])
    page = write_page(results, tmp_path).read_text("utf-8")
    assert r"a\udcff0.jpg" in page


def test_pictures_of_the_thumbnails_folder_are_embedded(tmp_path: Path) -> None:
    results = make_results(40)
    make_pictures(results, tmp_path / "thumbnails")
    data = data_of(write_page(results, tmp_path, tmp_path / "a.html").read_text("utf-8"))
    pictures = data["pictures"]
    assert isinstance(pictures, dict)
    assert len(pictures) == 40
    assert all(base64.b64decode(one)[8:12] == b"WEBP" for one in pictures.values())


def test_without_pictures_there_is_a_page(tmp_path: Path) -> None:
    page = write_page(make_results(40), tmp_path, tmp_path / "new" / "a.html").read_text("utf-8")
    assert "no picture" in page
    assert data_of(page)["pictures"] == {}


def test_thumbnails_are_sought_beside_the_results_only(tmp_path: Path) -> None:
    results = make_results(10)
    make_pictures(results, tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    for named in ("../elsewhere", str(tmp_path / "elsewhere")):
        other = replace(results, thumbnails={"folder": named})
        page = write_page(other, tmp_path / "here").read_text("utf-8")
        assert data_of(page)["pictures"] == {}


def test_a_page_of_5000_images_stays_below_15_megabytes(tmp_path: Path) -> None:
    classes = [f"class number {n}" for n in range(20)]
    results = make_results(5000, classes)
    some, folder = make_results(25, classes), tmp_path / "thumbnails"
    make_pictures(some, folder, noise=40)
    for row in range(25, 5000):
        (folder / file_name(row)).hardlink_to(folder / file_name(row % 25))
    assert (folder / file_name(0)).stat().st_size > 5000  # more than a photograph's
    path = write_page(results, tmp_path)
    assert 5_000_000 < path.stat().st_size < MOST_BYTES == 15_000_000
    pictures = data_of(path.read_text("utf-8"))["pictures"]
    assert isinstance(pictures, dict)
    assert len(pictures) == 5000


def test_pictures_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    results = make_results(30)
    make_pictures(results, tmp_path)
    found, left_out = embed(tmp_path, [0, 1, 1], range(30), 15_000)
    assert sum(map(len, found.values())) <= 15_000
    assert 0 < left_out < 30
    assert len(found) + left_out == 30
    assert embed(tmp_path, [99], [98], 15_000) == ({}, 0)


def test_many_classes_are_told_as_pairs(tmp_path: Path) -> None:
    results = make_results(300, [f"c{n:02d}" for n in range(40)])
    page = write_page(results, tmp_path).read_text("utf-8")
    assert '<table class="confusion">' not in page
    assert 'class="confused"' in page


@pytest.mark.parametrize(
    "what", ["rows", "labels", "map", "confusion", "confidence", "suspect", "nan", "infinity"]
)
def test_parts_that_do_not_fit_each_other_are_refused(what: str, tmp_path: Path) -> None:
    document = make_results(20).to_dict()
    route = document["routes"][0]
    if what == "rows":
        route["predictions"]["rows"][0] = 99
    elif what == "labels":
        document["items"]["labels"][0] = 5
    elif what == "map":
        document["map"]["points"].pop()
    elif what == "confusion":
        route["confusion"].pop()
    elif what == "nan":
        route["budget"][0]["value"] = float("nan")
    elif what == "infinity":
        route["cost"][0]["accuracy"] = float("inf")
    elif what == "confidence":
        route["predictions"]["confidence"][0] = float("nan")
    else:
        document["suspects"][0]["row"] = -1
    with pytest.raises(ResultsError, match="do not fit each other"):
        write_page(document, tmp_path)


@pytest.mark.parametrize("what", ["bins", "machine"])
def test_what_is_not_as_it_was_written_is_refused(what: str, tmp_path: Path) -> None:
    document = make_results(20).to_dict()
    route = document["routes"][0]
    if what == "bins":
        route["reliability"]["after"][0] = {}
    else:
        document["machine"]["versions"] = 5
    with pytest.raises(ResultsError, match="not as featpipe writes it"):
        write_page(document, tmp_path)


def test_a_route_that_failed_or_knows_little_is_shown(tmp_path: Path) -> None:
    document = make_results(20).to_dict()
    for name in ("test", "difference", "seconds", "confusion", "predictions", "reliability"):
        document["routes"][1][name] = None
    document["routes"][1] |= {"budget": [], "cost": [], "per_class": [], "curves": []}
    bare = {"name": "broken <b>", "kind": "head", "status": "failed", "reason": "no <i>memory"}
    document["routes"].append(bare)
    document |= {"leaks": None, "map": None, "suspects": [], "machine": {}, "thumbnails": None}
    page = write_page(document, tmp_path).read_text("utf-8")
    assert "Failed: <bdi>broken &lt;b&gt;</bdi>" in page
    assert "no &lt;i&gt;memory" in page
    assert 'id="map"' not in page


def test_changes_are_shown_first(tmp_path: Path) -> None:
    old, new = make_results(200, seed=1), make_results(200, seed=2)
    page = write_page(new, tmp_path, None, changes_between(old, new)).read_text("utf-8")
    assert page.index('id="changes"') < page.index('id="routes"')


def test_the_command_writes_the_page_again(tmp_path: Path) -> None:
    results = make_results(40)
    results.save(tmp_path)
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").is_file()
    assert results.verdict.sentences[0] in done.output
    (tmp_path / "old").mkdir()
    make_results(40, seed=4).save(tmp_path / "old")
    arguments = ["report", str(tmp_path / "results.json"), "-o", str(tmp_path / "b.html")]
    done = CliRunner().invoke(cli, [*arguments, "--against", str(tmp_path / "old"), "--json"])
    assert done.exit_code == 0, done.output
    changes = json.loads(done.stdout)["changes"]
    assert len(changes["routes"]) == len(results.routes)
    assert 'id="changes"' in (tmp_path / "b.html").read_text("utf-8")


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments in ([str(tmp_path)], [str(tmp_path / "none.json")]):
        done = CliRunner().invoke(cli, ["report", *arguments])
        assert done.exit_code == 1
        assert "There is no" in done.output
    (tmp_path / "results.json").write_text("{}")
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert "no results of featpipe" in done.output


def test_the_results_are_those_that_were_saved(tmp_path: Path) -> None:
    results = make_results(40)
    results.save(tmp_path)
    first = write_page(results, tmp_path, tmp_path / "a.html").read_bytes()
    assert write_page(Results.load(tmp_path), tmp_path).read_bytes() == first
    assert results.classes == list(CLASSES)


def test_figures_are_short() -> None:
    assert [percent(0.93456), percent(None), points(-0.0123), points(0.2), points(-1e-6)] == [
        "93.5", "–", "−1.2", "+20.0", "0.0",
    ]  # fmt: skip
    assert [seconds(value) for value in (0.1234, 5, 59, 150, 600, 4000, None)] == [
        "0.12 s", "5 s", "59 s", "2.5 min", "10 min", "1.11 h", "–",
    ]  # fmt: skip
    assert printable("a\nb\x07\u202e") == "a b\\x07\\u202e"
    assert soft("a_b<c") == "a_<wbr>b&lt;c"


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.91, 0.96, [0.91, 0.92, 0.93, 0.94, 0.95, 0.96])],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)
    assert ticks(0.5, 0.5) == [0.5]


def test_what_is_of_one_repetition_is_told_so(tmp_path: Path) -> None:
    results = make_results(40)
    assert results.design["repeats"] == 3
    page = write_page(results, tmp_path).read_text("utf-8")
    assert "Of the first of 3 repetitions of the folds" in page
    once = replace(results, design={**results.design, "repeats": 1})
    assert "Of the first of" not in write_page(once, tmp_path).read_text("utf-8")
