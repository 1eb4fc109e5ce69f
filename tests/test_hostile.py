"""Files, names, tables and arguments that mean harm, or look as if they did."""

import csv
import faulthandler
import inspect
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import mutate
from PIL import Image
from pyarrow import parquet

from featpipe import decode, decode_fast, regular
from featpipe.cache import FeatureCache
from featpipe.cli import cli
from featpipe.cli._output import note, print_table, say, shown
from featpipe.decode import MOST_PARTS, MOST_SCANS, Preprocessing
from featpipe.errors import DecodeError, ImagesError
from featpipe.extract import extract_features
from featpipe.images import ImageSource, open_images
from featpipe.loading import load_image
from featpipe.settings import ImageSettings
from featpipe.table import Status, make_table

DATA = Path(__file__).parents[1] / "data"
CIRCLES = DATA / "shapes" / "circle"
GOOD = CIRCLES / "circle_01.jpg"
LEVEL = 1.01 / 255  # that the two decoders may differ by
ESCAPE = "\x1b[31m"
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files and signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Turns a test that waits for ever into one that fails."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    faulthandler.dump_traceback_later(90, exit=True, file=sys.__stderr__)  # where it is no Python
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def python(code: str, *arguments: object, cwd: Path | None = None) -> object:
    """Run code in a process of its own; it prints one JSON document."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, cwd=cwd, timeout=60)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return json.loads(done.stdout)


# ---- files that are no files -------------------------------------------------------------

SPECIAL = """
import json, os, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from featpipe import extract_features, open_images
from featpipe.errors import ImagesError
extract_features("good", "pixels", "good.h5").close()  # everything is imported
if os.geteuid() == 0:
    os.seteuid(65534)  # root may read everything
with extract_features("all", "pixels", "all.h5") as cache:
    rows = zip(cache.table.ids, cache.status.tolist(), cache.reasons)
    found = {name: [status, reason] for name, status, reason in rows}
    usable = cache.features()[cache.ok].tobytes().hex()
with extract_features("good", "pixels", "again.h5") as cache:
    expected = cache.features().tobytes().hex()
try:
    open_images("closed")
except ImagesError as error:
    closed = str(error)
