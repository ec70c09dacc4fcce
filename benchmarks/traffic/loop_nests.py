"""What a kernel of Inductor for the CPU reads and writes, from its C++ source.

    for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(32L); x0+= … )
    {
        for(int64_t x1=static_cast<int64_t>(0L); x1<static_cast<int64_t>(3136L); x1+= … )
        {
            auto tmp0 = at::vec::Vectorized<float>::loadu(in_ptr0 + … );

A loop nest that names a pointer reads, or writes, as many elements of it as its loops have steps of
one: here 32 × 3136. Within one loop nest a pointer is read once and written once, however often it
is named: a remainder that doesn't fill a vector has a branch of its own.

Inductor's own metrics don't replace this: ``num_bytes_accessed`` counts small tensors and calls of
libraries too, and its scheduler takes a buffer as read once by a kernel, whatever the code does.
Softmax over rows reads its map twice and writes it once, which is 3 passes here and 2 there.
"""

import math
import re
from collections import Counter

_TOKEN = re.compile(
    r"for\s*\(int64_t x\d+\s*=(?P<limits>[^;]*;[^;]*);|(?P<brace>[{}])|\b(?P<pointer>\w*_ptr\d+)\b"
)
_LIMITS = re.compile(r"static_cast<int64_t>\((\d+)L?\); x\d+<static_cast<int64_t>\((\d+)L?\)")
_ALIAS = re.compile(r"auto (\w+_ptr\d+) = (\w+_ptr\d+);")


def elements(source: str) -> list[Counter]:
    """For each argument of the kernel, how many elements are read, and written."""
    signature, body = re.search(r"\bkernel\((.*?)\)\n(.*)", source, re.DOTALL).groups()
    arguments = re.findall(r"\w+_ptr\d+", signature)
    number = {name: index for index, name in enumerate(arguments)}
    for alias, name in _ALIAS.findall(body):
        number[alias] = number[name]
    body = _ALIAS.sub("", body)

    blocks, limits = [], None  # the open braces: (position, steps) of a loop, else None
    accesses = {}
    for token in _TOKEN.finditer(body):
        if token["limits"]:
            first, last = map(int, _LIMITS.search(token["limits"]).groups())
            limits = (token.start(), last - first)
        elif token["brace"] == "{":
            blocks.append(limits)
            limits = None
        elif token["brace"] == "}":
            blocks.pop()
        else:
            loops = [loop for loop in blocks if loop]
            innermost = loops[-1][0] if loops else None
            for kind in _kinds(body, token):
                key = (innermost, number[token["pointer"]], kind)
                accesses[key] = math.prod(steps for _, steps in loops)
    assert arguments and not blocks, "not a kernel that Inductor generates for the CPU"

    found = [Counter() for _ in arguments]
    for (_, index, kind), count in accesses.items():
        found[index][kind] += count
    return found


def _kinds(body: str, token) -> tuple[str, ...]:
    """How the statement around a pointer accesses it; one of no known kind is an error."""
    line_start = body.rfind("\n", 0, token.start()) + 1
    before = body[line_start : token.start()]
    after = body[token.end() : body.find("\n", token.end())]
    if "atomic_add" in before:
        return ("read", "written")
    if before.endswith(".store(") or re.match(r"\[[^]]*\] = ", after):
        return ("written",)
    # transpose_mxn<…>(from, its stride, to, its stride)
    if "transpose_mxn<" in before and not before.endswith(">("):
        return ("written",)
    if after.startswith("[") or before.endswith(("loadu(", "::from(", ">(")):
        return ("read",)
    raise AssertionError(f"unknown access: {before}{token['pointer']}{after}")
