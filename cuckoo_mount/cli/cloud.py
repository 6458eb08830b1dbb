"""`cuckoo cloud`: the drive's clouds.

Everything that can be known to be wrong without the drive is said before it is opened or asked.  Values of secrets go
to the daemon through its control socket, and to nobody else.
"""

from __future__ import annotations

import getpass
import secrets
import sys
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import click
from attrs import evolve

from cuckoo_mount.cli import cloudview, common, drain, login
from cuckoo_mount.cli.completing import complete_clouds
from cuckoo_mount.cli.operate import Result, known_config, named_cloud, run_on_drive
from cuckoo_mount.cli.places import check_place, full_url
from cuckoo_mount.clouds import accounts
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import REQUESTS_PER_SECOND
from cuckoo_mount.config import CloudConfig, DriveConfig, drive_paths, parse_size
from cuckoo_mount.config.files import cloud_document
from cuckoo_mount.config.records import check_cloud_name
from cuckoo_mount.config.secrets import PROMPT, parse_secret_spec, prompted, resolve_secrets
from cuckoo_mount.errors import UsageError
from cuckoo_mount.format import ID_BYTES
from cuckoo_mount.multi.redundancy import describe_policy, parse_policy

F = TypeVar("F", bound=Callable[..., object])
Pairs = tuple[tuple[str, str], ...]
NO_LIMIT: Final = "none"
_OUR_OPTIONS_PREFIX: Final = "expect."


class CloudGroup(click.Group):
    """The group; a command that is not there is explained."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command.  Raises: click.UsageError."""
        found = super().get_command(ctx, cmd_name)
        if found is None and not ctx.resilient_parsing:
            raise common.no_command(cmd_name, self.commands, frozenset(), ctx)
        return found


@click.group("cloud", cls=CloudGroup, epilog="Example:  cuckoo cloud add usb /media/usb/cuckoo")
def command() -> None:
    """Add, list, test, change, log in to, empty and remove a drive's clouds.

    A cloud is a folder, here, in a Dropbox or on a WebDAV, SSH or FTP server, an S3 bucket, or what another
    PyFilesystem URL names.
    """


def _settings_options(function: F) -> F:
    """Add what `add` and `set` share."""
    for option in (
        click.option(
            "--secret",
            "secret_specs",
            multiple=True,
            metavar="K=SOURCE",
            help="A secret, e.g. user or password; SOURCE: file:PATH, env:VARIABLE, prompt or keyring.",
        ),
        click.option("--option", "options", multiple=True, metavar="K=V", help="An option of the storage's driver."),
        click.option(
            "--requests-per-second",
            metavar="N",
            help="Ask its account for no more than that; none: for as many as it takes.",
        ),
        click.option("--group", metavar="G", help="Clouds of one group may be lost together: an account, a house."),
        click.option("--reserve", metavar="SIZE", help="What is to stay free there."),
        click.option("--capacity", metavar="SIZE", help="What may be used of it; none: all it has."),
    ):
        function = option(function)
    return function


@command.command(
    "add",
    epilog="Example:  cuckoo cloud add offsite 's3://bucket?endpoint_url=https://s3.example.net' "
    "--secret user=prompt --secret password=prompt",
)
@click.argument("name")
@click.argument("url")
@_settings_options
@click.option("--read-only", is_flag=True, help="Read what is there, store and delete nothing.")
@click.option("--no-new", is_flag=True, help="Store no packs and epochs there; read and delete what is there.")
@common.common_options
def add(
    name: str,
    url: str,
    capacity: str | None,
    reserve: str | None,
    group: str | None,
    options: tuple[str, ...],
    requests_per_second: str | None,
    secret_specs: tuple[str, ...],
    read_only: bool,
    no_new: bool,
    drive: str,
    as_json: bool,
) -> int:
    """Make the storage at URL a cloud of the drive, called NAME, and use it from now on.

    URL is a folder, s3://bucket/prefix?endpoint_url=…, dropbox:///folder?app_key=KEY, webdavs://host/path,
    ssh://user@host/path, ftps://host/path, or any other PyFilesystem URL; docs/clouds.md has what each needs.
    """
    check_cloud_name(name)
    cloud = CloudConfig(
        name=name,
        url=full_url(url),
        cloud_id=secrets.token_bytes(ID_BYTES),
        capacity_bytes=_capacity(capacity),
        reserve_bytes=parse_size(reserve) if reserve is not None else 0,
        group=group or "",
        read_only=read_only,
        options=_merged((), (*_options(options), *_rate(name, requests_per_second))),
        secrets=_merged((), _secret_specs(secret_specs)),
    )
    config = known_config(drive)
    _check_new(cloud, config)
    check_place(cloud.url, drive_paths(drive), config, read_only=read_only)
    cloud = _asked(cloud, _secret_specs(secret_specs))
    if login.lacks_login(cloud.url, cloud.secrets):
        cloud = login.with_login(cloud, drive)
    result = _send("cloud-add", drive, cloud, use="no-new" if no_new else None)
    if as_json:
        common.print_json(result)
        return common.DONE
    click.echo(f"Cloud {name!r} added: {result.get('url')}")
    _show_hint(known_config(drive))
    return common.DONE


