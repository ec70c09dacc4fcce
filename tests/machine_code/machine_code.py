"""What stands in a kernel's machine code: registers, spills, shared memory, and the width of every
access to global memory with the kernel argument it goes through.

The argument is found by the line information that Triton leaves in the code: from the line of the
load or store outwards through the calls that were inlined, to an argument of the kernel.
"""

import ast
import re
import subprocess
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from triton import knobs
from triton.backends.nvidia.compiler import CUDABackend


class Access(NamedTuple):
    kind: str  # load or store
    argument: str  # of the kernel; "?": not found, "a|b": one of them
    bits: int


class MachineCode(NamedTuple):
    registers: int  # of a thread
    spills: int  # NVIDIA: instructions, AMD: registers that go to memory and back
    spills_in_loops: int
    scratch: int  # bytes of memory of a thread
    shared: int  # bytes of shared memory of a program
    accesses: Counter  # of Access, instructions


def machine_code(kernel) -> MachineCode:
    """Of a ``triton.compiler.CompiledKernel``."""
    return _nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel)


def exact_lines(ptx: str) -> str:
    """PTX whose loads stand on the line of their source: LLVM counts on through the lines of inline
    assembly, of which Triton's masked loads have several."""
    location = re.compile(r"^\s*\.loc\s.*\n", re.M)

    def keep_first(block):
        head, *rest = location.split(block[0])
        return head + "".join(location.findall(block[0])[:1] + rest)

    return re.sub(r"// begin inline asm.*?// end inline asm", keep_first, ptx, flags=re.S)


def lines_of_loads():
    """Inside, what is compiled for NVIDIA has the lines by which loads are found."""
    make_cubin = CUDABackend.make_cubin

    def exact_cubin(self, ptx, *rest):
        return make_cubin(self, exact_lines(ptx), *rest)

    return patch.object(CUDABackend, "make_cubin", exact_cubin)


def _nvidia(kernel) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        # Without its analysis of the data flow, of which the listing shows nothing.
        listing = _output(knobs.nvidia.nvdisasm.path, "-gi", "-c", "-ndf", file.name)
    [(registers, stack, local)] = re.findall(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage)
    accesses, spills, labels, loops, chain, last = Counter(), [], {}, [], (), ""
    for number, line in enumerate(listing.splitlines()):
        if found := re.match(r'\s*//## File "([^"]+)", line (\d+)', line):
            # A block of such lines: the place in the source, then its callers outwards.
            chain = (chain if "//## File" in last else ()) + ((found[1], int(found[2])),)
        elif found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = number
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            name, *modifiers = found[1].split(".")
            target = re.search(r"\.L_x_\d+", found[2])
            if name == "BRA" and target and target[0] in labels:
                loops.append((labels[target[0]], number))
            elif name in ("LDL", "STL"):
                spills.append(number)
            elif name in ("LD", "LDG", "LDGSTS", "ST", "STG"):
                kind = "store" if name.startswith("ST") else "load"
                accesses[Access(kind, _argument(kind, chain), _sass_bits(modifiers))] += 1
        last = line
    inside = sum(any(start < spill < end for start, end in loops) for spill in spills)
    scratch = int(stack) + int(local)
    return MachineCode(
        int(registers), len(spills), inside, scratch, kernel.metadata.shared, accesses
    )


def _sass_bits(modifiers: list[str]) -> int:
    """LDG.E.EF.128 -> 128, LDG.E.U16 -> 16, LDG.E -> 32."""
    for modifier in modifiers:
        if found := re.fullmatch(r"[US]?(8|16|64|128|256)", modifier):
            return int(found[1])
    return 32


def _amd(kernel) -> MachineCode:
    text = kernel.asm["amdgcn"]

    def number(key):
        return int(re.search(rf"^\s+\.{key}:\s+(\d+)", text, re.M)[1])

    files = {
        index: str(Path(folder, name))
        for index, folder, name in re.findall(r'\.file\s+(\d+) "([^"]*)" "([^"]*)"', text)
    }
    by_name = {Path(path).name: path for path in files.values()}
    accesses, chain = Counter(), ()
    for line in text.splitlines():
        if found := re.match(r"\s+\.loc\s+(\d+) (\d+)", line):
            callers = re.findall(r"@\[ ([^:\s]+):(\d+)", line)
            chain = ((files[found[1]], int(found[2])),) + tuple(
                (by_name.get(name, name), int(number)) for name, number in callers
            )
        elif found := re.match(r"\s+(?:global|buffer|flat)_(load|store)_(\w+)", line):
            accesses[Access(found[1], _argument(found[1], chain), _amd_bits(found[2]))] += 1
    spills = number("vgpr_spill_count")  # scalar registers spill to vector registers
    scratch = number("private_segment_fixed_size")
    return MachineCode(
        number("vgpr_count"), spills, spills, scratch, kernel.metadata.shared, accesses
    )


def _amd_bits(suffix: str) -> int:
    """dwordx4 -> 128, b64 -> 64, ushort -> 16, short_d16_hi -> 16, d16_hi_b16 -> 16, u8 -> 8."""
    if found := re.match(r"(?:d16_)?(?:hi_)?[bui](\d+)", suffix):
        return int(found[1])
    unit, count = re.match(r"[us]?(byte|short|dword)(?:x(\d))?", suffix).groups()
    return {"byte": 8, "short": 16, "dword": 32}[unit] * int(count or 1)


@lru_cache(maxsize=None)
def _argument(kind: str, chain: tuple[tuple[str, int], ...]) -> str:
    """The kernel argument behind an access, given its place in the source and those of its callers,
    (file, line) outwards."""
    names, callee = set(), None
    for path, line in chain:
        function = _function(path, line)
        if function is None:
            return "?"
        values = []
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or not node.lineno <= line <= node.end_lineno:
                continue
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if callee is None and name == kind:
                values.append(node.args[0])
            elif callee is not None and name == callee.name:
                parameters = (parameter.arg for parameter in callee.args.args)
                bound = dict(zip(parameters, node.args))
                bound |= {keyword.arg: keyword.value for keyword in node.keywords}
                values += [bound[name] for name in names if name in bound]
        names, callee = _parameters(function, values), function
    return "|".join(sorted(name for name in names if name.endswith("_ptr"))) or "?"


@lru_cache(maxsize=None)
def _function(path: str, line: int) -> ast.FunctionDef | None:
    if not Path(path).exists():
        return None
    functions = [
        node
        for node in ast.walk(ast.parse(Path(path).read_text()))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    ]
    return max(functions, key=lambda node: node.lineno, default=None)


def _parameters(function: ast.FunctionDef, values: list[ast.expr]) -> set[str]:
    """The parameters of a function that expressions in it are made of, through its variables."""
    parameters = {parameter.arg for parameter in function.args.args}
    todo, seen = list(values), set()
    while todo:
        names = {node.id for node in ast.walk(todo.pop()) if isinstance(node, ast.Name)} - seen
        seen |= names
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and names - parameters & {
                getattr(target, "id", None) for target in node.targets
            }:
                todo.append(node.value)
    return seen & parameters


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr}")
    return done.stdout
