"""How each kind of file server is started and what is peculiar to it: a table for fileservers.py, its only user.

Pure but for the configuration files that a launch writes into the server's folder.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from attrs import evolve, field, frozen

from cuckoo_mount.testing.serverkinds import Launch
from cuckoo_mount.testing.serverprocess import HOST

_TLS_KEY, _TLS_CERTIFICATE = "tls_key.pem", "tls_certificate.pem"
_HOST_KEY, _USER_KEY = "host_key", "user_key"


@frozen(slots=True, kw_only=True)
class Start:
    """What a launch is given: the server's folder, in which `data` is what it serves, its ports, who may log in."""

    folder: Path
    port: int
    control_port: int
    user: str
    password: str

    @property
    def data(self) -> Path:
        """The folder that is served."""
        return self.folder / "data"


@frozen(slots=True, kw_only=True)
class FileKind:
    """One kind of server: the scheme of its URLs, and its command.

    `root`: the path under which it serves the folder it is given.  `options`: what a URL needs, by the server's
    folder and the port in it.
    `user`: who has to log in, if that is not free to choose.
    `notice`: lets it look again at folders that were changed on the disk; given the port by which it is controlled.
    """

    scheme: str
    launch: Callable[[Start], Launch]
    root: Callable[[Path], str] = field(default=lambda _: "")
    options: Callable[[Path, int], dict[str, str]] = field(default=lambda _, __: {})
    user: str = ""
    takes_passwords: bool = True
    notice: Callable[[int], None] = field(default=lambda _: None)


def _rclone(start: Start, protocol: str, *options: str) -> Launch:
    listen = ("--addr", f"{HOST}:{start.port}", "--rc", "--rc-no-auth", "--rc-addr", f"{HOST}:{start.control_port}")
    command = ("rclone", "serve", protocol, "--config", "", *listen, *options, str(start.data))
    return Launch(command=command, environment={"RCLONE_USER": start.user, "RCLONE_PASS": start.password})


def _rclone_forget(control_port: int) -> None:
    """Let rclone forget what folders were like: it believes in that for 5 minutes."""
    with closing(HTTPConnection(HOST, control_port)) as connection:
        connection.request("POST", "/vfs/forget")
        connection.getresponse().read()


def _rclone_webdav(start: Start) -> Launch:
    return _rclone(start, "webdav")


def _rclone_sftp(start: Start) -> Launch:
    launch = _rclone(start, "sftp", "--key", str(start.folder / _HOST_KEY))
    return evolve(launch, before=_new_key(start.folder / _HOST_KEY))


def _rclone_ftp(start: Start) -> Launch:
    return _rclone(start, "ftp")


def _pyftpdlib(start: Start) -> Launch:
    # Its command waits for 3 s after a wrong password.
    program = (
        "import sys\nfrom pyftpdlib.handlers import FTPHandler\nFTPHandler.auth_failed_timeout = 0.01\n"
        "from pyftpdlib.__main__ import main\nmain(sys.argv[1:])\n"
    )
    listen = ("-i", HOST, "-p", str(start.port), "-w", "-d", str(start.data))
    return Launch(command=("python", "-c", program, *listen, "-u", start.user, "-P", start.password))


def _pyftpdlib_tls(start: Start) -> Launch:
    plain = _pyftpdlib(start)
    key, certificate = str(start.folder / _TLS_KEY), str(start.folder / _TLS_CERTIFICATE)
    subject = ("-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}", "-days", "2")
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, "-keyout", key, "-out", certificate)
    files = ("--tls", "--keyfile", key, "--certfile", certificate, "--tls-control-required", "--tls-data-required")
    return Launch(command=(*plain.command, *files), before=(make,))


def _with_certificate(folder: Path, port: int) -> dict[str, str]:
    return {"ca_file": str(folder / _TLS_CERTIFICATE)}


def _openssh(start: Start) -> Launch:
    """Without privileges it cannot check passwords: the user who starts it logs in with a key."""
    folder = start.folder
    before = (*_new_key(folder / _HOST_KEY), *_new_key(folder / _USER_KEY))
    if os.geteuid() == 0:  # else it refuses to start; Debian's own service makes it
        os.makedirs("/run/sshd", exist_ok=True)
    (folder / "sshd_config").write_text(
        f"ListenAddress {HOST}\nPort {start.port}\nHostKey {folder}/{_HOST_KEY}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/{_USER_KEY}.pub\nStrictModes no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    return Launch(command=("sshd", "-D", "-e", "-f", str(folder / "sshd_config")), before=before)


def _new_key(path: Path) -> tuple[tuple[str, ...], ...]:
    return () if path.exists() else (("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)),)


def _known_hosts(folder: Path, port: int) -> dict[str, str]:
    """Let the server be known at `port`, and nothing else of this machine's settings count."""
    known, config = folder / "known_hosts", folder / "ssh_config"
    kind, key = (folder / f"{_HOST_KEY}.pub").read_text().split()[:2]
    line = f"[{HOST}]:{port} {kind} {key}\n"
    lines = known.read_text() if known.exists() else ""
    if line not in lines:
        known.write_text(lines + line)
    config.touch()
    return {"known_hosts": str(known), "ssh_config": str(config)}


def _with_key(folder: Path, port: int) -> dict[str, str]:
    return {**_known_hosts(folder, port), "key_file": str(folder / _USER_KEY)}


def _wsgidav(start: Start) -> Launch:
    config = start.folder / "wsgidav.json"
    users = {"*": {start.user: {"password": start.password}}}
    settings = {
        "host": HOST,
        "port": start.port,
        "provider_mapping": {"/": str(start.data)},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "simple_dc": {"user_mapping": users},
        "dir_browser": {"enable": False},
        "logging": {"enable": False},
    }
    config.write_text(json.dumps(settings))
    return Launch(command=("wsgidav", "--config", str(config)))


KINDS: Final[dict[str, FileKind]] = {
    "rclone-webdav": FileKind(scheme="webdav", launch=_rclone_webdav, notice=_rclone_forget),
    "wsgidav": FileKind(scheme="webdav", launch=_wsgidav),
    "openssh": FileKind(
        scheme="ssh",
        launch=_openssh,
        root=str,
        options=_with_key,
        user=pwd.getpwuid(os.geteuid()).pw_name,
        takes_passwords=False,
    ),
    "rclone-sftp": FileKind(scheme="sftp", launch=_rclone_sftp, options=_known_hosts, notice=_rclone_forget),
    "pyftpdlib": FileKind(scheme="ftp", launch=_pyftpdlib),
    "pyftpdlib-tls": FileKind(scheme="ftps", launch=_pyftpdlib_tls, options=_with_certificate),
    "rclone-ftp": FileKind(scheme="ftp", launch=_rclone_ftp, notice=_rclone_forget),
}
