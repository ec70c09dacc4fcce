"""``insert_se``, which puts SE into networks that have none."""

from collections.abc import Callable, Iterable, Sequence
from numbers import Real

from torch import nn

from se_fused import validation
from se_fused.activations import make_module
from se_fused.modules.se import FusedSE
from se_fused.surgery.attach_se import Attachments
from se_fused.surgery.insertion_sites import check_has_no_se, sites_by_choice, sites_by_class
from se_fused.surgery.networks import WHERE, Site
from se_fused.surgery.report import Inserted, Report, check_model


def insert_se(
    model: nn.Module,
    *,
    reduction: float | Sequence[float] = 16,
    where: str = "standard",
    stages: Iterable[int] | None = None,
    bias: bool = True,
    squeeze: str | Sequence[str] = "avg",
    gate="sigmoid",
    act="relu",
    blocks: Callable[[str, nn.Module], int | None] | None = None,
) -> Report:
    """Puts ``FusedSE(C, rd_channels=C // reduction)`` into every block of a network that has no SE,
    in place: ``insert_se(torchvision.models.resnet50())`` is SE-ResNet-50.

    SE is a child beside the layer that it follows, which stays what it is: ``layer1.0.se`` beside
    ``layer1.0.bn3``, ``features.2_se`` beside ``features.2`` of a Sequential. State-dict keys are
    what they were, and a checkpoint of the plain network loads with ``strict=False``: only the keys
    of SE are missing (``layer1.0.se.fc1.weight``). ``fuse`` fuses what was inserted with what
    stands around it. ``remove_se(model)`` undoes it.

    - A Sequential calls SE as one more of its children; indices after it are shifted.
    - A block calls SE as its class is swapped for a copy in which its methods, compiled again from
      their source, say ``self.se(self.bn3(…))``. SE is its child ``se``, or ``bn3_se`` where it has
      an attribute ``se``.
    - A block that SE follows as a whole gets SE as its child ``se``, or ``inserted_se``, and a
      class whose forward returns ``self.se(…)``.

    =====================  ====================  =================================================
    network                stages                standard: SE stands after
    =====================  ====================  =================================================
    ResNet, ResNeXt, Wide  2 to 5, conv2_x to    the last norm of the residual branch, before the
    ResNet                 conv5_x               sum
    VGG                    1 to 5                the ReLU of each convolution
    GoogLeNet              3 to 5                each Inception module
    Inception-v3           5 to 7, Mixed_5b to   each Inception module
                           Mixed_7c
    Inception-ResNet-v2    5 to 7                the last convolution of the residual branch; each
                                                 module that is not residual
    MobileNetV1            1 to 5                each pointwise convolution with norm and ReLU
    MobileNetV2            1 to 7                the last norm of the residual branch
    ShuffleNetV2           2 to 4                the branch with the convolutions, before the
                                                 concatenation
    =====================  ====================  =================================================

    They are torchvision's and timm's (Inception-ResNet-v2 and MobileNetV1: timm's; GoogLeNet and
    ShuffleNetV2: torchvision's), also as parts of other models.

    Args:
        model: the network.
        reduction: r; the hidden width is C // r, not rounded to a multiple of anything.
        where: "standard"; in a ResNet also "pre", before the residual branch; "post", after the
            sum and its ReLU; "identity", on the identity branch, after its projection if it has
            one; in its bottlenecks "conv3x3", after the 3×3 convolution and its norm. In a
            MobileNet the same but "identity"; "conv3x3" is after the ReLU there.
        stages: the numbers of those that get SE, as above; all by default.
        bias: whether the layers of SE have biases; the paper's ablations have none.
        squeeze, gate, act: as ``FusedSE`` takes them.
        blocks: for networks of other classes, instead of the table: called with the name of each
            module and the module, it returns the channels of its output where SE is to follow it,
            else None. Of a Sequential it follows the last module. A layer must be in a Sequential
            or be called by its block as ``self.NAME(…)``. There are no stages then.

        ``reduction``, ``squeeze`` and ``gate`` may be lists: one value for each of ``stages``, or
        for each stage of the network.

    The parameters are on the device and of the dtype of the layer's own, in its training mode, and
    initialised as ``FusedSE``'s. Optimizers do not know them yet.

    Returns:
        A report of the SE blocks (as ``replaced``); it prints as a table.

    Raises:
        TypeError, ValueError: a wrong argument, by name; a model that has SE already, no block of
            the table, or a patched forward where SE goes; a layer that is called otherwise, or may
            be; a block without source; a reduction that leaves no hidden unit. Nothing is changed.

    Source: Hu et al., arXiv 1709.01507, figures 2, 3 and 5, tables 10 to 15.
    """
    check_model(model)
    validation.choice(where, WHERE, "where")
    make_module(act, "act")
    check_has_no_se(model)
    if blocks is None:
        sites = sites_by_class(model, where)
        own = sorted({site.stage for site in sites if site.stage is not None})
    else:
        sites, own = sites_by_choice(model, where, blocks), []
    if stages is not None:
        stages = list(stages) if isinstance(stages, Iterable) else [stages]
        _check_stages(stages, own)
    options = {"reduction": reduction, "squeeze": squeeze, "gate": gate}
    by_stage = [_by_stage(value, name, stages or own) for name, value in options.items()]
    _check_numbered(sites, stages, **options)
    sites = [site for site in sites if stages is None or site.stage in stages]
    asked = "model must have" if blocks is None else "blocks must choose"
    attachments = Attachments(model, sites, asked)
    built = []
    for site in sites:
        r, squeeze, gate = (value(site.stage) for value in by_stage)
        se = FusedSE(
            site.channels,
            rd_channels=_hidden_width(site, r),
            bias=bias,
            act_layer=act,
            gate_layer=gate,
            squeeze=squeeze,
            **_factory(model, site),
        )
        of = model.get_submodule(site.block) if site.layer is None else site.layer
        built.append(se.train(of.training))
    attachments.attach(built)
    names = {id(module): name for name, module in model.named_modules()}
    return Report("inserted", [_entry(names[id(se)], site, se) for site, se in zip(sites, built)])


