"""Loads the pictures of tasks: from the reference that Label Studio writes into a task's data to pixels.

Label Studio's own files are fetched from LABEL_STUDIO_URL with its token, whatever host the reference names: that host is Label Studio's
name for itself, which may lead nowhere from here. For a cloud URI Label Studio's presign route is asked. No other host gets the token.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from backend.errors import FetchError, LabelStudioError
from backend.images.decoding import shared_decoder
from backend.images.fetch import Fetcher, FetchLimits, StatusError
from backend.label_studio.client import LabelStudio
from backend.settings import DECODE_SECONDS, Settings
from backend.support.addresses import parse_url
from backend.support.byte_cache import ByteCache
from sam4mllm.images import image_sha256

_OWN = r"/(?:data/upload/|data/local-files/|storage-data/|(?P<signed>(?:tasks|projects)/[0-9]+/(?:presign|resolve)/))"
# Label Studio may be served under a sub-path of any number of segments that only the browser knows
_RELATIVE = re.compile(rf"(?:/[\w.~-]+)*?(?P<tail>{_OWN}.*)", re.ASCII | re.DOTALL)
_ABSOLUTE = re.compile(rf"(?P<tail>{_OWN}.*)", re.DOTALL)
_DATA = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_CLIMB = re.compile(r"(?:^|[/\\?&=])\.\.(?:[/\\?&#]|$)")
_LAYERS = 6
_CLOUDS = ("s3", "gs", "azure-blob")
IMAGE_MEMORY = 256 * 1024 * 1024
"""Size in bytes of the cache of fetched files."""

_ADVICE = {
    401: "check LABEL_STUDIO_API_KEY; where legacy tokens are disabled, it must be a personal access token",
    403: "its token's user must be a member of the project, and local files need LOCAL_FILES_SERVING_ENABLED=true on Label Studio",
    404: "the file is gone, or local files lack a storage in the project or LOCAL_FILES_SERVING_ENABLED=true on Label Studio",
}


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A picture: ``pixels`` (H, W, 3) uint8 RGB, upright, and ``sha256``, the hash of the file's bytes in 64 hexadecimal digits."""

    pixels: NDArray[np.uint8]
    sha256: str


@dataclass(frozen=True)
class _Source:
    url: str = field(repr=False)
    from_label_studio: bool = False
    signed: bool = False
    """Whether Label Studio redirects to where the file is."""


