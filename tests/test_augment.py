"""Views: drawn from an image's bytes and a seed, cached beside the plain one, never without it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from test_cli import invoke

from featpipe import augment, canvas
from featpipe.augment import Views, make_views
from featpipe.cache import FeatureCache
from featpipe.decode import EXACT, Preprocessing, decode, encode_png
from featpipe.decode_fast import FAST
from featpipe.errors import CacheDamagedError, DecodeError, SettingsError, SpecMismatchError
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.loading import ImageLoader
from featpipe.plan import plan_extraction
from featpipe.settings import ExtractSettings
from featpipe.spec import Spec
from featpipe.transfer import export_features
from featpipe.verification import verify

DATA = Path(__file__).parents[1] / "data"
HOW = Preprocessing(40, (32, 32))
TRANSFORMS = "RandomResizedCrop(0.3,1.0),RandomRotation(15),HorizontalFlip,ColorJitter(0.4)"


def views(text: str = TRANSFORMS, count: int = 4, seed: int = 0) -> Views:
    return make_views(text, count, seed, HOW)


def picture(seed: int = 0, width: int = 64, height: int = 48) -> bytes:
    """A PNG of blurred noise, which no two views show alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return encode_png(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def several(small: ExtractSettings) -> ExtractSettings:
    """Three views of each image."""
    return replace(small, views=3, augment=TRANSFORMS)


@pytest.fixture(scope="module")
def viewed(
    shapes: Path, several: ExtractSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FeatureCache]:
    """Features of three views of the sample images."""
    out = tmp_path_factory.mktemp("views") / "f.h5"
    with extract_features(shapes, "squeezenet1_1", out, several) as cache:
        yield cache


# ---- one image -------------------------------------------------------------------------------


def test_view_0_is_the_plain_picture_and_no_other_is() -> None:
    found = views().pixels(picture())
    assert found.shape == (4, 32, 32, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], EXACT.one(picture(), HOW))
    assert len({view.tobytes() for view in found}) == 4


@given(seed=st.integers(0, 2**32), name=st.integers(0, 5), threads=st.integers(1, 4))
@hypothesis_settings(max_examples=10, deadline=None)
def test_views_depend_on_bytes_number_and_seed_alone(seed: int, name: int, threads: int) -> None:
    made = replace(views(), seed=seed)
    expected = made.pixels(picture(name))
    np.testing.assert_array_equal(replace(made, count=2).pixels(picture(name)), expected[:2])
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(replace(made).pixels, [picture(name)] * 4):
            np.testing.assert_array_equal(found, expected)
    other = replace(made, seed=seed + 1).pixels(picture(name))
    assert not np.array_equal(other[1:], expected[1:])
    assert not np.array_equal(made.pixels(picture(name + 1))[1:], expected[1:])


