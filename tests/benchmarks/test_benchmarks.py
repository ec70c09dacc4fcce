"""The benchmarks: committed tables and maps are true, and no wrong result is timed."""

import copy
import functools
import json
import re
from pathlib import Path

import bench_tail
import count_traffic
import pytest
import torch
from gpu_stages import tables as gpu_tables
from lib import contenders, maps, tables, tail_table, timing
from lib.inputs import DTYPES, Inputs
from lib.verification import Exact
from selection import kept
from traffic import bounds, tail_traffic

ROOT = Path(__file__).resolve().parents[2]
TABLES = {
    "pass table": count_traffic.table,
    "bound table": bounds.table,
    "tail pass table": tail_traffic.table,
    "tail bound table": bounds.tail_table,
    "tail table": tail_table.table,
    "bench table": functools.partial(tables.block, folded=True),
    "network bench table": functools.partial(tables.network, folded=True),
}
GPU_TABLES = {"gpu table": functools.partial(gpu_tables.table, folded=True)}
README = (ROOT / "README.md").read_text()


def assert_shows_its_file(readme, name):
    found = re.search(rf"<!-- {name}: (\S+) -->\n(.*)\n<!-- end of {name} -->", readme, re.DOTALL)
    assert found, f"no {name} whose marker names a file"
    assert found[2] == (TABLES | GPU_TABLES)[name](json.loads((ROOT / found[1]).read_text()))


@pytest.mark.parametrize("name", TABLES)
def test_readme_shows_the_committed_results(name):
    assert_shows_its_file(README, name)


def test_readme_shows_a_gpu_s_results_as_soon_as_there_are_any():
    results = {path: json.loads(path.read_text())
               for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    if any(found.get("device", {}).get("kind") == "cuda" for found in results.values()):
        assert_shows_its_file(README, "gpu table")
    else:
        nothing = "No GPU has measured anything yet: `make gpu` does it."
        assert f"<!-- gpu table -->\n{nothing}\n<!-- end of gpu table -->" in README


def test_readme_that_shows_other_results_is_seen():
    assert_shows_its_file(README, "pass table")
    marker = "<!-- pass table: benchmarks/results/traffic.json -->"
    for change in (
        (marker, "<!-- pass table -->"),
        (marker, f"{marker}\nA line that no file gives."),
        ("<!-- end of pass table -->", ""),
    ):
        assert change[0] in README
        with pytest.raises(AssertionError):
            assert_shows_its_file(README.replace(*change), "pass table")


def test_bound_is_the_bytes_of_the_passes_over_the_bandwidth():
    # 7 × 51.4 MB at 3.35 TB/s
    found = bounds.microseconds(7, bounds.MEMORIES["H100"].bandwidth)
    assert found == pytest.approx(107.4, abs=0.1)


def test_bound_names_each_side_by_its_passes():
    layouts = {"contiguous": 8, "channels_last": 7}
    found = bounds.columns({"one": layouts, "other": dict.fromkeys(layouts, 7)})
    assert found == {8: ["one, contiguous"], 7: ["one, channels_last", "other"], 5: ["floor"]}


@kept(pytest.mark.parametrize("network", maps.NETWORKS, ids=[n[0] for n in maps.NETWORKS]),
      "seresnet50", "mobilenetv3_large_100")
def test_maps_are_those_of_the_networks(network):
    pytest.importorskip(network[1], reason="not installed; the others are read all the same")
    assert maps.read(*network) == maps.load(network[0])


def small_case():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 5, requires_grad=True)
    return maps.Map("none", tuple(x.shape), 4, "silu", "hardsigmoid", 1), x, torch.randn_like(x)


@pytest.mark.parametrize("name", contenders.EAGER)
def test_contenders_are_verified(name):
    map, x, dy = small_case()
    try:
        theirs, ours = contenders.pair(name, map, torch.float32, "cpu")
    except ImportError:
        pytest.skip(f"{name} is not installed; functional needs no library")
    exact = Exact(contenders.functional(map), ours, x, dy)
    for block_ in (theirs, ours):
        exact.judge(block_)
    torch.testing.assert_close(theirs(x), ours(x))


def test_wrong_result_is_not_timed():
    map, x, dy = small_case()
    plain = contenders.functional(map)
    exact = Exact(contenders.functional(map), plain, x, dy)
    for wrong in (lambda y: y + 1e-3, lambda y: y.detach() * y):
        block_ = copy.deepcopy(plain)
        block_.register_forward_hook(lambda module, args, y, wrong=wrong: wrong(y))
        with pytest.raises(AssertionError, match=r"FunctionalSE \(2, 16, 5, 5\) .*: error"):
            exact.judge(block_)


TAILS = {f"{tail.name}-{dtype}": (tail, dtype) for tail in bench_tail.MAPS
         for dtype in ("fp32", "bf16")}


def small_tail(tail, dtype):
    torch.manual_seed(0)
    map = maps.Map("none", (4, 16, 9, 9), 4, tail.act or "relu", "sigmoid", 1)
    inputs = Inputs(map, DTYPES[dtype], "contiguous", torch.device("cpu"), tail.add)
    return bench_tail.contenders(tail, map, DTYPES[dtype], "cpu"), *inputs.first


@pytest.mark.parametrize("tail, dtype", TAILS.values(), ids=TAILS)
def test_sides_of_the_end_of_a_block_are_verified(tail, dtype):
    blocks, x, dy, *residual = small_tail(tail, dtype)
    assert list(blocks) == ["eager", "without SE", "swapped", "fused"]
    for name, block_ in blocks.items():
        plain = blocks["without SE" if name == "without SE" else "eager"]
        decided = bench_tail.without_close_calls(plain, x, dy, *residual)
        exact = Exact(copy.deepcopy(plain), plain, x, decided, *residual)
        exact.judge(block_, arithmetic=None if name == "fused" else x.dtype)


def test_wrong_end_of_a_block_is_not_timed():
    blocks, x, dy, residual = small_tail(bench_tail.RESIDUAL, "fp32")
    dy = bench_tail.without_close_calls(blocks["eager"], x, dy, residual)
    assert 0 < dy.count_nonzero() <= dy.numel()
    exact = Exact(copy.deepcopy(blocks["eager"]), blocks["eager"], x, dy, residual)
    blocks["fused"].register_forward_hook(lambda module, args, y: y + 1e-3)
    for wrong in (blocks["fused"], blocks["without SE"]):
        with pytest.raises((AssertionError, ValueError)):
            exact.judge(wrong)


def test_gradients_are_not_compared_where_rounding_decides_the_relu():
    blocks, x, dy, residual = small_tail(bench_tail.RESIDUAL, "fp32")
    exact = copy.deepcopy(blocks["eager"]).double()
    with torch.no_grad():
        branch = exact.se(exact.bn(x.double())).float()
        residual[0] = -branch[0]
    found = bench_tail.without_close_calls(blocks["eager"], x, dy, residual)
    assert found[0].count_nonzero() == 0 and torch.equal(found[1:], dy[1:])


def test_callables_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.in_turn(calls, seconds=0, fewest=4)
    assert order[:4] == ["a", "a", "b", "b"], "warm-up"
    assert order[4:] == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert all(len(found) == 4 for found in times.values())


def test_quartiles():
    assert timing.quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == {
        "median": 3.0, "q1": 2.0, "q3": 4.0, "rounds": 5
    }
