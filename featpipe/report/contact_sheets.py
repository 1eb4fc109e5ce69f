"""Contact sheets: pictures in a grid with a few words under each, as one PNG file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featpipe.decode import encode_png
from featpipe.durable import put

SIDE, GAP, LINE = 150, 8, 15  # pixels: of a picture, between cells, of a line of text
WIDTH = 4  # pictures beside each other
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK, ALARM, EMPTY = "#ffffff", "#222222", "#b3261e", "#dddddd"


@dataclass(frozen=True)
class Cell:
    """Some pictures that belong together, and what is to be said of them.

    Attributes
    ----------
    rows : tuple of int
        Of the cache.
    lines : tuple of str
        Under the pictures, one line each, cut where they are too long.
    alarming : bool
        Whether the last line is in red.
    """

    rows: tuple[int, ...]
    lines: tuple[str, ...]
    alarming: bool = False


def draw_sheet(
    cells: Sequence[Cell],
    picture: Callable[[int], Image.Image | None],
    path: str | Path,
    title: str,
) -> None:
    """Draw cells of equally many pictures, from left to right and down.

    Parameters
    ----------
    cells : sequence of Cell
        One at least.
    picture : callable
        ``picture(row)``; a grey square stands for what is None.
    path : str or Path
        A PNG file.
    title : str
    """
    each = len(cells[0].rows)
    columns = max(1, min(len(cells), WIDTH // each))
    wide = each * SIDE + GAP * (each - 1) // 2
    high = SIDE + LINE * max(len(cell.lines) for cell in cells) + GAP
    rows = -(-len(cells) // columns)
    top = LINE + 2 * GAP
    size = (GAP + columns * (wide + GAP), top + rows * (high + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((GAP, GAP), _fitting(title, pen, font, size[0] - 2 * GAP), INK, font)
    for place, cell in enumerate(cells):
        left = GAP + place % columns * (wide + GAP)
        upper = top + place // columns * (high + GAP)
        for number, row in enumerate(cell.rows):
            at = (left + number * (SIDE + GAP // 2), upper)
            _paste(sheet, pen, picture(row), at)
        for number, line in enumerate(cell.lines):
            last = cell.alarming and number == len(cell.lines) - 1
            where = (left, upper + SIDE + 2 + number * LINE)
            pen.text(where, _fitting(line, pen, font, wide), ALARM if last else INK, font)
    put(Path(path), encode_png(sheet))


def _paste(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, found: Image.Image | None, at: tuple[int, int]
) -> None:
    left, top = at
    if found is None:
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=EMPTY)
        return
    scale = SIDE / max(found.size)  # small pictures are enlarged: they are to be looked at
    size = (max(1, round(found.width * scale)), max(1, round(found.height * scale)))
    small = found.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    sheet.paste(small, (left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2))


def _fitting(text: str, pen: ImageDraw.ImageDraw, font: _Font, width: int) -> str:
    """One line of at most so many pixels; of names the end is kept, which tells them apart."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    if pen.textlength(text, font) <= width:
        return text
    text = text[-width:]  # a letter is no less than a pixel wide
    while text and pen.textlength(f"...{text}", font) > width:
        text = text[1:]
    return f"...{text}"
