"""drive.json: written once, believed only whole and with both ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.identity import check_identity, read_identity, write_identity
from cuckoo_mount.clouds.osfs import FolderCloud
from cuckoo_mount.errors import CloudCorrupt, CloudNotOurs, CloudUnavailable, FormatError
from cuckoo_mount.format import identity_name

DRIVE, CLOUD, OTHER = b"D" * 16, b"C" * 16, b"X" * 16


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    (tmp_path / "root").mkdir()
    return FolderCloud(CloudSettings(name="usb", url=""), str(tmp_path / "root"))


def test_written_then_checked(cloud: Cloud) -> None:
    for _ in range(2):
        write_identity(cloud, DRIVE, CLOUD)
    check_identity(cloud, DRIVE, CLOUD)
    assert read_identity(cloud, DRIVE) == CLOUD
    record = json.loads(cloud.get(identity_name(DRIVE)))
    assert record == {"format": 1, "drive": DRIVE.hex(), "cloud": CLOUD.hex()}


def test_two_drives_share_a_place(cloud: Cloud) -> None:
    write_identity(cloud, DRIVE, CLOUD)
    write_identity(cloud, OTHER, CLOUD)
    check_identity(cloud, DRIVE, CLOUD)
    check_identity(cloud, OTHER, CLOUD)


def test_an_empty_place_is_not_ours(cloud: Cloud) -> None:
    with pytest.raises(CloudNotOurs, match=r"no drive\.json"):
        check_identity(cloud, DRIVE, CLOUD)


def test_another_cloud_of_this_drive_is_not_overwritten(cloud: Cloud) -> None:
    write_identity(cloud, DRIVE, CLOUD)
    with pytest.raises(CloudNotOurs, match="was expected"):
        write_identity(cloud, DRIVE, OTHER)
    assert read_identity(cloud, DRIVE) == CLOUD


def test_a_missing_root_is_unavailable(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "root").rmdir()
    with pytest.raises(CloudUnavailable):
        check_identity(cloud, DRIVE, CLOUD)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", CloudCorrupt),
        (b"\xff\xfe", CloudCorrupt),
        (b"[1]", CloudCorrupt),
        (b'{"format": 1, "drive": "xyz", "cloud": ""}', CloudCorrupt),
        (b'{"format": 1, "drive": 5, "cloud": ""}', CloudCorrupt),
        (json.dumps({"format": 2, "drive": DRIVE.hex(), "cloud": CLOUD.hex()}).encode(), FormatError),
        (json.dumps({"format": 1, "drive": OTHER.hex(), "cloud": CLOUD.hex()}).encode(), CloudNotOurs),
    ],
)
def test_other_content_is_not_believed(cloud: Cloud, data: bytes, kind: type[Exception]) -> None:
    cloud.put(identity_name(DRIVE), data)
    with pytest.raises(kind):
        check_identity(cloud, DRIVE, CLOUD)
    with pytest.raises(kind):
        write_identity(cloud, DRIVE, CLOUD)
