"""The fixture `mount` of tests/mount, for the tests that look at a drive from both sides."""

from tests.mount.conftest import mount as mount
