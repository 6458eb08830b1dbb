"""What this machine's copy knows of its own epochs: which objects there are, and which one it is at.

Used by joining.py and engine.py.  Kept as local settings of the metadata, so that it changes in the same transaction
as the outbox; read with the store closed at mount.  Pure but for `from_local`'s parsing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import field, frozen

from cuckoo_mount.epochformat import EPOCH_HEADER_BYTES, EpochHeader, EpochName, pack_epoch_header, unpack_epoch_header
from cuckoo_mount.epochs.chain import EpochObject
from cuckoo_mount.errors import FormatError, MetadataError

COUNT_MAX: Final = 10_000
OBJECT_PREFIX: Final = "epoch.object."
DURABLE: Final = "epoch.durable"
"""Local setting: the number of the newest epoch that was seen on as many clouds as it takes."""
LOCAL_EPOCH: Final = "epoch"
"""Local setting: what is changed now belongs to the epoch with this number (metadata/schema.py, `born_epoch`)."""


@frozen(slots=True)
class EpochStatus:
    """How far the metadata are on the clouds.  Contract: `status --json`, `epoch`.

    `local`: the newest epoch made; `cloud`: the newest durable one, None if there is none; `age_s`: how old that is,
    0 if nothing changed since.  `changes`: rows that are in no epoch on any cloud, at most `COUNT_MAX`.
    """

    local: int
    cloud: int | None
    age_s: float | None
    changes: int


@frozen(slots=True)
class Entry:
    """One epoch's object.  `size_bytes`: None where it was never here whole."""

    header: EpochHeader
    object_hash: bytes
    size_bytes: int | None

    @property
    def name(self) -> EpochName:
        """Of the object."""
        return self.header.name

    def as_setting(self) -> str:
        """Return it as text."""
        head = pack_epoch_header(self.header).hex()
        return json.dumps({"head": head, "hash": self.object_hash.hex(), "size": self.size_bytes})


def _number(entry: Entry) -> int:
    return entry.name.epoch


def _in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=_number))


@frozen(slots=True)
class Ledger:
    """The epochs of one line, each named by the next one, as far as they are known; oldest first.

    `durable`: number of the newest one that was durable when it was looked at last; 0: none.
    """

    entries: tuple[Entry, ...] = field(default=(), converter=_in_order)
    durable: int = 0

    @property
    def tip(self) -> Entry | None:
        """The epoch that the copy is at; None: it never had one."""
        return self.entries[-1] if self.entries else None

    @property
    def epoch(self) -> int:
        """Its number; 0: none."""
        return self.entries[-1].name.epoch if self.entries else 0

    @property
    def parts(self) -> tuple[Entry, ...]:
        """What loading the tip takes: the newest snapshot and the journals after it; empty if that is not known."""
        for place in range(len(self.entries) - 1, -1, -1):
            if self.entries[place].name.kind == "snapshot":
                return self.entries[place:]
        return ()

    def find(self, name: EpochName) -> Entry | None:
        """Return the entry of an object."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def as_local(self) -> dict[str, str | None]:
        """Return it as local settings."""
        settings: dict[str, str | None] = {f"{OBJECT_PREFIX}{entry.name}": entry.as_setting() for entry in self.entries}
        return settings | {DURABLE: str(self.durable)}


def from_local(settings: Mapping[str, str]) -> Ledger:
    """Return what local settings say.  Raises: MetadataError."""
    try:
        entries = [_entry(value) for key, value in settings.items() if key.startswith(OBJECT_PREFIX)]
        return Ledger(entries, int(settings.get(DURABLE, "0")))
    except (ValueError, KeyError, TypeError, FormatError) as error:
        raise MetadataError(f"what the metadata know of their epochs is damaged: {error}") from None


def from_chain(history: Iterable[EpochObject], sizes: Mapping[EpochName, int], durable: int) -> Ledger:
    """Return the ledger of a copy that was just brought to the end of `history`."""
    return Ledger([Entry(part.header, part.object_hash, sizes.get(part.name)) for part in history], durable)


def _entry(text: str) -> Entry:
    values = json.loads(text)
    # The keyed hash behind the header is not kept: what was entered here had been verified.
    header = unpack_epoch_header(bytes.fromhex(values["head"]).ljust(EPOCH_HEADER_BYTES, b"\0"))
    size = values["size"]
    return Entry(header, bytes.fromhex(values["hash"]), None if size is None else int(size))
