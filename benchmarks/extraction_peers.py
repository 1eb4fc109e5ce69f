"""One way to extract features, in a process and an environment of its own.

    python benchmarks/extraction_peers.py PEER MODEL WEIGHTS IMAGES COUNT

Prints one JSON document: images, and the seconds from the ready network to all features in
memory, or on the disk where the peer puts them there. PEER is plain, timm or thingsvision; none
of them imports featpipe, so that each runs in whatever environment holds it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

BATCH, WORKERS = 32, 2


def network(model: str, weights: str) -> torch.nn.Module:
    made = getattr(torchvision.models, model)()
    made.load_state_dict(torch.load(weights, weights_only=True))
    return made.eval()


def plain(model: str, weights: str, images: Path, count: int) -> float:
    """ImageFolder, DataLoader, the preset on PIL, eager float32: what tutorials write."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    preset = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    net = network(model, weights)
    if model == "vgg16":
        run = torch.nn.Sequential(net.features, torch.nn.Flatten())
    else:
        run = torch.nn.Sequential(*list(net.children())[:-1], torch.nn.Flatten())
    begun = time.perf_counter()
    data = Subset(ImageFolder(str(images), preset), range(count))
    found = []
    with torch.inference_mode():
        for batch, _ in DataLoader(data, BATCH, num_workers=WORKERS):
            found.append(run(batch).numpy())
    assert sum(map(len, found)) == count
    return time.perf_counter() - begun


def timm(model: str, weights: str, images: Path, count: int) -> float:
    """timm's loader and its model's features, as its inference script runs them."""
    import timm as library
    from timm.data import create_dataset, create_loader, resolve_data_config
    from torch.utils.data import Subset

    net = library.create_model(model, pretrained=False).eval()
    config = resolve_data_config({}, model=net)
    begun = time.perf_counter()
    data = create_dataset("", root=str(images))
    create_loader(  # sets the data's transform
        data, batch_size=BATCH, use_prefetcher=False, num_workers=WORKERS,
        input_size=config["input_size"], interpolation=config["interpolation"],
        mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"], device="cpu",
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Subset(data, range(count)), BATCH, num_workers=WORKERS)
    found = []
    with torch.inference_mode():
        for batch, _ in loader:
            found.append(net.forward_features(batch).flatten(1).numpy())
    assert sum(map(len, found)) == count
    return time.perf_counter() - begun


def thingsvision(model: str, weights: str, images: Path, count: int) -> float:
    """thingsvision's own extractor, data set and loader."""
    import os
    import tempfile

    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images", "all")
        folder.mkdir(parents=True)
        for path in sorted(images.rglob("*.jpg"))[:count]:
            os.link(path, folder / path.name)
        extractor = get_extractor(
            model_name=model, source="torchvision", device="cpu", pretrained=False,
            model_parameters=None,
        )  # fmt: skip
        begun = time.perf_counter()
        data = ImageDataset(
            root=str(folder.parent), out_path=place, backend=extractor.get_backend(),
            transforms=extractor.get_transformations(),
        )  # fmt: skip
        loader = DataLoader(dataset=data, batch_size=BATCH, backend=extractor.get_backend())
        layer = "features.30" if model == "vgg16" else "avgpool"
        found: Any = extractor.extract_features(
            batches=loader, module_name=layer, flatten_acts=True, output_type="ndarray"
        )
        assert len(found) == count
        return time.perf_counter() - begun


def main() -> None:
    peer, model, weights, images, count = sys.argv[1:]
    run = {"plain": plain, "timm": timm, "thingsvision": thingsvision}[peer]
    seconds = run(model, weights, Path(images), int(count))
    print(json.dumps({"images": int(count), "seconds": seconds, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
