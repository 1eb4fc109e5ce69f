"""Five flowers: one linear layer on a frozen ResNet18, its curves, and a grid of predictions."""

from featpipe.recipes import Fault, Probe, Published, Recipe, Route, Way
from featpipe.settings import TrainSettings

RECIPE = Recipe(
    title="Five flowers",
    data="photographs of five flowers in a folder a class",
    source="the worked example 'Five flowers'",
    grid=True,
    routes=(
        Route(
            "ResNet18 + linear",
            Published(),
            Way(
                backbone="resnet18",  # frozen
                train=TrainSettings(split="random", val=0.2, group="none"),
                stratified=False,
                learn=Probe(  # 512 -> 5
                    "linear",
                    {
                        "optimizer": "sgd",
                        "lr": 1e-3,
                        "momentum": 0.9,
                        "weight_decay": 0.0,
                        "epochs": 25,
                        "batch_size": 32,
                        "patience": 0,
                        "standardize": False,
                    },
                ),
            ),
        ),
    ),
    faults=(
        Fault(
            name="no figure, no test",
            why="Curves of rows that are watched while training show that it runs, not how good it "
            "is; a test that is scored once, with its interval, does.",
            mended="a test of its own, stratified",
            mend={"train": {"test": 0.2}, "stratified": True},
        ),
        Fault(
            name="one learning rate, never compared",
            why="On features as they come, SGD at 1e-3 is still on its way when it ends; a convex "
            "head arrives, and validation chooses its penalty.",
            mended="logistic, C chosen on validation",
            mend={"learn": Probe("logistic", sweep={"C": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)})},
        ),
    ),
    assumed=(
        "25 epochs in batches of 32, and a fifth for validation: the description gives neither.",
        "What is told of the way as published is its epoch of lowest validation loss; the "
        "description shows curves and names no epoch.",
        "The frozen trunk is used as it predicts: whether the example's batch norm went on "
        "learning statistics while the linear layer was trained is not told.",
    ),
)