opened = sorted({Path(name).name for name in opened if Path(name).parts[:1] == ("all",)})
print(json.dumps([found, usable == expected, opened, closed]))
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may write to, wherever pytest's own lie."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@posix
def test_only_regular_files_are_opened_and_all_others_are_rows_with_a_reason(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("good", "all", "all/w.jpg", "all/z.jpg", "closed/inside"):
        (public / folder).mkdir(parents=True)
    for name in ("a.jpg", "w.jpg/in.jpg", "zz.jpg"):
        for folder in ("good", "all"):
            (public / folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(GOOD, public / folder / name)
    here = public / "all"
    os.mkfifo(here / "x.jpg")  # nobody writes to it: who opens it, waits for ever
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(here)  # names of sockets are short
        made.bind("socket.jpg")
    (here / "y.jpg").symlink_to("/dev/zero")
    (here / "tty.jpg").symlink_to("/dev/tty")
    (here / "link.jpg").symlink_to("x.jpg")
    (here / "loop.jpg").symlink_to("loop.jpg")
    (here / "gone.jpg").symlink_to("nowhere")
    (here / "up").symlink_to("../all")
    (here / "empty.jpg").touch()
    shutil.copy(GOOD, here / "secret.jpg")
    (here / "secret.jpg").chmod(0)
    (public / "closed" / "inside").chmod(0)
    rows, right, opened, closed = python(SPECIAL, cwd=public)  # type: ignore[misc]
    (public / "closed" / "inside").chmod(0o700)
    assert right
    assert rows == {
        "a.jpg": [Status.OK, ""],
        "w.jpg/in.jpg": [Status.OK, ""],
        "zz.jpg": [Status.OK, ""],
        "x.jpg": [Status.UNREADABLE, "it is a named pipe, which is not opened"],
        "link.jpg": [Status.UNREADABLE, "it is a named pipe, which is not opened"],
        "socket.jpg": [Status.UNREADABLE, "it is a socket, which is not opened"],
        "y.jpg": [Status.UNREADABLE, "it is a device, which is not opened"],
        "tty.jpg": [Status.UNREADABLE, "it is a device, which is not opened"],
        "z.jpg": [Status.UNREADABLE, "it is a folder, which is not opened"],
        "loop.jpg": [Status.UNREADABLE, os.strerror(40 if sys.platform == "linux" else 62)],
        "gone.jpg": [Status.MISSING, "no such file"],
        "empty.jpg": [Status.UNDECODABLE, "the file is empty"],
        "secret.jpg": [Status.UNREADABLE, "Permission denied"],
    }
    assert opened == ["a.jpg", "empty.jpg", "in.jpg", "secret.jpg", "zz.jpg"]
    assert re.search(r"Cannot list .*inside: Permission denied", closed)


@posix
def test_folders_that_all_link_to_each_other_are_refused_at_once(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(12)]  # a thousand million ways through them
    for name in names:
        (tmp_path / name).mkdir()
        shutil.copy(GOOD, tmp_path / name)
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(f"../{other}", target_is_directory=True)
    with pytest.raises(ImagesError, match="more than 100 ways: links lead in circles"):
        open_images(tmp_path)


def test_folders_may_lie_as_deep_as_the_system_allows(tmp_path: Path) -> None:
    path = "/".join(["a"] * 300) + "/x.jpg"
    (tmp_path / path).parent.mkdir(parents=True)
    shutil.copy(GOOD, tmp_path / path)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        assert open_images(tmp_path).table.ids.tolist() == [path]
    finally:
        sys.setrecursionlimit(before)


@posix
def test_a_file_that_becomes_a_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hang: None
) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    before = os.stat(GOOD)
    monkeypatch.setattr(regular.os, "stat", lambda path: before)
    with pytest.raises(regular.IrregularFileError, match="named pipe"):
        regular.read_regular(str(tmp_path / "x.jpg"))


def test_a_file_of_more_than_a_gigabyte_is_recorded_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(GOOD, tmp_path / "a.jpg")
    (tmp_path / "big.jpg").touch()
    os.truncate(tmp_path / "big.jpg", regular.MOST_BYTES + 1)
    opened: list[str] = []
    really = os.open

    def watched(path: str, *rest: int) -> int:
        opened.append(Path(path).name)
        return really(path, *rest)

    monkeypatch.setattr(regular.os, "open", watched)
    with extract_features(tmp_path, "pixels", tmp_path / "f.h5") as cache:
        assert cache.status.tolist() == [Status.OK, Status.UNREADABLE]
        assert "more than the 1,073,741,824 bytes" in cache.reasons[1]
    assert "a.jpg" in opened
    assert "big.jpg" not in opened


# ---- pictures that are larger than they look ---------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colour: int = 2, data: bytes = b"", before: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    tail = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + before + tail


def zeros(count: int) -> bytes:
    """Compressed zeros, about a thousandth as many."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & ((1 << 20) - 1))), packer.flush()])


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(width: int, height: int, before: bytes = b"", progressive: bool = False) -> bytes:
    """A header and no picture."""
    frame = struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)
    return b"\xff\xd8" + before + segment(0xC2 if progressive else 0xC0, frame)


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose scans but for the first change nothing, in a byte a megapixel."""
    tables = segment(0xDB, b"\0" + bytes([1] * 64))
    tables += segment(0xC4, b"\0" + bytes([1, *[0] * 15, 0]))
    tables += segment(0xC4, b"\x10" + bytes([1, *[0] * 15, 0xE0]))
    blocks = (side // 8) ** 2
    runs = -(-blocks // 32767)
    bits = ("0" + "1" * 14) * runs + "1" * (-15 * runs % 8)
    empty = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    more = segment(0xDA, b"\1\1\0\1\x3f\0") + empty
    return jpeg(side, side, tables, progressive=True) + first + more * scans + b"\xff\xd9"


def tiff(*entries: tuple[int, int, int, int], after: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: tag, type, count, value."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + after


def overlapping_tags() -> bytes:
    """Tens of thousands of tags, each of which claims the same megabyte."""
    return tiff(*((tag, 1, 1 << 20, 8) for tag in range(30_000)), after=bytes(1 << 20))


HUGE = {
    "60000.png": png(60_000, 60_000, data=zeros(1 << 20)),
    "over.png": png(3_033_169, 59, 0, zeros(178_956_971)),  # one pixel more than is allowed
    "60000.tif": tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1),
                      (273, 4, 1, 200), (278, 4, 1, 60_000), (279, 4, 1, 9), after=bytes(99)),
    "tile.tif": tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8),
                     (262, 3, 1, 1), (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 200),
                     (325, 4, 1, 9), after=bytes(99)),
    "60000.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0,
                                     0, 0, 0, 0, 0) + bytes(99),
    "65535.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
                 + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;",
    "16384.webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<IBI", 10, 0x2F,
                                                                           0x0FFFFFFF) + bytes(9),
    "canvas.webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6,
    "65535.jpg": jpeg(65535, 65535) + segment(0xDA, b"\1\1\0\0\x3f\0") + bytes(99),
    "65535.ppm": b"P6 60000 60000 255\n" + bytes(99),
    "narrow.png": png(2 << 20, 1, 0, zeros((2 << 20) + 1)),
    "text.png": png(8, 8, 0, zeros(72), chunk(b"zTXt", b"a\0\0" + zeros(1 << 28))),
    "texts.png": png(8, 8, 0, zeros(72), chunk(b"zTXt", b"a\0\0" + zeros(1 << 20)) * 100),
    "utf8.png": png(8, 8, 0, zeros(72), chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(1 << 28))),
    "profile.png": png(8, 8, 0, zeros(72), chunk(b"iCCP", b"a\0\0" + zeros(1 << 28))),
    "tags.tif": overlapping_tags(),
}  # fmt: skip
SMALL = {  # a picture of 8 x 8 with something huge beside it
    "exif.png": png(8, 8, 0, zeros(72), chunk(b"eXIf", overlapping_tags())),
    "unread.png": png(8, 8, 0, zeros(72) + bytes(1 << 20)),
}
LARGEST = {"rgba.png": png(13_377, 13_377, 6, zeros((13_377 * 4 + 1) * 13_377))}
MEASURED = """
import json, resource, sys, warnings
from featpipe.decode import decode
from featpipe.errors import DecodeError
warnings.simplefilter("ignore")
unit = 1 if sys.platform == "darwin" else 1024
contents = [open(name, "rb").read() for name in sys.argv[1:]]
found = []
for content in contents:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = decode(content).size
    except DecodeError as error:
        outcome = str(error)
    found.append([outcome, unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)])
print(json.dumps(found))
"""


