"""The SFTP driver against real servers: whom it believes, what it says when something is wrong, broken connections."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.registry import open_cloud
from cuckoo_mount.clouds.sftp import SftpCloud, open_sftp_cloud
from cuckoo_mount.errors import CloudMissing, CloudRefused, CloudTimeout, CloudUnavailable, UsageError
from cuckoo_mount.testing.cloud_trouble import CALLS, DATA, HANG_TIMEOUT_S, NAME, check, expect
from cuckoo_mount.testing.fileservers import FileServer
from cuckoo_mount.testing.serverprocess import free_ports
from cuckoo_mount.testing.tcpproxy import TcpProxy, tcp_proxy

_OTHER_KEY: Final = "AAAAC3NzaC1lZDI1NTE5AAAAIGkAVmyylD5tY0UBoMv5MoCtzHBjSYxPuomBF1SHb2Yo"
pytestmark = pytest.mark.slow  # for the servers' sake


@pytest.fixture
def proxy(sftp: FileServer) -> Iterator[TcpProxy]:
    with tcp_proxy(sftp.port) as running:
        yield running


@pytest.fixture
def settings(sftp: FileServer, proxy: TcpProxy) -> CloudSettings:
    return sftp.settings(folder=sftp.fresh_folder(), port=proxy.port)


@pytest.fixture
def cloud(settings: CloudSettings) -> Iterator[Cloud]:
    with contextlib.closing(open_sftp_cloud(settings, settings.url)) as opened:
        opened.put(NAME, DATA)
        yield opened


def with_option(settings: CloudSettings, **options: str) -> CloudSettings:
    return evolve(settings, options=tuple(sorted(options.items())))


def refusal(settings: CloudSettings) -> str:
    """Return what a get with these settings is refused with."""
    cloud = open_sftp_cloud(settings, settings.url)
    with contextlib.closing(cloud), pytest.raises(CloudRefused) as caught:
        cloud.get(NAME)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_server_is_refused(settings: CloudSettings, sftp: FileServer, tmp_path: Path) -> None:
    (tmp_path / "nobody").touch()
    text = refusal(with_option(settings, known_hosts=str(tmp_path / "nobody")))
    assert "the server's key is not known (ssh-ed25519 SHA256:" in text
    assert "run `ssh -p " in text
    public = sftp.folder / "host_key.pub"
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(public)], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] in text


def test_a_server_with_another_key_is_refused(settings: CloudSettings, proxy: TcpProxy, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{proxy.port} ssh-ed25519 {_OTHER_KEY}\n")
    text = refusal(with_option(settings, known_hosts=str(tmp_path / "known")))
    assert "somebody may be in between" in text
    assert f"ssh-keygen -R '[127.0.0.1]:{proxy.port}'" in text


def test_hashed_known_hosts_and_aliases_of_ssh_config(sftp: FileServer, tmp_path: Path) -> None:
    """As `ssh` itself has them: host, port and user come from the configuration, the name in known_hosts is hashed."""
    settings = sftp.settings(folder=sftp.fresh_folder())
    known = tmp_path / "known"
    known.write_text((sftp.folder / "known_hosts").read_text())
    subprocess.run(["ssh-keygen", "-H", "-f", str(known)], capture_output=True, check=True)
    assert "127.0.0.1" not in known.read_text()
    config = tmp_path / "config"
    config.write_text(f"Host alias\n  HostName 127.0.0.1\n  Port {sftp.port}\n  User {sftp.user}\n")
    url = settings.url.replace(f"127.0.0.1:{sftp.port}", "alias").partition("?")[0]
    secrets = tuple(pair for pair in settings.secrets if pair[0] != "user")
    options = {"known_hosts": str(known), "ssh_config": str(config)}
    if "key_file=" in settings.url:
        options["key_file"] = str(sftp.folder / "user_key")
    named = with_option(CloudSettings(name="x", url=url, secrets=secrets), **options)
    with contextlib.closing(open_sftp_cloud(named, url)) as cloud:
        cloud.put("a/b", b"x")
        assert cloud.get("a/b") == b"x"


def test_a_key_with_a_passphrase(sftp: FileServer, tmp_path: Path) -> None:
    if sftp.kind != "openssh":
        pytest.skip(f"{sftp.kind} is set up with passwords")
    key = tmp_path / "key"
    key.write_bytes((sftp.folder / "user_key").read_bytes())
    key.chmod(0o600)
    change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(key)]
    subprocess.run(change, capture_output=True, check=True)
    settings = sftp.settings(folder=sftp.fresh_folder())
    locked = evolve(settings, options=(("key_file", str(key)),))
    assert "give it by --secret passphrase=" in refusal(locked)
    opened = evolve(locked, secrets=(("passphrase", "open sesame"), *locked.secrets))
    with contextlib.closing(open_sftp_cloud(opened, opened.url)) as cloud:
        cloud.put("a/b", b"x")


def test_a_key_of_nobody_is_refused_with_a_line_that_helps(settings: CloudSettings, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    stranger = evolve(with_option(settings, key_file=str(key)), secrets=(("user", "root"),))
    assert "give --secret password=…, the option key_file, or a key in your agent" in refusal(stranger)


def test_all_channels_are_of_one_connection(cloud: Cloud, proxy: TcpProxy) -> None:
    """Also when many threads want one at a time."""
    from cuckoo_mount.testing.cloud_conformance import in_threads

    assert in_threads(lambda _: cloud.get(NAME) == DATA, 40) == [True] * 40
    assert proxy.connections == 1


def test_a_connection_that_broke_while_idle_is_not_noticed(cloud: Cloud, proxy: TcpProxy) -> None:
    for name in CALLS:
        proxy.drop()
        check(cloud, name)


def test_a_channel_that_was_closed_is_not_noticed(sftp: FileServer, settings: CloudSettings) -> None:
    """As where the connection ends just when a channel was taken from the stock."""
    with contextlib.closing(open_sftp_cloud(settings, settings.url)) as cloud:
        check(cloud, "put")
        for name in CALLS:
            channels = [channel for opened in cloud._stock if (channel := opened.get_channel()) is not None]
            assert channels
            for channel in channels:
                channel.close()
            check(cloud, name)


@pytest.mark.parametrize("name", ["get", "get_range"])
def test_a_cut_answer_is_never_short_data(cloud: Cloud, proxy: TcpProxy, name: str) -> None:
    check(cloud, name)
    proxy.cut_after(down_bytes=len(DATA) // 2)
    # It is made once more if the channel was an idle one, and cut at once.
    expect(cloud, CALLS[name], CloudUnavailable, name)
    proxy.cut_after()
    check(cloud, name)


def test_a_cut_put_leaves_nothing_or_the_whole(
    cloud: Cloud, proxy: TcpProxy, sftp: FileServer, settings: CloudSettings
) -> None:
    proxy.cut_after(up_bytes=len(DATA) // 2)
    expect(cloud, lambda opened: opened.put("cuckoo/other", DATA), CloudUnavailable)
    proxy.cut_after()
    sftp.notice()
    assert {info.name: info.size_bytes for info in cloud.list("")} == {NAME: len(DATA)}
    with pytest.raises(CloudMissing):
        cloud.get("cuckoo/other")
    cloud.put("cuckoo/other", DATA)
    assert cloud.get("cuckoo/other") == DATA


def test_a_server_that_never_answers_does_not_hold_a_call_for_ever(sftp: FileServer, settings: CloudSettings) -> None:
    impatient = evolve(settings, timeout_s=HANG_TIMEOUT_S)
    patient = open_sftp_cloud(settings, settings.url)
    patient.put(NAME, DATA)
    with contextlib.closing(open_sftp_cloud(impatient, impatient.url)) as cloud, contextlib.closing(patient):
        with sftp.frozen():
            for name, call in CALLS.items():
                expect(cloud, call, CloudUnavailable, name)
        for name in CALLS:
            check(patient, name)


def test_an_open_channel_that_hangs_times_out(sftp: FileServer, settings: CloudSettings) -> None:
    slow = evolve(settings, timeout_s=1.0)
    with contextlib.closing(open_sftp_cloud(slow, slow.url)) as cloud:
        cloud.put(NAME, DATA)
        with sftp.frozen():
            expect(cloud, CALLS["get"], CloudTimeout)
        assert cloud.get(NAME) == DATA


def test_the_root_is_never_made(sftp: FileServer, settings: CloudSettings) -> None:
    url = settings.url.replace("?", "-never?")
    with contextlib.closing(open_sftp_cloud(evolve(settings, url=url), url)) as cloud:
        for call in (lambda: cloud.put("a/b", b"x"), lambda: list(cloud.list("")), lambda: cloud.get("a/b")):
            with pytest.raises(CloudUnavailable, match=r"there is no folder /.*-never at s.*; make it"):
                call()
    assert not list(sftp.data.glob("*-never"))


def test_room_is_told(cloud: Cloud) -> None:
    """Both servers know statvfs@openssh.com."""
    assert cloud.capabilities.reports_space
    room = cloud.space()
    assert room is not None
    assert 0 < room.free_bytes < room.total_bytes


def test_names_of_others_are_not_listed(cloud: Cloud, sftp: FileServer, settings: CloudSettings) -> None:
    folder = sftp.data / settings.url.partition("?")[0].rpartition("/")[2]
    for name in ("Not Ours", "a~b"):
        (folder / name).write_bytes(b"x")
    sftp.notice()
    assert [info.name for info in cloud.list("")] == [NAME]


def test_nothing_listening() -> None:
    url = f"ssh://127.0.0.1:{free_ports(1)[0]}/x"
    cloud = open_sftp_cloud(CloudSettings(name="x", url=url), url)
    with contextlib.closing(cloud), pytest.raises(CloudUnavailable, match=r"nothing answers at ssh://127.0.0.1:\d+"):
        cloud.get("a")


def test_the_registry_opens_it(settings: CloudSettings) -> None:
    assert isinstance(open_cloud(settings), SftpCloud)


@pytest.mark.parametrize(
    ("url", "secrets", "message"),
    [
        ("ssh://", {}, "names no host; write ssh://host/folder"),
        ("ssh://h/y?compress=1", {}, "has no option 'compress'; known: key_file, known_hosts, ssh_config"),
        ("sftp://h/y", {"key": "hidden"}, "no secret 'key'; known: user, password, passphrase"),
        ("sftp://h/y", {"password": "hidden", "passphrase": "hidden"}, "either the secret password or passphrase"),
    ],
)
def test_mistakes_get_one_helpful_line(url: str, secrets: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_cloud(CloudSettings(name="x", url=url, secrets=tuple(secrets.items())))
    assert "hidden" not in str(caught.value)


def test_without_paramiko_one_line_says_what_to_install() -> None:
    program = (
        "import sys\nsys.modules['paramiko'] = None\n"
        "from cuckoo_mount.clouds.base import CloudSettings\nfrom cuckoo_mount.clouds.registry import open_cloud\n"
        "try:\n    open_cloud(CloudSettings(name='x', url='ssh://h/y'))\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "UsageError cloud x: SFTP needs a package that is not installed: pip install 'cuckoo-mount[sftp]'"
    ]
