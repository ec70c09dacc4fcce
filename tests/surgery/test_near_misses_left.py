"""What squeezes a map and cannot be replaced is left, with the reason; what is no SE is not."""

import pytest
import torch
import torch.nn.functional as F
from near_misses import C, InFile, Layers, One, mean, se
from torch import nn

from se_fused import replace_se

sigmoid = torch.sigmoid

# What is left, and a part of the reason.


def pooled(self, x):
    return x * sigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))


def pooled_of_modules(self, x):
    return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


def of_square(self, x):
    return x * sigmoid(self.expand(F.relu(self.reduce(F.avg_pool2d(x, x.size(2))))))


def shared_by_two_poolings(self, x):
    pools = F.adaptive_avg_pool2d, F.adaptive_max_pool2d
    return x * sigmoid(sum(self.expand(F.relu(self.reduce(pool(x, 1)))) for pool in pools))


def of_both_poolings(self, x):
    z = torch.cat([mean(x), x.amax((2, 3), keepdim=True)], 1)
    return x * sigmoid(self.expand(F.relu(self.reduce(z))))


def sets_what_it_computes(self, x):
    self.gates = sigmoid(self.expand(F.relu(self.reduce(mean(x)))))
    return x * self.gates


def sets_the_same(self, x):
    self.was_called = True
    return se(F.relu, sigmoid)(self, x)


def lazy(inputs, outputs):
    return nn.LazyConv2d(outputs, 1)


UNKNOWN = "computes no activation and gate that se_fused knows"
NO_MAP = "it takes no map of 3×5: RuntimeError: Given input size"
NO_MEAN = "it squeezes a map, but not to the mean of each channel"
MODULES = dict(act=nn.ReLU(), gate=nn.Sigmoid())
LEFT = {
    "relu6": (lambda: Layers(se(F.relu6, sigmoid)), UNKNOWN),
    "another-slope": (lambda: Layers(se(lambda p: F.leaky_relu(p, 0.1), sigmoid)), UNKNOWN),
    "approximate-gelu": (
        lambda: Layers(se(lambda p: F.gelu(p, approximate="tanh"), sigmoid)), UNKNOWN
    ),
    "bounded-gate": (lambda: Layers(se(F.relu, lambda p: sigmoid(p).clamp(min=1e-3))), UNKNOWN),
    "softmax": (lambda: Layers(se(F.relu, lambda p: p.softmax(1))), UNKNOWN),
    "doubled-gate": (lambda: Layers(se(F.relu, lambda p: sigmoid(p) * 2)), UNKNOWN),
    "one-plus-gate": (lambda: Layers(se(F.relu, lambda p: 1 + sigmoid(p))), UNKNOWN),
    "residual": (lambda: Layers(lambda self, x: x + se(F.relu, sigmoid)(self, x)), UNKNOWN),
    "one-layer-softplus": (lambda: One(lambda self, x: x * F.softplus(self.fc(mean(x)))), UNKNOWN),
    "two-poolings": (lambda: Layers(shared_by_two_poolings), NO_MEAN),
    "concat": (lambda: Layers(of_both_poolings, inputs=2 * C), NO_MEAN),
    "maximum": (
        lambda: Layers(se(F.relu, sigmoid, lambda x: F.adaptive_max_pool2d(x, 1))), NO_MEAN
    ),
    "window-of-7": (lambda: Layers(pooled, pool=nn.AvgPool2d(7)), NO_MAP),
    "window-of-9": (lambda: Layers(pooled, pool=nn.AvgPool2d((9, 9))), NO_MAP),
    "window-of-56": (lambda: Layers(se(F.relu, sigmoid, lambda x: F.avg_pool2d(x, 56))), NO_MAP),
    "window-and-modules": (
        lambda: Layers(pooled_of_modules, pool=nn.AvgPool2d(7), **MODULES), NO_MAP
    ),
    "window-of-2": (
        lambda: Layers(pooled, pool=nn.AvgPool2d(2)),
        "at 3×5 it computes something else than at 2×2",
    ),
    "square-window": (lambda: Layers(of_square), "at 3×5 it computes something else than at 7×7"),
    "gate-alone": (
        lambda: Layers(lambda self, x: sigmoid(self.expand(F.relu(self.reduce(mean(x)))))),
        "it returns the gate; its caller multiplies",
    ),
    "two-results": (
        lambda: Layers(lambda self, x: (se(F.relu, sigmoid)(self, x), x)),
        "it returns a tuple, not a tensor",
    ),
    "dropout": (
        lambda: Layers(lambda self, x: se(F.relu, sigmoid)(self, F.dropout(x, 0.5, self.training))),
        "it computes something else than SE of its layers",
    ),
    "sets-an-attribute": (lambda: Layers(sets_what_it_computes), "its forward sets gates"),
    "sets-a-constant": (lambda: Layers(sets_the_same), "its forward sets was_called"),
    "lazy": (lambda: Layers(se(F.relu, sigmoid), lazy), "its layer reduce has no parameters yet"),
}  # fmt: skip


