"""``featpipe bench``."""

from typing import Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ExtractSettings, ImageSettings


@click.command("bench")
@click.argument("backbone")
@click.argument("images", required=False)
@click.option(
    "-o",
    "--out",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder to try writing in.",
)
@settings_options(
    ExtractSettings,
    "settings",
    only=("layer", "pool", "weights", "seed", "input_size", "dtype", "batch_size", "workers",
          "device"),
)  # fmt: skip
@settings_options(ImageSettings, "image_settings")
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    backbone: str,
    images: str | None,
    out: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure what this machine can do with BACKBONE, and say which setting is best.

    Decoding, forward passes and writing, each alone, in every way there is. IMAGES are some of
    yours; without them made-up JPEGs of 500 x 375 pixels are decoded.
    """
    from featpipe.bench import bench
    from featpipe.cli._output import print_json, progress

    with progress(quiet) as reporter:
        found = bench(backbone, images, folder=out, on_progress=reporter("bench"), **settings)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Any) -> None:
    from featpipe.cli._output import print_table, say

    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in found.layers.items())
    say(f"{found.backbone} on {found.device}: {shapes}; {found.images}")
    rows = [["decode", mode, f"{speed:,.0f}", "", "", ""] for mode, speed in found.decode.items()]
    for way in found.forward:
        name = f"{way.runtime} {way.precision}"
        if way.images_per_second is None:
            rows.append(["forward", name, "-", "", "", way.reason])
            continue
        rows.append(
            [
                "forward",
                name,
                f"{way.images_per_second:,.1f}",
                f"{way.start_seconds:.2f}",
                f"{way.fidelity.cosine:.5f}",
                "" if way.true else "not true enough",
            ]
        )
    rows.append(["write", "", f"{found.write:,.0f}", "", "", ""])
    print_table(("stage", "way", "images/s", "start s", "cosine", ""), rows, left=2)
    choice = found.choice
    say(
        f"best: --runtime {choice['runtime']} --precision {choice['precision']} --decode "
        f"{choice['decode']}: up to {choice['images_per_second']:,.1f} images/s"
    )
