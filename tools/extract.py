#!/usr/bin/env python3
"""Restore the files of a cuckoo-mount drive without cuckoo-mount: from copies of its clouds and the passphrase.

This one file is all you need, besides Python 3.11 or newer and three packages:

    python3 -m venv way-out && way-out/bin/pip install blake3 'cryptography>=44' zstandard

1. Copy each cloud that is left into a folder of this machine (`rclone copy`, `aws s3 sync`, a file manager; a cloud
   that is a disk or a mounted share can be used as it is).  Such a FOLDER holds `cuckoo/<drive id>/…`.  With copies
   on several clouds, or with an erasure code, some of them are enough; else all of them are needed.
2. Write the passphrase into a file, as its only line.  The recovery key (32 letters and digits), or the key file of a
   machine that had the drive mounted, does as well.  Without any of these options you are asked.
3. Look what is there, then restore it into a new or empty folder:

    way-out/bin/python extract.py --passphrase-file PASS --list FOLDER FOLDER…
    way-out/bin/python extract.py --passphrase-file PASS --to RESTORED FOLDER FOLDER…

Restored are files, with their holes, folders, symbolic and hard links, pipes, modes, times of access and change,
extended attributes and ACLs; as root also owners and device files.  Nothing is changed in the FOLDERs.

Every part of every file is compared with its hash.  A part that is missing or damaged in one FOLDER is taken from
another.  A file of which a part is whole nowhere is named and left out (--keep-damaged keeps it, with zeros there);
everything else is restored.  Exit status: 0 all is restored, 1 something is not and was named, 2 nothing was done.

What is read here is described byte by byte in docs/format.md of cuckoo-mount; nothing of cuckoo-mount is used.
"""

from __future__ import annotations

import argparse
import base64
import errno
import getpass
import hmac
import io
import os
import re
import sqlite3
import stat
import struct
import sys
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from itertools import combinations, islice
from pathlib import Path
from typing import Final

try:
    from blake3 import blake3
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters
except ImportError as missing:
    sys.exit(f"extract.py: {missing}; install: pip install blake3 'cryptography>=44' zstandard")

FORMAT: Final = 1
SCHEMA: Final = 2
CHUNK_BYTES: Final = 1 << 20
BLOCK_BYTES: Final = 1 << 20
HASH_BYTES: Final = 32
ROOT: Final = 1
OPEN_PACKS: Final = 64
# So many choices of shares of an erasure-coded pack are tried for a chunk, those with whole shares first.
WAYS: Final = 100
# Longer paths are reached folder by folder; the kernel refuses 4096 bytes.
PATH_BYTES: Final = 3800
PROGRESS_S: Final = 1.0
# One error of these will be followed by the same for every other file.
HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

SLOT: Final = struct.Struct("<8sHHI16sIIII16s48s16s")
EPOCH_HEADER: Final = struct.Struct("<8sHHHH16sQQQII32s16s16s32s")
EPOCH_FOOTER: Final = struct.Struct("<8sQQ8s32s32s")
SEGMENT: Final = struct.Struct("<II")
SEGMENT_BYTES_MAX: Final = 5 << 18
EPOCH_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})\.(snapshot|journal)")
KINDS: Final = {1: "snapshot", 2: "journal"}
SLOT_KINDS: Final = {"passphrase": 1, "recovery": 2}

CONTEXT: Final = "cuckoo-mount 2026-11 "
PUBLIC_PASSPHRASE: Final = "cuckoo-mount: this drive is not encrypted"
CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RFC_4648: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

# The tables of the metadata by their numbers in records: name, how many of the columns are the key, columns.
TABLES: Final = {
    1: ("setting", 1, "key value"),
    2: ("cloud", 1, "name cloud_id url capacity reserve grp read_only position"),
    3: ("inode", 1, "ino mode uid gid rdev nlink size atime mtime ctime btime chunks parent"),
    4: ("dentry", 2, "parent name ino cookie"),
    5: ("symlink", 1, "ino target"),
    6: ("xattr", 2, "ino name value"),
    7: ("chunk", 2, "ino idx version"),
    8: ("version", 1, "version pack offset length plain digest refs"),
    9: ("pack", 1, "number pack_id policy size live used born_epoch dead_epoch"),
    10: ("share", 2, "pack share cloud digest length"),
}

Value = int | bytes | str | None


class Failure(Exception):
    """It cannot go on; the text says why and what to do, in one line.  `status`: exit status."""

    def __init__(self, text: str, *, status: int = 2) -> None:
        super().__init__(text)
        self.status: Final = status


class Damaged(Exception):
    """An object, or a part of one, is not what was stored."""


class Unreadable(Exception):
    """A part of a file is whole in no folder; the text says where it should be."""


def derive(purpose: str, material: bytes) -> bytes:
    """Return the key for one purpose."""
    return blake3(material, derive_key_context=CONTEXT + purpose).digest()


def decompressed(data: bytes, plain_bytes: int) -> bytes:
    """Undo the compression layer, taking no more memory than `plain_bytes`."""
    method, body = data[:1], data[1:]
    if method == b"\x01":
        try:
            if get_frame_parameters(body).content_size != plain_bytes:
                raise Damaged("its compressed data have another length")
            body = ZstdDecompressor().decompress(body)
        except ZstdError:
            raise Damaged("its compressed data are damaged") from None
    elif method != b"\x00":
        raise Damaged(f"it is compressed by a method that this program does not know ({method.hex() or 'none'})")
    if len(body) != plain_bytes:
        raise Damaged("it has another length")
    return body


def decrypted(key: bytes, offset: int, data: bytes, associated: bytes) -> bytes:
    """Undo the encryption layer of a body that lies at `offset` in its object."""
    try:
        return AESGCM(key).decrypt(offset.to_bytes(12, "little"), data, associated)
    except (InvalidTag, ValueError):
        raise Damaged("it is damaged") from None


def shown(path: bytes) -> str:
    """Return a path as one line that a terminal can show."""
    return "".join(
        sign if sign.isprintable() else ascii(sign)[1:-1] for sign in path.decode("utf-8", "backslashreplace")
    )


