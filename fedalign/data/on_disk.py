"""What clients hold, on disk: written once to a file without a name, and read client by client when it is asked for."""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from fedalign.errors import UserError

Held = TypeVar("Held")


class OnDisk(Mapping[str, Held], Generic[Held]):
    """A mapping whose values are dataclasses of plain fields, kept as JSON in a file that is mapped into memory.

    Texts take room in memory while somebody reads them, and the system may take it back. The file is in the directory
    for temporary files (``TMPDIR``), has no name, so that no other user can open it, and goes with the process.

    Parameters
    ----------
    kind : type
        Of the values.
    values : mapping from str to a value

    Raises
    ------
    UserError
        If there is no room for the file.
    """

    def __init__(self, kind: type[Held], values: Mapping[str, Held]) -> None:
        self._adapter: TypeAdapter[Held] = TypeAdapter(kind)
        self._spans: dict[str, tuple[int, int]] = {}
        self._content: Any = b""
        try:
            self._write(values)
        except OSError as error:
            raise UserError(
                f"TMPDIR={tempfile.gettempdir()}: texts cannot be kept there ({error.strerror}); choose a directory "
                "with room for as many bytes as the data have"
            ) from error

    def __getitem__(self, name: str) -> Held:
        """Read a value; another object each time."""
        start, stop = self._spans[name]
        return self._adapter.validate_python(json.loads(self._content[start:stop]))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which they were written."""
        return iter(self._spans)

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._spans)

    def _write(self, values: Mapping[str, Held]) -> None:
        with tempfile.TemporaryFile(prefix="fedalign-") as file:
            for name, value in values.items():
                start = file.tell()
                # Escapes keep halves of surrogate pairs, which UTF-8 has no bytes for and files do hold.
                file.write(json.dumps(self._adapter.dump_python(value, mode="python"), ensure_ascii=True).encode())
                self._spans[name] = start, file.tell()
            file.flush()
            if file.tell():
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