@posix
def test_bombs_are_refused_with_a_reason_and_take_no_memory(tmp_path: Path) -> None:
    bombs = {**HUGE, **SMALL, **LARGEST}  # the largest last: memory is a high-water mark
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 3 << 20
    outcomes = python(MEASURED, *bombs, cwd=tmp_path)
    for name, (outcome, grown) in zip(bombs, outcomes, strict=True):  # type: ignore[call-overload]
        if name in HUGE:
            assert isinstance(outcome, str), name
            assert " " in outcome
            assert grown < 100e6, name
        elif name in SMALL:
            assert outcome == [8, 8], (name, outcome)
            assert grown < 100e6, name
        else:  # what the docstring of `decode` allows
            assert outcome == [13_377, 13_377]
            assert grown < 12.5 * 13_377**2


def exif_segments(count: int) -> bytes:
    picture = GOOD.read_bytes()
    return picture[:2] + segment(0xE1, b"Exif\0\0x") * count + picture[2:]


def plain(comments: int) -> bytes:
    return b"P2 8 8 255\n" + b"1 " * 63 + b"#x\n" * comments + b"1\n"


@pytest.mark.parametrize(
    ("make", "most", "reason"),
    [
        (lambda n: many_scans(64, n - 1), MOST_SCANS, "101 scans are more than"),
        (lambda n: exif_segments(n - 20), MOST_PARTS, "segments before the picture"),
        (lambda n: plain(n), MOST_PARTS, "comments"),
    ],
)  # fmt: skip
def test_what_costs_a_reader_ever_more_time_is_refused(
    make: Callable[[int], bytes], most: int, reason: str
) -> None:
    assert decode.decode(make(most)).size
    with pytest.raises(DecodeError, match=reason):
        decode.decode(make(most + 40 if reason != "101 scans are more than" else most + 1))


