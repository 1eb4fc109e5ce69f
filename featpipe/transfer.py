"""Features to and from other people's formats."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from featpipe.backbones import IMPORTED
from featpipe.cache import FeatureCache, parts_folder
from featpipe.cache_assemble import BLOCK_BYTES, table_columns, write_cache
from featpipe.device import machine_facts
from featpipe.durable import clear, exclusive, placing
from featpipe.errors import CacheError, ImagesError, MissingExtraError, SettingsError
from featpipe.manifest import is_bytes
from featpipe.settings import ImageSettings
from featpipe.spec import Spec
from featpipe.table import ImageTable
from featpipe.transfer_arrays import StoredRows, open_array, stored_type
from featpipe.transfer_parquet import write_lists
from featpipe.transfer_tables import read_listing, write_csv

log = logging.getLogger(__name__)


def export_features(cache: FeatureCache, out: str | Path, layer: str | None = None) -> list[Path]:
    """Write one layer of a cache, and its table, in a format that others read.

    Rows are in the cache's order, all of them: rows without features are NaN, and the table
    says why. Of several views of an image it is the plain one. Files of these names are replaced,
    each put in place whole.

    Parameters
    ----------
    cache : FeatureCache
    out : str or Path
        Its suffix decides:

        ``.npy``
            The features as stored, shape (n, ...), with the table beside it as ``.csv``: a
            manifest again, if its labels are UTF-8.
        ``.parquet``
            The table, and a column ``features`` of lists of the flat rows; the Spec, layer and
            shape are in the schema's metadata.
        ``.h5ad``
            An AnnData with the flat rows as ``X``, held in memory.
    layer : str
        May be left out if there is only one.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    SettingsError
        If `out` has another suffix.
    CacheError
        If its folder is not there, or names are not UTF-8 and the format holds only UTF-8.
    CacheDamagedError
        If features do not match their checksums.
    MissingExtraError
        Without pyarrow or anndata.
    """
    path, name = Path(out), cache.layer(layer)
    if cache.views > 1:
        log.warning("Of the %d views of each image the plain one is written.", cache.views)
    writers = {".npy": _write_npy, ".parquet": _write_parquet, ".h5ad": _write_h5ad}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise SettingsError(
            f"{path} cannot be exported to: features are written as {', '.join(writers)}."
        )
    if not path.parent.is_dir():
        raise CacheError(f"There is no folder {path.parent} for {path}. Make it first.")
    if path.is_dir() or (path.exists() and path.samefile(cache.path)):
        raise CacheError(f"{path} is {'a folder' if path.is_dir() else 'the cache itself'}.")
    return writer(cache, path, name)


def _row_of(cache: FeatureCache, layer: str) -> np.ndarray:
    """A row of zeros, of the type and shape that the layer has."""
    return np.zeros(cache.layers[layer], cache.features(layer, np.arange(0)).dtype)


def _blocks(cache: FeatureCache, layer: str, row: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return cache.blocks(layer, max(1, BLOCK_BYTES // row.nbytes))


def _write_npy(cache: FeatureCache, path: Path, layer: str) -> list[Path]:
    row, table = _row_of(cache, layer), path.with_suffix(".csv")
    shape = (len(cache), *row.shape)
    header = {"descr": row.dtype.str, "fortran_order": False, "shape": shape}
    with placing(table) as text, placing(path) as array:
        write_csv(cache, text)
        # Not through a memory map: a disk that becomes full under one kills the process.
        with array.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _, features in _blocks(cache, layer, row):
                file.write(np.ascontiguousarray(features).data)
    return [path, table]


def _write_parquet(cache: FeatureCache, path: Path, layer: str) -> list[Path]:
    row, columns = _row_of(cache, layer), _utf8_columns(cache, path)
    metadata = {"featpipe.spec": json.dumps(cache.spec.plain().to_dict()), "featpipe.layer": layer}
    with placing(path) as temporary:
        write_lists(temporary, columns, row, _blocks(cache, layer, row), metadata)
    return [path]


def _write_h5ad(cache: FeatureCache, path: Path, layer: str) -> list[Path]:
    try:
        from anndata import AnnData
    except ImportError as error:
        raise MissingExtraError(
            f"Writing {path} needs anndata: pip install 'featpipe[anndata]'."
        ) from error
    _utf8_columns(cache, path)
    features = cache.features(layer)
    uns = {
        "featpipe_spec": json.dumps(cache.spec.plain().to_dict()),
        "featpipe_layer": layer,
        "featpipe_shape": np.array(features.shape[1:], np.int64),
    }
    table = cache.to_dataframe().set_index("id")
    with placing(path) as temporary:
        AnnData(features.reshape(len(features), -1), obs=table, uns=uns).write_h5ad(temporary)
    return [path]


def _utf8_columns(cache: FeatureCache, path: Path) -> dict[str, list[str]]:
    columns = cache.columns()
    for name, values in columns.items():
        strange = next((text for text in values if is_bytes(text)), None)
        if strange is not None:
            raise CacheError(
                f"The {name} {strange!r} is not UTF-8, and a {path.suffix} file holds nothing "
                "else. Export to .npy, whose table keeps the bytes, or rename the file and extract "
                "again, which computes nothing anew."
            )
    return columns


def import_features(
    features: str | Path | np.ndarray,
    table: str | Path | ImageTable | None,
    out: str | Path,
    *,
    name: str,
    layer: str = "features",
    dtype: str | None = None,
    image_settings: ImageSettings | None = None,
    overwrite: bool = False,
) -> FeatureCache:
    """Make a cache of features that were computed elsewhere.

    What an export holds comes back as it was, but for the Spec, which says ``import:name``.

    Parameters
    ----------
    features : str, Path or array, shape (n, ...)
        A ``.npy`` file, which is never wholly in memory; a ``.parquet`` file with a column
        ``features`` of lists; or an array. Rows with NaN or infinity have no features.
    table : str, Path, ImageTable or None
        CSV, TSV or Parquet, row by row the same images. Paths become ids as they are written;
        nothing need lie there. None: the other columns of the Parquet file.
    out : str or Path
        The HDF5 file to make.
    name : str
        Of what computed the features, for the record.
    layer : str
        What to call them.
    dtype : str
        ``float32`` or ``float16``; by default the array's own, and ``float32`` for others.
    image_settings : ImageSettings
        Names of the table's columns.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    CacheError
        If `out` is there already, or the features cannot be read.
    ImagesError
        If the table cannot be read, or has another number of rows.
    FeatureValueError
        If the array does not hold numbers, or one is too large for the stored type.
    """
    begun = time.perf_counter()
    path, settings = Path(out), image_settings or ImageSettings()
    if not name.strip() or not layer or layer == "." or "/" in layer or "\0" in layer:
        raise SettingsError(
            f"The name is {name!r}, the layer {layer!r}; neither is empty, and a layer has no /."
        )
    _refuse_existing(path, overwrite)
    found = open_array(features)
    if table is None:
        if isinstance(features, np.ndarray) or Path(features).suffix.lower() != ".parquet":
            raise ImagesError(f"{found.title} does not name its rows: give their --table.")
        table = features
    listing = read_listing(table, settings)
    if len(listing.table) != found.shape[0]:
        raise ImagesError(
            f"{listing.title} has {len(listing.table)} rows, {found.title} {found.shape[0]}; row "
            "i of both must be the same image."
        )
    files = [Path(given) for given in (features, table) if isinstance(given, str | Path)]
    if path.exists() and any(map(path.samefile, files)):
        raise CacheError(f"{path} is what is to be imported; choose another --out.")
    rows = StoredRows(
        found, listing.table.ids, listing.status, listing.reasons, layer, stored_type(found, dtype)
    )
    spec = Spec(
        backbone=f"{IMPORTED}:{name}", weights="none", seed=0,
        weights_digests={layer: rows.digest()}, random_weights=False, layers={layer: "none"},
        preprocessing={}, decoder="none", precision=rows.dtype.name, dtype=rows.dtype.name,
    )  # fmt: skip
    conditions = machine_facts()
    conditions["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    conditions["imported"] = {"features": found.title, "table": listing.title}
    columns = table_columns(listing.table, listing.digests, listing.status, listing.reasons)
    with _place(path, overwrite) as temporary:
        shapes = {layer: found.shape[1:]}
        write_cache(temporary, spec, shapes, columns, rows.read, conditions, begun)
    return FeatureCache.open(path)


@contextmanager
def _place(path: Path, overwrite: bool) -> Iterator[Path]:
    """Where to write the cache, alone; a failure leaves what was there."""
    folder, done = parts_folder(path), False
    with exclusive(folder, path):
        try:
            _refuse_existing(path, overwrite)
            with placing(path, folder) as temporary:
                yield temporary
            done = True
        finally:
            if done or not (folder / "build.json").exists():
                clear(folder)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    begun = parts_folder(path) / "build.json"
    if path.is_dir():
        raise CacheError(f"{path} is a folder; --out names a file.")
    if not overwrite and (path.exists() or begun.exists()):
        what = f"{path} exists" if path.exists() else f"An unfinished extraction to {path} exists"
        raise CacheError(f"{what}. Choose another --out, or pass --overwrite to replace it.")
