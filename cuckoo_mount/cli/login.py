"""`cuckoo cloud login`, and the same login where a cloud that needs one is added or recovered from.

The page to open is shown on stderr, and the code that its service gives is read from stdin: the browser may be on
another machine, and the command in a session of ssh.  What comes of it are secrets like those of `--secret`.
"""

from __future__ import annotations

import sys

import click
from attrs import evolve

from cuckoo_mount.cli import common
from cuckoo_mount.cli.completing import complete_clouds
from cuckoo_mount.cli.operate import Result, known_config, named_cloud, run_on_drive
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.logins import begin_login, driver_with_login
from cuckoo_mount.config import CloudConfig, drive_paths, shown
from cuckoo_mount.config.files import cloud_document
from cuckoo_mount.config.secrets import VALUE, part_url, prompted, resolve_secrets
from cuckoo_mount.errors import UsageError


@click.command("login", epilog="Example:  cuckoo cloud login dropbox")
@click.argument("name", shell_complete=complete_clouds)
@common.common_options
def command(name: str, drive: str, as_json: bool) -> int:
    """Log in to the cloud NAME in a browser, here or on any other machine.

    Prints the page to open, and waits for the code that is shown there.  For a cloud that says it needs a login; the
    drive need not be unmounted.
    """
    cloud = named_cloud(name, known_config(drive))
    logged_in = with_login(cloud, drive)
    values = dict(resolve_secrets(drive, logged_in))
    result: Result = run_on_drive(drive, "cloud-set", cloud=cloud_document(logged_in), secrets=values, use=None)
    if as_json:
        common.print_json(result)
    else:
        click.echo(f"Logged in to cloud {name!r}.")
    return common.DONE


def lacks_login(url: str, secrets: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a cloud's driver has a login in a browser, and none of the secrets that it gives is there."""
    driver = driver_with_login(url)
    given = {key for key, _ in (*secrets, *part_url(url)[1])}
    return driver is not None and given.isdisjoint(driver.login_secrets)


def with_login(cloud: CloudConfig, drive: str) -> CloudConfig:
    """Return `cloud` with the secrets of a new login, which the user is asked for.

    Raises: UsageError for a cloud without a login, or one that lacks what it needs; CloudError, ConfigurationError.
    """
    driver = driver_with_login(cloud.url)
    if driver is None:
        raise UsageError(
            f"cloud {cloud.name!r} has no login in a browser; its secrets are changed with: "
            f"cuckoo cloud set {cloud.name} --secret K=prompt{common.drive_argument(drive)}"
        )
    # What logs in anew must not fail for want of what it replaces.
    kept = tuple(pair for pair in cloud.secrets if pair[0] not in driver.login_secrets)
    secrets = resolve_secrets(drive, evolve(cloud, secrets=kept))
    settings = CloudSettings(name=cloud.name, url=cloud.url, options=cloud.options, secrets=secrets)
    given = {key: value for key, value in log_in(settings).items() if value}
    _say_if_moved(cloud, tuple(given), drive)
    return evolve(cloud, secrets=tuple(sorted({**dict(kept), **{key: prompted(given[key]) for key in given}}.items())))


def log_in(settings: CloudSettings) -> dict[str, str]:
    """Have the user log in to a cloud whose driver has a login; return the secrets that came of it.

    Raises: UsageError, CloudNeedsLogin for a wrong code, CloudUnavailable.
    """
    login = begin_login(settings)
    click.echo(f"Open this page in a browser, on any machine, and allow it:\n\n  {login.url}\n", err=True)
    return login.finish(_read_code())


def _read_code() -> str:
    click.echo("Then paste the code that it shows: ", nl=False, err=True)
    code = sys.stdin.readline().strip()
    if not code:
        raise UsageError("no code was given; run the command again, and paste the code of the page it shows")
    return code


def _say_if_moved(cloud: CloudConfig, keys: tuple[str, ...], drive: str) -> None:
    """Tell where a secret is now that was in a file, a variable or the keyring so far."""
    moved = [key for key, reference in cloud.secrets if key in keys and not reference.startswith(VALUE)]
    if moved:
        place = shown(drive_paths(drive).config_file)
        common.say_error("cuckoo", f"note: {', '.join(moved)} of cloud {cloud.name} is kept in {place} from now on")
