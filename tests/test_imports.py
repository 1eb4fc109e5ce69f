"""The house's laws about imports, walked over the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featpipe
from featpipe.registry import FOLDERS

PACKAGE = Path(featpipe.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each floor may import from the floors below it, and within a line from those before.
FLOORS = [
    [
        "errors",
        "registry",
        "settings",
        "table",
        "spec",
        "durable",
        "typed",
        "route_results",
        "results",
        "changes",
    ],
    [
        "lean",
        "checksums",
        "regular",
        "manifest",
        "device",
        "decode",
        "decode_fast",
        "decode_cuda",
        "canvas",
        "augment",
        "weights",
        "cnn",
        "network_file",
        "layers",
        "behind",
        "network",
        "tasks",
        "streamed",
        "optimizers",
        "checkpoint",
        "descent",
        "targets",
        "whitening",
        "logistic",
        "estimators",
        "perceptrons",
        "problems",
        "stacked",
        "fidelity",
        "picture_hash",
    ],
    ["throughput"],
    [
        "images",
        "backbones",
        "runtimes",
        "engines",
        "head",
        "heads",
        "calibration",
        "recipes",
        "bootstrap",
        "metrics",
        "folds",
        "split_file",
        "copies",
        "split",
        "linear_head",
        "perceptron",
        "tails",
    ],
    ["images.*", "backbones.*", "runtimes.*", "engines.*", "heads.*", "recipes.*"],
    [
        "cache_layout",
        "cache_rows",
        "cache_torch",
        "cache",
        "cache_parts",
        "cache_stock",
        "cache_assemble",
        "viewing",
    ],
    [
        "cache_build",
        "loading",
        "pixel_rows",
        "extractor",
        "choice",
        "ceilings",
        "originals",
        "neighbours",
        "duplicates",
        "thumbnails",
        "projection",
    ],
    ["extract"],
    ["feature_store", "transformer"],
    [
        "bench",
        "plan",
        "verification",
        "transfer_parquet",
        "transfer_arrays",
        "transfer_tables",
        "transfer",
    ],
    ["classifier"],
    ["preparation", "crossfit", "sweep", "budget"],
    ["suspects"],
    ["result", "train"],
    ["finetune"],
    ["scratch"],
    [
        "route",
        "routes",
        "rounds",
        "admission",
        "peak",
        "kept",
        "trials",
        "ranking",
        "label_budget",
        "standing",
        "shared_features",
        "guard",
        "route_runner",
        "verdict",
        "compare",
        "compare_plan",
    ],
    ["report", "report.*"],
    ["audit", "adaptation", "leakage", "steps", "rungs", "reproduce"],
    ["demo"],
    ["cli", "cli.*", "__main__", ""],
]
# Imported by everyone who needs them: interfaces only, nothing of a plug-in.
ONLY_IN = {
    "h5py": {"cache", "cache_layout", "cache_rows", "cache_parts", "cache_assemble"},
    "xxhash": {"checksums"},
    "imagehash": {"picture_hash"},
    "umap": {"projection"},
    "pandas": {"cache"},
    "anndata": {"transfer"},
    "ray": {"engines.ray"},
    "timm": {"backbones.timm"},
    "openvino": {"runtimes.openvino"},
    "torchcodec": {"decode_fast", "decode_cuda"},
    "joblib": {"device"},
    "safetensors": {"classifier", "weights"},
    "matplotlib": {"report.plots"},
    "skops": {"estimators"},
}


def name_of(path: Path) -> str:
    return (
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .strip(".")
    )


def floor_of(module: str) -> int:
    for number, floor in enumerate(FLOORS):
        for entry in floor:
            inside = entry.removesuffix(".*")
            if entry == module or (entry.endswith(".*") and module.startswith(f"{inside}.")):
                return number
    raise AssertionError(f"{module} has no floor: say in FLOORS where it belongs")


def imports_of(path: Path) -> list[str]:
    """Modules of the package that a file imports, anywhere in it but under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward_only(path: Path) -> None:
    own = name_of(path)
    if own == "":
        return  # the public names come from everywhere, lazily
    for imported in imports_of(path):
        if imported == "featpipe" or not imported.startswith("featpipe."):
            continue
        target = imported.removeprefix("featpipe.")
        if floor_of(target) == floor_of(own):
            assert order_within(target) <= order_within(own), f"{own} imports {target} beside it"
        else:
            assert floor_of(target) < floor_of(own), f"{own} imports {target}, which is above it"


def order_within(module: str) -> int:
    """Position in its floor; modules of one entry share it."""
    floor = FLOORS[floor_of(module)]
    names = [entry.removesuffix(".*") for entry in floor]
    return names.index(module) if module in names else names.index(module.partition(".")[0])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_plugins_do_not_import_each_other(path: Path) -> None:
    own = name_of(path).split(".")
    if own[0] not in FOLDERS or len(own) < 2:
        return
    siblings = [name for name in imports_of(path) if name.startswith(f"featpipe.{own[0]}.")]
    assert siblings == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_big_library_has_one_home(path: Path) -> None:
    own = name_of(path)
    for imported in imports_of(path):
        top = imported.partition(".")[0]
        if top in ONLY_IN:
            assert own in ONLY_IN[top], f"{own} imports {top}"
        if top == "click":
            assert own.split(".")[0] == "cli", f"{own} imports click"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv = ['featpipe', 'train-head', '--help']\n"
        "try: runpy.run_module('featpipe')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'h5py', 'sklearn', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in featpipe.__all__:
        assert getattr(featpipe, name).__doc__, name


def test_no_command_waits_for_the_compiler() -> None:
    """Which torchvision asks for at import; what it is asked for works all the same."""
    code = (
        "import sys, featpipe.extract, featpipe.classifier, featpipe.layers, torch, torchvision\n"
        "assert 'torch._dynamo' not in sys.modules, 'loaded at import'\n"
        "boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])\n"
        "found = torchvision.ops.roi_align(torch.ones(1, 3, 8, 8), boxes, 2)\n"
        "assert found.shape == (1, 3, 2, 2)\n"
        "supported = torchvision.ops.roi_align.__globals__['is_compile_supported']('cpu')\n"
        "from torch._dynamo.utils import is_compile_supported\n"
        "assert supported == is_compile_supported('cpu')\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_is_there_already_is_left_alone() -> None:
    code = (
        "import sys, torch._dynamo, featpipe.extract\n"
        "import torch._dynamo as now\n"
        "assert sys.modules['torch._dynamo'] is now and now.disable\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
