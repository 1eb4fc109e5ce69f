"""A backbone made ready to turn pixels into features, in the fastest way that is true to it."""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from featpipe import decode_cuda
from featpipe.augment import Views, make_views
from featpipe.backbones import Backbone, choose_pool, load_backbone, parse_backbone
from featpipe.cache_stock import Precedent
from featpipe.decode import EXACT, Decoder, Preprocessing
from featpipe.decode_fast import FAST
from featpipe.device import choose_device, precisions
from featpipe.errors import BackboneError, LayerError, RuntimeUnavailableError, WeightsError
from featpipe.images import ImageSource
from featpipe.layers import Shape, pooled_shape
from featpipe.loading import ImageLoader
from featpipe.network import Network, PooledLayer
from featpipe.registry import load_plugin
from featpipe.runtimes import ForwardPass, fastest, of_views
from featpipe.runtimes.torch import fitting_batch
from featpipe.settings import ExtractSettings
from featpipe.spec import Spec

log = logging.getLogger(__name__)

IN_NETWORK = ("crop", "mean", "std", "reshaped")  # of the preprocessing, what the network does


@dataclass(frozen=True)
class Execution:
    """One way to compute features: what runs the network, in what precision, how bytes decode."""

    runtime: str
    precision: str
    decode: str
    compiled: bool = False

    def __str__(self) -> str:
        compiled = " compiled" if self.compiled else ""
        return f"{self.runtime}{compiled}, {self.precision}, {self.decode} decoding"


REFERENCE = Execution("torch", "float32", "exact")


