"""Fresh Python interpreters."""

import os
import subprocess
import sys
from pathlib import Path

import se_fused


def python(code: str, *arguments, **environment):
    """A fresh interpreter that sees this se_fused."""
    root = str(Path(se_fused.__file__).parents[1])
    clean = {k: v for k, v in os.environ.items() if k != "SE_FUSED_BACKEND"}
    return subprocess.run(
        [sys.executable, *(("-c", code) if code else ()), *arguments],
        env=clean | {"PYTHONPATH": root} | environment, capture_output=True, text=True, timeout=120,
    )
