"""Breaking files in the ways in which they break, and in which people break them."""

import numpy as np


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three seeded changes of a file's bytes: flips, cuts, splices, lengths, repeats.

    Headers are hit more often than their share of the bytes: there a change does most harm.
    """
    for _ in range(int(rng.integers(1, 4))):
        change = _CHANGES[int(rng.integers(len(_CHANGES)))]
        data = change(bytearray(data), rng)
    return data


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """A position; half of them lie in the first 200 bytes."""
    within = min(len(data), 200) if rng.random() < 0.5 else len(data)
    return int(rng.integers(max(within, 1)))


def _stretch(data: bytearray, rng: np.random.Generator) -> slice:
    """Some consecutive bytes, seldom many."""
    start = _place(data, rng)
    return slice(start, start + int(2 ** rng.uniform(0, 12)))


def _flip_bits(data: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(2 ** rng.uniform(0, 6)) if data else 0):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _truncate(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: _place(data, rng)])


def _splice(data: bytearray, rng: np.random.Generator) -> bytes:
    """Put a copy of one stretch over another place."""
    source, target = _stretch(data, rng), _place(data, rng)
    content = data[source]
    data[target : target + len(content)] = content
    return bytes(data)


def _repeat(data: bytearray, rng: np.random.Generator) -> bytes:
    """Insert a stretch again behind itself, a few times."""
    source = _stretch(data, rng)
    return bytes(data[: source.stop] + data[source] * int(rng.integers(1, 9)) + data[source.stop :])


def _remove(data: bytearray, rng: np.random.Generator) -> bytes:
    del data[_stretch(data, rng)]
    return bytes(data)


def _scramble(data: bytearray, rng: np.random.Generator) -> bytes:
    """Put noise, or one value, over a stretch."""
    target = _stretch(data, rng)
    size = len(data[target])
    data[target] = rng.bytes(size) if rng.random() < 0.5 else bytes([int(rng.integers(256))]) * size
    return bytes(data)


def _set_number(data: bytearray, rng: np.random.Generator) -> bytes:
    """Put an extreme or a near number where a length, an offset or a size may stand."""
    width = int(rng.choice([1, 2, 4, 8]))
    order = "big" if rng.random() < 0.5 else "little"
    place = _place(data, rng)
    found = int.from_bytes(data[place : place + width], order)  # type: ignore[arg-type]
    most = 256**width - 1
    numbers = [0, 1, most, most // 2, most // 2 + 1, 65535, 65536, len(data), found + 1, found - 1]
    number = min(max(numbers[int(rng.integers(len(numbers)))], 0), most)
    data[place : place + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
    return bytes(data)


_CHANGES = (_flip_bits, _truncate, _splice, _repeat, _remove, _scramble, _set_number)
