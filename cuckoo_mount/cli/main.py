"""`cuckoo`: the group of commands, each in a module of its own that is imported when it is used.

The entry point of the command `cuckoo`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click
from click.shell_completion import CompletionItem

from cuckoo_mount.cli import common

PROGRAM: Final = "cuckoo"

# Command: what --help says of it.  Its module in cli/ has the same name, but for those in MODULES, and a click command
# `command`.
COMMANDS: Final[dict[str, str]] = {
    "mount": "Mount a drive, and make it if there is none (the same as cuckoo-mount).",
    "status": "Show what a mounted drive is doing, and its clouds.",
    "sync": "Wait until everything written so far is on the clouds.",
    "umount": "Send what is left, and unmount a drive.",
    "drives": "List the drives of this machine.",
    "init": "Make a drive for clouds of your own.",
    "recover": "Make a drive on this machine from one of its clouds and the passphrase.",
    "cloud": "Add, list, test, change, empty and remove a drive's clouds.",
    "set": "Change redundancy and durability of a drive, or of files and folders.",
    "import": "Copy files that lie in a cloud already into a drive.",
    "key": "Show the recovery key, change the passphrase.",
    "rebalance": "Even out how full the clouds are.",
    "gc": "Delete and compact packs that hold what nobody needs any more.",
    "scrub": "Compare what is on the clouds with what should be there, and repair it.",
    "fsck": "Check a drive's metadata and files, and repair it.",
    "destroy": "Delete a drive: its objects on every cloud, and everything of it here.",
    "completion": "Print what makes a shell complete commands and names.",
}
MODULES: Final[dict[str, str]] = {"import": "importing"}


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are called: `cuckoo status` starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or say what there is instead."""
        if cmd_name in COMMANDS:
            found: object = importlib.import_module(f"cuckoo_mount.cli.{MODULES.get(cmd_name, cmd_name)}").command
            assert isinstance(found, click.Command)
            return found
        if ctx.resilient_parsing:  # at TAB there is nobody to tell
            return None
        raise common.no_command(cmd_name, COMMANDS, (), ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what TAB offers; click would import every command for its help."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table from what is known without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(PROGRAM, cls=LazyGroup, epilog="Example:  cuckoo mount ~/Cuckoo && cuckoo status")
@click.version_option(package_name="cuckoo-mount", prog_name=PROGRAM)
@common.log_level_option
def group() -> None:
    """All of your clouds, one disk: look after a drive."""


def main() -> int:
    """Run `cuckoo`."""
    return common.run(group, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
