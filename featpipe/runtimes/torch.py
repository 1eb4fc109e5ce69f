"""PyTorch: eager or compiled, on the CPU or on an accelerator, in any precision."""

import logging
import threading
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from featpipe.device import available_cores
from featpipe.errors import RuntimeUnavailableError
from featpipe.network import Network
from featpipe.runtimes import in_batches

MOST_LANES = 8
CUDA_LANES = 2  # one copies while the other computes
MOST_BATCH = 256  # beyond, a GPU gains nothing
TRIED_BATCH = 8  # whose memory is measured
# Of the free memory; the float32 reference needs twice as much, nvJPEG some.
MEMORY_SHARE = 0.25
log = logging.getLogger(__name__)


def rank(device: str, precision: str) -> int:
    """It runs everywhere."""
    return 1


def fitting_batch(network: Network, device: str, precision: str) -> int:
    """Images in a batch of which one a lane fits into the free memory of a CUDA device.

    Returns
    -------
    int
        A power of two. What a few images need is measured; should that deceive, the batch is
        halved when the memory gives out.
    """
    each, tried = 0.0, TRIED_BATCH
    while not each:
        try:
            each = _bytes_each(network, device, precision, tried)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if tried == 1:
                return 1
            tried //= 2
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    room = MEMORY_SHARE * free / (CUDA_LANES * each)
    return 1 << max(int(min(room, MOST_BATCH)).bit_length() - 1, 0)


def _bytes_each(network: Network, device: str, precision: str, count: int) -> float:
    placed = _placed(network, device, precision)
    pixels = torch.zeros(count, *network.size, 3, dtype=torch.uint8).to(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        placed(pixels)
    return max((torch.cuda.max_memory_allocated(device) - before) / count, 1.0)


def _placed(network: Network, device: str, precision: str) -> Network:
    """The network in a precision, on a device; itself in float32, else a copy."""
    dtype = getattr(torch, precision)
    placed = network if dtype == torch.float32 else network.at(dtype)
    placed.to(device)
    placed.cut.to(memory_format=torch.channels_last)
    return placed


class Runtime:
    """A network on a device. Pixels cross to it as bytes; normalisation happens there.

    A CPU runs one single-threaded forward pass a core: threads that share one pass wait for
    each other at every layer, which beside decoding threads costs most of the time. Beyond
    eight cores passes get several threads, since each pass holds its own activations.

    On CUDA every lane has its own stream, page-locked buffers and, where the network allows it,
    a CUDA graph of one fixed batch, so that copies of one lane run beside the other's kernels.
    When the memory does not suffice the batch is halved, and said so.
    """

    name = "torch"

    def __init__(
        self, network: Network, device: str, precision: str, batch_size: int, compiled: bool = False
    ) -> None:
        self.device, self.precision = device, precision
        self._batch, self._compiled = batch_size, compiled
        on_cpu, on_cuda = device == "cpu", device.startswith("cuda")
        self.lanes = min(available_cores(), MOST_LANES) if on_cpu else CUDA_LANES if on_cuda else 1
        self._names = [layer.name for layer in network.layers]
        self._given = network
        self._run: Any = None
        self._local = threading.local()

    def __enter__(self) -> Self:
        """Put the network on its device and give each lane its share of the threads."""
        if self._run is None:
            self._run = self._prepared()
        self._threads = torch.get_num_threads()
        if self.device.startswith("cuda"):  # float32 is to be no shorter than its name
            self._tf32 = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = self._tf32 and self.precision != "float32"
        if self.device == "cpu":
            torch.set_num_threads(max(1, available_cores() // self.lanes))
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the process as it was."""
        torch.set_num_threads(self._threads)
        if self.device.startswith("cuda"):
            torch.backends.cudnn.allow_tf32 = self._tf32

    def _prepared(self) -> Any:
        network = _placed(self._given, self.device, self.precision)
        if not self._compiled:
            return network
        if self.device == "cpu":
            import torch._inductor.config as inductor

            inductor.freezing = True  # weights are laid out once, for good
        try:
            run = torch.compile(network, dynamic=False)
            with torch.inference_mode():  # compiled on its first batch, before any lane runs
                run(torch.zeros(self._batch, *network.size, 3, dtype=torch.uint8).to(self.device))
        except Exception as error:  # no compiler, an operator it does not know
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise RuntimeUnavailableError(f"torch.compile failed: {reason}.") from error
        return run

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a uint8 batch, shape (batch, height, width, 3), as float32 arrays."""
        with torch.inference_mode():
            if self.device.startswith("cuda"):
                rows = self._on_cuda(pixels)
            elif self._compiled:
                rows = in_batches(pixels, self._batch, self._at_once)
            else:
                rows = self._at_once(pixels)
        return dict(zip(self._names, rows, strict=True))

    def _at_once(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        assert self._run is not None
        outputs = self._run(torch.from_numpy(pixels).to(self.device))
        return tuple(output.contiguous().cpu().numpy() for output in outputs)

    # ---- CUDA ------------------------------------------------------------------------------

    def _on_cuda(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        while True:
            size = self._batch
            try:
                return in_batches(pixels, size, self._lane(size))
            except torch.OutOfMemoryError:
                self._local.lane = None
                torch.cuda.empty_cache()
                if size == 1:
                    raise
                with _HALVING:
                    if self._batch == size:  # not yet by another lane
                        self._batch = size // 2
                        log.warning(
                            "%d images do not fit into the memory of %s; going on with %d at once.",
                            size,
                            self.device,
                            self._batch,
                        )

    def _lane(self, size: int) -> "_Lane":
        lane: _Lane | None = getattr(self._local, "lane", None)
        if lane is None or lane.size != size:
            lane = self._local.lane = _Lane(self._run, self._given.size, size, self.device)
        return lane


_HALVING = threading.Lock()
_CAPTURING = threading.Lock()  # only one graph may be recorded at a time in a process


class _Lane:
    """One thread's stream, buffers and graph for batches of one size."""

    def __init__(self, run: Any, image: tuple[int, int], size: int, device: str) -> None:
        self.size = size
        self._run = run
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host = torch.zeros(size, *image, 3, dtype=torch.uint8).pin_memory()
        with torch.cuda.stream(self._stream):
            self._pixels = self._host.to(device, non_blocking=True)
            with _CAPTURING:
                self._record()
            self._results = [torch.empty_like(out, device="cpu").pin_memory() for out in self._out]
        self._stream.synchronize()

    def _record(self) -> None:
        self._graph = None
        for _ in range(3):  # libraries choose their kernels on the first runs
            self._out: tuple[Tensor, ...] = self._run(self._pixels)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # The other lane may go on allocating meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._out = self._run(self._pixels)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it waits for the device in its midst, or the like
            log.info("No CUDA graph of this network: %s", str(error).splitlines()[0])
            torch.cuda.synchronize()
        else:
            self._graph = graph

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        self._host.copy_(torch.from_numpy(pixels))
        with torch.cuda.stream(self._stream):
            self._pixels.copy_(self._host, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._out = self._run(self._pixels)
            for result, out in zip(self._results, self._out, strict=True):
                result.copy_(out, non_blocking=True)
        self._stream.synchronize()
        return tuple(result.numpy().copy() for result in self._results)
