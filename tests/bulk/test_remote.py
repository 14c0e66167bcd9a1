"""clip-embed with https:// and s3:// paths, against servers on this machine."""

from __future__ import annotations

import collections
import datetime
import http.server
import os
import pathlib
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator

import boto3
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

import support
from clip_embed_runs import PHOTOS, kill_at_random, refused, rows

PROGRAM = support.ROOT / "target" / "bulk" / "clip-embed"
NAMES = sorted(path.name for path in PHOTOS.glob("*.jpg"))[:6]


def run(*arguments: object, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env={name: text for name, text in os.environ.items() if not name.startswith("AWS_")} | environment,
    )
    assert done.returncode == code, f"{done.args} ended with {done.returncode}: {done.stderr}"
    return done.stderr


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    output = tmp_path_factory.mktemp("expected") / "v.csv"
    run(PHOTOS, "-o", output)
    return rows(output)


class Site(http.server.ThreadingHTTPServer):
    """Serves the photos, and paths that misbehave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: collections.Counter[str] = collections.Counter()
        self.ranges: list[str | None] = []
        self.bytes_sent = 0
        self.ended = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        self.server.asked[self.path] += 1
        name = urllib.parse.unquote(address.path).rsplit("/", 1)[-1]
        if address.path.startswith("/flaky/") and self.server.asked[self.path] <= 2:
            return self.answer(503, b"busy")
        if address.path.startswith("/down/"):
            return self.answer(500, b"broken")
        if address.path.startswith("/signed/") and address.query != "signature=a%2Fb%2B":
            return self.answer(403, b"wrong signature")
        if address.path.startswith(("/huge/", "/huge-error/")):
            return self.huge(200 if address.path.startswith("/huge/") else 403)
        if address.path.startswith("/slow/"):
            self.server.ended.wait(30)
            return self.answer(200, b"late")
        if address.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"/photos/{name}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        # The connection is cut before any answer, in the middle of a file that can't be resumed, or in the middle of
        # one that can.
        if address.path.startswith("/dying/") and self.server.asked[self.path] <= 2:
            return self.die()
        file = PHOTOS / name
        if address.path.startswith("/cut/") or (
            address.path.startswith("/cut-twice/") and self.server.asked[self.path] <= 2
        ):
            return self.half(file.read_bytes())
        if address.path.startswith("/resumed/"):
            self.server.ranges.append(self.headers.get("Range"))
            return self.half(file.read_bytes(), {"ETag": '"1"'}) if len(self.server.ranges) == 1 else self.rest(file)
        if address.path.startswith("/unmeasured/"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\n\xff\xd8\xff\r\n0\r\n\r\n")
            return None
        return self.answer(200, file.read_bytes()) if file.is_file() else self.answer(404, b"not here")

    def answer(self, status: int, content: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def die(self) -> None:
        # Closes the connection at once, with a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def half(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        for header, text in (headers or {}).items():
            self.send_header(header, text)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def rest(self, file: pathlib.Path) -> None:
        content = file.read_bytes()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def huge(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(10 << 30))
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"\xff" * 65536)
                self.server.bytes_sent += 65536
        except OSError:
            self.close_connection = True


def serve(site: Site) -> Iterator[Site]:
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield site
    finally:
        site.ended.set()
        site.shutdown()
        site.server_close()


@pytest.fixture
def site() -> Iterator[tuple[Site, str]]:
    made = Site()
    for server in serve(made):
        yield server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def secure(tmp_path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """A site with TLS, and the certificate of the authority that signed its certificate."""
    now = datetime.datetime.now(datetime.timezone.utc)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("authority", "localhost"))

    def certificate(subject: x509.Name, of: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, path = tmp_path / "authority.pem", tmp_path / "certificate.pem"
    authority.write_bytes(certificate(root, root_key, x509.BasicConstraints(ca=True, path_length=0)))
    path.write_bytes(certificate(name, key, x509.SubjectAlternativeName([x509.DNSName("localhost")])))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, tmp_path / "key.pem")
    made = Site()
    made.socket = context.wrap_socket(made.socket, server_side=True)
    for server in serve(made):
        yield f"https://localhost:{server.server_port}", authority


def write_list(tmp_path: pathlib.Path, addresses: dict[str, str]) -> pathlib.Path:
    path = tmp_path / "list.csv"
    path.write_text("id,path\n" + "".join(f"{key},{address}\n" for key, address in addresses.items()))
    return path


def test_https(secure: tuple[str, pathlib.Path], tmp_path: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    base, authority = secure
    listing, output = write_list(tmp_path, {name: f"{base}/photos/{name}" for name in NAMES}), tmp_path / "v.csv"
    run(listing, "-o", output, "--key-column", "id", SSL_CERT_FILE=str(authority))
    found = rows(output)
    assert set(found) == set(NAMES) and all(np.array_equal(found[name], expected[name]) for name in NAMES)
    # Relative paths start there, too.
    relative = tmp_path / "relative.csv"
    relative.write_text("path\n" + "\n".join(NAMES))
    run(relative, "-o", tmp_path / "w.csv", "--root", f"{base}/photos", SSL_CERT_FILE=str(authority))
    assert rows(tmp_path / "w.csv").keys() == found.keys()
    # No known authority signed its certificate.
    run(listing, "-o", tmp_path / "x.csv", "--key-column", "id", "--retries", 0, code=3)
    assert {message for _, message in refused(tmp_path / "x.csv")} == {"file cannot be fetched"}
    assert "UnknownIssuer" in pathlib.Path(f"{tmp_path / 'x.csv'}.failures.csv").read_text()


def test_what_a_web_server_may_do(site: tuple[Site, str], tmp_path: pathlib.Path, expected) -> None:
    server, base = site
    name = NAMES[0]
    addresses = {
        "plain": f"{base}/photos/{name}",
        "flaky": f"{base}/flaky/{name}",
        "dying": f"{base}/dying/{name}",
        "cut-twice": f"{base}/cut-twice/{name}",
        "resumed": f"{base}/resumed/{name}",
        "moved": f"{base}/moved/{name}",
        "signed": f"{base}/signed/{name}?signature=a%2Fb%2B",
        "forged": f"{base}/signed/{name}?signature=a/b+",
        "gone": f"{base}/photos/gone.jpg",
        "down": f"{base}/down/{name}",
        "huge": f"{base}/huge/{name}",
        "huge-error": f"{base}/huge-error/{name}",
        "long": f"{base}/photos/{'x' * 70_000}",
        "cut": f"{base}/cut/{name}",
        "unmeasured": f"{base}/unmeasured/{name}",
        "nobody": f"http://127.0.0.1:1/{name}",
    }
    listing, output = write_list(tmp_path, addresses), tmp_path / "v.csv"
    options = ["-o", output, "--key-column", "id", "--jobs", 2, "--retries", 2, "--timeout", 5]
    run(listing, *options, "--allow-http", code=3)
    found = rows(output)
    assert set(found) == {"plain", "flaky", "dying", "cut-twice", "resumed", "moved", "signed"}
    assert all(np.array_equal(vector, expected[name]) for vector in found.values())
    failures = dict(refused(output))
    assert failures.pop("huge") == "image file is too large"
    assert failures == dict.fromkeys(
        ["forged", "gone", "down", "cut", "unmeasured", "nobody", "huge-error", "long"], "file cannot be fetched"
    )
    text = pathlib.Path(f"{output}.failures.csv").read_text()
    assert "404" in text and "500" in text and "403" in text
    # Temporary errors were retried as often as the options say, permanent ones not at all.
    for path in ("flaky", "dying", "cut-twice", "down", "cut"):
        assert server.asked[f"/{path}/{name}"] == 3, path
    half = (PHOTOS / name).stat().st_size // 2
    assert server.ranges == [None, f"bytes={half}-{2 * half + (PHOTOS / name).stat().st_size % 2 - 1}"]
    assert server.asked["/photos/gone.jpg"] == 1
    # Of the 20 GB, only what was already on its way was sent.
    assert server.bytes_sent < 64 << 20
    # Without the option that allows it, http:// is refused, and the existing vectors stay.
    run(listing, *options, code=3)
    assert "http:// has no encryption" in pathlib.Path(f"{output}.failures.csv").read_text()
    assert dict(refused(output)).keys() == addresses.keys() - found.keys() and rows(output).keys() == found.keys()


def test_killed_at_random(site: tuple[Site, str], tmp_path: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    """Three shards of a web server's photos, each killed again and again: the merge is complete."""
    _, base = site
    keys = {f"{number}-{name}": f"{base}/photos/{name}?{number}" for number in range(8) for name in NAMES}
    listing = write_list(tmp_path, keys)
    outputs = [tmp_path / f"{number}.csv" for number in (1, 2, 3)]

    def start(number: int) -> subprocess.Popen:
        options = ["--key-column", "id", "--allow-http", "--shard", f"{number + 1}/3", "--jobs", 1, "-q"]
        command = [PROGRAM, listing, "-o", outputs[number], *options]
        return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)

    kill_at_random(start, 3)
    told = run("merge", *outputs, "-o", tmp_path / "all.csv", "--list", listing, "--key-column", "id")
    assert "every file of the list has its vector" in told
    found = rows(tmp_path / "all.csv")
    assert found.keys() == keys.keys()
    assert all(np.array_equal(vector, expected[key.split("-", 1)[1]]) for key, vector in found.items())


