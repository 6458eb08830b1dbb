"""Logins in a browser: for clouds whose secrets are not chosen by the user, but given by the service.

Used by commands.  Any thread; `Login.finish` blocks for the network.  Which drivers have one, registry.py says.  The
service shows a code at the end, which the user pastes: that works on a machine without a browser, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import DRIVERS, Driver, load, parse_place


class Login(Protocol):
    """A login that has begun, and is lost with this object."""

    @property
    def url(self) -> str:
        """The page to open in a browser.  Nothing secret: without this object, its code is of no use."""

    def finish(self, code: str) -> dict[str, str]:
        """Return the secrets that open the cloud; an empty one is to be taken away.  Blocks for the network.

        Raises: CloudNeedsLogin for a wrong code or one that has expired, CloudUnavailable.
        """


def driver_with_login(url: str) -> Driver | None:
    """Return the driver for a cloud's URL if it has a login in a browser.  Imports and opens nothing."""
    scheme = url.partition("://")[0].rpartition("+")[2] if "://" in url else ""
    return next((driver for driver in DRIVERS if driver.login and scheme in driver.schemes), None)


def begin_login(settings: CloudSettings) -> Login:
    """Begin a login to a cloud whose driver has one.  Imports what it needs; sends nothing.

    Raises: UsageError for settings that cannot be, or that lack what a login needs.
    """
    place = parse_place(settings.url)
    begin = cast(Callable[[CloudSettings, str], Login], load(place.driver.login))
    return begin(settings, place.place)