@pytest.mark.parametrize("make, reason", LEFT.values(), ids=LEFT)
def test_left(make, reason):
    net = nn.Sequential(make())
    library, attributes = type(net[0]), dict(vars(net[0]))
    report = replace_se(net)
    assert not report.replaced and [entry.name for entry in report.left] == ["0"]
    assert reason in report.left[0].reason
    assert type(net[0]) is library and vars(net[0]) == attributes


def test_left_with_a_hook_or_a_patched_forward():
    hooked, patched = InFile(), InFile()
    called = []
    hooked.fc1.register_forward_hook(lambda *arguments: called.append(1))
    patched.forward = lambda x: called.append(2)
    report = replace_se(nn.Sequential(hooked, patched))
    assert [entry.reason for entry in report.left] == [
        "it has hooks", "its forward has been patched",
    ]  # fmt: skip
    assert not called and not report.replaced


# What has such layers and is no SE.


class Attention(nn.Module):
    """Of one query: a layer for it, and one for the result."""

    def __init__(self):
        super().__init__()
        self.query, self.out = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x, context):
        return self.out(F.scaled_dot_product_attention(self.query(x), context, context))


def channels_of_neighbours(self, x):  # ECA
    return x * sigmoid(self.fc(mean(x).flatten(2).transpose(1, 2))).transpose(1, 2)[..., None]


NO_SE = {
    "mlp": lambda: Layers(lambda self, x: self.expand(F.gelu(self.reduce(x))), nn.Linear),
    "mlp-with-gate": lambda: Layers(
        lambda self, x: sigmoid(self.expand(F.relu(self.reduce(x)))), nn.Linear
    ),
    "adapter": lambda: Layers(lambda self, x: x + self.expand(F.gelu(self.reduce(x))), nn.Linear),
    "inverted": lambda: Layers(
        lambda self, x: x + self.expand(F.relu(self.reduce(x))), width=4 * C
    ),
    "auto-encoder": lambda: Layers(lambda self, x: sigmoid(self.expand(F.relu(self.reduce(x))))),
    "pixel-attention": lambda: Layers(
        lambda self, x: x * sigmoid(self.expand(F.relu(self.reduce(x))))
    ),
    "head": lambda: Layers(lambda self, x: self.expand(F.relu(self.reduce(mean(x))))),
    "image-pooling": lambda: One(
        lambda self, x: F.interpolate(F.relu(self.fc(mean(x))), x.shape[2:])
    ),
    "eca": lambda: One(channels_of_neighbours, nn.Conv1d(1, 1, 3, padding=1)),
    "pointwise-and-relu": lambda: One(lambda self, x: F.relu(self.fc(x))),
    "attention": Attention,
}


@pytest.mark.parametrize("make", NO_SE.values(), ids=NO_SE)
def test_no_se(make):
    report = replace_se(nn.Sequential(make()))
    assert not report.replaced and not report.left
