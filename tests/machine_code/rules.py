"""The rules that the machine code of every Triton kernel keeps."""

import re
from pathlib import Path
from typing import NamedTuple

from compiled_cases import CASES

import se_fused

KB = 1 << 10


class Budget(NamedTuple):
    registers: int  # of a thread, in a program of 4 warps
    with_dx: int  # the same, with the store of dx in the same pass
    shared: int  # bytes of a program


BUDGET = re.compile(
    r"# Budget: (\d+) registers(?: \((\d+) with dx\))?, (\d+) KB of shared memory\.\n"
    r"@triton\.jit.*\ndef (\w+)"
)


def budgets() -> dict[str, Budget]:
    """What stands before the kernels."""
    folder = Path(se_fused.__file__).parent / "backends" / "triton"
    texts = "".join(path.read_text() for path in folder.glob("*.py"))
    return {
        kernel: Budget(int(registers), int(with_dx or registers), int(shared) * KB)
        for registers, with_dx, shared, kernel in BUDGET.findall(texts)
    }


BUDGETS = budgets()
MAX_REGISTERS = 255
# ptxas aims at the register counts that let one more program run, and parks a value or two outside
# of the loops for it.
PARKED_BYTES = 16


def problems(row, cases=CASES) -> list[str]:
    """The rules that a ``compiled.Row`` of one of the cases breaks."""
    found = []
    if row.spills_in_loops:
        found.append(f"{row.spills_in_loops} spills in loops")
    if row.scratch > PARKED_BYTES:
        found.append(f"{row.scratch} bytes of local memory a thread, {row.spills} spills")
    wide = cases[row.case].wide
    for access, widths in row.map.items():
        narrowest = min(map(int, widths))
        if narrowest < 128 and wide:
            found.append(f"{access} is {narrowest} bits wide")
    found += [f"{name} is never accessed" for name in row.unseen]
    found += [f"{access}: argument not found" for access in row.other if set(access) & set("?|")]
    budget = BUDGETS.get(row.kernel)
    if budget is None:
        return [*found, "no budget"]
    allowed = budget.with_dx if row.operation == "rescale_backward" else budget.registers
    # Fewer warps hold more of the tile each; narrow accesses take an address each.
    registers = min(allowed * 4 // min(row.warps, 4), MAX_REGISTERS) if wide else MAX_REGISTERS
    if row.registers > registers:
        found.append(f"{row.registers} registers, the budget is {registers}")
    if row.shared > budget.shared:
        found.append(f"{row.shared} bytes of shared memory, the budget is {budget.shared}")
    return found
