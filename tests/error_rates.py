"""How often the rule of tests/support/rounding.py alarms, and what faults it finds.

    python tests/error_rates.py                   a thousand draws of each family, minutes
    python tests/error_rates.py --draws 100 --capabilities avx2

For each instruction set of this processor and each family (operator or function, dtype, layout):
alarms, the largest share of what rounding may leave, and the largest ratio of root mean square
errors to plain PyTorch's in the same arithmetic. Exit status 1 on an alarm or an unseen fault.
"""

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
POOLED = 200  # draws whose errors are kept for the mean squares
CAPABILITIES = ["avx512", "avx2", "baseline"]
sys.path.append(str(HERE / "support"))


def measure(draws: int) -> int:
    import torch
    from families import DRAWS, FAMILIES, INDEPENDENT
    from rounding import accuracy, used
    from shapes import DTYPES

    import se_fused

    torch.set_num_threads(1)
    alarms = 0
    print(f"{'family':52}{'draws':>7}{'alarms':>8}{'of limit':>10}{'rms/eager':>11}")
    for of_draw in DRAWS:
        for dtype, layout in FAMILIES:
            shares, pooled = defaultdict(list), defaultdict(list)
            torch.manual_seed(0)
            for number in range(draws):
                with se_fused.backend("cpp"):
                    for label, draw in of_draw(number, DTYPES[dtype], layout, "cpu"):
                        most = 0.0
                        for name, found in draw.found.items():
                            judged = draw.exact[name], draw.scales[name]
                            most = max(most, used(found, *judged, draw.dtype))
                            comparable = name in INDEPENDENT and found.dtype == torch.float32
                            if comparable and draw.eager and number < POOLED:
                                judged = found, draw.eager[name], *judged
                                pooled[label, name].append(judged)
                        shares[label].append(most)
            for label, found in shares.items():
                count = sum(share > 1 for share in found)
                alarms += count
                ratios = [accuracy(of) for (own, _), of in pooled.items() if own == label]
                ratio = f"{max(ratios):.2f}" if ratios else ""
                print(f"{label + ', ' + dtype + ', ' + layout:52}{len(found):7}{count:8}"
                      f"{max(found):10.2f}{ratio:>11}", flush=True)
    return alarms


def faults(draws: int) -> int:
    import torch
    from planted_faults import FAULTS, SHAPES, is_found
    from shapes import DTYPES

    torch.set_num_threads(1)
    unseen = 0
    print(f"{'fault':40}" + "".join(f"{name:>12}" for name in DTYPES))
    for fault, plant in FAULTS.items():
        cells = []
        for dtype in DTYPES.values():
            torch.manual_seed(0)
            found = [is_found(plant, turn_shape, dtype) for turn_shape in SHAPES.values()
                     for _ in range(draws)]
            unseen += found.count(False)
            cells.append(f"{found.count(True)}/{len(found)}")
        print(f"{fault:40}" + "".join(f"{cell:>12}" for cell in cells), flush=True)
    return unseen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--capabilities", nargs="+", default=CAPABILITIES)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return int(measure(options.draws) > 0)
    failed = faults(max(options.draws // 50, 1)) > 0
    from se_fused.backends import cpp

    here = CAPABILITIES[CAPABILITIES.index(cpp.cpu_capability()) :]
    for capability in options.capabilities:
        if capability not in here:
            print(f"\n{capability}: this processor does not have it")
            continue
        print(f"\n{capability}", flush=True)
        command = [sys.executable, __file__, "--here", "--draws", str(options.draws)]
        environment = os.environ | {"SE_FUSED_CPU_CAPABILITY": capability}
        failed |= subprocess.run(command, env=environment).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
