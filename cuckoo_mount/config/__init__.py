"""What belongs to this machine: where a drive's files are, its TOML file, and its key file.

Used by drive.py and cli/.  Everything here blocks for a local disk at most, and is called before the loop runs or from
a thread.  The list of clouds in the TOML file is a copy to start from; the drive's metadata has the other one.
"""

from cuckoo_mount.config.files import read_config, store_clouds, store_mountpoint, write_config
from cuckoo_mount.config.keys import read_drive_key, write_drive_key
from cuckoo_mount.config.making import (
    check_mountpoint_place,
    check_no_drive,
    create_default_drive,
    create_empty_drive,
    withdraw_empty_drive,
)
from cuckoo_mount.config.paths import DrivePaths, check_drive_name, drive_paths, list_drives, shown
from cuckoo_mount.config.records import CloudConfig, DriveConfig
from cuckoo_mount.config.sizes import format_size, parse_size

__all__ = [
    "CloudConfig",
    "DriveConfig",
    "DrivePaths",
    "check_drive_name",
    "check_mountpoint_place",
    "check_no_drive",
    "create_default_drive",
    "create_empty_drive",
    "drive_paths",
    "format_size",
    "list_drives",
    "parse_size",
    "read_config",
    "read_drive_key",
    "shown",
    "store_clouds",
    "store_mountpoint",
    "withdraw_empty_drive",
    "write_config",
    "write_drive_key",
]
