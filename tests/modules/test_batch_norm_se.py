"""FusedBatchNormSE and fused_end against their layers in plain PyTorch, in float64."""

import copy
import pickle

import pytest
import torch
from norm_twins import FUSED, UNFUSED, fused_calls, maps, norm_twins, step
from torch import nn
from twins import C, R, assert_same

from se_fused import FusedBatchNormSE, FusedSE
from se_fused.modules.batch_norm_se import block_specification
from se_fused.surgery.fused_end import fused_end

__all__ = ["fused_calls"]  # a fixture

RESIDUAL = dict(add=True, post_act="relu")
each_fused = pytest.mark.parametrize("options", FUSED.values(), ids=FUSED)
each_unfused = pytest.mark.parametrize("options", UNFUSED.values(), ids=UNFUSED)


def train(module, options, device="cpu", steps=3):
    """Results of training, then of eval mode, and the state of parameters and buffers."""
    torch.manual_seed(5)
    adds, found = options.get("add", False), []
    sgd = torch.optim.SGD(module.train().parameters(), lr=0.02)
    for batch in range(2, 2 + steps):
        found.append(step(module, maps(batch, device=device, add=adds)))
        sgd.step()
    found.append(step(module.eval(), maps(1, device=device, add=adds)))
    return found, module.state_dict()


@each_fused
def test_trains_as_its_layers(native_place, fused_calls, options):
    plain, fused = norm_twins(device=native_place.device, **options)
    before = copy.deepcopy(plain.state_dict())
    expected = train(plain, options, native_place.device)
    assert not fused_calls
    found = train(fused, options, native_place.device)
    assert_same(found, expected)
    assert len(fused_calls) == 4
    assert all(not torch.equal(t, before[name]) for name, t in found[1].items())
    if options.get("track_running_stats", True):
        assert found[1]["bn.num_batches_tracked"] == 3


def test_trains_on_every_backend(place, fused_calls):
    plain, fused = norm_twins(device=place.device, act="silu", **RESIDUAL)
    found = train(fused, RESIDUAL, place.device, steps=1)
    assert_same(found, train(plain, RESIDUAL, place.device, steps=1))
    assert len(fused_calls) == 2


@each_unfused
def test_what_does_not_run_fused_runs_as_its_layers(fused_calls, options):
    plain, fused = norm_twins(**options)
    assert_same(train(fused, options), train(plain, options))
    assert not fused_calls


@pytest.mark.parametrize("frozen", ["bn", "all"])
def test_between_train_and_eval_mode(fused_calls, frozen):
    plain, fused = norm_twins(**RESIDUAL)
    for mode in (True, False, True, True, False):
        for module in (plain, fused):
            module.train()
            (module.bn if frozen == "bn" else module).train(mode)
        inputs = maps()
        assert_same(step(fused, inputs), step(plain, inputs))
    assert len(fused_calls) == 5
    assert fused.bn.num_batches_tracked == 3


@pytest.mark.parametrize("options", [RESIDUAL, dict(act="silu")], ids=["add-relu", "silu-before"])
def test_training_pass_before_the_backward_pass_of_eval_mode(fused_calls, options):
    plain, fused = norm_twins(**options)
    inputs, later = maps(add="add" in options), maps(add="add" in options)
    expected = step(plain.eval(), inputs)

    def forward_then_train(*inputs):
        y = fused.eval()(*inputs)
        fused.train()(*later)
        return y

    found = step(fused, inputs, forward_then_train)
    running = "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
    for name in running:
        assert not torch.equal(found.pop(name), expected.pop(name))
    assert_same(found, expected)
    assert len(fused_calls) == 2


def test_channels_last_end_to_end():
    plain, fused = norm_twins(**RESIDUAL)
    inputs = [t.contiguous(memory_format=torch.channels_last) for t in maps()]
    found = step(fused, inputs)
    assert_same(found, step(plain, inputs))
    for t in (found["y"], *found["gradients"]):
        assert t.is_contiguous(memory_format=torch.channels_last)


# State


