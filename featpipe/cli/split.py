"""``featpipe split``."""

from typing import TYPE_CHECKING, Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np

    from featpipe.split import Split
    from featpipe.table import ImageTable

FIELDS = (
    "split",
    "val",
    "test",
    "group",
    "leaks",
    "folds",
    "repeats",
    "leave_one_group_out",
    "seed",
    "separator",
)


@click.command("split")
@click.argument("features", type=click.Path(dir_okay=False))
@settings_options(TrainSettings, "settings", only=FIELDS)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False),
    help="CSV to write the split to, for --split; one that is there is replaced.",
)
@json_option
def command(features: str, settings: TrainSettings, out: str | None, as_json: bool) -> None:
    """Divide the rows of FEATURES into train, validation, test and folds.

    Prints the images of each class and part, and the size of each fold. The file that --out
    names can be changed by hand, kept, and given to other commands as --split.
    """
    from featpipe.cache import FeatureCache
    from featpipe.cli._output import print_json
    from featpipe.duplicates import copies_of
    from featpipe.split import row_groups, save_split, split_rows
    from featpipe.targets import targets_of

    with FeatureCache.open(features) as cache:
        targets = targets_of(cache.table, settings.separator)
        copies = copies_of(cache, settings.leaks) if settings.leaks else None
        split = split_rows(cache.table, settings, cache.ok, strata=targets.strata, copies=copies)
        groups = row_groups(cache.table, settings.group)
        document = {"path": features, **_describe(split, cache.table, groups), "out": out}
        if out is not None:
            save_split(split, cache.table, out)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _describe(split: "Split", table: "ImageTable", groups: "np.ndarray | None") -> dict[str, Any]:
    """Counts of each part and fold, as plain JSON values."""
    import numpy as np

    assert table.labels is not None
    parts = {}
    for name, rows in split.parts().items():
        counts = np.bincount(table.labels[rows], minlength=len(table.classes)).tolist()
        parts[name] = {
            "images": len(rows),
            "groups": None if groups is None else len(set(groups[rows])),
            "classes": dict(zip(table.classes, counts, strict=True)),
        }
    folds = []
    for repeat, numbers in enumerate(split.fold_numbers(), start=1):
        for fold, count in enumerate(np.bincount(numbers)[1:].tolist(), start=1):
            sizes = {"train": len(numbers) - count, "val": count}
            val = split.train[numbers == fold]
            held_out = None if groups is None else len(set(groups[val]))
            folds.append({"repeat": repeat, "fold": fold, **sizes, "val_groups": held_out})
    left_out = len(table) - sum(len(rows) for rows in split.parts().values())
    return {"origin": split.origin, "left_out": left_out, "parts": parts, "folds": folds}


def _print(document: dict[str, Any]) -> None:
    from featpipe.cli._output import print_table, say

    parts, folds = document["parts"], document["folds"]
    titles = [{"val": "validation"}.get(name, name) for name in parts]
    grouped = parts["train"]["groups"] is not None
    rows = [
        [name, *(str(part["classes"][name]) for part in parts.values())]
        for name in parts["train"]["classes"]
    ]
    rows.append(["all images", *(str(part["images"]) for part in parts.values())])
    if grouped:
        rows.append(["groups", *(str(part["groups"]) for part in parts.values())])
    print_table(["class", *titles], rows)
    if folds:
        say()
        columns = ["repeat", "fold", "train", "val"] + ["val_groups"] * grouped
        names = ["repeat", "fold", "train", "validation"] + ["validation groups"] * grouped
        print_table(names, [[str(fold[name]) for name in columns] for fold in folds], left=2)
    say()
    left_out = f"; {document['left_out']} rows are in no part" if document["left_out"] else ""
    say(f"{document['path']}: split {document['origin']}{left_out}")
    if document["out"] is not None:
        say(f"Saved in {document['out']}")
