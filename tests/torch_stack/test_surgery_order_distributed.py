"""replace_se and fuse before and after DDP, FSDP, FSDP2 and SyncBatchNorm, in two processes.

The model trains as one without them that is wrapped alike, and runs fused or says why it does not.
"""

import functools

import pytest
import torch
import torch.distributed as dist
from ordered import SE, WHOLE, network, observed, step, surgery
from processes import PROCESSES, in_processes, of_case, run_cases
from residual_blocks import assert_same, images
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from se_fused import fuse, replace_se, restore_se, unfuse

# make test has test_two_processes_train_as_one of test_train.py, under DDP.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="torch was built without gloo; test_surgery_order.py covers one process",
    ),
]


def fsdp(*names, use_orig_params):
    """FSDP of the network and of these modules in it."""

    def wrap(net):
        from torch.distributed.fsdp import FullyShardedDataParallel

        options = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
        for name in names:
            net.set_submodule(name, FullyShardedDataParallel(net.get_submodule(name), **options))
        return FullyShardedDataParallel(net, **options)

    return wrap


def fsdp2(*names):
    def wrap(net):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (PROCESSES,))
        for name in names:
            fully_shard(net.get_submodule(name), mesh=mesh)
        return fully_shard(net, mesh=mesh)

    return wrap


SHARDED = "its weights are sharded or quantized: call replace_se before"
NO_WEIGHT = "has no weight that se_fused knows"
DTENSOR = "it has a DTensor among its parameters"
# What wraps, and why SE is unfused where that is done after the surgery, and before it.
WRAPPERS = {
    "ddp": (DistributedDataParallel, None, None),
    "ddp-static": (functools.partial(DistributedDataParallel, static_graph=True), None, None),
    "ddp-compiled": (
        lambda net: torch.compile(DistributedDataParallel(net), backend="aot_eager"), None, None
    ),
    "fsdp": (fsdp(use_orig_params=True), None, SHARDED),
    "fsdp-flat": (fsdp(use_orig_params=False), None, NO_WEIGHT),
    "fsdp-of-blocks": (fsdp("block", "alone", use_orig_params=True), None, SHARDED),
    "fsdp-flat-of-blocks": (
        fsdp("block", "alone", use_orig_params=False), None, NO_WEIGHT
    ),
    "fsdp2": (fsdp2(), None, DTENSOR),
    "fsdp2-of-blocks": (fsdp2("block", "alone"), None, DTENSOR),
    "fsdp2-of-layers": (
        fsdp2("block.bn", "block.se.fc.0", "alone.fc.0"), "FSDPLinear now, and was", "it has hooks"
    ),
}  # fmt: skip
ORDERS = {"first": 0, "between": 1, "after": 1}  # between: replace_se first, fuse after


def trained(net, rank) -> list[torch.Tensor]:
    """Results, parameters and buffers over two steps."""
    torch.manual_seed(10 + rank)
    sgd, found = torch.optim.SGD(net.train().parameters(), lr=0.05), []
    for _ in range(2):
        sgd.zero_grad()
        y = net(images())
        y.square().mean().backward()
        sgd.step()
        found.append(y.detach())
    found.append(net.eval()(images()).detach())
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    return found + [p.detach() for p in whole] + [b.clone() for b in net.buffers()]


def of_order(rank: int, wrap, order: str) -> dict:
    plain, net = wrap(network()), network()
    left = []
    if order == "first":
        surgery(net)
    elif order == "between":
        replace_se(net)
    net = wrap(net)
    if order == "between":
        left = [entry.reason for entry in fuse(net).left]
    elif order == "after":
        left = surgery(net)
    expected = trained(plain, rank)
    found, called, said = observed(trained, net, rank)
    return {"found": found, "expected": expected, "called": called, "said": said, "left": left}


def undone(rank: int) -> dict:
    """Under FSDP, where the parameters have other places."""
    net = network()
    surgery(net)
    net = fsdp("block", use_orig_params=True)(net)
    plain = fsdp("block", use_orig_params=True)(network())
    reports = unfuse(net), restore_se(net)
    found, called, said = observed(trained, net, rank)
    counts = [len(report.replaced) for report in reports]
    return {"found": found, "expected": trained(plain, rank), "called": called, "said": said,
            "counts": counts}  # fmt: skip


def averaged(net):
    """Averages gradients, as DDP does: it refuses nn.SyncBatchNorm on the CPU."""

    def average(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= PROCESSES

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(average)
    return net


def synchronised(rank: int, order: str) -> dict:
    """A step with a half of a batch; nn.SyncBatchNorm by itself has no code for CPUs."""
    net, convert = network(), nn.SyncBatchNorm.convert_sync_batchnorm
    if order == "first":
        surgery(net)
        net = convert(net)
    else:
        net = convert(net)
        surgery(net)
    torch.manual_seed(3)
    x = images(4).chunk(PROCESSES)[rank]
    found, called, said = observed(step, averaged(net), x)
    return {"found": found, "called": called, "said": said}


CASES = {
    f"{name} {order}": functools.partial(of_order, wrap=row[0], order=order)
    for name, row in WRAPPERS.items()
    for order in ORDERS
} | {
    "undone": undone,
    "synchronised first": functools.partial(synchronised, order="first"),
    "synchronised after": functools.partial(synchronised, order="after"),
}


def work(rank: int, folder: str):
    """All cases in one pair of processes, since starting one takes seconds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES
    )
    run_cases({name: functools.partial(case, rank) for name, case in CASES.items()}, rank, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, by case."""
    return in_processes(work, str(tmp_path_factory.mktemp("distributed")))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_order(found, name, order):
    reason = WRAPPERS[name][1 + ORDERS[order]]
    for result in of_case(found, f"{name} {order}"):
        assert_same(result["found"], result["expected"])
        if reason is None:
            assert result["called"] >= WHOLE and not result["said"]
            continue
        reasons = result["said"] + result["left"]
        if order == "between":  # SE is fused at most, without the block around it
            assert result["called"] <= SE and reasons
        else:
            assert not result["called"]
            assert any(reason in text for text in reasons), reasons


def test_undone_after_fsdp(found):
    for result in of_case(found, "undone"):
        assert_same(result["found"], result["expected"])
        assert result["counts"] == [1, 2] and not result["called"] and not result["said"]


@pytest.mark.parametrize("order", ["first", "after"])
def test_synchronised_statistics(found, order):
    net = network()
    torch.manual_seed(3)
    y, dx, *others = step(net, images(4))
    results = of_case(found, f"synchronised {order}")
    for rank, result in enumerate(results):
        assert result["called"] > SE and not result["said"]
        assert_same(result["found"][0], y.chunk(PROCESSES)[rank])
        assert_same(result["found"][1], dx.chunk(PROCESSES)[rank])
        parameters = len(list(net.parameters()))
        scaled = [PROCESSES * g for g in result["found"][2 : 2 + parameters]]
        assert_same(scaled + result["found"][2 + parameters :], others)
