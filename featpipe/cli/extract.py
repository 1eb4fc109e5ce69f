"""``featpipe extract``."""

from pathlib import Path
from typing import Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ExtractSettings, ImageSettings


@click.command("extract")
@click.argument("images")
@click.option(
    "-b", "--backbone", required=True, help="[source:]name[@weights], such as vgg16 or resnet50."
)
@click.option("-o", "--out", help="HDF5 file to make [default: IMAGES-BACKBONE.h5, here].")
@settings_options(ExtractSettings, "settings")
@settings_options(ImageSettings, "image_settings")
@json_option
@click.pass_obj
def command(
    quiet: bool, /, images: str, backbone: str, out: str | None, as_json: bool, **settings: Any
) -> None:
    """Cache the features of IMAGES, resuming an interrupted run.

    IMAGES is a folder (photos/CLASS/..., photos/train/CLASS/...), a CSV, TSV or Parquet table,
    or a built-in data set (digits, torchvision:CIFAR10).
    """
    from featpipe.cli._output import note, print_json, progress
    from featpipe.cli._text import default_out, describe_cache
    from featpipe.extract import extract_features

    target = Path(out) if out else default_out(images, backbone)
    with progress(quiet) as reporter:
        cache = extract_features(
            images, backbone, target, on_progress=reporter("extract"), **settings
        )
    document = describe_cache(cache)
    if as_json:
        print_json(document)
        return
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in cache.layers.items())
    usable = int(cache.ok.sum())
    click.echo(f"{usable} of {len(cache)} images, {shapes}, in {target}")
    if usable < len(cache):
        note(f"featpipe info {target} lists the images without features.")
