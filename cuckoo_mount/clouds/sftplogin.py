"""How an SSH server is reached and believed: known hosts, keys, agent, password, ~/.ssh/config.  Used by sftp.py.

fs.sshfs, PyFilesystem's driver, is not used to open the connection: it accepts any host key, and looks for it by IP
address (its source).  Here a server whose key is not known is refused.  Imports paramiko only when called.  Blocks.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.remoteplace import RemotePlace
from cuckoo_mount.clouds.translate import hide_secrets
from cuckoo_mount.errors import CloudNeedsLogin, CloudRefused, UsageError

if TYPE_CHECKING:
    import paramiko

KEY_FILE, KNOWN_HOSTS, CONFIG = "key_file", "known_hosts", "ssh_config"
OPTIONS: Final = (KEY_FILE, KNOWN_HOSTS, CONFIG)
PASSPHRASE: Final = "passphrase"
CONNECT_TIMEOUT_S: Final = 10.0
_PORT: Final = 22
_KEEPALIVE_S: Final = 30
_SYSTEM_KNOWN_HOSTS: Final = "/etc/ssh/ssh_known_hosts"


def require_paramiko(settings: CloudSettings) -> None:
    """Raises: UsageError if it is not installed."""
    try:
        import paramiko  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"cloud {settings.name}: SFTP needs a package that is not installed: pip install 'cuckoo-mount[sftp]'"
        ) from error
    # It reports every lost connection on stderr, from a thread of its own; we raise what it raises.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


def log_in(settings: CloudSettings, place: RemotePlace) -> paramiko.SSHClient:
    """Return a connection to the server.  Raises: CloudRefused; UsageError; what paramiko raises."""
    import paramiko

    config = _config(settings, place)
    host = config.get("hostname", place.host)
    port = place.port or int(config.get("port", _PORT))
    user = place.user or config.get("user")
    key_files = [place.options[KEY_FILE]] if KEY_FILE in place.options else config.get("identityfile", [])
    client = paramiko.SSHClient()
    _load_known_hosts(client, settings, place)
    client.set_missing_host_key_policy(_refusing_policy(settings, user, host, port))
    # A key or password that was named is the one that is meant: servers count the others as failures.
    look = KEY_FILE not in place.options and place.password is None
    try:
        client.connect(
            host,
            port,
            user,
            place.password,
            key_filename=[os.path.expanduser(file) for file in key_files] or None,
            passphrase=place.secrets.get(PASSPHRASE),
            allow_agent=look,
            look_for_keys=look,
            timeout=min(settings.timeout_s, CONNECT_TIMEOUT_S),
            banner_timeout=settings.timeout_s,
            auth_timeout=settings.timeout_s,
            channel_timeout=settings.timeout_s,
        )
    except BaseException as error:
        client.close()
        found = _explain(error, settings, user, host, port)
        if found is None:
            raise
        raise found from error
    transport = client.get_transport()
    if transport is not None:
        transport.set_keepalive(_KEEPALIVE_S)
    return client


def _config(settings: CloudSettings, place: RemotePlace) -> paramiko.SSHConfigDict:
    import paramiko

    named = place.options.get(CONFIG)
    path = os.path.expanduser(named or "~/.ssh/config")
    try:
        return paramiko.SSHConfig.from_path(path).lookup(place.host)
    except FileNotFoundError as error:
        if named is None:
            return paramiko.SSHConfigDict()
        raise UsageError(f"cloud {settings.name}: {CONFIG} {named!r} is not there") from error
    except (OSError, paramiko.ConfigParseError) as error:
        raise UsageError(f"cloud {settings.name}: {path} cannot be read: {error}") from error


def _load_known_hosts(client: paramiko.SSHClient, settings: CloudSettings, place: RemotePlace) -> None:
    named = place.options.get(KNOWN_HOSTS)
    if named is None:
        client.load_system_host_keys()
        if os.path.isfile(_SYSTEM_KNOWN_HOSTS):
            client.load_system_host_keys(_SYSTEM_KNOWN_HOSTS)
        return
    try:
        client.load_system_host_keys(os.path.expanduser(named))
    except OSError as error:
        raise UsageError(f"cloud {settings.name}: {KNOWN_HOSTS} {named!r} cannot be read: {error.strerror}") from error


def _address(user: str | None, host: str, port: int) -> str:
    """Return the arguments of ssh for it."""
    return f"{'' if port == _PORT else f'-p {port} '}{f'{user}@' if user else ''}{host}"


def _refusing_policy(settings: CloudSettings, user: str | None, host: str, port: int) -> paramiko.MissingHostKeyPolicy:
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko has no types
        def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
            raise CloudRefused(
                f"the server's key is not known ({key.get_name()} {key.fingerprint}); run `ssh "
                f"{_address(user, host, port)}`, compare what it shows with what the server's owner says, answer yes",
                cloud=settings.name,
            )

    return Refuse()


def _explain(
    error: BaseException, settings: CloudSettings, user: str | None, host: str, port: int
) -> CloudRefused | None:
    """Return what to do about a login that failed for good, None for other trouble."""
    import paramiko

    kind: type[CloudRefused] = CloudRefused
    who = f"user {user}" if user else "you"
    if isinstance(error, paramiko.BadHostKeyException):
        name = host if port == _PORT else f"[{host}]:{port}"
        text = (
            "the server's key is not the one it had: somebody may be in between. If its owner has changed it: "
            f"ssh-keygen -R '{name}', then ssh {_address(user, host, port)}"
        )
    elif isinstance(error, paramiko.PasswordRequiredException):
        kind = CloudNeedsLogin
        text = f"the key of {who} has a passphrase; give it by --secret {PASSPHRASE}=…, or add the key to your agent"
    elif isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error):
        kind = CloudNeedsLogin
        text = (
            f"the server refuses {who}; give --secret password=…, the option {KEY_FILE}, or a key in your agent "
            "or ~/.ssh that it knows"
        )
    else:
        return None
    return kind(hide_secrets(text, settings), cloud=settings.name)
