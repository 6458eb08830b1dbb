"""The files of this machine: written and read back, errors that name file and key, keys that are never lost."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.config import (
    CloudConfig,
    DriveConfig,
    DrivePaths,
    check_mountpoint_place,
    create_default_drive,
    drive_paths,
    format_size,
    list_drives,
    parse_size,
    read_config,
    read_drive_key,
    shown,
    store_clouds,
    store_mountpoint,
    write_config,
    write_drive_key,
)
from cuckoo_mount.config.files import cloud_document, cloud_of_document
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import ConfigurationError, UsageError

CLOUD = CloudConfig(name="local", url="/srv/cloud", cloud_id=bytes(range(16)))
FULL_CLOUD = CloudConfig(
    name="other",
    url="s3://bucket?x=ü",
    cloud_id=b"\xff" * 16,
    capacity_bytes=500_000_000,
    reserve_bytes=1 << 30,
    group="house",
    read_only=True,
    options=(("a", "1"), ("b", 'with "quotes"\n')),
    secrets=(("password", "value:hush"), ("user", "env:USER")),
)
DRIVE = DriveConfig(
    name="default",
    drive_id=b"\x01" * 16,
    redundancy="2",
    pack_size_bytes=(1 << 20) + 1,
    encrypted=False,
    mountpoint=Path("/home/me/Cuckoo ü"),
    cache_limit_bytes=(64 << 20) + 1,
    deadline_s=1.5,
    heal_rate_bytes=10_000_000,
    clouds=(CLOUD, FULL_CLOUD),
)
MINIMAL = f"""
drive_id = "{"01" * 16}"
[[cloud]]
name = "local"
url = "/srv/cloud"
id = "{"02" * 16}"
"""


def put(paths: DrivePaths, text: str) -> None:
    paths.config_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.config_file.write_text(text, "utf-8")
    paths.config_file.chmod(0o600)


# -- the TOML file --


@pytest.mark.parametrize("config", [DRIVE, evolve(DRIVE, clouds=(CLOUD,)), evolve(DRIVE, clouds=(), ask=True)])
def test_what_is_written_is_read_back(config: DriveConfig, paths: DrivePaths) -> None:
    write_config(config, paths)
    assert read_config(paths) == config


def test_files_are_private_and_no_other_is_left(paths: DrivePaths) -> None:
    write_config(DRIVE, paths)
    write_config(DRIVE, paths)
    write_drive_key(paths.key_file, bytes(32))
    folder = paths.config_file.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "default.toml": 0o600,
        "default.key": 0o600,
    }


def test_a_linked_file_stays_a_link(paths: DrivePaths, base: Path) -> None:
    (base / "dotfiles").mkdir()
    write_config(DRIVE, paths)
    target = paths.config_file.rename(base / "dotfiles" / "cuckoo.toml")
    paths.config_file.symlink_to(target)
    store_mountpoint(Path("/mnt/elsewhere"), paths)
    assert paths.config_file.is_symlink()
    assert "/mnt/elsewhere" in target.read_text()


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(DRIVE)


def test_no_file_is_no_drive(paths: DrivePaths) -> None:
    assert read_config(paths) is None
    assert list_drives() == []


def test_defaults(paths: DrivePaths) -> None:
    put(paths, MINIMAL)
    config = read_config(paths)
    assert config is not None
    assert (config.cache_limit_bytes, config.deadline_s, config.mountpoint) == (10 << 30, 60.0, None)
    assert (config.redundancy, config.encrypted, config.ask) == ("none", True, False)
    assert config.pack_size_bytes == 16 << 20


def test_unknown_keys_are_warned_of_by_name(paths: DrivePaths, caplog: pytest.LogCaptureFixture) -> None:
    put(paths, f'cache_limt = "1GiB"\n{MINIMAL}regoin = "eu"\n')
    assert read_config(paths) is not None
    assert [record.message.split(": ")[1].split(" ")[0] for record in caplog.records] == [
        "cloud[1].regoin",
        "cache_limt",
    ]
    assert all(str(paths.config_file) in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        pytest.param('cache_limit = "lots"', "cache_limit", id="size"),
        pytest.param("cache_limit = 10.5", "cache_limit", id="size-type"),
        pytest.param("cache_limit = true", "cache_limit", id="size-bool"),
        pytest.param('cache_limit = "1MiB"', "cache_limit", id="size-small"),
        pytest.param('deadline_s = "60"', "deadline_s", id="seconds"),
        pytest.param("deadline_s = 0", "deadline_s", id="zero"),
        pytest.param("deadline_s = nan", "deadline_s", id="nan"),
        pytest.param('heal_rate = "fast"', "heal_rate", id="rate"),
        pytest.param('heal_rate = "0B/s"', "heal_rate", id="rate-zero"),
        pytest.param("encrypted = 1", "encrypted", id="bool"),
        pytest.param('redundancy = "0"', "redundancy", id="redundancy"),
        pytest.param('redundancy = "1"', "write none", id="redundancy-1"),
        pytest.param('redundancy = "30+9"', "at most 32 shares", id="redundancy-code"),
        pytest.param('pack_size = "1000KiB"', "from 1MiB to 256MiB", id="pack-small"),
        pytest.param('pack_size = "257MiB"', "from 1MiB to 256MiB", id="pack-big"),
        pytest.param("redundancy = 1", "redundancy", id="redundancy-type"),
        pytest.param('mountpoint = "Cuckoo"', "mountpoint", id="relative"),
        pytest.param("mountpoint = 3", "mountpoint", id="mountpoint-type"),
        pytest.param("what = ", "TOML", id="toml"),
    ],
)
def test_a_bad_value_is_named_with_its_file(line: str, named: str, paths: DrivePaths) -> None:
    put(paths, f"{line}\n{MINIMAL}")
    with pytest.raises(ConfigurationError) as caught:
        read_config(paths)
    assert named in str(caught.value)
    assert str(paths.config_file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        pytest.param(f'drive_id = "{"01" * 16}"', "", "drive_id", id="no-id"),
        pytest.param("01" * 16, "01" * 15, "drive_id", id="short-id"),
        pytest.param("01" * 16, "xy", "drive_id", id="no-hex"),
        pytest.param("02" * 16, "02", "cloud_id", id="short-cloud-id"),
        pytest.param('url = "/srv/cloud"', "", "cloud[1].url", id="no-url"),
        pytest.param('name = "local"', "name = 1", "cloud[1].name", id="name-type"),
        pytest.param('name = "local"', 'name = ""', "cloud[1].name", id="no-name"),
        pytest.param('name = "local"', 'name = "my cloud"', "'my cloud' cannot name a cloud", id="bad-name"),
        pytest.param('name = "local"', 'name = "a"\ncapacity = "-1"', "cloud[1].capacity", id="capacity"),
        pytest.param('name = "local"', 'name = "a"\noptions = {x = 1}', "cloud[1].options.x", id="options"),
        pytest.param("[[cloud]]", "[cloud]", "cloud", id="table"),
    ],
)
def test_a_bad_file_is_refused(old: str, new: str, named: str, paths: DrivePaths) -> None:
    put(paths, MINIMAL.replace(old, new))
    with pytest.raises(ConfigurationError, match=r"default\.toml: ") as caught:
        read_config(paths)
    assert named in str(caught.value)


def test_two_clouds_of_one_name_are_refused(paths: DrivePaths) -> None:
    put(paths, MINIMAL + '[[cloud]]\nname = "local"\nurl = "/b"\nid = "' + "03" * 16 + '"\n')
    with pytest.raises(ConfigurationError, match="two clouds have the name of cloud 'local'"):
        read_config(paths)


def test_two_clouds_at_one_place_are_refused_without_showing_the_url(paths: DrivePaths) -> None:
    again = '[[cloud]]\nname = "b"\nurl = "s3://k:hush@b"\nid = "' + "03" * 16 + '"\n'
    put(paths, MINIMAL.replace("/srv/cloud", "s3://k:hush@b") + again)
    with pytest.raises(ConfigurationError, match="two clouds have the url of cloud 'local'") as caught:
        read_config(paths)
    assert "hush" not in str(caught.value)


# -- the list of clouds in it --


@pytest.mark.parametrize("before", [(), (CLOUD,), (FULL_CLOUD, CLOUD)])
@pytest.mark.parametrize("after", [(), (FULL_CLOUD,), (CLOUD, FULL_CLOUD)])
def test_writing_the_clouds_leaves_the_rest_alone(
    before: tuple[CloudConfig, ...], after: tuple[CloudConfig, ...], paths: DrivePaths
) -> None:
    write_config(evolve(DRIVE, clouds=before), paths)
    text = paths.config_file.read_text("utf-8").replace("deadline_s", "# why\nfuture = 1\ndeadline_s")
    put(paths, text)
    store_clouds(after, paths)
    assert read_config(paths) == evolve(DRIVE, clouds=after)
    head = text[: text.find("[[cloud]]")] if before else text
    assert paths.config_file.read_text("utf-8").startswith(head.rstrip())


def test_writing_the_clouds_copes_with_an_odd_file(paths: DrivePaths) -> None:
    cloud = f'{{name = "a", url = "/a", id = "{"02" * 16}"}}'
    put(paths, f'cloud = [{cloud}] # [[cloud]]\ndrive_id = "{"01" * 16}"\n')
    store_clouds([FULL_CLOUD], paths)
    config = read_config(paths)
    assert config is not None
    assert config.clouds == (FULL_CLOUD,)


def test_the_clouds_of_a_missing_file_are_not_written(paths: DrivePaths) -> None:
    with pytest.raises(ConfigurationError, match="is missing"):
        store_clouds([CLOUD], paths)
    assert not paths.config_file.exists()


def test_a_cloud_goes_through_its_document(paths: DrivePaths) -> None:
    for cloud in (CLOUD, FULL_CLOUD):
        assert cloud_of_document(cloud_document(cloud), Path("the request")) == cloud
    with pytest.raises(ConfigurationError, match=r"the request: cloud\.url: is missing"):
        cloud_of_document({"name": "a", "id": "02" * 16}, Path("the request"))


def test_a_file_that_others_could_read_is_made_private(paths: DrivePaths, caplog: pytest.LogCaptureFixture) -> None:
    put(paths, MINIMAL)
    paths.config_file.chmod(0o644)
    assert read_config(paths) is not None
    assert stat.S_IMODE(paths.config_file.stat().st_mode) == 0o600
    assert "could be read by other users" in caplog.text


# -- the mountpoint in it --


@pytest.mark.parametrize("before", ["", 'mountpoint = "/old"\n', '  mountpoint="/old" # was it\n'])
def test_noting_the_mountpoint_leaves_the_rest_alone(before: str, paths: DrivePaths) -> None:
    text = f"# mine\n\n{before}# why\nfuture = 1\n{MINIMAL}"
    put(paths, text)
    store_mountpoint(Path('/new "place"'), paths)
    after = paths.config_file.read_text()
    assert after.startswith("# mine\n")
    assert [line for line in after.splitlines() if "mountpoint" not in line and line] == [
        line for line in text.splitlines() if "mountpoint" not in line and line
    ]
    config = read_config(paths)
    assert config is not None
    assert config.mountpoint == Path('/new "place"')


def test_noting_the_mountpoint_does_not_touch_a_clouds_option(paths: DrivePaths) -> None:
    put(paths, f'{MINIMAL}[cloud.options]\nmountpoint = "/option"\n')
    store_mountpoint(Path("/new"), paths)
    config = read_config(paths)
    assert config is not None
    assert config.mountpoint == Path("/new")
    assert config.clouds[0].options == (("mountpoint", "/option"),)


def test_the_same_mountpoint_writes_nothing(paths: DrivePaths) -> None:
    write_config(DRIVE, paths)
    before = paths.config_file.stat().st_ino
    assert DRIVE.mountpoint is not None
    store_mountpoint(DRIVE.mountpoint, paths)
    assert paths.config_file.stat().st_ino == before


def test_a_mountpoint_that_toml_cannot_hold_is_left_out(paths: DrivePaths, caplog: pytest.LogCaptureFixture) -> None:
    write_config(DRIVE, paths)
    store_mountpoint(Path(os.fsdecode(b"/mnt/\xff")), paths)
    assert "no valid UTF-8" in caplog.text
    assert read_config(paths) == DRIVE


# -- the key --


def test_a_key_is_read_back(paths: DrivePaths) -> None:
    key = bytes(range(32))
    write_drive_key(paths.key_file, key)
    assert read_drive_key(paths.key_file) == key
    paths.key_file.write_bytes(base64.b32encode(key).lower())
    assert read_drive_key(paths.key_file) == key


def test_a_key_is_never_overwritten(paths: DrivePaths) -> None:
    write_drive_key(paths.key_file, bytes(32))
    with pytest.raises(ConfigurationError, match="only copy"):
        write_drive_key(paths.key_file, b"\x01" * 32)
    assert read_drive_key(paths.key_file) == bytes(32)


def test_a_key_that_others_could_read_is_made_private(paths: DrivePaths, caplog: pytest.LogCaptureFixture) -> None:
    write_drive_key(paths.key_file, bytes(32))
    paths.key_file.chmod(0o640)
    read_drive_key(paths.key_file)
    assert stat.S_IMODE(paths.key_file.stat().st_mode) == 0o600
    assert "could be read by other users" in caplog.text


@pytest.mark.parametrize("content", [b"", b"00" * 31, b"zz" * 32, b"\xff" * 64, b"1" * 52, b"A" * 5000])
def test_what_is_no_key_is_refused_without_showing_it(content: bytes, paths: DrivePaths) -> None:
    paths.key_file.parent.mkdir()
    paths.key_file.write_bytes(content)
    paths.key_file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is no drive key") as caught:
        read_drive_key(paths.key_file)
    assert not content or content[:8].decode("latin-1") not in str(caught.value)


def test_a_missing_key_is_explained(paths: DrivePaths) -> None:
    with pytest.raises(ConfigurationError, match=r"default\.key is missing; put its backup there"):
        read_drive_key(paths.key_file)


# -- a new drive --


def test_a_new_drive(paths: DrivePaths) -> None:
    config = create_default_drive(paths)
    assert read_config(paths) == config
    assert list_drives() == ["default"]
    assert len(read_drive_key(paths.key_file)) == 32
    folder = paths.data / "local"
    assert [cloud.url for cloud in config.clouds] == [str(folder)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_creation_that_was_interrupted_is_finished(paths: DrivePaths) -> None:
    write_drive_key(paths.key_file, b"\x07" * 32)
    create_default_drive(paths)
    assert read_drive_key(paths.key_file) == b"\x07" * 32


@pytest.mark.parametrize(
    "remains", ["state/cuckoo/default/metadata.sqlite", "data/cuckoo/default/local/cuckoo/ab/drive.json"]
)
def test_an_earlier_drive_is_not_hidden_by_a_new_one(remains: str, base: Path, paths: DrivePaths) -> None:
    (base / remains).parent.mkdir(parents=True)
    (base / remains).touch()
    with pytest.raises(ConfigurationError, match="of an earlier drive"):
        create_default_drive(paths)
    assert not paths.config_file.exists()
    assert not paths.key_file.exists()


# -- names, places, sizes --


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", ".a", "a b", "ä", "a\n", "a" * 65])
def test_bad_drive_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a drive"):
        drive_paths(name)


def test_relative_xdg_folders_are_ignored(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG_HOME", "STATE_HOME", "CACHE_HOME", "DATA_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", "relative")
    paths = drive_paths("photos")
    assert paths.config_file == base / ".config/cuckoo/photos.toml"
    assert paths.cache == base / ".cache/cuckoo/photos"
    assert paths.data == base / ".local/share/cuckoo/photos"
    assert paths.socket == base / ".local/state/cuckoo/photos/photos.sock"
    assert paths.log == base / ".local/state/cuckoo/photos/log/cuckoo.log"


def test_a_runtime_folder_that_is_not_there_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drive_paths("default").socket == base / "run/cuckoo/default.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "absent"))
    assert drive_paths("default").socket == base / "state/cuckoo/default/default.sock"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (".", "contains"),
        ("config", "contains"),
        ("config/cuckoo", "is cuckoo-mount's own"),
        ("state/cuckoo/default/mnt", "lies inside"),
        ("cache/cuckoo/other", "lies inside"),
        ("disk/cloud", "is cloud 'local'"),
        ("disk/cloud/mnt", "lies inside cloud 'local'"),
        ("disk", "contains cloud 'local'"),
        ("link", "is cloud 'local'"),
    ],
)
def test_a_mountpoint_keeps_away_from_what_the_drive_needs(
    place: str, says: str, base: Path, paths: DrivePaths
) -> None:
    (base / "disk/cloud").mkdir(parents=True)
    (base / "link").symlink_to("disk/cloud")
    config = evolve(DRIVE, clouds=(evolve(CLOUD, url=f"osfs://{base}/disk/cloud"),))
    with pytest.raises(UsageError, match=says):
        check_mountpoint_place(base / place, paths, config)
    check_mountpoint_place(base / "disk2", paths, config)
    check_mountpoint_place(base / "configs", paths, config)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("500MB", 500_000_000),
        ("10GiB", 10 << 30),
        ("10 gib", 10 << 30),
        ("1.5GiB", 3 << 29),
        ("2k", 2048),
        (" 1TB ", 10**12),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1XB", "1e3", "ten", "1 2", "1iB", "99999999PiB", "٣"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="write for example"):
        parse_size(text)


@given(st.integers(0, (1 << 63) - 1))
def test_a_size_is_written_so_that_it_is_read_back(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes
    assert len(human_size(size_bytes)) <= len("1023.9 KiB")


@pytest.mark.parametrize(("path", "text"), [("/a b", "/a b"), ("/a\nb", "'/a\\nb'"), ("/\udcff", "'/\\udcff'")])
def test_paths_are_shown_on_one_line(path: str, text: str) -> None:
    assert shown(path) == text
