"""`cuckoo destroy`: nothing is left of the drive, nothing else is touched, and what cannot be deleted is said."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cuckoo_mount.cli.clearing import note_cloud
from cuckoo_mount.cli.lock import LockHolder, hold
from cuckoo_mount.clouds.jobs import list_objects
from cuckoo_mount.config import CloudConfig, DrivePaths, drive_paths, read_config, read_drive_key
from cuckoo_mount.config.files import store_clouds
from cuckoo_mount.drive import open_drive
from cuckoo_mount.format import drive_prefix
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.testing.faulty import read_counts
from cuckoo_mount.testing.servers import S3Server, s3_server
from cuckoo_mount.types import ROOT_INODE
from tests.cli.commanding import Shell, empty_drive

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(base: Path) -> tuple[Path, Path]:
    """Two places for clouds, each with a file of somebody else."""
    places = (base / "usb", base / "nas")
    for place in places:
        (place / "cuckoo" / ("f" * 32)).mkdir(parents=True)
        (place / "cuckoo" / ("f" * 32) / "drive.json").write_text("another drive's")
        (place / "letter").write_text("dear")
    return places


def drive_on(paths: DrivePaths, *places: Path, files: int = 1) -> bytes:
    """Make a drive with clouds a, b, … at `places` and something on each of them; return its id."""
    config = empty_drive(paths, redundancy=str(len(places)) if len(places) > 1 else "none")
    clouds = [
        CloudConfig(name=name, url=str(place), cloud_id=os.urandom(16))
        for name, place in zip("abc", places, strict=False)
    ]
    store_clouds(tuple(clouds), paths)  # the drive signs them when it is opened
    trio.run(store_files, paths, files)
    return config.drive_id


async def store_files(paths: DrivePaths, files: int) -> None:
    """Store files, each in a pack of its own, and return when they are on the clouds."""
    config = read_config(paths)
    assert config is not None
    async with open_drive(config, paths, read_drive_key(paths.key_file)) as drive:
        for number in range(files):
            handle, _ = await drive.filesystem.create(
                ROOT_INODE, b"file %d" % number, 0o644, Caller(os.getuid(), os.getgid())
            )
            await drive.filesystem.write(handle, 0, os.urandom(3000))
            await drive.filesystem.release(handle)
            await drive.send_all()


def objects_in(place: Path, drive_id: bytes) -> list[Path]:
    """Return the files of a drive in the folder of a cloud."""
    return [path for path in (place / drive_prefix(drive_id)).rglob("*") if path.is_file()]


def is_untouched(place: Path) -> bool:
    """Whether what belongs to others is there, and nothing else."""
    try:
        found = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    except FileNotFoundError:  # a folder that is just being deleted
        return False
    return found == [f"cuckoo/{'f' * 32}/drive.json", "letter"]


def is_gone(paths: DrivePaths) -> bool:
    """Whether nothing of the drive is on this machine."""
    places = (paths.config_file, paths.key_file, paths.state, paths.cache, paths.data, paths.socket)
    return not any(os.path.lexists(place) for place in places)


def test_nothing_of_the_drive_is_left(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_id = drive_on(paths, *folders)
    other = drive_paths("other")
    other_id = drive_on(other, folders[0])
    assert all(len(objects_in(place, drive_id)) >= 3 for place in folders)  # drive.json, a key slot, a pack
    assert shell("destroy", "--yes") == 0
    assert shell.out == "Drive 'default' is destroyed.\n"
    assert "Nobody can read the drive again" in shell.err
    assert is_gone(paths)
    assert not any((place / drive_prefix(drive_id)).exists() for place in folders)
    assert is_untouched(folders[1])
    assert len(objects_in(folders[0], other_id)) >= 3
    assert other.key_file.exists()
    assert "there is no drive 'default'" in shell.refused(2, "destroy", "--yes")
    assert shell("destroy", "--yes", "--drive", "other") == 0
    assert is_untouched(folders[0])


def test_a_dry_run_says_what_would_go(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_id = drive_on(paths, *folders)
    before = sorted(path for place in folders for path in objects_in(place, drive_id))
    assert shell("destroy", "--dry-run") == 0
    assert shell.out == "Nothing was deleted.\n"
    count = len(objects_in(folders[0], drive_id))
    assert f"cloud a ({folders[0]}): {count} objects, " in shell.err
    assert all(str(place) in shell.err for place in (paths.state, paths.key_file, paths.config_file))
    record = shell.record("destroy", "--dry-run")
    assert record["dry_run"] is True
    assert [(cloud["name"], cloud["objects"], cloud["deleted"]) for cloud in record["clouds"]] == [
        ("a", count, 0),
        ("b", count, 0),
    ]
    assert sum(path.stat().st_size for path in objects_in(folders[0], drive_id)) == record["clouds"][0]["bytes"]
    assert {place["path"] for place in record["local"]} >= {str(paths.state), str(paths.config_file)}
    assert sorted(path for place in folders for path in objects_in(place, drive_id)) == before
    shell.done("cloud", "list")  # the drive works as before


def test_it_is_not_done_unasked(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_on(paths, folders[0])
    assert shell("destroy") == 2
    assert "say --yes" in shell.err
    assert paths.config_file.exists()


class Terminal(io.StringIO):
    """A terminal at which somebody has typed."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "status"), [("default\n", 0), ("yes\n", 1), ("\n", 130), ("", 130)])
