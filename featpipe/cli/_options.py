"""Options made from the settings' fields, so that each is described once."""

import types
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin

import click

Command = Callable[..., Any]

# Of ExtractSettings, what is no part of a Spec: where a backbone is made ready again.
AGAIN = ("weights", "runtime", "device", "batch_size", "workers", "trust_code")


def settings_options(
    kind: type,
    parameter: str,
    only: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    prefix: str = "",
) -> Callable[[Command], Command]:
    """Add an option for each field of a settings class; pass them on as one instance.

    Parameters
    ----------
    kind : dataclass
    parameter : str
        The command function's argument that takes the instance.
    only : tuple of str
        Fields to offer; all of them if empty.
    without : tuple of str
        Fields not to offer.
    prefix : str
        Put before each option's name.
    """
    chosen = [
        field
        for field in fields(kind)
        if (not only or field.name in only) and field.name not in without
    ]

    def decorate(function: Command) -> Command:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            values = {field.name: kwargs.pop(prefix + field.name) for field in chosen}
            return function(*args, **kwargs, **{parameter: kind(**values)})

        wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
        wrapped.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
        for field in reversed(chosen):
            name = f"--{(prefix + field.name).replace('_', '-')}"
            meta = field.metadata
            assert field.default is not MISSING
            keywords: dict[str, Any] = {"default": field.default, "help": meta["help"]}
            annotation = _without_none(field.type)
            if annotation is bool:
                keywords["is_flag"] = True
                if field.default is None:  # neither yes nor no
                    name += f"/--no-{name[2:]}"
            elif annotation == tuple[int, ...]:
                keywords["type"] = _WholeNumbers()
            elif get_origin(annotation) is tuple:
                keywords |= {"multiple": True, "type": get_args(annotation)[0]}
            elif meta["choices"]:
                keywords["type"] = click.Choice(meta["choices"])
            elif meta["minimum"] is not None:
                limits = click.FloatRange if annotation is float else click.IntRange
                keywords["type"] = limits(meta["minimum"], meta["maximum"])
            else:
                keywords["type"] = annotation
            if annotation is not bool:
                keywords |= {
                    "metavar": meta["metavar"],
                    "show_default": field.default not in (None, ()),
                }
            wrapped = click.option(name, prefix + field.name, **keywords)(wrapped)
        return wrapped

    return decorate


class _WholeNumbers(click.ParamType[tuple[int, ...]]):
    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail("give whole numbers, such as 460 or 512,256.", param, ctx)


def _without_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType):
        return next(part for part in get_args(annotation) if part is not types.NoneType)
    return annotation


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)
page_option = click.option(
    "--page/--no-page", default=True, show_default=True, help="Write report.html."
)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# What is not given is the head's own default.
descent_options = _together(
    click.option("--lr", type=float, help="Learning rate."),
    click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"])),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine", "one-cycle"]),
        help="Of the learning rate.",
    ),
    click.option("--momentum", type=float, help="Of SGD."),
    click.option("--weight-decay", type=float),
    click.option("--label-smoothing", type=float, help="Share of the target that classes share."),
    click.option("--clip", type=float, help="Largest norm of the gradient."),
    click.option("--class-weight", type=click.Choice(["balanced"]), help="Of rows, by class."),
    click.option("--epochs", type=int),
    click.option("--batch-size", type=int),
    click.option(
        "--patience", type=int, help="Epochs without a lower validation loss; 0: never stop."
    ),
)
tail_options = _together(
    click.option(
        "--freeze-norm/--no-freeze-norm",
        default=None,
        help="The tail's batch norm stays as it is.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        help="What the tail is trained in.",
    ),
)
