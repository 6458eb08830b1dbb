"""What TAB completes besides commands and options: names of drives and clouds.

For `shell_complete=` of options and arguments.  Runs at every TAB: reads local files only, imports little, and what is
wrong with a file is no answer instead of an error.
"""

from __future__ import annotations

from contextlib import suppress

import click

from cuckoo_mount.config.paths import drive_paths, list_drives
from cuckoo_mount.errors import CuckooError


def complete_drives(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the drives of this machine that begin with `incomplete`."""
    with suppress(OSError):
        return [name for name in list_drives() if name.startswith(incomplete)]
    return []


def complete_clouds(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the clouds of the drive meant that begin with `incomplete`."""
    from cuckoo_mount.config.files import read_config

    with suppress(CuckooError, OSError):
        config = read_config(drive_paths(str(context.params.get("drive") or "default")))
        if config is not None:
            return [cloud.name for cloud in config.clouds if cloud.name.startswith(incomplete)]
    return []