def utc(time_ns: int) -> str:
    """Return a moment for people."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    print(f"extract.py: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Stored:
    """A drive as it lies in folders: `folders` are those named `cuckoo/<drive id>`."""

    drive_id: bytes
    folders: tuple[Path, ...]

    def names(self, below: str) -> dict[str, list[Path]]:
        """Return what lies in one of the drive's folders: each name with every place where it is."""
        found: dict[str, list[Path]] = {}
        for folder in self.folders:
            with suppress(FileNotFoundError, NotADirectoryError):
                for path in sorted((folder / below).iterdir()):
                    found.setdefault(path.name, []).append(path)
        return found


def find_drive(folders: Sequence[Path], wanted: str | None) -> Stored:
    """Return the drive that lies in the folders; `wanted`: its id, or how it begins."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise Failure(f"{folder} is not a folder")
        drives = [path for path in folder.glob("cuckoo/*/") if re.fullmatch("[0-9a-f]{32}", path.name)]
        if not drives:
            say(f"there is no drive in {folder}: it has no cuckoo/<drive id>")
        for path in drives:
            found.setdefault(path.name, []).append(path)
    fitting = sorted(name for name in found if name.startswith((wanted or "").lower()))
    if not fitting:
        raise Failure(f"there is no drive {wanted or ''}".rstrip() + " in these folders; give those that hold `cuckoo`")
    if len(fitting) > 1:
        raise Failure(f"there are several drives in these folders, choose one with --drive: {', '.join(fitting)}")
    return Stored(bytes.fromhex(fitting[0]), tuple(found[fitting[0]]))


@dataclass(frozen=True)
class Secret:
    """What opens a drive: a passphrase, the 16 bytes of a recovery key, or the drive key itself."""

    kind: str
    value: bytes


@dataclass(frozen=True)
class KeySlot:
    """The drive key, encrypted under a passphrase or a recovery key."""

    kind: str
    number: int
    memory_kib: int
    iterations: int
    lanes: int
    salt: bytes
    head: bytes
    wrapped: bytes

    @property
    def is_public(self) -> bool:
        """Whether it looks like the slot of a drive without encryption, which everybody can open."""
        return (self.kind, self.memory_kib, self.iterations, self.lanes) == ("passphrase", 8, 1, 1)

    def open(self, secret: Secret) -> bytes | None:
        """Return the drive key; None if this secret does not open this slot."""
        if secret.kind != self.kind:
            return None
        if self.kind == "recovery":
            wrapping_key = derive("recovery slot", secret.value + self.salt)
        else:
            wrapping_key = argon2id(secret.value, self)
        with suppress(InvalidTag):
            return AESGCM(wrapping_key).decrypt(bytes(12), self.wrapped, self.head)
        return None


def argon2id(passphrase: bytes, slot: KeySlot) -> bytes:
    """Return the wrapping key of a passphrase."""
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
    except ImportError:
        raise Failure(
            "a passphrase needs version 44 or newer of the package cryptography; the recovery key does not"
        ) from None
    kdf = Argon2id(salt=slot.salt, length=32, iterations=slot.iterations, lanes=slot.lanes, memory_cost=slot.memory_kib)
    return kdf.derive(passphrase)


def parse_slot(data: bytes, drive_id: bytes, name: str) -> KeySlot:
    """Return the key slot with that name."""
    number, _, kind = name.partition(".")
    if len(data) != SLOT.size or blake3(data[:112]).digest(16) != data[112:]:
        raise Damaged("it is damaged")
    magic, version, kind_number, own_number, drive, memory_kib, iterations, lanes, _, salt, wrapped, _ = SLOT.unpack(
        data
    )
    if magic != b"CUCKOOKS" or version != FORMAT:
        raise Damaged("it is no key slot, or one of a newer version")
    if drive != drive_id or SLOT_KINDS.get(kind) != kind_number or number != str(own_number):
        raise Damaged("it belongs to another drive, or under another name")
    if kind == "passphrase" and not (1 <= lanes <= 16 and 8 * lanes <= memory_kib <= 1 << 20 and 1 <= iterations <= 16):
        raise Damaged("it wants more memory or time than is allowed")
    return KeySlot(kind, own_number, memory_kib, iterations, lanes, salt, data[:64], wrapped)


def find_slots(stored: Stored) -> list[KeySlot]:
    """Return the whole key slots, the newest first."""
    slots: dict[bytes, KeySlot] = {}
    for name, paths in stored.names("keys").items():
        for path in paths:
            try:
                slot = parse_slot(path.read_bytes(), stored.drive_id, name)
            except (Damaged, OSError) as error:
                say(f"left out: key slot {path}: {reason_of(error)}")
            else:
                slots[slot.head + slot.wrapped] = slot
    return sorted(slots.values(), key=lambda slot: slot.number, reverse=True)


def find_drive_key(stored: Stored, given: Secret | None) -> bytes:
    """Return the drive key.  `given`: the secret that was given; without one a drive that is not encrypted opens by
    itself, and for another one you are asked."""
    if given is not None and given.kind == "key":
        return given.value
    slots = find_slots(stored)
    if not slots:
        raise Failure("there is no whole key slot in these folders (cuckoo/<drive id>/keys): only a --key-file helps")
    public_key = open_public(slots)
    if given is None and public_key is not None:
        say("this drive is not encrypted: who could write to its clouds could change what is restored now")
        return public_key
    secret = given or type_passphrase()
    for attempt in (secret, *also_recovery_key(secret)):
        for slot in slots:
            if (key := slot.open(attempt)) is not None:
                return key
    if public_key is not None:
        # Not tried in its place: a cloud could then have us take a drive that it made up.
        raise Failure("this is not its passphrase or recovery key, and the drive is not encrypted: leave it out")
    if secret.kind == "recovery":
        raise Failure("wrong recovery key: it is typed correctly, but belongs to another drive")
    raise Failure("wrong passphrase; check capitals and keyboard layout, or use the recovery key")


def open_public(slots: Iterable[KeySlot]) -> bytes | None:
    """Return the key of a drive without encryption; None if it is encrypted."""
    secret = Secret("passphrase", PUBLIC_PASSPHRASE.encode())
    keys = (slot.open(secret) for slot in slots if slot.is_public)
    return next((key for key in keys if key is not None), None)


def passphrase_of(text: str) -> Secret:
    """Return a passphrase as it is hashed."""
    if not text:
        raise Failure("the passphrase is empty")
    try:
        return Secret("passphrase", unicodedata.normalize("NFC", text).encode())
    except UnicodeEncodeError:
        raise Failure("the passphrase is no text in UTF-8") from None


def also_recovery_key(secret: Secret) -> list[Secret]:
    """Return the recovery key that was typed where a passphrase was asked for, if it may be one."""
    if secret.kind == "passphrase":
        with suppress(Failure):
            return [recovery_key_of(secret.value.decode())]
    return []


def recovery_key_of(text: str) -> Secret:
    """Return the recovery key that was written down."""
    signs = "".join(sign for sign in text if not sign.isspace() and unicodedata.category(sign) != "Pd")
    digits = signs.upper().translate(str.maketrans("OIL", "011"))
    if len(digits) != 32 or not set(digits) <= set(CROCKFORD):
        raise Failure("a recovery key has 32 letters and digits, none of them U; compare it with what was printed")
    data = base64.b32decode(digits.translate(str.maketrans(CROCKFORD, RFC_4648)))
    if blake3(data[:16]).digest(4) != data[16:]:
        raise Failure("the recovery key is mistyped; compare it sign by sign with what was printed")
    return Secret("recovery", data[:16])


def drive_key_of(text: str) -> Secret:
    """Return the drive key from what is in a key file."""
    digits = "".join(text.split())
    try:
        key = bytes.fromhex(digits) if len(digits) == 64 else base64.b32decode(digits.upper().rstrip("=") + "====")
    except ValueError:
        key = b""
    if len(key) != 32:
        raise Failure("the key file has no drive key in it: 64 hexadecimal digits")
    return Secret("key", key)


def read_secret_file(name: str, parse: Callable[[str], Secret]) -> Secret:
    """Return the secret in the only line of a file; `-` is standard input."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise Failure(f"{name} cannot be read: {error.strerror}") from None
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in line:
        raise Failure(f"{name} has more than one line")
    try:
        return parse(line.decode())
    except UnicodeDecodeError:
        raise Failure(f"{name} is no text in UTF-8") from None


