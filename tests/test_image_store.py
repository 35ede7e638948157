"""References as tasks hold them, where each is asked for, and what is kept."""

from __future__ import annotations

import base64
import io
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from backend.errors import FetchError
from backend.images.fetch import Fetcher, FetchLimits
from backend.images.store import ImageStore, LoadedImage
from backend.label_studio.client import LabelStudio
from sam4mllm.errors import ImageError
from sam4mllm.images import image_sha256

LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "eyJh.eyJ0.c2ln"
SUB_PATH = "/label-studio"
FILE_URI = "s3://bucket/a b/ü.png"


def png(width: int = 12, height: int = 10) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 10)).save(file, "PNG")
    return file.getvalue()


PICTURE = png()


class Server(ThreadingHTTPServer):
    """Stands for Label Studio and for other hosts: answers 200 with a picture unless told otherwise, and keeps what it was asked."""

    request_queue_size = 64  # with five, what a dozen threads ask at once waits for a second try

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.statuses: list[int] = []
        self.body = PICTURE
        self.access = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if "/presign/" in self.path and status == 200:
            self.send_response(303)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/bucket?signature=secret")
            self.end_headers()
            return
        self._send(status, self.server.body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.access += 1
        self._send(200, b'{"access": "access%d"}' % self.server.access)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def clients() -> Iterator[list[LabelStudio]]:
    opened: list[LabelStudio] = []
    yield opened
    for client in opened:
        client.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(url: str, clients: list[LabelStudio], token: str = LEGACY, memory: int = 1 << 20, clock: Clock | None = None) -> ImageStore:
    clients.append(LabelStudio(url, token))
    limits = FetchLimits(1, 2, 4000)
    return ImageStore(Fetcher((url,), (), limits), clients[-1], 10_000, memory, 600, clock or Clock())


def test_a_picture_comes_with_its_pixels_and_hash(server: Server, clients: list[LabelStudio]) -> None:
    loaded = store(server.url, clients).load("/data/upload/1/a.png", None)
    assert isinstance(loaded, LoadedImage)
    assert (loaded.pixels.shape, loaded.pixels.dtype) == ((10, 12, 3), np.uint8)
    assert loaded.pixels[0, 0].tolist() == [200, 30, 10]
    assert loaded.sha256 == image_sha256(PICTURE)


@pytest.mark.parametrize("sub_path", ["", SUB_PATH])
@pytest.mark.parametrize(
    ("reference", "asked"),
    [
        pytest.param("/data/upload/1/a.png", "/data/upload/1/a.png", id="upload"),
        pytest.param("/label-studio/data/upload/1/a.png", "/data/upload/1/a.png", id="upload with sub-path"),
        pytest.param("/tools/label-studio/v1/data/upload/1/a.png", "/data/upload/1/a.png", id="upload with a sub-path of three segments"),
        pytest.param("/a/b/data/local-files/?d=a.png", "/data/local-files/?d=a.png", id="local file with a sub-path of two segments"),
        pytest.param("http://localhost:8080/data/upload/1/a.png", "/data/upload/1/a.png", id="absolute upload"),
        pytest.param("/data/local-files/?d=set/a.png", "/data/local-files/?d=set/a.png", id="local file"),
        pytest.param("http://localhost:8080/data/local-files/?d=set%2Fa.png", "/data/local-files/?d=set%2Fa.png", id="absolute local file"),
        pytest.param("/data/local-files/?d=a set/ä..png", "/data/local-files/?d=a%20set/%C3%A4..png", id="local file with a space"),
        pytest.param("/storage-data/uploaded/?filepath=upload/1/a.png", "/storage-data/uploaded/?filepath=upload/1/a.png", id="storage"),
    ],
)
def test_label_studios_files_are_asked_of_it_with_the_token(
    server: Server, clients: list[LabelStudio], sub_path: str, reference: str, asked: str
) -> None:
    store(server.url + sub_path, clients).load(reference, None)
    assert server.asked == [(sub_path + asked, f"Token {LEGACY}")]


def test_an_absolute_address_with_the_sub_path_is_label_studios(server: Server, clients: list[LabelStudio]) -> None:
    store(server.url + SUB_PATH, clients).load("https://ls.example/label-studio/data/upload/1/a.png", None)
    assert server.asked == [("/label-studio/data/upload/1/a.png", f"Token {LEGACY}")]


@pytest.mark.parametrize("sub_path", ["", SUB_PATH])
@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob", "S3"])
def test_cloud_uris_go_through_presign(server: Server, clients: list[LabelStudio], sub_path: str, scheme: str) -> None:
    reference = FILE_URI.replace("s3", scheme)
    assert store(server.url + sub_path, clients).load(reference, 42).sha256 == image_sha256(PICTURE)
    path = server.asked[0][0]
    assert path.startswith(f"{sub_path}/tasks/42/presign/?fileuri=")
    assert base64.urlsafe_b64decode(path.partition("=")[2]).decode() == reference
    assert server.asked[1][0] == "/bucket?signature=secret"


@pytest.mark.parametrize("reference", ["/tasks/5/presign/?fileuri=czM6", "http://other:1/tasks/5/presign/?fileuri=czM6"])
def test_presign_paths_are_label_studios(server: Server, clients: list[LabelStudio], reference: str) -> None:
    store(server.url, clients).load(reference, 42)
    assert server.asked[0] == ("/tasks/5/presign/?fileuri=czM6", f"Token {LEGACY}")


def test_other_addresses_get_no_token(server: Server, clients: list[LabelStudio]) -> None:
    store(server.url, clients).load(f"{server.url}/static/a b.png?x=1", None)
    assert server.asked == [("/static/a%20b.png?x=1", None)]


def test_other_hosts_must_be_allowed(server: Server, clients: list[LabelStudio]) -> None:
    with pytest.raises(FetchError, match="SAM4MLLM_ALLOW_HOSTS"):
        store(server.url, clients).load("https://elsewhere.example/a.png", None)
    assert not server.asked


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param("/data/upload/../../api/users/", id="dots"),
        pytest.param("/data/upload/%2e%2e/%2e%2e/api/users/", id="encoded dots"),
        pytest.param("/data/upload/%252e%252e/api/users/", id="twice encoded dots"),
        pytest.param("/data/upload/..%2f..%2fapi/users/", id="encoded slash"),
        pytest.param("/data/upload/..\\api", id="backslash"),
        pytest.param("/data/upload/1/%2e%2e%5capi", id="encoded backslash"),
        pytest.param("/data/upload/" + 2 * f"%{3000 * '25'}2e" + "/api/users/", id="many layers"),
        pytest.param("/data/local-files/?d=../../etc/passwd", id="local file"),
        pytest.param("/data/local-files/?d=%2e%2e/etc/passwd", id="encoded local file"),
        pytest.param("/storage-data/uploaded/?filepath=upload/../../x", id="storage"),
        pytest.param("/data/upload/..", id="dots at the end"),
        pytest.param("http://localhost:8080/data/upload/../../api/users/", id="absolute"),
        pytest.param("http://localhost:8080/x/../data/upload/a.png", id="absolute, before"),
        pytest.param("s3://bucket/../other/a.png", id="cloud"),
        pytest.param("/api/users/", id="another route"),
        pytest.param("/tasks/x/presign/?fileuri=a", id="no task number"),
        pytest.param("//evil.example/data/upload/a.png", id="host without scheme"),
        pytest.param("/etc/passwd", id="path"),
        pytest.param("C:\\images\\a.png", id="Windows path"),
        pytest.param("images/a.png", id="relative path"),
        pytest.param("file:///etc/passwd", id="file CVE-2022-36551"),
        pytest.param("gopher://localhost/1", id="gopher"),
        pytest.param("http:/data/upload/a.png", id="one slash"),
        pytest.param("http://a@b/data/upload/a.png", id="user name"),
        pytest.param("javascript:alert(1)", id="javascript"),
        pytest.param("/data/upload/a\nb.png", id="line break"),
        pytest.param("", id="empty"),
        pytest.param("  ", id="blank"),
        pytest.param(None, id="none"),
        pytest.param(["/data/upload/a.png"], id="list"),
        pytest.param({"url": "/data/upload/a.png"}, id="object"),
        pytest.param("data:text/html;base64,PGI+", id="data of another type"),
        pytest.param("data:image/png,abc", id="data without base64"),
        pytest.param("data:image/png;base64,a*b=", id="data with wrong base64"),
        pytest.param("data:image/png;base64," + "A" * 6000, id="data too long"),
        pytest.param("data:image/png;base64," + "A" * 60_000, id="data far too long"),
    ],
)
def test_everything_else_is_refused(server: Server, clients: list[LabelStudio], reference: object) -> None:
    with pytest.raises(FetchError) as caught:
        store(server.url, clients).load(reference, 42)
    assert not server.asked
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/png;charset=utf-8;base64,"])
def test_data_uris_are_decoded(head: str) -> None:
    text = head + base64.b64encode(PICTURE).decode().replace("+", "%2B")
    assert ImageStore(Fetcher(), None, 10_000, 0).load(text, None).sha256 == image_sha256(PICTURE)


