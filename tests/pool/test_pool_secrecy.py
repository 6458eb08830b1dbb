"""Nothing in clear: no object shows a name, a content or an attribute, in any simple encoding or compressed form.

Byte entropy: N uniformly random bytes have a measured entropy of about 8 - 255 / (2 N ln 2) bits per byte, which is
7.955 ± 0.004 for 4 KiB, so that 7.9 needs no correction for small samples: every 4 KiB of an object have to pass, the
first ones with the pack's plain header included.  The same search finds everything on a drive made without encryption:
what it does not find is not there.
"""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import math
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import zstandard
from attrs import evolve

from cuckoo_mount.config import write_config
from tests.pool.conftest import MakePool
from tests.pool.pooling import PoolMount, folder_place

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB: Final = 1 << 10
WINDOW_BYTES: Final = 4 * KIB
ENTROPY_LEAST: Final = 7.9
UNPACKED_MAX_BYTES: Final = 1 << 20
NAMES: Final = (b"Geheimakte Bargfeld", b"steuer-2025.ods", b"nested-folder-7")
CONTENTS: Final = (b"the launch code is swordfish", b"Liebe Grossmutter, ", b"%PDF-1.7 invoice 4711")
TARGET: Final = b"../elsewhere/where-the-link-points"
ATTRIBUTES: Final = ((b"user.mime-of-secret", b"application/x-diary"), (b"user.tagged", b"only for my eyes"))
MARKERS: Final = (*NAMES, *CONTENTS, TARGET, *(text for pair in ATTRIBUTES for text in pair))


def write_secrets(folder: Path) -> None:
    """Write the markers as names, as contents short, long and repeated, as a link and as attributes."""
    below = folder / os.fsdecode(NAMES[2])
    below.mkdir()
    dice = random.Random(1)
    (folder / os.fsdecode(NAMES[0])).write_bytes(CONTENTS[0])
    (below / os.fsdecode(NAMES[1])).write_bytes(CONTENTS[1] * 20_000)
    (below / "mixed").write_bytes(dice.randbytes(3 * KIB) + CONTENTS[2] + dice.randbytes(3 * KIB))
    (folder / "long").write_bytes(b"".join(CONTENTS[0] + dice.randbytes(100) for _ in range(20_000)))
    (folder / "link").symlink_to(os.fsdecode(TARGET))
    for number in range(300):
        (below / f"{os.fsdecode(NAMES[1])}.{number}").write_bytes(CONTENTS[1] + str(number).encode())
    for name, value in ATTRIBUTES:
        os.setxattr(folder / os.fsdecode(NAMES[0]), name, value)
        os.setxattr(below, name, value)


def store(mount: PoolMount, *, encrypted: bool) -> None:
    write_config(evolve(mount.configure(), encrypted=encrypted), mount.paths)
    mount.start()
    write_secrets(mount.path)
    mount.sync()
    # Packs of all sizes down to that of one short file, and one as close to 4 KiB as it goes.
    (mount.path / "alone").write_bytes(CONTENTS[0])
    mount.sync()
    (mount.path / "just 4 KiB").write_bytes(random.Random(2).randbytes(3700))
    mount.umount()


# -- the search --


