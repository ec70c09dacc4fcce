"""Statistics over two CPU processes are those of one process with the whole batch."""

import functools
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from norm_twins import maps, norm_twins
from processes import PROCESSES, in_processes, of_case, run_cases
from tail_reference import (
    EPS,
    MOMENTUM,
    RUNNING,
    TENSORS,
    check,
    make_tail_inputs,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from twins import C, R, assert_same

from se_fused import FusedBatchNormSE, FusedSE, functional, fuse

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="torch was built without gloo; test_tail.py covers one process",
)
RESIDUAL = dict(add=True, post_act="relu")
STEPS = 3
# The samples of each process, and how the inputs are made.
BATCHES = {
    "3-and-2-samples": ((3, 2), {}),
    "2-and-3-samples-silu-before": ((2, 3), dict(norm_act="silu", residual=False)),
    "4-and-1-samples-channels-last": ((4, 1), dict(layout="channels-last")),
    "5-and-no-samples": ((5, 0), {}),
    "far-from-zero": ((3, 2), dict(mean=1e4)),
    "no-affine-no-running-statistics": ((3, 2), dict(affine=False, running=False)),
    "float32": ((3, 2), dict(dtype=torch.float32, shape=(5, 12, 6, 4))),
    "one-value-each": ((1, 1), dict(shape=(2, 10), post_act="identity")),
}


def inputs_of(name):
    torch.manual_seed(0)
    options = dict(shape=(5, 10, 7, 3), dtype=torch.float64) | BATCHES[name][1]
    return make_tail_inputs(options.pop("shape"), 4, **options)


def of_a_part(name, rank: int) -> dict:
    """What this process finds for its samples; gradients of parameters are added up."""
    inputs, counts = inputs_of(name), BATCHES[name][0]
    part = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    tensors = {n: getattr(inputs, n) for n in (*TENSORS, *RUNNING)}
    for n, t in tensors.items():
        if t is not None:
            t = t[part] if n in ("x", "residual") else t
            tensors[n] = t.detach().clone().requires_grad_(n in TENSORS)
    y = functional.batch_norm_squeeze_excite(
        **tensors, training=True, momentum=MOMENTUM, eps=EPS, norm_act=inputs.norm_act,
        act=inputs.act, post_act=inputs.post_act, process_group=dist.group.WORLD,
    )  # fmt: skip
    y.backward(inputs.dy[part])
    found = {"y": y.detach()}
    for n in TENSORS:
        if tensors[n] is not None:
            found[f"d{n}"] = tensors[n].grad
            if n not in ("x", "residual"):
                dist.all_reduce(found[f"d{n}"])
    return found | {n: tensors[n] for n in RUNNING if tensors[n] is not None}


def module_and_calls(fused: bool):
    """A module of the process, and one element for each fused call with a process group."""
    torch.manual_seed(0)
    module, calls = norm_twins(**RESIDUAL)[fused], []
    function = functional.batch_norm_squeeze_excite

    def counted(*args, process_group=None, **kwargs):
        if process_group is not None:
            calls.append(1)
        return function(*args, process_group=process_group, **kwargs)

    return module, calls, counted


def train(net, rank=None) -> list[dict]:
    """Each step's loss, parameters and buffers, on this process's half of every batch."""
    torch.manual_seed(1)
    sgd, found = torch.optim.SGD(net.parameters(), lr=0.05), []
    for _ in range(STEPS):
        inputs = [t if rank is None else t.chunk(PROCESSES)[rank] for t in maps(6)]
        sgd.zero_grad()
        loss = net(*inputs).square().mean()
        loss.backward()
        sgd.step()
        loss = loss.detach()
        if rank is not None:
            dist.all_reduce(loss)
            loss /= PROCESSES
        state = {n.removeprefix("module."): t.clone() for n, t in net.state_dict().items()}
        found.append({"loss": loss} | state)
    return found


def of_converted(rank: int, wrap) -> dict:
    module, calls, functional.batch_norm_squeeze_excite = module_and_calls(True)
    try:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        assert type(module) is FusedBatchNormSE and type(module.bn) is nn.SyncBatchNorm
        found = train(wrap(module), rank)
        evaluated = module.eval()(*maps(6))
        return {"steps": found, "y": evaluated.detach(), "calls": len(calls)}
    finally:
        functional.batch_norm_squeeze_excite = tail_function