def type_passphrase() -> Secret:
    """Ask for the passphrase on the terminal."""
    if not sys.stdin.isatty():
        raise Failure("a --passphrase-file, --recovery-key-file or --key-file is needed")
    try:
        return passphrase_of(getpass.getpass("Passphrase, or recovery key: "))
    except EOFError:
        raise Failure("no passphrase was typed") from None


@dataclass(frozen=True, order=True)
class EpochName:
    """What an epoch's name says.  In this order the last one counts."""

    term: int
    epoch: int
    writer: int
    kind: str


@dataclass(frozen=True)
class Epoch:
    """An epoch's object as some folders show it; that it is whole is known after `Epochs.whole_copy`."""

    name: EpochName
    encrypted: bool
    schema: int
    time_ns: int
    predecessor: bytes
    object_hash: bytes
    header: bytes = field(repr=False)
    paths: list[Path] = field(default_factory=list)


class Epochs:
    """All epochs of a drive, and which of them can be loaded."""

    def __init__(self, stored: Stored, drive_key: bytes) -> None:
        self._drive_id = stored.drive_id
        self._drive_key = drive_key
        self._whole: dict[bytes, Path | None] = {}
        self._unreadable: dict[EpochName, str] = {}
        found: dict[tuple[EpochName, bytes], Epoch] = {}
        for text, paths in stored.names("meta").items():
            parts = EPOCH_NAME.fullmatch(text)
            if parts is None:
                continue
            name = EpochName(int(parts[1], 16), int(parts[2], 16), int(parts[3], 16), parts[4])
            for path in paths:
                try:
                    seen = self._parse_ends(name, path)
                except (Damaged, OSError) as error:
                    self._unreadable[name] = reason_of(error)
                else:
                    found.setdefault((name, seen.object_hash), seen).paths.append(path)
        self._found = sorted(found.values(), key=lambda seen: (seen.name, seen.object_hash), reverse=True)
        self._at = {(seen.name.epoch, seen.object_hash): seen for seen in self._found}
        if not self._found:
            self._explain_nothing()

    def _explain_nothing(self) -> None:
        if self._unreadable:
            reason = next(iter(self._unreadable.values()))
            raise Failure(f"none of the {len(self._unreadable)} epochs of the drive can be read: {reason}")
        raise Failure("there is no epoch in these folders (cuckoo/<drive id>/meta), so names and places are not known")

    def _parse_ends(self, name: EpochName, path: Path) -> Epoch:
        with path.open("rb") as file:
            head = file.read(EPOCH_HEADER.size)
            if file.seek(0, os.SEEK_END) < EPOCH_HEADER.size + EPOCH_FOOTER.size:
                raise Damaged("it is cut short")
            file.seek(-EPOCH_FOOTER.size, os.SEEK_END)
            footer_magic, *_, object_hash = EPOCH_FOOTER.unpack(file.read())
        magic, version, flags, kind, schema, drive, term, epoch, time_ns, writer, _, before, *_, mac = (
            EPOCH_HEADER.unpack(head)
        )
        if magic != b"CUCKOOEP" or footer_magic != b"CUCKOOEF":
            raise Damaged("it is damaged")
        header = head[:-HASH_BYTES]
        if not hmac.compare_digest(blake3(header, key=derive("epoch header", self._drive_key)).digest(), mac):
            raise Damaged("it is damaged, or belongs to another key than the one given")
        if version != FORMAT:
            raise Damaged(f"it has format {version}, this program knows {FORMAT}: get a newer one")
        if drive != self._drive_id or kind not in KINDS or EpochName(term, epoch, writer, KINDS[kind]) != name:
            raise Damaged("it lies under the name of another one")
        return Epoch(name, bool(flags & 1), schema, time_ns, before, object_hash, header)

    def whole_copy(self, seen: Epoch) -> Path | None:
        """Return a copy of which every byte is right; None if there is none."""
        if seen.object_hash not in self._whole:
            self._whole[seen.object_hash] = next((path for path in seen.paths if self._is_whole(path, seen)), None)
        return self._whole[seen.object_hash]

    def _is_whole(self, path: Path, seen: Epoch) -> bool:
        hasher = blake3(key=derive("epoch object", self._drive_key))
        try:
            with path.open("rb") as file:
                left = os.fstat(file.fileno()).st_size - HASH_BYTES
                while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
                    hasher.update(block)
                    left -= len(block)
        except OSError:
            return False
        return hmac.compare_digest(hasher.digest(), seen.object_hash)

    def before(self, seen: Epoch) -> Epoch | None:
        """Return the epoch that this one follows, if it is there."""
        found = self._at.get((seen.name.epoch - 1, seen.predecessor))
        return found if found is not None and found.name.term <= seen.name.term else None

    def parts(self, seen: Epoch) -> list[Epoch]:
        """Return what loading an epoch takes, a snapshot and the journals after it.  Raises: Damaged with why not."""
        parts = [seen]
        while True:
            part = parts[-1]
            if self.whole_copy(part) is None:
                raise Damaged(f"epoch {part.name.epoch} is damaged in every folder that has it")
            if part.schema != SCHEMA:
                raise Damaged(f"epoch {part.name.epoch} has schema {part.schema}, this program knows {SCHEMA}")
            if part.name.kind == "snapshot":
                return parts[::-1]
            before = self.before(part)
            if before is None:
                raise Damaged(f"epoch {part.name.epoch - 1} is missing, which epoch {part.name.epoch} follows")
            parts.append(before)

    def reason_against(self, seen: Epoch) -> str | None:
        """Return why an epoch cannot be loaded; None if it can."""
        try:
            self.parts(seen)
        except Damaged as error:
            return str(error)
        return None

    @cached_property
    def tip(self) -> Epoch:
        """The newest epoch that can be loaded: the drive."""
        for seen in self._found:
            if self.reason_against(seen) is None:
                return seen
        reason = self.reason_against(self._found[0])
        raise Failure(f"no epoch in these folders can be loaded; the newest cannot because {reason}")

    @cached_property
    def history(self) -> list[Epoch]:
        """The tip and all that is known before it, newest first."""
        line = [self.tip]
        while (before := self.before(line[-1])) is not None:
            line.append(before)
        return line

    def choose(self, number: int | None) -> Epoch:
        """Return the newest epoch, or the one with that number: of the drive's history, else of a branch beside it."""
        if number is None:
            return self.tip
        for seen in (*self.history, *self._found):
            if seen.name.epoch == number and self.reason_against(seen) is None:
                return seen
        known = sorted({seen.name.epoch for seen in self._found if self.reason_against(seen) is None})
        raise Failure(f"there is no epoch {number} here that can be loaded; there are {', '.join(map(str, known))}")

    def newer(self) -> Iterator[tuple[EpochName, str]]:
        """Yield what is newer than the tip, with the reason why it cannot be loaded."""
        known = {seen.name for seen in self._found}
        for seen in self._found:
            if seen.name > self.tip.name:
                yield seen.name, self.reason_against(seen) or ""
        for name, reason in sorted(self._unreadable.items()):
            if name > self.tip.name and name not in known:
                yield name, reason

    def lines(self) -> Iterator[str]:
        """Yield a line for each epoch, newest first."""
        for seen in self._found:
            remark = "the newest" if seen is self.tip else "" if seen in self.history else "a branch that was given up"
            reason = self.reason_against(seen)
            remark = f"cannot be loaded: {reason}" if reason is not None else remark
            yield f"epoch {seen.name.epoch}  {utc(seen.time_ns)}  {seen.name.kind:8}  {remark}".rstrip()

    def records(self, seen: Epoch) -> Iterator[bytes]:
        """Yield the plain segments of an epoch, each of whole records."""
        path = self.whole_copy(seen)
        assert path is not None, "only epochs that can be loaded are read"
        hasher = blake3(key=derive("epoch records", self._drive_key))
        key = derive("epoch key", self._drive_key + seen.header)
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size - EPOCH_FOOTER.size
            at = file.seek(EPOCH_HEADER.size)
            while at < end:
                sealed_bytes, plain_bytes = SEGMENT.unpack(file.read(SEGMENT.size))
                at += SEGMENT.size
                if max(sealed_bytes - 64, plain_bytes) > SEGMENT_BYTES_MAX or at + sealed_bytes > end:
                    raise Damaged("a segment is too long")
                body = file.read(sealed_bytes)
                if seen.encrypted:
                    body = decrypted(key, at, body, plain_bytes.to_bytes(4, "little"))
                at += sealed_bytes
                plain = decompressed(body, plain_bytes)
                hasher.update(plain)
                yield plain
            _, _, _, _, records_hash, _ = EPOCH_FOOTER.unpack(file.read())
        if hasher.digest() != records_hash:
            raise Damaged("its records have another hash")


