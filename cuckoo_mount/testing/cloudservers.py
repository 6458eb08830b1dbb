"""What stands in for Azure Blob Storage, Google Cloud Storage and an SMB server on loopback, for tests of fsspec+….

    with cloud_server("azurite", tmp_path) as server:
        cloud = open_cloud(server.settings(root=server.fresh_root()))

azurite (npm; Microsoft's own emulator), gcp-storage-emulator (PyPI), samba (Debian; the real thing).  Each has a free
port, and its data in its folder; it is ended by its process id.  Any thread; blocks.
"""

from __future__ import annotations

import getpass
import itertools
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.testing.serverkinds import Launch
from cuckoo_mount.testing.serverprocess import HOST, START_TIMEOUT_S, ListeningServer, find_program

_BUCKET: Final = "cuckoo-test"
_ACCOUNT: Final = "devstoreaccount1"
# Published: every Azurite has this one.
_ACCOUNT_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_SHARE: Final = "share"


class CloudServer(ListeningServer):
    """A running server.  `password`: of who may log in; for Azure the account's key."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Start a server of `kind` in `folder`; return when it listens.

        Raises: RuntimeError with the end of its log; FileNotFoundError for a program that is missing.
        """
        super().__init__(kind, folder)
        self.user: Final = getpass.getuser()
        self.password: Final = _ACCOUNT_KEY if kind == "azurite" else secrets.token_hex(12)
        self._numbers = itertools.count(1)
        self.data.mkdir(parents=True, exist_ok=True)
        self._start_on_free_ports(1)

    def fresh_root(self) -> str:
        """Return a bucket, container or folder that is empty: a storage of its own for a test."""
        root = f"test-{next(self._numbers)}"
        _KINDS[self.kind].make(self, root)
        return root

    def remove_root(self, root: str) -> None:
        """Remove a root with all in it."""
        _KINDS[self.kind].remove(self, root)

    def settings(
        self, root: str, *, endpoint_url: str = "", password: str | None = None, timeout_s: float = 30.0
    ) -> CloudSettings:
        """Return the settings of a cloud at `root`; `endpoint_url`: of a proxy in front of it."""
        url, given = _KINDS[self.kind].place(self, root, endpoint_url or self.endpoint_url, password or self.password)
        return CloudSettings(name="far", url=url, secrets=tuple(sorted(given.items())), timeout_s=timeout_s)

    def start(self) -> None:
        """Start it on its port, and wait until it listens.  Raises: RuntimeError."""
        launch = _KINDS[self.kind].launch(self)
        self._start_with(launch.command, launch.environment)


class _Kind:
    """What is peculiar to a kind of server."""

    def launch(self, server: CloudServer) -> Launch:
        raise NotImplementedError

    def place(self, server: CloudServer, root: str, endpoint: str, password: str) -> tuple[str, dict[str, str]]:
        raise NotImplementedError

    def make(self, server: CloudServer, root: str) -> None:
        raise NotImplementedError

    def remove(self, server: CloudServer, root: str) -> None:
        raise NotImplementedError


class _Azurite(_Kind):
    def launch(self, server: CloudServer) -> Launch:
        listen = ("--blobHost", HOST, "--blobPort", str(server.port), "--location", str(server.folder))
        return Launch(command=("azurite-blob", *listen, "--silent", "--skipApiVersionCheck", "--disableTelemetry"))

    def place(self, server: CloudServer, root: str, endpoint: str, password: str) -> tuple[str, dict[str, str]]:
        account = f"AccountName={_ACCOUNT};AccountKey={password};BlobEndpoint={endpoint}/{_ACCOUNT};"
        return f"fsspec+abfs://{root}/below", {"connection_string": f"DefaultEndpointsProtocol=http;{account}"}

    def make(self, server: CloudServer, root: str) -> None:
        self._container(server, "create_container", root)

    def remove(self, server: CloudServer, root: str) -> None:
        self._container(server, "delete_container", root)

    def _container(self, server: CloudServer, method: str, root: str) -> None:
        """By Microsoft's own client, synchronous: not the library under test."""
        from azure.storage.blob import BlobServiceClient

        secret = self.place(server, root, server.endpoint_url, server.password)[1]["connection_string"]
        with BlobServiceClient.from_connection_string(secret) as client:
            getattr(client, method)(root)


class _Gcs(_Kind):
    def launch(self, server: CloudServer) -> Launch:
        listen = ("start", "--host", HOST, "--port", str(server.port), "--in-memory")
        return Launch(command=("gcp-storage-emulator", *listen))

    def place(self, server: CloudServer, root: str, endpoint: str, password: str) -> tuple[str, dict[str, str]]:
        return f"fsspec+gs://{root}/below?endpoint_url={endpoint}", {"token": "anon"}

    def make(self, server: CloudServer, root: str) -> None:
        self._ask(server, "POST", "/storage/v1/b?project=test", json.dumps({"name": root}))

    def remove(self, server: CloudServer, root: str) -> None:
        listed = json.loads(self._ask(server, "GET", f"/storage/v1/b/{root}/o"))
        for item in listed.get("items", []):
            self._ask(server, "DELETE", f"/storage/v1/b/{root}/o/{item['name'].replace('/', '%2F')}")
        self._ask(server, "DELETE", f"/storage/v1/b/{root}")

    def _ask(self, server: CloudServer, method: str, target: str, body: str = "") -> bytes:
        with closing(HTTPConnection(HOST, server.port, timeout=START_TIMEOUT_S)) as connection:
            connection.request(method, target, body or None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {target}: {answer.status} {said[:200]!r}")
            return said


class _Samba(_Kind):
    def launch(self, server: CloudServer) -> Launch:
        folder, config = server.folder, server.folder / "smb.conf"
        kept = "\n".join(
            f"{name} = {folder}"
            for name in (
                "private dir",
                "lock dir",
                "state directory",
                "cache directory",
                "pid directory",
                "ncalrpc dir",
            )
        )
        config.write_text(
            f"[global]\n{kept}\nserver role = standalone server\nsmb ports = {server.port}\ninterfaces = lo\n"
            f"bind interfaces only = yes\ndisable netbios = yes\nload printers = no\nmap to guest = never\n"
            f"passdb backend = tdbsam:{folder}/passdb.tdb\nlog file = {folder}/smbd.log\n"
            f"[{_SHARE}]\npath = {server.data}\nread only = no\n"
        )
        subprocess.run(
            [find_program("smbpasswd"), "-c", str(config), "-L", "-s", "-a", server.user],
            input=f"{server.password}\n{server.password}\n".encode(),
            check=True,
            capture_output=True,
        )
        return Launch(command=("smbd", "-F", "-s", str(config)))

    def place(self, server: CloudServer, root: str, endpoint: str, password: str) -> tuple[str, dict[str, str]]:
        secret = {"user": server.user, "password": password}
        return f"fsspec+smb://{HOST}:{server.port}/{_SHARE}/{root}", secret

    def make(self, server: CloudServer, root: str) -> None:
        (server.data / root).mkdir()

    def remove(self, server: CloudServer, root: str) -> None:
        shutil.rmtree(server.data / root)


_KINDS: Final[dict[str, _Kind]] = {"azurite": _Azurite(), "gcs": _Gcs(), "samba": _Samba()}


@contextmanager
def cloud_server(kind: str, folder: Path) -> Iterator[CloudServer]:
    """Give a running server of `kind`, and stop it afterwards; see `CloudServer`."""
    server = CloudServer(kind, folder)
    try:
        yield server
    finally:
        server.stop()
