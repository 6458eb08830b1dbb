"""The conformance suite over every cloud that needs no server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.osfs import open_folder_cloud
from cuckoo_mount.clouds.pyfilesystem import PyFilesystemCloud, open_pyfilesystem_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance, MakeCloud, RemoveRoot
from cuckoo_mount.testing.faulty import FaultyCloud


class TestFolder(CloudConformance):
    @pytest.fixture
    def make_cloud(self, tmp_path: Path) -> MakeCloud:
        root = tmp_path / "root"
        root.mkdir()
        settings = CloudSettings(name="folder", url=str(root))
        return lambda: open_folder_cloud(settings, str(root))

    @pytest.fixture
    def remove_root(self, tmp_path: Path) -> RemoveRoot | None:
        return lambda: shutil.rmtree(tmp_path / "root")


class TestMemory(CloudConformance):
    @pytest.fixture
    def make_cloud(self, tmp_path: Path) -> MakeCloud:
        url = f"mem://{tmp_path}"  # the same path is the same storage, within a process
        return lambda: open_pyfilesystem_cloud(CloudSettings(name="memory", url=url), url)


class TestFolderByTheGenericAdapter(CloudConformance):
    """OSFS through PyFilesystem's own API: stands for any driver with a connection of its own and real folders."""

    @pytest.fixture
    def make_cloud(self, tmp_path: Path) -> MakeCloud:
        root = tmp_path / "root"
        root.mkdir()
        url = f"osfs://{root}"
        return lambda: PyFilesystemCloud(CloudSettings(name="generic", url=url), url, shared=False)

    @pytest.fixture
    def remove_root(self, tmp_path: Path) -> RemoveRoot | None:
        return lambda: shutil.rmtree(tmp_path / "root")


class TestFaultlessFaulty(CloudConformance):
    @pytest.fixture
    def make_cloud(self, tmp_path: Path) -> MakeCloud:
        settings = CloudSettings(name="faulty", url=str(tmp_path))
        return lambda: FaultyCloud(open_folder_cloud(settings, str(tmp_path)), f"{tmp_path}.plan")
