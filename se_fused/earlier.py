"""Names by which models pickled by version 0.1 find their classes and functions.

state_dicts have no such names. A row is: the module of before, the module of now, the names in it
(of before: of now, where they differ).
"""

import sys
from importlib import import_module
from types import ModuleType

_NAMES = {
    "module": {"modules.se": ("FusedSE", "Form")},
    "layers": {"modules.layers": {"Slots": "LayerPaths"}},
    "norm": {"modules.batch_norm_se": ("FusedBatchNormSE",)},
}