def test_a_video_behind_a_picture_is_not_taken_for_scans() -> None:
    progressive = (DATA / "formats" / "progressive.jpg").read_bytes()
    noise = np.random.default_rng(0).bytes(1 << 20) + b"\xff\xda" * 1000
    assert np.array_equal(decode.decode(progressive + noise), decode.decode(progressive))


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["L", "LA", "RGBA", "P", "RGB", "CMYK", "I;16", "F"]),
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 200), st.integers(1, 8),
    st.integers(0, 2**32),
)  # fmt: skip
def test_pictures_are_the_same_however_they_are_cut_into_strips(
    mode: str, width: int, height: int, strip: int, orientation: int, seed: int
) -> None:
    size = {"LA": 2, "RGBA": 4, "RGB": 3, "CMYK": 4, "I;16": 2}.get(mode, 1)
    rng = np.random.default_rng(seed)
    if mode == "F":
        picture = Image.fromarray(rng.random((height, width), np.float32) * 200)
    else:
        picture = Image.frombytes(mode, (width, height), rng.bytes(width * height * size))
    if mode == "P":
        picture.putpalette(rng.bytes(768))
    clear = {"P": bytes(range(256)), "L": 7, "RGB": (1, 2, 3), "I;16": 9}
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    if mode in ("F", "CMYK"):
        picture.save(buffer, "TIFF", exif=exif)
    else:
        options = {"transparency": clear[mode]} if mode in clear else {}
        picture.save(buffer, "PNG", exif=exif, **options)
    whole = decode.decode(buffer.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featpipe.decode.STRIP_PIXELS", strip)
        assert np.array_equal(decode.decode(buffer.getvalue()), whole)


# ---- other formats in disguise -----------------------------------------------------------

DISGUISED = {
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
    "dos postscript": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, 99, 0, 0, 0, 0, 0)
    + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(sh)>>>>endobj\n%%EOF\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "font": b"\0\1\0\0\0\4\0\0" + bytes(99),
    "bdf font": b"STARTFONT 2.1\nFONT x\nSIZE 9 9 9\n",
    "metafile": b"\xd7\xcd\xc6\x9a\0\0" + bytes(99),
    "photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(99),
    "icon": b"\0\0\1\0\1\0\x08\x08\0\0\1\0\x20\0" + bytes(99),
    "xpm": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000000", "a"};\n',
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "pickle": b"cos\nsystem\n(S'touch featpipe-was-here'\ntR.",
    "shell": b"#!/bin/sh\nexit\n",
    "zip": b"PK\3\4" + bytes(99),
}  # fmt: skip


