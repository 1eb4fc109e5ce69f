"""``featpipe recipe``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import ExtractSettings, ImageSettings

if TYPE_CHECKING:
    from featpipe.recipes import Recipe


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


@click.command("recipe")
@click.argument("name", required=False)
@click.argument("images", required=False)
@click.option("-o", "--out", help="Folder to fill [default: recipe-NAME, here].")
@click.option(
    "-b",
    "--backbone",
    metavar="[NAME]@WEIGHTS",
    help="Instead of the published one; @PATH or @random alone are its weights.",
)
@click.option("--as-published", is_flag=True, help="Only what was published, faults included.")
@click.option(
    "--each-fault/--both-ends",
    default=True,
    show_default=True,
    help="Mend one fault after the other and say what each did, or all of them at once.",
)
@click.option("--show", is_flag=True, help="Only print what the example did, and its faults.")
@click.option(
    "--classes", callback=_names, metavar="A,B", help="Only images of these classes: daisy,roses."
)
@click.option(
    "--group",
    metavar="auto|none|REGEX",
    help="How to know which images belong together [default: as the recipe's own are named, "
    "else by the table's groups].",
)
@click.option("--cut", metavar="LAYER", help="Where to cut a backbone, if it is fine-tuned.")
@settings_options(
    ExtractSettings,
    "extract",
    only=(
        "seed",
        "input_size",
        "runtime",
        "precision",
        "decode",
        "batch_size",
        "workers",
        "device",
    ),
)
@settings_options(ImageSettings, "image_settings")
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    name: str | None,
    images: str | None,
    out: str | None,
    show: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Run a published example on IMAGES, as it was published and done right.

    NAME is a recipe; without it, they are listed. Leaves in OUT the features, recipe.json, and for
    each way result.json, split.csv, curves.png, the classifier, and report.html of all of it.
    What is finished is not run again.
    """
    from featpipe.cli._output import print_json, progress, say
    from featpipe.cli._recipe import document_of, print_recipe, print_reproduction
    from featpipe.cli._results import saying_how_to_resume
    from featpipe.recipes import load_recipe, recipe_names
    from featpipe.reproduce import run_recipe

    if name is None:
        recipes = {one: load_recipe(one) for one in recipe_names()}
        _print_list(recipes, as_json)
        return
    recipe = load_recipe(name)
    if show:
        if as_json:
            print_json(document_of(name, recipe))
        else:
            print_recipe(name, recipe)
        return
    if images is None:
        raise click.UsageError(f"Say which images: featpipe recipe {name} IMAGES, or --show.")
    folder = out or f"recipe-{name}"
    with progress(quiet) as reporter, saying_how_to_resume(Path(folder)):
        found = run_recipe(name, images, folder, on_progress=reporter, **asked)
    if as_json:
        print_json({"out": folder, **found.to_dict()})
    else:
        print_reproduction(found)
        say(f"Saved in {folder}")


def _print_list(recipes: "dict[str, Recipe]", as_json: bool) -> None:
    from featpipe.cli._output import print_json, print_table, say
    from featpipe.cli._recipe import document_of, figure

    if as_json:
        print_json([document_of(name, recipe) for name, recipe in recipes.items()])
        return
    rows = [
        [name, route.name, figure(route.published.to_dict()), recipe.data]
        for name, recipe in recipes.items()
        for route in recipe.routes
    ]
    print_table(["recipe", "what is trained", "published, %", "on"], rows, left=4)
    say("featpipe recipe NAME --show tells what each did; featpipe recipe NAME IMAGES runs it.")
