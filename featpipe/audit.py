"""What is wrong with a set of images: pictures that are there twice, labels that look wrong."""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.cache import FeatureCache
from featpipe.duplicates import Duplicates, Pair, find_duplicates
from featpipe.durable import put, save_json
from featpipe.errors import ImagesError, SplitError
from featpipe.images import ImageSource
from featpipe.originals import open_originals
from featpipe.report.contact_sheets import Cell, draw_sheet
from featpipe.settings import ImageSettings, TrainSettings
from featpipe.split_file import load_split
from featpipe.suspects import Suspect, find_suspects
from featpipe.table import ImageTable

log = logging.getLogger(__name__)

MOST_DRAWN = 60  # pairs, and labels, on a contact sheet
Report = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Attributes
    ----------
    cache : FeatureCache
    duplicates : Duplicates
    suspects : list of Suspect or None
        The likeliest errors first; None if labels could not be judged.
    note : str
        Why they could not.
    """

    cache: FeatureCache
    duplicates: Duplicates
    suspects: list[Suspect] | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `leaks` and `suspects` are as results have them."""
        suspects = self.suspects or []
        return {
            "path": str(self.cache.path),
            "images": len(self.cache),
            "ids": {
                str(row): self.cache.table.ids[row]
                for row in sorted(
                    {row for pair in self.duplicates.pairs for row in pair.rows}
                    | {suspect.row for suspect in suspects}
                )
            },
            "classes": list(self.cache.table.classes),
            "leaks": self.duplicates.to_dict(),
            "candidates": self.duplicates.candidates,
            "unseen": self.duplicates.unseen,
            "suspects": [suspect.to_dict() for suspect in suspects],
            "labels_judged": self.suspects is not None,
            "note": self.note,
        }

    def save(
        self,
        folder: str | Path,
        images: str | Path | ImageSource | None = None,
        image_settings: ImageSettings | None = None,
    ) -> list[str]:
        """Write ``audit.json``, ``leaks.csv``, ``suspects.csv``, and contact sheets of both.

        The tables are for people: a name that begins like a formula has an apostrophe before it.

        Parameters
        ----------
        folder : str or Path
        images, image_settings
            As of `audit`. Without pictures there are no contact sheets.

        Returns
        -------
        list of str
            Names of the files.
        """
        folder, table = Path(folder), self.cache.table
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / "audit.json", self.to_dict())
        pairs, suspects = self.duplicates.pairs, self.suspects or []
        _save_csv(folder / "leaks.csv", LEAKS, [_pair_row(pair, table) for pair in pairs])
        of_suspects = [
            [
                table.ids[one.row],
                table.classes[one.given],
                table.classes[one.suggested],
                f"{one.score:.4f}",
            ]
            for one in suspects
        ]
        _save_csv(folder / "suspects.csv", SUSPECTS, of_suspects)
        written = ["audit.json", "leaks.csv", "suspects.csv"]
        sheets = {
            "leaks.png": [_pair_cell(pair, table) for pair in pairs[:MOST_DRAWN]],
            "suspects.png": [_suspect_cell(one, table) for one in suspects[:MOST_DRAWN]],
        }
        titles = {
            "leaks.png": f"{self.cache.path.stem}: {self.duplicates.describe()}",
            "suspects.png": f"{self.cache.path.stem}: labels that look wrong",
        }
        try:
            originals = open_originals(self.cache, images, image_settings)
        except ImagesError as error:
            log.warning("No contact sheets are drawn. %s", error)
            return written
        for name, cells in sheets.items():
            (folder / name).unlink(missing_ok=True)  # of an earlier audit
            if cells:
                draw_sheet(cells, originals.picture, folder / name, titles[name])
                written.append(name)
        return written


def audit(
    cache: FeatureCache,
    images: str | Path | ImageSource | None = None,
    settings: TrainSettings | None = None,
    split: str | Path | None = None,
    head: str = "logistic",
    image_settings: ImageSettings | None = None,
    on_progress: Report | None = None,
) -> Audit:
    """Look for pictures that are there twice, and for labels that are likely wrong.

    Parameters
    ----------
    cache : FeatureCache
    images : str, Path or ImageSource
        Where the pictures are; by default where the cache says.
    settings : TrainSettings
        ``layer``, ``group``, ``folds``, ``seed`` and ``device`` are used.
    split : str or Path
        A split file, by which pairs are across its parts; by default the table's own split.
    head : str
        That judges the labels.
    image_settings : ImageSettings
        For manifests; by default those of the extraction.
    on_progress : callable
        Given a name, returns what is given things done and things in all.
    """
    settings = settings or TrainSettings()
    divided = None if split is None else load_split(split, cache.table, cache.ok)
    found = find_duplicates(
        cache, images, settings.layer, image_settings, None, settings.device, on_progress
    ).on(cache.table, divided)
    report = on_progress("judge labels") if on_progress else None
    try:
        suspects = find_suspects(cache, head, settings, found.copies("group"), report)
    except SplitError as error:
        note = f"Labels are not judged. {error}"
        log.warning("%s", note)
        return Audit(cache, found, None, note)
    return Audit(cache, found, suspects)


FORMULA = ("=", "+", "-", "@", "\t", "\r")
LEAKS = ("image", "other", "kind", "hash_distance", "similarity", "mirrored", "across")
SUSPECTS = ("image", "given", "suggested", "score")


def how_alike(pair: Pair) -> str:
    """A few words for people."""
    if pair.exact:
        return "same bytes"
    return f"{'mirrored, ' if pair.mirrored else ''}{pair.distance} of 256 bits differ"


def _pair_row(pair: Pair, table: ImageTable) -> list[str]:
    one, other = (table.ids[row] for row in pair.rows)
    kind = "exact" if pair.exact else "near"
    figures = [str(pair.distance), f"{pair.similarity:.4f}", "yes" if pair.mirrored else "no"]
    return [one, other, kind, *figures, " ".join(pair.across)]


def _pair_cell(pair: Pair, table: ImageTable) -> Cell:
    across = " and ".join(pair.across)
    last = f"{how_alike(pair)}{f'; across {across}' if across else ''}"
    lines = tuple(str(table.ids[row]) for row in pair.rows)
    return Cell(pair.rows, (*lines, last), bool(across))


def _suspect_cell(suspect: Suspect, table: ImageTable) -> Cell:
    given, suggested = table.classes[suspect.given], table.classes[suspect.suggested]
    rather = f"rather {suggested} ({suspect.score:.2f})"
    return Cell((suspect.row,), (str(table.ids[suspect.row]), f"{given}?", rather))


def _shown(cell: str) -> str:
    """As spreadsheets show it: what begins like a formula would be run as one."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _save_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_shown(cell) for cell in row] for row in rows)
    put(path, text.getvalue().encode("utf-8", "surrogateescape"))
