"""The conformance suite over S3, on every kind of server there is; one server per kind for all tests, a prefix each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.s3 import PAGE_NAMES, open_s3_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance, FillWith
from cuckoo_mount.testing.cloud_trouble import (
    PATIENT_TIMEOUT_S,
    WRONG_SECRET,
    Cannot,
    Filling,
    MakeCloud,
    RemoveRoot,
    Restart,
    Wire,
)
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy
from cuckoo_mount.testing.servers import S3Server

pytestmark = pytest.mark.slow  # for the servers' sake


def opener(settings: CloudSettings) -> Callable[[], Cloud]:
    return lambda: open_s3_cloud(settings, settings.url)


class TestS3(CloudConformance):
    @pytest.fixture
    def own_prefix(self, s3: S3Server) -> str:
        return s3.fresh_prefix()

    @pytest.fixture
    def bucket(self, s3: S3Server, own_prefix: str, request: pytest.FixtureRequest) -> str:
        """Give the bucket that all tests share, or a fresh one to the test that takes it away."""
        if "remove_root" not in request.fixturenames:
            return s3.bucket
        name = f"bucket-{own_prefix}"
        s3.make_bucket(name)
        return name

    @pytest.fixture
    def remove_root(self, s3: S3Server, bucket: str) -> RemoveRoot:
        return lambda: s3.remove_bucket(bucket)

    @pytest.fixture
    def make_cloud(self, s3: S3Server, own_prefix: str, bucket: str) -> MakeCloud:
        return opener(s3.settings(prefix=own_prefix, bucket=bucket))

    @pytest.fixture
    def fill_with(self, s3: S3Server, own_prefix: str, tmp_path: Path) -> FillWith:
        """Store by rclone as a client, which is faster than 1,200 calls of boto3."""

        def fill(names: Sequence[str]) -> None:
            for name in names:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            place = f":s3:{s3.bucket}/{own_prefix}"
            s3.rclone("copy", "--no-check-dest", "--s3-no-head", "--transfers", "8", str(tmp_path), place)

        return fill

    @pytest.fixture
    def wire(self, s3: S3Server, s3_proxy: HttpProxy, own_prefix: str) -> Wire:
        def make_cloud(timeout_s: float) -> Cloud:
            return opener(s3.settings(prefix=own_prefix, endpoint_url=s3_proxy.endpoint_url, timeout_s=timeout_s))()

        return Wire(proxy=s3_proxy, make_cloud=make_cloud, page_names=PAGE_NAMES)

    @pytest.fixture
    def filling(self, network: Wire) -> Iterator[Filling]:
        """None of the servers can be given a small limit: what a full one would say is said for it."""

        @contextlib.contextmanager
        def full() -> Iterator[None]:
            network.proxy.break_requests(
                Fault("status", methods=("PUT", "POST"), status=507, code="InsufficientStorage")
            )
            yield
            network.proxy.break_requests()

        with contextlib.closing(network.make_cloud(PATIENT_TIMEOUT_S)) as cloud:
            yield Filling(cloud=cloud, full=full)

    @pytest.fixture
    def strangers(self, s3: S3Server, own_prefix: str) -> Sequence[MakeCloud] | Cannot:
        if not s3.checks_credentials:
            return Cannot(f"{s3.kind} accepts any credentials")
        settings = s3.settings(prefix=own_prefix)
        wrong = ({"password": WRONG_SECRET, "user": s3.access_key}, {"password": s3.secret_key, "user": WRONG_SECRET})
        return [opener(evolve(settings, secrets=tuple(secrets.items()))) for secrets in wrong]

    @pytest.fixture
    def restart(self, s3: S3Server) -> Restart:
        return Restart(restart=s3.restart, keeps_objects=s3.keeps_data)
