"""The logins of a Dropbox account: an emulation of its OAuth 2, for dropboxserver.py.  Any thread."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen

EXPIRES_IN_S: Final = 14_400
ALL_SCOPES: Final = ("account_info.read", "files.metadata.read", "files.content.read", "files.content.write")


@frozen
class _Code:
    """A code that a browser shows: for which app, with which challenge, what was asked for."""

    app_key: str
    challenge: str
    scopes: tuple[str, ...]


@frozen
class TokenAnswer:
    """What the token endpoint says."""

    status: int
    document: Mapping[str, object]

    @property
    def body(self) -> bytes:
        return json.dumps(self.document).encode()


@define(eq=False)
class Logins:
    """Who is logged in.  `refreshes`: how many access tokens were given for a refresh token."""

    app_key: str = field(factory=lambda: f"app{secrets.token_hex(6)}")
    refreshes: int = 0
    _refresh_tokens: dict[str, tuple[str, ...]] = field(factory=dict)
    _access_tokens: dict[str, tuple[str, ...]] = field(factory=dict)
    _given_for: dict[str, str] = field(factory=dict)
    _expired: set[str] = field(factory=set)
    _codes: dict[str, _Code] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    # --- for tests --------------------------------------------------------------------------------------------------

    def log_in(self, scopes: tuple[str, ...] = ALL_SCOPES) -> str:
        """Return a new refresh token."""
        token = f"refresh-{secrets.token_urlsafe(24)}"
        with self._lock:
            self._refresh_tokens[token] = scopes
        return token

    def access_token(self, scopes: tuple[str, ...] = ALL_SCOPES, refresh_token: str = "") -> str:
        """Return a new access token, of the login that `refresh_token` stands for."""
        token = f"sl.{secrets.token_urlsafe(40)}"
        with self._lock:
            self._access_tokens[token] = scopes
            self._given_for[token] = refresh_token
        return token

    def expire(self) -> None:
        """Let all access tokens be too old."""
        with self._lock:
            self._expired |= self._access_tokens.keys()
            self._access_tokens.clear()

    def revoke(self, refresh_token: str) -> None:
        """Let a login be taken back, as the user can in the account's settings."""
        with self._lock:
            del self._refresh_tokens[refresh_token]
            for token in [token for token, given_for in self._given_for.items() if given_for == refresh_token]:
                self._access_tokens.pop(token, None)
                self._expired.discard(token)

    def approve(self, url: str) -> str:
        """Do what the user does in a browser at `url`; return the code that is shown then."""
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc, parts.path) == ("https", "www.dropbox.com", "/oauth2/authorize")
        given = {key: values[0] for key, values in parse_qs(parts.query).items()}
        assert given["response_type"] == "code"
        assert given["client_id"] == self.app_key
        assert given["token_access_type"] == "offline"
        assert given["code_challenge_method"] == "S256"
        assert "redirect_uri" not in given
        code = secrets.token_urlsafe(24)
        with self._lock:
            self._codes[code] = _Code(given["client_id"], given["code_challenge"], tuple(given["scope"].split()))
        return code

    # --- for the server ---------------------------------------------------------------------------------------------

    def scopes_of(self, token: str) -> tuple[str, ...] | str:
        """Return what an access token allows, or the tag of why it allows nothing."""
        with self._lock:
            if token in self._expired:
                return "expired_access_token"
            return self._access_tokens.get(token, "invalid_access_token")

    def answer(self, form: Mapping[str, str]) -> TokenAnswer:
        """Answer a request to the token endpoint."""
        if form.get("client_id") != self.app_key:
            return _refused("invalid_client_id: Invalid client_id", error="invalid_client")
        if form.get("grant_type") == "refresh_token":
            refresh_token = form.get("refresh_token", "")
            with self._lock:
                scopes = self._refresh_tokens.get(refresh_token)
                self.refreshes += scopes is not None
            if scopes is None:
                return _refused("refresh token is invalid or revoked")
            # As the real one: no refresh token comes with it, the old one stays.
            return TokenAnswer(200, self._granted(scopes, refresh_token))
        with self._lock:
            code = self._codes.pop(form.get("code", ""), None)
        if code is None:
            return _refused("code doesn't exist or has expired")
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != code.challenge:
            return _refused("invalid code verifier")
        refresh_token = self.log_in(code.scopes)
        known = {"refresh_token": refresh_token, "uid": "1", "account_id": "dbid:emulated"}
        return TokenAnswer(200, {**self._granted(code.scopes, refresh_token), **known})

    def _granted(self, scopes: tuple[str, ...], refresh_token: str) -> dict[str, object]:
        token = self.access_token(scopes, refresh_token)
        scope = " ".join(scopes)
        return {"access_token": token, "token_type": "bearer", "expires_in": EXPIRES_IN_S, "scope": scope}


def _refused(text: str, *, error: str = "invalid_grant") -> TokenAnswer:
    return TokenAnswer(400, {"error": error, "error_description": text})
