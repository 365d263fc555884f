"""Reading of foreign pickles without executing anything that they contain.

A pickle is a program that can import any function and call it. Here it gets stand-ins for the globals that its reader
expects; any other global is a placeholder, on which the operations of a pickle have no effect.
"""

import io
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any, Self


class Placeholder:
    """Stands in for an object of foreign code: it can be called, filled and changed, without effect."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Ignore the arguments of a foreign constructor."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore the arguments of a foreign constructor."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Stand in for the result of a foreign function."""
        return Placeholder()

    def __setstate__(self, *_: Any) -> None:
        """Ignore a foreign object's attributes."""

    def __setitem__(self, *_: Any) -> None:
        """Ignore an item of a foreign mapping."""

    def append(self, *_: Any) -> None:
        """Ignore an element of a foreign sequence."""

    extend = add = append


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that imports and calls nothing but its stand-ins."""

    def __init__(self, content: bytes, stand_ins: Mapping[tuple[str, str], Any], **options: Any) -> None:
        """Read a pickle.

        Args:
            content: The pickle.
            stand_ins: Objects by (module, name); all other globals become placeholders.
            options: Options of ``pickle.Unpickler``, such as ``encoding``.

        Raises:
            ValueError: If it is damaged, or loading it could fill the memory.
        """
        # It has no more objects than bytes, but the unpickler makes room for any number of an object that is named.
        for opcode, number, _ in pickletools.genops(content):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(number or 0) > len(content):
                raise ValueError(f"a pickle of {len(content)} bytes names object {number}")
        super().__init__(io.BytesIO(content), **options)
        self._stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global, else a placeholder; never import the named object."""
        if (module, name) in self._stand_ins:
            return self._stand_ins[module, name]
        return type("Foreign", (Placeholder,), {})  # a class: the opcode NEWOBJ accepts nothing else
