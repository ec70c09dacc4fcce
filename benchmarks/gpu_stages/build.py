"""The extension for the GPU at hand, in place: a built one that loads is taken.

    python benchmarks/gpu_stages/build.py [--dry]     dry: for the CPU

Nothing is installed or downloaded. Where it cannot be built, this says so and the rest goes on: the
Triton kernels need none.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: what has failed to load once does not load later.
WHY_NOT = (
    "import torch; from se_fused import backends; "
    "print(backends.why_not('cpp', torch.device('{device}')) or '')"
)


def why_not(device: str) -> str:
    """Why the extension does not run on the device; nothing if it does."""
    run = subprocess.run(
        [sys.executable, "-c", WHY_NOT.format(device=device)],
        cwd=ROOT, capture_output=True, text=True,  # the interpreter looks there with -c
    )  # fmt: skip
    said = (run.stdout if run.returncode == 0 else run.stderr).strip()
    return said.splitlines()[-1] if said else ""


def main() -> None:
    device = "cpu" if "--dry" in sys.argv else "cuda"
    if not why_not(device):
        print("gpu: the extension is built")
        return
    environment = {**os.environ, "SE_FUSED_NO_EXT": "0"}
    if device == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability()
        environment |= {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "SE_FUSED_CUDA": "1"}
    # By force: one without CUDA, or for another GPU, is as new.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=ROOT, env=environment)
    reason = why_not(device)
    print(f"gpu: without the extension: {reason}" if reason else "gpu: the extension is built")


if __name__ == "__main__":
    main()
