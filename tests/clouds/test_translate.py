"""Every exception of a driver becomes the right one of ours, with no secret in its text."""

from __future__ import annotations

import errno

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsimport import errors
from cuckoo_mount.clouds.translate import hide_secrets, translate
from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
)

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


def _answer(code: str, status: int) -> Exception:
    from botocore.exceptions import ClientError

    error: Exception = ClientError(
        {"Error": {"Code": code, "Message": "said\nso"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )
    return error


@pytest.mark.slow  # botocore's import
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchKey", 404, CloudMissing),
        ("404", 404, CloudMissing),
        ("NoSuchBucket", 404, CloudUnavailable),
        ("SlowDown", 503, CloudUnavailable),
        ("RequestLimitExceeded", 400, CloudUnavailable),
        ("500", 500, CloudUnavailable),
        ("NeverHeardOf", 409, CloudUnavailable),
        ("QuotaExceeded", 403, CloudFull),
        ("507", 507, CloudFull),
        ("InvalidRange", 416, CloudCorrupt),
        ("RequestTimeout", 400, CloudTimeout),
        ("SignatureDoesNotMatch", 403, CloudRefused),
        ("ExpiredToken", 400, CloudRefused),
        ("403", 403, CloudRefused),
        ("NotImplemented", 501, CloudRefused),
    ],
)
def test_answers_of_s3(code: str, status: int, kind: type[CloudError]) -> None:
    found = translate(_answer(code, status), SETTINGS, "a/b")
    assert type(found) is kind
    assert "\n" not in str(found)
    assert (f"HTTP status {status}" if code.isdigit() else code) in str(found)


@pytest.mark.slow
def test_exceptions_of_botocore() -> None:
    from botocore import exceptions

    for error, kind in (
        (exceptions.ConnectTimeoutError(endpoint_url="http://h"), CloudTimeout),
        (exceptions.ReadTimeoutError(endpoint_url="http://h"), CloudTimeout),
        (exceptions.EndpointConnectionError(endpoint_url="http://h"), CloudUnavailable),
        (exceptions.ConnectionClosedError(endpoint_url="http://h"), CloudUnavailable),
        (exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), CloudUnavailable),
        (exceptions.ResponseStreamingError(error="cut"), CloudUnavailable),
        (exceptions.NoCredentialsError(), CloudRefused),
        (exceptions.PartialCredentialsError(provider="env", cred_var="key"), CloudRefused),
        (exceptions.ProfileNotFound(profile="work"), CloudRefused),
        (exceptions.UnauthorizedSSOTokenError(), CloudRefused),
    ):
        assert type(translate(error, SETTINGS, "a")) is kind, error


def test_a_quoted_password_in_the_url_is_hidden_in_both_forms() -> None:
    settings = CloudSettings(name="x", url="s3://key:se%2Fcret@bucket")
    assert "cret" not in hide_secrets("tried se/cret and se%2Fcret", settings)
