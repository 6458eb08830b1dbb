"""From settings to an opened cloud: a table of schemes and drivers, and the clouds this process has open.

Used by jobs.py inside workers, and by commands to check a URL (`parse_place`, which opens nothing).  Any thread.
A new driver is one row in `DRIVERS`.  Drivers are imported when first asked for, to keep workers small.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import unquote

from attrs import evolve, frozen

from cuckoo_mount.clouds import identity
from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.errors import UsageError

OPEN_CLOUDS_MAX: Final = 16
"""Clouds kept open per process; the one not used for longest makes room."""
TESTING_VARIABLE: Final = "CUCKOO_TESTING"
_FAULTY: Final = "faulty"
_SCHEME: Final = re.compile(r"[a-z][a-z0-9.-]*")
_FAMILY_MEMBER: Final = re.compile(r"[a-z][a-z0-9_.-]*(?:\+[a-z][a-z0-9_.-]*)*")

# Options that mean something to us, whatever the driver; a dot in their name keeps them apart from its own.
EXPECTED_DRIVE: Final = "expect.drive"
EXPECTED_CLOUD: Final = "expect.cloud"
FAULT_PLAN: Final = "fault.plan"
REQUESTS_PER_SECOND: Final = "limit.requests"
OUR_OPTIONS: Final = frozenset({EXPECTED_DRIVE, EXPECTED_CLOUD, FAULT_PLAN, REQUESTS_PER_SECOND})

OpenDriver = Callable[[CloudSettings, str], Cloud]


@frozen(slots=True, kw_only=True)
class Driver:
    """How the clouds of some schemes are opened.

    `opener`: "module:function", called with the settings and the place (for a `folder` its absolute path, else the
    URL).  `folder`: the rest of the URL is a path on this machine, taken literally but for `%41`.  `family`: what
    begins so, and goes on, is one of its schemes, too.
    `login`: "module:function" that begins a login (see logins.py), and `login_secrets`: the secrets that one gives.
    """

    schemes: tuple[str, ...]
    opener: str
    folder: bool = False
    login: str = ""
    login_secrets: tuple[str, ...] = ()
    family: str = ""


GENERIC: Final = Driver(schemes=(), opener="cuckoo_mount.clouds.pyfilesystem:open_pyfilesystem_cloud")
DRIVERS: Final = (
    Driver(schemes=("osfs", "file"), opener="cuckoo_mount.clouds.osfs:open_folder_cloud", folder=True),
    Driver(schemes=("s3",), opener="cuckoo_mount.clouds.s3:open_s3_cloud"),
    Driver(schemes=("ssh", "sftp"), opener="cuckoo_mount.clouds.sftp:open_sftp_cloud"),
    Driver(schemes=("ftp", "ftps"), opener="cuckoo_mount.clouds.ftp:open_ftp_cloud"),
    Driver(schemes=("webdav", "webdavs"), opener="cuckoo_mount.clouds.webdav:open_webdav_cloud"),
    Driver(
        schemes=("dropbox",),
        opener="cuckoo_mount.clouds.dropbox:open_dropbox_cloud",
        login="cuckoo_mount.clouds.dropboxlogin:begin_dropbox_login",
        login_secrets=("refresh_token", "access_token"),
    ),
    Driver(schemes=(), family="fsspec+", opener="cuckoo_mount.clouds.fsspeccloud:open_fsspec_cloud"),
)
REFUSED: Final[dict[str, str]] = {
    "zip": "an archive has to be rewritten as a whole for every change; use a folder",
    "tar": "an archive has to be rewritten as a whole for every change; use a folder",
    "cuckoo": "a drive cannot be one of its own clouds; name the storage below it",
    "http": "if it is a WebDAV server, write webdav://host/folder; if it speaks S3, s3://bucket?endpoint_url=http://host",
    "https": "if it is a WebDAV server, write webdavs://host/folder; if it speaks S3, s3://bucket?endpoint_url=https://host",
}
"""Schemes that are not opened, and why."""


@frozen(slots=True)
class Place:
    """Where a cloud is: its scheme, the driver for it, and what that driver is given.  `faulty`: for tests only."""

    scheme: str
    driver: Driver
    place: str
    faulty: bool


def parse_place(url: str) -> Place:
    """Return what `url`, a PyFilesystem URL or a path that starts with `/` or `~`, names.  Opens nothing.

    Raises: UsageError with a line that says what to write instead.
    """
    rest = url.removeprefix(f"{_FAULTY}+")
    faulty = rest != url
    if faulty and os.environ.get(TESTING_VARIABLE) != "1":
        raise UsageError(f"{_FAULTY}+… makes a cloud fail on purpose; only tests with {TESTING_VARIABLE}=1 may use it")
    scheme, separator, path = rest.partition("://")
    if not separator:
        return Place("osfs", DRIVERS[0], _absolute(rest, url), faulty)
    driver = _driver(scheme)
    return Place(scheme, driver, _absolute(unquote(path), url) if driver.folder else rest, faulty)


def _absolute(path: str, url: str) -> str:
    if not path:
        raise UsageError(
            f"{url!r} names no folder; write a path such as /srv/cloud, or a URL such as osfs:///srv/cloud"
        )
    if "\0" in path:
        raise UsageError(f"{url!r} has a zero byte in it, which no path can have")
    expanded = os.path.expanduser(path)
    if not os.path.isabs(expanded):
        hint = os.path.abspath(expanded)
        raise UsageError(f"{url!r} is a relative path and would mean another folder elsewhere; write {hint}")
    return os.path.normpath(expanded)


def _driver(scheme: str) -> Driver:
    if scheme in REFUSED:
        raise UsageError(f"{scheme}:// cannot be a cloud: {REFUSED[scheme]}")
    for driver in DRIVERS:
        if scheme in driver.schemes or (driver.family and _is_of_family(scheme, driver.family)):
            return driver
    known = known_schemes()
    if scheme in known:
        return GENERIC
    close = difflib.get_close_matches(scheme, known, n=1)
    hint = f"did you mean {close[0]}://? Known" if close else "known"
    wrong = f"{scheme}:// is not known" if _SCHEME.fullmatch(scheme) else f"{scheme!r} is not the name of a scheme"
    raise UsageError(f"{wrong}; {hint}: a path, {', '.join(f'{name}://' for name in known)}")


def _is_of_family(scheme: str, family: str) -> bool:
    return scheme.startswith(family) and _FAMILY_MEMBER.fullmatch(scheme, len(family)) is not None


def known_schemes() -> list[str]:
    """Return every scheme a cloud can have with what is installed, sorted.  Imports PyFilesystem.

    Of a family, one name stands for all: `fsspec+PROTOCOL`.
    """
    from cuckoo_mount.clouds import fsimport

    own = {scheme for driver in DRIVERS for scheme in driver.schemes}
    own |= {f"{driver.family}PROTOCOL" for driver in DRIVERS if driver.family}
    # Of a family, PyFilesystem may have been told single ones.
    others = {scheme for scheme in fsimport.known_schemes() if "+" not in scheme}
    return sorted((own | others) - REFUSED.keys())


class _Slot:
    """A place in the cache: whoever takes `lock` first opens the cloud, the others wait for that."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cloud: Cloud | None = None