def reason_of(error: Exception) -> str:
    """Return what went wrong, without the path that is named anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class RecordReader:
    """Reads the records of one segment."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __iter__(self) -> Iterator[tuple[int, bool, list[Value]]]:
        """Yield each record: number of the table, whether the row is gone, the key and, if it is not, the rest."""
        try:
            while self._at < len(self._data):
                first = self._take(1)[0]
                table, is_gone = first & 0x7F, first >= 0x80
                _, keys, columns = TABLES[table]
                count = keys if is_gone else len(columns.split())
                yield table, is_gone, [self._value() for _ in range(count)]
        except (KeyError, IndexError, UnicodeDecodeError):
            raise Damaged("it has a record that this program does not understand") from None

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise Damaged("a record is cut short")
        self._at += count
        return taken

    def _value(self) -> Value:
        first = self._take(1)[0]
        if first < 0x80:
            return first
        if 0x81 <= first <= 0x88:
            return int.from_bytes(self._take(first - 0x80), "little")
        if 0x91 <= first <= 0x98:
            return -1 - int.from_bytes(self._take(first - 0x90), "little")
        if first == 0xA0:
            return None
        if first in (0xA1, 0xA2):
            count = self._value()
            data = self._take(count if isinstance(count, int) else 0)
            return data.decode() if first == 0xA2 else data
        raise Damaged("it has a value that this program does not understand")


@dataclass(frozen=True)
class Node:
    """A file, folder or anything else that has names."""

    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Place:
    """Where a chunk of a file is stored.  `index`: its place in the file in chunks.  `pack`: None if not known."""

    index: int
    pack: int | None
    offset: int
    sealed_bytes: int
    plain_bytes: int
    digest: bytes


