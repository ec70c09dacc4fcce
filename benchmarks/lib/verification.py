"""No time of a wrong result: blocks against float64, by the rule of tests/support/rounding.py."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from se_fused.activations import function_name

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

import formulas  # noqa: E402
from rounding import acc_dtype, assert_right  # noqa: E402


def copy_weights(target: nn.Module, source: nn.Module):
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.copy_(theirs.view(ours.shape))


class Exact:
    """Result and all gradients in float64 of a block in plain PyTorch, with the weights of another,
    and the scales of their errors. The block is FunctionalSE, SqueezeExcite or tails.Parts."""

    def __init__(self, plain: nn.Module, weights: nn.Module, x: Tensor, dy: Tensor, *residual):
        plain = plain.to(x.device).double()
        copy_weights(plain, weights)
        self.inputs, self.dy = (x, *residual), dy
        wide = [t.detach().double().requires_grad_() for t in self.inputs]
        self.results = gradients(plain, dy.double(), *wide)
        self.scales = _scales(plain, x.detach(), dy, *(r.detach() for r in residual))

    def judge(
        self, block: nn.Module, arithmetic: torch.dtype | None = None, longer: float = 1
    ) -> float:
        """arithmetic: of the block, at least float32 if not given. longer: its sums may err by so
        much more than those of a kernel of ours. Returns the most that is used of the limit."""
        arithmetic = arithmetic or acc_dtype(self.dy.dtype)
        label = f"{type(block).__name__} {tuple(self.dy.shape)} {self.dy.dtype}"
        found = gradients(block, self.dy, *self.inputs)
        shares = []
        for result, exact, (name, scale) in zip(found, self.results, self.scales, strict=True):
            exact = exact.view(result.shape)
            scale = longer * scale
            shares.append(assert_right(f"{label}: {name}", result, exact, scale, arithmetic))
        return max(shares)


def without_tf32():
    """Convolutions of float32 maps in float32 on a GPU, where PyTorch has them in TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def gradients(block: nn.Module, dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    y = block(*inputs)
    return [y.detach(), *torch.autograd.grad(y, [*inputs, *block.parameters()], dy)]


def _scales(plain: nn.Module, x: Tensor, dy: Tensor, *residual: Tensor) -> list[tuple[str, Tensor]]:
    """Names and scales in the order of ``gradients``."""
    names = ["y", "dx"] + ["dresidual"] * len(residual)
    options, se = {}, plain
    if hasattr(plain, "se"):
        se = plain.se
        if isinstance(plain.bn, nn.BatchNorm2d):
            bn = plain.bn
            options["norm"] = formulas.Norm(bn.weight.detach(), bn.bias.detach(), None, None, True,
                                            0.0, bn.eps)
            names += ["dweight", "dbias"]
        options["norm_act"] = function_name(plain.act)
        options |= {"residual": residual[0], "relu": True} if residual else {}
    if isinstance(se, nn.Identity):  # as a gate of 1
        nothing = x.new_zeros(1, x.shape[1])
        weights = nothing, None, nothing.t(), torch.ones_like(nothing[0])
        functions = "identity", "identity"
    else:
        names += ["dw1", "db1", "dw2", "db2"]
        weights = [p.detach() for p in se.parameters()]
        functions = _name(se.act), _name(se.gate)
    # The widest arithmetic that is judged decides how near a kink is.
    eps = torch.finfo(x.dtype).eps
    found = formulas.block(x, *weights, *functions, dy, eps=eps, **options)
    return [(name, found[name].scale) for name in names]


def _name(function) -> str:
    known = {of: name for table in (formulas.ACTS, formulas.GATES) for name, of in table.items()}
    known[torch.nn.functional.hardsigmoid] = "hardsigmoid"
    return known.get(function) or function_name(function)
