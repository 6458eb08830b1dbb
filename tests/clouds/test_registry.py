"""URLs and paths to drivers, helpful refusals, and the clouds kept open."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cuckoo_mount.clouds import jobs, registry
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.osfs import FolderCloud
from cuckoo_mount.clouds.registry import expecting, forget_cloud, open_cloud, parse_place, without_expectations
from cuckoo_mount.errors import CloudNotOurs, CloudUnavailable, UsageError
from cuckoo_mount.testing.faulty import FaultyCloud, read_counts, write_plan

DRIVE, CLOUD, OTHER = b"D" * 16, b"C" * 16, b"X" * 16


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/srv/cloud", "/srv/cloud"),
        ("/srv//x/../cloud/", "/srv/cloud"),
        ("osfs:///srv/cloud", "/srv/cloud"),
        ("file:///srv/my%20cloud", "/srv/my cloud"),
        ("/srv/100%41 @home!?", "/srv/100%41 @home!?"),
        ("~/cloud", "/home/bird/cloud"),
        ("osfs://~/cloud", "/home/bird/cloud"),
    ],
)
def test_folders(monkeypatch: pytest.MonkeyPatch, url: str, path: str) -> None:
    monkeypatch.setenv("HOME", "/home/bird")
    assert parse_place(url).place == path


def test_other_schemes_go_to_the_generic_adapter() -> None:
    place = parse_place("mem://dir?x=1")
    assert (place.scheme, place.driver, place.place) == ("mem", registry.GENERIC, "mem://dir?x=1")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "names no folder; write a path such as /srv/cloud"),
        ("osfs://", "names no folder"),
        ("cloud/here", "relative path.*; write /"),
        ("osfs://cloud", "relative path"),
        ("/a\0b", "zero byte"),
        ("fpt://host", r"fpt:// is not known; did you mean ftp://\? Known: a path, .*mem://"),
        ("quux://host", "quux:// is not known; known: a path, .*osfs://"),
        ("My Disk://x", "is not the name of a scheme"),
        ("zip:///x.zip", "archive"),
        ("tar:///x.tar", "archive"),
        ("cuckoo://drive", "cannot be one of its own clouds"),
    ],
)
def test_mistakes_get_one_helpful_line(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_place(url)
    assert "\n" not in str(caught.value)


def test_s3_has_a_driver_of_its_own() -> None:
    place = parse_place("s3://bucket/prefix?region=eu-west-1")
    assert place.driver is not registry.GENERIC
    assert place.place == "s3://bucket/prefix?region=eu-west-1"
    assert "s3" in registry.known_schemes()


def test_the_list_of_schemes_names_none_that_is_refused() -> None:
    assert not set(registry.known_schemes()) & registry.REFUSED.keys()


def test_an_option_nobody_reads_is_an_error(tmp_path: Path) -> None:
    for options, secrets in (((("compress", "yes"),), ()), ((), (("password", "x"),)), ((("a.b", "c"),), ())):
        with pytest.raises(UsageError, match="has no option"):
            open_cloud(CloudSettings(name="x", url=str(tmp_path), options=options, secrets=secrets))


def test_settings_survive_pickling_and_hide_secrets() -> None:
    settings = CloudSettings(name="x", url="/x", secrets=(("password", "hidden"),))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert "hidden" not in repr(settings)


def test_the_same_settings_give_the_same_cloud(tmp_path: Path) -> None:
    settings = CloudSettings(name="x", url=str(tmp_path))
    cloud = open_cloud(settings)
    assert isinstance(cloud, FolderCloud)
    assert open_cloud(CloudSettings(name="x", url=str(tmp_path))) is cloud
    forget_cloud(settings)
    assert open_cloud(settings) is not cloud


def test_eight_threads_open_it_once(tmp_path: Path) -> None:
    settings, gate = CloudSettings(name="x", url=str(tmp_path)), threading.Barrier(8)

    def work(_: int) -> int:
        gate.wait()
        return id(open_cloud(settings))

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(work, range(8)))) == 1


def test_only_so_many_stay_open(tmp_path: Path) -> None:
    first = CloudSettings(name="first", url=str(tmp_path))
    cloud = open_cloud(first)
    for number in range(registry.OPEN_CLOUDS_MAX):
        open_cloud(CloudSettings(name=f"n{number}", url=str(tmp_path)))
    assert open_cloud(first) is not cloud
    cloud.put("a", b"still works for whoever holds it")


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    settings = CloudSettings(name="x", url=str(tmp_path / "later"))
    with pytest.raises(CloudUnavailable):
        open_cloud(settings)
    (tmp_path / "later").mkdir()
    open_cloud(settings)


def test_an_expected_identity_is_checked_before_anything_else(tmp_path: Path) -> None:
    settings = CloudSettings(name="x", url=str(tmp_path))
    ours = expecting(settings, DRIVE, CLOUD)
    assert without_expectations(ours) == settings
    with pytest.raises(CloudNotOurs):
        open_cloud(ours)
    jobs.write_identity(ours, DRIVE, CLOUD)
    assert open_cloud(ours).get(f"cuckoo/{DRIVE.hex()}/drive.json")
    for wrong in (expecting(settings, DRIVE, OTHER), expecting(settings, OTHER, CLOUD)):
        with pytest.raises(CloudNotOurs):
            open_cloud(wrong)


@pytest.mark.parametrize("with_expectation", [False, True])
def test_a_check_costs_one_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_expectation: bool) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    plan, root = str(tmp_path / "plan"), tmp_path / "root"
    root.mkdir()
    settings = CloudSettings(name="x", url=str(root), options=(("fault.plan", plan),))
    jobs.write_identity(settings, DRIVE, CLOUD)
    write_plan(plan)
    for _ in range(3):
        jobs.check_identity(expecting(settings, DRIVE, CLOUD) if with_expectation else settings, DRIVE, CLOUD)
    assert read_counts(plan) == {"get": 3}
    with pytest.raises(CloudNotOurs):
        jobs.check_identity(settings, DRIVE, OTHER)


def test_faults_are_for_tests_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = CloudSettings(name="x", url=str(tmp_path), options=(("fault.plan", str(tmp_path / "plan")),))
    url = CloudSettings(name="x", url=f"faulty+osfs://{tmp_path}")
    monkeypatch.delenv("CUCKOO_TESTING", raising=False)
    for settings in (plan, url):
        with pytest.raises(UsageError, match="CUCKOO_TESTING=1"):
            open_cloud(settings)
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    for settings in (plan, url):
        assert isinstance(open_cloud(settings), FaultyCloud)
