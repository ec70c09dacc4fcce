"""Passes of operators and of code that Inductor generates for the CPU, on known traffic.

FusedSE's passes: test_traffic.py.
"""

import pytest
import torch
import triton_interpreter
from lib.tails import AFTER_SE, MBCONV, RESIDUAL
from pairwise import each_pair
from selection import kept
from torch._inductor import config
from traffic import counting, loop_nests, tail_traffic
from traffic.counting import COMPILED, DIRECTIONS, LAYOUTS, Generated, Operators


def test_operators_count_passes():
    x, gate = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    with Operators(x.shape) as counted:
        x.mean((2, 3))  # reads x
        y = x * gate  # reads x, writes y
        y.transpose(2, 3).detach()  # a view
        gate.expand(x.shape).sum()  # of a map's shape, but a gate's size
        torch.empty_like(y).add_(x)  # reads both, writes one
        x.flatten(1).abs()  # reads x in another shape, writes
    assert counted.names == ["mean", "mul", "sum", "add_", "abs"]
    assert counted.passes == 8


@pytest.mark.parametrize("training, passes", [(True, [3, 5]), (False, [2, 3])],
                         ids=["training", "eval"])
def test_batch_norm_reads_twice_what_it_takes_sums_over(training, passes):
    norm, x = torch.nn.BatchNorm2d(3).train(training), counting.make_map((2, 3, 4, 4), "contiguous")
    found = counting.by_operators(norm, x)
    assert [found[direction]["passes"] for direction in DIRECTIONS] == passes


KNOWN = {  # function: passes of each generated kernel, operators, passes altogether
    "product": (lambda x: x * 2, [2], [], 2),
    "product-in-place": (lambda x: x.mul_(2), [2], [], 2),
    "read-twice-by-one-loop": (lambda x: x * x + x, [2], [], 2),
    "copy": (lambda x: x.clone(memory_format=torch.channels_last), [2], [], 2),
    "mean-and-a-planted-copy": (lambda x: (x.mean((2, 3)), x.clone()), [3], [], 3),
    "product-and-a-planted-copy": (lambda x: (x * 2, x.clone()), [3], [], 3),
    "mean": (lambda x: x.mean((2, 3)), [1], [], 1),
    "channel-sum": (lambda x: x.sum((0, 2, 3)), [1], [], 1),
    "mean-then-difference": (lambda x: x - x.mean((2, 3), keepdim=True), [3], [], 3),
    "half-as-many-bytes": (lambda x: x.to(torch.bfloat16), [1.5], [], 1.5),
    "every-second-channel": (lambda x: x[:, ::2] + 1, [0.5], [], 0.5),  # its result is no map
    "operator-of-a-map": (lambda x: torch.sort(x)[0] * 2, [2], ["sort"], 5),
    "matmul-of-a-map": (lambda x: x.flatten(1) @ x.flatten(1).T, [], ["mm"], 2),
    "matmul-of-means": (lambda x: x.mean((2, 3)) @ x.mean((2, 3)).T, [1], ["mm"], 1),
}


def generated(function, x, **options):
    with Generated(x) as counted, config.patch(options):
        torch.compile(function, fullgraph=True, dynamic=False)(x)
    return counted


@pytest.mark.parametrize("function, kernels, operators, passes", KNOWN.values(), ids=KNOWN)
def test_generated_code_counts_passes(function, kernels, operators, passes):
    counted = generated(function, torch.randn(2, 10, 7, 7))
    assert [count for count in counted.kernels if count] == kernels
    assert counted.operators.names == operators
    assert counted.passes == passes


@pytest.mark.thorough
@each_pair(
    layout=list(LAYOUTS), vector_bits={"scalars": 0, "vectors": 256},
    threads={"1": 1, "2": 2, "64": 64},
)
def test_passes_do_not_depend_on_how_loops_are_split(layout, vector_bits, threads):
    x = torch.randn(2, 10, 31, 31).contiguous(memory_format=LAYOUTS[layout])
    options = {"cpp.threads": threads, "cpp.simdlen": vector_bits}
    counted = generated(lambda x: x - x.mean((2, 3), keepdim=True), x, **options)
    assert counted.passes == 3


@pytest.mark.thorough
def test_kernels_that_do_nothing_are_forgotten():
    def function(x):
        return x * 3 + 1

    x = torch.randn(2, 3, 4, 4)
    assert generated(function, x).passes == 2
    assert torch.equal(torch.compile(function)(x), function(x))