def forms(marker: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield how `marker` may be written down: as it is, reversed, in hex, in base64 at each of three alignments, …"""
    text = marker.decode()
    yield "plain", marker
    yield "reversed", marker[::-1]
    yield "upper case", marker.upper()
    yield "UTF-16", text.encode("utf-16-le")
    yield "hex", marker.hex().encode()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + marker)
        yield "base64", encoded[4 : -4 or None]


def _unzstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(data)
    return reader.read(UNPACKED_MAX_BYTES)


def _inflate(bits: int) -> Callable[[bytes], bytes]:
    return lambda data: zlib.decompressobj(bits).decompress(data, UNPACKED_MAX_BYTES)


UNPACKERS: Final[tuple[tuple[str, bytes, Callable[[bytes], bytes]], ...]] = (
    ("zstd", b"\x28\xb5\x2f\xfd", _unzstd),
    ("gzip", b"\x1f\x8b\x08", _inflate(31)),
    *(("zlib", header, _inflate(15)) for header in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")),
    ("bzip2", b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data, UNPACKED_MAX_BYTES)),
    ("xz", b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data, UNPACKED_MAX_BYTES)),
)


def unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield whatever decompresses from any offset of `data`, with the name of the method."""
    for method, magic, unpack in UNPACKERS:
        at = data.find(magic)
        while at >= 0:
            with suppress(zlib.error, zstandard.ZstdError, OSError, lzma.LZMAError, EOFError):
                yield method, unpack(data[at:])
            at = data.find(magic, at + 1)


def search(data: bytes) -> set[tuple[str, bytes]]:
    """Return (form, marker) of everything that shows in `data`."""
    found = {(form, marker) for marker in MARKERS for form, shown in forms(marker) if shown in data}
    for method, plain in unpacked(data):
        found |= {(method, marker) for marker in MARKERS if marker in plain}
    return found


def entropy(data: bytes) -> float:
    """Return the byte entropy in bits per byte."""
    return -sum(count / len(data) * math.log2(count / len(data)) for count in Counter(data).values())


# -- the tests --


def test_no_object_shows_anything(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool([folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")], redundancy="2")
    store(mount, encrypted=True)
    least, windows, objects = 8.0, 0, 0
    for place in mount.places:
        for name in place.sizes():
            data = place.read(name)
            objects += 1
            for marker in MARKERS:
                assert marker.decode().lower() not in name
            assert search(data) == set(), f"{name} on {place.name}"
            if name == mount.identity():
                record = json.loads(data)
                assert record == {
                    "format": 1,
                    "drive": mount.configure().drive_id.hex(),
                    "cloud": place.config.cloud_id.hex(),
                }
            for start in range(0, len(data) - WINDOW_BYTES + 1, WINDOW_BYTES):
                measured = entropy(data[start : start + WINDOW_BYTES])
                assert measured > ENTROPY_LEAST, f"{name} on {place.name} at {start}: {measured:.3f}"
                least, windows = min(least, measured), windows + 1
    print(f"{objects} objects, {windows} windows of 4 KiB, least entropy {least:.4f}")
    assert windows > 500


def test_the_search_finds_what_is_in_clear(tmp_path: Path, make_pool: MakePool) -> None:
    """On a drive without encryption: contents as they are, and those that zstd packed."""
    mount = make_pool([folder_place(tmp_path / "clouds", "a")])
    store(mount, encrypted=False)
    found = set()
    for name in mount.places[0].packs():
        found |= search(mount.places[0].read(name))
    assert found >= {("plain", CONTENTS[0]), ("zstd", CONTENTS[1]), ("plain", CONTENTS[2])}


@pytest.mark.parametrize(
    "pack",
    [
        zlib.compress,
        bz2.compress,
        lzma.compress,
        zstandard.compress,
        base64.b64encode,
        lambda data: data.hex().encode(),
    ],
)
def test_the_search_knows_this_form(pack: Callable[[bytes], bytes]) -> None:
    dice = random.Random(3)
    assert search(dice.randbytes(5000)) == set()
    assert {marker for _, marker in search(dice.randbytes(50) + pack(CONTENTS[0]) + dice.randbytes(50))} == {
        CONTENTS[0]
    }


def test_entropy_of_what_is_random_and_what_is_not() -> None:
    assert abs(entropy(os.urandom(WINDOW_BYTES)) - 7.955) < 0.03
    assert entropy(os.urandom(WINDOW_BYTES - 300) + bytes(300)) < ENTROPY_LEAST
    assert entropy(base64.b64encode(os.urandom(WINDOW_BYTES))) < 6.1
