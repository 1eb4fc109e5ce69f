"""Decoding on the card, as far as a CPU can show it: what goes there, in what company, what not."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_decode_fast import encoded, photograph
from torch import Tensor

from featpipe import decode_cuda, decode_fast, extractor
from featpipe.decode import Preprocessing, decode
from featpipe.errors import RuntimeUnavailableError, SpecMismatchError
from featpipe.extract import extract_features
from featpipe.extractor import prepare
from featpipe.images import ImageSource, open_images
from featpipe.loading import ImageLoader, load_image
from featpipe.settings import ExtractSettings
from featpipe.table import Status, make_table
from featpipe.train import train_head

DATA = Path(__file__).parents[1] / "data"
HOW = Preprocessing(48, (40, 40))
PIXELS = ExtractSettings(batch_size=8, input_size=16, workers=2)


class Card:
    """Decodes a batch as nvJPEG does: all of it, or an error."""

    def __init__(self, most: int = 1000, damaged: Sequence[bytes] = ()) -> None:
        self.calls: list[int] = []
        self.most, self.damaged = most, list(damaged)

    def __call__(self, datas: list[bytes], device: str) -> list[Tensor]:
        self.calls.append(len(datas))
        if len(datas) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if any(data in self.damaged for data in datas):
            raise RuntimeError("nvjpegDecodeBatched failed: 8")
        pictures = [np.array(decode(data)) for data in datas]
        return [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return install(monkeypatch, Card())


def install(monkeypatch: pytest.MonkeyPatch, card: Card) -> Card:
    """Let the CPU be a device with nvJPEG, until the end of the test."""
    monkeypatch.setattr(decode_cuda, "nvjpeg", lambda device: card)
    monkeypatch.setattr(extractor, "decoders", extractor.decoders.__wrapped__)
    return card


def pictures(*sizes: tuple[int, int]) -> list[bytes]:
    return [encoded(photograph(*size, seed=i)) for i, size in enumerate(sizes)]


def each_fast(datas: list[bytes]) -> list[np.ndarray]:
    return [decode_fast.to_pixels(data, HOW) for data in datas]


def test_a_batch_is_one_call_and_gives_what_the_fast_decoder_gives(card: Card) -> None:
    datas = pictures((90, 60), (60, 90), (90, 60), (200, 50), (64, 64))
    found = decode_cuda.to_pixels("cpu", datas, HOW)
    assert card.calls == [5]
    for mine, fast in zip(found, each_fast(datas), strict=True):
        assert mine is not None
        assert (mine.shape, mine.dtype) == ((40, 40, 3), np.uint8)
        assert np.abs(mine.astype(int) - fast).max() <= 1


def test_grey_and_progressive_go_to_the_card_all_else_does_not(card: Card) -> None:
    grey = encoded(photograph(90, 60).convert("L"))
    progressive = encoded(photograph(90, 60), progressive=True)
    cmyk = encoded(photograph(90, 60).convert("CMYK"))
    cut = encoded(photograph(90, 60))[:-40]
    png = encoded(photograph(90, 60), "PNG")
    found = decode_cuda.to_pixels("cpu", [grey, progressive, cmyk, cut, png, b"", b"none"], HOW)
    assert [pixels is not None for pixels in found] == [True, True] + [False] * 5
    assert card.calls == [2]


@pytest.mark.parametrize("exif", [True, False])
def test_a_turned_picture_is_left_to_who_can_turn_it(card: Card, exif: bool) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    turned = encoded(photograph(90, 60), exif=tags.tobytes())
    how = Preprocessing(48, (40, 40), exif=exif)
    assert decode_cuda.to_pixels("cpu", [turned], how) == [None]
    assert not card.calls


@pytest.mark.parametrize("number", range(6))
def test_one_that_fails_takes_none_of_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    datas = pictures(*[(90, 60)] * 6)
    card = install(monkeypatch, Card(damaged=[datas[number]]))
    found = decode_cuda.to_pixels("cpu", datas, HOW)
    assert [pixels is None for pixels in found] == [row == number for row in range(6)]
    assert len(card.calls) <= 7


def test_what_does_not_fit_is_decoded_in_smaller_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    card = install(monkeypatch, Card(most=2))
    found = decode_cuda.to_pixels("cpu", pictures(*[(90, 60)] * 8), HOW)
    assert all(pixels is not None for pixels in found)
    assert card.calls == [8, 4, 2, 2, 4, 2, 2]
    card.most = 0
    assert decode_cuda.to_pixels("cpu", pictures((90, 60)), HOW) == [None]


def test_a_call_has_no_more_pixels_than_memory_is_meant_for(
    monkeypatch: pytest.MonkeyPatch, card: Card
) -> None:
    monkeypatch.setattr(decode_cuda, "MOST_PIXELS", 3 * 90 * 60)
    found = decode_cuda.to_pixels("cpu", pictures((180, 120), *[(90, 60)] * 7, (91, 60)), HOW)
    assert [pixels is None for pixels in found] == [True] + [False] * 8
    assert card.calls == [3, 3, 2]


def test_a_scale_that_the_card_does_not_know_is_left_to_the_cpu(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decode_fast.resize

    def narrow(pictures: Tensor, how: Preprocessing) -> Tensor:
        if pictures.shape[2] == 90:
            raise RuntimeError("Provided interpolation parameters can not be handled")
        return plain(pictures, how)

    monkeypatch.setattr(decode_fast, "resize", narrow)
    found = decode_cuda.to_pixels("cpu", pictures((90, 60), (60, 90), (90, 60)), HOW)
    assert [pixels is None for pixels in found] == [True, False, True]


def test_what_it_cannot_resize_is_left_alone(card: Card) -> None:
    nearest = Preprocessing(48, (40, 40), "nearest")
    assert decode_cuda.to_pixels("cpu", pictures((90, 60)), nearest) == [None]
    assert not card.calls


def test_every_row_gets_its_own_picture_or_reason(card: Card) -> None:
    files = [path.read_bytes() for path in sorted((DATA / "formats").iterdir())]
    files += [path.read_bytes() for path in sorted((DATA / "broken").iterdir())]
    files += pictures((90, 60), (120, 80), (60, 60))
    source = ImageSource(
        "all", make_table([str(row) for row in range(len(files))]), files.__getitem__
    )
    rows = np.append(-1, np.random.default_rng(0).permutation(len(files)))
    load = ImageLoader(source, HOW, decode_cuda.decoder("cpu"), rows)
    found = load(range(len(rows)))
    assert found[0].status == Status.MISSING
    for row, image in zip(rows[1:], found[1:], strict=True):
        fast = load_image(source, int(row), HOW, decode_fast.FAST)
        assert (image.status, image.reason) == (fast.status, fast.reason)
        if fast.pixels is not None and image.pixels is not None:
            assert np.abs(image.pixels.astype(int) - fast.pixels).max() <= 1
    assert len(card.calls) == 1
    assert {image.status for image in found[1:]} == {Status.OK, Status.UNDECODABLE}


# ---- a whole run -------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of JPEGs, with a PNG and a broken file among them."""
    for number in range(30):
        folder = tmp_path / "photos" / ("dark" if number % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        picture = photograph(90, 60, number).point(lambda level, n=number: level // (1 + n % 2))
        (folder / f"{number:02d}.jpg").write_bytes(encoded(picture))
    (tmp_path / "photos" / "dark" / "odd.png").write_bytes(encoded(photograph(50, 50), "PNG"))
    whole = encoded(photograph(90, 60))
    (tmp_path / "photos" / "light" / "broken.jpg").write_bytes(whole[:-200])
    return tmp_path / "photos"


def test_auto_takes_it_and_a_batch_is_decoded_at_once(
    photos: Path, tmp_path: Path, card: Card
) -> None:
    with extract_features(photos, "pixels", tmp_path / "f.h5", PIXELS) as cache:
        assert cache.spec.decoder == decode_cuda.NAME
        assert cache.conditions["execution"]["decode"] == "cuda"
        assert cache.conditions["fidelity"]["cosine"] > 0.999
        assert (cache.status == Status.OK).sum() == 31
        features = cache.features()
    assert sum(card.calls) >= 30
    assert sorted(card.calls)[-2:] == [8, 8]
    slow = ExtractSettings(batch_size=8, input_size=16, decode="exact")
    with extract_features(photos, "pixels", tmp_path / "exact.h5", slow) as exact:
        np.testing.assert_allclose(features, exact.features(), atol=2 / 255 / 0.22)


def test_when_it_is_not_true_the_cpu_decodes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Card):
        def __call__(self, datas: list[bytes], device: str) -> list[Tensor]:
            return [255 - picture for picture in super().__call__(datas, device)]

    install(monkeypatch, Wrong())
    with caplog.at_level(logging.WARNING, "featpipe"):
        cache = extract_features(photos, "pixels", tmp_path / "f.h5", PIXELS)
    assert "cuda decoding: " in caplog.text
    assert "Trying torch, float32, fast decoding." in caplog.text
    assert cache.spec.decoder == decode_fast.FAST.name
    cache.close()


def test_it_is_refused_where_there_is_no_such_device() -> None:
    with pytest.raises(RuntimeUnavailableError, match="CUDA devices only, and this is cpu"):
        prepare("pixels", ExtractSettings(decode="cuda"))


def test_libraries_without_it_are_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    decode_cuda.nvjpeg.cache_clear()
    with pytest.raises(RuntimeUnavailableError, match=r"torchcodec.*torchvision.*--decode auto"):
        decode_cuda.nvjpeg("cuda")
    assert "cuda" not in extractor.decoders("cuda")


def test_what_a_card_has_made_is_used_without_one(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "f.h5"
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Card())
        extract_features(photos, "pixels", out, PIXELS).close()
    classifier, _ = train_head(out, epochs=3)
    with caplog.at_level(logging.WARNING, "featpipe"):
        found = list(classifier.predict(open_images(photos)))
    assert "decoded by nvJPEG, which is not here" in caplog.text
    assert sum(one.proba is not None for one in found) == 31
    (photos / "light" / "new.jpg").write_bytes(encoded(photograph(70, 70, 99)))
    with pytest.raises(SpecMismatchError, match="nvjpeg"):
        extract_features(photos, "pixels", out, PIXELS)
