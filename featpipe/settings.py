"""The settings of each stage, each default written once.

The command line makes its options from these fields, so that a name, a default and a help
text are the same in Python and in the shell. Nothing heavy is imported here: ``--help``
must not wait for torch.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from featpipe.errors import SettingsError

SEEDS = 2**32 - 2  # with one more for a second split, the largest that every generator takes


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field that also describes a command-line option."""
    described = {"help": help, "choices": choices, "metavar": metavar}
    return field(default=default, metadata={**described, "minimum": minimum, "maximum": maximum})


class _Checked:
    """Refuses a value that the option does not allow, wherever it comes from."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value, meta = getattr(self, one.name), one.metadata
            unset = value is None and one.default is None
            if meta["choices"] and not unset and value not in meta["choices"]:
                raise SettingsError(
                    f"{one.name} is {value!r}; it can be {', '.join(meta['choices'])}."
                )
            low, high = meta["minimum"], meta["maximum"]
            if value is None or (low is None and high is None):
                continue
            try:
                fits = (low is None or value >= low) and (high is None or value <= high)
            except TypeError:  # it is no number
                fits = False
            if not fits:
                limit = f"at least {low}" if high is None else f"from {low} to {high}"
                raise SettingsError(f"{one.name} is {value!r}; it must be {limit}.")


@dataclass(frozen=True)
class ImageSettings(_Checked):
    """How a table of images is read. Only manifests (CSV, TSV, Parquet) need any of it."""

    path_column: str | None = option(None, "Manifest column that holds the image paths.")
    label_column: str | None = option(None, "Manifest column that holds the labels.")
    group_column: str | None = option(
        None, "Manifest column of groups that a split must not tear apart (patient, scene)."
    )
    split_column: str | None = option(None, "Manifest column that holds train, val or test.")
    root: str | None = option(
        None,
        "Folder that manifest paths are relative to, or that built-in data sets are kept in "
        "[default: the manifest's own folder].",
        metavar="DIR",
    )
    allow_outside: bool = option(False, "Let manifest paths lead out of the root.")


@dataclass(frozen=True)
class ExtractSettings(_Checked):
    """How features are computed and stored."""

    layer: tuple[str, ...] = option(
        (), "Layer to cache; repeat for several in one pass [default: the penultimate features]."
    )
    pool: str = option(
        "auto",
        "What becomes of maps and token sequences; auto averages the default layer and flattens "
        "a layer that was named.",
        ("auto", "flatten", "avg", "max", "none"),
    )
    weights: str | None = option(
        None,
        "DEFAULT, a torchvision enum name, a .pth or .safetensors file, or random; the same as "
        "BACKBONE@WEIGHTS.",
    )
    seed: int = option(0, "Seed of random weights, and of views.", minimum=0, maximum=SEEDS)
    views: int = option(
        1,
        "Views to cache of each image: the plain one, and others made of it by --augment.",
        minimum=1,
        maximum=1000,
    )
    augment: str = option(
        "",
        "What makes views: transforms of torchvision.transforms.v2 by name, such as "
        "RandomResizedCrop(0.8,1.0),RandomRotation(15),HorizontalFlip.",
        metavar="TRANSFORMS",
    )
    input_size: int | None = option(
        None,
        "Side of the network's square input, in pixels [default: the weights' own].",
        minimum=1,
    )
    runtime: str = option(
        "auto",
        "What runs the network: torch, openvino; auto takes the fastest one there is.",
        metavar="auto|torch|openvino",
    )
    precision: str = option(
        "auto",
        "What the network computes in; auto takes bfloat16 where the hardware has it, measures "
        "what that costs, and float32 elsewhere.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    decode: str = option(
        "auto",
        "exact is torchvision's preset on Pillow to the bit; fast is TorchCodec and a resize of "
        "bytes; cuda is nvJPEG on the card; auto takes cuda there, else fast, where it is true "
        "to exact.",
        ("auto", "exact", "fast", "cuda"),
    )
    compile: bool = option(
        False, "Let torch.compile the network: for long runs of the torch runtime."
    )
    dtype: str = option("float32", "Type the features are stored in.", ("float32", "float16"))
    batch_size: int | None = option(
        None, "Images in one forward pass [default: 8 on a CPU, 64 on an accelerator].", minimum=1
    )
    workers: int | None = option(
        None, "Threads that read and decode [default: one a core].", minimum=1
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    on_error: str = option(
        "record",
        "An image that cannot be decoded becomes a row with a reason, or stops the run.",
        ("record", "raise"),
    )
    reuse: tuple[str, ...] = option(
        (),
        "Another cache to take rows from, made with the same settings; repeatable.",
        metavar="H5",
    )
    overwrite: bool = option(False, "Start anew, whatever is there.")
    trust_code: bool = option(
        False, "Import and run the network's code, where the file names a python: backbone."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views > 1 and not self.augment.strip():
            raise SettingsError(
                f"views is {self.views}, but nothing says how they differ: give --augment, such as "
                "RandomResizedCrop(0.8,1.0),HorizontalFlip, or leave --views out."
            )
        if self.augment and self.views == 1:
            raise SettingsError(
                f"augment is {self.augment}, but there is one view, the plain one: give --views, "
                "such as 8, or leave --augment out."
            )


@dataclass(frozen=True)
class TrainSettings(_Checked):
    """How rows are divided and which features are used. A head's own parameters are its own."""

    layer: str | None = option(None, "Layer of the cache to train on [default: the only one].")
    split: str = option(
        "auto",
        "given: the source's own train/val/test; random: a seeded one; auto: given where there "
        "is one; a file as featpipe split writes it, with the columns id and part.",
        metavar="auto|given|random|FILE",
    )
    val: float = option(
        0.2, "Share of the rows that selects epochs; none is taken where there are folds."
    )
    test: float = option(0.0, "Share of the rows that is scored once, at the end.")
    group: str = option(
        "auto",
        "Rows of one group stay on one side of the split: auto takes the groups of the cache, "
        "none ignores them, anything else is a regular expression whose first group in the id "
        "is the group.",
        metavar="auto|none|REGEX",
    )
    leaks: str | None = option(
        None,
        "Images that are there twice, be it re-encoded, resized or mirrored: group keeps them on "
        "one side of every split, drop keeps one of each, keep only warns; the pictures are looked "
        "at before anything is trained [default of train-head and split: they are not looked for; "
        "of compare: group].",
        ("group", "drop", "keep"),
    )
    folds: int = option(
        0, "Folds of the training rows, each of which validates once; 0: none.", minimum=0
    )
    repeats: int = option(
        1, "Times that the folds are made, or a label budget is drawn, anew.", minimum=1
    )
    leave_one_group_out: bool = option(False, "A fold for each group, instead of --folds.")
    select: str = option(
        "accuracy",
        "Mean over the folds that chooses among candidates (for several labels an image, "
        "accuracy is average precision).",
        ("accuracy", "balanced_accuracy", "log_loss"),
    )
    views: str = option(
        "all",
        "Of a cache with several views an image: an epoch draws one of all for each, or training "
        "sees the plain one only.",
        ("all", "plain"),
    )
    tta: bool = option(
        False,
        "Average the probabilities of all views of an image, in validation, test and prediction, "
        "in place of taking its plain one.",
    )
    separator: str | None = option(
        None,
        "What stands between several labels of one image: with '|', cat|dog is both; each label "
        "is then learnt by itself.",
    )
    min_precision: float | None = option(
        None,
        "Abstain below the confidence from which validation predictions are right this often.",
        minimum=0.01,
        maximum=1.0,
    )
    seed: int = option(
        0, "Seed of the split, the initial weights and the batches.", minimum=0, maximum=SEEDS
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    memory: float | None = option(
        None,
        "GiB that features may take; larger ones are read block by block, by linear, mlp and "
        "logistic [default: a quarter of the machine's].",
        minimum=1e-6,
        maximum=1e9,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise SettingsError("folds is 1; it must be 0, for none, or at least 2.")
        if self.folds and self.leave_one_group_out:
            raise SettingsError(
                f"folds is {self.folds}, and leave_one_group_out makes folds of its own: one of "
                "them, not both."
            )


@dataclass(frozen=True)
class ScratchSettings(_Checked):
    """A network trained from pixels. What is None is the network's own default."""

    network: str = option(
        "two-layer",
        "two-layer: the smallest there is, as published (Adam at 1e-3 for 15 epochs of batches of "
        "128 images of 224 pixels, nothing else); small: a fair opponent, four stages of two "
        "convolutions, augmented, stopped early; or any torchvision architecture, from random "
        "weights.",
        metavar="two-layer|small|NAME",
    )
    widths: tuple[int, ...] = option(
        (), "Channels of each stage of small [default: 32,64,128,256].", metavar="N,N,..."
    )
    dropout: float | None = option(
        None,
        "Before the last layer [default: 0.2 for small, an architecture's own].",
        minimum=0.0,
        maximum=0.99,
    )
    epochs: int | None = option(None, "At most [default: 15 for two-layer, else 100].", minimum=1)
    batch_size: int | None = option(None, "[default: 128 for two-layer, else 32].", minimum=2)
    lr: float | None = option(
        None, "Learning rate [default: 1e-3 for two-layer, else 2e-3].", minimum=1e-9
    )
    optimizer: str | None = option(
        None, "[default: adam for two-layer, else adamw].", ("adam", "adamw", "sgd")
    )
    schedule: str | None = option(
        None,
        "Of the learning rate [default: constant for two-layer, else one-cycle].",
        ("constant", "cosine", "one-cycle"),
    )
    weight_decay: float | None = option(
        None, "[default: 0 for two-layer, else 0.05].", minimum=0.0, maximum=1e6
    )
    label_smoothing: float | None = option(
        None,
        "Share of the target that classes share [default: 0 for two-layer, else 0.1].",
        minimum=0.0,
        maximum=0.99,
    )
    class_weight: str | None = option(
        None, "balanced: images of rare classes weigh more.", ("balanced",)
    )
    patience: int | None = option(
        None,
        "Epochs without a lower validation loss, after which it stops; 0: never [default: 0 for "
        "two-layer, else 30].",
        minimum=0,
    )
    augment: bool | None = option(
        None,
        "Show each epoch another part of each image, or its mirror image [default: not for "
        "two-layer].",
    )
    precision: str | None = option(
        None,
        "What is computed in; auto: bfloat16 where the device is fastest at it, else float32 "
        "[default: float32 for two-layer, else auto].",
        ("auto", "float32", "bfloat16"),
    )
    input_size: int | None = option(
        None,
        "Side of its input in pixels [default: 224 for two-layer, 128 for small, an "
        "architecture's own].",
        minimum=4,
        maximum=4096,
    )


def trained(name: str, *default: Any) -> Any:
    """An option that is one of stage two's, perhaps with another default."""
    one = next(one for one in fields(TrainSettings) if one.name == name)
    return field(default=default[0] if default else one.default, metadata=one.metadata)


@dataclass(frozen=True)
class CompareSettings(_Checked):
    """How routes are compared: all of them on the same rows, folds and seeds."""

    folds: int = option(
        5, "Folds of the training rows, each of which is scored once; 0: one split.", minimum=0
    )
    repeats: int = option(1, "Times that the folds are made anew.", minimum=1, maximum=1000)
    split: str = trained("split")
    val: float = option(
        0.2, "Share of each fold's training rows that selects epochs and candidates."
    )
    test: float = trained("test")
    group: str = trained("group")
    leaks: str = trained("leaks", "group")
    select: str = option(
        "accuracy",
        "What chooses among a route's candidates, on rows that are not scored.",
        ("accuracy", "balanced_accuracy", "log_loss"),
    )
    select_budget: int = option(
        20, "Candidates that a route may choose among, the same for all routes.", minimum=1
    )
    budgets: tuple[int, ...] = option(
        (1, 2, 5, 10, 20, 50),
        "Labelled images a class, of which each route's curve is made; all of them come last.",
        metavar="N,N,...",
    )
    network_budgets: bool = option(
        False,
        "Label budgets of networks that are trained, too (from scratch, fine-tuned): a training "
        "for each size and fold.",
    )
    seed: int = trained("seed")
    device: str = trained("device")
    memory: float | None = trained("memory")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise SettingsError("folds is 1; it must be 0, for one split, or at least 2.")
        if not self.folds and self.repeats > 1:
            raise SettingsError(
                f"repeats is {self.repeats}, but there are no folds to repeat: give folds, or "
                "leave repeats out."
            )
        if any(size < 1 for size in self.budgets):
            raise SettingsError(f"budgets are {self.budgets}; each is at least 1 image a class.")

    @property
    def rows(self) -> TrainSettings:
        """How rows are divided, as stage two has it."""
        same = ("split", "test", "group", "folds", "repeats", "select", "seed", "device", "memory")
        given = {name: getattr(self, name) for name in same}
        return TrainSettings(**given, val=0.0 if self.folds else self.val)
