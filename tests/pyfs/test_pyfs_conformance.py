"""PyFilesystem's own test suite on a drive, without FUSE."""

from __future__ import annotations

import unittest
from typing import ClassVar

import pytest

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.pyfs.filesystem import CuckooFS
from tests.pyfs.serving import DriveFolder

with fsimport.stand_in():
    from fs.test import FSTestCases


class TestDrive(FSTestCases, unittest.TestCase):
    """All of them, on a drive that is opened for each and emptied after it; its invariants hold every time.

    (A drive of their own would be 79 times 512 folders to make and to delete: 40 s.)
    """

    # Python 3.12 has dropped this name, by which test_remove asks for a method.
    assertRaisesRegexp = unittest.TestCase.assertRaisesRegex  # noqa: N815
    drive: ClassVar[DriveFolder]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _make(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.drive = DriveFolder(tmp_path_factory.mktemp("conformance") / "drive")

    def make_fs(self) -> CuckooFS:
        return self.drive.open()

    def destroy_fs(self, fs: CuckooFS) -> None:
        fs.close()
        with self.make_fs() as again:
            again.removetree("/")
