"""The process that decodes foreign pictures one after another: ``python -m sam4mllm.decoder SOCKET``.

Decoding a foreign file may run for minutes or take gigabytes, whatever the header says, and a thread cannot be ended. This process can be:
it has a limit of CPU time and of memory for each picture, and the parent ends it when nobody waits any more. What the libraries write to
standard error is dropped by the parent. :mod:`backend.images.decoding` is the other end.

For each picture, the parent and this process exchange these messages over a Unix socket. The parent sends a ``REQUEST`` and the file. This
process answers with ``SIZE``. The parent sends one byte as soon as there is enough memory for a picture of that size. This process then
decodes, and answers with ``DONE`` and the file descriptor of the pixels, (H, W, 3) uint8. Instead of either answer it may send ``FAILED``
with one line of text.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sam4mllm.errors import ImageError
from sam4mllm.images import NO_MEMORY, decode_image, open_image, read_size

REQUEST = struct.Struct("!QQd")
"""Header of a request: the bytes of the file, the most pixels allowed, and the seconds of CPU time allowed."""
ANSWER = struct.Struct("!cQQ")
"""Header of an answer: its kind, then the picture's width and height; for ``FAILED``, the length of the line in bytes, and 0."""
SIZE, DONE, FAILED = b"s", b"d", b"f"

BYTES_PER_PIXEL = 16
"""Bytes of memory allowed for each pixel while decoding, without those of the file. Measured on 50 megapixels: 15 for WebP, 12 for TIFF, 10
for PNG and progressive JPEG."""
SPARE_BYTES = 64 << 20
"""Bytes of memory allowed beside those for pixels, for decoders' tables and buffers."""


def main() -> None:
    """Serve until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to the parent, which closes the socket
    with socket.socket(fileno=int(sys.argv[1])) as parent, contextlib.suppress(EOFError, ConnectionError):
        while True:
            length, max_pixels, seconds = REQUEST.unpack(receive(parent, REQUEST.size))
            _serve(parent, receive(parent, length), max_pixels, seconds)


def receive(connection: socket.socket, length: int) -> bytearray:
    """Receive exactly ``length`` bytes. Raises EOFError if the other end closes before."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise EOFError
        view = view[received:]
    return data


def _serve(parent: socket.socket, data: bytearray, max_pixels: int, seconds: float) -> None:
    _limit_cpu(seconds)
    with contextlib.ExitStack() as stack:
        try:
            _limit_memory(SPARE_BYTES + len(data))
            width, height = read_size(io.BytesIO(data), max_pixels)
            parent.sendall(ANSWER.pack(SIZE, width, height))
            receive(parent, 1)
            _limit_memory(memory_of(width * height, len(data)))
            shared = stack.enter_context(_Shared())
            with open_image(io.BytesIO(data), max_pixels) as image:
                shape = decode_image(image, max_pixels, shared.empty).shape
        except (ImageError, MemoryError) as error:
            line = str(error if isinstance(error, ImageError) else NO_MEMORY).encode()
            parent.sendall(ANSWER.pack(FAILED, len(line), 0) + line)
        else:
            socket.send_fds(parent, [ANSWER.pack(DONE, shape[1], shape[0])], [shared.file])
        finally:
            _limit_memory(None)


def memory_of(pixels: int, file_bytes: int) -> int:
    """Return how many bytes this process may take to decode a file of ``file_bytes`` bytes that holds a picture of ``pixels`` pixels."""
    return pixels * BYTES_PER_PIXEL + 2 * file_bytes + SPARE_BYTES


class _Shared:
    """Memory for one array that another process can take over: a file without a name."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("pixels")
        else:
            with tempfile.TemporaryFile() as file:
                self.file = os.dup(file.fileno())

    def empty(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        os.truncate(self.file, math.prod(shape))
        return np.frombuffer(mmap.mmap(self.file, math.prod(shape)), np.uint8).reshape(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)


def _limit_cpu(seconds: float) -> None:
    """Have the kernel end this process once it has used ``seconds`` more of CPU time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def _limit_memory(more: int | None) -> None:
    """Make allocations fail that take this process more than ``more`` bytes beyond what it has now; None removes the limit.

    Nothing is done where there is no /proc.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # not on Linux, where the limit means nothing either
        return
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY if more is None else taken + more, hard))


if __name__ == "__main__":
    main()
