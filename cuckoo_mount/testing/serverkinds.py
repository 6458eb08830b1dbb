"""How each kind of S3 server is started and what is peculiar to it: a table for servers.py, its only user.

Pure but for the configuration files that a launch writes into the server's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import field, frozen

_HOST: Final = "127.0.0.1"
_ADMIN_KEYS: Final = ("test-admin", "test-admin-secret")


@frozen(slots=True, kw_only=True)
class Launch:
    """A command to start, what to run to its end before, and the environment that both add to ours."""

    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    environment: Mapping[str, str] = field(factory=dict)


@frozen(slots=True, kw_only=True)
class S3Kind:
    """One kind of server.

    `launch`: from folder, ports (the first speaks S3), access key and secret key.  `provider`: what rclone as a client
    calls it.  `admin_keys`: of who may make buckets, if that is not everyone.  `leftovers`: files outside its folder
    that it leaves behind, by ports.
    """

    ports: int
    launch: Callable[[Path, Sequence[int], str, str], Launch]
    provider: str
    admin_keys: tuple[str, str] | None = None
    leftovers: Callable[[Sequence[int]], list[str]] = field(default=lambda _: [])
    checks_credentials: bool = True
    keeps_data: bool = True
    ends_quickly: bool = True


def _rclone(folder: Path, ports: Sequence[int], access_key: str, secret_key: str) -> Launch:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    command = ("rclone", "serve", "s3", "--config", "", "--addr", f"{_HOST}:{ports[0]}", str(data))
    return Launch(command=command, environment={"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'})


def _weed(folder: Path, ports: Sequence[int], access_key: str, secret_key: str) -> Launch:
    """All in one process.  Our key may not make buckets: with the right to, weed makes them at the first put."""
    (folder / "data").mkdir(exist_ok=True)
    actions = ["Read", "Write", "List", "Tagging"]
    identities = [
        _weed_identity("admin", *_ADMIN_KEYS, ["Admin", *actions]),
        _weed_identity("drive", access_key, secret_key, actions),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    names = ("s3", "master", "volume", "filer")
    addresses = [f"-{name}.port={port}" for name, port in zip(names, ports[:4], strict=True)]
    # Without these each would take its port + 10000, which may be someone else's or beyond 65535.
    addresses += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]
    command = (
        *("weed", "server", "-dir=data", f"-ip={_HOST}", f"-ip.bind={_HOST}", *addresses),
        *("-s3", "-s3.config=s3.json", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.telemetry=false", "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=64", "-volume.max=200"),
        *("-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
    )
    # One volume per bucket to begin with, instead of seven.
    return Launch(command=command, environment={"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"})


def _weed_identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}


def _weed_leftovers(ports: Sequence[int]) -> list[str]:
    _, *grpc = ports[4:]
    names = ("master", "volume", "filer")
    sockets = [f"/tmp/seaweedfs-{name}-grpc-{port}.sock" for name, port in zip(names, grpc, strict=True)]
    return [*sockets, f"/tmp/seaweedfs-s3-grpc-{ports[4]}.sock"]


def _juicefs(folder: Path, ports: Sequence[int], access_key: str, secret_key: str) -> Launch:
    """A gateway to a file system on SQLite and a folder; every folder at its top is a bucket."""
    metadata = f"sqlite3://{folder}/meta.db"
    make = ("juicefs", "--no-agent", "format", metadata, "volume", "--bucket", f"{folder}/data/", "--trash-days", "0")
    command = (
        *("juicefs", "--no-agent", "gateway", metadata, f"{_HOST}:{ports[0]}", "--multi-buckets", "--no-banner"),
        *("--metrics", f"{_HOST}:{ports[1]}", "--log", f"{folder}/gateway.log", "--no-usage-report"),
        *("--cache-dir", f"{folder}/cache", "--cache-size", "0", "--backup-meta", "0", "--no-bgjob"),
    )
    keys = {"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key}
    # It keeps a `.minio` at home.
    environment = {**keys, "HOME": str(folder)}
    made = (folder / "meta.db").exists()
    return Launch(command=command, before=() if made else (make,), environment=environment)


def _moto(folder: Path, ports: Sequence[int], access_key: str, secret_key: str) -> Launch:
    return Launch(command=("moto_server", "-H", _HOST, "-p", str(ports[0])))


KINDS: Final[dict[str, S3Kind]] = {
    "rclone": S3Kind(ports=1, launch=_rclone, provider="Rclone"),
    # Asked to end, weed waits for 16 s; it is killed, which its data survive.
    "weed": S3Kind(
        ports=8,
        launch=_weed,
        provider="SeaweedFS",
        admin_keys=_ADMIN_KEYS,
        leftovers=_weed_leftovers,
        ends_quickly=False,
    ),
    "juicefs": S3Kind(ports=2, launch=_juicefs, provider="Minio"),
    "moto": S3Kind(ports=1, launch=_moto, provider="Other", checks_credentials=False, keeps_data=False),
}
