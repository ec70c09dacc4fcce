"""replace_se and fuse leave random states, the backend and the other threads as they were."""

import random
import threading

import numpy
import pytest
import torch
from near_misses import InFile
from se_modules import C, Cadene, Copied, times
from torch import nn

import se_fused
from se_fused import FusedSE, backends, fuse, replace_se, restore_se
from se_fused.gates import record_gates


class Block(nn.Module):
    """A residual block, so that fuse has something to try."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.se = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Cadene()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.se(self.bn(self.conv(x))) + x)


class Drawing(Copied):
    """Draws from every generator in its forward, so that it is left."""

    def forward(self, x):
        keep = torch.rand(1).item() + random.random() + numpy.random.rand()
        return times(x, self.fc(self.avg_pool(x).flatten(1))) * (keep > 0)


def states():
    kind, keys, *rest = numpy.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest


def network():
    return nn.Sequential(Block(), Copied(), Drawing())


@pytest.mark.parametrize("function", [replace_se, fuse, restore_se], ids=lambda f: f.__name__)
def test_random_states(function, monkeypatch):
    net = network()
    if function is not replace_se:
        replace_se(net)
    torch.manual_seed(11)
    random.seed(12)
    numpy.random.seed(13)
    seeds = []
    for place, name in ((torch, "manual_seed"), (torch, "seed"), (torch.cuda, "manual_seed"),
                        (torch.cuda, "manual_seed_all"), (torch.random, "manual_seed"),
                        (random, "seed"), (numpy.random, "seed")):
        monkeypatch.setattr(place, name, lambda *args, name=name: seeds.append(name))
    before = states()
    report = function(net)
    assert report.replaced and states() == before and not seeds
    monkeypatch.undo()
    expected = [torch.rand(2), random.random(), numpy.random.rand()]
    torch.manual_seed(11)
    random.seed(12)
    numpy.random.seed(13)
    assert torch.equal(torch.rand(2), expected[0])
    assert [random.random(), numpy.random.rand()] == expected[1:]


def test_one_that_draws_is_left():
    report = replace_se(nn.Sequential(Drawing()))
    assert [entry.reason for entry in report.left] == [
        "it computes something else than SE of its layers"
    ]


@pytest.mark.parametrize("name", ["triton", "cpp", "eager"])
def test_forced_backend(name):
    """Also one that cannot run here: nothing is computed with it before the model is called."""
    with se_fused.backend(name):
        net = network()
        assert len(replace_se(net).replaced) == 2
        assert len(fuse(net).replaced) == 1
        assert backends.forced_backend() == name
        repr(net)
        restore_se(nn.Sequential(net[1]))
    assert backends.forced_backend() is None
    assert type(net[1]) is Copied


def test_backend_of_other_threads():
    """While replace_se tries modules in threads, a call elsewhere runs on the backend it has."""
    seen, stop = [], threading.Event()
    se = FusedSE(8, rd_channels=2)
    x = torch.randn(2, 8, 3, 3)
    se(x)

    def watch():
        from se_fused.tracing import must_decompose

        while not stop.is_set():
            seen.append((backends.forced_backend(), must_decompose()))

    reports, failed = [], []

    def swap(networks):
        try:
            reports.extend(map(replace_se, networks))
        except Exception as error:
            failed.append(error)

    with se_fused.backend("eager"):
        networks = [[network() for _ in range(3)] for _ in range(3)]  # which draws
        threads = [threading.Thread(target=swap, args=(each,)) for each in networks]
        watcher = threading.Thread(target=watch)
        for thread in (watcher, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
    assert not failed and len(reports) == 9
    assert all(len(report.replaced) == 2 for report in reports)
    assert {*seen} == {("eager", False)}


def test_gradient_mode_and_autocast():
    with torch.inference_mode():
        assert len(replace_se(network()).replaced) == 2
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(replace_se(network()).replaced) == 2
        assert torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        assert len(replace_se(network()).replaced) == 2
        assert not torch.is_grad_enabled()


def test_default_dtype_and_device():
    torch.set_default_dtype(torch.float64)
    try:
        assert len(replace_se(network()).replaced) == 2
        with torch.device("meta"):
            assert len(replace_se(network()).replaced) == 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_gates_of_functions_are_recorded():
    net = nn.Sequential(InFile()).double()
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    expected = (net(x) / x).mean((0, 2, 3))
    replace_se(net)
    with record_gates(net) as record:
        net(x)
    torch.testing.assert_close(record.mean(), {"0": expected.detach()}, check_dtype=False)
