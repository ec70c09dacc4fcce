"""Layers of a replaced module that are called, changed or weighted otherwise than at first."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from pairs import assert_fused, assert_library_runs, changed, pair, said_in, step, x_of
from se_modules import C, Cadene, Copied
from torch import nn
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor, init_device_mesh

from se_fused import FusedSE, replace_se
from se_fused.surgery.comparison import tensors_in

# Forwards patched on instances


def patched(path):
    def change(se):
        layer = se.get_submodule(path)
        forward = layer.forward
        layer.forward = lambda *args: forward(*args) * 0.5

    return change


@pytest.mark.parametrize("path", ["fc.0", "fc.1", "fc.2", "fc.3", "fc", "avg_pool"])
def test_forward_of_a_layer_patched(path):
    both = changed(Copied(), patched(path))
    assert_library_runs(both, x_of(5), f"{path}.forward has been set")
    report = replace_se(both[1])
    assert [entry.reason for entry in report.left] == ["its forward has been patched"]
    for each in both:
        del each.se.get_submodule(path).forward
    assert replace_se(both[1]).replaced
    assert_fused(both, x_of(5))


def test_forward_of_the_module_itself_patched():
    both = changed(Copied(), patched(""))
    for each in both:  # the patched forward is called, and in it the fused one
        assert "forward" in vars(each.se)
    found, expected = (step(each.se, x_of(5)) for each in both[::-1])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_patched_before_is_left():
    net = nn.Sequential(Copied())
    patched("fc.1")(net[0])
    report = replace_se(net)
    assert [entry.reason for entry in report.left] == ["its forward has been patched"]


# Weights that are no plain tensors


class Scaled(torch.Tensor):
    """A wrapper without storage of its own, as torchao's quantized weights."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].whole, args[0].scale)
        plain = torch.utils._pytree.tree_map_only(
            cls, lambda t: t.whole.to(t.scale.dtype) * t.scale, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


def scaled(layer):
    whole = torch.full_like(layer.weight, 3, dtype=torch.int8)
    scale = torch.tensor(0.01, dtype=layer.weight.dtype)
    layer.weight = nn.Parameter(Scaled(whole, scale), requires_grad=False)


@pytest.mark.parametrize("path", ["fc1", "fc2"])
def test_weight_of_a_tensor_subclass(path):
    both = changed(Cadene(), lambda se: scaled(se.get_submodule(path)))
    assert_library_runs(both, x_of(5), "its weights are no plain tensors")


def test_weight_of_a_tensor_subclass_before_is_left():
    net = nn.Sequential(Cadene())
    scaled(net[0].fc1)
    assert [e.reason for e in replace_se(net).left] == ["it has a Scaled among its parameters"]


def test_weights_of_another_dtype():
    """The library's own error; and its result for a map of that dtype."""
    library, replaced = changed(Cadene(), lambda se: se.to(torch.float32))
    messages = []
    for module in (library, replaced):
        with warnings.catch_warnings(), pytest.raises(RuntimeError) as error:
            warnings.simplefilter("ignore")
            module.se(x_of(5))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    x = x_of(5).float()
    torch.testing.assert_close(replaced.se(x), library.se(x))


def test_weights_on_another_device():
    both = changed(Cadene(), lambda se: se.to("meta"))
    for each in both:
        assert each.se(x_of(5).to("meta")).is_meta
    said = said_in(lambda: both[1].se(x_of(5)))
    assert len(said) == 1 and "on its device" in said[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    library, replaced = pair(Cadene())
    for each in (library, replaced):
        each.float()
    x = x_of(5).float()
    with torch.autocast("cpu", dtype=dtype):
        expected = library.se(x)
        said = said_in(lambda: replaced.se(x))
        found = replaced.se(x)
    assert not said and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


# Other layers in the place of the library's


def test_dynamically_quantized():
    library, replaced = pair(Copied().eval())
    quantized = []
    for net in (library.float(), replaced.float()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized.append(torch.ao.quantization.quantize_dynamic(net, {nn.Linear}))
    x = x_of(5).float()
    results = []
    said = said_in(lambda: results.extend(net.se(x) for net in (*quantized, *quantized)))
    assert len(said) == 1 and "fc.0 is a torch.ao.nn.quantized.dynamic" in said[0]
    assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])


class LowRank(nn.Module):
    """A layer with an addition that is trained, as peft's: the layer is in it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.down = nn.Conv2d(layer.in_channels, 2, 1, bias=False).double()
        self.up = nn.Conv2d(2, layer.out_channels, 1, bias=False).double()

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def test_layer_in_a_wrapper():
    def wrapped(se):
        torch.manual_seed(2)
        se.fc1 = LowRank(se.fc1)

    both = changed(Cadene(), wrapped)
    assert_library_runs(both, x_of(5), "fc1 is a test_guard_layers.LowRank now, and was a torch.nn")
    for each in both:
        each.se.fc1 = each.se.fc1.base_layer
    assert_fused(both, x_of(5))
    net = nn.Sequential(Cadene())
    wrapped(net[0])
    [left] = replace_se(net).left
    assert left.reason.startswith("its layer fc1, a test_guard_layers.LowRank")


# Maps that are no plain tensors


class Named(torch.Tensor):
    """A map that keeps a note beside its numbers, as MONAI's MetaTensor."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        y = super().__torch_function__(func, types, args, kwargs)
        notes = [t.note for t in args if isinstance(t, cls) and hasattr(t, "note")]
        for each in tensors_in(y):
            if isinstance(each, cls) and notes:
                each.note = notes[0]
        return y


def test_map_of_a_torch_function_subclass_is_fused():
    both = pair(Cadene())
    assert_fused(both, x_of(5).as_subclass(Named))
    x = x_of(5).as_subclass(Named)
    x.note = "patient 7"
    results = [each.se(x) for each in both]
    assert [type(y) for y in results] == [Named, Named]
    assert [y.note for y in results] == ["patient 7"] * 2
    torch.testing.assert_close(*(y.as_subclass(torch.Tensor) for y in results))


@pytest.fixture
def mesh(tmp_path):
    if dist.is_initialized():
        pytest.skip("another process group is in use")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dim", [0, 1], ids=["samples", "channels"])
def test_map_of_several_processes(mesh, dim):
    library, replaced = pair(Cadene())
    x = distribute_tensor(x_of(5), mesh, [Shard(dim)])
    results = [distribute_module(library, mesh).se(x)]
    other = distribute_module(replaced, mesh)
    said = said_in(lambda: results.extend(other.se(x) for _ in range(2)))
    assert said == ["it was called with a DTensor"]
    assert torch.equal(results[0].full_tensor(), results[1].full_tensor())
    again = replace_se(copy.deepcopy(library))
    assert not again.replaced and "DTensor among its parameters" in again.left[0].reason


@pytest.mark.parametrize("squeeze", ["avg", "concat"])
def test_distributed_map_of_a_built_module(mesh, squeeze):
    module = FusedSE(C, squeeze=squeeze, dtype=torch.float64)
    twin, x = copy.deepcopy(module), x_of(5)
    distribute_module(module, mesh)
    found = module(distribute_tensor(x, mesh, [Shard(0)])).full_tensor()
    torch.testing.assert_close(found, twin(x), rtol=1e-12, atol=1e-12)
