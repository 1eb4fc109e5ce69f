"""``featpipe finetune``."""

from pathlib import Path
from typing import Any

import click

from featpipe.cli._options import (
    descent_options,
    json_option,
    page_option,
    settings_options,
    tail_options,
)
from featpipe.settings import ExtractSettings, ImageSettings, TrainSettings


@click.command("finetune")
@click.argument("images")
@click.option(
    "-b", "--backbone", required=True, help="[source:]name[@weights], such as vgg16 or resnet50."
)
@click.option(
    "--cut",
    required=True,
    metavar="LAYER",
    help="The last layer that stays as it is, such as layer3; what is behind it is trained.",
)
@click.option("-o", "--out", help="Folder for what is made [default: IMAGES-BACKBONE-CUT, here].")
@descent_options
@tail_options
@settings_options(
    TrainSettings,
    "settings",
    only=("split", "val", "test", "group", "separator", "min_precision", "seed", "device",
          "memory"),
)  # fmt: skip
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type the activations are stored in.",
)
@settings_options(
    ExtractSettings,
    "extract",
    only=("weights", "input_size", "runtime", "decode", "workers", "on_error", "overwrite"),
)
@settings_options(ImageSettings, "image_settings")
@page_option
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    images: str,
    backbone: str,
    cut: str,
    out: str | None,
    settings: TrainSettings,
    dtype: str,
    extract: ExtractSettings,
    image_settings: ImageSettings,
    page: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the part of a network behind a cut on IMAGES and save a classifier.

    What is before the cut runs once an image; its activations are stored in OUT and read in every
    epoch, and by the next run. Interrupted, the same command goes on where it was. Leaves what
    train-head leaves.
    """
    from dataclasses import replace

    from featpipe.cache import FeatureCache
    from featpipe.cli._output import print_json, progress
    from featpipe.cli._results import Epochs, draw, saying_how_to_resume, show
    from featpipe.cli._text import default_out
    from featpipe.finetune import FEATURES, UNFINISHED, finetune
    from featpipe.heads import make_head
    from featpipe.report.training import save_report

    chosen = {name: value for name, value in options.items() if value is not None}
    named = default_out(images, backbone).with_suffix("").name
    folder = Path(out) if out else Path(f"{named}-{cut}".replace("/", "-"))
    if folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{folder} is a file; --out names a folder.")
    epochs = Epochs(make_head("tail", chosen).get_params()["epochs"])
    with (
        progress(quiet, lambda: epochs.last) as reporter,
        saying_how_to_resume(folder / UNFINISHED),
    ):
        epochs.report = reporter("train")
        classifier, result = finetune(
            images, backbone, cut, folder, settings,
            replace(extract, device=settings.device, dtype=dtype), image_settings,
            reporter("extract"), epochs, **chosen,
        )  # fmt: skip
    document = {"out": str(folder), **result.to_dict()}
    random = " (random weights)" if classifier.spec.random_weights else ""
    title = f"{named}, fine-tuned from {cut}{random}"
    draw(document, folder, title)
    if page:
        with FeatureCache.open(folder / FEATURES) as cache:
            save_report(folder, result, classifier.classes, cache, title, "finetune")
    if as_json:
        print_json(document)
    else:
        show(document, classifier.classes)
