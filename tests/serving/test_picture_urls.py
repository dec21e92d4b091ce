"""Addresses in requests: only named hosts on the public internet are asked; no way round works."""

import shutil
import socket
import ssl
import subprocess
import threading
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.errors import UserError
from tuninglab.serving import picture_urls
from tuninglab.serving.picture_urls import check_hosts, fetch_picture, is_public, parse_address

HOST = "pictures.example.org"
PUBLIC = "93.184.216.34"
PICTURE = b"\x89PNG\r\n\x1a\nnot looked at here"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PICTURE), PICTURE)


# The addresses themselves


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://pictures.example.org/a.png",
        "//pictures.example.org/a.png",
        "https:/pictures.example.org/a.png",
        "https:\\\\pictures.example.org/a.png",
        "https://pictures.example.org@169.254.169.254/",
        "https://169.254.169.254#@pictures.example.org/",
        "https://169.254.169.254\\@pictures.example.org/",
        "https://user:word@pictures.example.org/a.png",
        "https://pictures.example.org./a.png",
        "https://pictures.example.org:/a.png",
        "https://pictures.example.org:8443/a.png",
        "https://pictures.example.org.evil.net/a.png",
        "https://evil.pictures.example.org/a.png",
        "https://pictures.example.org%2eevil.net/",
        "https://pictures.example.org/a b.png",
        "https://pictures.example.org/a\r\nHost: evil",
        "https://pictures.example.org/ä.png",
        "https://pıctures.example.org/a.png",
        "https://pictures。example。org/a.png",
        " https://pictures.example.org/a.png",
        "https://pictures.example.org/a.png\n",
        "https://pictures.example.org/" + "a" * 5000,
        "https://" + "a" * 100_000,
        "https://169.254.169.254/latest/meta-data/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://localhost/",
        "https://",
        "",
    ],
)
def test_an_address_that_is_not_plainly_of_a_named_host_is_refused(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("was looked up"))
    with pytest.raises(ValueError, match="data: URL"):
        fetch_picture(url, [HOST])


@pytest.mark.parametrize("number", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "127.0.0.1"])
def test_a_number_is_no_name_even_where_the_list_has_it(number):
    with pytest.raises(ValueError, match="number"):
        parse_address(f"https://{number}/", [number])
    with pytest.raises(UserError, match="allow_image_urls"):
        check_hosts([number])


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://pictures.example.org/a.png", (HOST, 443, "/a.png")),
        ("HTTPS://Pictures.Example.ORG/a.png", (HOST, 443, "/a.png")),
        ("https://pictures.example.org", (HOST, 443, "/")),
        ("https://pictures.example.org:443/a", (HOST, 443, "/a")),
        ("https://pictures.example.org?a=b@c#d", (HOST, 443, "/?a=b@c")),
        ("https://other.example.org:8443/a", ("other.example.org", 8443, "/a")),
    ],
)
def test_an_address_of_a_named_host_is_taken_apart(url, parts):
    assert parse_address(url, ["Pictures.example.org", "other.example.org:8443"]) == parts


@given(
    st.builds(
        "https://{}{}".format,
        st.sampled_from(["", HOST, "a.b"]),
        st.text(st.sampled_from("https:/\\@.#?[]%0x17f- \t\nab443pictures.orgäı。"), max_size=60),
    )
)
def test_what_is_accepted_names_the_same_host_to_another_parser(url):
    try:
        host, port, target = parse_address(url, [HOST, "a.b"])
    except ValueError:
        return
    parts = urlsplit(url)
    assert (parts.hostname, parts.port or 443) == (host, port)
    assert parts.username is None and host in (HOST, "a.b")
    assert not set(target) & set(" \t\r\n") and target.startswith("/")


@pytest.mark.parametrize(
    "entry",
    ["https://a.org", "a.org/x", "*.a.org", "*", "", "a.org:", "a.org:0", "a.org:70000", "::1"],
)
def test_an_entry_that_could_match_nothing_is_refused_before_serving(entry):
    with pytest.raises(UserError, match="NAME:PORT"):
        check_hosts(["good.example.org", entry])


def test_good_entries_are_taken():
    check_hosts(["a.org", "B.example.org:8443", "xn--bcher-kva.example"])


# Where a name may lead


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1"),
        *("192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255"),
        *(
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:93.184.216.34",
            "fe80::1",
            "fc00::1",
        ),
        *("fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "64:ff9b:1::7f00:1"),
        # 6to4, NAT64 and Teredo of 127.0.0.1 and 169.254.169.254.
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        "2001:0:5db8:d822:0:0:5601:5601",
    ],
)
def test_an_inner_address_is_not_public(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"]
)
def test_an_address_of_the_internet_is_public(address):
    assert is_public(ip_address(address))


