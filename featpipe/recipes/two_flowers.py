"""Two flowers: the last stage of a ResNet50 is fine-tuned on a small folder of photographs."""

from featpipe.recipes import Fault, Probe, Published, Recipe, Route, Way
from featpipe.settings import ExtractSettings, TrainSettings

RECIPE = Recipe(
    title="Two flowers",
    data="photographs of two flowers in a folder a class",
    source="the worked example 'Two flowers'",
    routes=(
        Route(
            "ResNet50, last stage trained",
            Published(accuracy=0.989),
            Way(
                backbone="resnet50",
                # What is behind layer3 is trained: layer4, avgpool and a new fc.
                extract=ExtractSettings(layer=("layer3",), dtype="float16"),
                train=TrainSettings(split="random", val=0.3, group="none"),
                stratified=False,
                learn=Probe(
                    "tail",
                    {
                        "train": "all",
                        "freeze_norm": False,
                        "optimizer": "sgd",
                        "lr": 1e-3,
                        "momentum": 0.9,
                        "weight_decay": 0.0,
                        "schedule": "constant",
                        "epochs": 5,
                        "batch_size": 32,
                        "patience": 0,
                        "precision": "float32",
                    },
                ),
            ),
        ),
    ),
    faults=(
        Fault(
            name="no test",
            why="The rows that chose the epoch are the ones reported, which flatters them; and "
            "rows that are drawn blindly need not have their share of both flowers.",
            mended="a test of its own, stratified",
            mend={"train": {"val": 0.15, "test": 0.3}, "stratified": True},
        ),
        Fault(
            name="batch norm learns from 32 at a time",
            why="Statistics of a million pictures are replaced by those of small batches of a few "
            "hundred, and the network that is used is not the one that was trained.",
            mended="batch norm kept",
            mend={"learn": {"options": {"freeze_norm": True}}},
        ),
        Fault(
            name="five epochs, whatever comes",
            why="Nothing says that five are enough or not too many; training that stops when "
            "validation has not improved for a while asks the pictures.",
            mended="up to 20 epochs, stopped by validation",
            mend={"learn": {"options": {"epochs": 20, "patience": 4}}},
        ),
    ),
    assumed=(
        "The figure is that of the best epoch by validation loss; the description does not say.",
        "How many photographs there were is not said, so the published figure has no interval.",
        "Pictures are not augmented, and the learning rate is constant: the description names no "
        "augmentation and no schedule.",
    ),
)