@pytest.mark.parametrize("content", DISGUISED.values(), ids=DISGUISED)
def test_other_formats_are_refused_and_no_program_is_run(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    for name in ("subprocess.Popen.__init__", "os.system"):
        monkeypatch.setattr(name, lambda *call, **options: started.append(call))
    with pytest.raises(DecodeError, match="not an image of a known format"):
        decode.decode(content)
    assert started == []


def test_of_several_pictures_in_one_file_the_first_counts() -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    red, green, blue = np.asarray(decode.decode(buffer.getvalue())).reshape(-1, 3).T
    assert red.min() > 240
    assert max(green.max(), blue.max()) < 15


# ---- broken pictures ---------------------------------------------------------------------


def samples() -> list[bytes]:
    """Two files of each format among the sample pictures."""
    paths = sorted(p for part in ("formats", "shapes") for p in (DATA / part).rglob("*.*"))
    suffixes = (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp")
    return [
        path.read_bytes()
        for suffix in suffixes
        for path in [path for path in paths if path.suffix == suffix][:2]
    ]


@pytest.mark.parametrize("decoder", [decode.EXACT, decode_fast.FAST], ids=["exact", "fast"])
@pytest.mark.parametrize("warned", ["ignore", "error"])
def test_300_broken_pictures_give_pixels_or_a_reason(warned: str, decoder: decode.Decoder) -> None:
    rng, originals = np.random.default_rng(20), samples()
    broken = [mutate(originals[number % len(originals)], rng) for number in range(300)]
    source = ImageSource("broken", make_table([str(row) for row in range(300)]), broken.__getitem__)
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter(warned)  # type: ignore[arg-type]
        for row in range(300):
            image = load_image(source, row, Preprocessing(48, (32, 40)), decoder)
            outcomes.add(image.status)
            if image.pixels is None:
                assert image.status != Status.OK
                assert image.reason
            else:
                assert image.status == Status.OK
                assert image.pixels.shape == (32, 40, 3)
                assert image.pixels.dtype == np.uint8
    assert {Status.OK, Status.UNDECODABLE} <= outcomes


def test_a_seed_always_breaks_a_file_in_the_same_way() -> None:
    data = GOOD.read_bytes()
    one, two = (mutate(data, np.random.default_rng(3)) for _ in range(2))
    assert one == two != data


# ---- names -------------------------------------------------------------------------------

NAMES = [
    b"a b", b" both ends ", b"new\nline", b"tab\tx", b"re\rturn", b"quo'te\"s", b"com,ma;x",
    b"-dash", b"--help", "\U0001f600".encode(), "\u05d0\u05d1 \u202ertl".encode(),
    "e\u0301".encode(), "\u00e9".encode(), b"\xff\xfe", b"\xed\xa0\x80", "\x85\u2028".encode(),
    b"\x1b[31mred\x1b]0;title\x07", b"a" * 251, b"%s{0}$(x)`y`", b"\\back\\slash", b"[bold]x",
    b"#hash", b"*?[a]", b"c:d", b"=1+1", b"~", b"\x7f", b"\x9b2J",
]  # fmt: skip
CLASSES = [b"one\n\x1b[31m\xff", b'-two," [x]']
STRANGE = b"\xff'\n" + ESCAPE.encode() + b',"'
CONTROLS = re.compile(rb"[\0-\x09\x0b-\x1f\x7f]")


# One process imports what all commands need, and forks for each of them.
EACH = """
import os, sys
import matplotlib.figure, featpipe.compare, featpipe.verification, featpipe.runtimes.torch
from featpipe.cli import main
for number, line in enumerate(sys.stdin.read().splitlines()):
    if not (child := os.fork()):
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv = ["featpipe", *(os.fsdecode(bytes.fromhex(word)) for word in line.split())]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)  # taking torch down would take longer than the command
    if os.waitpid(child, 0)[1]:
        sys.exit(open(f"{number}.2", errors="replace").read())
"""


def run(commands: list[list[bytes]], cwd: Path) -> list[bytes]:
    """Run commands, one after the other, as a shell would; what each wrote to stdout."""
    lines = "\n".join(" ".join(word.hex() for word in command) for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", EACH],
        input=lines.encode(),
        capture_output=True,
        cwd=cwd,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    for number in range(len(commands)):
        assert not CONTROLS.search((cwd / f"{number}.2").read_bytes())
    return [(cwd / f"{number}.1").read_bytes() for number in range(len(commands))]


def ids_of(rows: list[dict[str, str]]) -> list[bytes]:
    return sorted(os.fsencode(row["id"]) for row in rows)


@linux
def test_any_name_goes_through_every_command(tmp_path: Path) -> None:
    here = os.fsencode(tmp_path)
    images, features = b"im " + STRANGE, b"f" + STRANGE + b".h5"
    originals = [sorted((DATA / "shapes" / name).iterdir()) for name in ("circle", "square")]
    for label, paths in zip(CLASSES, originals, strict=True):
        os.makedirs(os.path.join(here, images, label))
        for number, name in enumerate(NAMES):
            to = os.path.join(here, images, label, name + b".jpg")
            shutil.copy(os.fsencode(paths[number % 12]), to)
    bad = CLASSES[0] + b"/bad " + STRANGE + b".jpg"
    with open(os.path.join(here, images, bad), "wb"):
        pass
    ids = sorted([bad, *(label + b"/" + name + b".jpg" for label in CLASSES for name in NAMES)])

    with open(os.path.join(here, b"m" + STRANGE + b".csv"), "wb") as table:
        table.write(b"path,label\n")
        for number, name in enumerate(ids):
            table.write(b'"%s",%d\n' % (name.replace(b'"', b'""'), number % 2))

    head, grid, out = b"h" + STRANGE, b"g" + STRANGE + b".png", b"p" + STRANGE + b".csv"
    pixels, classifier = [b"-b", b"pixels"], head + b"/classifier.safetensors"
    listed = [b"m" + STRANGE + b".csv", b"--root", images]
    tiny = [b"--scratch-epochs", b"1", b"--scratch-input-size", b"8", b"--device", b"cpu"]
    _, text, described, trained, printed, _, as_json, _, verified, _ = run(
        [
            [b"extract", images, *pixels, b"-o", features],
            [b"info", features],
            [b"info", features, b"--json"],
            [b"train-head", features, b"-o", head, b"--epochs", b"2"],
            [b"predict", classifier, images, b"--grid", grid],
            [b"predict", classifier, images, b"-o", out],
            [b"predict", classifier, images, b"--json"],
            [b"info", classifier],
            [b"verify", features, images],
            [b"compare", *listed, *pixels, *tiny, b"-o", b"c" + STRANGE],
        ],
        tmp_path,
    )

    with FeatureCache.open(os.fsdecode(os.path.join(here, features))) as cache:
        assert [os.fsencode(name) for name in cache.table.ids] == ids
        found = cache.features()
        for row in np.flatnonzero(cache.ok):  # each row its own picture's
            label, name = ids[row].split(b"/")
            at = NAMES.index(name.removesuffix(b".jpg")) % 12
            picture = decode.decode(originals[CLASSES.index(label)][at].read_bytes())
            pixels = Preprocessing((32, 32), (32, 32)).pixels(picture).transpose(2, 0, 1)
            np.testing.assert_allclose(found[row], pixels.ravel() / 255, atol=LEVEL)
    for shown_text in (text, trained, verified):
        assert not CONTROLS.search(shown_text)
    bad_shown = b"one\\n\\x1b[31m\\udcff/bad \\udcff'\\n\\x1b[31m,\".jpg: the file is empty"
    assert b"  " + bad_shown in text.splitlines()
    document = json.loads(described)
    assert ids_of(document["without_features"]) == [bad]
    assert sorted(map(os.fsencode, document["classes"])) == sorted(CLASSES)
    assert ids_of(read_csv(printed)) == ids_of(json.loads(as_json)["predictions"]) == ids
    assert {os.fsencode(row["true"]) for row in read_csv(printed)} == set(CLASSES)
    with open(os.path.join(here, out), "rb") as file:
        assert file.read() == printed
    made = os.path.join(here, b"c" + STRANGE)
    assert {b"results.csv", b"results.json", b"split.csv"} <= set(os.listdir(made))
    [file] = [name for name in os.listdir(made) if name.startswith(b"features-pixels")]
    with FeatureCache.open(os.fsdecode(os.path.join(made, file))) as cache:
        assert sorted(os.fsencode(name) for name in cache.table.ids) == ids


def read_csv(content: bytes) -> list[dict[str, str]]:
    text = content.decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


@settings(deadline=None)
@given(st.text())
def test_what_is_shown_stands_on_one_line_and_steers_no_terminal(text: str) -> None:
    found = shown(text)
    assert found.splitlines() in ([], [found])
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in found)
    assert "\u202e" not in found
    found.encode()  # any terminal of Unicode can show it


@given(st.text(st.characters(categories=("L", "M", "N", "P", "S"), include_characters=" ")))
def test_ordinary_names_are_shown_as_they_are(text: str) -> None:
    assert shown(text) == text


def test_tables_and_notes_show_names_safely(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"x{ESCAPE}\n\udcff"
    print_table([name], [[name]])
    say(name)
    note(name)
    printed = capsys.readouterr()
    assert printed.out.split() == [r"x\x1b[31m\n\udcff"] * 3
    assert not CONTROLS.search(printed.err.encode("utf-8", "backslashreplace"))


def test_an_error_shows_names_safely(tmp_path: Path) -> None:
    (tmp_path / f"x{ESCAPE}.jpg").touch()
    command = ["extract", str(tmp_path), "-b", "pixels", "-o", str(tmp_path / "f.h5")]
    result = CliRunner().invoke(cli, [*command, "--on-error", "raise"], color=True)
    assert result.exit_code == 1
    assert r"Error: x\x1b[31m.jpg in " in result.stderr


def test_no_name_looks_like_a_message_of_its_own(tmp_path: Path) -> None:
    name = tmp_path / "x\nError: all is lost.h5"
    result = CliRunner().invoke(cli, ["info", str(name)])
    assert result.exit_code == 1
    assert [line.startswith("Error: ") for line in result.stderr.splitlines()] == [True, False]


@pytest.mark.parametrize("command", ["info", "verify", "train-head", "predict", "export-features"])
@pytest.mark.parametrize("name", ["", ".", "..", "/", "/dev/null"])
def test_what_is_no_file_is_refused_as_such(command: str, name: str) -> None:
    more = {"predict": [str(GOOD)], "export-features": ["-o", "x.npy"]}.get(command, [])
    result = CliRunner().invoke(cli, [command, name, *more])
    assert result.exit_code in (1, 2)
    assert "Error: " in result.stderr
    assert isinstance(result.exception, SystemExit), result.exception


def test_features_go_to_no_device_or_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for out in ("/dev/null", str(tmp_path / "pipe")):
        command = ["extract", str(GOOD.parent), "-b", "pixels", "-o", out]
        result = CliRunner().invoke(cli, command)
        assert (result.exit_code, "is no regular file" in result.stderr) == (1, True)
        assert not os.path.exists(f"{out}.parts")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_json_is_json_whatever_letters_the_terminal_has(tmp_path: Path) -> None:
    folder = tmp_path / "\u00e9\U0001f600"
    folder.mkdir()
    shutil.copy(GOOD, folder / "\u00fc\U0001f600.jpg")
    extract_features(folder, "pixels", tmp_path / "f.h5").close()
    arguments = ["info", str(tmp_path / "f.h5"), "--json"]
    for charset in ("ascii", "latin-1", "utf-8"):
        printed = CliRunner(charset=charset).invoke(cli, arguments).stdout_bytes
        document = json.loads(printed.decode(charset))
        assert document["conditions"]["images"]["location"] == str(folder)


def test_the_default_file_is_named_after_images_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / ("\u4e2d" * 84)  # 252 bytes
    folder.mkdir()
    shutil.copy(GOOD, folder / "a.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(cli, ["extract", folder.name, "-b", "pixels"])
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("\u4e2d*-pixels.h5"))) == 1


# ---- tables ------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an image, beside another that lies outside it."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    shutil.copy(GOOD, tmp_path / "root" / "in.jpg")
    shutil.copy(GOOD, tmp_path / "out.jpg")
    return tmp_path / "root"


def table(root: Path, *paths: str) -> Path:
    with (root / "m.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path"], *([path] for path in paths)])
    return root / "m.csv"


