"""Counts the bytes that Triton kernels load and store, in Triton's interpreter.

    with Meter() as meter:
        copy_kernel[grid](x, y, n, BLOCK=64)
    assert not meter.faults
    assert meter.read(x) == x.nbytes

Pointer arguments are moved to address ranges of their own, terabytes apart, and moved back at each
access: an access belongs to the argument that its address was computed from, wherever it lands.
Lanes that are masked off don't count. Faults are, within a launch: an access outside the elements
of its argument (it is not carried out), elements without a store in a tensor that was stored to,
and elements stored twice. Programs run one after another, in the order asked for.
"""

import inspect
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, TensorHandle, interpreter_builder

ORDERS = ("ascending", "reversed", "shuffled")
_RANGE_BITS = 48  # of an address; the bits above number the argument, from 1


class Operand:
    """A tensor among the arguments of a launch: how often each of its bytes was accessed."""

    def __init__(self, name: str, tensor: Tensor):
        self.name, self.tensor = name, tensor  # the tensor, so that its memory is not used again
        self.memory = self.start, extent = memory(tensor)
        elements = np.zeros(extent // tensor.itemsize, bool)  # a strided view has others between
        positions = torch.arange(len(elements)).as_strided(tensor.shape, tensor.stride())
        elements[positions.flatten().numpy()] = True
        self.inside = elements.repeat(tensor.itemsize)
        self.loads, self.stores, self.atomics = np.zeros((3, extent), np.int64)
        self.outside = {"loads": [], "stores": [], "atomics": []}

    def count(self, kind: str, addresses: np.ndarray, size: int) -> np.ndarray:
        """Counts accesses of ``size`` bytes; tells which are to elements."""
        first = addresses - self.start
        last = first + size - 1
        inside = (first >= 0) & (last < len(self.inside))
        inside[inside] = self.inside[first[inside]] & self.inside[last[inside]]
        self.outside[kind] += first[~inside].tolist()
        np.add.at(getattr(self, kind), first[inside, None] + np.arange(size), 1)
        return inside

    @property
    def faults(self) -> list[str]:
        found = [
            f"{self.name}: {kind} outside, {len(at)} times, first at byte {at[0]} of "
            f"{len(self.inside)}"
            for kind, at in self.outside.items()
            if at
        ]
        missed = self.inside & (self.stores + self.atomics == 0) & self.stores.any()
        for fault, at in (("never stored", missed), ("stored twice", self.stores > 1)):
            if at.any():
                elements = at.sum() // self.tensor.itemsize
                found.append(f"{self.name}: {fault}, {elements} elements, first at byte "
                             f"{at.argmax()} of {len(at)}")  # fmt: skip
        return found


class Launch:
    """A launch: its kernel's name, number of programs, and operands. Arguments that are the same
    memory are one operand, by the first of their names."""

    def __init__(self, kernel: str, tensors: dict[str, Tensor]):
        self.kernel, self.programs = kernel, 0
        self.operands = {}
        for name, tensor in tensors.items():
            self.operands.setdefault(memory(tensor), Operand(name, tensor))
        # By number, in the order in which the interpreter converts the arguments.
        self.arguments = dict(enumerate((self.operands[memory(t)] for t in tensors.values()), 1))
        self.converted = 0


class Meter:
    """Records the launches inside its ``with`` block, and runs their programs in ``order``."""

    def __init__(self, order: str = "ascending", seed: int = 0):
        assert order in ORDERS
        self.order, self.random = order, np.random.default_rng(seed)
        self.launches: list[Launch] = []

    def operands(self, *tensors: Tensor) -> list[Operand]:
        """The operands that are one of these tensors, launch by launch; without tensors, all."""
        wanted = [memory(tensor) for tensor in tensors]
        found = [operand for launch in self.launches for operand in launch.operands.values()]
        return [operand for operand in found if not tensors or operand.memory in wanted]

    def read(self, *tensors: Tensor, unique=False) -> int:
        """Bytes loaded from these tensors; without tensors, from all. ``unique``: each byte counts
        once in a launch. ``written`` and ``updated``, by atomics, alike."""
        return self._bytes("loads", tensors, unique)

    def written(self, *tensors: Tensor, unique=False) -> int:
        return self._bytes("stores", tensors, unique)

    def updated(self, *tensors: Tensor, unique=False) -> int:
        return self._bytes("atomics", tensors, unique)

    def _bytes(self, kind, tensors, unique) -> int:
        counts = [getattr(operand, kind) for operand in self.operands(*tensors)]
        return sum(int(np.count_nonzero(count) if unique else count.sum()) for count in counts)

    @property
    def faults(self) -> list[str]:
        return [
            f"{launch.kernel}: {fault}"
            for launch in self.launches
            for operand in launch.operands.values()
            for fault in operand.faults
        ]

    def __enter__(self):
        run = GridExecutor.__call__

        def run_recorded(executor, *args, **kwargs):
            with _disable_current_modes():  # a TorchDispatchMode is not to see what goes on inside
                self._begin(executor, args, kwargs)
                run(executor, *args, **kwargs)

        self._replaced = ExitStack()
        self._replaced.enter_context(patch.object(GridExecutor, "__call__", run_recorded))
        for owner, name, replacement in (
            (interpreter, "_implicit_cvt", self._convert),
            (interpreter_builder, "create_masked_load", self._load),
            (interpreter_builder, "create_masked_store", self._store),
            (interpreter_builder, "create_atomic_rmw", self._atomic_rmw),
            (interpreter_builder, "create_atomic_cas", self._atomic_cas),
            (interpreter_builder, "set_grid_dim", self._set_grid),
            (interpreter_builder, "set_grid_idx", self._set_program),
        ):
            replacement = partial(replacement, getattr(owner, name))
            self._replaced.enter_context(patch.object(owner, name, replacement))
        return self

    def __exit__(self, *exception):
        self._replaced.close()

    def _begin(self, executor, args, kwargs):
        options = {name: value for name, value in kwargs.items() if name in executor.arg_names}
        arguments = inspect.getcallargs(executor.fn, *args, **options)
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        self.launches.append(Launch(executor.fn.__name__, tensors))

    def _convert(self, convert, argument):
        converted = convert(argument)
        if isinstance(argument, Tensor):
            self.launches[-1].converted += 1
            converted.handle.data += np.uint64(self.launches[-1].converted << _RANGE_BITS)
        return converted

    def _count(self, kind: str, pointers, mask):
        """The pointers moved back, and a mask without the lanes whose access is outside."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        arguments, addresses = np.divmod(pointers.data.astype(np.int64), 1 << _RANGE_BITS)
        mask = np.broadcast_to(mask, addresses.shape).astype(bool)
        for number in np.unique(arguments[mask]):
            lanes = mask & (arguments == number)
            operand = self.launches[-1].arguments[number]
            mask[lanes] = operand.count(kind, addresses[lanes], size)
        moved = TensorHandle(addresses.astype(np.uint64), pointers.dtype)
        return moved, TensorHandle(mask, interpreter.tl.int1)

    def _load(self, load, pointers, mask, *rest, **options):
        return load(*self._count("loads", pointers, mask.data), *rest, **options)

    def _store(self, store, pointers, value, mask, *rest):
        pointers, mask = self._count("stores", pointers, mask.data)
        return store(pointers, value, mask, *rest)

    def _atomic_rmw(self, update, operation, pointers, value, mask, *rest):
        pointers, mask = self._count("atomics", pointers, mask.data)
        return update(operation, pointers, value, mask, *rest)

    def _atomic_cas(self, swap, pointers, expected, *rest):
        pointers, mask = self._count("atomics", pointers, True)
        return swap(pointers, expected, *rest) if mask.data.all() else expected

    def _set_grid(self, set_grid, *grid):
        set_grid(*grid)
        programs = self.launches[-1].programs = int(np.prod(grid))
        self._grid, self._turns = grid, np.arange(programs)
        if self.order == "reversed":
            self._turns = self._turns[::-1]
        elif self.order == "shuffled":
            self.random.shuffle(self._turns)

    def _set_program(self, set_program, *position):
        turn = self._turns[np.ravel_multi_index(position, self._grid)]
        set_program(*(int(index) for index in np.unravel_index(turn, self._grid)))


def memory(tensor: Tensor) -> tuple[int, int]:
    """Address of a tensor's first element, and the bytes from there to the end of its last."""
    span = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), (span + 1) * tensor.itemsize if tensor.numel() else 0
