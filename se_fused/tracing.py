"""Where the block meets export, transforms, autocast and double backward."""

from contextlib import contextmanager, nullcontext
from threading import get_ident

import torch
from torch import Tensor
from torch.autograd import forward_ad

from se_fused import backends

_plain_threads: set[int] = set()


@contextmanager
def plain_operators():
    """What this thread calls inside runs on PyTorch's own operators, on whatever backend."""
    ident = get_ident()
    is_first = ident not in _plain_threads
    _plain_threads.add(ident)
    try:
        yield
    finally:
        if is_first:
            _plain_threads.discard(ident)


def must_decompose() -> bool:
    """Whether someone takes the computation apart who knows PyTorch's own operators alone."""
    if _plain_threads and not torch.compiler.is_compiling() and get_ident() in _plain_threads:
        return True
    # Not is_exporting(), which torch.compile of 2.10 and 2.11 takes for true in what it traces.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return True
    if not _is_transformed():
        return False
    if backends.forced_backend() in (None, "eager"):
        return True
    raise RuntimeError(
        f"backend {backends.forced_backend()!r} cannot run inside torch.func transforms and "
        'forward-mode differentiation: use se_fused.backend("eager")'
    )


def needs_double_backward(dy: Tensor) -> bool:
    """Whether a backward pass is itself differentiated, or batched, as for a Jacobian."""
    if torch.is_grad_enabled() or _is_transformed():
        return True
    # What torch.autograd.grad(is_grads_batched=True) makes is none of torch.func's transforms.
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(dy)


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def without_autocast(t: Tensor):
    """The accumulator's matmuls stay in its dtype, also in a backward pass inside autocast."""
    kind = t.device.type
    if t.is_meta or not torch.is_autocast_enabled(kind):  # which knows no meta device
        return nullcontext()
    return torch.autocast(kind, enabled=False)
