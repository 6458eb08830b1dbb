"""`cuckoo completion`: print what makes bash, zsh or fish complete commands, options, drives and clouds.

The scripts are click's own.  At TAB they call the program with `_CUCKOO_COMPLETE` set, and click answers in place of
the command; completing.py gives the names.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from cuckoo_mount.cli import common

SHELLS: Final = ("bash", "zsh", "fish")
PROGRAMS: Final = ("cuckoo", "cuckoo-mount")


@click.command("completion", epilog='Example:  eval "$(cuckoo completion bash)"')
@click.argument("shell", type=click.Choice(SHELLS))
@common.common_options
def command(shell: str, drive: str, as_json: bool) -> int:
    """Print the script that makes SHELL complete `cuckoo` and `cuckoo-mount`: bash, zsh or fish.

    To have it always, put into ~/.bashrc, or ~/.zshrc after compinit:  eval "$(cuckoo completion bash)" (or zsh);
    into ~/.config/fish/config.fish:  cuckoo completion fish | source
    """
    script = script_for(shell)
    if as_json:
        common.print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
    return common.DONE


def script_for(shell: str) -> str:
    """Return the script for one of `SHELLS`."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the shells in SHELLS"
    # The command itself matters only when it completes: the script has nothing of it but its name.
    nothing = click.Command("nothing")
    return "\n".join(kind(nothing, {}, program, variable_of(program)).source() for program in PROGRAMS)


def variable_of(program: str) -> str:
    """Return the environment variable by which click is asked to complete `program`."""
    return f"_{program.replace('-', '_')}_complete".upper()
