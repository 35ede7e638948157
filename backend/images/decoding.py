"""Decodes foreign pictures in processes that can be killed, within limits of time and memory (CWE-400, CWE-409).

The size in a file's header limits neither: a progressive JPEG may hold any number of scans, and a TIFF's tile may be larger than its
picture.
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from backend.errors import DeadlineError
from backend.settings import DECODE_SECONDS
from sam4mllm.decoder import ANSWER, DONE, FAILED, REQUEST, SIZE, memory_of, receive
from sam4mllm.errors import ImageError
from sam4mllm.images import MAX_PIXELS, image_sha256

PROCESSES = min(4, os.cpu_count() or 1)
REMEMBERED = 1000
"""How many refused files a decoder remembers, by their SHA-256; of more, the oldest are forgotten. A file that is remembered is refused
without being decoded.
"""
NO_TIME = "there was no time left to decode the image in this request; it is asked again later"


class Decoder:
    """A pool of a few decoding processes that threads may share. A process is started when it is first needed, and replaced if it had to be
    killed.

    Args:
        max_pixels: the largest picture. All pictures that are being decoded together take no more memory than one of that size.
        cpu_seconds: the most CPU time for each picture.
        processes: the most processes.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS, cpu_seconds: float = DECODE_SECONDS, processes: int = PROCESSES) -> None:
        self._max_pixels = max_pixels
        self._cpu_seconds = cpu_seconds
        self._places = threading.BoundedSemaphore(processes)
        self._idle: list[_Process] = []
        self._lock = threading.Condition()
        self._memory = memory_of(max_pixels, 0)
        self._refused: OrderedDict[str, str] = OrderedDict()

    def decode(self, data: bytes, seconds: float = float("inf")) -> NDArray[np.uint8]:
        """The pixels of a file as (H, W, 3) uint8 RGB, upright, as :func:`sam4mllm.images.load_image` gives them.

        Raises:
            ImageError: the file is no picture that can be used, takes more than ``cpu_seconds`` of CPU time or more memory than a picture
                of its size should, or crashes its decoder; or it was refused before and is still remembered (REMEMBERED).
            DeadlineError: ``seconds`` were over first, perhaps while the file waited for a process or for memory.
        """
        end = time.monotonic() + seconds
        name = image_sha256(data)
        with self._lock:
            if name in self._refused:
                raise ImageError(self._refused[name])
        try:
            with self._process(end) as process:
                return self._decode(process, data, end)
        except TimeoutError as error:
            raise DeadlineError(NO_TIME) from error
        except (ImageError, _TakesTooMuchError) as error:
            with self._lock:
                self._refused[name] = str(error)
                while len(self._refused) > REMEMBERED:
                    self._refused.popitem(last=False)
            raise ImageError(str(error)) from error

    def close(self) -> None:
        """End the idle processes. A process that is at work goes back to the pool after its picture, and ends with this process at the
        latest.
        """
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    @contextmanager
    def _process(self, end: float) -> Iterator[_Process]:
        """Yield a process for one picture. It goes back to the pool, also after an ImageError; after any other error it is killed.

        Raises TimeoutError if as many processes as are allowed are at work until ``end``.
        """
        if not self._places.acquire(timeout=_left(end)):
            raise TimeoutError
        try:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None or not process.alive:
                process = _Process()
            try:
                yield process
            except ImageError:
                self._keep(process)
                raise
            except BaseException:
                process.end()
                raise
            self._keep(process)
        finally:
            self._places.release()

    def _keep(self, process: _Process) -> None:
        with self._lock:
            self._idle.append(process)

    def _decode(self, process: _Process, data: bytes, end: float) -> NDArray[np.uint8]:
        try:
            process.send(REQUEST.pack(len(data), self._max_pixels, self._cpu_seconds), end)
            process.send(data, end)
            width, height = process.answer(SIZE, end)
            with self._memory_for(width * height, len(data), end):
                process.send(b"\0", end)
                width, height = process.answer(DONE, end)
            return process.pixels(width, height)
        except (EOFError, ConnectionError) as error:
            if process.end() == -signal.SIGXCPU:
                line = f"the image takes longer than {self._cpu_seconds:g} s of CPU time to decode; save it again, as PNG or baseline JPEG"
                raise _TakesTooMuchError(line) from error
            raise _TakesTooMuchError("the image is damaged so that its decoder crashed; save it again as PNG or JPEG") from error

    @contextmanager
    def _memory_for(self, pixels: int, file_bytes: int, end: float) -> Iterator[None]:
        """Wait until the pictures at work leave enough memory for one of ``pixels`` pixels, and claim that memory for the block.

        Raises TimeoutError if ``end`` comes first.
        """
        wanted = min(memory_of(pixels, file_bytes), memory_of(self._max_pixels, 0))
        with self._lock:
            if not self._lock.wait_for(lambda: self._memory >= wanted, _left(end)):
                raise TimeoutError
            self._memory -= wanted
        try:
            yield
        finally:
            with self._lock:
                self._memory += wanted
                self._lock.notify_all()


