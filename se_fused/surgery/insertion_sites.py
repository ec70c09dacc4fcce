"""Where SE goes in a model: blocks of the table, or those that the user chooses."""

from collections.abc import Callable

from torch import nn

from se_fused.modules.se import FusedSE
from se_fused.surgery.find_se import find_by_class, find_by_layers
from se_fused.surgery.networks import BY_CLASS, CONTAINERS, Site, end_of
from se_fused.surgery.report import NotFusible, path_of
from se_fused.surgery.verify import verify


def check_has_no_se(model: nn.Module):
    verified = {}
    for name, module in model.named_modules():
        is_known = isinstance(module, FusedSE) or find_by_class(module) != (None, None)
        if is_known or _is_se(module, verified):
            raise ValueError(
                f"model must have no SE; {name or 'it'} is a {path_of(type(module))}"
            )


def _is_se(module: nn.Module, verified: dict) -> bool:
    """Whether a module of an unknown class is SE by its layers and by what it computes."""
    try:
        family = find_by_layers(module, verified)
        if family is not None:
            verify(module, family.kind, family.paths, verified)
    except NotFusible:
        return False
    return family is not None


def sites_by_class(model: nn.Module, where: str) -> list[Site]:
    sites = {}
    for name, block in model.named_modules():
        cls = path_of(type(block))
        family = BY_CLASS.get(cls)
        if family is None:
            continue
        if where not in family.places:
            accepted = ", ".join(family.places)
            raise ValueError(f"where must be one of {accepted} in a {cls}, got {where!r}")
        try:
            found = list(family.sites(model, name, block, where))
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(
                f"model must have the layers that se_fused knows of a {cls}; {name or 'it'} has "
                f"not: {error}"
            ) from error
        for site in found:
            sites.setdefault(site.key, site)
    if not sites:
        raise ValueError(
            f"model must have blocks that se_fused knows, got a {path_of(type(model))}; for "
            "others give blocks=, a function of a module's name and the module that returns the "
            "channels of its output where SE is to follow it, else None"
        )
    return list(sites.values())


def sites_by_choice(model: nn.Module, where: str, blocks: Callable) -> list[Site]:
    if not callable(blocks):
        raise TypeError(f"blocks must be callable, got {type(blocks).__name__}")
    if where != "standard":
        raise ValueError(f"where must be standard where blocks is given, got {where!r}")
    sites = {}
    for name, module in model.named_modules():
        channels = blocks(name, module)
        if channels is None or channels is False or channels == 0:
            continue
        if type(channels) is not int or channels < 1:
            raise TypeError(
                f"blocks must return the channels of a module's output, or None; "
                f"got {channels!r} for {name or 'the model'}"
            )
        layer = end_of(module)
        is_container = getattr(type(layer), "forward", None) is nn.Module.forward
        if is_container or isinstance(layer, CONTAINERS):
            raise ValueError(
                f"blocks must choose modules whose forward does not go over their children, got "
                f"{name or 'the model'}, a {path_of(type(layer))}"
            )
        site = Site(name, path_of(type(module)), layer, channels, None)
        sites.setdefault(site.key, site)
    if not sites:
        raise ValueError("blocks must choose a module, and has returned None for all of them")
    return list(sites.values())
