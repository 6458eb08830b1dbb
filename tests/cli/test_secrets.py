"""Secrets of clouds: what --secret means, what stands for it in the TOML file, and errors that never show one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from cuckoo_mount.config import CloudConfig
from cuckoo_mount.config.secrets import parse_secret_spec, prompted, resolve_secrets, secrets_in_url
from cuckoo_mount.errors import ConfigurationError, UsageError


def cloud(**secrets: str) -> CloudConfig:
    return CloudConfig(name="off", url="s3://b", cloud_id=bytes(16), secrets=tuple(sorted(secrets.items())))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password=env:S3_SECRET", ("password", "env:S3_SECRET")),
        ("user=file:/etc/user", ("user", "file:/etc/user")),
        ("user=file:sub/u=1", ("user", "file:{here}/sub/u=1")),
        ("user=file:~/u", ("user", "file:{home}/u")),
        ("app_key=prompt", ("app_key", "prompt")),
        ("password=keyring", ("password", "keyring")),
    ],
)
def test_specs(text: str, expected: tuple[str, str], base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "work").mkdir()
    monkeypatch.chdir(base / "work")
    key, reference = expected
    assert parse_secret_spec(text) == (key, reference.format(here=base / "work", home=base))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hush", "K=file:PATH"),
        ("=hush", "K=file:PATH"),
        ("a b=hush", "K=file:PATH"),
        ("password=hush", "password=prompt"),
        ("password=", "password=prompt"),
        ("password=value:hush", "password=prompt"),
        ("password=env:", "name of a variable"),
        ("password=env:hu-sh", "name of a variable"),
        ("password=file:", "comes a path"),
    ],
)
def test_bad_specs_are_explained_and_not_repeated(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_secret_spec(text)
    assert "hush" not in str(caught.value)


def test_values(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "secret").write_bytes(" lead ü\r\nsecond line\n".encode())
    monkeypatch.setenv("S3_USER", "me")
    found = resolve_secrets(
        "default", cloud(a=f"file:{base}/secret", b="env:S3_USER", c=prompted("typed: =x"), d=prompted("value:v"))
    )
    assert found == (("a", " lead ü"), ("b", "me"), ("c", "typed: =x"), ("d", "value:v"))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("file:{base}/absent", "there is no file {base}/absent; put the secret there"),
        ("file:{base}/empty", "begins with an empty line"),
        ("file:{base}/binary", "is no text in UTF-8"),
        ("file:{base}", "check its owner and rights"),
        ("env:CUCKOO_NOT_SET", "the variable CUCKOO_NOT_SET is not set; export it"),
        ("hush", "cuckoo cloud set off --secret password=prompt"),
    ],
)
def test_what_cannot_be_resolved_is_named(reference: str, says: str, base: Path) -> None:
    (base / "empty").write_bytes(b"\nhush")
    (base / "binary").write_bytes(b"\xffhush")
    with pytest.raises(ConfigurationError) as caught:
        resolve_secrets("default", cloud(password=reference.format(base=base)))
    text = str(caught.value)
    assert text.startswith("cloud off: secret 'password'")
    assert says.format(base=base) in text
    assert "hush" not in text
    assert "\n" not in text


def test_a_keyring_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cuckoo-mount\[keyring\]'"):
        resolve_secrets("default", cloud(password="keyring"))


def test_a_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package is an extra and its backends need a desktop, so a stand-in with its one function.
    stored = {("cuckoo-mount", "photos/off/password"): "hush"}
    keyring = ModuleType("keyring")
    vars(keyring)["get_password"] = lambda service, user: stored.get((service, user))
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    assert resolve_secrets("photos", cloud(password="keyring")) == (("password", "hush"),)
    with pytest.raises(ConfigurationError, match="keyring set cuckoo-mount default/off/password"):
        resolve_secrets("default", cloud(password="keyring"))

    def locked(service: str, user: str) -> str:
        raise RuntimeError("hush")

    vars(keyring)["get_password"] = locked
    with pytest.raises(ConfigurationError, match="the keyring answered: RuntimeError") as caught:
        resolve_secrets("photos", cloud(password="keyring"))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://KEY:SECRET@bucket?endpoint_url=http://h", ["user", "password"]),
        ("s3://bucket?endpoint_url=http://u@h:1", []),
        ("ftp://user@host/x", []),
        ("dropbox:///dir?access_token=x&app_key=y&refresh_token=z", ["access_token", "refresh_token"]),
        ("s3://bucket?key=&x=1", []),
        ("/srv/a:b@c", []),
    ],
)
def test_secrets_in_a_url_are_found(url: str, expected: list[str]) -> None:
    assert secrets_in_url(url) == expected
