"""The Cloud protocol: six calls that every storage must offer, and nothing else is ever asked of it.

Used by worker processes (see cuckoo_mount/workers.py) through clouds/registry.py; the daemon never calls a driver
itself.
A Cloud object is built from its picklable `CloudSettings` inside a worker, may be used by several threads of that
worker at a time, and blocks.  Objects are write-once: the same name always carries the same bytes, so every call may
be repeated.  Errors are cuckoo_mount.errors.CloudError and its children only, with `cloud` and `name` filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import field, frozen, validators


@frozen(slots=True, kw_only=True)
class CloudSettings:
    """Everything needed to open a cloud, in this process or another; picklable and hashable.

    `url`: any PyFilesystem URL or a plain absolute path, without secrets where they can be kept apart.
    `options`, `secrets`: sorted (key, value) pairs from `--option` and `--secret`.
    `timeout_s`: limit on one network operation within a call.
    """

    name: str
    url: str
    options: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_s: float = field(default=30.0, validator=validators.gt(0))


@frozen(slots=True, kw_only=True)
class Capabilities:
    """What this storage can do, as data; callers ask here and never for a driver's name.

    `max_object_bytes` None: no limit known.
    `atomic_put`: a put that fails or is cut never leaves a shorter object under the name.
    `native_range`: `get_range` transfers only the range asked for.
    `reports_space`: `space` answers.
    `durable_put`: when put returned, a power cut of the storage itself does not lose the object.
    `tells_of_deleted`: it is a `TellsOfDeleted`.
    `delete_batch`: how many objects `delete_many` takes at a time; 1: it is no `DeletesMany`.
    """

    max_object_bytes: int | None = None
    atomic_put: bool = True
    native_range: bool = True
    reports_space: bool = False
    durable_put: bool = True
    tells_of_deleted: bool = False
    delete_batch: int = 1


@frozen(slots=True)
class ObjectInfo:
    """An object as a listing shows it: full name below the cloud's root, size in bytes."""

    name: str
    size_bytes: int


@frozen(slots=True)
class Space:
    """Room on a cloud in bytes: in all, and still free for us."""

    total_bytes: int
    free_bytes: int


class Cloud(Protocol):
    """One opened storage.  Names are `/`-separated, of [a-z0-9._-], at most 200 characters, never start with `/`."""

    @property
    def settings(self) -> CloudSettings:
        """What it was built from."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; constant for the life of the object."""

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Store `data` under `name`, atomically visible and, where the storage can, durable when this returns.

        Repeating it with the same data is harmless.  Parents are made as needed.
        Raises: CloudUnavailable, CloudTimeout, CloudFull, CloudRefused; the object is then absent, or whole.
        """

    def get(self, name: str) -> bytes:
        """Return the whole object.  Raises: CloudMissing if it is not there while the cloud is; CloudUnavailable, …"""

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        """Return exactly `length_bytes` bytes from `offset` (both ≥ 0).

        Raises: CloudCorrupt if the object ends before; otherwise as `get`.
        """

    def delete(self, name: str) -> None:
        """Remove the object; one that is not there is no error."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose name starts with `prefix`, in no particular order, across all pages.

        `prefix` ends with `/` or is empty.  A prefix that does not exist yields nothing.  Leftovers of interrupted
        puts that could never be read as an object are not listed.
        """

    def space(self) -> Space | None:
        """Return the room there is, or None where the storage does not tell."""

    def close(self) -> None:
        """Give back connections.  May be called twice; the object must not be used afterwards."""


class DeletesMany(Cloud, Protocol):
    """A cloud that deletes several objects by fewer requests than one for each, as its capabilities say."""

    def delete_many(self, names: Sequence[str]) -> None:
        """Remove objects, 1 to `capabilities.delete_batch`; those that are not there are no error.

        Raises: as `delete`; some may be gone then.
        """


class TellsOfDeleted(Cloud, Protocol):
    """A cloud that knows what becomes of deleted objects there."""

    def of_deleted(self) -> str:
        """Return that in words, for people: kept where, for how long, and what ends it.  Raises: CloudError."""
