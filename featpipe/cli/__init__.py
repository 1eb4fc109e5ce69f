"""The command line: each file here is one command, loaded when it is called.

A command parses, calls one library function, and prints. Results go to stdout, progress and
notes to stderr.
"""

import importlib
import logging
import sys
import warnings
from pathlib import Path

import click

from featpipe.errors import FeatpipeError


class _Commands(click.Group):
    """Finds the commands by their files' names and turns known errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        return sorted(path.stem.replace("_", "-") for path in here.glob("[!_]*.py"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"featpipe.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FeatpipeError as error:
            raise click.ClickException(_lines(str(error))) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise click.ClickException(_lines(_describe(error))) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(130)


def _lines(message: str) -> str:
    from featpipe.cli._output import shown

    # Set in, so that no line break in a name can make what follows look like another message.
    return "\n  ".join(map(shown, message.split("\n")))


def _describe(error: OSError) -> str:
    if error.filename is None:
        return error.strerror or str(error)
    return f"{error.filename}: {error.strerror}"


class _Notes(logging.Handler):
    """Prints the library's notes to stderr, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from featpipe.cli._output import note

        note(self.format(record), warning=record.levelno >= logging.WARNING)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="featpipe")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings, no notes and no progress.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool) -> None:
    """Frozen vision backbones, run once: cached features, heads in seconds, honest comparisons."""
    ctx.obj = quiet
    logger = logging.getLogger("featpipe")
    logger.handlers = [_Notes()]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    # What Pillow grumbles about while it decodes is either harmless or becomes a row's reason.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def main() -> None:
    """Entry point of the ``featpipe`` script."""
    # Names of any bytes must be printable; a terminal that lacks a letter shows an escape.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="featpipe")
