"""DDP and FSDP2 on two CPU processes: three steps of training are those of one process."""

import pytest
import torch
import torch.distributed as dist
from processes import PROCESSES, in_processes, of_case, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from twins import assert_same, each_kind, images, twins

from se_fused import FusedSE, replace_se, restore_se

# make test has test_two_processes_train_as_one of test_train.py, under DDP.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="torch was built without gloo; test_training.py covers one process",
    ),
]
STEPS, BATCH = 3, 4


def shard(*names):
    """FSDP2 of the network; these submodules gather their own parameters."""

    def wrap(net):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (PROCESSES,))
        for name in names:
            fully_shard(net.get_submodule(name), mesh=mesh)
        return fully_shard(net, mesh=mesh)

    return wrap


def shard_every_layer(net):
    layers = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
    return shard(*[name for name, m in net.named_modules() if isinstance(m, layers)])(net)


WRAPPERS = {
    "ddp": DistributedDataParallel,
    "fsdp2": shard(),
    "fsdp2-of-the-blocks": shard("first", "conv", "blocks.0"),
    "fsdp2-of-every-layer": shard_every_layer,
}


def train(net, rank=None) -> dict:
    """Losses and parameters; with a rank, on this process's part of every batch."""
    torch.manual_seed(1)
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        x = images(BATCH)
        if rank is not None:
            x = x.tensor_split(PROCESSES)[rank]
        adam.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        adam.step()
        loss = loss.detach()
        if rank is not None:
            dist.all_reduce(loss)
            loss /= PROCESSES
        losses.append(loss.item())
    parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    return {"losses": losses, "parameters": [p.detach() for p in parameters]}


def network(kind: str, fused: bool) -> nn.Module:
    """In eval mode: its batch norms use running statistics, so that a batch may be split."""
    torch.manual_seed(0)
    return twins(kind)[fused].eval()


def sharded_then_swapped(rank) -> dict:
    net = WRAPPERS["fsdp2"](network("swapped", fused=False))
    report = replace_se(net)
    return {"replaced": len(report.replaced), "left": len(report.left)} | train(net, rank)


def swapped_then_sharded(rank) -> dict:
    net = WRAPPERS["fsdp2-of-the-blocks"](network("swapped", fused=True))
    report = restore_se(net)
    fused = isinstance(net.first, FusedSE)
    return {"reasons": [e.reason for e in report.left], "fused": fused} | train(net, rank)


def work(rank: int, folder: str):
    """All cases in one pair of processes, since starting one takes seconds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES
    )
    cases = {
        f"{wrapper} {kind}": lambda wrap=wrap, kind=kind: train(wrap(network(kind, True)), rank)
        for wrapper, wrap in WRAPPERS.items()
        for kind in ("one-operator", "composed", "swapped")
    }
    cases["sharded then swapped"] = lambda: sharded_then_swapped(rank)
    cases["swapped then sharded"] = lambda: swapped_then_sharded(rank)
    run_cases(cases, rank, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, by case."""
    return in_processes(work, str(tmp_path_factory.mktemp("distributed")))


def assert_trained_as_one_process(results, kind):
    expected = train(network(kind, fused=False))
    assert len(set(expected["losses"])) == STEPS
    for result in results:
        assert_same({name: result[name] for name in expected}, expected)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@each_kind
def test_trains_as_one_process(found, wrapper, kind):
    assert_trained_as_one_process(of_case(found, f"{wrapper} {kind}"), kind)


def test_sharded_network_is_left_whole(found):
    results = of_case(found, "sharded then swapped")
    assert [(r["replaced"], r["left"]) for r in results] == [(0, 2)] * PROCESSES
    assert_trained_as_one_process(results, "swapped")


def test_block_sharded_after_the_swap_is_not_restored(found):
    results = of_case(found, "swapped then sharded")
    for result in results:
        assert result["reasons"] == ["its class was changed after replace_se"] * 2
        assert result["fused"]
    assert_trained_as_one_process(results, "swapped")