def _entry(name: str, site: Site, se: FusedSE) -> Inserted:
    width = f"{site.channels} channels, {se.fc1.out_channels} hidden"
    return Inserted(name, site.cls, width)


def _check_stages(stages: list[int], own: list[int]):
    if not own:
        raise ValueError(f"stages must be None where there are no stages, got {stages}")
    if not stages or len({*stages}) < len(stages) or not {*stages} <= {*own}:
        raise ValueError(f"stages must be some of {_listed(own)}, each once, got {stages}")


def _check_numbered(sites: list[Site], stages, **options):
    """Where something depends on the stage, each block has one."""
    asked = ["stages must be None"] if stages is not None else []
    asked += [f"{name} must be one value" for name, value in options.items() if _is_list(value)]
    for site in sites:
        if asked and site.stage is None:
            raise ValueError(f"{asked[0]}, as the name of {site.block} does not tell its stage")


def _is_list(value) -> bool:
    return isinstance(value, (list, tuple))


def _listed(stages: list[int]) -> str:
    return ", ".join(map(str, stages))


def _by_stage(value, name: str, stages: list[int]) -> Callable[[int | None], object]:
    """The value for a stage."""
    if not _is_list(value):
        _check_value(value, name)
        return lambda stage: value
    if not stages:
        raise ValueError(f"{name} must be one value where there are no stages, got {len(value)}")
    if len(value) != len(stages):
        raise ValueError(
            f"{name} must be one value, or one for each of the stages {_listed(stages)}; "
            f"got {len(value)}"
        )
    for each in value:
        _check_value(each, name)
    return dict(zip(stages, value)).get


def _check_value(value, name: str):
    if name == "reduction" and not (isinstance(value, Real) and value > 0):
        raise ValueError(f"reduction must be a positive number, got {value!r}")
    if name == "gate":
        make_module(value, "gate")


def _hidden_width(site: Site, reduction: float) -> int:
    hidden = int(site.channels // reduction)
    if hidden < 1:
        stage = "" if site.stage is None else f" in stage {site.stage}"
        raise ValueError(
            f"reduction must leave a hidden unit; {reduction} leaves none of the "
            f"{site.channels} channels of {site.block or 'the model'}{stage}"
        )
    return hidden


def _factory(model: nn.Module, site: Site) -> dict:
    """The device and the dtype of the nearest parameters."""
    for module in (site.layer or nn.Identity(), model.get_submodule(site.block), model):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return {"device": parameter.device, "dtype": parameter.dtype}
    return {}
