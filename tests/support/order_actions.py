"""What is done to a model: before replace_se and fuse, or after them."""

import copy
import sys
import types
from unittest.mock import patch

import torch
import torch.nn.utils.prune
from copies import saved_and_loaded
from ordered import network, step, surgery
from residual_blocks import images
from se_modules import Moskomule
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint


class Calls(nn.Module):
    """A network that another function calls."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net, x)


def in_place(change):
    def action(net):
        change(net)
        return net

    return action


def _saved(net):
    """Whole, with its library at hand."""
    library = types.ModuleType("senet.se_module")
    library.SELayer = Moskomule
    with patch.dict(sys.modules, {"senet": types.ModuleType("senet"), library.__name__: library}):
        return saved_and_loaded(net)


def _loaded(assign=False, swapped=False):
    def load(net):
        other = network(seed=1)
        if swapped:
            surgery(other)
        net.load_state_dict(other.state_dict(), strict=True, assign=assign)

    return in_place(load)


def _through_meta(assign):
    def change(net):
        state = copy.deepcopy(net.state_dict())
        net.to("meta")
        if not assign:
            net.to_empty(device="cpu")
        net.load_state_dict(state, assign=assign)

    return in_place(change)


def _averaged(net):
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for seed in range(2):
        net.load_state_dict(network(seed).state_dict())
        averaged.update_parameters(net)
    return averaged


def _replicas(net, x):
    """Of DataParallel, which copies parameters to GPUs: here to where they are."""
    module = sys.modules["torch.nn.parallel.replicate"]
    copies = lambda tensors, devices, detach=False: [[t * 1 for t in tensors] for _ in devices]
    with (
        patch.object(module, "_broadcast_coalesced_reshape", copies),
        patch.object(module, "_get_device_index", lambda device, optional: device),
    ):
        replicas = module.replicate(net, [0, 1])
    return torch.cat([replica(part) for replica, part in zip(replicas, x.chunk(2))])


def _functional(net, x):
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    tensors = {name: 2 * t if t.requires_grad else t for name, t in tensors.items()}
    return torch.func.functional_call(net, tensors, x)


def _checkpointed(use_reentrant):
    def forward(net, x):
        x = checkpoint(net.block, net.stem(x), use_reentrant=use_reentrant)
        return net.head(checkpoint(net.alone, x, use_reentrant=use_reentrant))

    return lambda net: Calls(net, forward)


def _called_once(action):
    def changed(net):
        net = action(net)
        torch.manual_seed(5)
        step(net, images())
        return net

    return changed


def _layers_of_se(net):
    return net.block.se.fc[0], net.alone.fc[0]


def _each(change, *choices):
    """A change of modules; by default of the first layer of SE."""

    def change_all(net):
        for module in [net.get_submodule(name) for name in choices] or _layers_of_se(net):
            change(module)

    return in_place(change_all)


def _frozen(net):
    for module in (net.stem, net.block.bn, *_layers_of_se(net)):
        module.requires_grad_(False)


def _trebled(parameter):
    parameter.grad.mul_(3)


def _tensor_hooks(net):
    for parameter in (net.block.bn.weight, *(layer.weight for layer in _layers_of_se(net))):
        parameter.register_hook(lambda gradient: 2 * gradient)
        parameter.register_post_accumulate_grad_hook(_trebled)


def _unparametrized(layer):
    parametrizations.weight_norm(layer)
    parametrize.remove_parametrizations(layer, "weight")


def _hook(module):
    module.register_forward_hook(lambda module, args, y: 2 * y)


def _backward_hook(module):
    module.register_full_backward_hook(lambda module, dx, dy: (2 * dx[0],))


def _patched(module):
    """As accelerate does, which moves weights to the device and back."""
    forward = module.forward
    module.forward = lambda *args: forward(*args)


def _folded(net):
    net.eval()
    net.block.conv = fuse_conv_bn_eval(net.block.conv, net.block.bn)
    net.block.bn = nn.Identity()


PARAMETRIZED, HOOKS = "it is parametrized", "has hooks"
# What is done; why it is unfused where that is done after the surgery, and before it; None: fused.
ACTIONS = {
    "nothing": (lambda net: net, None, None),
    "float-and-back": (lambda net: net.float().double(), None, None),
    "channels-last": (lambda net: net.to(memory_format=torch.channels_last), None, None),
    "meta-and-empty": (_through_meta(assign=False), None, None),
    "meta-and-assigned": (_through_meta(assign=True), None, None),
    "shared-memory": (in_place(lambda net: net.share_memory()), None, None),
    "deepcopy": (copy.deepcopy, None, None),
    "torch-save": (_saved, None, None),
    "loaded": (_loaded(), None, None),
    "loaded-from-a-fused-one": (_loaded(swapped=True), None, None),
    "assigned": (_loaded(assign=True), None, None),
    "averaged-model": (_averaged, None, None),
    "data-parallel": (lambda net: Calls(net, _replicas), None, None),
    "functional-call": (lambda net: Calls(net, _functional), None, None),
    "frozen": (in_place(_frozen), None, None),
    "gradient-hooks": (in_place(_tensor_hooks), None, None),
    "checkpointed": (_checkpointed(use_reentrant=False), None, None),
    "checkpointed-reentrant": (_checkpointed(use_reentrant=True), None, None),
    "compiled": (lambda net: torch.compile(net, backend="aot_eager"), None, None),
    "compiled-and-called": (
        _called_once(lambda net: torch.compile(net, backend="aot_eager")), None, None
    ),
    "compiled-in-place": (
        _called_once(in_place(lambda net: net.compile(backend="aot_eager"))), None, None
    ),
    "compiled-blocks": (
        _called_once(_each(lambda m: m.compile(backend="aot_eager"), "block", "alone")), None, None
    ),
    "parametrization-removed": (_each(_unparametrized), None, None),
    "hooks-on-blocks": (_each(_hook, "block", "alone"), None, HOOKS),
    "backward-hooks-on-blocks": (_each(_backward_hook, "block", "alone"), None, HOOKS),
    "hooks-on-layers": (_each(_hook, "block.se", "alone.fc"), HOOKS, HOOKS),
    "hook-on-a-convolution": (_each(_hook, "block.conv"), None, None),
    "weight-norm": (
        _each(parametrizations.weight_norm), "fc.0 is a torch.nn.utils.parametrize", PARAMETRIZED
    ),
    "spectral-norm": (
        _each(lambda layer: torch.manual_seed(3) and parametrizations.spectral_norm(layer)),
        "fc.0 is a torch.nn.utils.parametrize", PARAMETRIZED,
    ),
    "weight-norm-by-hooks": (_each(nn.utils.weight_norm), HOOKS, HOOKS),
    "pruned": (
        _each(lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5)), HOOKS, HOOKS
    ),
    "weight-norm-of-a-convolution": (
        _each(parametrizations.weight_norm, "block.conv"),
        "conv is a torch.nn.utils.parametrize.ParametrizedConv2d now", None,
    ),
    "parametrized-batch-norm": (
        _each(lambda bn: parametrize.register_parametrization(bn, "weight", nn.Tanh()), "block.bn"),
        "bn is a torch.nn.utils.parametrize.ParametrizedBatchNorm2d now",
        "before it stands torch.nn.utils.parametrize.ParametrizedBatchNorm2d",
    ),
    "patched-layers": (_each(_patched), "forward has been set", "its forward has been patched"),
    "patched-batch-norm": (
        _each(_patched, "block.bn"), "bn.forward has been set", "bn has a patched forward"
    ),
    "torch-fx": (
        torch.fx.symbolic_trace, "torch.fx traces through it",
        'is missing the required "forward" function',
    ),
}  # fmt: skip
IN_EVAL_MODE = {
    "folded": (
        in_place(_folded), "bn is a torch.nn.modules.linear.Identity now",
        "before it stands torch.nn.modules.conv.Conv2d",
    ),
    "synchronised": (nn.SyncBatchNorm.convert_sync_batchnorm, None, None),
}  # fmt: skip