class Tree:
    """The metadata of one epoch, in a temporary database that SQLite keeps on the disk and deletes."""

    def __init__(self, epochs: Epochs, epoch: Epoch) -> None:
        # With an empty name; what does not fit into the cache (here 64 MiB) goes to a file without a name.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA cache_size = -65536")
        self._database.execute("PRAGMA journal_mode = OFF")
        for table, keys, columns in TABLES.values():
            names = columns.split()
            key = ", ".join(names[:keys])
            self._database.execute(f"CREATE TABLE {table} ({', '.join(names)}, PRIMARY KEY ({key})) WITHOUT ROWID")
        self._database.execute("CREATE TABLE restored (ino INTEGER PRIMARY KEY, path BLOB)")
        self._database.execute("BEGIN")
        for part in epochs.parts(epoch):
            try:
                for segment in epochs.records(part):
                    self._apply(RecordReader(segment))
            except Damaged as error:
                raise Failure(f"epoch {part.name.epoch} cannot be loaded: {error}; try an older --epoch") from None

    def _apply(self, records: Iterable[tuple[int, bool, list[Value]]]) -> None:
        for number, is_gone, values in records:
            table, keys, columns = TABLES[number]
            if is_gone:
                where = " AND ".join(f"{column} = ?" for column in columns.split()[:keys])
                self._database.execute(f"DELETE FROM {table} WHERE {where}", values)
            else:
                self._database.execute(
                    f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(values))})", values
                )

    def node(self, ino: int) -> Node | None:
        """Return a node."""
        row = self._database.execute(
            "SELECT ino, mode, uid, gid, rdev, nlink, size, atime, mtime FROM inode WHERE ino = ?", (ino,)
        ).fetchone()
        return None if row is None else Node(*row)

    def children(self, folder: int) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a folder, with the numbers of their nodes."""
        yield from self._database.execute("SELECT name, ino FROM dentry WHERE parent = ? ORDER BY cookie", (folder,))

    def find(self, path: bytes) -> int | None:
        """Return the number of the node with that path from the root."""
        ino = ROOT
        for name in path.split(b"/") if path else ():
            row = self._database.execute("SELECT ino FROM dentry WHERE parent = ? AND name = ?", (ino, name)).fetchone()
            if row is None:
                return None
            ino = row[0]
        return ino

    def target(self, ino: int) -> bytes:
        """Return what a symbolic link says."""
        row = self._database.execute("SELECT target FROM symlink WHERE ino = ?", (ino,)).fetchone()
        return bytes(row[0]) if row is not None else b""

    def xattrs(self, ino: int) -> list[tuple[bytes, bytes]]:
        """Return the extended attributes; ACLs last, for they may take the right to set the others away."""
        rows = self._database.execute("SELECT name, value FROM xattr WHERE ino = ? ORDER BY name", (ino,)).fetchall()
        return sorted(rows, key=lambda row: row[0].startswith(b"system."))

    def chunks(self, ino: int) -> Iterator[Place]:
        """Yield what a file consists of, in order; what is between is a hole."""
        yield from (
            Place(*row)
            for row in self._database.execute(
                "SELECT c.idx, v.pack, v.offset, v.length, v.plain, v.digest"
                " FROM chunk c LEFT JOIN version v ON v.version = c.version WHERE c.ino = ? ORDER BY c.idx",
                (ino,),
            )
        )

    def pack(self, number: int) -> tuple[bytes, str, int, dict[int, bytes]] | None:
        """Return a pack's id, how it is stored, its size, and the digests of its shares by their numbers."""
        row = self._database.execute("SELECT pack_id, policy, size FROM pack WHERE number = ?", (number,)).fetchone()
        if row is None:
            return None
        shares = self._database.execute("SELECT share, digest FROM share WHERE pack = ?", (number,))
        return row[0], row[1], row[2], dict(shares.fetchall())

    def first_path(self, ino: int) -> bytes | None:
        """Return where a node was restored; b"" where that failed, None if nobody tried."""
        row = self._database.execute("SELECT path FROM restored WHERE ino = ?", (ino,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_first_path(self, ino: int, path: bytes) -> None:
        """Remember where a node was restored."""
        self._database.execute("INSERT OR REPLACE INTO restored VALUES (?, ?)", (ino, path))


@cache
def inverse(number: int) -> int:
    """Return what `number`, 1 … 255, has to be multiplied by to get 1, in the field of the parity shares."""
    return next(other for other in range(1, 256) if product(number, other) == 1)


def product(one: int, other: int) -> int:
    """Multiply in the field of the parity shares: bytes as polynomials modulo 2, modulo 0x11d."""
    result = 0
    while other:
        if other & 1:
            result ^= one
        one = one << 1 ^ (0x11D if one & 0x80 else 0)
        other >>= 1
    return result


@cache
def products(factor: int) -> bytes:
    """Return the products of all bytes with `factor`, as a table for bytes.translate."""
    return bytes(product(factor, number) for number in range(256))


@lru_cache(maxsize=1024)
def factors_for(wanted: int, shares: tuple[int, ...]) -> tuple[int, ...]:
    """Return by which factors these shares are summed up to data share `wanted`; as many as there are data shares."""
    count = len(shares)
    # One equation for each data share: what the shares have of it, times the factors, is 1 for the wanted, else 0.
    rows = [
        [*((share == data) if share < count else inverse(share ^ data) for share in shares), int(data == wanted)]
        for data in range(count)
    ]
    for at in range(count):
        pivot = next(number for number in range(at, count) if rows[number][at])
        rows[at], rows[pivot] = rows[pivot], rows[at]
        scale = inverse(rows[at][at])
        rows[at] = [product(scale, value) for value in rows[at]]
        for number in range(count):
            if number != at and (factor := rows[number][at]):
                rows[number] = [value ^ product(factor, own) for value, own in zip(rows[number], rows[at], strict=True)]
    return tuple(row[count] for row in rows)


def summed(parts: Iterable[tuple[int, bytes]], length: int) -> bytes:
    """Return the sum of byte strings of one length, each times a factor."""
    total = 0
    for factor, part in parts:
        total ^= int.from_bytes(part.translate(products(factor)), "little")
    return total.to_bytes(length, "little")


@dataclass(frozen=True)
class Share:
    """An object of a pack in one folder, open."""

    number: int
    path: Path
    fd: int

    def read(self, start: int, length: int) -> bytes:
        """Return a range of it.  Raises: Damaged, OSError."""
        data = os.pread(self.fd, length, start)
        if len(data) != length:
            raise Damaged("it is cut short")
        return data


@dataclass
class Pack:
    """A pack with all of its shares that are there.  `data_shares`: 0 where each is a copy of the whole pack."""

    pack_id: bytes
    key: bytes
    data_shares: int
    share_bytes: int
    digests: dict[int, bytes]
    shares: list[Share]
    is_sorted: bool = False


class Packs:
    """Reads chunks, each from the first folder that has it whole, or from as many shares as it takes."""

    def __init__(self, stored: Stored, tree: Tree, drive_key: bytes, *, encrypted: bool) -> None:
        self._stored = stored
        self._tree = tree
        self._drive_key = drive_key
        self._encrypted = encrypted
        self._chunk_key = derive("chunk id", drive_key)
        self._share_key = derive("share digest", drive_key)
        self._open: OrderedDict[int, Pack] = OrderedDict()
        self.damaged: dict[Path, None] = {}

    def read(self, place: Place) -> bytes:
        """Return the bytes of a chunk.  Raises: Unreadable."""
        if place.pack is None:
            raise Unreadable("the metadata do not say where it is stored")
        if place.pack == 0:
            raise Unreadable("it never reached the clouds")
        pack = self._pack(place.pack)
        return self._computed(pack, place) if pack.data_shares else self._copied(pack, place)

    def _copied(self, pack: Pack, place: Place) -> bytes:
        reasons = []
        for share in pack.shares:
            try:
                return self._unseal(share.read(place.offset, place.sealed_bytes), place, pack)
            except (Damaged, OSError) as error:
                reasons.append(f"in {share.path} {reason_of(error)}")
                self.damaged[share.path] = None
        raise Unreadable("; ".join(reasons) or f"no folder has pack {pack.pack_id.hex()}, where it is")

    def _computed(self, pack: Pack, place: Place) -> bytes:
        """Read a chunk of an erasure-coded pack."""
        with suppress(Damaged, OSError):
            return self._unseal(self._joined(pack, place, self._direct), place, pack)
        if not pack.is_sorted:
            pack.shares.sort(key=lambda share: not self._is_whole(pack, share))
            pack.is_sorted = True
        distinct: dict[int, Share] = {}
        for share in pack.shares:
            distinct.setdefault(share.number, share)
        for numbers in islice(combinations(distinct, pack.data_shares), WAYS):
            chosen = [distinct[number] for number in sorted(numbers)]
            with suppress(Damaged, OSError):
                return self._unseal(self._joined(pack, place, self._sum_of(chosen)), place, pack)
        damaged = sum(share.path in self.damaged for share in distinct.values())
        raise Unreadable(
            f"pack {pack.pack_id.hex()}, where it is, needs {pack.data_shares} whole shares;"
            f" {len(distinct)} are there, of which {damaged} are damaged"
        )

    def _joined(self, pack: Pack, place: Place, read: Callable[[Pack, int, int, int], bytes]) -> bytes:
        """Return the sealed bytes of a chunk, put together from the ranges of the data shares that it lies in."""
        parts = []
        at, end = place.offset, place.offset + place.sealed_bytes
        while at < end:
            number, start = divmod(at, pack.share_bytes)
            length = min(end - at, pack.share_bytes - start)
            parts.append(read(pack, number, start, length))
            at += length
        return b"".join(parts)

    def _direct(self, pack: Pack, number: int, start: int, length: int) -> bytes:
        share = next((share for share in pack.shares if share.number == number), None)
        if share is None:
            raise Damaged("it is missing")
        return share.read(start, length)

    def _sum_of(self, chosen: list[Share]) -> Callable[[Pack, int, int, int], bytes]:
        numbers = tuple(share.number for share in chosen)

        def read(pack: Pack, number: int, start: int, length: int) -> bytes:
            factors = factors_for(number, numbers)
            used = [(factor, share) for factor, share in zip(factors, chosen, strict=True) if factor]
            return summed(((factor, share.read(start, length)) for factor, share in used), length)

        return read

    def _is_whole(self, pack: Pack, share: Share) -> bool:
        """Return whether a share has its digest; the metadata may not know one that was made since."""
        hasher = blake3(key=self._share_key)
        with suppress(OSError):
            for start in range(0, os.fstat(share.fd).st_size, BLOCK_BYTES):
                hasher.update(os.pread(share.fd, BLOCK_BYTES, start))
            if hasher.digest() == pack.digests.get(share.number):
                return True
        if share.number in pack.digests:
            self.damaged[share.path] = None
        return False

    def _unseal(self, sealed: bytes, place: Place, pack: Pack) -> bytes:
        if self._encrypted:
            associated = FORMAT.to_bytes(2, "little") + self._stored.drive_id + place.digest
            sealed = decrypted(pack.key, place.offset, sealed, associated)
        plain = decompressed(sealed, place.plain_bytes)
        if not hmac.compare_digest(blake3(plain, key=self._chunk_key).digest(), place.digest):
            raise Damaged("it is damaged")
        return plain

    def _pack(self, number: int) -> Pack:
        pack = self._open.get(number)
        if pack is None:
            pack = self._open[number] = self._find(number)
            if len(self._open) > OPEN_PACKS:
                _, oldest = self._open.popitem(last=False)
                for share in oldest.shares:
                    os.close(share.fd)
        self._open.move_to_end(number)
        return pack

    def _find(self, number: int) -> Pack:
        row = self._tree.pack(number)
        if row is None:
            raise Unreadable("the metadata do not say where it is stored")
        pack_id, policy, size, digests = row
        known = re.fullmatch(r"(\d+)(?:\+(\d+))?", policy)
        if known is None:
            raise Unreadable(f"it is stored as {policy!r}, which this program does not know: get a newer one")
        data_shares = int(known[1]) if known[2] else 0
        numbers = {*digests, *range(min(256, int(known[1]) + int(known[2] or 0)))}
        return Pack(
            pack_id=pack_id,
            key=derive("pack key", self._drive_key + pack_id),
            data_shares=data_shares,
            share_bytes=-(-size // data_shares) if data_shares else size,
            digests=digests,
            shares=list(self._open_shares(pack_id, sorted(numbers))),
        )

    def _open_shares(self, pack_id: bytes, numbers: Iterable[int]) -> Iterator[Share]:
        for number in numbers:
            for folder in self._stored.folders:
                path = folder / "packs" / pack_id.hex()[:2] / f"{pack_id.hex()}.{number}"
                try:
                    yield Share(number, path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:
                    self.damaged[path] = None


@contextmanager
def reachable(path: bytes) -> Iterator[bytes]:
    """Yield a way to `path` that is short enough for the kernel, however deep it lies."""
    folder = -1
    try:
        while len(path) > PATH_BYTES:
            cut = path.rindex(b"/", 0, PATH_BYTES)
            deeper = os.open(path[:cut], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if folder >= 0:
                os.close(folder)
            folder = deeper
            path = b"/proc/self/fd/%d%s" % (folder, path[cut:])
        yield path
    finally:
        if folder >= 0:
            os.close(folder)


class Selection:
    """Which paths are wanted; without any, all."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        clean = (b"/".join(part for part in path.split(b"/") if part not in (b"", b".")) for path in paths)
        self.paths: Final = tuple(clean) or (b"",)

    def has(self, path: bytes) -> bool:
        """Whether `path` is wanted, or leads to something that is."""
        return any(is_below(path, wanted) or is_below(wanted, path) for wanted in self.paths)


def is_below(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder`, or lies in it; the root is b""."""
    return not folder or path == folder or path.startswith(folder + b"/")


class Restorer:
    """Restores the tree below `target`; what cannot be is named, counted in `problems`, and left out."""

    def __init__(self, tree: Tree, packs: Packs, target: bytes, selection: Selection, *, keep_damaged: bool) -> None:
        self._tree = tree
        self._packs = packs
        self._target = target
        self._selection = selection
        self._keep_damaged = keep_damaged
        self._is_root = os.geteuid() == 0
        self._told_s = time.monotonic()
        self._has_told = False
        self.problems = 0
        self.names = 0
        self.bytes = 0

    def run(self) -> None:
        """Restore everything that is selected."""
        waiting: list[tuple[bytes, int, bool]] = [(b"", ROOT, False)]
        while waiting:
            path, ino, is_filled = waiting.pop()
            node = self._tree.node(ino)
            if node is None or not node.is_folder:
                raise Failure("the epoch has no root folder; try an older --epoch")
            if is_filled:
                # After what is in it: that would move its times, inherit its default ACL, or be forbidden by its mode.
                self._set_attributes(path, node)
            elif self._make_folder(path, node):
                waiting.append((path, ino, True))
                waiting += [(below, number, False) for below, number in reversed(self._fill(path, ino))]
        if self._has_told:
            print(file=sys.stderr)

    def _fill(self, folder: bytes, ino: int) -> list[tuple[bytes, int]]:
        """Restore everything in a folder but the folders in it, which are returned."""
        folders = []
        for name, number in self._tree.children(ino):
            path = folder + b"/" + name if folder else name
            if not self._selection.has(path):
                continue
            node = self._tree.node(number)
            if node is None or name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                self._problem(path, "the metadata are wrong here")
            elif node.is_folder:
                folders.append((path, number))
            else:
                self._restore(path, node)
        return folders

    def _make_folder(self, path: bytes, node: Node) -> bool:
        if self._tree.first_path(node.ino) is not None:
            self._problem(path, "the metadata are wrong here: it is in two folders")
            return False
        try:
            if path:
                with self._reach(path) as way:
                    os.mkdir(way, 0o700)
        except OSError as error:
            self._problem(path, f"cannot be made: {error.strerror}, and so nothing in it", error)
            return False
        self._tree.set_first_path(node.ino, path)
        self._count(0)
        return True

    def _restore(self, path: bytes, node: Node) -> None:
        if node.nlink > 1 and self._link(path, node):
            return
        is_made = False
        try:
            is_made = self._make(path, node)
        except Unreadable as error:
            self._problem(path, str(error))
        except OSError as error:
            self._problem(path, f"cannot be made: {error.strerror}", error)
        if is_made:
            self._set_attributes(path, node)
            self._count(0)
        if node.nlink > 1:
            self._tree.set_first_path(node.ino, path if is_made else b"")

    def _link(self, path: bytes, node: Node) -> bool:
        """Restore another name of a file; return False if it has to be made itself."""
        first = self._tree.first_path(node.ino)
        if first is None:
            return False
        if not first:
            self._problem(path, "it is another name of a file that could not be restored")
            return True
        try:
            with self._reach(first) as old, self._reach(path) as new:
                os.link(old, new, follow_symlinks=False)
        except OSError as error:
            self._problem(path, f"is no hard link to {shown(first)} but a file of its own: {error.strerror}", error)
            return False
        self._count(0)
        return True

    def _make(self, path: bytes, node: Node) -> bool:
        """Make anything but a folder; return False if it was left out."""
        with self._reach(path) as way:
            if stat.S_ISREG(node.mode):
                return self._write(path, way, node)
            if stat.S_ISLNK(node.mode):
                os.symlink(self._tree.target(node.ino), way)
            else:
                os.mknod(way, stat.S_IFMT(node.mode) | 0o600, node.rdev)
            return True

    def _write(self, path: bytes, way: bytes, node: Node) -> bool:
        fd = os.open(way, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        is_whole = False
        try:
            os.ftruncate(fd, node.size)
            lost = 0
            for place in self._tree.chunks(node.ino):
                start = place.index * CHUNK_BYTES
                try:
                    # What a chunk has beyond the end of its file was cut off; what it lacks are zeros.
                    self._write_all(fd, self._packs.read(place)[: max(0, node.size - start)], start)
                except Unreadable as error:
                    lost += 1
                    if not self._keep_damaged:
                        raise Unreadable(f"its part at byte {start} cannot be read: {error}") from None
                    self._problem(path, f"has zeros from byte {start} on, a part that cannot be read: {error}")
            is_whole = True
            return True
        finally:
            os.close(fd)
            if not is_whole:
                os.unlink(way)

    def _write_all(self, fd: int, data: bytes, start: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(fd, rest, start)
            rest, start = rest[written:], start + written
        self._count(len(data), names=0)

    def _set_attributes(self, path: bytes, node: Node) -> None:
        with self._reach(path) as way:
            if self._is_root:
                self._attempt(path, "owner", lambda: os.chown(way, node.uid, node.gid, follow_symlinks=False))
            for name, value in self._tree.xattrs(node.ino):
                self._set_xattr(path, way, name, value)
            if not stat.S_ISLNK(node.mode):
                self._attempt(path, "mode", lambda: os.chmod(way, self._mode(node)))
            times_ns = (node.atime_ns, node.mtime_ns)
            self._attempt(path, "times", lambda: os.utime(way, ns=times_ns, follow_symlinks=False))

    def _set_xattr(self, path: bytes, way: bytes, name: bytes, value: bytes) -> None:
        what = f"attribute {shown(name)}"
        self._attempt(path, what, lambda: os.setxattr(way, name, value, follow_symlinks=False))

    def _mode(self, node: Node) -> int:
        mode = stat.S_IMODE(node.mode)
        # Whoever is not root becomes the owner of everything: a program must not run with his rights for that.
        if not self._is_root and not node.is_folder and node.uid != os.geteuid():
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        return mode

    def _attempt(self, path: bytes, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, OverflowError) as error:
            reason = reason_of(error)
            self._problem(path, f"{what} not restored: {reason}", error if isinstance(error, OSError) else None)

    @contextmanager
    def _reach(self, path: bytes) -> Iterator[bytes]:
        with reachable(self._target + b"/" + path if path else self._target) as way:
            yield way

    def _problem(self, path: bytes, text: str, error: OSError | None = None) -> None:
        if error is not None and error.errno in HOPELESS:
            raise Failure(
                f"stopped at {shown(path)}: {error.strerror}; {self.names} names were restored before it", status=1
            )
        self.problems += 1
        say(f"{shown(path) or '/'}: {text}")

    def _count(self, written_bytes: int, *, names: int = 1) -> None:
        self.names += names
        self.bytes += written_bytes
        if sys.stderr.isatty() and time.monotonic() - self._told_s > PROGRESS_S:
            self._told_s, self._has_told = time.monotonic(), True
            print(f"\r{self.names} names, {self.bytes >> 20} MiB ", end="", file=sys.stderr, flush=True)


def prepare_target(target: Path) -> bytes:
    """Make the folder in which to restore; return its path."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise Failure(f"{target} is not empty; give a new folder to --to, or an empty one")
    except OSError as error:
        raise Failure(f"{target} cannot be used: {error.strerror}") from None
    return os.fsencode(target.resolve())


def list_names(tree: Tree, selection: Selection) -> Iterator[str]:
    """Yield the path of everything that is selected, folders with a slash."""
    waiting, seen = [(b"", ROOT)], {ROOT}
    while waiting:
        folder, ino = waiting.pop()
        for name, number in tree.children(ino):
            path = folder + b"/" + name if folder else name
            if not selection.has(path):
                continue
            node = tree.node(number)
            is_folder = node is not None and node.is_folder
            yield shown(path) + ("/" if is_folder else "")
            if is_folder and number not in seen:
                seen.add(number)
                waiting.append((path, number))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="extract.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="a cloud, or a copy of one")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", metavar="DIR", type=Path, help="restore into this folder, which is new or empty")
    what.add_argument("--list", action="store_true", help="show which states of the drive (epochs) can be restored")
    what.add_argument("--list-names", action="store_true", help="show what is in the drive")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--passphrase-file", metavar="F", help="file with the passphrase (-: standard input)")
    secret.add_argument("--recovery-key-file", metavar="F", help="file with the recovery key (-: standard input)")
    secret.add_argument("--key-file", metavar="F", help="key file of a machine that had the drive")
    parser.add_argument("--epoch", metavar="N", type=int, help="an older state; default: the newest")
    parser.add_argument("--drive", metavar="ID", help="which drive, where there are several; its beginning is enough")
    parser.add_argument(
        "--only", metavar="PATH", action="append", default=[], type=os.fsencode, help="only this file or folder"
    )
    parser.add_argument("--keep-damaged", action="store_true", help="keep damaged files, with zeros for what is lost")
    return parser.parse_args(arguments)


def given_secret(options: argparse.Namespace) -> Secret | None:
    """Return the secret that an option names."""
    if options.passphrase_file is not None:
        return read_secret_file(options.passphrase_file, passphrase_of)
    if options.recovery_key_file is not None:
        return read_secret_file(options.recovery_key_file, recovery_key_of)
    if options.key_file is not None:
        return read_secret_file(options.key_file, drive_key_of)
    return None


def restore(options: argparse.Namespace) -> int:
    """Do what the command line says; return the exit status."""
    stored = find_drive(options.folders, options.drive)
    drive_key = find_drive_key(stored, given_secret(options))
    epochs = Epochs(stored, drive_key)
    if options.list:
        print(f"drive {stored.drive_id.hex()}", *epochs.lines(), sep="\n")
        return 0
    epoch = epochs.choose(options.epoch)
    missed = list(epochs.newer()) if options.epoch is None else []
    for name, reason in missed:
        say(f"epoch {name.epoch} is newer and cannot be loaded: {reason}")
    tree = Tree(epochs, epoch)
    selection = Selection(options.only)
    for path in selection.paths:
        if tree.find(path) is None:
            raise Failure(f"there is no {shown(path)} in epoch {epoch.name.epoch}; --list-names shows what there is")
    if options.list_names:
        for line in list_names(tree, selection):
            print(line)
        return 0
    packs = Packs(stored, tree, drive_key, encrypted=epoch.encrypted)
    target = prepare_target(options.to)
    restorer = Restorer(tree, packs, target, selection, keep_damaged=options.keep_damaged)
    restorer.run()
    for damaged in packs.damaged:
        say(f"{damaged} is damaged; whatever could not be taken from another folder is named above")
    if os.geteuid() != 0:
        say("owners are not restored: that needs root")
    size = f"{restorer.names} names, {restorer.bytes} bytes"
    print(f"restored epoch {epoch.name.epoch} of {utc(epoch.time_ns)} to {options.to}: {size}")
    if restorer.problems:
        say(f"{restorer.problems} problems, named above; everything else is restored")
    if restorer.problems and epoch is not epochs.tip:
        say("content that only older epochs need is deleted when they are no longer kept; newer ones may have it all")
    return 1 if restorer.problems or missed else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return restore(parse_arguments(arguments))
    except Failure as error:
        say(str(error))
        return error.status
    except (OSError, sqlite3.Error) as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted; what is restored so far stays")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
