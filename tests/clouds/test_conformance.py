"""The conformance suite over every cloud that needs no server."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.osfs import open_folder_cloud
from cuckoo_mount.clouds.pyfilesystem import PyFilesystemCloud, open_pyfilesystem_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance
from cuckoo_mount.testing.cloud_trouble import DATA_BYTES, Filling, MakeCloud, RemoveRoot
from cuckoo_mount.testing.faulty import FaultyCloud


@contextmanager
def files_have_a_limit() -> Iterator[None]:
    """Let writes fail with EFBIG beyond a size below DATA_BYTES: a full disk as far as a test can make one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DATA_BYTES // 2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFolder(CloudConformance):
    @pytest.fixture
    def make_cloud(self, tmp_path: Path) -> MakeCloud:
        root = tmp_path / "root"
        root.mkdir()
        settings = CloudSettings(name="folder", url=str(root))
        return lambda: open_folder_cloud(settings, str(root))

    @pytest.fixture
    def remove_root(self, tmp_path: Path) -> RemoveRoot:
        return lambda: shutil.rmtree(tmp_path / "root")

    @pytest.fixture
    def filling(self, make_cloud: MakeCloud) -> Filling:
        return Filling(cloud=make_cloud(), full=files_have_a_limit)


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
    def remove_root(self, tmp_path: Path) -> RemoveRoot:
        return lambda: shutil.rmtree(tmp_path / "root")

    @pytest.fixture
    def filling(self, make_cloud: MakeCloud) -> Filling:
        return Filling(cloud=make_cloud(), full=files_have_a_limit)


class TestFaultlessFaulty(CloudConformance):
    @pytest.fixture
    def make_cloud(self, tmp_path: Path) -> MakeCloud:
        settings = CloudSettings(name="faulty", url=str(tmp_path))
        return lambda: FaultyCloud(open_folder_cloud(settings, str(tmp_path)), f"{tmp_path}.plan")

    @pytest.fixture
    def filling(self, make_cloud: MakeCloud) -> Filling:
        return Filling(cloud=make_cloud(), full=files_have_a_limit)