def resolves_to(monkeypatch, *answers):
    """Each look-up takes the next of the answers, lists of addresses; gives the names asked for."""
    asked, left = [], list(answers)

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        family = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (family[ip_address(a.partition("%")[0]).version], socket.SOCK_STREAM, 6, "", (a, port))
            for a in left.pop(0)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "addresses",
    [["169.254.169.254"], [PUBLIC, "10.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%eth0"], ["::1"]],
)
def test_a_name_that_leads_inside_is_refused_without_telling_where(addresses, monkeypatch):
    resolves_to(monkeypatch, addresses)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("was connected"))
    with pytest.raises(ValueError, match="not on the public internet") as caught:
        fetch_picture(f"https://{HOST}/", [HOST])
    assert not any(address in str(caught.value) for address in addresses)


def test_a_name_that_nobody_knows_is_refused(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match="is not known"):
        fetch_picture(f"https://{HOST}/", [HOST])


def test_a_resolver_that_does_not_answer_is_not_waited_for(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(60) and [])
    monkeypatch.setattr(picture_urls, "FETCH_S", 0.2)
    with pytest.raises(ValueError, match="within 0.2 s"):
        fetch_picture(f"https://{HOST}/", [HOST])
    release.set()


# What comes of it, from a TLS server with a certificate of a CA that only these tests trust


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with ca.pem, and NAME.pem (key and certificate) for HOST and another name."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl, for certificates: apt install openssl")
    folder = tmp_path_factory.mktemp("certificates")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    ca, ca_key = str(folder / "ca.pem"), str(folder / "ca.key")
    openssl("req", "-x509", *new, "-keyout", ca_key, "-out", ca, "-subj", "/CN=CA of the tests")
    for name in (HOST, "other.example.org"):
        request, key = str(folder / "request"), str(folder / f"{name}.key")
        extra, out = folder / "extra", str(folder / f"{name}.crt")
        extra.write_text(f"subjectAltName=DNS:{name}\n")
        openssl("req", *new[:-2], "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", request, *signed, "-out", out, "-extfile", str(extra))
    return folder


class Server:
    """A TLS server on this machine that PUBLIC leads to, and what it was asked.

    Attributes:
        answer: bytes, or a function that is given the connection and sends itself.
        certificate: the name that it shows one for; it can be changed.
        asked: heads of the requests; `names`: those asked for in the TLS greeting (SNI).
    """

    def __init__(self, folder):
        self.folder, self.answer, self.certificate = folder, ANSWER, HOST
        self.asked, self.names = [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            plain, _ = self.listener.accept()
            plain.settimeout(20)
            with plain:
                if plain.recv(4, socket.MSG_PEEK) == b"stop":
                    return
                try:
                    self.serve(plain)
                except (OSError, ssl.SSLError):
                    pass  # the client has gone, which is what some tests want

    def serve(self, plain):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        name = self.folder / self.certificate
        context.load_cert_chain(f"{name}.crt", f"{name}.key")
        context.sni_callback = lambda _, name, __: self.names.append(name)
        with context.wrap_socket(plain, server_side=True) as connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536) or b"\r\n\r\n"
            self.asked.append(head)
            if callable(self.answer):
                self.answer(connection)
            else:
                connection.sendall(self.answer)

    def close(self):
        with socket.socket() as plain:
            plain.connect(("127.0.0.1", self.port))
            plain.sendall(b"stop")
            self.thread.join(30)
        self.listener.close()
        assert not self.thread.is_alive()


@pytest.fixture
def server(certificates, monkeypatch):
    """A server that connections to PUBLIC come to, its CA trusted; nothing else is changed."""
    server, connect = Server(certificates), socket.socket.connect
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))

    def redirected(self, place):
        server.places.append(place)
        connect(self, ("127.0.0.1", server.port) if place[0] == PUBLIC else place)

    server.places = []
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", redirected)
        yield server
    server.close()


def fetch(monkeypatch, url=f"https://{HOST}/a.png?b", hosts=(HOST,)):
    resolves_to(monkeypatch, [PUBLIC])
    return fetch_picture(url, hosts)


