"""The named layers of a network: which there are, what shape they have, and a cut at some.

A network is traced with torch.fx where that works, so that any node of its graph can be a
layer, named as torchvision's feature extraction names it; the forward pass ends at the last
node asked for. A network that cannot be traced offers its modules instead.
"""

import copy
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn

from featpipe.errors import LayerError
from featpipe.lean import feature_extraction
from featpipe.registry import no_such

Shape = tuple[int, ...]


def open_layers(model: nn.Module, sample: Tensor) -> "TracedLayers | HookedLayers":
    """The layers of `model`, found with one forward pass of `sample`.

    `sample`, of shape (batch, 3, height, width), needs a batch that no other axis is as long as:
    two.
    """
    model.eval()
    try:
        tracer, graph = trace(model)
    except Exception:  # data-dependent control flow fails in as many ways as there are models
        return HookedLayers(model, sample)
    return TracedLayers(tracer, graph, sample)


def trace(model: nn.Module) -> tuple[feature_extraction.NodePathTracer, fx.Graph]:
    """The graph of a network in the mode it is in, and the tracer that knows its nodes' names."""
    tracer = feature_extraction.NodePathTracer(
        **feature_extraction._set_default_tracer_kwargs(None)
    )
    return tracer, tracer.trace(model)


def _resolve(name: str, layers: dict[str, Shape]) -> str:
    """A layer's own name: exact, or the last one within the module of that name."""
    if name in layers:
        return name
    within = [layer for layer in layers if layer.startswith(f"{name}.")]
    if not within:
        raise LayerError(no_such("layer", name, layers) + " `featpipe layers` lists them.")
    return within[-1]


class TracedLayers:
    """Layers of a network that torch.fx can trace.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Shape of every layer's output for one image (without the batch axis), in order of
        execution.
    default : str
        The penultimate features: what the last layer with parameters is given.
    root, graph
        The network, and the graph of it in eval mode.
    """

    def __init__(
        self, tracer: feature_extraction.NodePathTracer, graph: fx.Graph, sample: Tensor
    ) -> None:
        self.root: nn.Module = tracer.root
        self.graph = graph
        names = tracer.node_to_qualname
        module = fx.GraphModule(tracer.root, graph)
        try:
            shapes = _shapes(module, sample, lean=True)
        except Exception:  # an operator that zeros do not suit, or a network of another size
            shapes = _shapes(module, sample, lean=False)
        self._nodes: dict[str, fx.Node] = {
            names[node]: node for node in graph.nodes if node in names and node.name in shapes
        }
        self.shapes: dict[str, Shape] = {
            name: shapes[node.name] for name, node in self._nodes.items()
        }
        by_node = {node: name for name, node in self._nodes.items()}
        self.default = by_node[self._penultimate()]

    def resolve(self, name: str) -> str:
        """The node a name stands for; a module's name means its last node."""
        return _resolve(name, self.shapes)

    def node(self, name: str) -> fx.Node:
        """The node of a layer's own name."""
        return self._nodes[name]

    def cut(self, names: list[str]) -> nn.Module:
        """A module that returns the outputs of the named layers, in that order, and no more."""
        targets = [self._nodes[name] for name in names]
        needed = set(targets)
        for node in reversed(self.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        outputs: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node in needed:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            if node in targets:
                # A later in-place operation (ReLU, +=) must not reach what is returned.
                outputs[node] = graph.call_method("clone", (copies[node],))
        graph.output(tuple(outputs[node] for node in targets))
        return fx.GraphModule(self.root, graph).eval()

    def _penultimate(self) -> fx.Node:
        usable = set(self._nodes.values())
        modules = dict(self.root.named_modules())
        for node in reversed(self.graph.nodes):
            if node.op != "call_module" or not _has_parameters(modules[str(node.target)]):
                continue
            sources: list[fx.Node] = node.all_input_nodes
            while sources and _is_dropout(sources[0], modules):
                sources = sources[0].all_input_nodes
            if sources and sources[0] in usable:
                return sources[0]
        return list(self._nodes.values())[-1]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_dropout(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.modules.dropout._DropoutNd | nn.Identity)
    return node.target is nn.functional.dropout


def _shapes(module: fx.GraphModule, sample: Tensor, lean: bool) -> dict[str, Shape]:
    recorder = _ShapeRecorder(module, len(sample), lean)
    with torch.inference_mode():
        recorder.run(sample)
    return recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes the shape of each node's output for one image.

    If `lean`, only the shape is computed of the layers that take all the time, and zeros go on.
    (On torch's meta device everything would cost nothing, but it needs torch's compiler: a
    second.)
    """

    def __init__(self, module: fx.GraphModule, batch: int, lean: bool) -> None:
        super().__init__(module)
        self.batch, self.lean = batch, lean
        self.shapes: dict[str, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_map = isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1
        # A row that does not begin with the batch axis belongs to no one image.
        if is_map and len(result) == self.batch and n.op not in ("placeholder", "get_attr"):
            self.shapes[n.name] = tuple(result.shape[1:])
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        given = args[0] if self.lean and len(args) == 1 else None
        if given is not None and _fits(module, given):
            if type(module) is nn.Linear:
                return given.new_zeros(*given.shape[:-1], module.out_features)
            # One channel of input and output: all channels have its height and width.
            one = nn.functional.conv2d(
                given[:, :1], module.weight[:1, :1], None, module.stride, module.padding,
                module.dilation,
            )  # fmt: skip
            return given.new_zeros(len(one), module.out_channels, *one.shape[2:])
        return super().call_module(target, args, kwargs)


def _fits(module: nn.Module, given: Tensor) -> bool:
    """Whether it is a plain layer whose shapes are known without its values."""
    if type(module) is nn.Linear:
        return given.shape[-1] == module.in_features
    plain = type(module) is nn.Conv2d and module.padding_mode == "zeros"
    return plain and given.dim() == 4 and given.shape[1] == module.in_channels


class HookedLayers:
    """Layers of a network that cannot be traced: its modules, in the order they finish.

    Attributes are those of `TracedLayers`; `default` is the last module before the last one
    with parameters of its own, dropout left out.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        self._model = model
        self.shapes: dict[str, Shape] = {}
        order: list[tuple[str, nn.Module]] = []

        def note(name: str, module: nn.Module, output: Any) -> None:
            is_map = isinstance(output, Tensor) and output.dim() > 1 and len(output) == len(sample)
            if is_map and name not in self.shapes:
                self.shapes[name] = tuple(output.shape[1:])
                if not any(True for _ in module.children()):
                    order.append((name, module))

        hooks = [
            module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output))
            for name, module in model.named_modules()
            if name
        ]
        try:
            with torch.inference_mode():
                model(sample)
        finally:
            for hook in hooks:
                hook.remove()
        if not order:
            raise LayerError(f"{type(model).__name__} has no module that returns a tensor.")
        last = max((i for i, (_, m) in enumerate(order) if _has_parameters(m)), default=0)
        before = [
            name
            for name, module in order[:last]
            if not isinstance(module, nn.modules.dropout._DropoutNd | nn.Identity)
        ]
        self.default = before[-1] if before else order[last][0]

    def resolve(self, name: str) -> str:
        """The module a name stands for."""
        return _resolve(name, self.shapes)

    def cut(self, names: list[str]) -> nn.Module:
        """A module that returns the outputs of the named modules, in that order."""
        return _HookedCut(self._model, names, last=max(names, key=list(self.shapes).index))