@pytest.mark.parametrize("reference", ["/data/upload/1/a.png", "http://ls/data/local-files/?d=a.png", FILE_URI])
def test_without_label_studio_its_address_is_asked_for(reference: str) -> None:
    with pytest.raises(FetchError, match="set LABEL_STUDIO_URL"):
        ImageStore(Fetcher(), None, 10_000, 0).load(reference, 42)


def test_a_cloud_uri_needs_its_task(server: Server, clients: list[LabelStudio]) -> None:
    with pytest.raises(FetchError, match="save the task first"):
        store(server.url, clients).load(FILE_URI, None)


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "LABEL_STUDIO_API_KEY"), (403, "LOCAL_FILES_SERVING_ENABLED"), (404, "the file is gone"), (500, "see its log")],
)
def test_a_refusal_of_label_studio_says_what_to_do(server: Server, clients: list[LabelStudio], status: int, advice: str) -> None:
    server.statuses = [status]
    with pytest.raises(FetchError, match=advice) as caught:
        store(server.url, clients).load("/data/upload/1/secret.png", None)
    assert LEGACY not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_401_buys_a_new_access_token_once(server: Server, clients: list[LabelStudio]) -> None:
    subject = store(server.url, clients, PERSONAL)
    server.statuses = [401]
    subject.load("/data/upload/1/a.png", None)
    assert [token for _, token in server.asked] == ["Bearer access1", "Bearer access2"]
    server.statuses = [401, 401]
    with pytest.raises(FetchError, match="401"):
        subject.load("/data/upload/1/b.png", None)