class ImageStore:
    """Loads pictures by their references in tasks, and caches the files that were fetched last. Threads may share it.

    Args:
        fetcher: downloads the files; it must trust the origin of ``label_studio``.
        label_studio: None if LABEL_STUDIO_URL is not set.
        max_pixels: pictures with more pixels are refused.
        memory_bytes: size of the cache of files.
        seconds_to_live: how long a file is cached before it is fetched anew.
        clock: returns seconds and never goes back.
        cpu_seconds: the most CPU time for decoding one picture.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        label_studio: LabelStudio | None,
        max_pixels: int,
        memory_bytes: int,
        seconds_to_live: float = 600,
        clock: Callable[[], float] = time.monotonic,
        cpu_seconds: float = DECODE_SECONDS,
    ) -> None:
        self._fetcher = fetcher
        self._label_studio = label_studio
        self._decoder = shared_decoder(max_pixels, cpu_seconds)
        self.files: ByteCache[tuple[str, int | None], bytes] = ByteCache(memory_bytes, len, seconds_to_live, clock)
        """Fetched files, by their reference and, for cloud URIs, the task."""

    def load(self, reference: object, task_id: int | None, seconds: float = float("inf")) -> LoadedImage:
        """The picture that a task's data refers to.

        Args:
            reference: a path or an address as Label Studio writes it, a cloud URI, an http(s) address, or a ``data:`` URI.
            task_id: needed for cloud URIs only.
            seconds: what is left for it; fetching has the fetcher's limit too.

        Raises:
            FetchError: the reference is refused, or the file cannot be had, for example not within ``seconds``.
            ImageError: the file is no picture that can be used.
            DeadlineError: the file is there, and ``seconds`` were over before it was decoded.
        """
        end = time.monotonic() + seconds
        data = self.read(reference, task_id, seconds)
        return LoadedImage(self._decoder.decode(data, end - time.monotonic()), image_sha256(data))

    def read(self, reference: object, task_id: int | None, seconds: float = float("inf")) -> bytes:
        """Return the bytes of the picture's file, not decoded; the arguments are those of :meth:`load`. A file that was fetched less than
        ``seconds_to_live`` ago comes from the cache, if it is still there. Raises FetchError.
        """
        if not isinstance(reference, str) or not reference.strip():
            raise FetchError("the task has no image address; check the value of the config's Image tag")
        if reference[:5].lower() == "data:":
            return self._decoded(reference)
        return self._file(reference.strip(), task_id, time.monotonic() + seconds)

    def _decoded(self, reference: str) -> bytes:
        head = _DATA.match(reference)
        if head is None:
            raise FetchError("a data: image is written as data:image/png;base64,…; correct the task's data")
        limit = self._fetcher.limits.max_bytes
        # base64 has four characters for three bytes, and each of them takes three if it is percent-encoded: four a byte at most
        if len(reference) - head.end() > 4 * limit:
            raise FetchError(f"the task's data: image is over {limit:,} bytes; make it smaller, or give its address")
        try:
            data = base64.b64decode(unquote(reference[head.end() :]), validate=True)
        except (binascii.Error, ValueError):
            raise FetchError("the task's data: image is not valid base64; correct the task's data") from None
        if len(data) > limit:
            raise FetchError(f"the task's data: image is over {limit:,} bytes; make it smaller, or give its address")
        return data

    def _file(self, reference: str, task_id: int | None, deadline: float) -> bytes:
        if _climbs(reference):
            raise FetchError("the image's path climbs up with '..'; write it without")
        cloud = _scheme(reference) in _CLOUDS
        key = (reference, task_id if cloud else None)
        data = self.files.get(key)
        if data is None:
            source = self._presigned(reference, task_id) if cloud else self._locate(reference)
            if source.from_label_studio:
                data = self._from_label_studio(source, deadline)
            else:
                data = self._fetcher.get(source.url, seconds=deadline - time.monotonic())
            self.files.put(key, data)
        return data

    def _presigned(self, reference: str, task_id: int | None) -> _Source:
        if task_id is None:
            raise FetchError(f"a {_scheme(reference)}:// image is had through its task, and this request names none; save the task first")
        uri = base64.urlsafe_b64encode(reference.encode("utf-8", "replace")).decode()
        return _Source(f"{self._root()}/tasks/{task_id:d}/presign/?fileuri={uri}", True, True)

    def _locate(self, reference: str) -> _Source:
        reference = reference.replace(" ", "%20")  # as a browser does
        if reference.startswith("/"):
            own = _RELATIVE.fullmatch(reference)
            if own is None:
                raise FetchError(
                    "the image is a path that Label Studio does not serve; give an address, or connect it as Local Files storage"
                )
        else:
            if _scheme(reference) not in ("http", "https"):
                raise FetchError("the image is neither an http(s) address, a path of Label Studio nor a cloud URI; correct the task's data")
            target = parse_url(reference)
            path = target.url.raw_path.decode("ascii")
            own = _RELATIVE.fullmatch(path) if target.origin == self._origin() else _ABSOLUTE.fullmatch(path.removeprefix(self._sub_path()))
            own = own or _ABSOLUTE.fullmatch(path)
        if own is None:
            return _Source(reference)
        return _Source(self._root() + own["tail"], True, own["signed"] is not None)

    def _from_label_studio(self, source: _Source, deadline: float) -> bytes:
        assert self._label_studio is not None
        try:
            headers = self._label_studio.authorization()
            try:
                return self._fetcher.get(source.url, headers, source.signed, deadline - time.monotonic())
            except StatusError as error:
                if error.status != 401 or not self._label_studio.forget(headers):
                    raise
                return self._fetcher.get(source.url, self._label_studio.authorization(), source.signed, deadline - time.monotonic())
        except StatusError as error:
            advice = _ADVICE.get(error.status, "see its log, and open the task there to see whether the image shows")
            raise FetchError(f"Label Studio answered {error.status} instead of the image; {advice}") from error
        except LabelStudioError as error:
            raise FetchError(str(error)) from error

    def _root(self) -> str:
        if self._label_studio is None:
            raise FetchError("the image is kept by Label Studio; set LABEL_STUDIO_URL, and LABEL_STUDIO_API_KEY to a token")
        return self._label_studio.url

    def _origin(self) -> str:
        return "" if self._label_studio is None else parse_url(self._label_studio.url).origin

    def _sub_path(self) -> str:
        return "" if self._label_studio is None else parse_url(self._label_studio.url).url.path.rstrip("/")


def image_store(settings: Settings, label_studio: LabelStudio | None) -> ImageStore:
    """Pictures from Label Studio and from the hosts that the settings allow."""
    trusted = [settings.label_studio_url] if settings.label_studio_url else []
    limits = FetchLimits(max_bytes=settings.max_image_mb * 1024 * 1024)
    return ImageStore(
        Fetcher(trusted, settings.allow_hosts, limits), label_studio, settings.max_pixels, IMAGE_MEMORY, cpu_seconds=settings.decode_seconds
    )


def _scheme(reference: str) -> str:
    return reference.partition("://")[0].lower() if "://" in reference else ""


def _climbs(reference: str) -> bool:
    """Whether ``..`` is a segment of a reference's path, or of its query. It may be percent-encoded several times over; a reference that is
    still encoded after _LAYERS times of decoding counts as climbing.
    """
    for _ in range(_LAYERS):
        if _CLIMB.search(reference):
            return True
        plain = unquote(reference)
        if plain == reference:
            return False
        reference = plain
    return True
