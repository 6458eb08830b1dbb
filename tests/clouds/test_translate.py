"""Every exception of a driver becomes the right one of ours, with no secret in its text."""

from __future__ import annotations

import errno

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsimport import errors
from cuckoo_mount.clouds.translate import hide_secrets, translate
from cuckoo_mount.errors import CloudError, CloudFull, CloudMissing, CloudRefused, CloudTimeout, CloudUnavailable

SETTINGS = CloudSettings(
    name="nas", url="ftp://me:hunter2@nas/dir", secrets=(("password", "s3cr3t!"), ("token", "tok-123"))
)


class _Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class _HttpError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.response = _Response(status_code)


class AuthError(Exception):
    """Named as the Dropbox SDK's."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InsufficientStorage("/x"), CloudFull),
        (errors.PermissionDenied("/x"), CloudRefused),
        (errors.ResourceReadOnly("/x"), CloudRefused),
        (errors.ResourceNotFound("/x"), CloudMissing),
        (errors.OperationTimeout("/x"), CloudTimeout),
        (errors.RemoteConnectionError("/x"), CloudUnavailable),
        (errors.OperationFailed("/x", exc=OSError(errno.ENOSPC, "full")), CloudFull),
        (errors.OperationFailed("/x", exc=OSError(errno.EROFS, "read-only")), CloudRefused),
        (OSError(errno.ENOSPC, "full"), CloudFull),
        (OSError(errno.EDQUOT, "quota"), CloudFull),
        (OSError(errno.EPERM, "no"), CloudRefused),
        (OSError(errno.EACCES, "no"), CloudRefused),
        (OSError(errno.EIO, "disk"), CloudUnavailable),
        (TimeoutError("slow"), CloudTimeout),
        (ConnectionResetError("gone"), CloudUnavailable),
        (_HttpError(403), CloudRefused),
        (_HttpError(507), CloudFull),
        (_HttpError(503), CloudUnavailable),
        (AuthError("expired"), CloudRefused),
        (KeyError("client_id"), CloudUnavailable),
        (AttributeError("a driver's own bug"), CloudUnavailable),
    ],
)
def test_kinds(error: Exception, kind: type[CloudError]) -> None:
    found = translate(error, SETTINGS, "a/b")
    assert type(found) is kind
    assert (found.cloud, found.name) == ("nas", "a/b")
    assert found.message
    assert "\n" not in str(found)


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = CloudFull("no", cloud="x")
    assert translate(error, SETTINGS, "a") is error


def test_secrets_are_hidden() -> None:
    text = str(translate(ValueError("ftp://me:hunter2@nas?token=tok-123 s3cr3t! failed"), SETTINGS, "a"))
    assert "hunter2" not in text
    assert "tok-123" not in text
    assert "s3cr3t!" not in text
    assert "nas" in text


def test_an_at_sign_in_a_path_is_no_credential() -> None:
    assert hide_secrets("/srv/@data", CloudSettings(name="x", url="osfs:///srv/@data")) == "/srv/@data"
