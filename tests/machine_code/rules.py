"""The rules that the machine code of every Triton kernel keeps."""

import re
from pathlib import Path
from typing import NamedTuple

from compiled_cases import CASES

import se_fused

KB = 1 << 10


class Budget(NamedTuple):
    registers: int  # of a thread, in a program of 4 warps
    shared: int  # bytes of a program


LINE = r"# Budget(?: with (\w+))?: (\d+) registers, (\d+) KB of shared memory\.\n"
BUDGET = re.compile(rf"((?:{LINE})+)@triton\.jit.*\ndef (\w+)")


def budgets() -> dict[str, dict[str, Budget]]:
    """What stands before the kernels, by kernel and by ``compiled.part_of`` its arguments."""
    folder = Path(se_fused.__file__).parent / "backends" / "triton"
    texts = "".join(path.read_text() for path in folder.glob("*.py"))
    return {
        kernel: {
            part: Budget(int(registers), int(shared) * KB)
            for part, registers, shared in re.findall(LINE, lines)
        }
        for lines, *_, kernel in BUDGET.findall(texts)
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
    budget = BUDGETS.get(row.kernel, {}).get(row.part)
    if budget is None:
        return [*found, "no budget"]
    # Fewer warps hold more of the tile each; narrow accesses take an address each.
    registers = MAX_REGISTERS
    if wide:
        registers = min(budget.registers * 4 // min(row.warps, 4), MAX_REGISTERS)
    if row.registers > registers:
        found.append(f"{row.registers} registers, the budget is {registers}")
    if row.shared > budget.shared:
        found.append(f"{row.shared} bytes of shared memory, the budget is {budget.shared}")
    return found
