"""Pictures from the web for a client: of named hosts only, so that nobody asks our own network."""

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from typing import Any

from tuninglab.data.sample import brief
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, shown

FETCH_S = 10.0
# Of it, for each address of a host that has several and the first does not answer.
CONNECT_S = 3.0
LARGEST_MIB = 20
HTTPS_PORT = 443
# Browsers and servers take hardly more; matching takes the square of it.
LONGEST = 4096
# Own and strict: two parsers that read one address differently are how such lists are got round.
# No userinfo, no brackets, no backslash, nothing beyond ASCII; what follows "#" is not sent.
ADDRESS = re.compile(r"https://([a-z0-9.-]+)(?::([0-9]{1,5}))?([/?][!-~]*)?", re.IGNORECASE)
# Labels of letters, digits and inner dashes, the last no number in any spelling: 127.1, 0x7f000001.
NAME = re.compile(r"(?:[a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z]([a-z0-9-]*[a-z0-9])?")
# All that IANA has given to single machines on the internet.
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
SENDING = "Send the picture itself, as a data: URL."


def check_hosts(hosts: Sequence[str]) -> None:
    """Refuse entries of `--allow_image_urls` that no address could match, before serving.

    Raises:
        UserError: naming the entry.
    """
    for entry in hosts:
        host, colon, port = entry.partition(":")
        numbered = not colon or (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16)
        if not (numbered and NAME.fullmatch(host.lower())):
            raise UserError(
                f"--allow_image_urls {shown(entry)}: expected a host's name or NAME:PORT, such as "
                "images.example.org; no https://, no path, no * and no number"
            )


def fetch_picture(url: str, hosts: Sequence[str]) -> bytes:
    """The content of an https address, of at most 20 MiB within 10 s; no redirect is followed.

    The name is resolved once, each of its addresses must be one of the public internet, and the
    connection goes to the very address that was looked at: a second look-up could find another
    (DNS rebinding). The certificate is that of the name. Proxy settings are not used.

    Args:
        url: as the client gave it.
        hosts: that may be asked: NAME, for port 443, or NAME:PORT.

    Raises:
        ValueError: with what was refused, for the client; it says nothing of addresses within.
    """
    deadline_s = time.monotonic() + FETCH_S
    host, port, target = parse_address(url, hosts)
    try:
        places = _resolve(host, port, deadline_s)
        with _connect(places, host, deadline_s) as connection:
            received = _exchange(connection, _request(host, port, target), deadline_s)
        return _content(received, host)
    except TimeoutError:
        raise ValueError(f"{host} gave no picture within {FETCH_S:g} s. {SENDING}") from None
    except ssl.SSLCertVerificationError:
        raise ValueError(f"{host} has no valid certificate for this name. {SENDING}") from None
    except (OSError, http.client.HTTPException):
        raise ValueError(f"{host} could not be reached, or broke off. {SENDING}") from None


def parse_address(url: str, hosts: Sequence[str]) -> tuple[str, int, str]:
    """Host in small letters, port and target ("/path?query") of an address that may be fetched.

    Raises:
        ValueError: it is no plain https address, or its host is not in the list.
    """
    match = ADDRESS.fullmatch(url.partition("#")[0]) if len(url) <= LONGEST else None
    host = match[1].lower() if match else ""
    if match is None or not NAME.fullmatch(host):
        raise ValueError(
            f"{brief(url)} is no address that pictures are fetched from: https://, then a host's "
            f"name in ASCII, without user, without number in its place. {SENDING}"
        )
    port = int(match[2] or HTTPS_PORT)
    allowed = {entry.lower() for entry in hosts}
    named = f"{host}:{port}" in allowed or (port == HTTPS_PORT and host in allowed)
    if not named:
        where = host if port == HTTPS_PORT else f"{host}:{port}"
        raise ValueError(f"Pictures are not fetched from {brief(where, 300)}. {SENDING}")
    target = match[3] or "/"
    return host, port, target if target.startswith("/") else f"/{target}"


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is of a machine on the internet, also by the IPv4 address that it may carry.

    IPv4-mapped and IPv4-compatible addresses, those of links, sites and of loops are none; 6to4
    (RFC 3056), Teredo (RFC 4380) and NAT64 (RFC 6052) ones are what they lead to.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    if address.teredo is not None:
        return all(is_public(carried) for carried in address.teredo)
    return address in GLOBAL_UNICAST and address.is_global


