"""``featpipe compare``."""

from typing import Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ExtractSettings, ImageSettings, ScratchSettings, TrainSettings


@click.command("compare")
@click.argument("images")
@click.option(
    "-b", "--backbone", "backbones", multiple=True, required=True, help="Repeat for several."
)
@click.option("--head", "heads", multiple=True, default=("linear",), help="Repeat for several.")
@click.option(
    "--scratch/--no-scratch", default=True, show_default=True, help="Train a CNN from pixels, too."
)
@click.option("-o", "--out", default="featpipe-compare", show_default=True, help="Folder to fill.")
@settings_options(
    ExtractSettings,
    "extract",
    only=(
        "layer",
        "pool",
        "input_size",
        "runtime",
        "precision",
        "decode",
        "compile",
        "dtype",
        "batch_size",
        "workers",
        "device",
        "overwrite",
    ),
)
@settings_options(TrainSettings, "train", only=("split", "val", "test", "group", "seed"))
@settings_options(ScratchSettings, "scratch_settings", prefix="scratch_")
@settings_options(ImageSettings, "image_settings")
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    images: str,
    backbones: tuple[str, ...],
    heads: tuple[str, ...],
    scratch: bool,
    out: str,
    extract: ExtractSettings,
    train: TrainSettings,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compare a CNN from scratch, raw pixels, and each backbone with each head on IMAGES."""
    from dataclasses import replace

    from featpipe.cli._output import print_json, progress, say
    from featpipe.cli._text import print_comparison
    from featpipe.compare import compare_routes

    train = replace(train, device=extract.device)
    with progress(quiet) as reporter:
        comparison = compare_routes(
            images, backbones, heads, out, scratch, extract, train, on_progress=reporter, **settings
        )
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison)
        say(f"Saved in {out}: compare.csv, compare.json, the feature caches")