def test_a_server_that_does_not_answer(site: tuple[Site, str], tmp_path: pathlib.Path) -> None:
    _, base = site
    listing = write_list(tmp_path, {"slow": f"{base}/slow/x.jpg"})
    start = time.monotonic()
    options = ["--key-column", "id", "--allow-http", "--timeout", 1, "--retries", 1]
    run(listing, "-o", tmp_path / "v.csv", *options, code=3)
    assert time.monotonic() - start < 25
    assert refused(tmp_path / "v.csv") == [("slow", "file cannot be fetched")]


class Store:
    """An S3 server with one bucket, photos."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        endpoint = "http://{}:{}".format(*self.server.get_host_and_port())
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": endpoint,
            "AWS_ALLOW_HTTP": "true",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="photos")

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="photos", Key=key, Body=content)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    try:
        yield made
    finally:
        made.server.stop()


# Characters that occur in file names and that addresses, XML, globs and signatures treat differently.
ODD = ["größe, a b%20+&=.jpg", "#1 [a]{b}~'!?*;:@$|^`<>\"\\.jpg", "猫 🐈.jpg", "%2F%00.JPG", "a..b.jpg"]


def test_a_prefix_of_s3(store: Store, tmp_path: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    for name in NAMES:
        store.put(f"2024/{name}", (PHOTOS / name).read_bytes())
    odd = {f"{folder}{name}" for name in ODD for folder in ("deep/", "größe %41/")}
    for key in odd:
        store.put(f"2024/{key}", (PHOTOS / NAMES[0]).read_bytes())
    store.put("2024/notes.txt", b"no image")
    store.put("2024/.hidden.jpg", b"no image")
    # Folder objects, as a console creates them.
    store.put("2024/", b"")
    store.put("2024/deep/", b"")
    store.put("2024/empty/", b"")
    store.put("2025/other.jpg", (PHOTOS / NAMES[0]).read_bytes())
    # This key isn't below the prefix, though it begins with the same characters.
    store.put("2024-other.jpg", (PHOTOS / NAMES[0]).read_bytes())
    # A prefix works like a directory; here in two shards, by the same command.
    found: dict[str, np.ndarray] = {}
    told = ""
    for number in (1, 2):
        output = tmp_path / f"{number}.csv"
        told += run("s3://photos/2024", "-o", output, "--shard", f"{number}/2", **store.environment)
        found |= rows(output)
    assert told.count("names: 1 file (--every-file takes all)") == 2
    assert set(found) == {*NAMES, *odd}
    assert all(np.array_equal(found[name], expected[name]) for name in NAMES)
    assert all(np.array_equal(found[key], expected[NAMES[0]]) for key in odd)
    options = ["-o", tmp_path / "m.csv", "--list", "s3://photos/2024/"]
    told = run("merge", tmp_path / "1.csv", tmp_path / "2.csv", *options, **store.environment)
    assert "every file of the list has its vector" in told
    run("s3://photos/2024", "-o", tmp_path / "every.csv", "--every-file", code=3, **store.environment)
    assert [key for key, _ in refused(tmp_path / "every.csv")] == ["notes.txt"]
    told = run("s3://nowhere/x", "-o", tmp_path / "n.csv", "--retries", 0, code=1, **store.environment)
    assert '"s3://nowhere/x" cannot be read' in told and "NoSuchBucket" in told and not (tmp_path / "n.csv").exists()
    told = run("s3://photos/2023", "-o", tmp_path / "n.csv", code=1, **store.environment)
    assert "2023" in told and not (tmp_path / "n.csv").exists()
    # A key that isn't a valid path: listing the prefix fails with the reason and the remedy.
    store.put("2024/a//b.jpg", b"")
    told = run("s3://photos/2024", "-o", tmp_path / "n.csv", code=1, **store.environment)
    assert "2024/a//b.jpg" in told and "Give a list of paths" in told


def test_more_objects_than_one_answer_lists(store: Store, tmp_path: pathlib.Path) -> None:
    # Put into the store directly: 1100 requests would take a minute.
    bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(1100):
        bucket.put_object("photos", f"many/{number:04}.txt", b"x")
    store.put("many/last.jpg", (PHOTOS / NAMES[0]).read_bytes())
    told = run("s3://photos/many", "-o", tmp_path / "v.csv", **store.environment)
    assert rows(tmp_path / "v.csv").keys() == {"last.jpg"} and "names: 1100 files" in told


def test_a_list_of_objects(store: Store, tmp_path: pathlib.Path, expected: dict[str, np.ndarray]) -> None:
    """A list of objects in several buckets, mixed with files."""
    store.put(f"2024/{NAMES[1]}", (PHOTOS / NAMES[1]).read_bytes())
    store.put("big.jpg", b"x" * 200_000)
    addresses = {
        "a": f"s3://photos/2024/{NAMES[1]}",
        "b": "s3://photos/gone.jpg",
        "c": "s3://nowhere/x.jpg",
        "d": PHOTOS / NAMES[2],
        "e": "s3://photos/big.jpg",
        "f": "s3://photos/2024//x.jpg",
    }
    listing, output = write_list(tmp_path, addresses), tmp_path / "v.csv"
    options = ["-o", output, "--key-column", "id", "--retries", 0, "--max-image-bytes", 199_999]
    run(listing, *options, code=3, **store.environment)
    found = rows(output)
    assert found.keys() == {"a", "d"}
    assert np.array_equal(found["a"], expected[NAMES[1]]) and np.array_equal(found["d"], expected[NAMES[2]])
    failures = dict(refused(output))
    assert failures.pop("e") == "image file is too large"
    assert failures == dict.fromkeys("bcf", "file cannot be fetched")
    # Without credentials or a machine role to ask for them, the run fails soon and names the remedy.
    environment = {name: text for name, text in store.environment.items() if "KEY" not in name}
    start = time.monotonic()
    environment["AWS_METADATA_ENDPOINT"] = "http://127.0.0.1:1"
    for source in ("s3://photos/2024", listing):
        told = run(source, "-o", tmp_path / "n.csv", code=1, **environment)
        assert 'no credentials for "s3://photos"' in told and "AWS_ACCESS_KEY_ID" in told
        assert not (tmp_path / "n.csv").exists()
    assert time.monotonic() - start < 60


def test_a_web_server_is_no_directory(tmp_path: pathlib.Path) -> None:
    told = run("https://localhost/photos", "-o", tmp_path / "v.csv", code=1)
    assert "is not a directory" in told and "https:// paths" in told and not (tmp_path / "v.csv").exists()
