"""One image file."""

from pathlib import Path

from featpipe.errors import ImagesError
from featpipe.images import ImageSource, file_source
from featpipe.settings import ImageSettings
from featpipe.table import make_table


def accepts(location: str) -> bool:
    """Whether `location` is a file: whatever no other source wants is taken for an image."""
    return Path(location).is_file() and Path(location).suffix.lower() not in _TABLES


_TABLES = (".csv", ".tsv", ".parquet")
_MADE = {".h5": "a feature cache", ".safetensors": "a classifier"}


def open(location: str, settings: ImageSettings) -> ImageSource:
    """The file as a table of one row, without a label; its id is its path as given."""
    path = Path(location)
    if made := _MADE.get(path.suffix.lower()):
        raise ImagesError(f"{location} is no image but, by its name, {made}.")
    if not path.is_file():
        raise ImagesError(f"There is no file {location}.")
    return file_source(location, Path(), make_table([path.as_posix()]))
