"""Planted copies and planted label errors in real photographs: what of them is found.

    python benchmarks/leaks.py SHARED WORK [--only copies sets labels] [--seeds 3]

SHARED holds `data/` and `weights/`; features by MobileNetV2 are kept in WORK and taken from there
the next time.

copies: flowers as the training part, and as the test part 50 of them again: JPEG or WebP of
quality 30 to 95, 0.4 to 1.5 times as large, half of them mirrored. Found are those of the 50 that
are paired with what they are copies of; any pair beside them counts as a false alarm unless it is
in KNOWN, where every pair is listed that is there without anything planted, and was looked at.
What a head promises on the test with its copies kept and left out is measured, too.

sets: what is found in each data set as it is, and how near the nearest other pairs come, which is
what the limits in `featpipe.duplicates` were chosen by.

labels: one label in twenty replaced by another class, drawn evenly; the average precision of
`label_scores` over all rows, and what is listed.

Each part replaces its own key of benchmarks/results/leaks.json; shorter forms go to WORK.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from sklearn.metrics import average_precision_score

import featpipe.suspects as suspecting
from featpipe import FeatureCache, TrainSettings, extract_features, train_head
from featpipe.device import available_cores, machine_facts
from featpipe.duplicates import (
    LEAST_SIMILARITY,
    MOST_BITS,
    MOST_COLOUR,
    NEIGHBOURS,
    Duplicates,
    find_duplicates,
)
from featpipe.metrics import Scores
from featpipe.neighbours import Likeness
from featpipe.originals import open_originals
from featpipe.picture_hash import PictureHash, hash_pictures
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.suspects import find_suspects, label_scores

COPIES, FLIPPED = 50, 0.05
# Pairs of flowers that show one picture, by eye: the first is encoded twice, the others are edited
# differently.
KNOWN = {
    ("10993710036_2033222c91", "10993818044_4c19b86c82"),
    ("2333321040_3960b9d67e_n", "2344751399_71620039f2_n"),
    ("4278757393_bca8415ed4_n", "4654848357_9549351e0b_n"),
}
SETS = {
    "flowers": ("flowers", ImageSettings()),
    "hymenoptera": ("hymenoptera", ImageSettings()),
    "vehicles": (
        "emergency/emergency_train.csv",
        ImageSettings(
            path_column="image_names",
            label_column="emergency_or_not",
            group_column="source_image",
        ),
    ),
    "malaria": ("malaria", ImageSettings()),
}


def plant(flowers: Path, folder: Path, seed: int) -> None:
    """Write the training part, and copies of some of it as the test part."""
    if (folder / "done").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(flowers, folder / "images" / "train")
    files = sorted(flowers.rglob("*.jpg"))
    random = np.random.default_rng(seed)
    for number, place in enumerate(random.choice(len(files), COPIES, replace=False)):
        path = files[place]
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        scale = random.uniform(0.4, 1.5)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(
            size, (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)[number % 2]
        )
        if number % 2:
            picture = ImageOps.mirror(picture)
        out = folder / "images" / "test" / path.parent.name
        out.mkdir(parents=True, exist_ok=True)
        kind = "webp" if number % 3 == 0 else "jpg"
        picture.save(out / f"{path.stem}.copy.{kind}", quality=int(random.integers(30, 96)))
    (folder / "done").touch()


def copies(shared: Path, work: Path, seeds: int) -> dict[str, Any]:
    """What is found of planted copies, and what they are worth to a head."""
    base = features(shared, work, "flowers").path
    runs = []
    for seed in range(seeds):
        folder = work / f"planted-{seed}"
        plant(shared / "data" / "flowers", folder, seed)
        settings = ExtractSettings(reuse=(str(base),))
        cache = extract_features(folder / "images", backbone(shared), folder / "f.h5", settings)
        begun = time.perf_counter()
        found = find_duplicates(cache)
        seconds = time.perf_counter() - begun
        hits, known, alarms, distances = judge(cache, found)
        accuracy = {}
        for policy in ("keep", "group"):
            _, result = train_head(cache, "logistic", TrainSettings(leaks=policy), C=0.01)
            scores = result.scores["test"]
            assert isinstance(scores, Scores)
            accuracy[policy] = scores.accuracy
        runs.append(
            {
                "seed": seed,
                "images": len(cache),
                "planted": COPIES,
                "found": hits,
                "known_pairs": known,
                "false_alarms": alarms,
                "across_the_split": sum("split" in pair.across for pair in found.pairs),
                "hash_distances": distances,
                "candidates": found.candidates,
                "seconds": round(seconds, 2),
                "test_accuracy": accuracy,
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    return {"target": "found >= 45 of 50, false alarms <= 5 of 1,200 images", "runs": runs}


def judge(
    cache: FeatureCache, found: Duplicates
) -> tuple[int, int, list[list[str]], dict[str, float]]:
    """Planted pairs that were found, known ones, all others, and how far copies are apart."""
    hits, known, alarms, distances = set(), 0, [], []
    for pair in found.pairs:
        names = [cache.table.ids[row] for row in pair.rows]
        stems = tuple(sorted(Path(name).name.split(".")[0] for name in names))
        if stems[0] == stems[1]:
            hits.add(stems[0])
            distances.append(pair.distance)
        elif stems in KNOWN:
            known += 1
        else:
            alarms.append(names)
    shares = {f"{q}": float(np.percentile(distances, q)) for q in (50, 90, 100)}
    return len(hits), known, alarms, shares


def sets(shared: Path, work: Path) -> dict[str, Any]:
    """What is in each data set as it is."""
    told = {}
    for name in SETS:
        cache = features(shared, work, name)
        begun = time.perf_counter()
        found = find_duplicates(cache)
        seconds = time.perf_counter() - begun
        told[name] = {
            "images": int(cache.ok.sum()),
            "pairs": [
                {"ids": [cache.table.ids[row] for row in pair.rows], **pair.to_dict()}
                for pair in found.pairs
            ],
            "candidates": found.candidates,
            "seconds": round(seconds, 2),
            "nearest_other_candidates_in_bits": nearest(cache, found),
        }
        print(name, json.dumps(told[name], ensure_ascii=False)[:400], flush=True)
    return told


def nearest(cache: FeatureCache, found: Duplicates) -> list[int]:
    """Hash distances of the nearest candidates that are not called copies."""
    rows = np.flatnonzero(cache.ok)
    pairs = Likeness(cache, None, rows).neighbours(NEIGHBOURS, LEAST_SIMILARITY)
    originals = open_originals(cache)
    hashes: dict[int, PictureHash] = hash_pictures(
        originals.picture, np.unique(pairs).tolist(), available_cores()
    )
    same = {pair.rows for pair in found.pairs}
    apart = [
        hashes[one].compare(hashes[other])[0]
        for one, other in pairs.tolist()
        if (one, other) not in same
    ]
    return sorted(apart)[:5]


def labels(shared: Path, work: Path, seeds: int) -> dict[str, Any]:
    """What is found of planted label errors."""
    cache = features(shared, work, "flowers")
    whole, original = cache.table, suspecting.list_suspects
    assert whole.labels is not None
    judged: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def remembering(*given: np.ndarray) -> Any:
        judged.append(given)  # type: ignore[arg-type]
        return original(*given)

    suspecting.list_suspects = remembering
    copies = find_duplicates(cache).copies("group")
    runs = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        wrong = random.choice(len(cache), round(FLIPPED * len(cache)), replace=False)
        changed = whole.labels.copy()
        changed[wrong] += random.integers(1, len(whole.classes), len(wrong))
        changed %= len(whole.classes)
        cache.table = replace(whole, labels=changed)
        begun = time.perf_counter()
        found = find_suspects(cache, settings=TrainSettings(seed=seed), copies=copies)
        seconds = time.perf_counter() - begun
        rows, given, proba = judged[-1]
        truth, own = np.isin(rows, wrong), proba[np.arange(len(rows)), given]
        listed = {suspect.row for suspect in found}
        right = listed & set(wrong.tolist())
        runs.append(
            {
                "seed": seed,
                "flipped": len(wrong),
                "average_precision": average_precision_score(truth, label_scores(given, proba)),
                "average_precision_of_self_confidence": average_precision_score(truth, -own),
                "listed": len(listed),
                "of_these_flipped": len(right),
                "flipped_among_the_first_30": len(
                    {suspect.row for suspect in found[:30]} & set(wrong.tolist())
                ),
                "seconds": round(seconds, 2),
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    cache.table, suspecting.list_suspects = whole, original
    return {"target": "average precision >= 0.8", "runs": runs}


def features(shared: Path, work: Path, name: str) -> FeatureCache:
    """Features of a data set by MobileNetV2."""
    location, settings = SETS[name]
    root = str(shared / "data" / "emergency" / "images") if name == "vehicles" else None
    return extract_features(
        shared / "data" / location,
        backbone(shared),
        work / f"{name}-mobilenet_v2.h5",
        image_settings=replace(settings, root=root),
    )


def backbone(shared: Path) -> str:
    """MobileNetV2 with the shared weights."""
    return f"mobilenet_v2@{shared / 'weights' / 'mobilenet_v2.pth'}"


def main() -> None:
    """Run what is asked for and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parts = ("copies", "sets", "labels")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    folder = Path(__file__).parent / "results" if given.seeds >= 3 else given.work
    path = folder / "leaks.json"
    document = json.loads(path.read_text()) if path.is_file() else {}
    document["machine"] = machine_facts()
    document["limits"] = {
        "neighbours": NEIGHBOURS,
        "least_similarity": LEAST_SIMILARITY,
        "most_bits_of_256": MOST_BITS,
        "most_colour": MOST_COLOUR,
    }
    for part in given.only:
        if part == "copies":
            document[part] = copies(given.shared, given.work, given.seeds)
        elif part == "sets":
            document[part] = sets(given.shared, given.work)
        else:
            document[part] = labels(given.shared, given.work, max(given.seeds, 5))
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
