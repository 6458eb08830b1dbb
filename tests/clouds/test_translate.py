"""Every exception of a driver becomes the right one of ours, with no secret in its text."""

from __future__ import annotations

import errno
import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsimport import errors
from cuckoo_mount.clouds.translate import RETRY_AFTER_MAX_S, hide_secrets, read_retry_after_s, translate
from cuckoo_mount.errors import (
    CloudBusy,
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNeedsLogin,
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
        (_HttpError(503), CloudBusy),
        (_HttpError(429), CloudBusy),
        (_HttpError(502), CloudUnavailable),
        (_HttpError(401), CloudNeedsLogin),
        (AuthError("expired"), CloudNeedsLogin),
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
        ("SlowDown", 503, CloudBusy),
        ("429", 429, CloudBusy),
        ("RequestLimitExceeded", 400, CloudBusy),
        ("500", 500, CloudUnavailable),
        ("NeverHeardOf", 409, CloudUnavailable),
        ("QuotaExceeded", 403, CloudFull),
        ("507", 507, CloudFull),
        ("InvalidRange", 416, CloudCorrupt),
        ("RequestTimeout", 400, CloudTimeout),
        ("SignatureDoesNotMatch", 403, CloudNeedsLogin),
        ("ExpiredToken", 400, CloudNeedsLogin),
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
        (exceptions.NoCredentialsError(), CloudNeedsLogin),
        (exceptions.PartialCredentialsError(provider="env", cred_var="key"), CloudNeedsLogin),
        (exceptions.ProfileNotFound(profile="work"), CloudRefused),
        (exceptions.UnauthorizedSSOTokenError(), CloudNeedsLogin),
    ):
        assert type(translate(error, SETTINGS, "a")) is kind, error


def test_a_quoted_password_in_the_url_is_hidden_in_both_forms() -> None:
    settings = CloudSettings(name="x", url="s3://key:se%2Fcret@bucket")
    assert "cret" not in hide_secrets("tried se/cret and se%2Fcret", settings)


NOON = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0.0),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("Mon, 30 Nov 2026 12:00:30 GMT", 30.0),
        ("Monday, 30-Nov-26 12:01:00 GMT", 60.0),
        ("Mon Nov 30 12:00:05 2026", 5.0),
        ("Mon, 30 Nov 2026 11:59:00 GMT", 0.0),
        ("Tue, 01 Dec 2026 12:00:00 GMT", RETRY_AFTER_MAX_S),
        ("86400", RETRY_AFTER_MAX_S),
        ("9" * 5000, RETRY_AFTER_MAX_S),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("soon", 0.0),
        ("٣", 0.0),
    ],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert read_retry_after_s(text, NOON) == seconds


@given(st.text())
def test_any_retry_after_is_read(text: str) -> None:
    assert 0.0 <= read_retry_after_s(text, NOON) <= RETRY_AFTER_MAX_S


class _BusyError(_HttpError):
    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__(429)
        self.response.headers = headers  # type: ignore[attr-defined]


def test_the_pause_a_service_wants_is_carried_on() -> None:
    found = translate(_BusyError({"retry-after": "17"}), SETTINGS, "a/b")
    assert isinstance(found, CloudBusy)
    assert found.retry_after_s == 17.0
    assert "try again in 17 s" in str(found)
    again = pickle.loads(pickle.dumps(found)).retold("other", cloud="x")
    assert (again.retry_after_s, again.message, again.cloud, again.name) == (17.0, "other", "x", "a/b")
