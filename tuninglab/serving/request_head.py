"""What the first lines of an HTTP request must say before anything else of it is read."""

import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuninglab.config.checks import check
from tuninglab.config.serving import LOOPBACK, ServeConfig
from tuninglab.errors import UserError
from tuninglab.serving.errors_json import INVALID_REQUEST, SERVER_ERROR, error_body, error_messages
from tuninglab.serving.page_files import page_files
from tuninglab.untrusted import MIB

KEY_VARIABLE = "TUNINGLAB_API_KEY"
# What a browser shows by itself, which sends no key; the page asks for it and then sends it.
PUBLIC = frozenset({"/health", *page_files()})
# Each says one thing; of two, a proxy before us may have gone by the other (RFC 9112 §3.2, §6.3).
ONCE = (b"host", b"authorization", b"origin", b"content-type", b"content-length")
# A name or an IPv4 address, or an IPv6 address in brackets, then perhaps a port (RFC 9110 §7.2).
HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class GuardSettings:
    """Whom the server answers, and how much it reads and waits for.

    Args:
        api_key: what clients must show; None: nothing.
        hosts: names that the Host header may have, without port; None: any.
        cors_origin: the one foreign origin whose pages may ask; None: none.
        body_bytes: of one request.
        bodies_bytes: of all requests that are under way.
        message_s: the longest that nothing comes of a body.
        body_s: the longest that a body takes.
        linger_s: the longest that the rest of a refused request is awaited and thrown away.
    """

    api_key: str | None = None
    hosts: frozenset[str] | None = frozenset({"localhost", "127.0.0.1", "[::1]"})
    cors_origin: str | None = None
    body_bytes: int = 32 * MIB
    bodies_bytes: int = 512 * MIB
    message_s: float = 10.0
    body_s: float = 120.0
    linger_s: float = 5.0

    @classmethod
    def from_config(
        cls, config: ServeConfig, environment: Mapping[str, str] = os.environ
    ) -> "GuardSettings":
        """The settings of `tuninglab serve`; the key may also be in TUNINGLAB_API_KEY.

        Raises:
            UserError: others than this machine could ask without a key, or `--cors_origin` is no
                origin.
        """
        key = config.api_key or environment.get(KEY_VARIABLE) or None
        # What came from the environment has not been looked at yet.
        replace(config, api_key=key).validate()
        if config.host not in LOOPBACK and key is None:
            raise UserError(
                f"--host {config.host} lets other machines in, and nobody would be asked who they "
                f"are. Give --api_key or {KEY_VARIABLE}, or leave --host out."
            )
        origin = config.cors_origin
        exact = origin is None or ORIGIN.fullmatch(origin) is not None
        check(exact, "cors_origin", origin, "one origin, as https://chat.example.org or with :port")
        if config.host in LOOPBACK:
            return cls(api_key=key, cors_origin=origin)
        return cls(api_key=key, hosts=None, cors_origin=origin)


class Refusal(Exception):
    """A request is not answered.

    Args:
        status: of HTTP.
        message: for the client; it holds nothing of the request.
        code: what programs compare.
        headers: that the answer has besides.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ):
        super().__init__(message)
        self.status = status
        family = SERVER_ERROR if status >= 500 else INVALID_REQUEST
        self.answer = error_messages(status, error_body(str(self), family, code), headers)


def read_fields(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """The header fields by their names in small letters, after a look that none is ambiguous.

    Raises:
        Refusal: one that may stand once stands twice, or the length of the body is said two ways.
    """
    names = [name for name, _ in headers]
    for name in ONCE:
        if names.count(name) > 1:
            raise Refusal(400, f"The request has several {name.decode().title()} headers.")
    fields = {name: value.decode("latin-1").strip() for name, value in headers}
    length = fields.get(b"content-length")
    if length is not None and b"transfer-encoding" in fields:
        raise Refusal(400, "The request has Content-Length and Transfer-Encoding, which exclude.")
    if length is not None and not re.fullmatch("[0-9]{1,20}", length):
        raise Refusal(400, "Content-Length is no whole number.")
    return fields


def check_host(fields: Mapping[bytes, str], settings: GuardSettings) -> None:
    """A page that lets its own name point to this machine is known by that name (DNS rebinding).

    Raises:
        Refusal: 400, the Host header is missing, no host, or not the server's.
    """
    match = HOST.fullmatch(fields.get(b"host", "").lower())
    if match is None:
        raise Refusal(400, "The Host header is missing or names no host.")
    if settings.hosts is not None and match[1] not in settings.hosts:
        names = ", ".join(sorted(settings.hosts))
        raise Refusal(400, f"The Host header names another server; this one is called {names}.")


def check_key(method: str, path: str, fields: Mapping[bytes, str], settings: GuardSettings) -> None:
    """Whoever shows no key, where there is one, gets the page and the state, nothing else.

    Raises:
        Refusal: 401, the key is missing or another.
    """
    if settings.api_key is None or (method in ("GET", "HEAD") and path in PUBLIC):
        return
    scheme, _, shown = fields.get(b"authorization", "").partition(" ")
    right = hmac.compare_digest(shown.strip().encode(), settings.api_key.encode())
    if scheme.lower() != "bearer" or not right:
        raise Refusal(
            401,
            "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
            "invalid_api_key",
            [(b"www-authenticate", b"Bearer")],
        )


def check_origin(fields: Mapping[bytes, str], settings: GuardSettings) -> None:
    """Pages of others have no business here: browsers say whose page asks, in Origin (RFC 6454).

    Raises:
        Refusal: 403, the page is neither our own nor of the origin that may ask.
    """
    origin = fields.get(b"origin")
    if origin is None or origin == settings.cors_origin:
        return
    # Over TLS there is a proxy between, so the own page may be of either scheme.
    host = fields[b"host"].lower()
    if origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise Refusal(403, "Pages of this origin may not ask; --cors_origin names one that may.")


def check_body_fields(method: str, fields: Mapping[bytes, str], settings: GuardSettings) -> None:
    """What a form of any page can send without asking is no JSON; what is too large is not read.

    Raises:
        Refusal: 415 or 413.
    """
    media_type = fields.get(b"content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and media_type != "application/json":
        raise Refusal(415, "Send the request as Content-Type: application/json.")
    if int(fields.get(b"content-length", "0")) > settings.body_bytes:
        raise too_large(settings)


def too_large(settings: GuardSettings) -> Refusal:
    """The refusal of a body above the limit."""
    mib = settings.body_bytes // MIB
    return Refusal(413, f"The request is larger than {mib} MiB. Send fewer or smaller pictures.")
