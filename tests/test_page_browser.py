"""The page of results in a browser: Debian's Chromium, or any other that is installed."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_results import make_pictures, make_results

from featpipe.report.page import write_page
from featpipe.results import Results, Verdict

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = "<img src=x onerror=alert(1)>"
CLOSING = "</script><script>alert(1)</script><!--\u2028"
# Of every element with text of its own: its contrast with what is behind it, and how large it is.
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = rgb(getComputedStyle(one).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255];
  };
  const wrong = [];
  let seen = 0;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    const colour = rgb(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    seen += 1;
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if ((a + 0.05) / (b + 0.05) < least) wrong.push([element.outerHTML.slice(0, 90), a, b]);
  }
  return [seen, wrong];
}
"""
# Whether an element, by its number, has had the focus.
FOCUSABLE = """
() => {
  window.every = [...document.querySelectorAll("a[href], button, select, summary, [tabindex='0']")]
    .filter((one) => one.checkVisibility());
  return every.length;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    named = os.environ.get("FEATPIPE_CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    with playwright.sync_playwright() as player:
        if named is None and not Path(player.chromium.executable_path).exists():
            pytest.skip("needs a Chromium: apt-get install chromium, or FEATPIPE_CHROMIUM")
        # Its sandbox needs what containers do not have; nothing but these pages is opened.
        started = player.chromium.launch(executable_path=named, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    results = make_results(200)
    make_pictures(results, folder / "thumbnails")
    return write_page(results, folder)


class Opened:
    """A page, what it asked for, and what it complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **context}
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.asked = [url for url in self.asked if url != path.as_uri()]

    def _dialog(self, dialog: Any) -> None:
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error[0] is None:
            assert self.said == []
            assert [url for url in self.asked if not url.startswith("data:")] == []


def column(page: Any, number: int) -> list[float]:
    """What a column of the leaderboard is sorted by."""
    cells = page.locator(f"#leaderboard tbody tr > :nth-child({number})")
    return [float(value) for value in cells.evaluate_all("all => all.map(c => c.dataset.value)")]


