"""``featpipe layers``."""

import click

from featpipe.cli._options import json_option


@click.command("layers")
@click.argument("backbone")
@click.option("--weights", help="As in BACKBONE@WEIGHTS; none are needed to list the layers.")
@click.option(
    "--input-size", type=click.IntRange(min=1), help="Side of the square input, in pixels."
)
@json_option
def command(backbone: str, weights: str | None, input_size: int | None, as_json: bool) -> None:
    """List the layers of BACKBONE with the shape of what each gives for one image."""
    from featpipe.backbones import choose_pool, load_backbone, parse_backbone
    from featpipe.cli._output import print_json, print_table, say
    from featpipe.layers import HookedLayers, pooled_shape

    # Shapes do not depend on the weights, so none are downloaded for them.
    source, _, written = parse_backbone(backbone)
    if not (weights or written) and source in ("torchvision", "timm"):
        weights = "random"
    loaded = load_backbone(backbone, weights, input_size=input_size)
    layers = loaded.layers()
    if as_json:
        print_json(
            {
                "backbone": f"{loaded.source}:{loaded.name}",
                "default": layers.default,
                "preprocessing": loaded.preprocessing.to_dict(),
                "layers": {name: list(shape) for name, shape in layers.shapes.items()},
            }
        )
        return
    rows = []
    for name, shape in layers.shapes.items():
        flat = pooled_shape("flatten", shape)[0]
        text = " x ".join(map(str, shape))
        rows.append((name + (" (default)" if name == layers.default else ""), text, f"{flat:,}"))
    print_table(("layer", "shape", "values"), rows)
    how = choose_pool("auto", False, layers.shapes[layers.default])
    pooled = pooled_shape(how, layers.shapes[layers.default])[0]
    say(f"default: {layers.default}, {pooled:,} values. {loaded.preprocessing.describe()}")
    if isinstance(layers, HookedLayers):
        say("This network cannot be traced; its modules are its layers.")