@command.command("set", epilog="Example:  cuckoo cloud set offsite --capacity 500GB --no-read-only")
@click.argument("name", shell_complete=complete_clouds)
@click.option("--url", metavar="URL", help="Where the same storage is now.")
@_settings_options
@click.option("--read-only/--no-read-only", default=None, help="Store and delete nothing there, or do so again.")
@click.option(
    "--no-new/--new",
    default=None,
    help="Store no more packs and epochs there, only read and delete; or do so again, which ends or undoes a drain.",
)
@common.common_options
def set_(
    name: str,
    url: str | None,
    capacity: str | None,
    reserve: str | None,
    group: str | None,
    options: tuple[str, ...],
    requests_per_second: str | None,
    secret_specs: tuple[str, ...],
    read_only: bool | None,
    no_new: bool | None,
    drive: str,
    as_json: bool,
) -> int:
    """Change how the cloud NAME is used or reached.

    --capacity none and --requests-per-second none take the limit away, --group '' the group, --option K= an option,
    --secret K= a secret.
    """
    wanted, specs = (*_options(options), *_rate(name, requests_per_second)), _secret_specs(secret_specs)
    sizes = {"capacity_bytes": _capacity(capacity), "reserve_bytes": parse_size(reserve or "0")}
    config = known_config(drive)
    old = named_cloud(name, config)
    cloud = evolve(
        old,
        url=full_url(url) if url is not None else old.url,
        capacity_bytes=sizes["capacity_bytes"] if capacity is not None else old.capacity_bytes,
        reserve_bytes=(sizes["reserve_bytes"] or 0) if reserve is not None else old.reserve_bytes,
        group=group if group is not None else old.group,
        read_only=read_only if read_only is not None else old.read_only,
        options=_merged(old.options, wanted),
        secrets=_merged(old.secrets, specs),
    )
    use = None if no_new is None else "no-new" if no_new else "normal"
    if cloud == old and use is None:
        raise UsageError(f"nothing of cloud {name!r} would change; `cuckoo cloud set --help` shows what can be set")
    if cloud.url != old.url:
        _check_new(cloud, evolve(config, clouds=tuple(other for other in config.clouds if other.name != name)))
        check_place(cloud.url, drive_paths(drive), config, read_only=cloud.read_only)
    result = _send("cloud-set", drive, _asked(cloud, specs), use=use)
    if as_json:
        common.print_json(result)
    else:
        click.echo(f"Cloud {name!r} changed.")
    return common.DONE


@command.command("list", epilog="Example:  cuckoo cloud list --json")
@common.common_options
def list_(drive: str, as_json: bool) -> int:
    """List the drive's clouds: how they are, what is on them, where they are."""
    clouds = cloudview.records(run_on_drive(drive, "cloud-list").get("clouds"))
    if as_json:
        common.print_json(clouds)
    elif not clouds:
        click.echo(f"No clouds yet.  Add one:  cuckoo cloud add NAME URL{common.drive_argument(drive)}")
    else:
        cloudview.show_clouds(clouds)
    return common.DONE


@command.command("test", epilog="Example:  cuckoo cloud test offsite")
@click.argument("name", shell_complete=complete_clouds)
@common.common_options
def test(name: str, drive: str, as_json: bool) -> int:
    """Store, read and delete an object on the cloud NAME, and say how long each step took."""
    named_cloud(name, known_config(drive))
    trial = run_on_drive(drive, "cloud-test", name=name)
    error = trial.get("error")
    if as_json:
        common.print_json(trial)
    else:
        cloudview.show_trial(trial)
    if error:
        common.say_error("cuckoo", str(error))
        return common.FAILED
    return common.DONE


@command.command("remove", epilog="Example:  cuckoo cloud remove usb")
@click.argument("name", shell_complete=complete_clouds)
@click.option("--lost", is_flag=True, help="Also if something lies nowhere else: it is lost then.")
@click.option("--dry-run", is_flag=True, help="Only say what lies there, and what lies nowhere else.")
@click.option("--yes", is_flag=True, help="Do not ask before something is given up.")
@common.common_options
def remove(name: str, lost: bool, dry_run: bool, yes: bool, drive: str, as_json: bool) -> int:
    """Take the cloud NAME off the drive.  What is stored there stays there; `cuckoo cloud drain` empties it first.

    Refused while something lies on no other cloud.
    """
    named_cloud(name, known_config(drive))
    if dry_run:
        return _show_removal(run_on_drive(drive, "cloud-remove", name=name, lost=lost, dry_run=True), as_json=as_json)
    if lost:
        common.confirm(f"Files of which something lies only on {name!r} cannot be read any more.  Remove it?", yes=yes)
    result = run_on_drive(drive, "cloud-remove", name=name, lost=lost)
    if as_json:
        common.print_json(result)
        return common.DONE
    if result.get("drained"):
        click.echo(f"Cloud {name!r} removed.  Nothing of the drive is left there.")
    else:
        click.echo(f"Cloud {name!r} removed.  What is stored there was left there; delete it by hand.")
    for key, one, more in (
        ("lost_packs", "pack was only there and is lost", "packs were only there and are lost"),
        ("degraded", "pack has fewer copies than wanted now", "packs have fewer copies than wanted now"),
    ):
        if count := result.get(key):
            click.echo(f"{count} {one if count == 1 else more}.")
    return common.DONE


