"""``featpipe export-features``."""

import click

from featpipe.cli._options import json_option


@click.command("export-features")
@click.argument("cache", type=click.Path(dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--layer", help="Layer of the cache to export [default: the only one].")
@json_option
def command(cache: str, out: str, layer: str | None, as_json: bool) -> None:
    """Write the features of CACHE to OUT: .npy, .parquet or .h5ad.

    A .npy file gets the table beside it, as .csv. What is there already is replaced.
    """
    from featpipe.cache import FeatureCache
    from featpipe.cli._output import print_json, say
    from featpipe.transfer import export_features

    with FeatureCache.open(cache) as opened:
        files = [str(path) for path in export_features(opened, out, layer)]
        name, rows = opened.layer(layer), len(opened)
        shape = opened.layers[name]
    if as_json:
        print_json({"files": files, "rows": rows, "layer": name, "shape": list(shape)})
    else:
        say(f"{rows} rows, {name} {tuple(shape)}, in {' and '.join(files)}")
