"""PyFilesystem imports without pkg_resources, in silence, and leaves no false one behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Stands for a setuptools without pkg_resources, whatever is installed here.
_HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "pkg_resources":
            raise ModuleNotFoundError("No module named 'pkg_resources'", name=name)
sys.meta_path.insert(0, Hide())
"""
_USE = """
from cuckoo_mount.clouds import fsimport
assert "s3" in fsimport.known_schemes() and "dropbox" in fsimport.known_schemes()
memory = fsimport.open_fs("mem://")
memory.writetext("a", "b")
print(type(fsimport.open_fs("s3://key:secret@bucket")).__name__)
print(type(fsimport.open_fs("dropbox:///?access_token=x")).__name__)
"""


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-W", "error::DeprecationWarning:pkg_resources", "-c", program],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


@pytest.mark.slow
def test_drivers_open_without_pkg_resources_and_none_is_left_behind() -> None:
    left = "\nimport sys\nassert 'pkg_resources' not in sys.modules\n"
    assert run(_HIDE + _USE + left).split() == ["S3FS", "DropboxFS"]


@pytest.mark.slow
def test_no_warning_with_pkg_resources_installed() -> None:
    assert run(_USE).split() == ["S3FS", "DropboxFS"]


@pytest.mark.slow
def test_one_that_was_imported_before_stays() -> None:
    program = (
        "import sys, types\n"
        "real = types.ModuleType('pkg_resources')\n"
        "real.declare_namespace = lambda name: None\n"
        "real.iter_entry_points = lambda group, name=None: iter(())\n"
        "sys.modules['pkg_resources'] = real\n"
        "from cuckoo_mount.clouds import fsimport\n"
        "assert fsimport.open_fs('mem://')\n"
        "assert sys.modules['pkg_resources'] is real\n"
        "print('kept')\n"
    )
    assert run(program).split() == ["kept"]


def test_the_stand_in_says_what_it_lacks() -> None:
    program = _HIDE + (
        "from cuckoo_mount.clouds import fsimport\n"
        "with fsimport.stand_in(), fsimport.stand_in():\n"
        "    import pkg_resources\n"
        "    assert b'' != pkg_resources.resource_string('fs', '_version.py')\n"
        "    try:\n"
        "        pkg_resources.get_distribution\n"
        "    except AttributeError as error:\n"
        "        print(error)\n"
        "assert 'pkg_resources' not in sys.modules\n"
    )
    assert "get_distribution needs setuptools < 82" in run(program)