OUTSIDE = ["../out.jpg", "a/../../out.jpg", "./a/.././../out.jpg", "..\\out.jpg", "{}/out.jpg"]


@pytest.mark.parametrize("path", [*OUTSIDE, "/dev/zero", "/proc/self/environ", ".."])
def test_a_path_that_leaves_the_root_is_refused(root: Path, path: str) -> None:
    path = path.format(root.parent)
    with pytest.raises(ImagesError, match=r"1 paths .* outside .*--root, or --allow-outside"):
        open_images(table(root, "in.jpg", path))


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_may_leave_the_root_where_that_is_allowed(root: Path, path: str) -> None:
    manifest = table(root, "in.jpg", path.format(root.parent))
    source = open_images(manifest, ImageSettings(allow_outside=True))
    assert source.read(0) == source.read(1) == GOOD.read_bytes()


def test_a_root_that_holds_all_needs_no_permission(root: Path) -> None:
    manifest = table(root, str(root / "in.jpg"), str(root.parent / "out.jpg"))
    source = open_images(manifest, ImageSettings(root=str(root.parent)))
    assert source.read(1) == GOOD.read_bytes()
    alone = open_images(table(root, str(root / "in.jpg")))  # absolute, and inside
    assert alone.read(0) == GOOD.read_bytes()


