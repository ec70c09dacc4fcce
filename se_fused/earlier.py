"""The names by which whole models that were pickled earlier look up classes and functions.

A state_dict has no such names. Importing this file makes the earlier modules importable. Form,
LayerPaths and Insertion are pickled by position: new fields of theirs come last.
"""

import sys
from importlib import import_module
from types import ModuleType

NAMES = {
    "module.FusedSE": "modules.se.FusedSE",
    "module.Form": "modules.se.Form",
    "layers.Slots": "modules.layers.LayerPaths",
    "norm.FusedBatchNormSE": "modules.batch_norm_se.FusedBatchNormSE",
    "surgery.swapped.SwappedSE": "surgery.replaced_se.ReplacedSE",
    "surgery.swapped.Never": "surgery.replaced_se.NeverFused",
    "surgery.swapped.SwappedChannelsLast": "surgery.replaced_variants.ReplacedChannelsLast",
    "surgery.swapped.SwappedSCSE": "surgery.replaced_variants.ReplacedSCSE",
    "surgery.swapped_mbconv.SwappedMBConv": "surgery.replaced_variants.ReplacedMBConv",
    "surgery.families.clamp_gate": "surgery.registry.clamp_gate",
    "surgery.blocks.FusedBlock": "surgery.fused_block.FusedBlock",
    "surgery.fusion.Fusion": "surgery.fused_forward.Fusion",
    "surgery.beside.BlockWithSE": "surgery.attach_se.BlockWithSE",
    "surgery.layer_calls.Insertion": "surgery.wrap_calls.Insertion",
}

for earlier, now in NAMES.items():
    (room, name), (path, current) = (each.rsplit(".", 1) for each in (earlier, now))
    module = sys.modules.setdefault(f"se_fused.{room}", ModuleType(f"se_fused.{room}"))
    setattr(module, name, getattr(import_module(f"se_fused.{path}"), current))