_slots: Final[OrderedDict[CloudSettings, _Slot]] = OrderedDict()
_slots_lock: Final = threading.Lock()


def open_cloud(settings: CloudSettings) -> Cloud:
    """Return the cloud for `settings`, opened now or before by this process.  Blocks; never close what it returns.

    With the options `expect.drive` and `expect.cloud` (see `expecting`) the cloud is used only after its drive.json was
    read and names both: a worker started after a disk was unmounted must not take the empty mountpoint for the cloud.
    Raises: UsageError; CloudUnavailable, CloudRefused, CloudNotOurs, CloudCorrupt.  A failure is not remembered.
    """
    with _slots_lock:
        slot = _slots.setdefault(settings, _Slot())
        _slots.move_to_end(settings)
        # Not closed: another thread may be using it.  Its connections go with the last reference.
        while len(_slots) > OPEN_CLOUDS_MAX:
            _slots.popitem(last=False)
    with slot.lock:
        if slot.cloud is None:
            slot.cloud = _open(settings)
        return slot.cloud


def forget_cloud(settings: CloudSettings) -> None:
    """Open the cloud anew when it is next asked for; calls under way go on with the old one."""
    with _slots_lock:
        _slots.pop(settings, None)


def expecting(settings: CloudSettings, drive_id: bytes, cloud_id: bytes) -> CloudSettings:
    """Return `settings` for a cloud that is used only where drive.json names these ids; see `open_cloud`."""
    options = {**dict(settings.options), EXPECTED_DRIVE: drive_id.hex(), EXPECTED_CLOUD: cloud_id.hex()}
    return evolve(settings, options=tuple(sorted(options.items())))


def without_expectations(settings: CloudSettings) -> CloudSettings:
    """Return `settings` for a place that does not carry a drive.json yet."""
    kept = tuple(pair for pair in settings.options if pair[0] not in (EXPECTED_DRIVE, EXPECTED_CLOUD))
    return evolve(settings, options=kept)


def _open(settings: CloudSettings) -> Cloud:
    place = parse_place(settings.url)
    options = dict(settings.options)
    _check_options(settings, place)
    open_driver = cast(OpenDriver, load(place.driver.opener))
    cloud = open_driver(settings, place.place)
    if place.faulty or FAULT_PLAN in options:
        # By name: the layers below do not import testing/, which imports them.
        make_faulty = cast(Callable[[Cloud, str], Cloud], load("cuckoo_mount.testing.faulty:FaultyCloud"))
        cloud = make_faulty(cloud, options.get(FAULT_PLAN, ""))
    if EXPECTED_DRIVE in options:
        drive_id, cloud_id = (bytes.fromhex(options[key]) for key in (EXPECTED_DRIVE, EXPECTED_CLOUD))
        identity.check_identity(cloud, drive_id, cloud_id)
    return cloud


def load(path: str) -> object:
    """Return what "module:name" names, importing the module.  Raises: ImportError, AttributeError."""
    module, _, attribute = path.partition(":")
    found: object = getattr(importlib.import_module(module), attribute)
    return found


def _check_options(settings: CloudSettings, place: Place) -> None:
    """Raises: UsageError for an option that nobody would look at: it is a typing mistake or a false hope."""
    keys = [key for key, _ in (*settings.options, *settings.secrets)]
    if FAULT_PLAN in keys and os.environ.get(TESTING_VARIABLE) != "1":
        raise UsageError(f"option {FAULT_PLAN} is for tests with {TESTING_VARIABLE}=1 only; leave it out")
    unknown = [key for key in keys if key not in OUR_OPTIONS and (place.driver.folder or "." in key)]
    if unknown:
        raise UsageError(f"cloud {settings.name}: {place.scheme}:// has no option {unknown[0]!r}; leave it out")