def test_the_name_has_to_be_typed(
    typed: str, status: int, shell: Shell, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_drive(paths)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert shell("destroy") == status
    assert "Type the drive's name, default, to destroy it" in shell.err
    assert is_gone(paths) == (status == 0)


def test_what_is_kept_on_the_clouds(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_id = drive_on(paths, folders[0])
    before = objects_in(folders[0], drive_id)
    assert shell("destroy", "--yes", "--keep-clouds") == 0
    assert "what is on the clouds stays there" in shell.err
    assert objects_in(folders[0], drive_id) == before
    assert is_gone(paths)


@pytest.mark.parametrize("holder", ["daemon", "ending", "command"])
def test_not_while_somebody_has_the_drive(holder: str, shell: Shell, paths: DrivePaths) -> None:
    empty_drive(paths)
    with hold(paths.lock) as lock:
        lock.describe(LockHolder(pid=os.getpid(), ending=holder == "ending", command=holder == "command"))
        said = shell.refused(1, "destroy", "--yes")
    assert f"pid {os.getpid()}" in said
    assert paths.config_file.exists()


def test_a_cloud_that_does_not_answer(shell: Shell, folders: tuple[Path, Path], base: Path, paths: DrivePaths) -> None:
    drive_id = drive_on(paths, *folders)
    folders[1].rename(base / "away")
    assert shell("destroy", "--yes") == 1
    said = [line for line in shell.err.splitlines() if line.startswith("cuckoo destroy: left: ")]
    assert len(said) == 1
    assert f"cloud b, {drive_prefix(drive_id)} in {folders[1]}: " in said[0]
    assert is_untouched(folders[0])
    assert is_gone(paths)
    assert objects_in(base / "away", drive_id)


def test_an_empty_place_is_not_taken_for_the_cloud(
    shell: Shell, folders: tuple[Path, Path], base: Path, paths: DrivePaths
) -> None:
    drive_on(paths, *folders)
    folders[1].rename(base / "away")
    folders[1].mkdir()  # as where a disk is not mounted
    assert shell("destroy", "--dry-run") == 0
    assert "nothing of this drive is there; is it the right disk or bucket?" in shell.err


def test_a_read_only_cloud_is_left_alone(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_id = drive_on(paths, *folders)
    shell.done("cloud", "set", "b", "--read-only")
    before = objects_in(folders[1], drive_id)
    assert shell("destroy", "--yes") == 1
    assert "--no-read-only" in shell.err
    assert objects_in(folders[1], drive_id) == before
    assert is_untouched(folders[0])


@pytest.fixture
def faults(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan of what goes wrong on a faulty cloud; nothing yet."""
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    return base / "plan.json"


def make_faulty(shell: Shell, name: str, place: Path, plan: Path, rule: dict[str, object]) -> None:
    """Let a cloud of the drive fail from now on as `rule` says (testing/faulty.py)."""
    plan.write_text(json.dumps({"rules": [rule]}))
    shell.done("cloud", "set", name, "--url", f"faulty+osfs://{place}", "--option", f"fault.plan={plan}")


def test_a_cloud_that_fails_on_the_way(
    shell: Shell, folders: tuple[Path, Path], faults: Path, paths: DrivePaths
) -> None:
    drive_id = drive_on(paths, *folders, files=2)
    make_faulty(shell, "b", folders[1], faults, {"calls": ["delete"], "from": 2, "action": "refuse"})
    assert shell("destroy", "--yes") == 1
    assert "nothing was deleted here, try again: cuckoo destroy" in shell.err
    assert is_untouched(folders[0])
    # Everything for another try is there, drive.json too: it goes last.
    assert paths.config_file.exists()
    assert paths.key_file.exists()
    assert any(path.name == "drive.json" for path in objects_in(folders[1], drive_id))
    faults.unlink()
    assert shell("destroy", "--yes") == 0, shell.err
    assert is_untouched(folders[1])
    assert is_gone(paths)


@pytest.mark.parametrize(
    ("rule", "number"),
    [
        pytest.param({"match": "/packs/", "nth": 2}, signal.SIGKILL, id="packs"),
        pytest.param({"match": "drive.json", "nth": 1}, signal.SIGKILL, id="drive.json"),
        pytest.param({"match": "/keys/", "nth": 1}, signal.SIGINT, id="ctrl-c"),
    ],
)
def test_an_interrupted_one_is_repeated(
    rule: dict[str, object],
    number: signal.Signals,
    shell: Shell,
    folders: tuple[Path, Path],
    faults: Path,
    paths: DrivePaths,
) -> None:
    drive_id = drive_on(paths, *folders, files=2)
    make_faulty(shell, "b", folders[1], faults, {**rule, "calls": ["delete"], "action": "hang"})
    program = "import sys; from cuckoo_mount.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "destroy", "--yes"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    # Until the deletion hangs and the other cloud is done: then nothing moves any more.
    while not read_counts(str(faults)).get("acted 0") or not is_untouched(folders[0]):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1] == "cuckoo destroy: interrupted; to delete the rest: cuckoo destroy"
    assert any(path.name == "drive.json" for path in objects_in(folders[1], drive_id))
    assert paths.config_file.exists()
    faults.unlink()
    assert shell("destroy", "--yes") == 0, shell.err
    assert "nothing of this drive is there" not in shell.err  # cloud a is empty because of us, and noted as such
    assert all(is_untouched(place) for place in folders)
    assert is_gone(paths)


def test_one_killed_at_the_very_end_is_repeated(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_on(paths, *folders)
    config = paths.config_file.read_bytes()
    assert shell("destroy", "--yes") == 0
    # All is gone but the configuration file, which is the last one that counts, and the notes beside the lock.
    paths.config_file.write_bytes(config)
    note_cloud(paths, "a")
    note_cloud(paths, "b")
    assert shell("destroy", "--yes") == 0, shell.err
    assert is_gone(paths)


def test_a_damaged_drive_can_be_destroyed(shell: Shell, folders: tuple[Path, Path], paths: DrivePaths) -> None:
    drive_on(paths, folders[0])
    for file in paths.state.glob("metadata.sqlite*"):
        file.write_bytes(b"no database" * 1000)
    paths.key_file.unlink()
    assert shell("destroy", "--yes") == 0
    assert is_untouched(folders[0])
    assert is_gone(paths)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("rclone", tmp_path_factory.mktemp("rclone")) as running:
        yield running


def test_on_s3(shell: Shell, server: S3Server, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_USER", server.access_key)
    monkeypatch.setenv("S3_PASSWORD", server.secret_key)
    prefix = server.fresh_prefix()
    credentials = ("--secret", "user=env:S3_USER", "--secret", "password=env:S3_PASSWORD")
    drive_id = empty_drive(paths).drive_id
    shell.done("cloud", "add", "off", server.url(prefix), *credentials)
    trio.run(store_files, paths, 2)
    other = drive_paths("other")
    other_id = empty_drive(other).drive_id
    shell.done("cloud", "add", "off", server.url(prefix), *credentials, "--drive", "other")
    settings = server.settings("off", prefix=prefix)
    before = list_objects(settings, drive_prefix(drive_id))
    assert len(before) >= 4
    assert shell("destroy", "--yes", "--json") == 0
    (cloud,) = json.loads(shell.out)["clouds"]
    assert (cloud["objects"], cloud["deleted"], cloud["trouble"]) == (len(before), len(before), None)
    assert list_objects(settings, drive_prefix(drive_id)) == []
    assert len(list_objects(settings, drive_prefix(other_id))) >= 2
    assert is_gone(paths)
