"""Attaches inserted SE blocks: each as a child beside the layer that it belongs to, not inside it.

The layer stays as it is, and so does its name. What calls it then calls SE, too: a Sequential
because SE is one more child of it, a block because its class is swapped.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from se_fused.modules.se import FusedSE
from se_fused.surgery.class_swap import ClassSwapped, made_class
from se_fused.surgery.networks import CONTAINERS, Site
from se_fused.surgery.report import path_of
from se_fused.surgery.wrap_calls import Insertion, methods_with_se

MARK = "__inserted__"  # an attribute of the SE blocks, in copies of them too


class BlockWithSE(ClassSwapped):
    """A block that has SE beside its layers, or after all of them."""

    __prefix__ = "SE"
    __insertions__: tuple[Insertion, ...]

    @staticmethod
    def __members__(library: type[nn.Module], *insertions: Insertion) -> dict:
        return {"__insertions__": insertions, **methods_with_se(library, insertions)}


class InSequential(NamedTuple):
    """A child of the layer's Sequential, next to the layer."""

    parent: nn.Sequential
    layer: str
    se: str
    before: bool

    def put(self, se: FusedSE):
        children = list(self.parent._modules.items())
        place = list(self.parent._modules).index(self.layer) + (not self.before)
        children.insert(place, (self.se, se))
        self.parent._modules.clear()
        self.parent._modules.update(children)


class InBlock(NamedTuple):
    """A child of a block, which calls it."""

    parent: nn.Module
    insertion: Insertion

    @property
    def se(self) -> str:
        return self.insertion.se

    def put(self, se: FusedSE):
        self.parent._modules[self.se] = se


class OnIdentity(NamedTuple):
    """In the place of a branch that is None."""

    parent: nn.Module
    attribute: str
    se: str = "se"

    def put(self, se: FusedSE):
        branch = nn.Sequential(OrderedDict(se=se)).train(se.training)
        setattr(self.parent, self.attribute, branch)


Attachment = InSequential | InBlock | OnIdentity


def is_sequential(module: nn.Module) -> bool:
    forward = getattr(type(module), "forward", None)  # a ScriptModule's class has none
    return forward is nn.Sequential.forward and "forward" not in vars(module)


class Attachments:
    """How SE is attached at some sites of a model, and the classes that their blocks get.

    Raises ValueError for a site that cannot have SE; nothing is changed before ``attach``.
    """

    def __init__(self, model: nn.Module, sites: list[Site], argument: str):
        self.names = {module: name for name, module in model.named_modules()}
        self.owners: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        for parent in self.names:
            for name, child in parent._modules.items():
                self.owners.setdefault(child, []).append((parent, name))
        self.argument = argument
        self.taken: set[tuple[nn.Module, str]] = set()
        self.attachments = [self._attachment_for(model, site) for site in sites]
        insertions: dict[nn.Module, list[Insertion]] = {}
        for attachment in self.attachments:
            if isinstance(attachment, InBlock):
                insertions.setdefault(attachment.parent, []).append(attachment.insertion)
        self.classes = {parent: self._class(parent, of) for parent, of in insertions.items()}

    def attach(self, blocks: Iterable[FusedSE]):
        for attachment, se in zip(self.attachments, blocks):
            setattr(se, MARK, True)
            attachment.put(se)
        for parent, cls in self.classes.items():
            parent.__class__ = cls

    def _attachment_for(self, model: nn.Module, site: Site) -> Attachment:
        if site.layer is None:
            return OnIdentity(model.get_submodule(site.block), site.attribute)
        if is_block(site.layer) and not site.before:
            name = self._free_name(site.layer, "se", "inserted_se")
            return InBlock(site.layer, Insertion("", name))
        owners = self.owners.get(site.layer, [])
        if len(owners) != 1:
            names = [f"{self.names[parent]}.{name}".lstrip(".") for parent, name in owners]
            same = f"{' and '.join(names)} are one module" if names else "it is in no block"
            raise self._error(self._name(site.layer), same)
        ((parent, layer),) = owners
        if is_sequential(parent):
            se = self._free_name(parent, f"{layer}_se")
            return InSequential(parent, layer, se, site.before)
        if isinstance(parent, (nn.ModuleList, nn.ModuleDict)):
            raise self._error(self._name(site.layer), f"it is in a {path_of(type(parent))}")
        se = self._free_name(parent, "se", f"{layer}_se")
        return InBlock(parent, Insertion(layer, se, site.before))

    def _free_name(self, parent: nn.Module, *names: str) -> str:
        for name in names:
            if not hasattr(parent, name) and (parent, name) not in self.taken:
                self.taken.add((parent, name))
                return name
        raise ValueError(
            f"model must have no attribute {names[-1]} where SE goes; {self._name(parent)} has one"
        )

    def _class(self, parent: nn.Module, insertions: list[Insertion]) -> type:
        layers = [each.layer for each in insertions if each.layer]
        what = f"{', '.join(layers)} of {self._name(parent)}" if layers else self._name(parent)
        if isinstance(parent, torch.jit.ScriptModule):
            raise self._error(what, "it is a ScriptModule, whose class cannot be changed")
        self._check_not_patched(parent, ["forward"])
        try:
            made = made_class(BlockWithSE, type(parent), tuple(insertions))
            nn.Module.__new__(type(parent)).__class__ = made
        except (TypeError, ValueError) as error:
            raise self._error(what, str(error)) from error
        self._check_not_patched(parent, vars(made))
        return made

    def _check_not_patched(self, parent: nn.Module, methods: Iterable[str]):
        """A method set on an object hides the one of its class."""
        for name in methods:
            if name in vars(parent):
                raise ValueError(
                    f"model must have no patched {name} where SE goes; {self._name(parent)}, a "
                    f"{path_of(type(parent))}, has one"
                )

    def _error(self, what: str, reason: str) -> ValueError:
        return ValueError(
            f"{self.argument} layers that are in a Sequential or that their block calls as "
            f"self.NAME(…), or whole blocks; {what} cannot have SE: {reason}"
        )

    def _name(self, module: nn.Module) -> str:
        return self.names[module] or "the model"


def is_block(module: nn.Module) -> bool:
    """Whether a module has children and is none of PyTorch's layers."""
    own = (nn.Module, *CONTAINERS)
    is_layer = any(
        cls.__module__.startswith("torch.nn.") and cls not in own for cls in type(module).__mro__
    )
    return not is_layer and any(child is not None for child in module._modules.values())