def test_state_has_the_names_of_the_layers():
    plain, fused = norm_twins(**RESIDUAL)
    assert list(fused.state_dict()) == list(plain.state_dict())
    keys = {f"bn.{name}" for name in nn.BatchNorm2d(C).state_dict()}
    assert set(fused.state_dict()) == keys | {f"se.{name}" for name in FusedSE(C).state_dict()}
    train(fused, RESIDUAL)
    other = FusedBatchNormSE(C, rd_channels=R, dtype=torch.float64, **RESIDUAL)
    other.load_state_dict(fused.state_dict())
    inputs = maps()
    assert_same(other.eval()(*inputs), fused.eval()(*inputs))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies(fused_calls, copied):
    plain, fused = norm_twins(**RESIDUAL)
    other, inputs = copied(fused), maps()
    expected = step(plain, inputs)
    assert_same(step(other, inputs), expected)
    assert not fused.bn.running_mean.any(), "the copy shares a buffer"
    assert_same(step(fused, inputs), expected)
    assert len(fused_calls) == 2


def test_meta_device_then_materialised(fused_calls):
    plain, _ = norm_twins(**RESIDUAL)
    fused = FusedBatchNormSE(C, rd_channels=R, device="meta", dtype=torch.float64, **RESIDUAL)
    assert all(t.is_meta for t in fused.state_dict().values())
    found = step(fused, [t.to("meta") for t in maps()])
    assert found["y"].is_meta and found["y"].shape == (4, C, 6, 5)
    fused.to_empty(device="cpu").load_state_dict(plain.state_dict())
    inputs = maps()
    assert_same(step(fused, inputs), step(plain, inputs))
    assert len(fused_calls) == 2


def test_arguments_of_the_constructor():
    module = FusedBatchNormSE(C, 0.1, 0.2, False, False, rd_ratio=0.5, act_layer="silu")
    assert (module.bn.eps, module.bn.momentum) == (0.1, 0.2)
    assert module.bn.weight is module.bn.running_mean is None
    assert module.se.fc1.out_channels == 16 and isinstance(module.se.act, nn.SiLU)
    assert isinstance(module.act, nn.Identity) and isinstance(module.post_act, nn.Identity)
    assert "add=False" in repr(module)
    with pytest.raises(ValueError, match="^act must be .*'relu7'"):
        FusedBatchNormSE(C, act="relu7")
    with pytest.raises(TypeError, match="^post_act must be "):
        FusedBatchNormSE(C, post_act=nn.ReLU())


