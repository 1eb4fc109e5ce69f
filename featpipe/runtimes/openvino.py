"""OpenVINO on the CPU: one converted model, kept on disk; a static batch, a request a lane."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import queue
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from featpipe.checksums import digest_blocks
from featpipe.device import available_cores
from featpipe.durable import placing, put, user_folder
from featpipe.errors import RuntimeUnavailableError
from featpipe.network import Network
from featpipe.runtimes import in_batches

CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
MOST_BYTES = 8 << 30  # of converted models; the one used longest ago goes first
log = logging.getLogger(__name__)


def rank(device: str, precision: str) -> int:
    """It is the faster one wherever it computes in that precision itself."""
    if device != "cpu" or importlib.util.find_spec("openvino") is None:
        return 0
    return 2 if CAPABILITIES[precision] in _capabilities() else 0


@functools.cache
def _openvino() -> Any:
    """The package, without its reports to its makers.

    It sends them on import and at each conversion, to whoever has not opted out, unless it finds
    no package to send them with.
    """
    reporter = "openvino_telemetry"
    loaded = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        package = importlib.import_module("openvino")
        # The tables that turn its types into numpy's are made when first used. Two threads that
        # do so at once wait for each other for ever: one has the table's lock, one Python's.
        _ = package.Tensor(np.zeros(1, np.uint8)).data
        package.Type.u8.to_dtype()
        return package
    finally:
        del sys.modules[reporter]
        if loaded is not None:
            sys.modules[reporter] = loaded


@functools.cache
def _core() -> Any:
    """The one that this process uses to its end.

    For AMX, each one's CPU plug-in gives the thread a stack for signals and, when it and its last
    model go, puts back the one before. Of two that lived at once, the younger so put back the
    elder's, which was memory no more: the next signal, such as Ctrl-C, was a crash.
    """
    return _openvino().Core()


@functools.cache
def _capabilities() -> tuple[str, ...]:
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def model_folder() -> Path:
    """Where converted models are kept; it may be removed at any time."""
    return user_folder() / "openvino"


class Runtime:
    """A network converted to OpenVINO and compiled for batches of one size.

    The throughput hint gives one stream a core or so; each lane waits for a request of its own.
    """

    name = "openvino"

    def __init__(
        self, network: Network, device: str, precision: str, batch_size: int, compiled: bool = False
    ) -> None:
        self.device, self.precision, self.lanes = device, precision, 1
        self._network, self._batch = network, batch_size
        self._names = [layer.name for layer in network.layers]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Convert, or read what was converted, and compile."""
        if self._requests.empty():
            compiled = self._compile()
            self.lanes = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
            for _ in range(self.lanes):
                self._requests.put(compiled.create_infer_request())
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # those that decode are many already
        return self

    def __exit__(self, *error: object) -> None:
        """Give the process its threads back."""
        torch.set_num_threads(self._threads)

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a uint8 batch, shape (batch, height, width, 3), as float32 arrays."""
        rows = in_batches(pixels, self._batch, self._at_once)
        return dict(zip(self._names, rows, strict=True))

    def _at_once(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        request = self._requests.get()
        try:
            request.infer({0: pixels}, share_inputs=True)
            return tuple(request.get_output_tensor(i).data.copy() for i in range(len(self._names)))
        finally:
            self._requests.put(request)

    def _compile(self) -> Any:
        core = _core()
        try:
            model = _converted(core, self._network)
            model.reshape([self._batch, *self._network.size, 3])
            return core.compile_model(
                model,
                "CPU",
                {
                    "PERFORMANCE_HINT": "THROUGHPUT",
                    "INFERENCE_PRECISION_HINT": HINTS[self.precision],
                    "INFERENCE_NUM_THREADS": available_cores(),
                },
            )
        except OSError:  # a full disk is no property of the network
            raise
        except Exception as error:  # whatever torch.export or OpenVINO do not know
            said = (str(error) or type(error).__name__).strip().splitlines()
            # Where in its source it failed comes first, what failed after it.
            reason = next((line for line in said if not line.startswith("Exception from")), said[0])
            raise RuntimeUnavailableError(
                f"OpenVINO cannot run this network: {reason[:200]}. Use --runtime torch."
            ) from error


def _converted(core: Any, network: Network) -> Any:
    """The network as an OpenVINO model of any batch size, from disk if it was converted before."""
    conditions = f"{network.identity} {version('openvino')} {version('torch')} 1"
    name = hashlib.blake2b(conditions.encode(), digest_size=16).hexdigest()
    folder = model_folder()
    try:
        found = _read(core, folder / name)
        if found is not None:
            return found
    except OSError as error:
        log.info("The converted model in %s cannot be read: %s", folder, error)
    model = _convert(network)
    try:
        _keep(model, folder, name)
    except OSError as error:  # it only saves time
        log.info("The converted model is not kept in %s: %s", folder, error.strerror)
        return model
    return _read(core, folder / name) or model


def _convert(network: Network) -> Any:
    _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    # A batch of two only: example images go through the network once.
    sample = torch.zeros(2, *network.size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    with torch.no_grad(), warnings.catch_warnings(), _hushed():
        warnings.simplefilter("ignore")  # about private parts of torch that its own export uses
        exported = torch.export.export(network, (sample,), dynamic_shapes=({0: batch},))
        decoder = TorchFXPythonDecoder.from_exported_program(exported)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the root logger still: the decoder logs there which operators it did not meet.

    With a handler, nobody's first message adds one to it for good.
    """
    root, nobody = logging.getLogger(), logging.NullHandler()

    def by_others(record: logging.LogRecord) -> bool:
        return record.module != "fx_decoder"

    root.addHandler(nobody)
    root.addFilter(by_others)
    try:
        yield
    finally:
        root.removeFilter(by_others)
        root.removeHandler(nobody)


def _keep(model: Any, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with placing(folder / f"{name}.xml") as text:
        # OpenVINO writes the weights beside the text, under its name.
        _openvino().save_model(model, f"{text}.xml", compress_to_fp16=False)
        weights = Path(f"{text}.bin")
        try:
            Path(f"{text}.xml").replace(text)
            digests = {"xml": _digest(text), "bin": _digest(weights)}
            weights.replace(folder / f"{name}.bin")
        finally:
            weights.unlink(missing_ok=True)
    put(folder / f"{name}.json", json.dumps(digests).encode())
    _make_room(folder, keep=name)


def _read(core: Any, stem: Path) -> Any:
    """The model of that name, if it is there and whole."""
    text, weights = stem.with_suffix(".xml"), stem.with_suffix(".bin")
    try:
        digests = json.loads(stem.with_suffix(".json").read_bytes())
        if digests != {"xml": _digest(text), "bin": _digest(weights)}:
            return None
    except (FileNotFoundError, ValueError):
        return None
    stem.with_suffix(".json").touch()
    return core.read_model(text, weights)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return digest_blocks(iter(lambda: file.read(1 << 20), b"")).hex()


def _make_room(folder: Path, keep: str) -> None:
    """Take away what was used longest ago, until the rest is small enough."""
    models = sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)
    total = 0
    for model in models:
        files = [model.with_suffix(suffix) for suffix in (".json", ".xml", ".bin")]
        total += sum(file.stat().st_size for file in files if file.exists())
        if total > MOST_BYTES and model.stem != keep:
            for file in files:
                file.unlink(missing_ok=True)
