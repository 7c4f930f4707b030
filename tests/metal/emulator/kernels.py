"""Run kernels of a library built by emulator.cmake on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

BUFFERS, CONSTANTS = 31, 64
ORDERS = (0, 1, 2)


class Failed(Exception):
    """The emulator refused a dispatch, or a kernel in it."""


class Binding(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class Size(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32)]


def size(n: int | Sequence[int]) -> Size:
    return Size(
        *((n,) if isinstance(n, int) else n), *(1,) * (2 if isinstance(n, int) else 3 - len(n))
    )


class Kernels:
    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.emu_find.restype = ctypes.c_void_p
        self.library.emu_find.argtypes = [ctypes.c_char_p]
        self.library.emu_constants.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.library.emu_run.argtypes = [
            *(ctypes.c_void_p,) * 5, Size, Size, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip

    def order(self, order: int) -> None:
        self.library.emu_order(order)

    def barrier(self) -> None:
        self.library.emu_barrier()

    def constants(self, kernel: str) -> list[int]:
        """The function constants that a kernel uses."""
        indices = ctypes.POINTER(ctypes.c_int32)()
        n = self.library.emu_constants(
            self.library.emu_find(kernel.encode()), ctypes.byref(indices)
        )
        return [indices[i] for i in range(n)]

    def run(
        self,
        kernel: str,
        buffers: Sequence[np.ndarray | None],
        groups: int | Sequence[int],
        threads: int | Sequence[int],
        *,
        constants: Mapping[int, int] | None = None,
        threadgroup: Mapping[int, int] | None = None,
    ) -> None:
        """Run one dispatch; buffer i is bound at index i, as long as it is.

        Raises:
            Failed: What the emulator found.
        """
        found = self.library.emu_find(kernel.encode())
        if not found:
            raise Failed(f"no kernel '{kernel}'")
        bound = (Binding * BUFFERS)()
        for i, array in enumerate(buffers):
            if array is not None:
                assert array.flags.c_contiguous
                bound[i] = Binding(array.ctypes.data, array.nbytes)
        lengths = (ctypes.c_size_t * BUFFERS)()
        for i, length in (threadgroup or {}).items():
            lengths[i] = length
        values, given = (ctypes.c_int32 * CONSTANTS)(), (ctypes.c_uint8 * CONSTANTS)()
        for i, value in (constants or {}).items():
            values[i], given[i] = value, 1
        error = ctypes.create_string_buffer(1024)
        if self.library.emu_run(
            found, bound, lengths, values, given, size(groups), size(threads), error, len(error)
        ):
            raise Failed(error.value.decode())