class _TakesTooMuchError(Exception):
    """The decoding process died: it had used up its CPU time, or it crashed."""


class _Process:
    """One decoding process, and the messages to and from it. Waiting beyond ``end`` raises TimeoutError; if the process has died, EOFError
    or ConnectionError is raised.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sam4mllm.decoder", str(theirs.fileno())],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread's buffers count as memory taken
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries write there what they think of a file
                pass_fds=(theirs.fileno(),),
            )
        self._shared = -1

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: bytes, end: float) -> None:
        self._socket.settimeout(_left(end))
        self._socket.sendall(message)

    def answer(self, kind: bytes, end: float) -> tuple[int, int]:
        """Receive the next message, of the given ``kind``, and return its width and height. Raises ImageError if the process refuses the
        picture, and EOFError if the message is of another kind.
        """
        self._socket.settimeout(_left(end))
        message, descriptors, _, _ = socket.recv_fds(self._socket, ANSWER.size, 1)
        if not message:
            raise EOFError
        self._shared = descriptors[0] if descriptors else -1
        rest = receive(self._socket, ANSWER.size - len(message))
        found, width, height = ANSWER.unpack(message + rest)
        if found == FAILED:
            raise ImageError(receive(self._socket, width).decode(errors="replace"))
        if found != kind:
            raise EOFError
        return width, height

    def pixels(self, width: int, height: int) -> NDArray[np.uint8]:
        """Return the decoded pixels (H, W, 3) uint8. The decoding process has let go of their memory, so nobody else can change them."""
        shared, self._shared = self._shared, -1
        try:
            return np.frombuffer(mmap.mmap(shared, width * height * 3), np.uint8).reshape(height, width, 3)
        finally:
            os.close(shared)

    def end(self) -> int:
        """Close the socket, kill the process if it does not end by itself within 0.2 s, and return its exit code."""
        self._socket.close()
        if self._process.poll() is None:
            try:
                return self._process.wait(0.2)  # it ends by itself where it reads the socket
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


def _left(end: float) -> float | None:
    """Return the seconds until ``end`` (of the monotonic clock), or None if that is infinity. Raises TimeoutError if it has passed."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return None if left == float("inf") else left


_shared: dict[tuple[int, float], Decoder] = {}
_shared_lock = threading.Lock()


def shared_decoder(max_pixels: int = MAX_PIXELS, cpu_seconds: float = DECODE_SECONDS) -> Decoder:
    """Return the decoder with these limits that all of this process shares; it is made on the first call."""
    with _shared_lock:
        if (max_pixels, cpu_seconds) not in _shared:
            _shared[max_pixels, cpu_seconds] = decoder = Decoder(max_pixels, cpu_seconds)
            atexit.register(decoder.close)
        return _shared[max_pixels, cpu_seconds]
