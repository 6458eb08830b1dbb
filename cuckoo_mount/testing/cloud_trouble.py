"""The part of the suite for clouds in which something goes wrong: servers, networks, credentials, room.

Used by cloud_conformance.py, whose `CloudConformance` has these tests too.  What a storage is asked to suffer it is
given by fixtures; one that cannot be made to suffer it says so by `Cannot(reason)`, which is what the skip then says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import pytest
from attrs import field, frozen

from cuckoo_mount.clouds.base import Cloud
from cuckoo_mount.errors import CloudBusy, CloudError, CloudFull, CloudMissing, CloudRefused, CloudUnavailable
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy

MakeCloud = Callable[[], Cloud]
RemoveRoot = Callable[[], None]
Call = Callable[[Cloud], object]

HANG_TIMEOUT_S: Final = 0.4
"""`timeout_s` of clouds whose server is going to hang."""
WRONG_SECRET: Final = "wrongsecretwrongsecret"
PATIENT_TIMEOUT_S: Final = 30.0
NAME: Final = "cuckoo/object"
DATA_BYTES: Final = 300_000
_T = TypeVar("_T")


@frozen(slots=True)
class Cannot:
    """Given by a fixture instead of what it is for: why this storage cannot be tested in that way."""

    reason: str


@frozen(slots=True, kw_only=True)
class Wire:
    """A network that can be broken: `make_cloud(timeout_s)` opens the storage under test through `proxy`.

    `page_names`: names that one request of a listing gives, where that is promised.
    """

    proxy: HttpProxy
    make_cloud: Callable[[float], Cloud]
    page_names: int | None = None


@frozen(slots=True, kw_only=True)
class Filling:
    """A storage that can be filled up: while `full()` is entered, `cloud` has no room."""

    cloud: Cloud
    full: Callable[[], AbstractContextManager[None]]


@frozen(slots=True, kw_only=True)
class Restart:
    """A server that can be stopped and started again; `keeps_objects`: what was stored is there afterwards."""

    restart: Callable[[], None]
    keeps_objects: bool = field(default=True)


def need(given: _T | Cannot) -> _T:
    """Return what a fixture gave, or skip the test with its reason."""
    if isinstance(given, Cannot):
        pytest.skip(given.reason)
    return given


def content(seed: int, size_bytes: int) -> bytes:
    """Return `size_bytes` bytes that differ for every seed and have no period that divides a buffer's size."""
    word = seed.to_bytes(4, "little") + bytes(range(251))
    return (word * (size_bytes // len(word) + 1))[:size_bytes]


DATA: Final = content(77, DATA_BYTES)
READS: Final[dict[str, Call]] = {
    "get": lambda cloud: cloud.get(NAME),
    "get_range": lambda cloud: cloud.get_range(NAME, 1000, DATA_BYTES - 2000),
    "list": lambda cloud: [info.size_bytes for info in cloud.list("cuckoo/")],
}
CALLS: Final[dict[str, Call]] = {
    **READS,
    "put": lambda cloud: cloud.put(NAME, DATA),
    "delete": lambda cloud: cloud.delete(NAME),
}
RESULTS: Final[dict[str, object]] = {"get": DATA, "get_range": DATA[1000:-1000], "list": [DATA_BYTES]}


def expect(cloud: Cloud, call: Call, kind: type[CloudError], what: str = "the call") -> CloudError:
    """Check that `call` raises `kind` of this cloud, in one line; return it."""
    raised: CloudError | None = None
    try:
        result = str(call(cloud))[:100]
    except CloudError as error:
        raised, result = error, repr(error)
    assert isinstance(raised, kind), f"{what}: {result}"
    assert raised.cloud == cloud.settings.name, what
    assert "\n" not in str(raised), what
    return raised


def check(cloud: Cloud, name: str) -> None:
    """Check that the call of CALLS called `name` works, and gives what it should; then the object is there again."""
    assert CALLS[name](cloud) == RESULTS.get(name), name
    if name == "delete":
        cloud.put(NAME, DATA)


class CloudTrouble:
    """Tests; subclassed by `CloudConformance`."""

    @pytest.fixture
    def make_cloud(self) -> MakeCloud:
        """Give the function that opens the storage under test."""
        raise NotImplementedError("give the suite a make_cloud fixture")

    @pytest.fixture
    def remove_root(self) -> RemoveRoot | Cannot:
        """Give the function that takes the whole storage away."""
        return Cannot("this storage lies in the process itself and cannot be taken away")

    @pytest.fixture
    def strangers(self) -> Sequence[MakeCloud] | Cannot:
        """Give functions that open the storage under test with wrong credentials: `WRONG_SECRET` in some place."""
        return Cannot("this storage asks for no credentials")

    @pytest.fixture
    def filling(self) -> Filling | Cannot:
        """Give the storage under test such that it can be filled up."""
        return Cannot("this storage has no limit that a test can set")

    @pytest.fixture
    def restart(self) -> Restart | Cannot:
        """Give the way to restart the server of the storage under test."""
        return Cannot("this storage has no server")

    @pytest.fixture
    def wire(self) -> Wire | Cannot:
        """Give the network between clouds and the storage under test."""
        return Cannot("no network lies between this cloud and its storage")

    @pytest.fixture
    def network(self, wire: Wire | Cannot) -> Iterator[Wire]:
        """Give the network, and repair it afterwards."""
        given = need(wire)
        given.proxy.break_requests()
        yield given
        given.proxy.break_requests()

    @pytest.fixture
    def far_cloud(self, network: Wire) -> Iterator[Cloud]:
        """Give the storage under test through the network, with an object in it."""
        with contextlib.closing(network.make_cloud(PATIENT_TIMEOUT_S)) as opened:
            opened.put(NAME, DATA)
            yield opened

    def test_a_cut_answer_is_never_short_data(self, network: Wire, far_cloud: Cloud) -> None:
        for name, call in READS.items():
            network.proxy.break_requests(Fault("cut_reply"))
            expect(far_cloud, call, CloudUnavailable, name)
            network.proxy.break_requests()
            check(far_cloud, name)

    def test_a_cut_put_leaves_nothing_or_the_whole(self, network: Wire, far_cloud: Cloud) -> None:
        far_cloud.delete(NAME)
        network.proxy.break_requests(Fault("cut_request", methods=("PUT", "POST")))
        expect(far_cloud, CALLS["put"], CloudUnavailable, "put")
        network.proxy.break_requests()
        if far_cloud.capabilities.atomic_put:
            assert [info.size_bytes for info in far_cloud.list("cuckoo/")] in ([], [DATA_BYTES])
            with contextlib.suppress(CloudMissing):
                assert far_cloud.get(NAME) == DATA
        far_cloud.put(NAME, DATA)
        assert far_cloud.get(NAME) == DATA

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_a_server_that_never_answers_does_not_hold_a_call_for_ever(self, network: Wire, far_cloud: Cloud) -> None:
        with contextlib.closing(network.make_cloud(HANG_TIMEOUT_S)) as impatient:
            network.proxy.break_requests(Fault("hang"))
            for name, call in CALLS.items():
                expect(impatient, call, CloudUnavailable, name)
        network.proxy.break_requests()
        for name in CALLS:
            check(far_cloud, name)

    @pytest.mark.parametrize(("status", "code"), [(429, "SlowDown"), (500, "InternalError"), (503, "SlowDown")])
    def test_a_busy_server_is_unavailable_until_it_is_not(
        self, network: Wire, far_cloud: Cloud, status: int, code: str
    ) -> None:
        for name, call in CALLS.items():
            network.proxy.break_requests(Fault("status", status=status, code=code, times=1))
            expect(far_cloud, call, CloudUnavailable, name)
            check(far_cloud, name)

    @pytest.mark.parametrize("status", [429, 503])
    def test_the_pause_that_a_server_wants_is_told(self, network: Wire, far_cloud: Cloud, status: int) -> None:
        hour = "Fri, 01 Jan 2100 00:00:00 GMT"
        for name, call in CALLS.items():
            for retry_after, pause_s in (("7", 7.0), (hour, 3600.0), ("", 0.0)):
                network.proxy.break_requests(Fault("status", status=status, retry_after=retry_after, times=1))
                found = expect(far_cloud, call, CloudBusy, name)
                assert isinstance(found, CloudBusy)
                assert found.retry_after_s == pause_s, name
            check(far_cloud, name)

    @pytest.mark.slow
    def test_an_answer_that_stalls_does_not_hold_a_call_for_ever(self, network: Wire, far_cloud: Cloud) -> None:
        with contextlib.closing(network.make_cloud(HANG_TIMEOUT_S)) as impatient:
            for name, call in READS.items():
                network.proxy.break_requests(Fault("stall_reply"))
                expect(impatient, call, CloudUnavailable, name)
                network.proxy.break_requests()
                check(far_cloud, name)

    def test_a_server_that_drops_connections_is_unavailable(self, network: Wire, far_cloud: Cloud) -> None:
        for name, call in CALLS.items():
            network.proxy.break_requests(Fault("drop"))
            expect(far_cloud, call, CloudUnavailable, name)
            network.proxy.break_requests()
            check(far_cloud, name)

    def test_wrong_credentials_are_refused(self, strangers: Sequence[MakeCloud] | Cannot) -> None:
        for make_stranger in need(strangers):
            for call in CALLS.values():
                with pytest.raises(CloudRefused) as caught, contextlib.closing(make_stranger()) as stranger:
                    call(stranger)
                assert WRONG_SECRET not in str(caught.value)

    def test_a_full_storage_says_so_and_still_reads(self, filling: Filling | Cannot) -> None:
        given = need(filling)
        cloud = given.cloud
        cloud.put(NAME, DATA)
        with given.full():
            expect(cloud, lambda full: full.put("cuckoo/more", DATA), CloudFull, "put")
            assert cloud.get(NAME) == DATA
            assert [info.name for info in cloud.list("cuckoo/")] == [NAME]
            cloud.delete(NAME)
        cloud.put("cuckoo/more", DATA)
        assert cloud.get("cuckoo/more") == DATA

    @pytest.mark.slow
    def test_an_opened_cloud_survives_a_restart_of_the_server(
        self, make_cloud: MakeCloud, restart: Restart | Cannot
    ) -> None:
        given = need(restart)
        with contextlib.closing(make_cloud()) as cloud:
            cloud.put(NAME, DATA)
            given.restart()
            if given.keeps_objects:
                assert cloud.get(NAME) == DATA
            cloud.put("cuckoo/after", DATA)
            assert cloud.get("cuckoo/after") == DATA
            assert len(list(cloud.list("cuckoo/"))) == 1 + given.keeps_objects

    def test_a_missing_root_is_unavailable_and_never_missing(
        self, make_cloud: MakeCloud, remove_root: RemoveRoot | Cannot
    ) -> None:
        take_away = need(remove_root)
        with contextlib.closing(make_cloud()) as cloud:
            cloud.put(NAME, DATA)
            take_away()
            for name, call in CALLS.items():
                expect(cloud, call, CloudUnavailable, name)
            expect(cloud, lambda opened: opened.put("cuckoo/more/object", b"x"), CloudUnavailable)
        with pytest.raises(CloudUnavailable), contextlib.closing(make_cloud()) as anew:
            anew.get(NAME)
