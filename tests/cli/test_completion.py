"""Completion at TAB, and the help of every command: what it says works, and its example can be typed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cuckoo_mount.cli import common, main, mount, mount_helper
from cuckoo_mount.cli.completion import SHELLS, script_for, variable_of
from cuckoo_mount.config import CloudConfig, DrivePaths, create_default_drive, drive_paths
from cuckoo_mount.config.files import store_clouds
from tests.cli.commanding import Shell

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS: dict[str, click.Command] = {
    "cuckoo": main.group,
    "cuckoo-mount": mount.command,
    "mount.cuckoo": mount_helper.command,
}
LATER = {("cuckoo", "key", "rotate")}
WITH_STATUS_3 = {("cuckoo", name) for name in ("sync", "umount", "status", "fsck")}
"""Of the contract's list; scrub says it in other words."""


def complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Return what is offered for the last of `words`, a command line that begins with the program."""
    monkeypatch.setenv("COMP_WORDS", shlex.join(words[:-1]) + " " + words[-1])
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv(variable_of(words[0]), "bash_complete")
    with pytest.raises(SystemExit):
        common.run(PROGRAMS[words[0]], words[0], [])
    said, errors = capsys.readouterr()
    assert errors == ""
    return [line.partition(",")[2] for line in said.splitlines() if line]


@pytest.fixture
def two_drives(paths: DrivePaths, base: Path) -> None:
    """Drive `default` with clouds local and loft, drive `photos` with cloud usb."""
    for name, clouds in (("default", ("local", "loft")), ("photos", ("usb",))):
        create_default_drive(drive_paths(name))
        places = [CloudConfig(name=cloud, url=str(base / cloud), cloud_id=os.urandom(16)) for cloud in clouds]
        store_clouds(tuple(places), drive_paths(name))


@pytest.mark.usefixtures("two_drives")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["cuckoo", "st"], ["status"]),
        (["cuckoo", "cloud", "re"], ["remove"]),
        (["cuckoo", "status", "--dr"], ["--drive"]),
        (["cuckoo", "--ver"], ["--version"]),
        (["cuckoo", "status", "--drive", ""], ["default", "photos"]),
        (["cuckoo-mount", "--drive", "p"], ["photos"]),
        (["cuckoo", "cloud", "test", "l"], ["local", "loft"]),
        (["cuckoo", "cloud", "remove", "--drive", "photos", ""], ["usb"]),
        (["cuckoo", "cloud", "set", "--drive", "absent", ""], []),
        (["cuckoo", "completion", ""], list(SHELLS)),
        (["cuckoo", "gc", "--drive", "../x", "--d"], ["--dry-run"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_what_tab_offers(
    words: list[str], offered: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete(capsys, monkeypatch, *words) == offered


def test_tab_offers_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(capsys, monkeypatch, "cuckoo", "") == list(main.COMMANDS)
    # A typing mistake is nothing to talk about in the middle of a command line.
    complete(capsys, monkeypatch, "cuckoo", "nix", "")
    complete(capsys, monkeypatch, "cuckoo", "cloud", "nix", "")


def test_tab_with_a_broken_file(
    paths: DrivePaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text("no TOML")
    assert complete(capsys, monkeypatch, "cuckoo", "cloud", "test", "") == []


@pytest.mark.parametrize("name", SHELLS)
def test_the_scripts_are_the_shells_own_language(name: str, shell: Shell) -> None:
    script = shell.done("completion", name)
    assert script == script_for(name) + "\n"
    assert all(variable_of(program) in script for program in ("cuckoo", "cuckoo-mount"))
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    checked = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.usefixtures("two_drives")
def test_bash_completes(base: Path) -> None:
    """The whole way, as at TAB: bash runs our function, which runs `cuckoo`."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    programs = base / "bin"
    programs.mkdir()
    run = "#!/bin/sh\nexec {} -c 'import sys; from cuckoo_mount.cli.main import main; sys.exit(main())' \"$@\"\n"
    (programs / "cuckoo").write_text(run.format(shlex.quote(sys.executable)))
    (programs / "cuckoo").chmod(0o755)
    script = """
eval "$(cuckoo completion bash)"
COMP_WORDS=(cuckoo cloud test --drive photos "") COMP_CWORD=5
_cuckoo_completion cuckoo "" photos
printf '%s\\n' "${COMPREPLY[@]}"
"""
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("usb\n", "")


# -- help --


def every_command() -> list[tuple[tuple[str, ...], click.Command]]:
    """Return every command with the words by which it is called."""
    found: list[tuple[tuple[str, ...], click.Command]] = []

    def walk(words: tuple[str, ...], command: click.Command) -> None:
        found.append((words, command))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                walk((*words, name), inner)

    for program, command in PROGRAMS.items():
        walk((program,), command)
    return found


def test_every_command_explains_itself() -> None:
    for words, command in every_command():
        if words in LATER:
            continue
        assert command.help, words
        assert main.COMMANDS.get(words[-1]) or len(words) != 2, words
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help or parameter.hidden, (words, parameter)
        if words in WITH_STATUS_3:
            assert "Exit status 3" in command.help, words
    assert "Exit status as mount(8)" in str(mount_helper.command.help)
    assert "Exit status 1" in str(dict(every_command())["cuckoo", "destroy"].help)


def test_every_example_can_be_typed() -> None:
    seen = 0
    for words, command in every_command():
        if words in LATER:
            continue
        examples = [line for line in (command.epilog or "").splitlines() if "Example:  " in line]
        assert examples, f"{words} has no example"
        for example in examples:
            seen += sum(parses(typed) for typed in commands_in(example.partition("Example:  ")[2]))
    assert seen >= len(every_command()) - len(LATER)


def commands_in(line: str) -> list[list[str]]:
    """Return the commands of a shell's line, without redirections and what is around `$(…)`."""
    commands: list[list[str]] = [[]]
    for word in shlex.split(line.removeprefix('eval "$(').removesuffix(')"')):
        if word in ("&&", "|"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command[: command.index(">")] if ">" in command else command for command in commands]


def parses(typed: list[str]) -> bool:
    """Return whether a command is one of ours, after parsing it, to the innermost command, without running it."""
    if typed[0] == "mount":
        assert typed[1:3] == ["-t", "cuckoo"]
        typed = ["mount.cuckoo", *typed[3:]]
    if typed[0] not in PROGRAMS:
        return False
    command, arguments = PROGRAMS[typed[0]], typed[1:]
    while isinstance(command, click.Group):
        inner = command.get_command(click.Context(command), arguments[0])
        assert inner is not None
        command, arguments = inner, arguments[1:]
    command.make_context(typed[0], list(arguments)).close()
    return True
