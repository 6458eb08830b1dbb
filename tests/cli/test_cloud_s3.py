"""`cuckoo cloud` with S3, on a real server: it works, and what people get wrong is said in a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckoo_mount.config import DrivePaths
from cuckoo_mount.testing.serverprocess import free_ports
from cuckoo_mount.testing.servers import S3Server, s3_server
from tests.cli.commanding import Shell, clouds_in_file, empty_drive

pytestmark = pytest.mark.slow
CREDENTIALS = ("--secret", "user=env:S3_USER", "--secret", "password=env:S3_PASSWORD")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("rclone", tmp_path_factory.mktemp("rclone")) as running:
        yield running


@pytest.fixture
def url(server: S3Server, monkeypatch: pytest.MonkeyPatch, paths: DrivePaths) -> str:
    """The URL of a place of its own; a drive is there, and the credentials are in the environment."""
    monkeypatch.setenv("S3_USER", server.access_key)
    monkeypatch.setenv("S3_PASSWORD", server.secret_key)
    monkeypatch.setenv("S3_WRONG", "x" * len(server.secret_key))
    empty_drive(paths)
    return server.url(server.fresh_prefix())


def test_a_bucket_becomes_a_cloud(shell: Shell, url: str, base: Path, paths: DrivePaths, server: S3Server) -> None:
    assert shell.done("cloud", "add", "off", url, *CREDENTIALS) == f"Cloud 'off' added: {url}\n"
    (listed,) = shell.records("cloud", "list")
    assert (listed["state"], listed["url"]) == ("ok", url)
    assert shell.record("cloud", "test", "off")["error"] is None

    (base / "password").write_text(f"{server.secret_key}\n")
    shell.done("cloud", "set", "off", "--secret", f"password=file:{base}/password", "--capacity", "1GB")
    changed = clouds_in_file(paths)["off"]
    assert changed.secrets == (("password", f"file:{base}/password"), ("user", "env:S3_USER"))
    assert changed.capacity_bytes == 10**9
    # The values are nowhere but where the references say.
    texts = [path.read_bytes() for path in base.rglob("*") if path.is_file() and path.name != "password"]
    assert not any(server.secret_key.encode() in text or server.access_key.encode() in text for text in texts)

    said = shell.refused(1, "cloud", "set", "off", "--secret", "password=env:S3_WRONG")
    assert "check the secret password" in said
    assert clouds_in_file(paths)["off"] == changed


def test_the_same_bucket_under_another_url_is_the_same_place(shell: Shell, url: str, paths: DrivePaths) -> None:
    shell.done("cloud", "add", "off", url, *CREDENTIALS)
    other = url.replace("?", "/?", 1)
    assert "the same place as cloud 'off'" in shell.refused(2, "cloud", "add", "off2", other, *CREDENTIALS)
    assert list(clouds_in_file(paths)) == ["off"]


@pytest.mark.parametrize(
    ("secret", "status", "says"),
    [
        ("password=env:S3_WRONG", 1, "check the secret password"),
        ("user=env:S3_WRONG", 1, "check the secret user"),
        ("password=env:S3_ABSENT", 1, "the variable S3_ABSENT is not set"),
        ("password=file:/absent", 1, "there is no file /absent"),
        ("token=env:S3_USER", 2, "has no secret 'token'"),
    ],
)
def test_a_wrong_secret(shell: Shell, url: str, paths: DrivePaths, secret: str, status: int, says: str) -> None:
    said = shell.refused(status, "cloud", "add", "off", url, *CREDENTIALS, "--secret", secret)
    assert says in said
    assert "cloud off" in said
    assert clouds_in_file(paths) == {}


def test_half_of_the_credentials(shell: Shell, url: str, paths: DrivePaths) -> None:
    assert "secret 'password' is missing" in shell.refused(2, "cloud", "add", "off", url, *CREDENTIALS[:2])
    assert clouds_in_file(paths) == {}


def test_a_missing_bucket(shell: Shell, url: str, paths: DrivePaths, server: S3Server) -> None:
    wrong = server.url("x", bucket="no-such-bucket")
    said = shell.refused(1, "cloud", "add", "off", wrong, *CREDENTIALS)
    assert "bucket no-such-bucket does not exist" in said
    assert clouds_in_file(paths) == {}


def test_nothing_listens(shell: Shell, url: str, paths: DrivePaths, server: S3Server) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    said = shell.refused(1, "cloud", "add", "off", server.url("x", endpoint_url=endpoint), *CREDENTIALS)
    assert f"nothing answers at {endpoint}; check endpoint_url" in said
    assert clouds_in_file(paths) == {}


def test_secrets_in_the_url_work_with_a_warning(shell: Shell, url: str, paths: DrivePaths, server: S3Server) -> None:
    with_secrets = url.replace("s3://", f"s3://{server.access_key}:{server.secret_key}@")
    assert shell("cloud", "add", "off", with_secrets) == 0
    assert "write: --secret user=prompt --secret password=prompt" in shell.err
    assert shell.err.count("\n") == 1
    (listed,) = shell.records("cloud", "list")
    assert listed["state"] == "ok"
    assert server.secret_key not in shell.out + shell.err
    assert server.secret_key not in paths.log.read_text()
