"""Read the data in a pickle: nothing that the pickle names is ever imported, looked up or called."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from calib.files.inert import Call, Named, Outside, WrongPickleError, extend, fill

MOST_STEPS = 2_000_000
"""A file of CIFAR-10 takes 50,000 operations, a checkpoint about 30 for each tensor. An operation allocates at most
about 150 bytes.
"""
_LONGEST_NUMBER = 32
_INTEGERS = {b"K": "<B", b"M": "<H", b"J": "<i"}
_COUNTED: dict[bytes, tuple[str, Callable[[bytes], object]]] = {
    b"U": ("<B", bytes),  # strings of Python 2 are bytes
    b"T": ("<I", bytes),
    b"C": ("<B", bytes),
    b"B": ("<I", bytes),
    b"\x8e": ("<Q", bytes),
    b"\x96": ("<Q", bytes),  # a bytearray
    b"\x8c": ("<B", lambda raw: raw.decode("utf-8", "surrogatepass")),
    b"X": ("<I", lambda raw: raw.decode("utf-8", "surrogatepass")),
    b"\x8d": ("<Q", lambda raw: raw.decode("utf-8", "surrogatepass")),
    b"\x8a": ("<B", lambda raw: int.from_bytes(raw, "little", signed=True)),
}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}
_EMPTY: dict[bytes, Callable[[], object]] = {b"]": list, b"}": dict, b"\x8f": lambda: Call("builtins.set", ())}


class Pickled(NamedTuple):
    """What a pickle holds, the position behind it, and all that it takes from elsewhere."""

    value: object
    end: int
    outside: tuple[Outside, ...]


def read_pickle(content: bytes, start: int = 0) -> Pickled:
    """Return what the pickle at byte `start` holds.

    The value is made of None, bool, int, float, str, bytes, list, tuple, dict, and of `Named`, `Call` and `Outside`,
    which stand for everything else. It may contain itself. Raises WrongPickleError for what is damaged or needs more
    than a checkpoint or an array does.
    """
    reader = _Reader(content, start)
    try:
        return Pickled(reader.run(), reader.position, tuple(reader.found_outside))
    except WrongPickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as error:
        raise WrongPickleError(f"{type(error).__name__} at byte {reader.position}") from error


class _Reader:
    """The machine that a pickle is a program for, without the operations that reach outside of it.

    1. Every byte string is a part of the content, so that all of them together are no longer than it.
    2. Operations are counted. None copies what another made, none recurses, and the memo is a dictionary.
    """

    def __init__(self, content: bytes, position: int) -> None:
        self.position = position
        self._content = content
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, object] = {}
        self._encoded = 0
        self.found_outside: list[Outside] = []

    def run(self) -> object:
        for _ in range(MOST_STEPS):
            operation = self.take(1)
            if operation == b".":
                return self._stack.pop()
            self._do(operation)
        raise WrongPickleError(f"more than {MOST_STEPS:,} operations")

    def _do(self, operation: bytes) -> None:
        stack = self._stack
        if operation in _INTEGERS:
            stack.append(self.number(_INTEGERS[operation]))
        elif operation in _COUNTED:
            size, convert = _COUNTED[operation]
            stack.append(convert(self.take(self.number(size))))
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            stack.append(tuple(self.pop(count)))
        elif operation in _EMPTY:
            stack.append(_EMPTY[operation]())
        elif operation in _OTHERS:
            _OTHERS[operation](self)
        else:
            raise WrongPickleError(f"operation {operation!r} at byte {self.position - 1} is none that data need")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._content):
            raise WrongPickleError(f"it ends at byte {len(self._content)}, {count} more are announced")
        taken = self._content[self.position : end]
        self.position = end
        return taken

    def number(self, form: str) -> int:
        number: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return number

    def line(self) -> bytes:
        end = self._content.find(b"\n", self.position)
        if end < 0:
            raise WrongPickleError("a line does not end")
        line = self._content[self.position : end]
        self.position = end + 1
        return line

    def short_line(self) -> bytes:
        line = self.line()
        if len(line) > _LONGEST_NUMBER:
            raise WrongPickleError(f"a number has {len(line)} characters")
        return line

    def pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise WrongPickleError("an operation finds too few values")
        found = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return found

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._marked.pop()
        return found

    def protocol(self) -> None:
        version = self.number("<B")
        if version > 5:
            raise WrongPickleError(f"protocol {version} is not known")

    def frame(self) -> None:
        self.number("<Q")  # only says how much to read at once

    def integer(self) -> None:
        line = self.short_line()
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.rstrip(b"L")))

    def make_float(self) -> None:
        self._stack.append(struct.unpack(">d", self.take(8))[0])

    def make_text(self) -> None:
        self._stack.append(self.line().decode("raw-unicode-escape"))

    def make_tuple(self) -> None:
        items = self.pop_to_mark()  # which changes the stack
        self._stack.append(tuple(items))

    def make_list(self) -> None:
        items = self.pop_to_mark()
        self._stack.append(items)

    def make_dict(self) -> None:
        items, made = self.pop_to_mark(), dict[object, object]()
        fill(made, items)
        self._stack.append(made)

    def frozen_set(self) -> None:
        self.pop_to_mark()
        self._stack.append(Call("builtins.frozenset", ()))

    def append(self) -> None:
        found = self.pop(1)
        extend(self._stack[-1], found)

    def appends(self) -> None:
        found = self.pop_to_mark()
        extend(self._stack[-1], found)

    def set_item(self) -> None:
        items = self.pop(2)
        fill(self._stack[-1], items)

    def set_items(self) -> None:
        items = self.pop_to_mark()
        fill(self._stack[-1], items)

    def keep(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self.keep(len(self._memo))

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def global_name(self) -> None:
        module, name = self.line(), self.line()
        self._stack.append(Named(f"{module.decode()}.{name.decode()}"))

    def stack_global(self) -> None:
        module, name = self.pop(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise WrongPickleError("a name that is no text")
        self._stack.append(Named(f"{module}.{name}"))

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not (isinstance(function, Named) and isinstance(arguments, tuple)):
            raise WrongPickleError("it calls what is no function")
        self._stack.append(self._result(function.name, arguments))

    def _result(self, name: str, arguments: tuple[object, ...]) -> object:
        """Stand for the result of a call. Two kinds are data: an ordered dictionary, and bytes as protocols 0 to 2 of
        Python 3 write them.
        """
        if name == "collections.OrderedDict" and not arguments:
            return {}
        if name == "_codecs.encode" and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
            text = arguments[0]
            if not isinstance(text, str):
                raise WrongPickleError("it encodes what is no text")
            self._encoded += len(text)
            if self._encoded > len(self._content):  # one text, taken from the memo many times
                raise WrongPickleError("its bytes are longer than the file")
            return text.encode("latin-1")
        return Call(name, arguments)

    def call_with_names(self) -> None:
        self.pop(1)
        self.call()

    def build(self) -> None:
        state, target = self.pop(1)[0], self._stack[-1]
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # attributes of an OrderedDict
            raise WrongPickleError("it gives a state to what has none")

    def outside(self) -> None:
        found = Outside(self.pop(1)[0])
        self.found_outside.append(found)
        self._stack.append(found)


_OTHERS: dict[bytes, Callable[[_Reader], object]] = {
    b"\x80": _Reader.protocol,
    b"\x95": _Reader.frame,
    b"(": _Reader.mark,
    b"I": _Reader.integer,
    b"L": _Reader.integer,
    b"G": _Reader.make_float,
    b"V": _Reader.make_text,
    b"t": _Reader.make_tuple,
    b"l": _Reader.make_list,
    b"d": _Reader.make_dict,
    b"\x91": _Reader.frozen_set,
    b"a": _Reader.append,
    b"e": _Reader.appends,
    b"s": _Reader.set_item,
    b"u": _Reader.set_items,
    b"\x90": _Reader.pop_to_mark,  # sets hold nothing that is asked for
    b"p": lambda reader: reader.keep(int(reader.short_line())),
    b"q": lambda reader: reader.keep(reader.number("<B")),
    b"r": lambda reader: reader.keep(reader.number("<I")),
    b"\x94": _Reader.memoize,
    b"g": lambda reader: reader.get(int(reader.short_line())),
    b"h": lambda reader: reader.get(reader.number("<B")),
    b"j": lambda reader: reader.get(reader.number("<I")),
    b"c": _Reader.global_name,
    b"\x93": _Reader.stack_global,
    b"R": _Reader.call,
    b"\x81": _Reader.call,
    b"\x92": _Reader.call_with_names,
    b"b": _Reader.build,
    b"Q": _Reader.outside,
}
