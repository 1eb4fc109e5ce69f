"""Printing: results to stdout, everything else to stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from featpipe.report.words import STEERING

Report = Callable[[int, int], None]
EVERY = 5.0  # seconds between lines where there is no terminal

_stderr = Console(stderr=True, highlight=False)


def shown(text: str) -> str:
    """Text on one line of a terminal that no name in it can steer: such letters as escapes."""
    return STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def say(text: str = "") -> None:
    """One line for people on stdout."""
    click.echo(shown(text))


def note(text: str, warning: bool = False) -> None:
    """One note on stderr."""
    style = "yellow" if warning else "dim"
    _stderr.print(shown(text), style=style, markup=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN never occurs in it."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    click.echo(json.dumps(document, ensure_ascii=not unicode, indent=1, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table on stdout; all but the first `left` columns are set to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(
            Text(shown(name)), justify="left" if number < left else "right", no_wrap=True
        )
    for row in rows:
        # Text from the user is never markup.
        table.add_row(*(Text(shown(cell)) for cell in row))
    # A line too long for the terminal is wrapped by it; figures are never cut.
    Console(highlight=False, width=10_000).print(table)


@contextmanager
def progress(quiet: bool, note: Callable[[], str] = str) -> Iterator[Callable[[str], Report]]:
    """Yields a maker of progress reporters: bars on a terminal, plain lines elsewhere.

    `note` gives a few words to stand behind the rate.
    """
    if quiet:
        yield lambda name: lambda done, total: None
    elif not _stderr.is_terminal:
        yield lambda name: _lines(name, note)
    else:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=_stderr,
        ) as bars:
            yield lambda name: _bar(bars, name, note)


class _Rate:
    """Things a second since the first report: what came before it was preparation."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, now: float, done: int) -> float:
        if self._first is None:
            self._first = now, done
        begun, before = self._first
        return (done - before) / (now - begun) if now > begun else 0.0


def _with(rate: float, note: Callable[[], str]) -> str:
    return ", ".join(filter(None, (f"{rate:.1f}/s" if rate else "", note())))


def _bar(bars: Progress, name: str, note: Callable[[], str]) -> Report:
    task = bars.add_task(name, total=None, rate="")
    rate = _Rate()

    def report(done: int, total: int) -> None:
        text = _with(rate(time.perf_counter(), done), note)
        bars.update(task, completed=done, total=total, rate=text)

    return report


def _lines(name: str, note: Callable[[], str]) -> Report:
    begun = last = time.perf_counter()
    rate = _Rate()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        speed = rate(now, done)
        if now - last >= EVERY or (done >= total and now - begun >= EVERY):
            last = now
            left = f", {(total - done) / speed:.0f} s left" if speed else ""
            shown = ", ".join(filter(None, (f"{name}: {done}/{total}", _with(speed, note))))
            print(shown + left, file=sys.stderr, flush=True)

    return report


def percent(value: float | None) -> str:
    """A share as a percentage with two digits; a dash for none."""
    return "-" if value is None else f"{100 * value:.2f}"


def seconds(value: float) -> str:
    """Seconds with a sensible number of digits."""
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"
