"""Emergency vehicles: VGG16's features cached once, against a two-layer CNN from scratch."""

from featpipe.recipes import Fault, Pixels, Probe, Published, Recipe, Route, Way
from featpipe.settings import ExtractSettings, ImageSettings, ScratchSettings, TrainSettings

VGG, CNN = "VGG16, last layer trained", "two-layer CNN from scratch"
# Reading files as arrays and scaling them to [0, 1] is all that was done to the pictures.
PIXELS = Pixels(whole=True, normalised=False, transposed=False)
# What the example calls validation selects nothing: to featpipe that is a test. 165 images.
ROWS = TrainSettings(split="random", val=0.0, test=0.1, seed=13, group="none")

RECIPE = Recipe(
    title="Emergency vehicles",
    data="1,646 pictures of 224 x 224 in a CSV with the columns image_names, emergency_or_not",
    source="the worked example 'Emergency vehicles'",
    images=ImageSettings(
        path_column="image_names", label_column="emergency_or_not", group_column="source_image"
    ),
    group="source picture",
    routes=(
        Route(
            VGG,
            Published(accuracy=0.8347, images=165, train_accuracy=0.8370),
            Way(
                backbone="vgg16_bn",
                extract=ExtractSettings(layer=("features",)),  # 512 x 7 x 7 = 25,088 values
                pixels=PIXELS,
                train=ROWS,
                # The pretrained fc6 and fc7 stay; of their classifier only 4096 -> 2 is learnt.
                learn=Probe(
                    "tail",
                    {
                        "train": "last",
                        "optimizer": "adam",
                        "lr": 5e-4,
                        "schedule": "constant",
                        "weight_decay": 0.0,
                        "epochs": 30,
                        "batch_size": 128,
                        "patience": 0,
                        "precision": "float32",
                    },
                ),
            ),
        ),
        Route(
            CNN,
            Published(accuracy=0.7626, images=165, train_accuracy=0.8157),
            Way(
                pixels=PIXELS,
                train=ROWS,
                learn=ScratchSettings(network="two-layer", epochs=15, batch_size=128),
            ),
        ),
    ),
    # Rows first, so that what is done to the pictures is judged on the larger test.
    faults=(
        Fault(
            name="no rows that select",
            why="Thirty epochs run whatever becomes of them, and 165 pictures leave an interval "
            "of eleven points; validation selects the epoch, and a larger test is scored once.",
            mended="validation selects, a fifth is the test",
            mend={"train": {"val": 0.1, "test": 0.2}},
        ),
        Fault(
            name="source pictures on both sides",
            why="Crops of one photograph share light, street and camera; a test on photographs "
            "that were trained on says little of the next one.",
            mended="source pictures kept apart",
            mend={"train": {"group": "auto"}},
            leak=True,
        ),
        Fault(
            name="reshaped, not transposed",
            why="Read in the order in which they lie, values of a third of the picture's rows make "
            "up a channel, each row cut in three that lie below one another: neighbours are "
            "neighbours no more, and no pretrained filter fits.",
            mended="transposed",
            mend={"pixels": {"transposed": True}},
        ),
        Fault(
            name="never normalised",
            why="Pretrained weights expect pictures less ImageNet's mean, over its deviation; on "
            "[0, 1] every layer works off the range it was trained for.",
            mended="normalised as the weights ask",
            mend={"pixels": {"normalised": True}},
        ),
    ),
    assumed=(
        "Pixels are scaled to [0, 1]; the description says only that they are not normalised.",
        "The two-layer CNN has featpipe's widths and learning rate: the description gives neither.",
        "The column source_image is not in the published table; without it, or --group, whose "
        "crops belong together is not known and cannot be mended.",
    ),
)
