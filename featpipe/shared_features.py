"""Features for all routes of a comparison: computed once per Spec, and found again."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featpipe.backbones import Backbone, parse_backbone
from featpipe.cache import FeatureCache
from featpipe.device import choose_device
from featpipe.durable import save_json
from featpipe.errors import CacheError
from featpipe.extract import Progress, extract_features
from featpipe.images import ImageSource
from featpipe.peak import measured
from featpipe.route import Route
from featpipe.settings import ExtractSettings

log = logging.getLogger(__name__)

INDEX = "features.json"
# Of ExtractSettings, what decides no feature's value, or is recorded in the Spec once chosen.
FREE = ("runtime", "precision", "decode", "compile", "batch_size", "workers", "device", "on_error",
        "reuse", "overwrite", "trust_code", "layer")  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """Features that some routes need: one pass over the images, whatever the layers.

    Attributes
    ----------
    backbone : str
    settings : ExtractSettings
        With all layers that are wanted; empty for the penultimate features.
    """

    backbone: str
    settings: ExtractSettings

    @property
    def key(self) -> str:
        """Equal for what one pass can give."""
        decides = {k: v for k, v in asdict(self.settings).items() if k not in FREE}
        named = bool(self.settings.layer)  # by which the pooling is chosen
        text = json.dumps([self.backbone, decides, named], sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()


def wanted_by(route: Route, extract: ExtractSettings) -> Wanted | None:
    """What a route needs, None if it needs no features.

    Parameters
    ----------
    route : Route
    extract : ExtractSettings
        For all routes; a route's own settings go before it. Of pixels, only how to compute.
    """
    if route.backbone is None:
        return None
    own = dict(route.extract)
    if parse_backbone(route.backbone)[0] == "pixels":
        extract = plain_of(extract)
    layer = (route.layer,) if route.layer else ()
    return Wanted(route.backbone, replace(extract, layer=layer, **own))


def plain_of(extract: ExtractSettings) -> ExtractSettings:
    """Settings for pixels: only how to compute."""
    return replace(extract, layer=(), pool="auto", weights=None, input_size=None)


def together(wanted: Iterable[Wanted]) -> list[Wanted]:
    """The passes that give all of it, in the order in which they are first asked for."""
    passes: dict[str, Wanted] = {}
    for one in wanted:
        before = passes.get(one.key)
        layers = before.settings.layer if before else ()
        layers = tuple(dict.fromkeys([*layers, *one.settings.layer]))
        passes[one.key] = replace(one, settings=replace(one.settings, layer=layers))
    return list(passes.values())


class SharedFeatures:
    """The feature caches of a comparison's folder.

    Parameters
    ----------
    source : ImageSource
    folder : Path
    loaded : mapping of str to Backbone
        Those that are not loaded by their name.
    read_only : bool
        Leave the folder's index as it is.
    """

    def __init__(
        self,
        source: ImageSource,
        folder: Path,
        loaded: Mapping[str, Backbone],
        read_only: bool = False,
    ) -> None:
        self._read_only = read_only
        self._source, self._folder, self._loaded = source, folder, loaded
        self._stack = contextlib.ExitStack()
        self._index = self._read_index()
        self._caches: dict[tuple[str, str], FeatureCache] = {}
        self._failed: dict[str, BaseException] = {}
        self.peaks: dict[Path, int | None] = {}

    def __enter__(self) -> "SharedFeatures":
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def files(self, one: Wanted) -> list[tuple[Path, tuple[str, ...]]]:
        """The files that hold, or will hold, what is wanted, and the layers of each."""
        known: list[dict[str, Any]] = self._index.get(one.key, [])
        there = [entry for entry in known if (self._folder / entry["file"]).exists()]
        chosen: list[tuple[Path, tuple[str, ...]]] = []
        missing = list(one.settings.layer)
        for entry in there:
            layers = tuple(entry["layers"])
            if not missing and not layers and not chosen:
                return [(self._folder / entry["file"], ())]
            if set(layers) & set(missing):
                chosen.append((self._folder / entry["file"], layers))
                missing = [layer for layer in missing if layer not in layers]
        if missing or not one.settings.layer:
            text = json.dumps([one.key, missing])
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4)
            slug = re.sub(r"[^A-Za-z0-9._-]+", "-", one.backbone)[-60:].strip("-")
            name = f"features-{slug}-{digest.hexdigest()}.h5"
            chosen.append((self._folder / name, tuple(missing)))
        return chosen

    def compute(self, one: Wanted, on_progress: Callable[[str], Progress] | None = None) -> None:
        """Compute what is missing of a pass; a failure is remembered, and raised by `of`."""
        try:
            for file, layers in self.files(one):
                backbone = self._loaded.get(one.backbone, one.backbone)
                settings = replace(one.settings, layer=layers)
                progress = on_progress(one.backbone) if on_progress else None
                entries = self._index.setdefault(one.key, [])
                entry = next((known for known in entries if known["file"] == file.name), None)
                new = not file.exists()
                with measured(choose_device(settings.device)) as peak:
                    cache = self._stack.enter_context(
                        extract_features(
                            self._source, backbone, file, settings, on_progress=progress
                        )
                    )
                if entry is None:
                    entry = {"file": file.name, "layers": list(layers), "peak": peak.resident}
                    entries.append(entry)
                elif new:
                    entry["peak"] = peak.resident
                self.peaks[cache.path] = entry.get("peak")
                if not self._read_only:
                    save_json(self._folder / INDEX, self._index)
                for layer in layers or ("",):
                    self._caches[one.key, layer] = cache
        except Exception as error:  # the other routes go on
            log.warning("%s: %s", one.backbone, error)
            self._failed[one.key] = error

    def of(self, one: Wanted) -> FeatureCache:
        """The cache that holds what a route wants.

        Raises
        ------
        FeatpipeError
            If it could not be computed.
        """
        if one.key in self._failed:
            raise self._failed[one.key]
        layer = one.settings.layer[0] if one.settings.layer else ""
        if (one.key, layer) not in self._caches:
            raise CacheError(f"No features of {one.backbone} {layer} were computed.")
        return self._caches[one.key, layer]

    @property
    def caches(self) -> list[FeatureCache]:
        """All that are open, each once."""
        return list({cache.path: cache for cache in self._caches.values()}.values())

    def _read_index(self) -> dict[str, list[dict[str, Any]]]:
        try:
            found = json.loads((self._folder / INDEX).read_bytes())
            index = {key: [_entry(one) for one in entries] for key, entries in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("%s cannot be read (%r).", self._folder / INDEX, error)
            return {}
        return index


def _entry(values: dict[str, Any]) -> dict[str, Any]:
    """A file of the index, checked: its name, its layers, and the peak memory if that is known."""
    file, layers, peak = values["file"], values["layers"], values.get("peak")
    if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(f"{file!r} is no file of the folder")
    if not isinstance(layers, list) or not all(isinstance(one, str) for one in layers):
        raise ValueError(f"{layers!r} are no layers")
    if not isinstance(peak, int | None):
        raise ValueError(f"{peak!r} is no number of bytes")
    return {"file": file, "layers": layers, "peak": peak}
