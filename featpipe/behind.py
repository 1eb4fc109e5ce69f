"""The rest of a network, behind a cut: it takes a layer's output and gives the network's own."""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from featpipe.errors import LayerError
from featpipe.layers import HookedLayers, TracedLayers, trace
from featpipe.lean import feature_extraction

NORMS = nn.modules.batchnorm._BatchNorm


def behind(layers: TracedLayers | HookedLayers, name: str, still: bool) -> Any:
    """What a network computes from the output of one of its layers.

    Parameters
    ----------
    layers : TracedLayers
    name : str
        Of a node, as `TracedLayers.resolve` gives it.
    still : bool
        Whether batch norm keeps its statistics in training, too.

    Returns
    -------
    torchvision's DualGraphModule
        One graph for training and one for use, for what a network does in training (dropout as a
        function, paths left out) becomes part of a graph when it is traced. It holds the
        network's own modules, under their names, not copies of them.

    Raises
    ------
    LayerError
        If the network cannot be cut there.
    """
    if isinstance(layers, HookedLayers):
        raise LayerError(
            "This network has control flow that depends on its input, so it cannot be divided at a "
            "layer. Train a head on its features (--head linear or mlp), or take another backbone."
        )
    in_use = _rest(layers.graph, layers.node(name), name, layers)
    root = layers.root
    root.train()
    if still:
        for module in root.modules():
            if isinstance(module, NORMS):
                module.eval()
    try:
        tracer, graph = trace(root)
    finally:
        root.eval()
    nodes = {found: node for node, found in tracer.node_to_qualname.items()}
    if name not in nodes:
        raise LayerError(f"In training the network has no layer {name}; cut at another one.")
    in_training = _rest(graph, nodes[name], name, layers)
    return feature_extraction.DualGraphModule(root, in_training, in_use).eval()


def _rest(graph: fx.Graph, node: fx.Node, name: str, layers: TracedLayers) -> fx.Graph:
    result = _result(graph)
    of_image, of_node = _reached_from(graph, _placeholders(graph)), _reached_from(graph, [node])
    needed = _needed(result, node)
    crossing = [one for one in needed if one in of_image and one not in of_node]
    if crossing or result not in of_node:
        raise LayerError(_refusal(name, crossing, layers))
    rest = fx.Graph()
    copies = {node: rest.placeholder("rows")}
    for one in graph.nodes:
        if one in needed:
            copies[one] = rest.node_copy(one, copies.__getitem__)
    rest.output(copies[result])
    rest.lint()
    return rest


def _result(graph: fx.Graph) -> fx.Node:
    """The logits; in training, what auxiliary classifiers say comes behind them."""
    found: Any = next(reversed(graph.nodes)).args[0]
    while (isinstance(found, tuple | list) and found) or _makes_named_tuple(found):
        found = found.args[0] if isinstance(found, fx.Node) else found[0]
    if not isinstance(found, fx.Node):
        raise LayerError("This network does not return a tensor, so nothing behind a cut can.")
    return found


def _makes_named_tuple(found: Any) -> bool:
    return isinstance(found, fx.Node) and hasattr(found.target, "_fields") and bool(found.args)


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _reached_from(graph: fx.Graph, begin: Iterable[fx.Node]) -> set[fx.Node]:
    reached = set(begin)
    for node in graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def _needed(result: fx.Node, stop: fx.Node | None = None) -> set[fx.Node]:
    """All that a node is computed from, itself included; nothing before `stop`."""
    needed: set[fx.Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        if node is not stop and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _refusal(name: str, crossing: list[fx.Node], layers: TracedLayers) -> str:
    where = divisible(layers)
    names = list(layers.shapes)
    place = names.index(name)
    before = [one for one in where if names.index(one) < place][-1:]
    after = [one for one in where if names.index(one) > place][:1]
    if crossing:
        known = [one for one in names if layers.node(one).name in {n.name for n in crossing}]
        what = f"what is behind it also needs {known[-1] if known else 'an earlier layer'}"
    else:
        what = "what the network returns does not depend on it"
    near = " and ".join([*before, *after])
    ways = f"The nearest layers it can be cut at: {near}." if near else "Cut at no layer."
    return f"The network cannot be cut at {name}: {what}. {ways}"


def divisible(layers: TracedLayers) -> list[str]:
    """Names of the layers that all that comes later goes through, in order of execution."""
    graph = layers.graph
    place = {node: number for number, node in enumerate(graph.nodes)}
    needed = _needed(_result(graph))
    of_image = _reached_from(graph, _placeholders(graph))
    # An edge that begins before a node and ends behind it crosses it.
    crossed = [0] * (len(place) + 1)
    for node in needed:
        for source in node.all_input_nodes:
            if source in of_image:
                crossed[place[source] + 1] += 1
                crossed[place[node]] -= 1
    open_edges, free = 0, set()
    for node, number in place.items():
        open_edges += crossed[number]
        if not open_edges and node in needed:
            free.add(node)
    return [name for name in layers.shapes if layers.node(name) in free]
