"""The rungs of a recipe on the user's own images: each run once, and kept."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from featpipe.adaptation import adapted, check_classes, grouping, idle
from featpipe.backbones import Backbone, load_backbone, parse_backbone
from featpipe.cache import FeatureCache
from featpipe.checkpoint import checkpointing
from featpipe.classifier import Classifier
from featpipe.decode import Preprocessing
from featpipe.device import available_cores
from featpipe.errors import FeatpipeError, SettingsError, SplitError, WeightsError
from featpipe.extract import Progress, extract_features
from featpipe.images import ImageSource
from featpipe.leakage import Gap, by_group, leak_of, measure_gap
from featpipe.loading import scan
from featpipe.recipes import AS_PUBLISHED, Fault, Probe, Recipe, Route, Rung, Way
from featpipe.report.plots import plot_curves, plot_grid
from featpipe.report.training import save_report
from featpipe.result import Result
from featpipe.scratch import options_of, train_from_scratch
from featpipe.settings import ExtractSettings, ScratchSettings
from featpipe.split import Split, save_split, split_rows
from featpipe.steps import LeftOut, Step, read_gap, read_step, save_gap, save_step
from featpipe.table import Status
from featpipe.train import OnEpoch, train_head
from featpipe.weights import digest_weights

log = logging.getLogger(__name__)

GRID = 24  # pictures
# Of ExtractSettings, how features are computed here; what they are of is the recipe's.
HERE = ("runtime", "precision", "decode", "compile", "batch_size", "workers", "device")
FREE = ("batch_size", "workers", "device", "compile")  # what may differ when a run is gone on with


class Runner:
    """One recipe on one source of images, and what of it is known already."""

    def __init__(
        self,
        recipe: Recipe,
        source: ImageSource,
        out: Path,
        backbone: str | None,
        group: str | None,
        cut: str | None,
        extract: ExtractSettings | None,
        on_progress: Callable[[str], Progress] | None,
    ) -> None:
        self.recipe, self.source, self.out = recipe, source, out
        self.asked, self.extract = backbone, extract or ExtractSettings()
        self.cut, self.on_progress = cut, on_progress
        if cut and not any(route.way.cut for route in recipe.routes):
            raise SettingsError(
                f"{recipe.title} fine-tunes nothing, so there is no place to cut a network at; "
                f"leave --cut {cut} out."
            )
        check_classes(source, recipe)
        known = grouping(source.table, recipe, group)
        self.group, self.groups, self.unknown = known.setting, known.of_rows, known.unknown
        self.notes: list[str] = []
        if self.groups is None and any(fault.leak for fault in recipe.faults):
            self.notes.append(
                f"{self.unknown} What a random split gives away is neither seen nor mended. Say "
                "--group REGEX, or give a table with --group-column."
            )
            log.warning("%s", self.notes[-1])
        self.loaded: dict[str, tuple[Backbone, str]] = {}
        workers = self.extract.workers or available_cores()
        digests, status, _ = scan(source, workers)
        self.usable = status == Status.OK
        table = source.table
        columns = [table.ids, table.labels, table.classes, self.groups]
        text = repr([None if one is None else list(one) for one in columns])
        content = hashlib.blake2b(digests.tobytes() + text.encode("utf-8", "surrogatepass"))
        self.content = content.hexdigest()
        out.mkdir(parents=True, exist_ok=True)

    # ---- which rungs ---------------------------------------------------------------------------

    def plan(self, route: Route, as_published: bool = False) -> tuple[list[Rung], list[LeftOut]]:
        """The rungs that can be run on these images, and the faults that cannot be mended on them.

        Raises
        ------
        SplitError
            If there are too few images for one of them: before any feature is computed.
        """
        left_out: list[LeftOut] = []
        way = route.way
        self._check_split(AS_PUBLISHED, way)
        for fault in () if as_published else self.recipe.faults_of(route):
            after = way.mended(fault.mend)
            why = self._hindrance(fault, way, after)
            if why is None:
                way = after
            else:
                left_out.append(LeftOut(fault.name, why, in_force=fault.leak))
        rungs = self.recipe.ladder(route, [one.fault for one in left_out])
        return rungs[:1] if as_published else rungs, left_out

    def _hindrance(self, fault: Fault, before: Way, after: Way) -> str | None:
        """Why a fault cannot be mended here, None if it can."""
        if fault.leak and self.groups is None:
            return self.unknown
        try:
            self._check_split(fault.mended, after)
        except SplitError as error:
            if not fault.leak:
                raise
            return str(error.__cause__)
        if before.backbone is None:
            return None
        return idle(before, after, self._load(before.backbone)[0], self.cut)

    def _check_split(self, name: str, way: Way) -> None:
        try:
            self._split(self._here(way))
        except SplitError as error:
            reason = SplitError(_reason(error))
            ways = "Add images, or leave a class that is rare out (--classes)"
            if name != AS_PUBLISHED:
                ways += ", or run no more than was published (--as-published)"
            raise SplitError(
                f"{self.recipe.title}, {name}, cannot be run on these images. {reason} {ways}."
            ) from reason

    # ---- a rung --------------------------------------------------------------------------------

    def step(self, route: Route, number: int, rung: Rung) -> Step:
        """Run a rung, or read what it came to."""
        way, notes, loaded, weights = self._resolve(rung.way)
        key = self._key(way, loaded, weights)
        folder = self.out / _slug(route.name) / f"{number}-{_slug(rung.name)}"
        step = read_step(folder / "result.json", key)
        if step is None:
            log.info("%s: %s.", route.name, rung.name)
            folder.mkdir(parents=True, exist_ok=True)
            title = f"{self.recipe.title}, {rung.name}: {route.name}"
            with checkpointing(self.out / "unfinished", key) as unfinished:
                step, result = self._run(way, rung, loaded, weights, notes, folder, title)
            save_step(folder / "result.json", key, step, result)
            unfinished.clear()
        gone = np.isin(self.source.table.ids, step.unusable)
        self.usable &= ~gone
        return step

    def _resolve(self, way: Way) -> tuple[Way, list[str], Backbone | None, str]:
        """The way on the backbone and the groups there are."""
        way = self._here(way)
        if way.backbone is None:
            side = self.extract.input_size
            if side and isinstance(way.learn, ScratchSettings):
                way = replace(way, learn=replace(way.learn, input_size=side))
            return way, [], None, ""
        loaded, weights = self._load(way.backbone)
        way, notes = adapted(way, loaded, self.cut)
        pixels = way.pixels.applied(loaded.preprocessing)
        return way, notes, replace(loaded, preprocessing=pixels), weights

    def _here(self, way: Way) -> Way:
        """The way by the groups there are, and computed as asked."""
        if way.train.group != "none":
            way = replace(way, train=replace(way.train, group=self.group))
        how = {name: getattr(self.extract, name) for name in HERE}
        way = replace(way, extract=replace(way.extract, **how))
        return replace(way, train=replace(way.train, device=self.extract.device))

    def _load(self, published: str) -> tuple[Backbone, str]:
        text = self.asked or published
        text = published + text if text.startswith("@") else text
        if text not in self.loaded:
            settings = self.extract
            try:
                loaded = load_backbone(text, None, settings.seed, settings.input_size)
            except WeightsError as error:
                if parse_backbone(text)[2]:  # the user's own file, or name
                    raise
                reason = "\n".join(str(error).splitlines()[:2])  # the rest is another command's
                raise WeightsError(
                    f"{reason}\n  or pass --backbone @PATH, these weights from a file,\n"
                    "  or --backbone NAME@PATH, such as mobilenet_v2@PATH, another backbone,\n"
                    "  or --backbone @random to see the recipe run without anything learnt."
                ) from error
            self.loaded[text] = loaded, _identity(loaded)
        return self.loaded[text]

    def _key(self, way: Way, loaded: Backbone | None, weights: str) -> str:
        """Equal for what would come to the same."""
        said = way.to_dict()
        for name in FREE:
            del said["extract"][name]
        pixels = loaded.preprocessing.to_dict() if loaded else {}
        decides = [said, str(loaded), weights, pixels, self.content, self.group]
        return hashlib.blake2b(json.dumps(decides).encode(), digest_size=16).hexdigest()

    def _run(
        self,
        way: Way,
        rung: Rung,
        loaded: Backbone | None,
        weights: str,
        notes: list[str],
        folder: Path,
        title: str,
    ) -> tuple[Step, Result]:
        table, file = self.source.table, folder / "split.csv"
        drawn = f"{title} ({loaded.title})" if loaded else title
        classifier: Classifier | None = None
        extracting = 0.0
        if isinstance(way.learn, Probe):
            assert loaded is not None
            with self.features(way, loaded, weights) as cache:
                self.usable &= cache.ok
                split = self._split(way)
                save_split(split, table, file)
                classifier, result = train_head(
                    cache,
                    way.learn.head,
                    replace(way.train, split=str(file), val=0.0, test=0.0, group="none", folds=0),
                    way.learn.sweep,
                    on_epoch=self._epochs(way.learn.options.get("epochs")),
                    **way.learn.options,
                )
                extracting = float(cache.conditions["seconds"])
                save_report(folder, result, classifier.classes, cache, drawn, part=way.scored)
        else:
            split = self._split(way)
            save_split(split, table, file)
            result = self._from_scratch(way, way.learn, split)
            save_report(folder, result, table.classes, self.source, drawn, part=way.scored)
        self._draw(classifier, result, split, way.scored, loaded, folder, drawn)
        scores, ids = result.scores[way.scored], table.ids
        rows = split.train if way.scored == "folds" else split.parts()[way.scored]
        assert table.labels is not None
        right = result.proba[way.scored].argmax(axis=1) == table.labels[rows]
        over_groups = leak = None
        if self.groups is not None:
            _, low, high = by_group(right, self.groups[rows])
            assert low is not None
            assert high is not None
            over_groups, leak = (low, high), asdict(leak_of(split, way.scored, self.groups))
        unusable = ~self.usable & table.labelled
        step = Step(
            name=rung.name,
            fault=rung.fault.name if rung.fault else None,
            part=way.scored,
            n=scores.n,
            accuracy=scores.accuracy,
            interval=scores.interval,
            interval_by_group=over_groups,
            wrong=[str(name) for name in ids[rows[~right]]],
            train_accuracy=result.scores["train"].accuracy,
            rows={name: len(some) for name, some in split.parts().items()},
            scored=hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest(),
            leak=leak,
            seconds={"extract": extracting, "train": result.seconds},
            backbone=loaded.title if loaded else "none",
            conditions={
                "split": split.origin,
                "way": way.to_dict(),
                "machine": result.conditions["machine"],
            },
            notes=notes,
            unusable=[str(name) for name in ids[unusable]],
        )
        return step, result

    def _split(self, way: Way) -> Split:
        table = self.source.table
        blind = None if way.stratified else np.zeros(len(table), dtype=np.int64)
        return split_rows(table, way.train, self.usable, strata=blind)

    # ---- its parts -----------------------------------------------------------------------------

    def features(self, way: Way, loaded: Backbone, weights: str) -> FeatureCache:
        """The features of a way; those of one Spec are computed once for all rungs."""
        of_values = {k: v for k, v in asdict(way.extract).items() if k not in FREE}
        # A file of the same name is replaced, a network that is random has another seed: what is
        # in the weights decides, and features of others are left alone.
        network = f"{loaded.source}:{loaded.name}"
        decides = [network, weights, loaded.random, loaded.preprocessing.to_dict(), of_values]
        digest = hashlib.blake2b(json.dumps(decides).encode(), digest_size=5).hexdigest()
        file = self.out / f"features-{_slug(loaded.name)}-{digest}.h5"
        progress = self.on_progress(loaded.title) if self.on_progress else None
        return extract_features(self.source, loaded, file, way.extract, on_progress=progress)

    def _from_scratch(self, way: Way, learn: ScratchSettings, split: Split) -> Result:
        side = options_of(learn)["input_size"]
        whole = Preprocessing(resize=(side, side), crop=(side, side))
        report = self._epochs(options_of(learn)["epochs"])
        pixels = way.pixels.applied(whole)
        _, result = train_from_scratch(
            self.source, split, learn, way.train, report, preprocessing=pixels
        )
        return result

    def _epochs(self, most: int | None) -> OnEpoch | None:
        """Tells the progress of a training, epoch by epoch."""
        if most is None or self.on_progress is None:
            return None
        report = self.on_progress("epochs")
        return lambda row: report(int(row["epoch"]), most)

    def gap(self, route: Route, way: Way) -> tuple[Gap | None, str]:
        """What a random split promises beyond one that keeps groups together, or why not."""
        if self.groups is None or not isinstance(way.learn, Probe):
            return None, ""
        way, _, loaded, weights = self._resolve(way)
        assert loaded is not None
        key, file = self._key(way, loaded, weights), self.out / _slug(route.name) / "gap.json"
        gap = read_gap(file, key)
        if gap is None:
            try:
                with self.features(way, loaded, weights) as cache:
                    gap = measure_gap(cache, self.groups, self.group, settings=way.train)
            except FeatpipeError as error:  # every rung was run: what they came to is to be told
                log.warning("The gap is not measured: %s", error)
                return None, _reason(error)
            save_gap(file, key, gap)
        return gap, ""

    def _draw(
        self,
        classifier: Classifier | None,
        result: Result,
        split: Split,
        part: str,
        loaded: Backbone | None,
        folder: Path,
        title: str,
    ) -> None:
        if result.curves:
            plot_curves(result.curves, folder / "curves.png", title)
        if classifier is None:
            return
        classifier.save(folder / "classifier.safetensors")
        if self.recipe.grid:
            rows = split.train if part == "folds" else split.parts()[part]
            shown = self.source.only(rows[:: max(1, len(rows) // GRID)][:GRID])
            predictions = list(classifier.predict(shown, self.extract, loaded))
            plot_grid(predictions, classifier.classes, shown, folder / "grid.png", title=title)


def _identity(loaded: Backbone) -> str:
    """Equal for networks that compute the same: their weights, and the user's own code."""
    whole = digest_weights(dict(loaded.model.state_dict()))
    layers = loaded.layers()
    # Cut at its last layer it is all there; nothing behind a head's cut is forgotten.
    return whole + loaded.digest(layers.cut([*layers.shapes][-1:]))


def _reason(error: FeatpipeError) -> str:
    """What is wrong, without the ways out, which are those of other commands."""
    what, stop, _ = str(error).partition(". ")
    return what + "." if stop else what


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
