"""Documents and texts that more than one command prints."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.cli._output import percent, print_table, say, seconds

if TYPE_CHECKING:
    from featpipe.compare import Comparison


def default_out(images: str, backbone: str) -> Path:
    """A file name for the features of `images` by `backbone`."""
    name = Path(images).resolve().stem if Path(images).exists() else images
    model = backbone.partition("@")[0]
    # Short enough for names made of it, whatever its letters weigh in bytes.
    return Path(re.sub(r"[^\w.-]+", "-", f"{name[:50]}-{model[-60:]}") + ".h5")


def describe_cache(cache: FeatureCache) -> dict[str, Any]:
    """What a cache holds, as plain JSON values."""
    bad = np.flatnonzero(~cache.ok)
    splits = cache.table.splits
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in cache.table.ids)
    return {
        "path": str(cache.path),
        "rows": len(cache),
        "size_bytes": cache.path.stat().st_size,
        "classes": cache.table.class_counts(),
        "splits": dict(Counter(splits[splits != ""].tolist())) if splits is not None else {},
        "groups": len(set(cache.table.groups)) if cache.table.groups is not None else 0,
        "suffixes": dict(suffixes.most_common()),
        "layers": {name: list(shape) for name, shape in cache.layers.items()},
        "status": cache.status_counts(),
        "without_features": [
            {"id": cache.table.ids[row], "reason": cache.reasons[row]} for row in bad
        ],
        "spec": cache.spec.to_dict(),
        "conditions": cache.conditions,
    }


def print_comparison(comparison: "Comparison") -> None:
    """The table of routes, on stdout."""
    has = comparison.split.parts()
    parts = [part for part in ("train", "val", "test") if part in has]
    rows = []
    for route in comparison.routes:
        row = route.row()
        low, high = row["interval_95"] or (None, None)
        rows.append(
            [
                route.name,
                *(percent(row[f"{part}_accuracy"]) for part in parts),
                f"{percent(low)} to {percent(high)}",
                seconds(row["seconds_cold"]),
                seconds(row["seconds_warm"]),
                f"{row['parameters']:,}",
            ]
        )
    names = {"train": "train %", "val": "validation %", "test": "test %"}
    columns = ["route", *(names[part] for part in parts), "95 % interval", "s cold", "s warm"]
    print_table([*columns, "parameters trained"], rows)
    counts = ", ".join(f"{len(rows)} {part}" for part, rows in has.items())
    scored = "test" if "test" in has else "validation"
    say(
        f"{comparison.images}: {counts}; split {comparison.split.origin}. The interval is "
        f"Wilson's, of the {scored} accuracy."
    )
    say("Cold: from image files to scored classifier; warm: training and scoring alone.")
