"""``featpipe extract``."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ExtractSettings, ImageSettings

if TYPE_CHECKING:
    from featpipe.cache import FeatureCache


@click.command("extract")
@click.argument("images")
@click.option(
    "-b", "--backbone", required=True, help="[source:]name[@weights], such as vgg16 or resnet50."
)
@click.option("-o", "--out", help="HDF5 file to make [default: IMAGES-BACKBONE.h5, here].")
@settings_options(ExtractSettings, "settings", without=("trust_code",))
@settings_options(ImageSettings, "image_settings")
@click.option("--plan", is_flag=True, help="Say what would be computed, and do nothing.")
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    images: str,
    backbone: str,
    out: str | None,
    plan: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Cache the features of IMAGES, resuming an interrupted run.

    IMAGES is a folder (photos/CLASS/..., photos/train/CLASS/...), a CSV, TSV or Parquet table,
    or a built-in data set (digits, torchvision:CIFAR10). An image that cannot be used is a row with
    a reason; if that is all of them, the exit code is 1.
    """
    from featpipe.cli._output import print_json, progress
    from featpipe.cli._text import default_out, describe_cache
    from featpipe.extract import extract_features
    from featpipe.throughput import Meter

    target = Path(out) if out else default_out(images, backbone)
    if plan:
        from featpipe.plan import plan_extraction

        _print_plan(target, plan_extraction(images, backbone, target, **settings), as_json)
        return
    meter = Meter()
    with progress(quiet, lambda: f"{meter.bound}-bound") as reporter:
        cache = extract_features(
            images, backbone, target, on_progress=reporter("extract"), meter=meter, **settings
        )
    if as_json:
        print_json(describe_cache(cache))
    else:
        _print_cache(target, cache)
    if not cache.ok.any():  # what comes next in a script could only fail, and not say why
        sys.exit(1)


def _print_cache(target: Path, cache: "FeatureCache") -> None:
    from featpipe.cli._output import note, say

    usable = int(cache.ok.sum())
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in cache.layers.items())
    several = f", {cache.views} views" if cache.views > 1 else ""
    say(f"{usable} of {len(cache)} images{several}, {shapes}, in {target}")
    if usable < len(cache):
        note(f"featpipe info {target} lists the images without features.")


def _print_plan(target: Path, plan: Any, as_json: bool) -> None:
    from featpipe.cli._output import print_json, say

    if as_json:
        print_json({"path": str(target), **asdict(plan)})
        return
    say(f"{target}: {plan.images} images, {plan.row_bytes:,} bytes a row")
    for count, what in (
        (plan.unreadable, "cannot be read"),
        (plan.duplicates, "are copies of others, byte for byte"),
        (plan.finished, "are computed already, in the finished file"),
        (plan.unfinished, "are computed already, in an interrupted run"),
        (plan.elsewhere, "can be taken from another cache"),
        (plan.damaged, "rows are damaged and would be computed again"),
    ):
        if count:
            say(f"{count:>9,} {what}")
    say(f"{plan.to_compute:>9,} would be computed")
