"""Three clouds on different servers with different credentials, and every request that reaches one of them counted.

Used by the fixture `three_servers` and the tests that take it.  S3 is counted by a proxy in front of the server,
the folder by the calls of its driver, which FaultyCloud counts: both see what the drive asks, and not what a test asks
from outside.
"""

from __future__ import annotations

import secrets

from attrs import frozen

from cuckoo_mount.config import CloudConfig
from cuckoo_mount.config.secrets import VALUE
from cuckoo_mount.testing.faulty import read_counts, write_plan
from cuckoo_mount.testing.httpproxy import HttpProxy
from cuckoo_mount.testing.servers import S3Server
from tests.pool.pooling import Place

_WRITES = frozenset({"PUT", "POST", "put"})
_DRIVER_CALLS = frozenset({"put", "get", "get_range", "delete", "list", "space"})


def s3_place(name: str, server: S3Server, proxy: HttpProxy) -> Place:
    """Return a fresh place on `server`, which the drive reaches through `proxy` and the test directly."""
    prefix = server.fresh_prefix()
    config = CloudConfig(
        name=name,
        url=server.url(prefix, endpoint_url=proxy.endpoint_url),
        cloud_id=secrets.token_bytes(16),
        secrets=tuple((key, VALUE + value) for key, value in server.secrets()),
    )
    return Place(config, server.settings(f"{name} from outside", prefix))


@frozen
class Requests:
    """What reached one cloud: requests by method (HTTP's, or the driver's call), bytes both ways with their heads."""

    by_method: dict[str, int]
    transferred_bytes: int

    @property
    def total(self) -> int:
        """Requests of any kind."""
        return sum(self.by_method.values())

    @property
    def writes(self) -> int:
        """Requests that store something."""
        return sum(count for method, count in self.by_method.items() if method in _WRITES)


@frozen
class ThreeServers:
    """The clouds `folder`, `weed` and `rclone`."""

    folder: Place
    weed: Place
    rclone: Place
    proxies: dict[str, HttpProxy]

    @property
    def places(self) -> tuple[Place, Place, Place]:
        """All three."""
        return (self.folder, self.weed, self.rclone)

    def reset(self) -> None:
        """Count from zero."""
        write_plan(self.folder.plan)
        for proxy in self.proxies.values():
            proxy.reset()

    def requests(self) -> dict[str, Requests]:
        """Return what reached each cloud since `reset`; the folder's bytes are not known and count as none."""
        calls = {key: count for key, count in read_counts(self.folder.plan).items() if key in _DRIVER_CALLS}
        found = {"folder": Requests(calls, 0)}
        for name, proxy in self.proxies.items():
            counts = proxy.counts()
            found[name] = Requests(dict(counts.requests), counts.bytes_up + counts.bytes_down)
        return found

    def total(self) -> int:
        """Return how many requests reached all clouds since `reset`."""
        return sum(requests.total for requests in self.requests().values())

    def writes(self) -> int:
        """Return how many of them stored something."""
        return sum(requests.writes for requests in self.requests().values())