def _resolve(host: str, port: int, deadline_s: float) -> list[tuple[Any, ...]]:
    """What getaddrinfo gives for a name, every address of it public; resolved once.

    Raises:
        ValueError: one is not public, or nothing is found.
    """
    answer: SimpleQueue[list[tuple[Any, ...]]] = SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            answer.put([])

    # The system's resolver has its own patience, and cannot be told of ours.
    threading.Thread(target=look_up, daemon=True).start()
    try:
        places = answer.get(timeout=_left_s(deadline_s))
    except Empty:
        raise TimeoutError from None
    if not places:
        raise ValueError(f"{host} is not known. {SENDING}")
    # An address of a link comes with the link's name ("%eth0").
    texts = [str(place[4][0]) for place in places]
    if any("%" in text or not is_public(ip_address(text)) for text in texts):
        raise ValueError(f"{host} is not on the public internet. {SENDING}")
    return places


def _connect(places: list[tuple[Any, ...]], host: str, deadline_s: float) -> ssl.SSLSocket:
    """TLS, for the name, with the first address that answers."""
    for number, (family, kind, protocol, _, place) in enumerate(places, start=1):
        last = number == len(places)
        # TLS takes the descriptor out of it; what fails before is closed.
        with socket.socket(family, kind, protocol) as plain:
            plain.settimeout(_left_s(deadline_s) if last else min(_left_s(deadline_s), CONNECT_S))
            try:
                plain.connect(place)
            except OSError:
                if last:
                    raise
                continue
            plain.settimeout(_left_s(deadline_s))
            return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    raise OSError("no address")


def _request(host: str, port: int, target: str) -> bytes:
    name = host if port == HTTPS_PORT else f"{host}:{port}"
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {name}",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "User-Agent: tuninglab",
        "Connection: close",
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")


def _exchange(connection: ssl.SSLSocket, request: bytes, deadline_s: float) -> bytes:
    """Send, and receive all up to the end, in bounds: no reader can be kept waiting by drops.

    Raises:
        ValueError: it is larger than the limit.
    """
    connection.settimeout(_left_s(deadline_s))
    connection.sendall(request)
    received = bytearray()
    # The head is counted too; it has no room of its own to fill.
    while len(received) <= LARGEST_MIB * MIB:
        connection.settimeout(_left_s(deadline_s))
        chunk = connection.recv(2**16)
        if not chunk:
            return bytes(received)
        received += chunk
    raise ValueError(f"The picture is larger than {LARGEST_MIB} MiB. Send a smaller one.")


class _Received:
    """What http.client takes for a socket: its answer has come already."""

    def __init__(self, content: bytes):
        self.content = content

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self.content)


def _content(received: bytes, host: str) -> bytes:
    """The body of an answer that is one.

    Raises:
        ValueError: it leads elsewhere, or is no success.
        http.client.HTTPException: it is no HTTP, or broke off.
    """
    response = http.client.HTTPResponse(_Received(received), method="GET")  # type: ignore[arg-type]
    response.begin()
    if 300 <= response.status < 400:
        raise ValueError(
            f"{host} answers with a redirect ({response.status}), which is not followed. "
            "Give the address that it leads to."
        )
    if response.status != 200:
        raise ValueError(f"{host} answers {response.status} instead of a picture.")
    return response.read()


def _left_s(deadline_s: float) -> float:
    """Seconds up to then.

    Raises:
        TimeoutError: it is over.
    """
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
