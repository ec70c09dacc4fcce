"""The Triton kernels in the interpreter. A test file that imports this is skipped without it."""

import pytest
import triton_interpreter

from se_fused import backends

missing = triton_interpreter.why_not()
if missing:
    pytest.skip(
        f"counted by Triton's interpreter: {missing}; SE_FUSED_REQUIRE=triton makes the tests of "
        "every operator fail instead",
        allow_module_level=True,
    )
kernels = backends.load("triton")