SOURCE = """
extern "C"  void  kernel(float* in_out_ptr0,
                       const float* in_ptr0)
{
    auto out_ptr0 = in_out_ptr0;
    {
        for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(48L); x0+=static_cast<int64_t>(16L))
        {
            STATEMENT
        }
        for(int64_t x0=static_cast<int64_t>(48L); x0<static_cast<int64_t>(50L); x0+=static_cast<int64_t>(1L))
        {
            STATEMENT
        }
    }
}
"""  # noqa: E501
ACCESSES = {  # statement: elements of in_out_ptr0, and of in_ptr0
    "load": ("auto tmp0 = Vectorized<float>::loadu(in_ptr0 + x0);", {}, {"read": 50}),
    "scalar-load": ("auto tmp0 = in_ptr0[static_cast<int64_t>(x0)];", {}, {"read": 50}),
    "store": ("tmp0.store(out_ptr0 + x0);", {"written": 50}, {}),
    "scalar-store": ("out_ptr0[static_cast<int64_t>(x0)] = tmp0;", {"written": 50}, {}),
    "alias": (
        "tmp0.store(out_ptr0 + x0);\nauto tmp1 = in_out_ptr0[x0];",
        {"written": 50, "read": 50},
        {},
    ),
    "comparison": ("auto tmp0 = in_ptr0[x0] == tmp1;", {}, {"read": 50}),
    "from-tile": ("transpose_mxn<float,16,16>(tmp0, 16, out_ptr0 + x0, 7);", {"written": 50}, {}),
    "mask": ("auto tmp0 = VecMask<float,1>::from(in_ptr0 + x0);", {}, {"read": 50}),
    "to-tile": ("transpose_mxn<float,16,16>(in_ptr0 + x0, 7, tmp0, 16);", {}, {"read": 50}),
    "atomic": ("atomic_add(&out_ptr0[x0], tmp0);", {"written": 50, "read": 50}, {}),
}


@pytest.mark.parametrize("statement, in_out, read", ACCESSES.values(), ids=ACCESSES)
def test_kinds_of_access(statement, in_out, read):
    assert loop_nests.elements(SOURCE.replace("STATEMENT", statement)) == [in_out, read]


def test_an_access_of_no_known_kind_is_an_error():
    with pytest.raises(AssertionError, match=r"unknown access: +gather\(in_ptr0"):
        loop_nests.elements(SOURCE.replace("STATEMENT", "gather(in_ptr0, tmp0);"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_passes_of_a_training_step_of_plain_pytorch(layout):
    found = counting.count_eager((2, 64, 14, 14), 4, layout)
    assert [found[direction]["passes"] for direction in DIRECTIONS] == [3, 10]


TRAINING = {  # Inductor copies a contiguous map to channels_last for convolutions
    ("compiled, 1 × 1 convolutions", "contiguous"): [4, 4],
    ("compiled, 1 × 1 convolutions", "channels_last"): [3, 4],
    ("compiled, linear layers", "contiguous"): [3, 4],
    ("compiled, linear layers", "channels_last"): [3, 4],
}


@pytest.mark.thorough
@each_pair(
    name=list(COMPILED), layout=list(LAYOUTS),
    dtype={"fp32": torch.float32, "bf16": torch.bfloat16},
)
def test_passes_of_a_compiled_training_step(name, layout, dtype):
    found = counting.count_compiled(COMPILED[name], (2, 72, 7, 7), 8, layout, dtype)
    assert [found[direction]["passes"] for direction in DIRECTIONS] == TRAINING[name, layout]


TAILS = {  # forward and backward; maps that are kept
    ("plain PyTorch", RESIDUAL): ([11, 18], 3),
    ("plain PyTorch, without SE", RESIDUAL): ([8, 8], 2),
    ("compiled", RESIDUAL): ([8.25, 9.25], 1.25),
    ("fused", RESIDUAL): ([4 + 1 / 32, 6 + 2 / 32], 1 + 1 / 32),
    ("plain PyTorch", MBCONV): ([8, 18], 3),
    ("fused", MBCONV): ([4, 5], 1),
    ("plain PyTorch", AFTER_SE): ([8, 13], 2),
    ("fused", AFTER_SE): ([4 + 1 / 32, 5 + 2 / 32], 1 + 1 / 32),
}


TAIL_IDS = [f"{name} {tail.name}" for name, tail in TAILS]


@kept(pytest.mark.parametrize("case, expected", TAILS.items(), ids=TAIL_IDS),
      *[of for of in TAIL_IDS if not of.startswith("compiled")])
def test_passes_of_the_end_of_a_block(case, expected):
    (name, tail), (passes, kept) = case, expected
    missing = triton_interpreter.why_not()
    if name == "fused" and missing:
        pytest.skip(f"counted by Triton's interpreter: {missing}; the other sides are all the same")
    shape = (2, 16, 14, 16)  # its mask has no padding
    _, block, count = next(side for side in tail_traffic.sides(tail) if side[0] == name)
    inputs = tail_traffic.block_and_maps(tail, block, shape, "channels_last", "fp32")
    found = count(*inputs)
    assert [tail_traffic.counted(found, direction) for direction in DIRECTIONS] == passes
    small = 0.05  # tensors of [N, C], and of [C]
    assert kept <= tail_traffic.kept(tail, name, block, shape) < kept + small


def test_what_is_kept_counts_memory_once_and_no_parameters():
    x, weight = counting.make_map((2, 3, 4, 4), "contiguous"), torch.nn.Conv2d(3, 3, 1)
    assert counting.kept_for_backward(lambda x: x * x.flatten(1).view_as(x), x) == 1
    assert counting.kept_for_backward(lambda x: x * x.exp(), x) == 2
    assert counting.kept_for_backward(weight, x) == 1
