"""A server that rejects what is more than its limit: programs never notice, and soon hardly anything is rejected."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from cuckoo_mount.testing.httpproxy import HttpProxy, http_proxy
from cuckoo_mount.testing.servers import S3Server
from tests.pool.conftest import MakePool
from tests.pool.pooling import PoolMount
from tests.pool.threeservers import s3_place

pytestmark = [pytest.mark.mount, pytest.mark.slow]

FILE_BYTES: Final = 20_000
READERS: Final = 4
PATIENCE_S: Final = 60.0


def content(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


class Work:
    """Files written, sent, and read back from the cloud, as fast as it goes; any error ends it."""

    def __init__(self, mount: PoolMount) -> None:
        self.mount = mount
        self.written = 0
        self.dice = random.Random(20_261_130)

    def go_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(READERS) as readers:
            while time.monotonic() < end:
                for _ in range(3):
                    (self.mount.path / f"f{self.written}").write_bytes(content(self.written))
                    self.written += 1
                self.mount.sync()
                self.mount.evict()
                self.mount.drop_caches()
                wanted = [self.dice.randrange(self.written) for _ in range(READERS)]
                for number, data in zip(wanted, readers.map(self.read, wanted), strict=True):
                    assert data == content(number)

    def read(self, number: int) -> bytes:
        return (self.mount.path / f"f{number}").read_bytes()


def limited(mount: PoolMount, proxy: HttpProxy, *, status: int, per_s: float, first_s: float, then_s: float) -> None:
    mount.start()
    work = Work(mount)
    work.go_on(1.0)
    proxy.limit_requests(per_s, burst=per_s, status=status, retry_after="1")
    work.go_on(first_s)
    end = time.monotonic() + PATIENCE_S
    while not proxy.counts().broken and time.monotonic() < end:
        work.go_on(1.0)  # on a busy machine the limit is far away
    first = proxy.counts()
    proxy.reset()
    work.go_on(then_s)
    then = proxy.counts()
    (cloud,) = mount.status()["clouds"]
    print(
        f"first {first_s:.0f} s: {first.broken} of {first.total} rejected; then {then_s:.0f} s: {then.broken} of "
        f"{then.total}; {cloud['rejected']} rejections seen, now {cloud['requests_per_second']} requests per second"
    )
    assert first.broken, "the limit was never reached: nothing was shown"
    assert then.total > 0.4 * per_s * then_s, "the limit is hardly made use of"
    # A single one is more than 1 % of what a short test can ask.
    assert then.broken <= max(1, then.total // 100)
    assert cloud["state"] == "ok"
    assert 0 < cloud["requests_per_second"] < 2 * per_s
    proxy.limit_requests(None, retry_after="")
    mount.sync()
    for number in range(3):
        assert work.read(number) == content(number)


@pytest.fixture
def proxy(rclone: S3Server) -> Iterator[HttpProxy]:
    with http_proxy(rclone.endpoint_url) as running:
        yield running


@pytest.mark.parametrize(
    ("status", "per_s", "first_s", "then_s"),
    [
        pytest.param(503, 4.0, 4.0, 4.0, id="503"),
        pytest.param(429, 10.0, 60.0, 120.0, id="429 for minutes", marks=[pytest.mark.long, pytest.mark.timeout(400)]),
    ],
)
def test_a_limit(
    make_pool: MakePool, rclone: S3Server, proxy: HttpProxy, status: int, per_s: float, first_s: float, then_s: float
) -> None:
    mount = make_pool([s3_place("limited", rclone, proxy)], deadline_s=400)
    limited(mount, proxy, status=status, per_s=per_s, first_s=first_s, then_s=then_s)
