"""Malaria cells: is there a parasite in a stained blood cell?

A frozen DenseNet121 sees augmented cells; a perceptron of 460 hidden units learns from what it
says of them.
"""

from featpipe.recipes import Fault, Probe, Published, Recipe, Route, Way
from featpipe.settings import ExtractSettings, TrainSettings

# C99P60ThinF_IMG_20150918_141351_cell_57.png: slide 99 of patient 60. Some copies of the data put
# the class before the name; one patient has cells of both kinds.
PATIENT = r"(?:Parasitized)?([^/]+?)_?(?:[Tt]hinF|IMG_)[^/]*$"

RECIPE = Recipe(
    title="Malaria cells",
    data="27,558 stained cells in a folder a class, Parasitized and Uninfected",
    source="the worked example 'Malaria cells'",
    group="patient",
    group_by=PATIENT,
    routes=(
        Route(
            "DenseNet121 + perceptron",
            Published(accuracy=2483 / 2756, images=2756, part="test"),
            Way(
                backbone="densenet121",  # frozen, behind ImageNet's own normalisation
                extract=ExtractSettings(
                    views=8, augment="RandomResizedCrop(0.8,1.0),RandomRotation(15)"
                ),
                train=TrainSettings(split="random", val=0.2, test=0.1, group="none"),
                stratified=False,
                learn=Probe(  # 1024 -> 460 -> 2; log-softmax and its loss are cross-entropy
                    "mlp",
                    {
                        "hidden": (460,),
                        "dropout": 0.4,
                        "optimizer": "adam",
                        "lr": 3e-3,
                        "weight_decay": 0.0,
                        "epochs": 10,
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
            name="one head, one setting",
            why="Ten epochs of one perceptron were compared with nothing; a convex head, strongly "
            "penalised, has neither a learning rate nor an epoch to miss.",
            mended="logistic",
            mend={"learn": Probe("logistic")},
        ),
        Fault(
            name="patients on both sides",
            why="Cells of one patient share stain, lamp and parasite; a test on patients that were "
            "trained on says nothing of the next patient. Patients differ so much that a single "
            "test on a few of them is a lottery: each of them is tested once.",
            mended="patients kept apart, in folds",
            mend={"train": {"group": PATIENT, "val": 0.0, "test": 0.0, "folds": 5}}
            | {"stratified": True},
            leak=True,
        ),
    ),
    assumed=(
        "Dropout is 0.4 and the rotation 15 degrees: the description names both and gives neither.",
        "Each epoch of the example draws every picture anew; here it draws one of 8 stored views.",
        "Validation rows see the picture as it is, without augmentation.",
    ),
)