@posix
@pytest.mark.parametrize(
    "path",
    ["file:///etc/passwd", "http://127.0.0.1/x.jpg", "C:\\Windows\\x.jpg", "~/x.jpg", "$HOME/x.jpg",
     "a", "|id", "in.jpg/x", "x" * 5000],
)  # fmt: skip
def test_a_path_that_is_no_file_is_a_row_with_a_reason(
    root: Path, tmp_path: Path, path: str
) -> None:
    with extract_features(table(root, "in.jpg", path), "pixels", tmp_path / "f.h5") as cache:
        assert cache.ok.tolist() == [True, False]
        assert cache.reasons[1]


def large_field(folder: Path) -> Path:
    (folder / "m.csv").write_bytes(b"path\n" + b"a" * (200 << 20))
    return folder / "m.csv"


def bad_text(folder: Path) -> Path:
    offsets = pa.py_buffer(np.array([0, 3], np.int32).tobytes())
    texts = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"a\xffb")])
    parquet.write_table(pa.table({"path": texts}), folder / "m.parquet")
    return folder / "m.parquet"


def null_text(folder: Path) -> Path:
    parquet.write_table(pa.table({"path": ["a\0b"]}), folder / "m.parquet")
    return folder / "m.parquet"


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (large_field, "not a csv table: field larger than"),
        (written("m.csv", b"path,label\nin.jpg,x\0y\n"), "NUL bytes"),
        (written("m.csv", b"path\na\0.jpg\nin.jpg\n"), "NUL bytes"),
        (written("m.csv", "path\nin.jpg\n".encode("utf-16")), "UTF-16"),
        (written("m.csv", b"path\n" + bytes(1 << 20)), "NUL bytes|field larger"),
        (written("m.csv", GOOD.read_bytes()), "m.csv"),
        (bad_text, "not a Parquet table"),
        (null_text, "NUL bytes"),
        (written("m.parquet", b"PAR1" + b"\xff" * 99 + b"PAR1"), "not a Parquet table"),
    ],
)
def test_a_table_that_is_none_is_refused(
    root: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ImagesError, match=message):
        open_images(make(root))


