"""The backends by name, and their loader; README.md has the contract that each keeps."""

import os
from contextlib import contextmanager
from importlib import import_module

import torch

# The modules by the names that users give them.
_MODULES = {"triton": "triton", "cpp": "cpp", "eager": "reference"}
NAMES = tuple(_MODULES)

_forced: str | None = os.environ.get("SE_FUSED_BACKEND") or None
# Name and module of a backend that can run, by forced name (None: chosen by device) and device:
# asked once.
_ready: dict[tuple[str | None, torch.device], tuple[str, object]] = {}

# Order of automatic choice.
PREFERRED = {"cuda": ("triton", "cpp", "eager"), "cpu": ("cpp", "eager")}


def load(name: str):
    """The backend module, imported on first use."""
    return import_module(f"{__name__}.{_MODULES[name]}")


def preferred(device_type: str) -> tuple[str, ...]:
    return PREFERRED.get(device_type, ("eager",))


@contextmanager
def backend(name: str | None):
    """Run what is called inside on one named backend: ``with se_fused.backend("triton"): ...``

    A named backend never falls back: if it cannot run, the call raises with the reason. ``None``
    restores the automatic choice. Process-wide, so that it reaches autograd's threads; it covers
    the calls made inside the block, a backward pass only if it is called inside too. Enter it
    outside functions given to torch.compile. Initial value: the environment variable
    SE_FUSED_BACKEND.
    """
    global _forced
    _check_name(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced_backend() -> str | None:
    """The name given by ``backend(...)`` or SE_FUSED_BACKEND, None for the automatic choice."""
    return _forced


def backend_for(device: torch.device) -> str:
    """The name of the backend that a tensor on this device gets; raises if there is none."""
    return _found_for(device)[0]


def module_for(device: torch.device):
    """The module of the backend that a tensor on this device gets."""
    return _found_for(device)[1]


def why_not(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device; None if it can."""
    try:
        module = load(name)
    except ImportError as error:
        return f"import failed: {error}"
    return module.unavailable(device)


def _found_for(device: torch.device):
    found = _ready.get((_forced, device))
    if found is None:
        name = _choose(_forced, device)
        found = _ready[_forced, device] = name, load(name)
    return found


def _choose(name: str | None, device: torch.device) -> str:
    if name is None:
        return next(name for name in preferred(device.type) if why_not(name, device) is None)
    _check_name(name)
    reason = why_not(name, device)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run on {device.type}: {reason}")
    return name


def _check_name(name: str | None):
    if name is not None and name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