def test_the_leaderboard_sorts_by_mouse_and_by_keyboard(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        assert column(page, 2) == sorted(column(page, 2), reverse=True)
        head = page.locator("#leaderboard th", has_text="Cold")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(page, 4) == sorted(column(page, 4))
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert column(page, 4) == sorted(column(page, 4), reverse=True)
        others = page.locator("#leaderboard th[aria-sort]:not([aria-sort=none])")
        assert others.count() == 1
        page.locator("#leaderboard th button").first.press("Space")
        names = page.locator("#leaderboard tbody th .route").all_inner_texts()
        assert names == sorted(names, key=str.lower)


@pytest.mark.parametrize("way", ["click", "Enter"])
def test_a_cell_of_the_confusion_opens_its_pictures(browser: Any, made: Path, way: str) -> None:
    with Opened(browser, made) as page:
        cell = page.locator(".closer:not([hidden]) td.wrong button").first
        count = int(cell.inner_text())
        if way == "click":
            cell.click()
        else:
            cell.focus()
            page.keyboard.press(way)
        dialog = page.locator("dialog[open]")
        assert dialog.get_by_role("heading").inner_text().endswith(f": {count}")
        images = dialog.locator("img")
        assert images.count() == count
        images.first.evaluate("image => image.decode()")
        assert all(images.evaluate_all("all => all.map(image => image.naturalWidth > 0)"))
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        assert cell.evaluate("cell => cell === document.activeElement")


def test_another_route_can_be_looked_at(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        page.locator("#which").select_option(index=3)
        assert page.locator(".closer:visible").count() == 1
        shown = page.locator(".closer:visible .of-route").inner_text()
        assert shown == page.locator("#which option").nth(3).inner_text()


def test_a_point_of_the_map_shows_its_picture(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        frame = page.locator("#points > svg")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        row, x, y = page.evaluate(
            "JSON.parse(document.getElementById('data').textContent).points[7]"
        )
        scale = box["width"] / 1000
        page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
        tip = page.locator("#points .tip")
        assert tip.is_visible()
        tip.locator("img").evaluate("image => image.decode()")
        assert tip.locator("img").evaluate("image => image.naturalWidth") > 0
        assert f"/{row:05d}.jpg" in tip.inner_text()
        page.mouse.move(2, 2)
        assert not tip.is_visible()


def test_the_map_is_walked_with_arrow_keys(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        page.locator("#closer summary:visible").last.focus()
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "points":
                break
        first = page.locator("#map-says").inner_text()
        assert first
        seen = {first}
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
            seen.add(page.locator("#map-says").inner_text())
        assert len(seen) > 2
        page.keyboard.press("Enter")
        assert page.locator("dialog[open] img").count() == 1


def test_a_class_can_be_hidden_on_the_map(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        button = page.locator(".toggles button").first
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert page.locator("#points path.points:visible").count() == 4


def test_tab_reaches_everything(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        count = page.evaluate(FOCUSABLE)
        assert count > 40
        reached = set()
        for _ in range(count + 2):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("every.indexOf(document.activeElement)"))
        assert reached >= set(range(count))


def hostile_results() -> Results:
    """Names that would do something, wherever a name can be."""
    names = (HOSTILE, CLOSING, "x\" onmouseover=alert(1) y='", "${alert(1)}{{7*7}}", "javascript:x")
    routes = [(f"{HOSTILE}{n}{CLOSING}", "head", 0.9 - n / 10, 4.0, 2.0, 10 + n) for n in range(3)]
    ids = [f"{HOSTILE}/{CLOSING}'\"{row}" for row in range(60)]
    results = make_results(60, names, routes, ids=ids)
    document = results.to_dict()
    document["routes"][2] |= {"status": "failed", "reason": HOSTILE}
    document["routes"][0]["conditions"] = {HOSTILE: {CLOSING: [HOSTILE, {HOSTILE: CLOSING}]}}
    document["leaks"]["policy"] = document["map"]["method"] = document["map"]["of"] = HOSTILE
    document["created"] = document["images"]["location"] = HOSTILE
    changed = Results.from_dict(document)
    return replace(changed, title=HOSTILE, verdict=Verdict(None, [HOSTILE, CLOSING]))


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    results = hostile_results()
    make_pictures(results, tmp_path / "thumbnails")
    with Opened(browser, write_page(results, tmp_path)) as page:
        assert page.locator("h1").inner_text() == HOSTILE
        assert page.locator("img[src=x], [onerror], [onmouseover]").count() == 0
        assert page.evaluate("document.scripts.length") == 2
        assert HOSTILE in page.locator(".confusion:visible thead").inner_text()
        for button in page.locator(".closer:not([hidden]) button[data-cell]").all():
            button.click()
            page.keyboard.press("Escape")
        page.locator("#points").focus()
        page.keyboard.press("ArrowRight")
        for button in page.locator(".sortable:visible thead button").all():
            button.click()
        for summary in page.locator("summary:visible").all():
            summary.click()
        assert page.locator("img[src=x], [onerror], [onmouseover]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_what_is_behind_them(browser: Any, made: Path, scheme: str) -> None:
    with Opened(browser, made, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        seen, wrong = page.evaluate(CONTRAST)
        assert seen > 300
        assert wrong == []


def test_a_telephone_shows_it_without_scrolling_sideways(browser: Any, made: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    with Opened(browser, made, **phone) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        sizes = page.locator("svg .tick:visible").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 11  # letters of charts are not shrunk with them


def test_on_paper_everything_is_open(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0
        assert page.pdf()[:5] == b"%PDF-"


def test_pictures_and_charts_have_words(browser: Any, made: Path) -> None:
    with Opened(browser, made) as page:
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        charts = page.locator("svg[role=img]")
        assert charts.count() >= 3
        titles = charts.evaluate_all("all => all.map(c => c.querySelector('title').textContent)")
        assert all(titles)
        unnamed = page.locator("button:visible").evaluate_all(
            "all => all.filter(b => !(b.textContent.trim() || b.ariaLabel)).length"
        )
        assert unnamed == 0
        duplicates = page.evaluate(
            "(ids => ids.length - new Set(ids).size)"
            "([...document.querySelectorAll('[id]')].map(one => one.id))"
        )
        assert duplicates == 0