@pytest.mark.parametrize("add", [True, False], ids=["missing", "surplus"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_residual_that_does_not_go_with_add(add, training):
    module = FusedBatchNormSE(C, add=add, dtype=torch.float64).train(training)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(TypeError, match=f"residual .* add is {add}"):
        module(*maps(add=not add))
    assert_same(dict(module.state_dict()), dict(before), rtol=0)


# Falling back


@pytest.mark.parametrize("hooked", ["bn", "act", "se", "post_act", "se.fc1"])
@pytest.mark.parametrize("kind", ["forward", "forward-pre", "backward"])
def test_hooks_are_called(fused_calls, hooked, kind):
    plain, fused = norm_twins(act="silu", **RESIDUAL)
    inputs, seen = maps(), {plain: [], fused: []}
    for module, calls in seen.items():
        layer = module.get_submodule(hooked)
        hook = lambda layer, *values, calls=calls: calls.append(values[-1][0])
        {"forward": layer.register_forward_hook, "forward-pre": layer.register_forward_pre_hook,
         "backward": layer.register_full_backward_hook}[kind](hook)
    assert_same(step(fused, inputs), step(plain, inputs))
    assert len(seen[fused]) == 1 and not fused_calls
    assert_same(seen[fused], seen[plain])


RESIDUALS = {
    "broadcasting": lambda r: r[:, :, :1, :1],
    "one-sample": lambda r: r[:1],
    "narrower": lambda r: r.float(),
}


@pytest.mark.parametrize("change", RESIDUALS.values(), ids=RESIDUALS)
def test_residual_unlike_x_is_pytorch_s_matter(fused_calls, change):
    plain, fused = norm_twins(**RESIDUAL)
    x, residual = maps()
    inputs = x, change(residual)
    assert_same(step(fused, inputs), step(plain, inputs))
    assert not fused_calls
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        fused(x, residual[:, :, :2])
    wider = fused.float()(x.float(), residual)
    assert wider.dtype == plain.float()(x.float(), residual).dtype == torch.float64


def test_what_may_run_fused():
    def may(bn=None, act=None, se=None, post_act=None):
        x = torch.randn(2, C, *sizes.get(type(bn), (3, 3)))
        bn = bn or nn.BatchNorm2d(C)
        return block_specification(bn, act, se or FusedSE(C), x, None, post_act) is not None

    sizes = {nn.BatchNorm1d: (3,), nn.BatchNorm3d: (3, 3, 3)}
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert may(norm(C), nn.SiLU(), post_act=nn.ReLU(inplace=True))
    assert not may(nn.BatchNorm2d(C, dtype=torch.bfloat16))
    assert may(act=torch.relu, post_act=torch.relu)
    assert not may(nn.InstanceNorm2d(C))
    assert not may(act=nn.GELU()) and not may(post_act=nn.SiLU())
    assert not may(se=nn.ReLU()) and not may(se=FusedSE(C, add_maxpool=True))
    hooked = nn.BatchNorm2d(C)
    handle = hooked.register_forward_hook(print)
    assert not may(hooked)
    handle.remove()
    assert may(hooked)


@pytest.mark.parametrize("norm, size", [(nn.BatchNorm1d, (9,)), (nn.BatchNorm1d, ()),
                                        (nn.BatchNorm3d, (3, 2, 4))], ids=["1d", "no-dims", "3d"])
def test_batch_norm_of_other_ranks(fused_calls, norm, size):
    results = []
    for fused in (True, False):
        torch.manual_seed(2)
        bn, se = norm(C, dtype=torch.float64), FusedSE(C, rd_channels=R, dtype=torch.float64)
        x, residual = (torch.randn(4, C, *size, dtype=torch.float64) for _ in range(2))
        if fused:
            y = fused_end(bn, None, se, x, residual, torch.relu)
        else:
            y = torch.relu(se(bn(x)) + residual)
        results.append([y, *torch.autograd.grad(y.square().sum(), bn.parameters()), *bn.buffers()])
    assert_same(*results)
    assert len(fused_calls) == 1


def test_map_that_batch_norm_refuses(fused_calls):
    _, fused = norm_twins(add=False)
    with pytest.raises(ValueError, match="expected 4D input"):
        fused(maps(add=False)[0][0])
    with pytest.raises(ValueError, match="more than (1|one) value per channel"):
        fused(maps(1, (1, 1), add=False)[0])


@pytest.mark.parametrize("options", [{}, dict(act_layer=nn.SiLU), dict(apply_act=False)],
                         ids=["relu", "silu", "no-act"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("synchronised", [False, True], ids=["own", "synchronised"])
def test_batch_norm_of_timm_with_its_act(fused_calls, synchronised, training, options):
    layers = pytest.importorskip("timm.layers", reason="timm is missing; nn.BatchNorm2d covers it")
    results = []
    for fused in (True, False):
        torch.manual_seed(2)
        bn = layers.BatchNormAct2d(C, **options).double().train(training)
        if synchronised and fused:
            bn = layers.convert_sync_batchnorm(bn)
        se = FusedSE(C, rd_channels=R, dtype=torch.float64)
        x, residual = maps()
        y = fused_end(bn, bn.act, se, x, residual, nn.ReLU()) if fused else (
            nn.functional.relu(se(bn(x)) + residual))
        results.append([y, *torch.autograd.grad(y.square().sum(), bn.parameters()), *bn.buffers()])
    assert_same(*results)
    assert len(fused_calls) == 1


def test_synchronised_norm_of_timm_without_its_parts_runs_as_its_layers(fused_calls):
    layers = pytest.importorskip("timm.layers", reason="timm is missing; there is no such norm")
    bn, se = layers.norm_act.SyncBatchNormAct(C).double().eval(), FusedSE(C).double()
    [x] = maps(add=False)
    assert_same(fused_end(bn, None, se, x), se(bn(x)))
    assert not fused_calls
