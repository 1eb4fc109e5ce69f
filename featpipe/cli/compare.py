"""``featpipe compare``."""

from typing import Any

import click

from featpipe.cli._options import json_option, page_option, settings_options
from featpipe.settings import CompareSettings, ExtractSettings, ImageSettings, ScratchSettings


@click.command("compare")
@click.argument("images")
@click.option("-b", "--backbone", "backbones", multiple=True, help="Repeat for several.")
@click.option("--head", "heads", multiple=True, default=("linear",), help="Repeat for several.")
@click.option(
    "--scratch/--no-scratch",
    default=True,
    show_default=True,
    help="With --backbone: train a CNN from pixels, too.",
)
@click.option(
    "--routes", "files", multiple=True, metavar="TOML", help="File of routes, a [[route]] each."
)
@click.option(
    "--route",
    "lines",
    multiple=True,
    metavar="NAME=VALUE ...",
    help="One more, such as 'backbone=resnet18 head=logistic sweep.C=0.1,1,10', "
    "'scratch=small epochs=30', 'pixels=knn' or 'backbone=resnet18 cut=layer3'; repeat.",
)
@click.option("--plan", is_flag=True, help="Say what would run, how long and how large; then stop.")
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
@settings_options(CompareSettings, "settings", without=("device",))
@settings_options(ScratchSettings, "scratch_settings", prefix="scratch_")
@settings_options(ImageSettings, "image_settings")
@click.option(
    "--against", metavar="OLD", help="Earlier results: say, and show first, what changed since."
)
@page_option
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    images: str,
    backbones: tuple[str, ...],
    files: tuple[str, ...],
    lines: tuple[str, ...],
    plan: bool,
    out: str,
    extract: ExtractSettings,
    settings: CompareSettings,
    against: str | None,
    page: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Compare ways to a classifier of IMAGES: backbones with heads, pixels, CNNs from scratch.

    All see the same images, folds and seeds. What is finished is kept in --out: a route more, or
    the same command after an interruption, runs only what is missing.
    """
    if not (backbones or files or lines):
        raise click.UsageError("Name a --backbone, a --route, or a file of --routes.")
    from dataclasses import replace

    from featpipe.changes import changes_between
    from featpipe.cli._output import note, print_json, progress, say
    from featpipe.cli._text import print_comparison
    from featpipe.compare import compare_routes
    from featpipe.report.comparison import save_comparison
    from featpipe.results import Results
    from featpipe.routes import parse_route, read_routes

    routes = [one for file in files for one in read_routes(file)]
    routes += [one for line in lines for one in parse_route(line)]
    settings = replace(settings, device=extract.device)
    old = None if against is None else Results.load(against)  # before anything is written over it
    more |= {"extract": extract, "settings": settings, "routes": routes}
    if plan:
        from featpipe.cli._text import print_plan
        from featpipe.compare_plan import plan_comparison

        planned = plan_comparison(images, backbones, out=out, **more)
        if as_json:
            print_json(planned.to_dict())
        else:
            print_plan(planned)
        return
    with progress(quiet) as reporter:
        try:
            comparison = compare_routes(images, backbones, out=out, on_progress=reporter, **more)
        except KeyboardInterrupt:
            note(f"What is finished is kept in {out}; the same command goes on from there.")
            raise
    changes = None if old is None else changes_between(old, comparison.results)
    if page:
        save_comparison(out, comparison, images, more["image_settings"], changes)
    if as_json:
        told = {"changes": changes.to_dict()} if changes else {}
        print_json({**comparison.to_dict(), **told})
        return
    print_comparison(comparison.results)
    if changes:
        say()
        say(f"What changed since {against}:")
        for sentence in changes.sentences:
            say(f"  {sentence}")
    shown = "report.html, " if page else ""
    say(f"Saved in {out}: {shown}results.json, results.csv, split.csv, the feature caches")