def averaged(module):
    """Averages gradients over the processes, as DistributedDataParallel does."""
    def average(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= PROCESSES

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(average)
    return module


def parallel(module):
    """DistributedDataParallel, which refuses nn.SyncBatchNorm on the CPU: PyTorch's has no code."""
    name = "_passing_sync_batchnorm_handle"
    with patch.object(DistributedDataParallel, name, lambda self, module: None):
        return DistributedDataParallel(module)


def of_the_argument(rank: int) -> dict:
    module = FusedBatchNormSE(C, rd_channels=R, dtype=torch.float64,
                              process_group=dist.group.WORLD, **RESIDUAL)
    module.load_state_dict(module_and_calls(True)[0].state_dict())
    return {"steps": train(averaged(module), rank)}


class TimmEnd(nn.Module):
    """Ends in timm's layer of BatchNorm and activation, SE and an addition."""

    def __init__(self):
        super().__init__()
        from timm.layers import BatchNormAct2d  # in the process alone

        self.bn, self.se = BatchNormAct2d(C, act_layer=nn.SiLU), FusedSE(C, rd_channels=R)

    def forward(self, x, residual):
        return self.se(self.bn(x)) + residual


def timm_network():
    torch.manual_seed(0)
    return nn.ModuleDict({"end": TimmEnd()}).double()


def of_timm(rank: int) -> dict:
    try:
        from timm.layers import convert_sync_batchnorm
    except ImportError:
        return {"skip": "timm is missing; nn.SyncBatchNorm covers what it extends"}
    network = convert_sync_batchnorm(timm_network())
    report = fuse(network)
    assert [entry.covers for entry in report.replaced] == ["BatchNorm + silu + SE + add"]
    assert type(network["end"].bn).__name__ == "SyncBatchNormAct"
    return {"steps": train(averaged(network["end"]), rank)}


def of_a_group_of_one(rank: int) -> dict:
    groups = [dist.new_group([r]) for r in range(PROCESSES)]
    found = []
    for group in (groups[rank], None):
        inputs = inputs_of("3-and-2-samples")
        tensors = {n: getattr(inputs, n) for n in (*TENSORS, *RUNNING)}
        y = functional.batch_norm_squeeze_excite(**tensors, training=True, process_group=group)
        found.append(y)
    return {"equal": torch.equal(*found)}


def of_unsupported(rank: int) -> dict:
    module = FusedBatchNormSE(C, rd_channels=R, dtype=torch.float64,
                              process_group=dist.group.WORLD)
    [x] = maps(add=False)
    messages = []
    try:
        torch.autograd.grad(module(x.requires_grad_()).sum(), x, create_graph=True)
    except RuntimeError as error:
        messages.append(str(error))
    try:
        torch.func.vjp(module, x.detach())
    except RuntimeError as error:
        messages.append(str(error))
    return {"messages": messages}


tail_function = functional.batch_norm_squeeze_excite
CASES = {name: lambda rank, name=name: of_a_part(name, rank) for name in BATCHES} | {
    "converted": lambda rank: of_converted(rank, averaged),
    "converted under ddp": lambda rank: of_converted(rank, parallel),
    "argument": of_the_argument,
    "timm": of_timm,
    "group of one": of_a_group_of_one,
    "unsupported": of_unsupported,
}


def work(rank: int, folder: str):
    """All cases in one pair of processes, since starting one takes seconds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES
    )
    cases = {name: functools.partial(case, rank) for name, case in CASES.items()}
    run_cases(cases, rank, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, by case."""
    return in_processes(work, str(tmp_path_factory.mktemp("distributed")))


@pytest.mark.parametrize("name", BATCHES)
def test_part_of_a_batch(found, name):
    results = of_case(found, name)
    whole = {}
    for key, t in results[0].items():
        if key in ("y", "dx", "dresidual"):
            whole[key] = torch.cat([result[key] for result in results])
        else:
            assert all(torch.equal(result[key], t) for result in results), key
            whole[key] = t
    check(whole, inputs_of(name))


@pytest.mark.parametrize("name", ["converted", "converted under ddp", "argument"])
def test_module_trains_as_one_process(found, name):
    expected = train(module_and_calls(False)[0])
    assert len({step["loss"].item() for step in expected}) == STEPS
    for result in of_case(found, name):
        assert_same(result["steps"], expected)
        assert result.get("calls", STEPS) == STEPS, "not the fused call"


def test_block_of_timm_trains_as_one_process(found):
    results = of_case(found, "timm")
    if "skip" in results[0]:
        pytest.skip(results[0]["skip"])
    expected = train(timm_network()["end"])
    for result in results:
        assert_same(result["steps"], expected)


def test_group_of_one_process_has_statistics_of_its_own(found):
    assert all(result["equal"] for result in of_case(found, "group of one"))


def test_what_synchronised_statistics_do_not_support(found):
    for result in of_case(found, "unsupported"):
        twice, transformed = result["messages"]
        assert "differentiated twice" in twice and "transformed" in transformed
