"""What an `fsspec+PROTOCOL://…` URL, its options and its secrets say, and the file system that they name.

    fsspec+PROTOCOL://[user[:password]@]rest[?option=…&…]

Used by fsspecfs.py and fsspeccloud.py.  What follows `fsspec+` is a URL as fsspec has it, or one of fsspeckinds.py.
Options and secrets become arguments of the file system's class; those that nobody would look at are errors: they are
typing mistakes or false hopes.  Nothing is contacted by `parse_fsspec_place` and `Maker`; a library is imported.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Final, Protocol, cast
from urllib.parse import parse_qsl, unquote

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsspeckinds import REFUSED, kind_of
from cuckoo_mount.clouds.fsspectypes import Arguments, FileSystem, FsspecKind, FsspecPlace
from cuckoo_mount.clouds.translate import describe
from cuckoo_mount.errors import UsageError

FAMILY: Final = "fsspec+"
"""What the schemes of such clouds begin with."""
# Listings that are kept would hide objects, or show what is gone; a second cloud must not share the first one's state.
_NO_CACHES: Final = {"use_listings_cache": False, "skip_instance_cache": True}
_TRUTH: Final = {"true": True, "yes": True, "false": False, "no": False}
_OURS: Final = frozenset({"self", "asynchronous", "loop", *_NO_CACHES})


class _Class(Protocol):
    """The part of a file system's class that is used."""

    def __call__(self, **arguments: object) -> FileSystem: ...
    def _strip_protocol(self, path: str) -> str: ...
    def _get_kwargs_from_urls(self, url: str) -> Mapping[str, object]: ...


def parse_fsspec_place(settings: CloudSettings, url: str) -> FsspecPlace:
    """Return what `url` and the options and secrets of `settings` say.

    Settings win over what stands in the URL.  Raises: UsageError, without secrets.
    """
    scheme, _, rest = url.partition("://")
    protocol = scheme.removeprefix(FAMILY)
    if protocol in REFUSED:
        raise UsageError(f"cloud {settings.name}: {scheme}:// cannot be a cloud: {REFUSED[protocol]}")
    target, _, query = rest.partition("?")
    found = dict(parse_qsl(query, keep_blank_values=True))
    found.update((key, value) for key, value in settings.options if "." not in key)
    for key, value in found.items():
        if not value:
            raise UsageError(f"cloud {settings.name}: option {key} is empty; give it a value or leave it out")
    secrets = {key: value for key, value in settings.secrets if "." not in key}
    credentials, at, _ = target.partition("@")
    if at and ":" in credentials and "/" not in credentials:
        user, _, password = credentials.partition(":")
        secrets = {"user": unquote(user), "password": unquote(password), **secrets}
        target = target[len(credentials) + 1 :]
    return FsspecPlace(protocol=protocol, target=target, options=found, secrets=secrets, timeout_s=settings.timeout_s)


