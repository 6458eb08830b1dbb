"""What to say of an error of S3: translate.py finds its kind, here it gets a line that says what to do next.

Used by s3.py.  Pure functions, any thread.
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.clouds.s3place import S3Place
from cuckoo_mount.clouds.translate import service_error
from cuckoo_mount.errors import CloudError, CloudTimeout, CloudUnavailable

NO_SUCH_BUCKET: Final = "NoSuchBucket"
# Endings of a message, by the code in the server's answer or else the name of the exception's class.
_HINTS: Final[dict[str, str]] = {
    "AccessDenied": "let this key read, write, list and delete objects in bucket {bucket}",
    "AuthorizationHeaderMalformed": "check the option region",
    "ExpiredToken": "give new credentials",
    "IllegalLocationConstraintException": "check the option region",
    "InvalidAccessKeyId": "check the secret user",
    "NoCredentialsError": "give them by --secret user=… --secret password=…",
    "PermanentRedirect": "check the options region and endpoint_url",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "SignatureDoesNotMatch": "check the secret password",
    "SSLError": "check endpoint_url, and whether this machine trusts the server's certificate",
}
_NOTHING_THERE: Final = "EndpointConnectionError"


def explain(found: CloudError, error: Exception, place: S3Place) -> CloudError:
    """Return `found`, which `error` was translated to, with a message that helps."""
    service = service_error(error)
    kind = type(error).__name__ if service is None else service.code
    if kind == NO_SUCH_BUCKET:
        return bucket_missing(found.cloud, place)
    if kind == _NOTHING_THERE:
        message = f"nothing answers at {place.endpoint}; check endpoint_url, and that the server runs"
    elif service is None and isinstance(found, CloudTimeout):
        message = f"no answer in time from {place.endpoint}"
    elif kind in _HINTS:
        message = f"{found.message}; {_HINTS[kind].format(bucket=place.bucket)}"
    else:
        return found
    return found.retold(message)


def bucket_missing(cloud: str, place: S3Place) -> CloudUnavailable:
    """Return the error for a bucket that is not there: nothing in it may be taken for lost."""
    return CloudUnavailable(
        f"bucket {place.bucket} does not exist at {place.endpoint}; create it, or check its name", cloud=cloud
    )