def _show_removal(plan: Result, *, as_json: bool) -> int:
    if as_json:
        common.print_json(plan)
        return common.DONE
    there, alone = plan.get("packs"), plan.get("lost_packs")
    what = "1 pack lies" if there == 1 else f"{there} packs lie"
    hint = "; empty it first: cuckoo cloud drain" if alone else ""
    click.echo(f"{what} on {plan.get('name')!r}, {alone or 'none'} of them nowhere else{hint}.  Nothing was changed.")
    return common.DONE


command.add_command(drain.command)
command.add_command(login.command)


# -- what was typed --


def _capacity(text: str | None) -> int | None:
    return None if text in (None, NO_LIMIT) else parse_size(str(text))


def _options(texts: Iterable[str]) -> Pairs:
    """Return (key, value) pairs; an empty value takes an option away.  Raises: UsageError."""
    pairs = []
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"--option is written K=V, for example region=eu-central-1, not {text!r}")
        if key.startswith(_OUR_OPTIONS_PREFIX):
            raise UsageError(f"option {key!r} is set by cuckoo-mount itself; leave it out")
        pairs.append((key, value))
    return tuple(pairs)


def _rate(name: str, text: str | None) -> Pairs:
    """Return the option that limits requests; empty if it is not to change.  Raises: UsageError."""
    if text is None:
        return ()
    if text == "none":
        return ((REQUESTS_PER_SECOND, ""),)
    accounts.requests_per_second(CloudSettings(name=name, url="", options=((REQUESTS_PER_SECOND, text),)))
    return ((REQUESTS_PER_SECOND, text),)


def _secret_specs(texts: Iterable[str]) -> Pairs:
    """Return (key, reference) pairs; an empty reference takes a secret away.  Raises: UsageError."""
    return tuple(
        (text[:-1], "") if text.endswith("=") and text.count("=") == 1 and text[:-1] else parse_secret_spec(text)
        for text in texts
    )


def _merged(old: Pairs, new: Pairs) -> Pairs:
    merged = {**dict(old), **dict(new)}
    return tuple(sorted((key, value) for key, value in merged.items() if value))


def _asked(cloud: CloudConfig, specs: Pairs) -> CloudConfig:
    """Return the cloud with every secret that is to be typed in asked for, in the order of `specs`.

    Raises: UsageError without a terminal.
    """
    typed = {
        key: prompted(_typed(f"{key} of cloud {cloud.name}: ", key))
        for key, reference in dict(specs).items()
        if reference == PROMPT
    }
    return evolve(cloud, secrets=tuple((key, typed.get(key, reference)) for key, reference in cloud.secrets))


def _typed(prompt: str, key: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"--secret {key}=prompt needs a terminal; write {key}=file:PATH or {key}=env:VARIABLE")
    while True:
        if value := getpass.getpass(prompt):
            return value


# -- what is known of the drive --


def _check_new(cloud: CloudConfig, config: DriveConfig) -> None:
    """Refuse a name or URL that the drive has, before anybody is asked for secrets.  Raises: UsageError."""
    for other in config.clouds:
        if other.name == cloud.name:
            raise UsageError(
                f"drive {config.name!r} has a cloud {cloud.name!r} already; choose another name, or change that one: "
                f"cuckoo cloud set {cloud.name}{common.drive_argument(config.name)} …"
            )
        if other.url == cloud.url:
            raise UsageError(f"the same place is already cloud {other.name!r} of drive {config.name!r}")


def _send(operation: str, drive: str, cloud: CloudConfig, *, use: str | None) -> Result:
    values = dict(resolve_secrets(drive, cloud))
    return run_on_drive(drive, operation, cloud=cloud_document(cloud), secrets=values, use=use)


def _show_hint(config: DriveConfig) -> None:
    """Say what is still to be done for the redundancy that was asked for."""
    policy = parse_policy(config.redundancy)
    if (missing := policy.shares - len(config.clouds)) > 0:
        click.echo(f"For {describe_policy(policy)} {missing} more {'is' if missing == 1 else 'are'} needed.")
