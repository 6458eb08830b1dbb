"""`<drive>.toml`: reading with errors that name the file and the key, writing atomically.

Used by drive.py's callers and the daemon.  An unknown key is a warning, not an error: a newer release may have written
it.  `store_mountpoint` changes one line and leaves comments and unknown keys alone.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar, cast

from cuckoo_mount.config.atomic import make_private, write_private_file
from cuckoo_mount.config.paths import DrivePaths, shown
from cuckoo_mount.config.records import (
    CACHE_LIMIT_DEFAULT_BYTES,
    DEADLINE_DEFAULT_S,
    CloudConfig,
    DriveConfig,
)
from cuckoo_mount.config.sizes import format_size, parse_size
from cuckoo_mount.errors import ConfigurationError, UsageError
from cuckoo_mount.multi.redundancy import NO_REDUNDANCY
from cuckoo_mount.types import PACK_SIZE_BYTES

log = logging.getLogger(__name__)
T = TypeVar("T")

_CLOUD_LINE: Final = re.compile(r"^[ \t]*\[\[[ \t]*cloud[ \t]*\]\]", re.MULTILINE)
_HEADER: Final = (
    "# A cuckoo-mount drive as this machine knows it.  Sizes: 500MB, 10GiB.  The clouds are a copy to start from.\n"
    "# Back this file up together with the .key file next to it: without the key nothing of the drive can be read.\n\n"
)


class _Table:
    """One TOML table whose keys are taken out one by one, so that what is left at the end is unknown."""

    def __init__(self, path: Path, where: str, values: Mapping[str, object]) -> None:
        self._path = path
        self._where = where
        self._values = dict(values)

    def error(self, key: str, what: str) -> ConfigurationError:
        """Return an error that names file and key."""
        name = f"{self._where}.{key}" if self._where else key
        return ConfigurationError(f"{shown(self._path)}: {name}: {what}")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return and forget a value that has to be a `kind`; without a default it has to be there."""
        value = self._values.pop(key, default)
        if value is None:
            raise self.error(key, "is missing; put it back")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = {"str": "a text in quotes", "int": "a whole number", "bool": "true or false", "list": "a list"}
            raise self.error(key, f"has to be {names.get(kind.__name__, kind.__name__)}, not {value!r}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """As `take`; None when it is not there."""
        return self.take(key, kind) if key in self._values else None

    def size(self, key: str, default: int | None) -> int | None:
        """A size: a text such as "10GiB", or a number of bytes."""
        value = self._values.pop(key, default)
        try:
            if isinstance(value, str):
                return parse_size(value)
        except UsageError as error:
            raise self.error(key, str(error)) from error
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.error(key, f"has to be a size such as '10GiB', not {value!r}")
        return value

    def seconds(self, key: str, default: float) -> float:
        """A number, whole or not."""
        value = self._values.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"has to be a number of seconds, not {value!r}")
        return float(value)

    def rate(self, key: str) -> int | None:
        """A size per second: a text such as "10MB/s" or "10MB", or a number of bytes; None when it is not there."""
        value = self._values.get(key)
        if isinstance(value, str):
            self._values[key] = value.strip().removesuffix("/s")
        return self.size(key, None)

    def identifier(self, key: str) -> bytes:
        """Bytes written in hexadecimal digits."""
        text = self.take(key, str)
        try:
            return bytes.fromhex(text)
        except ValueError as error:
            raise self.error(key, f"has to be 32 hexadecimal digits, not {text!r}") from error

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """A table of texts, as sorted pairs; empty when it is not there."""
        table = cast(dict[str, object], self.take(key, dict, {}))
        for name, value in table.items():
            if not isinstance(value, str):
                raise self.error(f"{key}.{name}", "has to be a text in quotes")
        return tuple(sorted((name, str(value)) for name, value in table.items()))

    def tables(self, key: str) -> list[_Table]:
        """The tables written as [[key]]."""
        items = cast(list[object], self.take(key, list, []))
        for item in items:
            if not isinstance(item, dict):
                raise self.error(key, f"has to be written as [[{key}]]")
        return [
            _Table(self._path, f"{key}[{number}]", cast(dict[str, object], item))
            for number, item in enumerate(items, 1)
        ]

    def end(self) -> None:
        """Warn of every key that nobody took."""
        for key in self._values:
            name = f"{self._where}.{key}" if self._where else key
            log.warning("%s: %s is not known and has no effect; is it misspelt?", shown(self._path), name)


def read_config(paths: DrivePaths) -> DriveConfig | None:
    """Return the drive's configuration, None if there is no such file.

    Raises: ConfigurationError that names file and key.
    """
    document = _load(paths.config_file)
    if document is None:
        return None
    table = _Table(paths.config_file, "", document)
    mountpoint = table.optional("mountpoint", str)
    if mountpoint is not None and not os.path.isabs(mountpoint):
        raise table.error("mountpoint", f"has to be an absolute path, not {mountpoint!r}")
    try:
        config = DriveConfig(
            name=paths.name,
            drive_id=table.identifier("drive_id"),
            redundancy=table.take("redundancy", str, NO_REDUNDANCY),
            pack_size_bytes=table.size("pack_size", None) or PACK_SIZE_BYTES,
            encrypted=table.take("encrypted", bool, True),
            ask=table.take("ask", bool, False),
            mountpoint=Path(mountpoint) if mountpoint is not None else None,
            cache_limit_bytes=table.size("cache_limit", None) or CACHE_LIMIT_DEFAULT_BYTES,
            deadline_s=table.seconds("deadline_s", DEADLINE_DEFAULT_S),
            heal_rate_bytes=table.rate("heal_rate"),
            clouds=tuple(_cloud(cloud) for cloud in table.tables("cloud")),
        )
    except (ValueError, UsageError) as error:
        raise ConfigurationError(f"{shown(paths.config_file)}: {error.args[0]}") from error
    table.end()
    return config


def cloud_of_document(document: Mapping[str, object], source: Path) -> CloudConfig:
    """Return the cloud that `cloud_document` described; `source` stands in errors.  Raises: ConfigurationError."""
    return _cloud(_Table(source, "cloud", document))


def _cloud(table: _Table) -> CloudConfig:
    name = table.take("name", str)
    try:
        cloud = CloudConfig(
            name=name,
            url=table.take("url", str),
            cloud_id=table.identifier("id"),
            capacity_bytes=table.size("capacity", None),
            reserve_bytes=table.size("reserve", 0) or 0,
            group=table.take("group", str, ""),
            read_only=table.take("read_only", bool, False),
            options=table.pairs("options"),
            secrets=table.pairs("secrets"),
        )
    except (ValueError, UsageError) as error:
        raise table.error("name", f"cloud {name!r}: {error.args[0]}") from error
    table.end()
    return cloud


def _load(path: Path) -> dict[str, object] | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{shown(path)} is no valid TOML: {error}; correct it or put its backup there"
        ) from error


def _read_text(path: Path) -> str | None:
    try:
        text = path.read_text("utf-8")
        if make_private(path):
            log.warning("%s could be read by other users of this machine; it is 0600 now", shown(path))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{shown(path)} is no text in UTF-8; put its backup there") from error
    except OSError as error:
        raise ConfigurationError(
            f"{shown(path)} cannot be read: {error.strerror}; check its owner and rights"
        ) from error
    return text


def write_config(config: DriveConfig, paths: DrivePaths) -> None:
    """Write the whole file anew, atomically.  Raises: ConfigurationError, OSError."""
    import tomli_w

    document: dict[str, object] = {
        "drive_id": config.drive_id.hex(),
        "redundancy": config.redundancy,
        "pack_size": format_size(config.pack_size_bytes),
        "encrypted": config.encrypted,
        "ask": config.ask or None,
        "mountpoint": str(config.mountpoint) if config.mountpoint is not None else None,
        "cache_limit": format_size(config.cache_limit_bytes),
        "deadline_s": config.deadline_s,
        "heal_rate": f"{format_size(config.heal_rate_bytes)}/s" if config.heal_rate_bytes is not None else None,
    }
    text = tomli_w.dumps({key: value for key, value in document.items() if value is not None})
    text = f"{_HEADER}{text}{_clouds_text(config.clouds)}"
    write_private_file(paths.config_file, _encode(text, paths.config_file), replace=True)


def _clouds_text(clouds: Sequence[CloudConfig]) -> str:
    """Return the clouds' tables.  Each as [[cloud]]: tomli_w writes short ones as one list, which is hard to edit."""
    import tomli_w

    parts = []
    for cloud in clouds:
        document = cloud_document(cloud)
        values = {key: value for key, value in document.items() if not isinstance(value, dict)}
        tables = {f"cloud.{key}": value for key, value in document.items() if isinstance(value, dict)}
        parts.append(f"\n[[cloud]]\n{tomli_w.dumps(values)}")
        parts += [f"\n[{name}]\n{tomli_w.dumps(pairs)}" for name, pairs in tables.items()]
    return "".join(parts)


def cloud_document(cloud: CloudConfig) -> dict[str, object]:
    """Return a cloud as its table in the TOML file, which is also how it goes over the control socket."""
    document: dict[str, object] = {"name": cloud.name, "url": cloud.url, "id": cloud.cloud_id.hex()}
    if cloud.capacity_bytes is not None:
        document["capacity"] = format_size(cloud.capacity_bytes)
    if cloud.reserve_bytes:
        document["reserve"] = format_size(cloud.reserve_bytes)
    if cloud.group:
        document["group"] = cloud.group
    if cloud.read_only:
        document["read_only"] = True
    for key, pairs in (("options", cloud.options), ("secrets", cloud.secrets)):
        if pairs:
            document[key] = dict(pairs)
    return document


def _encode(text: str, path: Path) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{shown(path)} cannot hold a path that is no valid UTF-8: {error.object!r:.200}; use another folder"
        ) from error


