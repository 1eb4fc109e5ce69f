"""``featpipe import-features``."""

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ImageSettings

COLUMNS = ("path_column", "label_column", "group_column", "split_column")


@click.command("import-features")
@click.argument("features", type=click.Path(dir_okay=False))
@click.option(
    "--table",
    help="CSV, TSV or Parquet table of the same rows [default: the other columns of a Parquet "
    "file].",
)
@click.option("-o", "--out", required=True, help="HDF5 file to make.")
@click.option("--name", required=True, help="What computed the features, for the record.")
@click.option("--layer", default="features", show_default=True, help="What to call them.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    help="Type the features are stored in [default: their own, or float32].",
)
@settings_options(ImageSettings, "image_settings", only=COLUMNS)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@json_option
def command(
    features: str,
    table: str | None,
    out: str,
    name: str,
    layer: str,
    dtype: str | None,
    image_settings: ImageSettings,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a cache of FEATURES that were computed elsewhere, to train heads on.

    FEATURES is a .npy array with one row an image, or a .parquet table with a column "features"
    of lists. The images themselves are not needed.
    """
    from featpipe.cli._output import note, print_json, say
    from featpipe.cli._text import describe_cache
    from featpipe.transfer import import_features

    with import_features(
        features, table, out, name=name, layer=layer, dtype=dtype, image_settings=image_settings,
        overwrite=overwrite,
    ) as cache:  # fmt: skip
        document, usable = describe_cache(cache), int(cache.ok.sum())
        shape = tuple(cache.layers[layer])
    if as_json:
        print_json(document)
        return
    say(f"{usable} of {document['rows']} rows, {layer} {shape}, in {out}")
    if usable < document["rows"]:
        note(f"featpipe info {out} lists the rows without features.")