@pytest.mark.parametrize("name", ["AugMix", "RandAugment", "RandomErasing", "GaussianBlur(3)"])
def test_the_global_generator_is_neither_read_nor_moved(name: str) -> None:
    torch.manual_seed(1)
    first = make_views(name, 3, 0, HOW).pixels(picture())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(make_views(name, 3, 0, HOW).pixels(picture()), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_threads_draw_as_if_there_were_no_views() -> None:
    torch.manual_seed(0)
    expected = torch.rand(200)
    torch.manual_seed(0)
    stop, made = threading.Event(), views()

    def work() -> None:
        while not stop.is_set():
            made.pixels(picture())

    worker = threading.Thread(target=work)
    worker.start()
    found = torch.cat([torch.rand(1) for _ in range(200)])
    stop.set()
    worker.join()
    assert torch.equal(found, expected)


def test_a_crop_shows_its_share_of_the_picture_and_a_flip_its_mirror() -> None:
    data = picture(width=64, height=64)
    plain = np.asarray(decode(data))
    how = replace(HOW, resize=None, crop=(64, 64))
    flips = make_views("HorizontalFlip(p=1.0)", 3, 0, how).pixels(data)
    np.testing.assert_array_equal(flips[1], plain[:, ::-1])
    cut = make_views("RandomCrop(32)", 9, 0, replace(HOW, resize=None)).pixels(data)
    windows = {plain[y : y + 32, x : x + 32].tobytes() for y in range(33) for x in range(33)}
    assert all(view.tobytes() in windows for view in cut[1:])


def test_transforms_see_the_whole_upright_picture() -> None:
    """Of a picture four times as wide as high the centre crop would leave out both ends."""
    wide = np.zeros((32, 128, 3), np.uint8)
    wide[:, :16, 0] = wide[:, -16:, 2] = 255
    made = make_views("RandomCrop((32, 128),pad_if_needed=True),Resize((32, 32))", 2, 0, HOW)
    view = made.pixels(encode_png(wide))[1]
    assert view[:, 0, 0].min() > 200
    assert view[:, -1, 2].min() > 200
    turned = Image.fromarray(wide)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    upright = make_views("RandomCrop((128, 32)),Resize((32, 32))", 2, 0, HOW)
    view = upright.pixels(buffer.getvalue())[1]
    assert view[0, :, 0].min() > 200
    assert view[-1, :, 2].min() > 200


# ---- what transforms can be --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("HorizontalFlip", "RandomHorizontalFlip()"),
        ("RandomResizedCrop(0.8,1.0)", "RandomResizedCrop(scale=(0.8, 1.0))"),
        ("RandomResizedCrop([0.8, 1])", "RandomResizedCrop(scale=(0.8, 1))"),
        (" RandomRotation ( -15 ) ", "RandomRotation(degrees=-15)"),
        ("ColorJitter(brightness=0.2),\nVerticalFlip(0.3)",
         "ColorJitter(brightness=0.2), RandomVerticalFlip(p=0.3)"),
    ],
)  # fmt: skip
def test_texts_have_one_form_that_means_the_same(text: str, canonical: str) -> None:
    if "-15" in text:
        with pytest.raises(SettingsError, match="torchvision refuses"):
            views(text)
        return
    assert views(text).transforms == canonical
    assert views(canonical) == views(text)


def test_views_are_resized_as_the_weights_ask() -> None:
    """The size and the interpolation that are not given are those of the preprocessing."""
    data = picture(width=200, height=200)
    how = Preprocessing(40, (32, 32), interpolation="bicubic")
    text = "RandomResizedCrop(0.5,0.5,interpolation='{}',size=(32, 32))"
    named = {
        mode: make_views(text.format(mode), 2, 0, how).pixels(data)[1]
        for mode in ("bilinear", "bicubic")
    }
    found = make_views("RandomResizedCrop(0.5,0.5)", 2, 0, how).pixels(data)[1]
    np.testing.assert_array_equal(found, named["bicubic"])
    assert not np.array_equal(found, named["bilinear"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RandomResizedCop(0.8,1.0)", "Did you mean RandomResizedCrop"),
        ("HorizontalFlop", "Did you mean HorizontalFlip"),
        ("RandomRotation(15, fool=2)", "unexpected keyword argument 'fool'. RandomRotation takes"),
        ("RandomRotation", "missing 1 required positional argument: 'degrees'"),
        ("RandomResizedCrop(0.8)", "two numbers"),
        ("Normalize((0,0,0),(1,1,1))", "does not support PIL"),
        ("ToImage", "not an RGB picture"),
        ("Grayscale", "a picture of mode L, not an RGB picture"),
        ("FiveCrop(10)", "gives tuple"),
        ("CutMix(num_classes=3)", "cannot be applied to a picture"),
        ("Compose([])", "list them by themselves"),
        ("RandomApply(HorizontalFlip)", "cannot be read"),
        ("CenterCrop(20)", "all views would be the same"),
        ("__import__('os').system('true')", "cannot be read"),
        ("RandomRotation(().__class__)", "cannot be read"),
        ("RandomRotation(10**9)", "cannot be read"),
        ("Pad(99999)", "no number from -10000 to 10000"),
        ("RandomRotation(1e999)", "no number"),
        ("RandomRotation(", "cannot be read"),
        ("HorizontalFlip]+[HorizontalFlip", "cannot be read"),
        ("CenterCrop(16),RandomCrop(17)", "larger than input image size"),
        (",", "cannot be read"),
        ("(" * 3000, "cannot be read"),
    ],
)
def test_what_is_no_transform_of_pictures_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        views(text)
    assert said in str(caught.value)
    assert "--augment" in str(caught.value)