def store_clouds(clouds: Sequence[CloudConfig], paths: DrivePaths) -> None:
    """Write the list of clouds anew and leave the rest of the file alone, as somebody may have edited it since.

    Raises: ConfigurationError, OSError.
    """
    import tomli_w

    text, document = _read_text(paths.config_file), _load(paths.config_file)
    if text is None or document is None:
        raise ConfigurationError(f"{shown(paths.config_file)} is missing; put its backup there")
    others = {key: value for key, value in document.items() if key != "cloud"}
    tables = {"cloud": [cloud_document(cloud) for cloud in clouds]} if clouds else {}
    first = _CLOUD_LINE.search(text)
    head = text[: first.start()] if first is not None else text
    changed = f"{head.rstrip()}\n{_clouds_text(clouds)}"
    if not _says(changed, {**others, **tables}):
        changed = tomli_w.dumps({**others, **tables})
    write_private_file(paths.config_file, _encode(changed, paths.config_file), replace=True)


def store_mountpoint(mountpoint: Path, paths: DrivePaths) -> bool:
    """Note where the drive is mounted, as the one change of the file; return whether the file says so now.

    A path that is no valid UTF-8 cannot stand in a TOML file: then the file stays as it is, with a warning.
    Raises: ConfigurationError, OSError.
    """
    try:
        str(mountpoint).encode("utf-8")
    except UnicodeEncodeError:
        log.warning("%s is no valid UTF-8 and cannot be noted in %s", shown(mountpoint), shown(paths.config_file))
        return False
    return _store_value("mountpoint", str(mountpoint), paths)


