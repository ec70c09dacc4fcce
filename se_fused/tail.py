"""The end of a residual block, differentiable: BatchNorm, SE, addition and ReLU at once."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from se_fused import validation
from se_fused.activations import ACTS, GATES, NORM_ACTS, POST_ACTS
from se_fused.tracing import any_requires_grad, must_decompose, without_autocast
from se_fused.memory_format import to_dense
from se_fused.tail_function import Options, Tail, forward_passes, plain, statistics_of


def squeeze_excite_add_act(
    x: Tensor,
    residual: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    post_act: str = "relu",
    on_gate: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """``F.relu(squeeze_excite(x, w1, b1, w2, b2) + residual)``, in 9 passes instead of 21.

    Args:
        x, w1, b1, w2, b2, act, gate, on_gate: as ``squeeze_excite`` takes them.
        residual: like x, in any layout (one that is not x's is copied); None adds nothing.
        post_act: relu, or identity for none.

    Kept for the backward pass: x, one bit per element, and tensors of [N, C].

    Source: Hu et al., arXiv 1709.01507, figure 3.
    """
    validation.feature_map(x, "x")
    options = Options(act=act, gate=gate, post_act=post_act, on_gate=on_gate)
    return _tail(x, residual, None, None, (w1, b1, w2, b2), options)


def batch_norm_squeeze_excite(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    residual: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    norm_act: str = "identity",
    act: str = "relu",
    gate: str = "sigmoid",
    post_act: str = "identity",
    process_group=None,
    on_gate: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """BatchNorm, SE, addition and ReLU at once, in 10 passes instead of 29::

        x = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y = squeeze_excite(norm_act(x), w1, b1, w2, b2, act=act, gate=gate)
        y = post_act(y + residual)

    Args:
        x, w1, b1, w2, b2, act, gate, on_gate: as ``squeeze_excite`` takes them.
        running_mean, running_var, weight, bias: ``[C]`` or None, as ``F.batch_norm`` takes them;
            x's dtype, or float32 where x is bfloat16 or float16. In training the running
            statistics, where given, are updated in place.
        residual: like x, in any layout (one that is not x's is copied); None adds nothing.
        norm_act: identity, relu, silu or hardswish.
        post_act: identity or relu.
        process_group: a ``torch.distributed`` group over which training takes its statistics, as
            ``nn.SyncBatchNorm`` does.

    Kept for the backward pass: x, one bit per element with a ReLU, and tensors of [N, C]. Twice
    differentiable, except with a process group.

    Raises:
        TypeError, ValueError: a wrong argument, by name, before anything is computed; in training
            a batch of one value per channel.

    Source: Hu et al., arXiv 1709.01507, figures 2 and 3; Ioffe and Szegedy, arXiv 1502.03167.
    """
    validation.feature_map(x, "x")
    running = running_mean, running_var
    if not torch.jit.is_tracing():
        validation.normalization(x, *running, weight, bias, training)
    validation.choice(norm_act, NORM_ACTS, "norm_act")
    if process_group is not None and not (training and dist.get_world_size(process_group) > 1):
        process_group = None
    if training and process_group is None and not torch.jit.is_tracing():
        validation.batch(x)
    options = Options(
        norm_act, act, gate, post_act, training, momentum, eps, process_group, on_gate
    )
    return _tail(x, residual, running, (weight, bias), (w1, b1, w2, b2), options)


def _tail(x, residual, running, affine, weights, options: Options) -> Tensor:
    """running and affine are None where there is no BatchNorm."""
    is_plain = must_decompose()
    if not is_plain or not torch.jit.is_tracing():  # sizes are tensors there; comparing them warns
        validation.weights(x, *weights)
        if residual is not None:
            validation.alike(residual, "residual", x)
    validation.choice(options.act, ACTS, "act")
    validation.choice(options.gate, GATES, "gate")
    validation.choice(options.post_act, POST_ACTS, "post_act")
    with without_autocast(x):
        if is_plain:
            if options.group is not None:
                raise RuntimeError("synchronised statistics cannot be exported or transformed")
            return plain(x, residual, running, affine, weights, options)
        x = to_dense(x)
        weight, bias = affine or (None, None)
        planes, norm = None, (None, None, None)
        if running is not None:
            with torch.no_grad():
                planes, norm = statistics_of(x, running, options)
        arguments = x, residual, weight, bias, *weights, planes, *norm, options
        if torch.is_grad_enabled() and any_requires_grad(x, residual, weight, bias, *weights):
            return Tail.apply(*arguments)
        *arguments, _, options = arguments
        return forward_passes(*arguments, options)[0]
