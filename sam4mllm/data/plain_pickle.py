"""Reads pickles of plain containers safely: nothing that the file names is called.

An ordinary unpickler calls whatever the file names. This one allows only the pickle instructions that make lists, dicts, texts and numbers;
the first other instruction ends the reading. It is based on the unpickler that is written in Python (``pickle._Unpickler``). The one in C
allocates the sizes that the file states before it checks that the data is there (a memo index of 2**31 takes 32 GiB).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

from sam4mllm.errors import DatasetError

PLAIN = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
)
"""The instructions that are allowed. Those for tuples are not: a tuple nested a million levels deep and used as the key of a dict would
overflow the stack."""

_NAMES = {ord(one.code): one.name for one in pickletools.opcodes}


def load_plain_pickle(data: bytes, name: str) -> object:
    """Return what a pickle of lists, dicts, texts, numbers, booleans and None holds. Texts of Python 2 are decoded as UTF-8.

    Raises DatasetError if the pickle is broken or holds anything else (tuples, too); nothing that it names is called. The message begins
    with ``name``.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except DatasetError as error:
        raise DatasetError(f"{name} {error}") from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise DatasetError(f"{name} is broken; fetch it again") from error


class _Instructions(dict[int, Any]):
    def __missing__(self, code: int) -> NoReturn:
        what = _NAMES.get(code, f"0x{code:02x}")
        raise DatasetError(f"holds the instruction {what}, which plain lists and texts do not need; it may be an attack, and was not run")


class _PlainUnpickler(pickle._Unpickler):
    dispatch = _Instructions({code: handler for code, handler in pickle._Unpickler.dispatch.items() if _NAMES[code] in PLAIN})

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse classes and functions. This is a second safeguard: the instructions that lead here are refused already."""
        raise DatasetError("names a class or a function")
