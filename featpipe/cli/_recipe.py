"""What ``recipe`` prints: what an example did, and what it came to."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from featpipe.cli._output import percent, print_table, say, seconds
from featpipe.recipes import AS_PUBLISHED, RIGHT, Recipe, Way

if TYPE_CHECKING:
    from featpipe.leakage import Gap
    from featpipe.metrics import Figure
    from featpipe.reproduce import Reproduction, RouteOutcome
    from featpipe.steps import Change, Step


def document_of(name: str, recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON values."""
    return {
        "recipe": name,
        "title": recipe.title,
        "data": recipe.data,
        "source": recipe.source,
        "assumed": list(recipe.assumed),
        "routes": [
            {
                "route": route.name,
                "published": route.published.to_dict(),
                "ways": [
                    {
                        "name": rung.name,
                        "mends": rung.fault.name if rung.fault else None,
                        "why": rung.fault.why if rung.fault else None,
                        "way": rung.way.to_dict(),
                    }
                    for rung in recipe.ladder(route)
                ],
            }
            for route in recipe.routes
        ],
    }


def print_recipe(name: str, recipe: Recipe) -> None:
    """What an example did, its faults, and what is done instead."""
    say(f"{recipe.title} (featpipe recipe {name}): {recipe.data}.")
    say(f"Described by {recipe.source}.")
    for route in recipe.routes:
        say()
        say(f"{route.name}, {AS_PUBLISHED}: {figure(route.published.to_dict())} %")
        _print_way(route.way)
        rungs = recipe.ladder(route)
        for before, rung in pairwise(rungs):
            assert rung.fault is not None
            say()
            say(f"Fault: {rung.fault.name}. {rung.fault.why}")
            say(f"Instead: {rung.fault.mended}")
            _print_way(rung.way, before.way)
    say()
    for line in recipe.assumed:
        say(f"Assumed: {line}")


def _print_way(way: Way, before: Way | None = None) -> None:
    """Its parts, or those that differ from another's."""
    known = before.described() if before else {}
    for part, text in way.described().items():
        if known.get(part) != text:
            say(f"  {part:<10}{text}")
    for part in known.keys() - way.described().keys():
        say(f"  {part:<10}as the weights ask" if part == "pixels" else f"  {part:<10}none")


def print_reproduction(found: "Reproduction") -> None:
    """Published, as published on these images, and done right; then each fault."""
    counts = ", ".join(f"{count} {name}" for name, count in found.classes.items())
    recipe = found.recipe
    groups = "" if found.groups is None else f"; {found.groups} {_plural(recipe.group)}"
    say(f"{recipe.title} on {found.images}: {counts}{groups}")
    say()
    only = all(len(one.steps) == 1 for one in found.routes)
    # Nothing is called right that still has a fault: its line below says which, and why.
    last = RIGHT if all(one.right for one in found.routes) else "all mended that can be here"
    columns = ["accuracy, %", "published", f"{AS_PUBLISHED}, here", *([] if only else [last])]
    rows = []
    for outcome in found.routes:
        published = outcome.route.published.to_dict()
        cells = [outcome.route.name, figure(published), _cell(outcome.steps[0])]
        rows.append([*cells, *([] if only else [_cell(outcome.steps[-1])])])
    print_table(columns, rows, left=4)
    how = "Wilson's" if found.groups is None else f"here by {_plural(recipe.group)}, else Wilson's"
    say(f"In brackets 95 % intervals, {how}. Published: {recipe.source}.")
    for outcome in found.routes:
        _print_steps(outcome, found)
    for note in found.notes:
        say(f"Note: {note}")
    for line in recipe.assumed:
        say(f"Assumed: {line}")


def _print_steps(outcome: "RouteOutcome", found: "Reproduction") -> None:
    recipe, steps = found.recipe, outcome.steps
    say()
    backbone = "" if steps[0].backbone == "none" else f" ({steps[0].backbone})"
    say(f"{outcome.route.name}{backbone}:")
    grouped = any(step.leak for step in steps)
    shared = [f"of a {recipe.group} trained on"] if grouped else []
    columns = ["", "scored", "accuracy %", "95 % interval", "train %", *shared, "s features"]
    rows = []
    for step in steps:
        low, high = step.trusted
        leak = [f"{step.leak['rows']} of {step.leak['scored']}"] if step.leak else []
        rows.append(
            [
                step.name,
                f"{step.n} {step.part}",
                percent(step.accuracy),
                f"{percent(low)} to {percent(high)}",
                percent(step.train_accuracy),
                *leak,
                seconds(step.seconds["extract"]),
                seconds(step.seconds["train"]),
            ]
        )
    print_table([*columns, "s training"], rows)
    for note in dict.fromkeys(note for step in steps for note in step.notes):
        say(f"  Note: {note}")
    changes = dict(zip([step.fault for step in steps[1:]], outcome.changes, strict=True))
    left_out = {one.fault: one for one in outcome.left_out}
    faults = list(recipe.faults_of(outcome.route))
    whole = list(changes) == [one.name for one in faults if one.name not in left_out]
    for number, fault in enumerate(faults, start=1):
        did = ""
        if fault.name in left_out:
            left = left_out[fault.name]
            how = "NOT MENDED, every step has it" if left.in_force else "Not told here"
            did = f" {how}: {left.why}"
        elif whole:
            did = f" Mended: {_changed(changes[fault.name])}."
        say(f"  Fault {number}, {fault.name}: {fault.why}{did}")
    if outcome.gap:
        _print_gap(outcome.gap, _plural(recipe.group))
    elif outcome.gap_note:
        say(f"  The gap to folds of whole {_plural(recipe.group)} is not known: {outcome.gap_note}")


def _print_gap(gap: "Gap", groups: str) -> None:
    """The difference with both of its intervals, and what each is the answer to."""
    say(
        f"  {gap.folds} folds, {gap.repeats} times, {gap.head}: {percent(gap.random.value)} % with "
        f"{groups} torn apart, {percent(gap.grouped.value)} % with them kept together; the gap is "
        f"{_points(gap.difference)[0]} points."
    )
    for figure, text in (
        (gap.difference, f"{groups} drawn anew: other {groups}, scored by these heads"),
        (gap.of_folds, "corrected t over folds: heads trained anew on other images of the kind"),
    ):
        if figure.low is not None:
            low, high = _points(figure)[1:]
            say(f"    95 % interval {low} to {high}: {text}.")


def _points(figure: "Figure") -> list[str]:
    return [f"{100 * value:+.2f}" for value in figure if value is not None]


def figure(published: dict[str, Any]) -> str:
    """A published accuracy in percent, with its interval where the number of images is known."""
    if published["accuracy"] is None:
        return "plots only"
    interval = published["interval_95"]
    text = percent(published["accuracy"])
    if interval:
        text += f" ({percent(interval[0])} to {percent(interval[1])}), n {published['images']:,}"
    return f"{text}, {published['part']}"


def _changed(one: "Change") -> str:
    if one.p_value is None:
        return f"{one.points:+.2f} points, on other images"
    return (
        f"{one.points:+.2f} points on the same images ({one.won} won, {one.lost} lost, p = "
        f"{one.p_value:.2g})"
    )


def _cell(step: "Step") -> str:
    low, high = step.trusted
    return f"{percent(step.accuracy)} ({percent(low)} to {percent(high)}), n {step.n:,}"


def _plural(name: str) -> str:
    return f"{name}s"
