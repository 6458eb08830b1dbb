"""Real S3 servers on loopback, for tests: `rclone serve s3`, `weed server -s3`, `juicefs gateway`, `moto_server`.

    with s3_server("weed", tmp_path) as server:
        cloud = open_cloud(server.settings("first", prefix="some/prefix"))

Each server has free ports, credentials and a data folder of its own, and is ready (its bucket made, an object stored
and removed) when `s3_server` gives it; it is ended by its process id.  Needs nothing but the standard library and the
programs themselves, which the packages of the extra `test` put beside the Python in use; buckets are made by rclone as
a client, so that a test that looks at a server does not trust the driver under test.  Any thread; blocks: weed needs
about 4 s to start, moto 2 s, the others less than a second.  Servers are for many tests: give each test a prefix.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.testing.serverkinds import KINDS, Launch, S3Kind
from cuckoo_mount.testing.serverprocess import START_TIMEOUT_S, ServerProcess, end_process, find_program

S3_KINDS: Final = tuple(KINDS)
"""Every kind of server there is: rclone, weed, juicefs, moto."""


class S3Server(ServerProcess):
    """A running S3 server.  `bucket` exists; `access_key` and `secret_key` may read and write objects in it.

    After a restart the bucket is there, and the objects if `keeps_data`.
    """

    def __init__(self, kind: str, folder: Path, *, bucket: str = "cuckoo-test") -> None:
        """Start a server of `kind` (one of `S3_KINDS`) with its data in `folder`, which may not exist yet.

        Returns when the bucket is there and takes objects.  Raises: RuntimeError with the end of the server's log.
        """
        super().__init__(kind, folder)
        self.bucket: Final = bucket
        self.access_key: Final = f"key{secrets.token_hex(8)}"
        self.secret_key: Final = secrets.token_hex(20)
        self._row: Final[S3Kind] = KINDS[kind]
        self._numbers = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True)
        self._start_on_free_ports(self._row.ports)

    @property
    def endpoint_url(self) -> str:
        """Where it listens: `http://127.0.0.1:<port>`; the same after a restart."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def checks_credentials(self) -> bool:
        """Whether a wrong key or secret is refused."""
        return self._row.checks_credentials

    @property
    def keeps_data(self) -> bool:
        """Whether objects are still there after a restart."""
        return self._row.keeps_data

    def url(self, prefix: str = "", *, bucket: str | None = None, endpoint_url: str | None = None) -> str:
        """Return the `s3://` URL of `prefix` (no `/` at either end) in its bucket or another, without secrets.

        `endpoint_url`: of a proxy in front of it.
        """
        place = f"{bucket or self.bucket}/{prefix}" if prefix else bucket or self.bucket
        return f"s3://{place}?endpoint_url={endpoint_url or self.endpoint_url}&region=us-east-1"

    def secrets(self) -> tuple[tuple[str, str], ...]:
        """Return the credentials as the `secrets` of CloudSettings."""
        return (("password", self.secret_key), ("user", self.access_key))

    def admin_secrets(self) -> tuple[tuple[str, str], ...]:
        """Return the credentials of who may make buckets; on some kinds that is everyone."""
        user, password = self._row.admin_keys or (self.access_key, self.secret_key)
        return (("password", password), ("user", user))

    def settings(
        self,
        name: str = "s3",
        prefix: str = "",
        *,
        bucket: str | None = None,
        endpoint_url: str | None = None,
        timeout_s: float = 30.0,
    ) -> CloudSettings:
        """Return the settings of a cloud there; for `prefix`, `bucket` and `endpoint_url` see `url`."""
        url = self.url(prefix, bucket=bucket, endpoint_url=endpoint_url)
        return CloudSettings(name=name, url=url, secrets=self.secrets(), timeout_s=timeout_s)

    def fresh_prefix(self) -> str:
        """Return a prefix that nobody has used: a storage of its own for a test."""
        return f"test-{next(self._numbers)}"

    def make_bucket(self, name: str) -> None:
        """Make bucket `name`; one that exists is no error.  Raises: RuntimeError."""
        self.rclone("mkdir", f":s3:{name}")

    def remove_bucket(self, name: str) -> None:
        """Remove bucket `name` and all in it.  Raises: RuntimeError."""
        self.rclone("purge", f":s3:{name}")

    def rclone(self, *arguments: str, data: bytes = b"") -> bytes:
        """Run rclone as an S3 client of this server, `data` on its input, and return its output.

        Places are written `:s3:bucket/key`.  Raises: RuntimeError with what it said.
        """
        result = subprocess.run(
            [find_program("rclone"), "--config", "", "--retries", "1", *arguments],
            env={**os.environ, **self._client_environment()},
            input=data,
            capture_output=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"rclone {arguments[0]}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout

    def start(self) -> None:
        """Start it on its ports with its data, and wait until it is ready.  Raises: RuntimeError."""
        launch = self._row.launch(self.folder, self._ports, self.access_key, self.secret_key)
        for command in launch.before:
            self._run_before(command, launch)
        self._spawn(launch.command, launch.environment)
        try:
            self._wait_until_it_answers()
            self.make_bucket(self.bucket)
            self.rclone("rcat", f":s3:{self.bucket}/ready", data=b"ready")
            self.rclone("deletefile", f":s3:{self.bucket}/ready")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and wait for that; may be called twice.  Its data stay, unless it keeps them in memory."""
        process = self._take_process()
        if process is None:
            return
        end_process(process, signal.SIGTERM if self._row.ends_quickly else signal.SIGKILL)
        for leftover in self._row.leftovers(self._ports):
            Path(leftover).unlink(missing_ok=True)

    def _client_environment(self) -> dict[str, str]:
        keys = dict(self.admin_secrets())
        return {
            "RCLONE_S3_PROVIDER": self._row.provider,
            "RCLONE_S3_ENDPOINT": self.endpoint_url,
            "RCLONE_S3_ACCESS_KEY_ID": keys["user"],
            "RCLONE_S3_SECRET_ACCESS_KEY": keys["password"],
            "RCLONE_S3_REGION": "us-east-1",
        }

    def _run_before(self, command: tuple[str, ...], launch: Launch) -> None:
        result = subprocess.run(
            [find_program(command[0]), *command[1:]],
            cwd=self.folder,
            env={**os.environ, **launch.environment},
            capture_output=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command[:2])}: {result.stderr.decode(errors='replace')}")

    def _answers(self) -> bool:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=START_TIMEOUT_S)) as connection:
            try:
                connection.request("GET", "/")
                return connection.getresponse().status < 500
            except (OSError, HTTPException):
                return False

    def __repr__(self) -> str:
        return f"S3Server({self.kind!r}, {self.endpoint_url!r})"


@contextmanager
def s3_server(kind: str, folder: Path, *, bucket: str = "cuckoo-test") -> Iterator[S3Server]:
    """Give a running server of `kind`, and stop it afterwards; see `S3Server`."""
    server = S3Server(kind, folder, bucket=bucket)
    try:
        yield server
    finally:
        server.stop()