@posix
@pytest.mark.parametrize("prefix", ["", "manifest:"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_is_no_file_is_not_waited_for(
    tmp_path: Path, prefix: str, suffix: str, no_hang: None
) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(ImagesError):
            open_images(f"{prefix}{tmp_path}/{name}{suffix}")


# ---- one kind of file for another --------------------------------------------------------


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a classifier, a picture, each also under the others' names."""
    folder = tmp_path_factory.mktemp("kinds")
    for arguments in (
        ["extract", str(DATA / "shapes"), "-b", "pixels", "-o", str(folder / "cache.h5")],
        ["train-head", str(folder / "cache.h5"), "-o", str(folder / "head"), "--epochs", "2"],
    ):
        assert CliRunner().invoke(cli, arguments).exit_code == 0
    shutil.copy(folder / "head" / "classifier.safetensors", folder / "classifier.safetensors")
    shutil.copy(GOOD, folder / "picture.jpg")
    shutil.copy(GOOD, folder / "picture.h5")
    shutil.copy(GOOD, folder / "picture.safetensors")
    shutil.copy(folder / "cache.h5", folder / "cache.safetensors")
    shutil.copy(folder / "classifier.safetensors", folder / "classifier.h5")
    for suffix in (".h5", ".safetensors", ".pth"):
        (folder / f"folder{suffix}").mkdir()
        if os.name == "posix":
            os.mkfifo(folder / f"pipe{suffix}")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "extract cache.h5 -b pixels -o new.h5",
        "extract classifier.safetensors -b pixels -o new.h5",
        "extract folder:cache.h5 -b pixels -o new.h5",
        "extract manifest:cache.h5 -b pixels -o new.h5",
        "extract pipe.h5 -b pixels -o new.h5",
        "extract '' -b pixels -o new.h5",
        "extract . -b pixels -o folder.h5",
        "extract . -b pixels -o picture.h5",
        "extract . -b pixels -o cache.h5/new.h5",
        "extract . -b squeezenet1_1@cache.h5 -o new.h5",
        "extract . -b squeezenet1_1 --weights folder.pth -o new.h5",
        "extract . -b squeezenet1_1 --weights pipe.pth -o new.h5",
        "compare cache.h5 -b pixels -o new",
        "compare . -b pixels -o picture.jpg",
        "train-head picture.h5", "train-head picture.jpg", "train-head classifier.h5",
        "train-head folder.h5", "train-head pipe.h5", "train-head cache.h5 -o picture.jpg",
        "info picture.h5", "info picture.jpg", "info picture.safetensors", "info cache.safetensors",
        "info classifier.h5", "info folder.h5", "info folder.safetensors", "info pipe.h5",
        "info pipe.safetensors",
        "predict cache.h5 picture.jpg", "predict picture.jpg picture.jpg",
        "predict cache.safetensors picture.jpg", "predict folder.safetensors picture.jpg",
        "predict pipe.safetensors picture.jpg", "predict classifier.safetensors cache.h5",
        "predict classifier.safetensors classifier.safetensors",
        "predict classifier.safetensors pipe.h5", "predict classifier.safetensors ''",
        "predict classifier.safetensors picture.jpg -o folder.h5",
        "predict classifier.safetensors picture.jpg --grid folder.h5",
    ],
)  # fmt: skip
@posix
def test_one_kind_of_file_for_another_is_one_message(
    kinds: Path, command: str, monkeypatch: pytest.MonkeyPatch, no_hang: None
) -> None:
    monkeypatch.chdir(kinds)
    before = {path: path.stat().st_mtime_ns for path in kinds.rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli, shlex.split(command))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert re.search(r"^Error: \S+ \S+", result.stderr, re.MULTILINE), result.stderr
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before  # nothing is overwritten