@dataclass(frozen=True, eq=False)
class Extractor:
    """A backbone cut at its layers, how it is executed, and the Spec of what comes out.

    Attributes
    ----------
    others : tuple of Execution
        What else the settings allow, should this one fail or not be true enough.
    shapes : dict
        Layer to the shape of one view's features.
    views : Views or None
        None where only the plain view is computed.
    """

    backbone: Backbone
    network: Network
    execution: Execution
    others: tuple[Execution, ...]
    forward: ForwardPass
    shapes: dict[str, Shape]
    spec: Spec
    batch_size: int
    views: Views | None = None

    @property
    def stored(self) -> dict[str, Shape]:
        """Layer to the shape of one row in a cache."""
        lead = () if self.views is None else (self.views.count,)
        return {layer: (*lead, *shape) for layer, shape in self.shapes.items()}

    def loader(
        self,
        source: ImageSource,
        rows: np.ndarray | None = None,
        digests: np.ndarray | None = None,
    ) -> ImageLoader:
        """What reads and decodes images of a source, all their views; see `ImageLoader`."""
        how = self.backbone.preprocessing
        return ImageLoader(source, how, self.decoder, rows, digests, self.views)

    def features(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a batch as its loader gives it, float32, shape (batch, *stored)."""
        return self.forward(pixels) if self.views is None else of_views(self.forward, pixels)

    @property
    def decoder(self) -> Decoder:
        """From images' bytes to pixels."""
        return decoders(self.forward.device)[self.execution.decode]

    def at(self, execution: Execution, others: tuple[Execution, ...] = ()) -> "Extractor":
        """The same, executed in another way."""
        made = replace(self, execution=execution, others=others, forward=_runtime(self, execution))
        named = replace(self.spec, precision=execution.precision, decoder=made.decoder.name)
        return replace(made, spec=named)


@functools.cache
def decoders(device: str) -> dict[str, Decoder]:
    """What there is to decode images for a device, the fastest first."""
    found = {"fast": FAST, "exact": EXACT}
    with contextlib.suppress(RuntimeUnavailableError):
        return {"cuda": decode_cuda.decoder(device), **found}
    return found


def prepare(
    backbone: str | Backbone, settings: ExtractSettings, known: Precedent | None = None
) -> Extractor:
    """Load a backbone, cut it at the layers asked for, and choose how to run it.

    What the settings leave open is as `known` has it, else the fastest that there is. Nothing
    costly but the loading is done here.

    Raises
    ------
    RuntimeUnavailableError
        If the runtime, precision or decoder asked for is not to be had here.
    """
    loaded = load_backbone(backbone, settings.weights, settings.seed, settings.input_size)
    views = None
    if settings.views > 1:
        views = make_views(settings.augment, settings.views, settings.seed, loaded.preprocessing)
    _say_what_is_missing(loaded)
    graph = loaded.layers()
    names = [graph.resolve(name) for name in settings.layer] or [graph.default]
    if len(set(names)) != len(names):
        raise LayerError(f"A layer is asked for twice: {', '.join(names)}.")
    layers = []
    for name in names:
        how = choose_pool(settings.pool, bool(settings.layer), graph.shapes[name])
        layers.append(PooledLayer(name, how, graph.shapes[name]))
    cut = loaded.cut(graph, names)
    spec = Spec(
        backbone=f"{loaded.source}:{loaded.name}",
        weights=loaded.weights,
        seed=loaded.seed,
        weights_digests={name: loaded.digest(loaded.cut(graph, [name])) for name in names},
        random_weights=loaded.random,
        layers={layer.name: layer.pool for layer in layers},
        preprocessing=loaded.preprocessing.to_dict(),
        decoder="",
        precision="",
        dtype=settings.dtype,
        views={} if views is None else views.to_dict(),
    )
    network = Network(cut, layers, loaded.preprocessing, _identity(spec, layers))
    device = choose_device(settings.device)
    first, *others = _executions(settings, device, network.learnt, known)
    begun = known.batch_size if known is not None else None
    batch_size = begun or settings.batch_size or _batch_size(network, device, first)
    shapes = {layer.name: pooled_shape(layer.pool, layer.shape) for layer in layers}
    forward = load_plugin("runtimes", "torch").Runtime(network, device, "float32", batch_size)
    reference = Extractor(loaded, network, REFERENCE, (), forward, shapes, spec, batch_size, views)
    return reference.at(first, tuple(others))


def _batch_size(network: Network, device: str, execution: Execution) -> int:
    if device == "cpu":  # fastest while a batch's activations stay in its cache
        return 8
    if device.startswith("cuda"):
        return fitting_batch(network, device, execution.precision)
    return 64


def _runtime(extractor: Extractor, execution: Execution) -> ForwardPass:
    runtime = load_plugin("runtimes", execution.runtime)
    made: ForwardPass = runtime.Runtime(
        extractor.network,
        extractor.forward.device,
        execution.precision,
        extractor.batch_size,
        execution.compiled,
    )
    return made


def _executions(
    settings: ExtractSettings, device: str, learnt: bool, known: Precedent | None
) -> list[Execution]:
    """All that the settings allow on this device, the one to take first."""
    modes = list(decoders(device))
    if settings.decode == "cuda":
        decode_cuda.decoder(device)  # or say why not
    if settings.decode != "auto":
        modes = [settings.decode]
    elif known is not None:
        same = [mode for mode in modes if decoders(device)[mode].name == known.spec.decoder]
        modes = same or modes
    if settings.precision != "auto":
        wanted = [settings.precision]
    elif known is not None and known.spec.precision in precisions(device):
        wanted = [known.spec.precision]
    else:
        wanted = list(dict.fromkeys([precisions(device)[0] if learnt else "float32", "float32"]))
    found = []
    for mode, precision in product(modes, wanted):
        if settings.runtime != "auto":
            runtime = load_plugin("runtimes", settings.runtime)  # or say which there are
            runtimes = [settings.runtime] if runtime.rank(device, precision) else []
        elif not learnt:
            runtimes = ["torch"]  # nothing to gain
        else:
            runtimes = fastest(device, precision)
            runtimes.sort(key=lambda name: known is None or name != known.runtime)
        for name in runtimes:
            if settings.compile and name == "torch":
                found.append(Execution(name, precision, mode, compiled=True))
            found.append(Execution(name, precision, mode))
    if not found:
        raise RuntimeUnavailableError(
            f"{settings.runtime} does not compute in {' or '.join(wanted)} on {device} here. "
            "Use --runtime auto or --precision auto."
        )
    return found


def ready(extractor: Extractor) -> Extractor:
    """The extractor, converted and compiled; or the next one that can run this network."""
    while True:
        try:
            with extractor.forward:
                return extractor
        except RuntimeUnavailableError as error:
            if not extractor.others:
                raise
            log.warning("%s Going on with %s.", error, extractor.others[0])
            extractor = extractor.at(extractor.others[0], extractor.others[1:])


def rebuild(
    spec: Spec, layers: Sequence[str], settings: ExtractSettings, backbone: Backbone | None = None
) -> tuple[Extractor, list[str]]:
    """Make ready what once made features of a Spec, at some of its layers.

    Parameters
    ----------
    spec : Spec
    layers : sequence of str
    settings : ExtractSettings
        ``weights`` (where their file lies now), ``device``, ``runtime``, ``batch_size`` and
        ``trust_code`` are used; the rest is the Spec's.
    backbone : Backbone
        The network, if it is loaded already.

    Returns
    -------
    Extractor
        Ready to run.
    list of str
        What differs from the Spec, but for how features were stored; empty if nothing does.

    Raises
    ------
    BackboneError
        If the Spec names code of the user's own, and it is not said to be trusted.
    """
    names_code = backbone is None and parse_backbone(spec.backbone)[0] == "python"
    if names_code and not settings.trust_code:
        raise BackboneError(
            f"The file names {spec.backbone}, code that is looked for here and would be run. If "
            "you trust both, say --trust-code (in Python: trust_code=True, or pass the backbone)."
        )
    try:
        weights = settings.weights or spec.weights
        loaded = backbone or load_backbone(spec.backbone, weights, spec.seed)
    except WeightsError as error:
        raise WeightsError(f"{error} Say where they lie now with --weights PATH.") from error
    stored = Preprocessing.from_dict(spec.preprocessing)
    pools = {spec.layers[name] for name in layers}
    if len(pools) != 1:
        raise LayerError(f"{', '.join(layers)} are not pooled alike.")
    asked = replace(
        settings, layer=tuple(layers), pool=pools.pop(), input_size=None, views=spec.view_count,
        augment=spec.views.get("transforms", ""), seed=spec.views.get("seed", 0),
    )  # fmt: skip
    extractor = prepare(replace(loaded, preprocessing=stored), asked, Precedent(spec))
    wanted = replace(spec.only(layers), dtype=extractor.spec.dtype)
    if spec.decoder == decode_cuda.NAME and extractor.spec.decoder != spec.decoder:
        # What a GPU has made is to be used where there is none.
        log.warning("JPEGs were decoded by nvJPEG, which is not here; pixels may differ a little.")
        wanted = replace(wanted, decoder=extractor.spec.decoder)
    differences = wanted.differences(extractor.spec)
    return (extractor if differences else ready(extractor)), differences


def _say_what_is_missing(loaded: Backbone) -> None:
    if loaded.random:
        log.warning(
            "%s: random weights, nothing in them was learnt from any image. Figures say how the "
            "pipeline runs, not how good the backbone is.",
            loaded.title,
        )
    if loaded.loaded.missing or loaded.loaded.unexpected:
        log.warning(
            "%s: %d tensors of %s are missing from the file (%s), %d in it are of no use (%s).",
            loaded.weights,
            len(loaded.loaded.missing),
            loaded.title,
            ", ".join(loaded.loaded.missing[:4]) or "none",
            len(loaded.loaded.unexpected),
            ", ".join(loaded.loaded.unexpected[:4]) or "none",
        )


def _identity(spec: Spec, layers: list[PooledLayer]) -> str:
    """Of the network from pixels to pooled features, whatever its precision."""
    decides = [
        spec.backbone,
        spec.weights_digests,
        [[layer.name, layer.pool, layer.shape] for layer in layers],
        [value for name, value in spec.preprocessing.items() if name in IN_NETWORK],
    ]
    return hashlib.blake2b(json.dumps(decides).encode(), digest_size=16).hexdigest()
