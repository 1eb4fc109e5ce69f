"""``featpipe train-scratch``."""

import os
import re
from pathlib import Path
from typing import Any

import click

from featpipe.cli._options import json_option, page_option, settings_options
from featpipe.settings import ImageSettings, ScratchSettings, TrainSettings


@click.command("train-scratch")
@click.argument("images")
@click.option("-o", "--out", help="Folder for what is made [default: IMAGES-NETWORK, here].")
@settings_options(ScratchSettings, "settings")
@settings_options(
    TrainSettings,
    "train",
    only=("split", "val", "test", "group", "separator", "min_precision", "seed", "device"),
)
@settings_options(ImageSettings, "image_settings")
@page_option
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    images: str,
    out: str | None,
    settings: ScratchSettings,
    train: TrainSettings,
    image_settings: ImageSettings,
    page: bool,
    as_json: bool,
) -> None:
    """Train a network on the pixels of IMAGES, from random weights.

    Run again after an interruption, it goes on where it was and ends as if nothing had happened.
    Leaves network.safetensors (a backbone: checkpoint:PATH), result.json, split.csv, curves.json,
    curves.png, reliability.png where there are validation rows, and report.html, one page of all
    of it.
    """
    from featpipe.checkpoint import checkpointing
    from featpipe.cli._output import note, print_json, progress
    from featpipe.images import open_images
    from featpipe.network_file import save_network
    from featpipe.pixel_rows import fingerprint
    from featpipe.report.training import save_report
    from featpipe.scratch import options_of, train_from_scratch
    from featpipe.split import save_split

    source = open_images(images, image_settings)
    epochs = options_of(settings)["epochs"]
    folder = Path(out) if out else _default_out(images, settings.network)
    if folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{folder} is a file; --out names a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # better known now than when all is trained
        raise click.BadParameter(f"{folder} cannot be written to; choose another --out.")
    unfinished = folder / "unfinished"
    with checkpointing(unfinished, fingerprint(source)) as kept, progress(quiet) as reporter:
        report = reporter("epochs")
        try:
            network, result = train_from_scratch(
                source, None, settings, train, lambda row: report(int(row["epoch"]), epochs)
            )
        except KeyboardInterrupt:
            if unfinished.exists():
                note(f"The training is kept in {unfinished}: the same command goes on from there.")
            raise
        save_network(folder / "network.safetensors", network)
        result.save(folder / "result.json")
        assert result.split is not None
        save_split(result.split, source.table, folder / "split.csv")
        document = {"out": str(folder), **result.to_dict()}
        title = f"{Path(images).stem}: {settings.network} from scratch"
        _draw(document, folder, title)
        if page:
            save_report(folder, result, network.classes, source, title)
        kept.clear()
    if as_json:
        print_json(document)
    else:
        _print(document, network.classes)


def _default_out(images: str, network: str) -> Path:
    name = Path(images).resolve().stem if Path(images).exists() else images
    return Path(re.sub(r"[^\w.-]+", "-", f"{name[:50]}-{network[:50]}"))


def _draw(document: dict[str, Any], folder: Path, title: str) -> None:
    from featpipe.durable import save_json
    from featpipe.report.plots import plot_curves, plot_reliability

    save_json(folder / "curves.json", document["curves"])
    plot_curves(document["curves"], folder / "curves.png", title)
    calibration = document["calibration"]
    if calibration:
        shown = f"{title}, {calibration['shown']}"
        after = calibration["after"]
        plot_reliability(calibration["before"], after, folder / "reliability.png", shown)


def _print(document: dict[str, Any], classes: tuple[str, ...]) -> None:
    from featpipe.cli._output import say, seconds
    from featpipe.cli._training import (
        print_calibration,
        print_classes,
        print_curves,
        print_scores,
    )

    print_curves(document["curves"])
    scores = document["scores"]
    print_scores(scores)
    part = list(scores)[-1]
    print_classes(part, scores[part], classes)
    print_calibration(document["calibration"])
    conditions = document["conditions"]
    options = conditions["options"]
    since = ", with interruptions," if conditions["resumed"] else ""
    say()
    say(
        f"{conditions['route']}, {options['input_size']} pixels, {options['precision']}; split "
        f"{conditions['split']['origin']}; {document['parameters']:,} parameters; "
        f"{seconds(document['seconds'])} s{since} on {conditions['machine']['cpu']}"
    )
    say(f"Saved in {document['out']}")
