"""``featpipe demo``."""

import time

import click

from featpipe.cli._options import json_option


@click.command("demo")
@click.option("-o", "--out", default="featpipe-demo", show_default=True, help="Folder to fill.")
@json_option
@click.pass_obj
def command(quiet: bool, out: str, as_json: bool) -> None:
    """Show the whole pipeline on handwritten digits, in about a minute, with no data of yours."""
    begun = time.perf_counter()
    from featpipe.cli._output import print_json, progress, say
    from featpipe.cli._text import print_comparison
    from featpipe.demo import run_demo

    with progress(quiet) as reporter:
        comparison = run_demo(out, reporter)
    if as_json:
        print_json(comparison.to_dict())
        return
    print_comparison(comparison.results)
    say()
    say(
        f"{time.perf_counter() - begun:.0f} s in all. In {out}: grid.png (predictions), curves.png,"
    )
    say("results.csv, results.json, classifier.safetensors, the features (.h5), and the digits as")
    say("PNGs. Your own images, one folder a class:")
    say("  featpipe compare PHOTOS --backbone mobilenet_v2")
