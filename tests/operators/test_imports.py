"""The import arrow, read from the sources; fresh interpreters with parts missing."""

import ast
from pathlib import Path

import pytest
from interpreters import python

import se_fused

ROOT = Path(se_fused.__file__).parent
# A file imports only from what stands to the right of it.
ARROW = (
    "__main__",
    "__init__",
    "earlier",
    "gates",
    "surgery",
    "modules",
    "functional",
    "autograd",
    "tracing",
    "batch_norm",
    "ops",
    "flops",
    "backends",
    "triton | cpp",
    "reference",
    "validation",
    "memory_format",
    "activations",
    "version",
    "_C",
)
BACKENDS = ("triton", "cpp", "reference")


def room(module: str) -> str:
    """The place in ARROW of a module given by its dotted name, without the leading se_fused."""
    parts = module.split(".")
    if parts[0] == "backends" and len(parts) > 1:
        assert parts[1] in BACKENDS, f"{module} is not in the contract"
        return parts[1] if parts[1] == "reference" else "triton | cpp"
    return parts[0] or "__init__"


def backend_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "backends" and len(parts) > 1 else None


def imports(source: str) -> set[str]:
    """The modules of se_fused that a source file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "se_fused"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module.split(".")[0] == "se_fused":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    path = ROOT.joinpath(*inner.split(".")[1:])
                    is_module = path.with_suffix(".py").exists() or path.is_dir()
                    extension = inner == "se_fused._C"
                    found.add(inner if is_module or extension else node.module)
    return {name.removeprefix("se_fused").removeprefix(".") for name in found}


def violations(module: str, source: str) -> list[str]:
    here = ARROW.index(room(module))
    wrong = []
    for target in imports(source):
        there = ARROW.index(room(target))
        own = backend_of(module) is not None and backend_of(module) == backend_of(target)
        inside = room(module) == room(target) and room(module) in ("surgery", "gates", "modules")
        if not (there > here or own or inside):
            wrong.append(f"{module or '__init__'} imports {target or '__init__'}")
    return wrong


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda name: name or "__init__")
def test_a_file_imports_only_from_its_right(module):
    assert violations(module, modules()[module].read_text()) == []


FAULTS = {
    "ops-from-functional": ("ops", "from se_fused.functional import squeeze"),
    "backend-from-ops": ("backends.reference", "import se_fused.ops"),
    "backend-from-backend": ("backends.triton.plan", "from se_fused.backends import cpp"),
    "backend-from-the-contract": ("backends.cpp", "from se_fused.backends import load"),
    "activations-from-the-package": ("activations", "from se_fused import backend"),
    "inside-a-function": ("backends.cpp", "def f():\n    from se_fused.backends import triton"),
}


@pytest.mark.parametrize("module, source", FAULTS.values(), ids=FAULTS)
def test_planted_import_is_found(module, source):
    assert len(violations(module, source)) == 1


COMPUTE = """
import torch, se_fused
from se_fused import backends
x = torch.arange(24.0).view(1, 2, 3, 4).requires_grad_()
y = se_fused.squeeze_excite(x, torch.ones(1, 2), None, torch.zeros(2, 1), torch.tensor([0.0, 30.0]))
y.sum().backward()
assert torch.allclose(y, x * torch.tensor([0.5, 1.0])[:, None, None]), y
assert torch.allclose(x.grad[0, :, 0, 0], torch.tensor([0.5, 1.0])), x.grad
block = se_fused.FusedSE(16)
assert block(torch.ones(1, 16, 2, 2)).shape == (1, 16, 2, 2)
cpu = torch.device("cpu")
print(backends.backend_for(cpu), *(f"{name}: {backends.why_not(name, cpu)}" for name in MISSING))
"""
HIDE = "import sys; MISSING = {missing!r}; sys.modules.update(dict.fromkeys({names!r}, None))"
PARTS = {
    "without-triton": (["triton"], ["triton"]),
    "without-the-extension": (["cpp"], ["se_fused._C"]),
    "pure-python": (["triton", "cpp"], ["triton", "se_fused._C"]),
}


@pytest.mark.parametrize("missing, names", PARTS.values(), ids=PARTS)
def test_runs_with_parts_missing(missing, names):
    done = python(HIDE.format(missing=missing, names=names) + COMPUTE)
    assert done.returncode == 0, done.stderr
    if "cpp" in missing:
        assert done.stdout.startswith("eager")
    for name in missing:
        assert f"{name}: import failed" in done.stdout


@pytest.mark.parametrize("missing, names", PARTS.values(), ids=PARTS)
def test_named_backend_with_its_part_missing_raises(missing, names):
    call = "\nimport torch, se_fused\nse_fused.squeeze(torch.ones(2, 3))"
    hide = HIDE.format(missing=missing, names=names)
    done = python(hide + call, SE_FUSED_BACKEND=missing[0])
    assert done.returncode != 0
    assert f"RuntimeError: backend '{missing[0]}' cannot run on cpu: import failed" in done.stderr


def test_import_loads_no_backend_but_the_specification():
    code = """
import sys, torch
before = set(sys.modules)
import se_fused
new = set(sys.modules) - before
print(*sorted(name for name in new if name.split(".")[0] in ("triton", "timm", "torchvision")
              or name.startswith("se_fused.backends.") or name == "se_fused._C"))
"""
    done = python(code)
    assert done.stdout.split() == ["se_fused.backends.reference"], done.stderr
