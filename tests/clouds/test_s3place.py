"""What may stand in an s3:// URL, and what each mistake is answered with."""

from __future__ import annotations

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.s3place import S3Place, parse_s3_place
from cuckoo_mount.errors import UsageError

Pairs = tuple[tuple[str, str], ...]
BOTH: Pairs = (("password", "PWD"), ("user", "USR"))


def parse(url: str, options: Pairs = (), secrets: Pairs = ()) -> S3Place:
    return parse_s3_place(CloudSettings(name="x", url=url, options=options, secrets=secrets), url)


@pytest.mark.parametrize(
    ("url", "options", "secrets", "place"),
    [
        ("s3://bkt", (), (), S3Place(bucket="bkt")),
        ("s3://bkt/", (), (), S3Place(bucket="bkt")),
        ("s3://bkt/a/b%20c//", (), (), S3Place(bucket="bkt", prefix="a/b c/")),
        ("s3://bkt/a@b", (), (), S3Place(bucket="bkt", prefix="a@b/")),
        ("s3://K:S%2Fx/y@bkt/p", (), (), S3Place(bucket="bkt", prefix="p/", access_key="K", secret_key="S/x/y")),
        ("s3://K:S@bkt", (), BOTH, S3Place(bucket="bkt", access_key="USR", secret_key="PWD")),
        (
            "s3://bkt",
            (),
            (("access_key", "A"), ("secret_key", "S"), ("session_token", "T")),
            S3Place(bucket="bkt", access_key="A", secret_key="S", session_token="T"),
        ),
        (
            "s3://bkt?endpoint_url=http://127.0.0.1:9000&region=eu-west-1&strict=0",
            (("expect.drive", "00"), ("region", "eu-north-1"), ("storage_class", "STANDARD_IA")),
            (),
            S3Place(
                bucket="bkt", endpoint_url="http://127.0.0.1:9000", region="eu-north-1", storage_class="STANDARD_IA"
            ),
        ),
        (
            "s3://bkt?addressing_style=virtual&acl=private&endpoint_url=https%3A%2F%2Fs3.example.org",
            (),
            (),
            S3Place(bucket="bkt", addressing_style="virtual", acl="private", endpoint_url="https://s3.example.org"),
        ),
    ],
)
def test_places(url: str, options: Pairs, secrets: Pairs, place: S3Place) -> None:
    assert parse(url, options, secrets) == place


@pytest.mark.parametrize(
    ("url", "options", "secrets", "message"),
    [
        ("s3://", (), (), "names no bucket; write s3://bucket"),
        ("s3:///prefix", (), (), "names no bucket"),
        ("s3://my bucket", (), (), "'my bucket' cannot be the name of a bucket"),
        ("s3://b", (), (), "cannot be the name"),
        ("s3://bkt/../x", (), (), "cannot be a prefix"),
        ("s3://bkt?endpiont_url=http://h", (), (), "no option 'endpiont_url'; known: endpoint_url"),
        ("s3://bkt", (("compress", "yes"),), (), "no option 'compress'"),
        ("s3://bkt", (("user", "K"),), (), "no option 'user'; give it by --secret"),
        ("s3://bkt", (("region", ""),), (), "option region is empty"),
        ("s3://bkt", (("addressing_style", "round"),), (), "'round' is none of auto, path, virtual"),
        ("s3://bkt?endpoint_url=127.0.0.1:9000", (), (), "not the URL of a server; write endpoint_url=https://"),
        ("s3://bkt?endpoint_url=http://", (), (), "not the URL of a server"),
        ("s3://bkt?endpoint_url=http://h:port", (), (), "not the URL of a server"),
        ("s3://bkt?endpoint_url=http://K:S@h", (), (), "give them by --secret"),
        ("s3://bkt", (), (("user", "K"),), "secret 'password' is missing"),
        ("s3://K:@bkt", (), (), "secret 'password' is missing"),
        ("s3://bkt", (), (("password", "hidden"),), "secret 'user' is missing"),
        ("s3://bkt", (), (("passwort", "hidden"),), "no secret 'passwort'; known: user"),
    ],
)
def test_mistakes_get_one_helpful_line(url: str, options: Pairs, secrets: Pairs, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(url, options, secrets)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    assert "PWD" not in repr(parse("s3://K:PWD@bkt", (), (("session_token", "PWD"),)))
