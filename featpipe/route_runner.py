"""Running routes one after the other, and keeping what each came to."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.checkpoint import Checkpoints, checkpointing
from featpipe.cnn import Architecture
from featpipe.decode import Preprocessing
from featpipe.device import choose_device
from featpipe.errors import FeatpipeError
from featpipe.extract import Progress
from featpipe.kept import Keeper, Trial
from featpipe.label_budget import budget_rounds, head_curve, points
from featpipe.pixel_rows import Decoded, decoding
from featpipe.rounds import Round, Rounds
from featpipe.route import Route
from featpipe.route_results import SizePoint
from featpipe.scratch import options_of
from featpipe.shared_features import SharedFeatures, Wanted
from featpipe.standing import Standing
from featpipe.train import OnEpoch
from featpipe.trials import Ground, budget_trial, head_trials, network_trial

log = logging.getLogger(__name__)

ROUTES, UNFINISHED = "routes", "unfinished"  # in the folder


class Runner:
    """Runs routes of one comparison; within it, pixels that were decoded are shared.

    Parameters
    ----------
    ground : Ground
    folder : Path
    features : SharedFeatures
    on_progress : callable

    Attributes
    ----------
    content : str
        Digest of the images and their labels.
    """

    content = ""

    def __init__(
        self,
        ground: Ground,
        folder: Path,
        features: SharedFeatures,
        on_progress: Callable[[str], Progress] | None,
    ) -> None:
        self.ground, self.features = ground, features
        self.folder, self._on_progress = folder, on_progress
        self._stack = contextlib.ExitStack()
        self._decoded: dict[str, Decoded] = {}
        self._usable = np.zeros(0, bool)

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    # ---- rows ----------------------------------------------------------------------------------

    def usable(self, readable: np.ndarray) -> np.ndarray:
        """Rows with a label that every route can use: bool array, shape (n,).

        Parameters
        ----------
        readable : bool array, shape (n,)
            Rows whose bytes can be had.
        """
        usable = [one.ok for one in self.features.caches]
        table = self.ground.source.table
        self._usable = np.logical_and.reduce([table.labelled, readable, *usable])
        return self._usable

    def files(self, wanted: Mapping[str, Wanted | None]) -> dict[str, Path]:
        """A feature cache of each backbone."""
        found: dict[str, Path] = {}
        for one in filter(None, wanted.values()):
            with contextlib.suppress(FeatpipeError):
                found.setdefault(one.backbone, self.features.of(one).path)
        return found

    def kept(self, route: Route, wanted: Wanted | None, rounds: Rounds) -> int:
        """Rounds of a route that are finished."""
        cache = self.features.of(wanted) if wanted else None
        keeper = Keeper(self.folder / ROUTES, self._decides(route, cache, rounds))
        return sum(_name(one) in keeper for one in rounds.every)

    # ---- a route -------------------------------------------------------------------------------

    def run(self, route: Route, wanted: Wanted | None, rounds: Rounds) -> Standing:
        """Run what is missing of a route, or read what it came to.

        Raises
        ------
        FeatpipeError
            If its features could not be computed, or it cannot be trained.
        """
        cache = self.features.of(wanted) if wanted else None
        keeper = Keeper(self.folder / ROUTES, self._decides(route, cache, rounds))
        unfinished = self.folder / UNFINISHED / keeper.digest
        with checkpointing(unfinished, keeper.digest) as kept:
            trials = self._trials(route, cache, rounds, keeper, kept)
            budget, note = self._budget(route, cache, rounds, keeper, trials)
        kept.clear()
        with contextlib.suppress(OSError):  # unless others are in it
            unfinished.parent.rmdir()
        standing = self._standing(route, cache, trials, rounds)
        return Standing(**standing, budget=budget, budget_note=note, decides=keeper.digest)

    def _decides(self, route: Route, cache: FeatureCache | None, rounds: Rounds) -> dict[str, Any]:
        settings = self.ground.settings
        decides: dict[str, Any] = {
            "route": route.decides(),
            "content": self.content,
            "select": settings.select,
            "seed": settings.seed,
            "device": choose_device(settings.device),
        }
        if cache is not None:
            decides |= {"spec": cache.spec.to_dict(), "layer": cache.layer(route.layer)}
        else:
            every = [options_of(route.scratch(options)) for options in route.candidates]
            decides["scratch"] = every
        if not route.trains_network:  # heads are fitted in all rounds at once
            decides["rounds"] = [_name(one) for one in rounds.every]
        return decides

    def _trials(
        self,
        route: Route,
        cache: FeatureCache | None,
        rounds: Rounds,
        keeper: Keeper,
        kept: Checkpoints,
    ) -> dict[str, Trial]:
        found: dict[str, Trial] = {}
        for one in rounds.every:
            trial = keeper.read(_name(one))
            if trial is not None:
                found[one.name] = trial
        missing = [one for one in rounds.every if one.name not in found]
        if not missing:
            return found
        log.info("%s: %d of %d rounds.", route.name, len(missing), len(rounds.every))
        if not route.trains_network:
            assert cache is not None
            facts = rounds.every[-1].name
            made = head_trials(self.ground, route, cache, rounds.every, facts)
            for one in rounds.every:
                keeper.write(_name(one), made[one.name])
            return made
        decoded = self._pixels(route) if cache is None else None
        for one in missing:
            kept.resumed = False
            report = self._epochs(route, rounds.every.index(one), len(rounds.every))
            found[one.name] = network_trial(self.ground, route, one, cache, decoded, report)
            keeper.write(_name(one), found[one.name])
        return {one.name: found[one.name] for one in rounds.every}

    def _budget(
        self,
        route: Route,
        cache: FeatureCache | None,
        rounds: Rounds,
        keeper: Keeper,
        trials: Mapping[str, Trial],
    ) -> tuple[list[SizePoint], str]:
        settings = self.ground.settings
        if not settings.budgets:
            return [], "No label budget was asked for."
        if route.trains_network and not settings.network_budgets:
            return [], "A training for each size and fold is made with --network-budgets only."
        wanted = budget_rounds(rounds, self.ground.targets.values, settings.budgets, settings.seed)
        every = [one for some in wanted.values() for one in some]
        name = "budget-" + _digest([_name(one) for one in every])
        known = keeper.read_curve(name)
        if known is not None:
            return [_point(one) for one in known], ""
        if not route.trains_network:
            assert cache is not None
            try:
                curve = head_curve(self.ground, route, cache, rounds, wanted, trials)
            except FeatpipeError as error:
                return [], f"It could not be made: {error}"
        else:
            options = {
                one.name: trials[rounds.ranking[number].name].options
                for some in wanted.values()
                for one, number in zip(some, rounds.once, strict=True)
            }
            decoded = self._pixels(route) if cache is None else None
            accuracies: dict[str, float] = {}
            for one in every:
                held = keeper.read_curve(f"few-{_name(one)}")
                if held is None:
                    value = budget_trial(self.ground, route, one, options[one.name], cache, decoded)
                    held = [{"accuracy": value}]
                    keeper.write_curve(f"few-{_name(one)}", held)
                accuracies[one.name] = float(held[0]["accuracy"])
            curve = points(wanted, lambda one: accuracies[one.name])
        keeper.write_curve(name, [asdict(one) for one in curve])
        return curve, ""

    def _standing(
        self,
        route: Route,
        cache: FeatureCache | None,
        trials: dict[str, Trial],
        rounds: Rounds,
    ) -> dict[str, Any]:
        if cache is None:
            rows = int(self._usable.sum())
            seconds = max(trial.prepare_seconds for trial in trials.values())
            rate = rows / seconds if seconds else None
            return {
                "route": route, "trials": trials, "extract_seconds": seconds,
                "images_per_second": rate, "spec": None, "layer": None, "random_weights": False,
                "peak_bytes": None,
            }  # fmt: skip
        seconds = float(cache.conditions.get("seconds") or 0.0)
        throughput = cache.conditions.get("throughput") or {}
        rate = throughput.get("images_per_second") or (len(cache) / seconds if seconds else None)
        return {
            "route": route, "trials": trials, "extract_seconds": seconds,
            "images_per_second": rate, "spec": cache.spec.to_dict(),
            "layer": cache.layer(route.layer), "random_weights": cache.spec.random_weights,
            "peak_bytes": self.features.peaks.get(cache.path),
        }  # fmt: skip

    # ---- pixels --------------------------------------------------------------------------------

    def _pixels(self, route: Route) -> Decoded:
        """Pixels of all usable rows at the size that a network from scratch takes."""
        plain = preprocessing_of(route)
        key = plain.describe()
        if key not in self._decoded:
            rows = np.flatnonzero(self._usable)
            made = decoding(self.ground.source, rows, plain)
            self._decoded[key] = self._stack.enter_context(made)
        return self._decoded[key]

    def _epochs(self, route: Route, place: int, rounds: int) -> OnEpoch | None:
        """Tells the progress of a network's training, over all rounds."""
        if self._on_progress is None:
            return None
        if route.kind == "scratch":
            most = int(options_of(route.scratch(route.candidates[0]))["epochs"])
        else:
            most = int(route.options.get("epochs", 20))
        report = self._on_progress(route.name)
        return lambda row: report(place * most + int(row["epoch"]), rounds * most)


def preprocessing_of(route: Route) -> Preprocessing:
    """How a network from scratch sees images."""
    options = options_of(route.scratch(route.candidates[0]))
    made = Architecture(
        options["network"], 2, options["input_size"], tuple(options["widths"]), options["dropout"]
    )
    return made.preprocessing()


def _name(one: Round) -> str:
    """Of a round's file: the rows are part of it, and what it draws."""
    rows = [one.fit.tolist(), one.select.tolist(), one.scored.tolist()]
    return f"{one.name}-" + _digest([*rows, one.seed])


def _digest(values: Any) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def _point(values: Mapping[str, Any]) -> SizePoint:
    interval = values["interval_95"]
    return SizePoint(values["size"], values["value"], tuple(interval) if interval else None)
