"""Launches every public function over the stub driver, forward and backward, and holds what is
launched to the plan, and the machine code of the kernels to ``rules.py``.

    python tests/machine_code/launches.py           the test suite's selection
    python tests/machine_code/launches.py --all     every case, 2, 4 and 8 warps
    python tests/machine_code/launches.py --cases odd-5x7 --dtypes bf16 --warps 2 8

Exit status 1 where a launch is another than expected or a kernel breaks a rule.
"""

import argparse
import json
import sys
from itertools import product

import stub_driver
import triton
from compiled import Row, table
from compiled_cases import CASES, EVERY_KERNEL
from launch_steps import DTYPES, Part, Step, from_json, steps, to_json
from public_calls import ALL_CASES, EMPTY, ODD

from se_fused.backends.triton import plan
from se_fused.backends.triton.tuning import WARPS

EVERYDAY = [
    Part(EVERY_KERNEL, "bf16", plan.WARPS),
    Part("odd-5x7", "fp32", plan.WARPS, reads_code=False),
    Part("odd-95x95", "bf16-parameters", plan.WARPS, reads_code=False),
    Part("no-samples", "fp32", plan.WARPS),
    Part("no-samples-no-spatial-dims", "bf16", plan.WARPS),
]
# Kernels that break a rule, none with the plan's warps but for a lost line: reported, and counted
# apart. With 2 warps a thread has twice the elements: five sums of a flat tile, or an odd map's
# addresses for three maps, take more than 255 registers, which spill in the loop.
TAIL_BACKWARD = "FusedBatchNormSE training, residual and ReLU_backward reduce_backward_kernel"
TWO_WARPS = (
    f"fp32 contiguous-7x7 {TAIL_BACKWARD} 2",
    f"bf16 contiguous-7x7 {TAIL_BACKWARD} 2",
    "fp32 contiguous-95x95 rescale_backward reduce_backward_kernel 2",
    "bf16 contiguous-95x95 rescale_backward reduce_backward_kernel 2",
)
# And in one version of ptxas, one or two values more than it gives registers to.
KNOWN = {
    "3.6": (
        *TWO_WARPS,
        "fp32 contiguous-14x14 squeeze_excite_add_act_backward reduce_backward_kernel 8",
        "bf16 channels-last-7x7 squeeze_excite_add_act_backward reduce_backward_kernel 2",
        # The line of a store is lost, of a sum.
        "bf16 contiguous-7x7 squeeze_excite without biases_backward reduce_backward_kernel 4",
    ),
    "3.8": (
        *TWO_WARPS,
        "fp32 contiguous-56x56 FusedSE inside_backward reduce_backward_kernel 8",
        "fp32 contiguous-56x56 squeeze_excite without biases_backward reduce_backward_kernel 8",
    ),
}


def chosen(cases=None, dtypes=None, warps=None) -> list[Part]:
    """Every combination of these, or of all."""
    return [
        Part(*part)
        for part in product(cases or ALL_CASES, dtypes or DTYPES, warps or WARPS)
        if part[1].partition("-")[0] in ALL_CASES[part[0]].dtypes
    ]


def everything() -> list[Part]:
    """All warps for the cases of compiled.py; the parameters' dtype is the excitation's alone, and
    of odd sizes the rules say little."""
    return [
        *chosen(CASES, ("fp32", "bf16")),
        *chosen([EVERY_KERNEL], ["bf16-parameters"]),
        *chosen([*ODD, *EMPTY], ("fp32", "bf16-parameters"), [plan.WARPS]),
    ]


def print_steps():
    """In the process that has the stub; the parts are its argument, in JSON."""
    parts = [Part(*values) for values in json.loads(sys.argv[1])]
    for step in steps(stub_driver.install(), parts):
        print(to_json(step), flush=True)


def print_tuned():
    """In the process that has the stub, with tuning on: the numbers of warps that are tried, and
    the threads of each launch of a first and of a second call. Without a clock, none is faster."""
    import torch

    import se_fused
    from se_fused.backends.triton import tuning

    tuning.milliseconds = lambda call: (call(), 1.0)[1]
    tuning._can_time = lambda: True
    library, x = stub_driver.install(), torch.ones(2, 8, 6, 6)
    threads = []
    for _ in range(2):
        with stub_driver.recording(library) as found:
            se_fused.rescale(x, torch.ones(2, 8))
        threads.append([launch.threads for launch in found])
    print(json.dumps([tuning.WARPS, *threads]))


def launched(parts: list[Part]) -> list[Step]:
    code = "import launches; launches.print_steps()"
    lines = stub_driver.fresh_process("-c", code, json.dumps(parts)).splitlines()
    return list(map(from_json, lines))


def faults(step: Step) -> list[str]:
    """In its launches, and in the machine code those that are not known."""
    return step.faults() + [
        f"{name(row)}: {problem}"
        for row, problems in step.broken()
        for problem in problems
        if name(row) not in known()
    ]


def known() -> tuple[str, ...]:
    return KNOWN.get(triton.__version__.rpartition(".")[0], ())


def name(row: Row) -> str:
    return f"{row.dtype} {row.case} {row.operation} {row.kernel} {row.warps}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=ALL_CASES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--warps", nargs="+", type=int, choices=WARPS)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", action="store_true", help="every kernel, too")
    options = parser.parse_args()
    asked = options.cases, options.dtypes, options.warps
    parts = everything() if options.all else chosen(*asked) if any(asked) else EVERYDAY
    found, broken = launched(parts), 0
    rows = [row for step in found for row in step.rows]
    if options.table:
        print(table(rows))
    for step in found:
        for fault in faults(step):
            broken += 1
            print(f"{step.name}: {fault}")
        for row, problems in step.broken():
            if name(row) in known():
                print(f"{name(row)}: {'; '.join(problems)}; known of this Triton")
    launches = sum(len(step.launches) for step in found)
    print(f"Triton {triton.__version__}: {len(found)} steps, {launches} launches, ", end="")
    print(f"{len(rows)} kernels held to the rules; {broken} faults")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
