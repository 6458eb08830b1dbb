"""What every command has: its common options, and the one place where errors become a line and an exit status.

Used by every module of cli/ that is a command.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Final, TypeVar

import click

from cuckoo_mount.cli.completing import complete_drives
from cuckoo_mount.cli.logs import LEVELS, log_to_file, log_to_terminal
from cuckoo_mount.config.paths import drive_paths, shown
from cuckoo_mount.errors import CuckooError, UsageError

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., object])
DEFAULT_DRIVE: Final = "default"
DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNSENT: Final = 3
"""Done, but degraded or with data that is not on the clouds yet."""
INTERRUPTED: Final = 130


def drive_option(function: F) -> F:
    """Add --drive."""
    return click.option(
        "--drive",
        default=DEFAULT_DRIVE,
        show_default=True,
        metavar="NAME",
        shell_complete=complete_drives,
        help="Which drive is meant.",
    )(function)


def drive_argument(drive: str) -> str:
    """Return what a command line that is shown needs to mean this drive: nothing for the default one."""
    return "" if drive == DEFAULT_DRIVE else f" --drive {drive}"


def log_level_option(function: F) -> F:
    """Add --log-level; `debug` also shows tracebacks."""
    return click.option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default=None,
        expose_value=False,
        callback=_set_log_level,
        is_eager=True,
        help="What is logged; `debug` also shows where errors come from.",
    )(function)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def common_options(function: F) -> F:
    """Add what every `cuckoo` command accepts: --drive, --json, --log-level."""
    return drive_option(json_option(log_level_option(function)))


def _set_log_level(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    seen = context.meta  # shared with the group: `cuckoo --log-level debug status --log-level debug` means it once
    if value is not None and seen.setdefault("cuckoo.log_level", value) is value:
        log_to_terminal(value)


def print_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def innermost(error: BaseException) -> BaseException:
    """Return what nurseries have wrapped, if it is one error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def say_error(program: str, message: str) -> None:
    """Print an error on stderr, if there is one."""
    with suppress(OSError):
        print(f"{program}: {message}", file=sys.stderr)


def count_of(number: int, what: str, many: str = "") -> str:
    """Return `1 pack`, `2 packs`; `many`: the word for several where an s does not make it."""
    return f"1 {what}" if number == 1 else f"{number} {many or f'{what}s'}"


def no_command(name: str, known: Iterable[str], later: Iterable[str], context: click.Context) -> click.UsageError:
    """Return the error for a command that is not there, with what may be meant."""
    if name in later:
        return click.UsageError(f"the command {name} comes with a later release", context)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
    return click.UsageError(f"there is no command {name!r}; {hint}", context)


def confirm(question: str, *, yes: bool) -> None:
    """Return if the user agrees, or said --yes.  Raises: UsageError without a terminal, click.Abort after a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question}  There is no terminal to ask on; say --yes if it is meant")
    click.confirm(question, abort=True, err=True)


def run(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.  Every error becomes one line or two on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = command.main(given, prog_name=program, standalone_mode=False)
        print(end="", flush=True)  # while a closed pipe can still be told
        return status if isinstance(status, int) else DONE
    except click.ClickException as error:
        return _usage(program, error)
    except CuckooError as error:
        _trace()
        say_error(program, str(error))
        return int(getattr(error, "status", error.exit_status))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # `cuckoo … | head`: nobody reads any more; keeps Python from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except OSError as error:
        _trace()
        say_error(program, f"the local system answered: {error}")
        return FAILED
    except Exception as error:
        return _bug(program, error, given)


def _usage(program: str, error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return USAGE
    say_error(program, error.format_message().replace("\n", " "))
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else program
        print(f"`{path} --help` shows how it is used.", file=sys.stderr)
        return USAGE
    return FAILED


def _trace() -> None:
    if log.isEnabledFor(logging.DEBUG):
        traceback.print_exc()


def _bug(program: str, error: Exception, arguments: Sequence[str]) -> int:
    """Write the traceback where it can be found again, and say so in a line."""
    where = "run it again with --log-level debug to see where"
    _trace()
    with suppress(OSError, CuckooError):
        path = drive_paths(_drive_in(arguments)).log
        log_to_file(path, "info")
        where = f"see {shown(path)}"
    log.critical("%s: a bug in cuckoo-mount, please report it", program, exc_info=error)
    say_error(program, f"failed because of a bug ({type(error).__name__}: {error}); {where}")
    return FAILED


def _drive_in(arguments: Sequence[str]) -> str:
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == "--drive":
            return following
        if argument.startswith("--drive="):
            return argument.removeprefix("--drive=")
    return DEFAULT_DRIVE
