"""``featpipe backbones``."""

import click

from featpipe.cli._options import json_option


@click.command("backbones")
@click.argument("contains", required=False)
@click.option("--source", help="Only models of this source, such as timm.")
@json_option
def command(contains: str | None, source: str | None, as_json: bool) -> None:
    """List the models by source; with CONTAINS, those with it in their name."""
    from featpipe.backbones import DEFAULT_SOURCE, backbone_names
    from featpipe.cli._output import note, print_json, say

    found = {
        origin: [name for name in names if not contains or contains in name]
        for origin, names in backbone_names(source).items()
    }
    if as_json:
        print_json(found)
        return
    for origin, names in found.items():
        prefix = "" if origin in (DEFAULT_SOURCE, *names) else f"{origin}:"
        for name in names:
            say(prefix + name)
    note("The user's own: python:package.module:factory. timm's need the timm extra.")