class Maker:
    """Makes the file systems of one cloud.  `root`: the path of its root there, without `/` at the end."""

    def __init__(self, settings: CloudSettings, place: FsspecPlace) -> None:
        """Import the library.  Raises: UsageError if it is not installed, for wrong options, or without a root."""
        self._settings = settings
        self.kind: Final = kind_of(place.protocol)
        self._class = _load_class(settings, self.kind, place.protocol)
        self._arguments, root = self._read(place)
        self.root: Final = root.rstrip("/")
        if self.kind.required and not any(name in self._arguments for name in self.kind.required):
            names = " or ".join(f"--secret {name}=…" for name in self.kind.required)
            raise UsageError(f"cloud {settings.name}: {self.kind.title} needs a login; give {names} (docs/clouds.md)")
        if self.kind.library:  # makers of ours send nothing, and their libraries know what is missing
            try:
                self.make()
            except Exception as error:
                raise UsageError(f"cloud {settings.name}: {describe(error, settings)}") from error

    def make(self) -> FileSystem:
        """Return a new file system.  May contact its server.  Raises: anything."""
        made = self._class(**self._arguments)
        self.kind.prepare(made, self._settings.timeout_s)
        return made

    def _read(self, place: FsspecPlace) -> tuple[Arguments, str]:
        kind = self.kind
        found = kind.arguments(place.timeout_s)
        if kind.place is not None:
            arguments, root = kind.place(place)
        else:
            protocol = place.protocol
            target = f"{protocol}://{place.target}"
            arguments = dict(self._class._get_kwargs_from_urls(target))
            root = self._class._strip_protocol(target)
            found = {**found, **_NO_CACHES}
        if kind.flat and not root.strip("/"):
            raise UsageError(
                f"cloud {self._settings.name}: the URL names no place there; "
                f"write {FAMILY}{place.protocol}://bucket/folder"
            )
        found.update((key, value) for key, value in arguments.items() if value not in (None, ""))
        found.update(self._settings_as_arguments(place, plain=bool(kind.library)))
        return found, root

    def _settings_as_arguments(self, place: FsspecPlace, *, plain: bool) -> Arguments:
        """Return options and secrets as arguments.  `plain`: as texts, which is what makers of ours want."""
        defaults, takes_all = _parameters(self._class)
        found: Arguments = {}
        for given, value in (*place.options.items(), *place.secrets.items()):
            name = self.kind.renamed.get(given, given)
            if not name:  # it has been used
                continue
            known = name in defaults or name in self.kind.known or (takes_all and self._takes_anything())
            if not known or name in _OURS:
                what = "secret" if given in place.secrets else "option"
                names = ", ".join(sorted((defaults.keys() | self.kind.known) - _OURS))
                raise UsageError(
                    f"cloud {self._settings.name}: {FAMILY}{place.protocol}:// has no {what} {given!r}; known: {names}"
                )
            secret = given in place.secrets
            found[name] = value if plain else _value(value, defaults.get(name), secret=secret)
        return found

    def _takes_anything(self) -> bool:
        """Return whether names can be right that the class does not tell."""
        return self.kind.careful or bool(self.kind.library)


def _load_class(settings: CloudSettings, kind: FsspecKind, protocol: str) -> _Class:
    name = settings.name
    extra = f"cuckoo-mount[{kind.extra}]" if kind.extra else kind.package
    hint = f"pip install '{extra}'" if extra else ""
    try:
        if kind.maker:
            module, _, attribute = kind.maker.partition(":")
            if kind.library:
                importlib.import_module(kind.library)
            return cast(_Class, getattr(importlib.import_module(module), attribute))
        registry = importlib.import_module("fsspec.registry")
        if protocol not in registry.known_implementations and protocol not in registry.registry:
            raise UsageError(f"cloud {name}: fsspec knows no protocol {protocol!r}; see docs/clouds.md for the names")
        return cast(_Class, registry.get_filesystem_class(protocol))
    except ImportError as error:
        # Where no extra of ours brings it, fsspec's own text names the package.
        trouble = hint or f"pip install fsspec, and what it says: {error}"
        raise UsageError(
            f"cloud {name}: {FAMILY}{protocol}:// needs a package that is not installed: {trouble}"
        ) from error


def _parameters(made_by: _Class) -> tuple[dict[str, object], bool]:
    """Return the names that the constructors of a class and its parents take, with defaults, and if any other goes."""
    found: dict[str, object] = {}
    takes_all = False
    for parent in cast(type, made_by).__mro__[:-1]:
        if "__init__" not in vars(parent):
            continue
        for parameter in inspect.signature(parent.__init__).parameters.values():  # type: ignore[misc]
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_all = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                found.setdefault(parameter.name, parameter.default)
        if not takes_all:
            break  # what its parents take it does not pass on
    return found, takes_all


def _value(text: str, default: object, *, secret: bool) -> object:
    """Return an argument as Python has it; a secret is a text, or a JSON object such as a service account's key."""
    if text.startswith("{"):
        try:
            return cast(object, json.loads(text))
        except ValueError:
            return text
    if secret or isinstance(default, str):
        return text
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    try:
        return int(text)
    except ValueError:
        return text
