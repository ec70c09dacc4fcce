"""``python -m se_fused``: what is installed, and which backend each device gets and why."""

import platform
from importlib import metadata

import torch

import se_fused
from se_fused import backends


def main():
    print(f"se_fused {se_fused.__version__}")
    print(f"python   {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"torch    {torch.__version__}")
    print(f"triton   {_version('triton')}")
    forced = backends.forced_backend()
    if forced is not None:
        print(f"forced   {forced} (SE_FUSED_BACKEND)")
    for device in _devices():
        print(f"\n{_describe(device)}")
        try:
            print(f"  backend: {backends.backend_for(device)}")
        except (RuntimeError, ValueError) as error:
            print(f"  backend: none, {error}")
        for name in backends.NAMES:
            print(f"  {name:8} {backends.why_not(name, device) or 'can run'}")
    if not torch.cuda.is_available():
        print("\ncuda: no device is available to torch")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[torch.device]:
    return [torch.device("cpu")] + [
        torch.device("cuda", index) for index in range(torch.cuda.device_count())
    ]


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"cpu: {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
