"""``featpipe audit``."""

from pathlib import Path
from typing import Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ImageSettings, TrainSettings

SHOWN = 20  # lines of each table


@click.command("audit")
@click.argument("features", type=click.Path(dir_okay=False))
@click.argument("images", required=False)
@click.option("-o", "--out", help="Folder for what is found [default: FEATURES-audit, here].")
@click.option(
    "--split",
    metavar="FILE",
    help="A split as featpipe split writes it, whose parts pairs may be across [default: the "
    "images' own].",
)
@click.option(
    "--head", default="logistic", show_default=True, help="That judges labels it has not seen."
)
@settings_options(TrainSettings, "settings", only=("layer", "group", "folds", "seed", "device"))
@settings_options(ImageSettings, "image_settings")
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    features: str,
    images: str | None,
    out: str | None,
    split: str | None,
    head: str,
    settings: TrainSettings,
    image_settings: ImageSettings,
    as_json: bool,
) -> None:
    """Find images of FEATURES that are there twice, and labels that are likely wrong.

    IMAGES is where the images lie, if not where they lay at extraction. Twice are images of the
    same bytes, and those that are re-encoded, resized or mirrored; such pairs across the parts of
    a split or across classes are said to be. A label is likely wrong where a head that has not
    seen it (of --folds folds, 5 if 0) is surer of another class than it usually is. Leaves
    audit.json, leaks.csv, suspects.csv, and contact sheets leaks.png and suspects.png.
    """
    from featpipe.audit import audit
    from featpipe.cache import FeatureCache
    from featpipe.cli._output import print_json, progress

    folder = Path(out) if out else Path(f"{Path(features).stem}-audit")
    if folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{folder} is a file; --out names a folder.")
    chosen = image_settings if images else None
    with FeatureCache.open(features) as cache:
        with progress(quiet) as reporter:
            found = audit(cache, images, settings, split, head, chosen, reporter)
        written = found.save(folder, images, chosen)
    document = {**found.to_dict(), "out": str(folder), "files": written}
    if as_json:
        print_json(document)
    else:
        _print(found, document)


def _print(found: Any, document: dict[str, Any]) -> None:
    from featpipe.audit import how_alike
    from featpipe.cli._output import print_table, say

    table, pairs = found.cache.table, found.duplicates.pairs
    ids, classes = table.ids, table.classes
    say(f"{document['path']}: {found.duplicates.describe()}")
    if found.duplicates.unseen:
        say(f"{found.duplicates.unseen} images were not to be had, and not compared as pictures.")
    if pairs:
        rows = [
            [*(str(ids[row]) for row in pair.rows), how_alike(pair), " and ".join(pair.across)]
            for pair in pairs[:SHOWN]
        ]
        print_table(["image", "other", "how alike", "across"], rows, left=4)
        _more(len(pairs), "leaks.csv")
    if found.suspects is not None:
        say()
        say(f"{len(found.suspects)} labels are likely wrong")
    if found.suspects:
        lines = [
            [str(ids[one.row]), classes[one.given], classes[one.suggested], f"{one.score:.2f}"]
            for one in found.suspects[:SHOWN]
        ]
        print_table(["image", "label", "rather", "score"], lines, left=3)
        _more(len(found.suspects), "suspects.csv")
    say()
    say(f"Saved in {document['out']}: {', '.join(document['files'])}")


def _more(count: int, where: str) -> None:
    from featpipe.cli._output import say

    if count > SHOWN:
        say(f"and {count - SHOWN} more in {where}")