@given(text=st.text(alphabet="RandomFlip(),.=[]'0159-_ \n\0é", max_size=60))
@hypothesis_settings(max_examples=100, deadline=None)
def test_no_text_is_a_traceback(text: str) -> None:
    with contextlib.suppress(SettingsError):
        views(text)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"views": 4}, "give --augment"),
        ({"views": 4, "augment": " "}, "give --augment"),
        ({"augment": "HorizontalFlip"}, "give --views"),
        ({"views": 0}, "at least 1|from 1"),
    ],
)
def test_views_and_augment_need_each_other(given_: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ExtractSettings(**given_)


TOO_LARGE = [
    "RandomZoomOut(side_range=(1, 9999))",
    "RandomZoomOut(side_range=(150, 150), p=1.0)",
    "Pad(9999)",
    "Pad((0, 0, 9999, 9999))",
    "Pad([9999, 9999],padding_mode='reflect')",
    "Resize(9999)",
    "Resize([9999])",
    "Resize((9999, 9999))",
    "CenterCrop(9999)",
    "RandomCrop(9999,pad_if_needed=True)",
    "RandomCrop(32,padding=9999)",
    "RandomResize(9000, 9999)",
    "RandomShortestSize(9999)",
    "RandomShortestSize([32, 9999])",
    "ScaleJitter((32, 32), scale_range=(1, 9999))",
    "ScaleJitter((9999, 9999))",
    "RandomResizedCrop(0.5, 1.0, size=9999)",
    "Resize(2000), RandomRotation(90, expand=True), Pad(4000)",
    ", ".join(["Pad(1000)"] * 20),
]


@pytest.fixture
def _none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a picture of many pixels is made."""
    for name in ("new", "frombytes", "fromarray"):
        make = getattr(Image, name)

        def checked(*args: object, make: Callable[..., Image.Image] = make) -> Image.Image:
            made = make(*args)
            assert made.size[0] * made.size[1] <= canvas.MOST_MADE
            return made

        monkeypatch.setattr(Image, name, checked)


@pytest.mark.usefixtures("_none_is_made")
@pytest.mark.parametrize("text", TOO_LARGE)
def test_what_would_fill_the_memory_is_refused_before_it_is_made(text: str) -> None:
    with pytest.raises(SettingsError, match=r"may make [\d,]+ pixels of a picture of .* Resize"):
        views(f"{text}, HorizontalFlip")


@pytest.mark.parametrize("text", ["GaussianBlur(9999)", "ElasticTransform(sigma=9999)"])
def test_a_blur_that_would_fill_the_memory_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"would blur with .* smaller kernel_size or sigma"):
        views(f"{text}, HorizontalFlip")


@pytest.mark.parametrize(
    ("text", "width", "height"),
    [("RandomZoomOut(side_range=(150, 150), p=1.0)", 64, 48),
     ("RandomRotation(45, expand=True)", 50_000, 1)],
)  # fmt: skip
def test_a_picture_too_large_for_a_transform_is_refused_without_a_trial_too(
    text: str, width: int, height: int
) -> None:
    """A file names the transforms, or no trial was of a picture like this one."""
    data = encode_png(np.zeros((height, width, 3), np.uint8))
    with pytest.raises(DecodeError, match=r"view 1 by Random.*\(.*\): may make [\d,]+ pixels"):
        Views(2, text, 0, replace(HOW, resize=(32, 32))).pixels(data)


def test_every_transform_of_torchvision_is_known_to_keep_a_size_or_how_it_changes_it() -> None:
    known = canvas.KEEPING | set(canvas.LARGEST)
    assert not canvas.KEEPING & set(canvas.LARGEST)
    assert set(augment._known()) <= known
    with pytest.raises(SettingsError, match=r"RandomFill makes is not known .* RandomZoomOut"):
        canvas.refuse_unknown("RandomFill", {})


SIZED = [
    "CenterCrop({a})", "Pad({a})", "Pad(({a}, {b}))", "Pad([1, {a}, 2, {b}])", "Pad((-3, {a}))",
    "RandomCrop({a}, pad_if_needed=True)", "RandomCrop(({a}, {b}), ({b}, 1), True)",
    "RandomCrop(1, padding=(3, {a}, -1, {b}))",
    "RandomResize({a}, {c})", "RandomShortestSize([{a}, {b}])",
    "RandomShortestSize({a}, max_size={b})", "RandomZoomOut(side_range=(1, {a}), p=1.0)",
    "RandomRotation({b}, expand=True)", "RandomRotation(({a}, {c}), expand=True)",
    "Resize({a})", "Resize({a}, max_size={c})", "Resize(({a}, {b}))", "Resize(None, max_size={a})",
    "ScaleJitter(({a}, {b}), scale_range=(0.5, {a}))", "RandomResizedCrop(0.1, 1, size=({a}, {b}))",
]  # fmt: skip


@given(
    text=st.sampled_from(SIZED), a=st.integers(1, 40), b=st.integers(1, 170),
    side=st.tuples(st.integers(1, 60), st.integers(1, 60)), seed=st.integers(0, 9),
)  # fmt: skip
@hypothesis_settings(max_examples=300, deadline=None)
def test_no_transform_makes_more_than_was_told(
    text: str, a: int, b: int, side: tuple[int, int], seed: int
) -> None:
    try:
        (step,) = augment._built(augment._parsed(text.format(a=a, b=b, c=a + b)), HOW)
    except SettingsError:  # such as a longest side below the shortest
        return
    told = canvas.LARGEST[step.name](step.arguments, *side)
    with augment._Drawing(seed), contextlib.suppress(ValueError, ZeroDivisionError):
        made = step.transform(Image.new("RGB", side))
        assert made.width * made.height <= told


def test_a_transform_that_an_image_is_too_small_for_is_the_images_reason(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, width in (("small", 64), ("large", 500)):
        (tmp_path / "images" / f"{name}.png").write_bytes(picture(width=width, height=width))
    settings = ExtractSettings(views=2, augment="RandomCrop(300)", input_size=8)
    with extract_features(tmp_path / "images", "pixels", tmp_path / "f.h5", settings) as cache:
        assert cache.ok.tolist() == [True, False]
        reason = "view 1 by RandomCrop(size=300): Required crop size (300, 300) is larger"
        assert reason in cache.reasons[1]
        assert np.isnan(cache.features(view=None)[1]).all()


def test_a_run_without_any_usable_image_says_so_and_fails(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in range(7):
        (tmp_path / "images" / f"{name}.png").write_bytes(picture(name))
    command = ["extract", tmp_path / "images", "-b", "pixels", "-o", tmp_path / "f.h5"]
    done = invoke(*command, "--views", "2", "--augment", "RandomCrop(300)", rc=1)
    assert "0 of 7 images, 2 views" in done.stdout
    assert "view 1 by RandomCrop(size=300): Required crop size (300, 300)" in done.stderr
    assert "NONE of the 7 images has features" in done.stderr
    assert "a Resize before a crop" in done.stderr
    document = json.loads(invoke(*command, "--views", "2", "--augment", "RandomCrop(300)",
                                 "--json", rc=1).stdout)  # fmt: skip
    assert len(document["without_features"]) == 7
    (tmp_path / "images" / "large.png").write_bytes(picture(width=300, height=300))
    done = invoke(*command, "--views", "2", "--augment", "RandomCrop(300)")
    assert "1 of 8 images" in done.stdout
    assert "NONE" not in done.stderr


def test_without_views_it_is_the_images_that_are_to_be_mended(tmp_path: Path) -> None:
    done = invoke("extract", DATA / "broken", "-b", "pixels", "-o", tmp_path / "f.h5", rc=1)
    assert "NONE of the" in done.stderr
    assert "Mend or replace the images" in done.stderr
    assert "--augment" not in done.stderr


# ---- the loader and the network ----------------------------------------------------------------


@pytest.mark.parametrize("decoder", [EXACT, FAST, replace(FAST, many=lambda d, h: [None] * len(d))])
def test_every_decoder_gives_its_own_plain_view_and_the_same_others(
    shapes: Path, decoder: object
) -> None:
    source = open_images(shapes)
    rows = list(range(0, 36, 5))
    plain = ImageLoader(source, HOW, decoder)  # type: ignore[arg-type]
    if plain.whole:
        decoder = replace(FAST, many=lambda d, h: [FAST.one(one, h) for one in d])
        plain = ImageLoader(source, HOW, decoder)
    exact = ImageLoader(source, HOW, EXACT, views=views())(rows)
    for one, found, other in zip(
        plain(rows), replace(plain, views=views())(rows), exact, strict=True
    ):
        assert one.pixels is not None
        assert found.pixels is not None
        assert other.pixels is not None
        np.testing.assert_array_equal(found.pixels[0], one.pixels)
        np.testing.assert_array_equal(found.pixels[1:], other.pixels[1:])


def test_the_plain_view_is_bit_for_bit_the_cache_without_views(
    viewed: FeatureCache, shapes_cache: FeatureCache
) -> None:
    assert viewed.views == 3
    assert viewed.layers == shapes_cache.layers
    assert viewed.features().tobytes() == shapes_cache.features().tobytes()
    every = viewed.features(view=None)
    assert every.shape == (36, 3, 512)
    for view in range(3):
        np.testing.assert_array_equal(viewed.features(view=view), every[:, view])
        some = viewed.features(rows=np.array([30, 2]), view=view)
        np.testing.assert_array_equal(some, every[[30, 2], view])
    assert np.abs(every[:, 1] - every[:, 2]).max() > 0
    with pytest.raises(IndexError, match="view 3 of 3"):
        viewed.features(view=3)


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}, {"batch_size": 5}])
def test_views_are_the_same_whatever_the_workers_and_batches(
    shapes: Path,
    several: ExtractSettings,
    viewed: FeatureCache,
    tmp_path: Path,
    options: dict[str, int],
) -> None:
    again = replace(several, **options)
    with extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", again) as cache:
        exact = "batch_size" not in options
        np.testing.assert_allclose(
            cache.features(view=None), viewed.features(view=None), rtol=0 if exact else 1e-4,
            atol=0 if exact else 1e-5,
        )  # fmt: skip


def test_views_are_the_same_in_another_order_and_under_other_names(
    shapes: Path, several: ExtractSettings, viewed: FeatureCache, tmp_path: Path
) -> None:
    names = viewed.table.ids[::-1]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        suffix = Path(name).suffix
        (tmp_path / "images" / f"{number:02d}{suffix}").write_bytes((shapes / name).read_bytes())
    with extract_features(tmp_path / "images", "squeezenet1_1", tmp_path / "f.h5", several) as one:
        np.testing.assert_allclose(
            one.features(view=None), viewed.features(view=None)[::-1], rtol=1e-4, atol=1e-5
        )


KILLED = """
import os, pathlib, signal, sys, time
from featpipe import cache_build
from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings
cache_build.PART_ROWS = 4
def stop(done, total):
    if done >= 16:
        while not list(pathlib.Path(sys.argv[2] + ".parts").glob("part-*.h5")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
extract_features(sys.argv[1], "squeezenet1_1", sys.argv[2],
                 ExtractSettings(weights="random", input_size=64, batch_size=4, views=3,
                                 augment=sys.argv[3], precision="float32", decode="exact"),
                 on_progress=stop)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_run_resumes_to_the_same_views(
    shapes: Path, several: ExtractSettings, viewed: FeatureCache, tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    command = [sys.executable, "-c", KILLED, str(shapes), str(out), TRANSFORMS]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    parts = len(list((tmp_path / "f.h5.parts").glob("part-*.h5")))
    assert parts
    assert plan_extraction(shapes, "squeezenet1_1", out, several).unfinished == 4 * parts
    totals: list[int] = []
    with extract_features(
        shapes, "squeezenet1_1", out, several, on_progress=lambda done, total: totals.append(total)
    ) as cache:
        assert totals[0] == 36 - 4 * parts
        assert cache.features(view=None).tobytes() == viewed.features(view=None).tobytes()


# ---- the file ------------------------------------------------------------------------------------


def test_other_views_are_refused_with_the_difference(
    shapes: Path, several: ExtractSettings, viewed: FeatureCache, small: ExtractSettings
) -> None:
    for change, said in (
        (replace(several, views=4), "views count: cached 3, requested 4"),
        (replace(several, augment="HorizontalFlip"), "views transforms: cached RandomResizedCrop("),
        (replace(several, seed=1), "views seed: cached 0, requested 1"),
        (small, "views count: cached 3, requested nothing"),
    ):
        with pytest.raises(SpecMismatchError, match="different settings") as caught:
            extract_features(shapes, "squeezenet1_1", viewed.path, change)
        assert said in str(caught.value)


def test_rows_of_views_are_taken_from_another_cache(
    shapes: Path, several: ExtractSettings, viewed: FeatureCache, tmp_path: Path
) -> None:
    reuse = replace(several, reuse=(str(viewed.path),))
    plan = plan_extraction(shapes, "squeezenet1_1", tmp_path / "f.h5", reuse)
    assert (plan.to_compute, plan.elsewhere, plan.row_bytes) == (0, 36, 3 * 512 * 4)
    totals: list[int] = []
    with extract_features(
        shapes, "squeezenet1_1", tmp_path / "f.h5", reuse, on_progress=lambda d, t: totals.append(t)
    ) as cache:
        assert not totals
        assert cache.features(view=None).tobytes() == viewed.features(view=None).tobytes()


def test_a_chunk_holds_one_view(viewed: FeatureCache) -> None:
    with h5py.File(viewed.path) as file:
        data = file["features/features.12.cat"]
        assert file.attrs["format_version"] == 2
        assert data.shape == (36, 3, 512)
        assert data.chunks == (36, 1, 512)
        np.testing.assert_array_equal(data[:, 1], viewed.features(view=1))
        assert file["row_checksums/features.12.cat"].shape == (36, 3)


def test_a_cache_without_views_is_what_it_always_was(shapes_cache: FeatureCache) -> None:
    with h5py.File(shapes_cache.path) as file:
        assert file.attrs["format_version"] == 1
    assert shapes_cache.views == 1
    assert "views" not in shapes_cache.spec.to_dict()
    assert shapes_cache.features(view=None).shape == (36, 1, 512)


def test_verify_computes_every_view_again_and_finds_damage_in_any(
    shapes: Path, several: ExtractSettings, viewed: FeatureCache, tmp_path: Path
) -> None:
    found = verify(viewed.path, shapes)
    assert found.ok
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-5
    out = tmp_path / "f.h5"
    out.write_bytes(viewed.path.read_bytes())
    with h5py.File(out) as file:
        info = file["features/features.12.cat"].id.get_chunk_info_by_coord((0, 2, 0))
    content = bytearray(out.read_bytes())
    content[info.byte_offset + 7 * 512 * 4 + 1] ^= 1
    out.write_bytes(bytes(content))
    assert [bad.row for bad in verify(out, sample=0).bad] == [7]
    with FeatureCache.open(out) as cache:
        assert cache.features().tobytes() == viewed.features().tobytes()
        with pytest.raises(CacheDamagedError, match=r"\(7\)"):
            cache.features(view=None)
    with extract_features(shapes, "squeezenet1_1", out, several) as mended:
        assert mended.features(view=None).tobytes() == viewed.features(view=None).tobytes()


def test_what_is_exported_is_the_plain_view(viewed: FeatureCache, tmp_path: Path) -> None:
    export_features(viewed, tmp_path / "f.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), viewed.features())


def test_a_data_set_gives_the_plain_view(viewed: FeatureCache) -> None:
    features, _ = viewed.dataset()[5]
    np.testing.assert_array_equal(features.numpy(), viewed.features()[5])


@pytest.mark.parametrize(
    "made_up",
    [{"count": 3}, {"count": 1, "transforms": "x", "seed": 0}, {"count": True, "transforms": "x",
     "seed": 0}, {"count": 3, "transforms": 4, "seed": 0}, {"count": 3, "transforms": "x",
     "seed": -1}, {"count": 3, "transforms": "x", "seed": 0, "more": 1}],
)  # fmt: skip
def test_views_that_make_no_sense_are_no_spec(viewed: FeatureCache, made_up: object) -> None:
    with pytest.raises(TypeError, match="views of the Spec"):
        Spec.from_dict({**viewed.spec.to_dict(), "views": made_up})


def test_a_picture_that_is_none_is_no_view() -> None:
    with pytest.raises(DecodeError):
        views().pixels(b"no picture")
