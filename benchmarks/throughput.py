#!/usr/bin/env python3
"""Our drivers against the fastest client library of the same server: 16 MiB objects, up and down, in parallel.

    benchmarks/throughput.py [--servers rclone,weed,wsgidav,openssh,pyftpdlib] [--objects 16] [--parallel 4]
                             [--rounds 3]

Each round every client stores the same objects under names of its own and reads them back, one client after the other;
the order changes from round to round.  What counts is the ratio to the fastest in the same round: its median is
printed.  `obstore` and `opendal` take part if they are installed (pip install obstore opendal).
"""

from __future__ import annotations

import argparse
import ftplib
import importlib
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import open_cloud
from cuckoo_mount.testing.fileservers import FileServer, file_server
from cuckoo_mount.testing.servers import S3Server, s3_server

if TYPE_CHECKING:
    import paramiko

OBJECT_BYTES = 16 << 20
S3_SERVERS = ("rclone", "weed", "moto", "juicefs")
SERVERS = ("rclone", "weed", "wsgidav", "openssh", "pyftpdlib")


class Client(Protocol):
    """What is compared; used by several threads."""

    def put(self, name: str, data: bytes) -> None:
        """Store an object."""

    def get(self, name: str) -> bytes:
        """Return an object."""


class Ours:
    """A driver of cuckoo-mount."""

    def __init__(self, settings: CloudSettings) -> None:
        cloud = open_cloud(settings)
        self.put: Callable[[str, bytes], None] = cloud.put
        self.get = cloud.get


