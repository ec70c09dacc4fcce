"""Versions of Triton's interpreter and of NumPy that do not go together."""

import pytest
import torch
import triton_interpreter

from se_fused import backends


@pytest.mark.parametrize(
    "triton, numpy, runs",
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0", "2.4.0", False),
        ("3.6.0+git1234", "2.4.0rc1", False),
        ("3.5.1", "3.0.0", False),
        ("3.7.1", "2.4.6", True),
        ("3.8.0", "2.4.6", True),
        ("3.8.0", "1.26.4", True),
    ],
)
def test_clash(triton, numpy, runs):
    reason = triton_interpreter.clash(triton, numpy)
    assert runs == (reason is None)
    assert runs or (triton in reason and numpy in reason and "numpy<2.4" in reason)


def test_the_versions_here():
    """A kernel whose loop has an argument for a bound runs just where nothing is said against."""
    if missing := backends.why_not("triton", torch.device("cpu")):
        pytest.skip(f"nothing is interpreted: {missing}; test_clash has the decision itself")
    kernels = backends.load("triton")
    arguments = torch.ones(2, 3, 4), None, None, None, "identity", "mean"
    if triton_interpreter.why_not() is None:
        assert torch.equal(kernels.reduce_forward(*arguments), torch.ones(1, 2, 3))
    else:
        with pytest.raises(Exception, match="0-dimensional arrays"):
            kernels.reduce_forward(*arguments)