def test_a_token_that_buys_nothing_is_a_fetch_error(server: Server, clients: list[LabelStudio]) -> None:
    subject = store("http://127.0.0.1:1", clients, PERSONAL)
    with pytest.raises(FetchError, match="check LABEL_STUDIO_URL") as caught:
        subject.load("/data/upload/1/a.png", None)
    assert PERSONAL not in str(caught.value)


# What is kept


def test_files_are_kept_for_their_time(server: Server, clients: list[LabelStudio]) -> None:
    clock = Clock()
    subject = store(server.url, clients, clock=clock)
    for now, requests in ((0.0, 1), (599.0, 1), (601.0, 2)):
        clock.now = now
        subject.load("/data/upload/1/a.png", 1)
        subject.load("/data/upload/1/a.png", 2)
        assert len(server.asked) == requests


def test_the_query_and_the_task_of_a_cloud_uri_are_part_of_the_key(server: Server, clients: list[LabelStudio]) -> None:
    subject = store(server.url, clients)
    for reference, task in ((f"{server.url}/a?v=1", 1), (f"{server.url}/a?v=2", 1), (FILE_URI, 1), (FILE_URI, 2), (FILE_URI, 2)):
        subject.load(reference, task)
    assert [path.partition("?")[0] for path, _ in server.asked] == [
        "/a",
        "/a",
        "/tasks/1/presign/",
        "/bucket",
        "/tasks/2/presign/",
        "/bucket",
    ]


def test_memory_is_bounded_and_the_least_used_file_goes(server: Server, clients: list[LabelStudio]) -> None:
    subject = store(server.url, clients, memory=2 * len(PICTURE))
    for name in "abaca":
        subject.load(f"/data/upload/1/{name}", None)
    assert [path[-1] for path, _ in server.asked] == ["a", "b", "c"]
    subject.load("/data/upload/1/b", None)
    assert len(server.asked) == 4


def test_failures_are_not_kept(server: Server, clients: list[LabelStudio]) -> None:
    subject = store(server.url, clients)
    server.statuses = [500]
    with pytest.raises(FetchError):
        subject.load("/data/upload/1/a.png", None)
    assert subject.load("/data/upload/1/a.png", None).pixels.shape == (10, 12, 3)


def bomb() -> bytes:
    """A PNG of 16384 x 16384 pixels in its header, and some of its zeros behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (16384).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes((8, 2, 0, 0, 0)))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(bomb(), "at most 10,000 pixels", id="bomb"),
        pytest.param(png(1, 1), "at least 8", id="1 x 1"),
        pytest.param(png(1, 400), "at least 8", id="1 x N CVE-2026-22773"),
        pytest.param(png(400, 1), "at least 8", id="N x 1"),
        pytest.param(png(90, 90)[:-30], "damaged or cut short", id="truncated"),
        pytest.param(b"<html>log in</html>", "no image of a known format", id="a page"),
        pytest.param(b"", "empty", id="empty"),
    ],
)
def test_files_that_are_no_pictures_are_refused(server: Server, clients: list[LabelStudio], body: bytes, message: str) -> None:
    server.body = body
    with pytest.raises(ImageError, match=message):
        store(server.url, clients).load("/data/upload/1/a.png", None)


def test_a_file_over_the_limit_is_refused(server: Server, clients: list[LabelStudio]) -> None:
    server.body = bytes(4001)
    with pytest.raises(FetchError, match="over 4,000 bytes"):
        store(server.url, clients).load("/data/upload/1/a.png", None)


def test_threads_may_share_a_store(server: Server, clients: list[LabelStudio]) -> None:
    subject, loaded = store(server.url, clients, memory=3 * len(PICTURE)), []
    threads = [threading.Thread(target=lambda n=n: loaded.append(subject.load(f"/data/upload/1/{n % 4}", None))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {image.sha256 for image in loaded} == {image_sha256(PICTURE)}
    assert len(loaded) == 12
