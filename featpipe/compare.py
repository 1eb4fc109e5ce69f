"""Routes from images to a classifier, compared: same rows, same folds, same seeds, same clock."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.admission import check_images, check_selecting, divided
from featpipe.backbones import Backbone
from featpipe.device import available_cores, choose_device, machine_facts
from featpipe.duplicates import Duplicates, decide
from featpipe.errors import RouteError
from featpipe.extract import Progress
from featpipe.folds import ALONE, Strata
from featpipe.guard import duplicates_in, known_duplicates, leaks_of, same_files
from featpipe.images import ImageSource, open_images
from featpipe.loading import scan
from featpipe.preparation import check_classes
from featpipe.ranking import differences
from featpipe.results import Images, Items, Leaks, Results
from featpipe.rounds import Rounds, make_rounds
from featpipe.route import Route, checked
from featpipe.route_results import RouteResult
from featpipe.route_runner import Runner
from featpipe.routes import named
from featpipe.settings import CompareSettings, ExtractSettings, ImageSettings, ScratchSettings
from featpipe.shared_features import SharedFeatures, Wanted, plain_of, together, wanted_by
from featpipe.split import Split, row_groups, save_split
from featpipe.standing import Held, held_out, outcome
from featpipe.table import Status
from featpipe.targets import targets_of
from featpipe.trials import Ground
from featpipe.verdict import verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Comparison:
    """All routes over the same rows.

    Attributes
    ----------
    results : Results
        As in ``results.json``.
    split : Split
    rounds : Rounds
    caches : dict of str to Path
        A feature cache of each backbone, by its name as it was given.
    held : dict of str to Held
        By the routes' names: what fits that had not seen them say of the scored images.
    """

    results: Results
    split: Split
    rounds: Rounds
    caches: dict[str, Path]
    held: dict[str, Held]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.results.to_dict()


def compare_routes(
    images: str | Path | ImageSource,
    backbones: Sequence[str | Backbone] = (),
    heads: Sequence[str] = ("linear",),
    out: str | Path = "featpipe-compare",
    scratch: bool = True,
    extract: ExtractSettings | None = None,
    settings: CompareSettings | None = None,
    scratch_settings: ScratchSettings | None = None,
    image_settings: ImageSettings | None = None,
    on_progress: Callable[[str], Progress] | None = None,
    routes: Sequence[Route] = (),
) -> Comparison:
    """Compare routes on the same rows: each fold trains, selects and scores by the same ones.

    What is finished is kept in `out` and not run again; a training that was interrupted goes on.

    Parameters
    ----------
    images : str, Path or ImageSource
    backbones : sequence of str or Backbone
        ``[source:]name[@weights]``, each with every head; ``pixels`` then runs along.
    heads : sequence of str
    out : str or Path
        Folder for the feature caches, what is finished, ``split.csv``, ``results.json`` and
        ``results.csv``.
    scratch : bool
        With `backbones`, whether to train a CNN from pixels, too.
    extract, settings, scratch_settings, image_settings
        ``extract.layer`` and ``extract.pool`` hold for every one of `backbones`.
    on_progress : callable
        Given what is being done, returns the `Progress` to report to.
    routes : sequence of Route
        More of them, as `featpipe.routes.read_routes` gives them.

    Returns
    -------
    Comparison

    Raises
    ------
    RouteError
        If there is no route, two are the same, or none could be run.
    SplitError
        If the labels do not allow the folds.
    """
    extract, settings = extract or ExtractSettings(), settings or CompareSettings()
    loaded = {str(one): one for one in backbones if isinstance(one, Backbone)}
    simple = simple_routes(backbones, heads, scratch, extract, scratch_settings)
    every = settled([*routes, *simple], settings, loaded)
    source = open_images(images, image_settings)
    targets = targets_of(source.table)
    check_images(source.table, every, settings)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with SharedFeatures(source, folder, loaded) as features:
        wanted = {route.name: wanted_by(route, extract) for route in every}
        needed = passes(wanted, extract)
        for one in needed:
            features.compute(one, on_progress)
        if not features.caches and any(route.backbone is None for route in every):
            needed = passes({}, extract)  # networks from scratch go on
            features.compute(needed[0], on_progress)
        if not features.caches:
            features.of(needed[0])  # says why not
        runner = Runner(Ground(source, targets, settings), folder, features, on_progress)
        stage = Stage(runner, source, settings, every, wanted, extract)
        with runner:
            return stage.run(folder)


def simple_routes(
    backbones: Sequence[str | Backbone],
    heads: Sequence[str],
    scratch: bool,
    extract: ExtractSettings,
    scratch_settings: ScratchSettings | None = None,
) -> list[Route]:
    """Every backbone with every head and layer, pixels, and a CNN from scratch."""
    found: list[Route] = []
    if not backbones:
        return found
    for backbone in dict.fromkeys([*map(str, backbones), "pixels"]):
        pixels = backbone == "pixels"
        for head in dict.fromkeys(heads):
            for layer in [None] if pixels else extract.layer or [None]:
                kind = "pixels" if pixels else "tail" if head == "tail" else "head"
                found.append(Route("", kind, backbone, layer, head))
    if scratch:
        given = asdict(scratch_settings or ScratchSettings())
        options = {name: value for name, value in given.items() if value not in (None, ())}
        found.append(Route("", "scratch", options=options))
    return found


def settled(
    routes: Sequence[Route], settings: CompareSettings, loaded: dict[str, Backbone]
) -> list[Route]:
    """The routes of a comparison, checked and named.

    Raises
    ------
    RouteError
        If there is none, or one has more candidates than all may have.
    """
    if not routes:
        raise RouteError(
            "There is nothing to compare: name a --backbone, a --route, or a file of --routes."
        )
    every = named([checked(route) for route in routes], loaded)
    for route in every:
        count = route.count
        if count > settings.select_budget:
            raise RouteError(
                f"{route.name} has {count} candidates, more than the {settings.select_budget} that "
                "each route may choose among: shorten its sweep, or raise --select-budget."
            )
    return every


def passes(wanted: Mapping[str, Wanted | None], extract: ExtractSettings) -> list[Wanted]:
    """The passes over the images that routes need; pixels' where none does.

    By some features copies of images must be found, and which images can be decoded.
    """
    needed = list(filter(None, wanted.values()))
    return together(needed or [Wanted("pixels", plain_of(extract))])


class Stage:
    """A comparison while it runs: which rows are for what, and what was found until now.

    Parameters
    ----------
    runner : Runner
    source : ImageSource
    settings : CompareSettings
    routes : list of Route
    wanted : dict of str to Wanted or None
        Features of each route, by its name.
    extract : ExtractSettings
    look : bool
        Whether to look for copies of images, if nobody has.
    """

    def __init__(
        self,
        runner: Runner,
        source: ImageSource,
        settings: CompareSettings,
        routes: list[Route],
        wanted: dict[str, Wanted | None],
        extract: ExtractSettings,
        look: bool = True,
    ) -> None:
        self.runner, self.source, self.settings = runner, source, settings
        self.routes, self.wanted, self.extract = routes, wanted, extract
        table = source.table
        self.targets = runner.ground.targets
        self.groups = row_groups(table, settings.group)
        digests, status, _ = scan(source, extract.workers or available_cores())
        text = json.dumps([table.ids.tolist(), table.classes, self.targets.values.tolist()])
        content = digests.tobytes() + text.encode("utf-8", "surrogatepass")
        runner.content = hashlib.blake2b(content, digest_size=16).hexdigest()
        self.usable = runner.usable(status == Status.OK)
        caches, kept = runner.features.caches, (runner.content, runner.folder)
        if look:
            self.duplicates: Duplicates | None = duplicates_in(source, caches, *kept)
        else:
            self.duplicates = known_duplicates(source, *kept) or same_files(digests, table)
        copies = decide(self.duplicates, settings.leaks) if self.duplicates else None
        self.split = divided(table, settings, self.usable, copies)
        assert table.labels is not None
        groups = self.groups if copies is None or self.groups is None else copies.join(self.groups)
        self.drawn = self.groups if copies is None else copies.join(self.groups)
        strata = Strata(table.labels, table.classes, groups)
        self.rounds = make_rounds(self.split, strata, settings.val, settings.seed, copies)
        check_classes(self.targets, self.split)
        check_selecting(routes, self.rounds)
        self.held: dict[str, Held] = {}
        self.found: dict[str, RouteResult] = {}

    def run(self, folder: Path) -> Comparison:
        """All routes; what is known is written after each."""
        save_split(self.split, self.source.table, folder / "split.csv")
        errors: list[BaseException] = []
        results = self.results()
        # What is finished is read first, so that no file of results ever knows less than before.
        kept = [route for route in self.routes if self._kept(route)]
        others = [route for route in self.routes if route not in kept]
        for number, route in enumerate([*kept, *others], 1):
            try:
                standing = self.runner.run(route, self.wanted[route.name], self.rounds)
            except Exception as error:  # the others go on
                log.warning("%s failed: %s", route.name, error)
                reason = str(error) or type(error).__name__
                self.found[route.name] = RouteResult(
                    route.name, route.kind, "failed", reason, route.backbone, route.layer,
                    route.head, dict(route.options),
                )  # fmt: skip
                errors.append(error)
            else:
                held = held_out(standing.trials, self.rounds, self.targets)
                self.held[route.name] = held
                self.found[route.name] = outcome(
                    standing, self.rounds, self.targets, held, self.drawn
                )
            if number >= len(kept):
                results = self.results()
                results.save(folder)
        if not self.held:
            if len(errors) == 1:
                raise errors[0]
            raise RouteError(
                "None of the routes could be run: "
                + "; ".join(f"{one.name}: {one.reason}" for one in results.routes)
            )
        return Comparison(
            results, self.split, self.rounds, self.runner.files(self.wanted), self.held
        )

    def _kept(self, route: Route) -> bool:
        try:
            found = self.runner.kept(route, self.wanted[route.name], self.rounds)
        except Exception:  # it will be told when the route is run
            return False
        return found == len(self.rounds.every)

    def results(self) -> Results:
        """Everything that is known until now."""
        table, classes = self.source.table, self.source.table.class_counts()
        parts = np.full(len(table), "", dtype=object)
        for name, rows in self.split.parts().items():
            parts[rows] = name
        groups = None
        if self.groups is not None:
            groups = ["" if str(one).startswith(ALONE) else str(one) for one in self.groups]
        assert table.labels is not None
        routes = self._ranked()
        device = choose_device(self.settings.device)
        return Results(
            title=Path(self.source.location).name or self.source.location,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            images=Images(
                self.source.location,
                len(table),
                int((~self.usable & table.labelled).sum()),
                classes,
            ),
            design=self._design(),
            items=Items(
                [str(name) for name in table.ids], table.labels.tolist(), groups, parts.tolist()
            ),
            routes=routes,
            verdict=verdict(routes, self.rounds.part),
            leaks=self._leaks(),
            machine=machine_facts(device),
        )

    def _leaks(self) -> Leaks | None:
        if self.duplicates is None:
            return None
        return leaks_of(self.duplicates, self.source.table, self.split, self.settings.leaks)

    def _design(self) -> dict[str, Any]:
        settings = {**asdict(self.settings), "budgets": [*self.settings.budgets, None]}
        ranking = self.rounds.ranking
        settings |= self.rounds.design  # a split file may have folds of its own
        return {
            **settings,
            "origin": self.split.origin,
            "ranked_by": self.rounds.part,
            "rows": {name: len(rows) for name, rows in self.split.parts().items()},
            "of_each_fold": {
                name: float(np.mean([len(getattr(one, name)) for one in ranking]))
                for name in ("fit", "select", "scored")
            },
            "standardised_by": "all training rows, without their labels, where a head wants that",
            "pending": [one.name for one in self.routes if one.name not in self.found],
        }

    def _ranked(self) -> list[RouteResult]:
        """Finished routes, best first, with their differences to the best; then the others."""
        done = [one for one in self.found.values() if one.finished]
        failed = [one for one in self.found.values() if not one.finished]
        done.sort(key=_merit)
        if not done:
            return failed
        right = np.stack([self.held[one.name].right for one in done])
        rounds = self.rounds
        folds = np.array([one.folds.accuracy or [_accuracy(one)] for one in done])
        rows = self.held[done[0].name].rows
        groups = None if self.drawn is None else self.drawn[rows]
        apart = differences(right, folds, rounds.test_share, 0, groups, self.settings.seed)
        return [*(replace(one, difference=d) for one, d in zip(done, apart, strict=True)), *failed]


def _accuracy(route: RouteResult) -> float:
    assert route.accuracy is not None
    return route.accuracy.value


def _merit(route: RouteResult) -> tuple[float, float, str]:
    """The most accurate first; of equal ones the surest probabilities, then by name."""
    assert route.reliability is not None
    losses = route.folds.log_loss
    loss = float(np.mean(losses)) if losses else 0.0
    return -round(_accuracy(route), 12), loss, route.name