def store_redundancy(redundancy: str, paths: DrivePaths) -> bool:
    """Note the drive's redundancy, as the one change of the file; return whether the file says so now.

    Raises: ConfigurationError, OSError.
    """
    return _store_value("redundancy", redundancy, paths)


def _store_value(key: str, value: str, paths: DrivePaths) -> bool:
    """Set a text outside of all tables and leave the rest of the file as it was; False when there is no file."""
    import tomli_w

    text, document = _read_text(paths.config_file), _load(paths.config_file)
    if text is None or document is None:
        return False
    if document.get(key) == value:
        return True
    wanted = {**document, key: value}
    line = tomli_w.dumps({key: value}).strip()
    changed = re.sub(rf"^[ \t]*{key}[ \t]*=.*$", lambda _: line, text, count=1, flags=re.MULTILINE)
    if key not in document:
        changed = f"{_leading_comments(text)}{line}\n{text[len(_leading_comments(text)) :]}"
    if not _says(changed, wanted):
        changed = tomli_w.dumps(wanted)
    write_private_file(paths.config_file, changed.encode("utf-8"), replace=True)
    return True


def _leading_comments(text: str) -> str:
    match = re.match(r"(?:[ \t]*(?:#.*)?\n)*", text)
    return match.group() if match else ""


def _says(text: str, document: Mapping[str, object]) -> bool:
    try:
        return tomllib.loads(text) == document
    except tomllib.TOMLDecodeError:
        return False
