"""``featpipe verify``."""

import sys
from dataclasses import asdict
from typing import Any

import click

from featpipe.cli._options import AGAIN, json_option, settings_options
from featpipe.settings import ExtractSettings, ImageSettings


@click.command("verify")
@click.argument("cache", type=click.Path(dir_okay=False))
@click.argument("images", required=False)
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Rows to compute again, drawn at random.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@settings_options(ExtractSettings, "settings", only=AGAIN)
@settings_options(ImageSettings, "image_settings")
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    cache: str,
    images: str | None,
    sample: int,
    seed: int,
    settings: ExtractSettings,
    image_settings: ImageSettings,
    as_json: bool,
) -> None:
    """Prove CACHE: checksums of everything, its images' digests, and a sample computed again.

    IMAGES is where the images lie, if not where they lay at extraction. Exits with 1 and the
    list of bad rows if anything is wrong; the extract that made the cache repairs them.
    """
    from featpipe.cli._output import print_json, progress
    from featpipe.verification import verify

    with progress(quiet) as reporter:
        found = verify(
            cache,
            images,
            sample,
            seed,
            settings,
            image_settings if images else None,
            on_progress=reporter("verify"),
        )
    if as_json:
        print_json({**asdict(found), "ok": found.ok})
    else:
        _print(found)
    sys.exit(0 if found.ok else 1)


def _print(found: Any) -> None:
    from featpipe.cli._output import say

    say(
        f"{found.path}: {found.rows} rows, all read; {found.images_checked} images digested, "
        f"{found.images_absent} could not be read, {found.images_new} are new."
    )
    if found.sampled:
        say(
            f"{found.sampled} rows computed again: largest difference "
            f"{found.largest_difference:.2g} of the row's largest value "
            f"(allowed {found.tolerance:.2g})."
        )
    for note in found.notes:
        say(note)
    if found.ok:
        say("Nothing is wrong.")
        return
    for name, reason in found.table.items():
        say(f"{name}: {reason}")
    say(f"{len(found.bad)} rows are bad. The extract that made the file repairs it.")
    for row in found.bad:
        say(f"  {row.row} {row.id}: {row.reason}")
