"""``featpipe report``."""

from pathlib import Path

import click

from featpipe.cli._options import json_option


@click.command("report")
@click.argument("results", type=click.Path())
@click.option("-o", "--out", help="File to write [default: report.html beside RESULTS].")
@click.option(
    "--against", metavar="OLD", help="Earlier results: say, and show first, what changed since."
)
@json_option
def command(results: str, out: str | None, against: str | None, as_json: bool) -> None:
    """Write RESULTS, a results.json or its folder, as one HTML file that needs no network.

    Pictures are those that lie in the folder thumbnails beside it.
    """
    from featpipe.changes import changes_between
    from featpipe.cli._output import print_json, say
    from featpipe.report.page import write_page
    from featpipe.results import Results

    if out is not None and Path(out).is_dir():
        raise click.BadParameter(f"{out} is a folder; --out names a file.")
    found = Results.load(results)
    folder = Path(results) if Path(results).is_dir() else Path(results).parent
    changes = None if against is None else changes_between(Results.load(against), found)
    path = write_page(found, folder, out, changes)
    if as_json:
        print_json({"out": str(path), "changes": changes.to_dict() if changes else None})
        return
    for sentence in changes.sentences if changes else found.verdict.sentences:
        say(sentence)
    say(f"Saved in {path}")