class Boto3:
    """Amazon's library, with connections enough."""

    def __init__(self, server: S3Server, parallel: int) -> None:
        import boto3
        from botocore.config import Config

        keys = dict(server.secrets())
        self._bucket = server.bucket
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=keys["user"],
            aws_secret_access_key=keys["password"],
            config=Config(
                max_pool_connections=parallel,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def put(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=name, Body=data)

    def get(self, name: str) -> bytes:
        found: bytes = self._client.get_object(Bucket=self._bucket, Key=name)["Body"].read()
        return found


class Obstore:
    """The Rust library object_store."""

    def __init__(self, server: S3Server) -> None:
        store = importlib.import_module("obstore.store")  # no dependency of ours
        keys = dict(server.secrets())
        self._store: Any = store.S3Store(
            server.bucket,
            endpoint=server.endpoint_url,
            region="us-east-1",
            access_key_id=keys["user"],
            secret_access_key=keys["password"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def put(self, name: str, data: bytes) -> None:
        self._store.put(name, data, use_multipart=False)

    def get(self, name: str) -> bytes:
        return bytes(self._store.get(name).bytes())


class OpenDal:
    """The Rust library OpenDAL."""

    def __init__(self, scheme: str, **arguments: str) -> None:
        opendal = importlib.import_module("opendal")  # no dependency of ours
        self._operator: Any = opendal.Operator(scheme, **arguments)

    def put(self, name: str, data: bytes) -> None:
        self._operator.write(name, data)

    def get(self, name: str) -> bytes:
        return bytes(self._operator.read(name))


class Paramiko:
    """paramiko as its manual says, one connection per thread."""

    def __init__(self, server: FileServer, folder: str) -> None:
        self._server = server
        self._folder = f"{server.data}/{folder}"
        self._local = threading.local()

    def _sftp(self) -> paramiko.SFTPClient:
        if not hasattr(self._local, "sftp"):
            import paramiko

            client = paramiko.SSHClient()
            client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            query = dict(pair.split("=", 1) for pair in urlsplit(self._server.url()).query.split("&"))
            key = next((value for name, value in query.items() if "key" in name and "known" not in name), None)
            client.connect(
                "127.0.0.1", self._server.port, username=self._server.user, allow_agent=False, look_for_keys=False,
                key_filename=None if key is None else key.replace("%2F", "/"),
            )  # fmt: skip
            self._local.client, self._local.sftp = client, client.open_sftp()
        found: paramiko.SFTPClient = self._local.sftp
        return found

    def put(self, name: str, data: bytes) -> None:
        self._sftp().putfo(io.BytesIO(data), f"{self._folder}/{name}")

    def get(self, name: str) -> bytes:
        target = io.BytesIO()
        self._sftp().getfo(f"{self._folder}/{name}", target)
        return target.getvalue()


class Ftplib:
    """The standard library's FTP, one connection per thread."""

    def __init__(self, server: FileServer, folder: str) -> None:
        self._server = server
        self._folder = folder
        self._local = threading.local()

    def _ftp(self) -> ftplib.FTP:
        if not hasattr(self._local, "ftp"):
            ftp = self._local.ftp = ftplib.FTP()
            ftp.connect("127.0.0.1", self._server.port)
            ftp.login(self._server.user, self._server.password)
        found: ftplib.FTP = self._local.ftp
        return found

    def put(self, name: str, data: bytes) -> None:
        self._ftp().storbinary(f"STOR {self._folder}/{name}", io.BytesIO(data), 256 << 10)

    def get(self, name: str) -> bytes:
        parts: list[bytes] = []
        self._ftp().retrbinary(f"RETR {self._folder}/{name}", parts.append, 256 << 10)
        return b"".join(parts)


@contextmanager
def clients(kind: str, folder: Path, parallel: int) -> Iterator[dict[str, Client]]:
    """Yield what can talk to a server of that kind, by name, and the server is there meanwhile."""
    if kind in S3_SERVERS:
        with s3_server(kind, folder) as s3:
            keys = dict(s3.secrets())
            found: dict[str, Client] = {"ours": Ours(s3.settings()), "boto3": Boto3(s3, parallel)}
            with suppress(ImportError):
                found["obstore"] = Obstore(s3)
            with suppress(ImportError):
                found["opendal"] = OpenDal(
                    "s3", bucket=s3.bucket, endpoint=s3.endpoint_url, region="us-east-1",
                    access_key_id=keys["user"], secret_access_key=keys["password"],
                )  # fmt: skip
            yield found
        return
    with file_server(kind, folder) as server:
        name = server.fresh_folder()
        found = {"ours": Ours(server.settings(folder=name))}
        if server.url().startswith(("ssh", "sftp")):
            found["paramiko"] = Paramiko(server, name)
        elif server.url().startswith("ftp"):
            found["ftplib"] = Ftplib(server, name)
        else:
            with suppress(ImportError):
                endpoint = f"http://127.0.0.1:{server.port}"
                found["opendal"] = OpenDal(
                    "webdav", endpoint=endpoint, root=f"/{name}", username=server.user, password=server.password
                )
        yield found


def stored(client: Client, data: bytes) -> Callable[[str], None]:
    """Return what stores `data` under a name."""
    return lambda name: client.put(name, data)


def seconds(action: Callable[[str], object], names: list[str], parallel: int) -> float:
    """Return how long `action` takes for all names, so many at a time."""
    with ThreadPoolExecutor(parallel) as threads:
        list(threads.map(action, names[:parallel]))  # connections
        begun = time.perf_counter()
        list(threads.map(action, names))
        return time.perf_counter() - begun


def compare(kind: str, *, objects: int, parallel: int, rounds: int) -> None:
    """Print one line per client of a server."""
    data = os.urandom(OBJECT_BYTES)
    with tempfile.TemporaryDirectory() as folder, clients(kind, Path(folder) / "server", parallel) as all_clients:
        ratios: dict[tuple[str, str], list[float]] = {}
        rates: dict[tuple[str, str], list[float]] = {}
        order = list(all_clients)
        for turn in range(rounds):
            took = {}
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                client = all_clients[name]
                names = [f"{name}-{turn}-{number}" for number in range(objects)]
                took[name, "up"] = seconds(stored(client, data), names, parallel)
                assert client.get(names[0]) == data
                took[name, "down"] = seconds(client.get, names, parallel)
            for way in ("up", "down"):
                fastest = min(took[name, way] for name in order)
                for name in order:
                    ratios.setdefault((name, way), []).append(fastest / took[name, way])
                    rates.setdefault((name, way), []).append(objects * OBJECT_BYTES / took[name, way] / (1 << 20))
        for name in order:
            line = [f"{kind:10} {name:9}"]
            for way in ("up", "down"):
                ratio, rate = statistics.median(ratios[name, way]), statistics.median(rates[name, way])
                line.append(f"{way:>5} {ratio:5.0%} of the fastest, {rate:6.0f} MiB/s")
            print("  ".join(line), flush=True)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for kind in options.servers.split(","):
        compare(kind, objects=options.objects, parallel=options.parallel, rounds=options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
