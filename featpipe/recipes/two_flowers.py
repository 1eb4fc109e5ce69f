"""Two flowers: the last stage of a ResNet50 is fine-tuned on a small folder of photographs."""

from featpipe.recipes import Fault, Published, Recipe, Route, Way
from featpipe.settings import FinetuneSettings, TrainSettings

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
                cut="layer3",  # what lies behind it, layer4, avgpool and fc, is trained
                train=TrainSettings(split="random", val=0.3, group="none"),
                stratified=False,
                learn=FinetuneSettings(
                    optimizer="sgd", lr=1e-3, momentum=0.9, epochs=5, batch_size=32
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
            name="five epochs, whatever comes",
            why="Nothing says that five are enough or not too many; training that stops when "
            "validation has not improved for a while asks the pictures.",
            mended="up to 20 epochs, stopped by validation",
            mend={"learn": {"epochs": 20, "patience": 4}},
        ),
    ),
    assumed=(
        "The figure is that of the best epoch by validation loss; the description does not say.",
        "How many photographs there were is not said, so the published figure has no interval.",
        "Pictures are not augmented: the description names no augmentation.",
    ),
)
