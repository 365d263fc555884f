"""Foreign pickles, read without executing anything that they contain.

A pickle is a program that may import any function and call it. Here it gets stand-ins for what its reader knows;
whatever else it names is a placeholder, on which every operation of a pickle is without effect.
"""

import pickle
from collections.abc import Mapping
from typing import IO, Any, Self


class Placeholder:
    """What a pickle gets instead of an object of foreign code: it can be called, filled and changed, to no effect."""

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
    """Unpickles without importing or calling anything foreign."""

    def __init__(self, file: IO[bytes], stand_ins: Mapping[tuple[str, str], Any], **options: Any) -> None:
        """Read a pickle.

        Args:
            file: Where the pickle comes from.
            stand_ins: What it gets for a (module, name); a placeholder for all others.
            options: ``encoding`` and the like of ``pickle.Unpickler``.
        """
        super().__init__(file, **options)
        self._stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle gets for a global; never the named object, unless it is among the stand-ins."""
        if (module, name) in self._stand_ins:
            return self._stand_ins[module, name]
        return type("Foreign", (Placeholder,), {})  # a class, as some operations of a pickle take nothing else
