"""`cuckoo cloud` and `recover` with Dropbox, on an emulation of it: a login where one is needed, and none elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckoo_mount.config import DrivePaths
from cuckoo_mount.config.secrets import VALUE
from tests.cli.commanding import Shell, clouds_in_file, empty_drive
from tests.clouds.dropboxserver import DropboxServer, dropbox_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DropboxServer]:
    with dropbox_server(tmp_path_factory.mktemp("dropbox")) as running:
        yield running


class Browser:
    """A stdin that has the code of the page that was shown; `shown`: what was said before it was asked for."""

    def __init__(self, server: DropboxServer, capture: pytest.CaptureFixture[str], code: str | None = None) -> None:
        self.shown = ""
        self._server = server
        self._capture = capture
        self._code = code

    def isatty(self) -> bool:
        return False

    def readline(self) -> str:
        self.shown += self._capture.readouterr().err
        *_, page = re.findall(r"https://\S+", self.shown)
        return f"{self._server.logins.approve(page) if self._code is None else self._code}\n"


@pytest.fixture
def browser(server: DropboxServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Browser:
    found = Browser(server, capsys)
    monkeypatch.setattr("sys.stdin", found)
    return found


@pytest.fixture
def url(server: DropboxServer, paths: DrivePaths) -> str:
    """The URL of a folder of its own; a drive is there."""
    empty_drive(paths)
    return server.url(server.fresh_folder())


def tokens_in(text: str) -> list[str]:
    return re.findall(r"refresh-[\w-]{20,}|sl\.[\w-]{20,}", text)


def test_a_cloud_is_added_by_a_login(
    shell: Shell, url: str, browser: Browser, server: DropboxServer, paths: DrivePaths, base: Path
) -> None:
    assert shell.done("cloud", "add", "dbx", url) == f"Cloud 'dbx' added: {url}\n"
    assert "Open this page in a browser, on any machine" in browser.shown
    assert "Then paste the code that it shows: " in browser.shown
    ((key, reference),) = clouds_in_file(paths)["dbx"].secrets
    assert key == "refresh_token"
    assert tokens_in(reference.removeprefix(VALUE))
    assert paths.config_file.stat().st_mode & 0o777 == 0o600
    # A token is in the configuration file, and nowhere else in clear.
    for file in (path for path in base.rglob("*") if path.is_file()):
        assert file == paths.config_file or not tokens_in(file.read_bytes().decode("latin-1")), file
    assert not tokens_in(browser.shown)


@pytest.mark.long
def test_a_secret_that_is_given_needs_no_login(
    shell: Shell,
    url: str,
    server: DropboxServer,
    paths: DrivePaths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DROPBOX_TOKEN", server.log_in())
    shell.done("cloud", "add", "dbx", url, "--secret", "refresh_token=env:DROPBOX_TOKEN")
    assert clouds_in_file(paths)["dbx"].secrets == (("refresh_token", "env:DROPBOX_TOKEN"),)
    # A new login replaces it, wherever it was, also where it is not any more.
    monkeypatch.delenv("DROPBOX_TOKEN")
    monkeypatch.setattr("sys.stdin", Browser(server, capsys))
    assert shell("cloud", "login", "dbx") == 0
    assert "refresh_token of cloud dbx is kept in " in shell.err
    ((_, reference),) = clouds_in_file(paths)["dbx"].secrets
    assert reference.startswith(VALUE)
    assert shell.records("cloud", "list")[0]["state"] == "ok"


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("wrong", 1, "did not take the code (code doesn't exist or has expired); begin anew"),
        ("", 2, "no code was given"),
    ],
)
def test_a_wrong_code_changes_nothing(
    shell: Shell,
    url: str,
    server: DropboxServer,
    paths: DrivePaths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr("sys.stdin", Browser(server, capsys, code))
    assert shell("cloud", "add", "dbx", url) == status
    assert says in shell.err
    assert clouds_in_file(paths) == {}


@pytest.mark.long
def test_a_drive_is_recovered_through_a_login(
    shell: Shell, url: str, browser: Browser, paths: DrivePaths, base: Path
) -> None:
    """Who has lost the machine has no token any more, only the account and the recovery key."""
    shell.done("cloud", "add", "dbx", url, "--capacity", "1GB")
    assert shell("key", "show-recovery") == 0
    (base / "key").write_text(shell.out.split()[-1])
    shell.done("cloud", "test", "dbx")
    for name in ("config", "state"):
        (base / name).rename(base / f"{name}.lost")
        (base / name).mkdir(mode=0o700)
    assert "Recovered drive 'default'" in shell.done("recover", url, "--recovery-key-file", base / "key")
    assert clouds_in_file(paths)["dbx"].capacity_bytes == 10**9