def test_a_picture_comes_and_the_server_hears_its_own_name(server, monkeypatch):
    assert fetch(monkeypatch) == PICTURE
    assert server.names == [HOST]
    lines = server.asked[0].decode().split("\r\n")
    assert lines[0] == "GET /a.png?b HTTP/1.1"
    assert [line for line in lines if line.startswith("Host:")] == [f"Host: {HOST}"]


def test_another_port_is_asked_where_the_list_says_so(server, monkeypatch):
    fetch(monkeypatch, f"https://{HOST}:8443/", [f"{HOST}:8443"])
    assert server.places == [(PUBLIC, 8443)]
    assert f"\r\nHost: {HOST}:8443\r\n" in server.asked[0].decode()


def test_a_picture_in_chunks_is_joined(server, monkeypatch):
    server.answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert fetch(monkeypatch) == b"abcde"


def test_a_name_that_leads_elsewhere_the_second_time_is_asked_for_once(server, monkeypatch):
    asked = resolves_to(monkeypatch, [PUBLIC], ["127.0.0.1"], ["127.0.0.1"])
    assert fetch_picture(f"https://{HOST}/", [HOST]) == PICTURE
    assert asked == [HOST]
    assert server.places == [(PUBLIC, 443)]


def test_the_next_address_is_tried_where_one_does_not_answer(server, monkeypatch):
    reached = socket.socket.connect

    def connect(self, place):
        if place[0] == "8.8.8.8":
            raise ConnectionRefusedError
        reached(self, place)

    monkeypatch.setattr(socket.socket, "connect", connect)
    resolves_to(monkeypatch, ["8.8.8.8", PUBLIC])
    assert fetch_picture(f"https://{HOST}/", [HOST]) == PICTURE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304])
def test_a_redirect_is_named_and_not_followed(status, server, monkeypatch):
    server.answer = (
        f"HTTP/1.1 {status} Moved\r\nLocation: https://169.254.169.254/secret\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()
    with pytest.raises(ValueError, match=rf"redirect \({status}\)") as caught:
        fetch(monkeypatch)
    assert "169.254" not in str(caught.value)
    assert len(server.places) == 1


@pytest.mark.parametrize("status", [204, 206, 401, 404, 500])
def test_no_success_is_no_picture(status, server, monkeypatch):
    server.answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()
    with pytest.raises(ValueError, match=f"answers {status}"):
        fetch(monkeypatch)


def test_a_certificate_of_another_name_is_refused(server, monkeypatch):
    server.certificate = "other.example.org"
    with pytest.raises(ValueError, match="no valid certificate"):
        fetch(monkeypatch)
    assert server.asked == []


def test_a_certificate_of_an_unknown_authority_is_refused(server, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ValueError, match="no valid certificate"):
        fetch(monkeypatch)
    assert server.asked == []


@pytest.mark.parametrize("head", [b"Content-Length: 99999999999\r\n", b""])
def test_more_than_the_limit_is_not_kept(head, server, monkeypatch):
    monkeypatch.setattr(picture_urls, "LARGEST_MIB", 1)
    server.answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + bytes(2**20 + 1)
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        fetch(monkeypatch)


def test_just_below_the_limit_is_a_picture(server, monkeypatch):
    monkeypatch.setattr(picture_urls, "LARGEST_MIB", 1)
    server.answer = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2**20 - 100)
    assert fetch(monkeypatch) == bytes(2**20 - 100)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_drops_do_not_keep_it_waiting_beyond_the_whole_time(first, server, monkeypatch):
    monkeypatch.setattr(picture_urls, "FETCH_S", 0.5)
    stop = threading.Event()

    def drip(connection):
        connection.sendall(first)
        while not stop.wait(0.05):
            connection.sendall(b"x")

    server.answer = drip
    with pytest.raises(ValueError, match="within 0.5 s"):
        fetch(monkeypatch)
    stop.set()


@pytest.mark.parametrize(
    "answer",
    [b"", b"not http\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 2"],
)
def test_what_breaks_off_or_is_no_http_is_said(answer, server, monkeypatch):
    server.answer = answer
    with pytest.raises(ValueError, match="broke off"):
        fetch(monkeypatch)


@given(answer=st.binary(max_size=300))
def test_whatever_a_server_says_is_a_picture_or_a_refusal(answer):
    head = b"HTTP/1.1 200 OK\r\n"
    for received in (answer, head + answer, head + b"Transfer-Encoding: chunked\r\n\r\n" + answer):
        try:
            assert isinstance(picture_urls._content(received, HOST), bytes)
        except (ValueError, OSError, picture_urls.http.client.HTTPException):
            pass