class _Reached(Exception):
    """The last layer asked for has been computed."""


class _HookedCut(nn.Module):
    def __init__(self, model: nn.Module, names: list[str], last: str) -> None:
        super().__init__()
        self.model, self.names, self.last = model.eval(), names, last
        self._one_at_a_time = Lock()  # hooks hang on the model that every thread runs

    def __deepcopy__(self, memo: dict[int, Any]) -> "_HookedCut":
        # A lock cannot be copied, and the copy, of another model, needs its own.
        return _HookedCut(copy.deepcopy(self.model, memo), self.names, self.last)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the named modules."""
        with self._one_at_a_time:
            return self._run(images)

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            found.setdefault(name, output.clone())
            if name == self.last:
                raise _Reached

        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: keep(name, output)
            )
            for name in set(self.names)
        ]
        try:
            self.model(images)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(found[name] for name in self.names)


def needed_tensors(cut: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a cut computes with, by their names in the network."""
    model = cut.model if isinstance(cut, _HookedCut) else cut
    return dict(model.state_dict())


def structure_of(cut: nn.Module) -> str:
    """The modules of a cut and, where it was traced, its operations, as text."""
    return f"{cut}\n{cut.code}" if isinstance(cut, fx.GraphModule) else str(cut)


def pool(features: Tensor, how: str, shape: Shape) -> Tensor:
    """Pool a batch of layer outputs.

    Parameters
    ----------
    features : Tensor, shape (batch, *shape)
    how : {"flatten", "avg", "max", "none"}
        Averages and maxima run over the two spatial axes of a map, or over the tokens of a
        sequence.
    shape : tuple of int
        The layer's shape for one image.
    """
    if how == "none":
        return features
    if how == "flatten" or len(shape) == 1:
        return features.flatten(1)
    axes = _spatial_axes(shape)
    return features.mean(axes) if how == "avg" else features.amax(axes)


def _spatial_axes(shape: Shape) -> tuple[int, ...]:
    if len(shape) == 2:
        return (1,)  # (tokens, channels)
    if len(shape) == 3:
        # Inputs are square, so the two equal sides are the spatial ones: (7, 7, 768) has its
        # channels last, as in Swin.
        return (1, 2) if shape[0] == shape[1] != shape[2] else (2, 3)
    raise LayerError(f"A layer of shape {shape} has no known spatial axes; use --pool flatten.")


def pooled_shape(how: str, shape: Shape) -> Shape:
    """Shape of one image's features after `pool`."""
    return tuple(pool(torch.zeros(1, *shape), how, shape).shape[1:])
