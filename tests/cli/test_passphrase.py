"""Where a passphrase comes from: files, standard input, credentials, and a real terminal."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cuckoo_mount.config.passphrase import read_new_passphrase, read_passphrase
from cuckoo_mount.errors import ConfigurationError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def written(base: Path, data: bytes, mode: int = 0o600) -> str:
    file = base / "passphrase"
    file.write_bytes(data)
    file.chmod(mode)
    return str(file)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"correct horse\n", "correct horse", id="line"),
        pytest.param(b"correct horse", "correct horse", id="no-end"),
        pytest.param(b"correct horse\r\n", "correct horse", id="other-end"),
        pytest.param(b"  two  blanks \n", "  two  blanks ", id="blanks"),
        pytest.param("pferdé\n".encode(), "pferdé", id="utf-8"),
    ],
)
def test_files(data: bytes, text: str, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(base, data)
    assert read_passphrase("default", file).text == text
    assert read_new_passphrase("default", file).text == text
    assert not caplog.records


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "has no passphrase in it", id="empty"),
        pytest.param(b"\n", "has no passphrase in it", id="only-a-line-end"),
        pytest.param(b"one\ntwo\n", "more than one line", id="lines"),
        pytest.param(b"one\n\n", "more than one line", id="empty-line"),
        pytest.param(b"x" * 5000, "more than one line of up to 4096", id="long"),
        pytest.param(b"\0", "more than one line", id="nul"),
        pytest.param(b"\xff\xfe\n", "no text in UTF-8", id="bytes"),
    ],
)
def test_files_that_are_refused(data: bytes, says: str, base: Path) -> None:
    with pytest.raises(UsageError, match=says):
        read_passphrase("default", written(base, data))


def test_a_missing_file(base: Path) -> None:
    with pytest.raises(ConfigurationError, match="absent cannot be read: No such file"):
        read_passphrase("default", str(base / "absent"))


def test_a_file_that_others_may_read(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(base, b"p", 0o640)
    with caplog.at_level(logging.WARNING):
        read_passphrase("default", file)
    assert f"other users of this machine may read {file}" in caplog.text


def test_a_pipe(base: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe\n")
    os.close(writing)
    try:
        assert read_passphrase("default", f"/dev/fd/{reading}").text == "from a pipe"
    finally:
        os.close(reading)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"typed\n")))
    assert read_passphrase("default", "-").text == "typed"


def test_credentials(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(base))
    (base / "cuckoo-passphrase").write_bytes(b"for all\n")
    assert read_passphrase("default", None).text == "for all"
    (base / "cuckoo-default").write_bytes(b"for one\n")
    assert read_passphrase("default", None).text == "for one"
    assert read_passphrase("other", None).text == "for all"
    assert read_passphrase("default", written(base, b"named")).text == "named"


class Terminal:
    """A program whose controlling terminal is ours, or which has none."""

    def __init__(self, function: str, *, terminal: bool) -> None:
        self.terminal, other_end = os.openpty()
        control = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" if terminal else ""
        code = (
            f"import sys\n{control}from cuckoo_mount.config import passphrase\nfrom cuckoo_mount.errors import *\n"
            f"try: print('got', passphrase.{function}('default', None).text)\n"
            "except CuckooError as error: print('error', error)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            start_new_session=True,
            stdin=other_end if terminal else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=other_end,
            text=True,
        )
        os.close(other_end)
        self.shown = ""

    def type(self, *answers: tuple[str, str]) -> str:
        """Type each answer when its prompt was shown; return what the program prints."""
        for prompt, answer in answers:
            while not self.shown.endswith(prompt):
                self.shown += os.read(self.terminal, 1000).decode()
            self.shown += "|"
            os.write(self.terminal, answer.encode())
        with suppress(OSError):  # EIO: nobody has the other end any more
            while more := os.read(self.terminal, 1000):
                self.shown += more.decode()
        os.close(self.terminal)
        output, _ = self.process.communicate(timeout=60)
        return output


def typed(function: str, answers: Sequence[tuple[str, str]]) -> tuple[str, str]:
    terminal = Terminal(function, terminal=True)
    output = terminal.type(*answers)
    return output, terminal.shown


@pytest.mark.slow
def test_typed() -> None:
    output, shown = typed("read_passphrase", [("Passphrase of drive default: ", "pferdé\n")])
    assert output == "got pferdé\n"
    assert "pferd" not in shown


@pytest.mark.slow
def test_an_empty_one_is_asked_for_again() -> None:
    output, shown = typed("read_passphrase", [("default: ", "\n"), ("default: ", "horse\n")])
    assert output == "got horse\n"
    assert "is not empty" in shown


@pytest.mark.slow
def test_no_answer() -> None:
    output, _ = typed("read_passphrase", [("default: ", "\x04")])
    assert output == "error no passphrase was typed\n"


@pytest.mark.slow
def test_a_new_one_is_typed_twice() -> None:
    first, again = "New passphrase of drive default: ", "The same again: "
    answers = [(first, "horse\n"), (again, "hose\n"), (first, "horse\n"), (again, "horse\n")]
    output, shown = typed("read_new_passphrase", answers)
    assert output == "got horse\n"
    assert "These were not the same." in shown
    output, _ = typed("read_new_passphrase", [(first, "a\n"), (again, "b\n")] * 3)
    assert output == "error no passphrase was set: it was not typed twice the same\n"


@pytest.mark.slow
@pytest.mark.parametrize("function", ["read_passphrase", "read_new_passphrase"])
def test_without_a_terminal(function: str) -> None:
    terminal = Terminal(function, terminal=False)
    output = terminal.type()
    assert output.startswith("error a passphrase is needed and there is no terminal")
    assert "--passphrase-file FILE" in output
