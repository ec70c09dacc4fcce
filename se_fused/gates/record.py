"""``record_gates``: the gates of SE blocks, as by-products of their forward passes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from se_fused.gates.plot import Label, draw
from se_fused.gates.saturation import Saturation, saturation_of
from se_fused.gates.sums import GateSums
from se_fused.modules.se import FusedSE
from se_fused.tracing import must_decompose


@contextmanager
def record_gates(model: nn.Module, *, near: float = 0.05) -> Iterator["GateRecord"]:
    """Records the gates of every FusedSE in a model while it runs inside the ``with``::

        with se_fused.record_gates(model) as record:
            for images, labels in loader:
                record.labels = labels         # only for means per class
                model(images)
        record.mean()                          # {"layer1.0.se": [C], …}
        print(record.saturation())
        record.plot("gates.png")

    The gates are those that the forward pass computes anyway, in training or eval mode, fused or
    in parts, on any backend: no pass over a map and no kernel is added, but the copy of g [N, C] to
    the CPU and its addition to sums there. Single gates are not kept. A block that is called more
    than once counts each call as more samples. What activation checkpointing computes again in the
    backward pass is not counted again.

    Inside the ``with``, what was given to torch.compile runs uncompiled, whichever model it is, and
    in its compiled graphs again afterwards. In torch.export, torch.jit.trace, torch.func transforms
    and forward-mode differentiation recording raises; a model that was exported or traced before
    has no FusedSE.

    Args:
        model: any module with a FusedSE in it: built, swapped by ``replace_se`` or fused by
            ``fuse``. It is the same as before after the ``with``, also where that raises.
        near: a gate is near 0 if ``|g| ≤ near``, near 1 if ``|g − 1| ≤ near``. That is a share of
            the range of sigmoid and hardsigmoid. Other gates are held to the same two values, as 0
            removes a channel and 1 leaves it as it is.

    Raises:
        TypeError, ValueError: a wrong argument; a model without FusedSE.
        RuntimeError: a block of the model is being recorded already.

    Source: Hu et al., arXiv 1709.01507, section 7.2 ("role of excitation"), figures 6 and 7.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not 0 <= near < 0.5:
        raise ValueError(f"near must be at least 0 and below 0.5, got {near}")
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, FusedSE)}
    if not blocks:
        raise ValueError(
            "model must have a FusedSE in it: call replace_se first; "
            "an exported or traced model has none"
        )
    for name, block in blocks.items():
        if block.__on_gate__ is not None:
            raise RuntimeError(f"{name or 'the model'} is being recorded already")
    record = GateRecord(blocks, near)
    for name, block in blocks.items():
        block.__on_gate__ = _Observer(record, name)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield record
    finally:
        for block in blocks.values():
            vars(block).pop("__on_gate__", None)


class GateRecord:
    """What ``record_gates`` has found; the names of blocks are those of ``model.named_modules()``.

    Tensors are float64, on the CPU. Blocks that did not run are left out.
    """

    def __init__(self, names: Iterable[str], near: float):
        self.near = near
        self.blocks = {name: GateSums() for name in names}
        self._rows: dict[Label, int] = {}  # row 0 of the sums is for samples without a label
        self._labels: list[Label] | None = None
        self._row_of_sample: Tensor | None = None

    @property
    def labels(self) -> list[Label] | None:
        """The class of each sample of the forward passes to come, until they are set again.

        ``[N]`` integers as a tensor, or a sequence of N ints or names; None for no classes.
        """
        return self._labels

    @labels.setter
    def labels(self, labels: Tensor | Sequence[Label] | None):
        self._labels = None if labels is None else _list_of(labels)
        if labels is None:
            self._row_of_sample = None
            return
        rows = [self._rows.setdefault(label, len(self._rows) + 1) for label in self._labels]
        self._row_of_sample = torch.tensor(rows, dtype=torch.int64, device="cpu")

    @property
    def classes(self) -> list[Label]:
        """The labels that were set, in order, ints before names."""
        return sorted(self._rows, key=lambda label: (isinstance(label, str), label))

    def mean(self) -> dict[str, Tensor]:
        """The mean gate of each channel over all samples: ``{block: [C]}``."""
        return {name: sums.mean() for name, sums in self._ran().items()}

    def mean_per_class(self) -> dict[str, dict[Label, Tensor]]:
        """The mean gate of each channel over the samples of a class: ``{block: {label: [C]}}``."""
        return self._per_class(GateSums.mean)

    def deviation(self) -> dict[str, Tensor]:
        """The standard deviation of each channel's gate over all samples: ``{block: [C]}``."""
        return {name: sums.deviation() for name, sums in self._ran().items()}

    def deviation_per_class(self) -> dict[str, dict[Label, Tensor]]:
        """The same over the samples of a class: ``{block: {label: [C]}}``."""
        return self._per_class(GateSums.deviation)

    def saturation(self, share: float = 0.99) -> Saturation:
        """Which blocks do little: a table, by block, of gates near 0 and 1 and of their spread.

        Args:
            share: a block is named in ``droppable`` if at least this share of its gates is near 0
                or 1, or of its channels is constant: lowest and highest gate no further apart than
                ``near``.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self._ran()
        return saturation_of(self.blocks, self.near, share)

    def plot(
        self,
        path: str | Path,
        classes: Sequence[Label] | None = None,
        *,
        deviation: bool = False,
    ):
        """Draws the mean gate by channel, a panel per block and a curve per class, as a PNG.

        Args:
            path: the file to write; matplotlib knows the format from its ending.
            classes: the labels to draw, at most 12; by default the first 12.
            deviation: around each curve of a class a band of its standard deviation.

        Raises:
            ImportError: matplotlib is not installed.

        Source: Hu et al., arXiv 1709.01507, figure 6; figure 7 with the deviation.
        """
        means = self.mean_per_class() if self._rows else {}
        bands = self.deviation_per_class() if self._rows and deviation else {}
        draw(path, self.mean(), means, bands, self.classes, classes)

    def _per_class(self, statistic) -> dict[str, dict[Label, Tensor]]:
        if not self._rows:
            raise RuntimeError("no labels were set: record.labels = labels before the model runs")
        return {
            name: {
                label: statistic(sums, self._rows[label])
                for label in self.classes
                if sums.has(self._rows[label])
            }
            for name, sums in self._ran().items()
        }

    def _ran(self) -> dict[str, GateSums]:
        ran = {name: sums for name, sums in self.blocks.items() if sums.samples}
        if not ran:
            raise RuntimeError("no gate was recorded: no SE block of the model has run")
        return ran

    def _add(self, name: str, g: Tensor):
        if must_decompose():
            raise RuntimeError(
                "gates cannot be recorded in torch.export, torch.jit.trace, torch.func transforms "
                "or forward-mode differentiation: leave record_gates first"
            )
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing computes it again, inside a backward pass
        rows = self._row_of_sample
        if rows is not None and len(rows) != len(g):
            raise ValueError(
                f"labels must have one entry per sample, got {len(rows)} labels "
                f"for the {len(g)} samples of block {name or '(model)'}"
            )
        # Sums that were made in inference mode could not be added to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.blocks[name].add(g, rows, self.near)


def _list_of(labels: Tensor | Sequence[Label]) -> list[Label]:
    if isinstance(labels, Tensor):
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                "labels must be [N] integers, one class per sample, "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        return labels.tolist()
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        raise TypeError(
            f"labels must be a tensor, a sequence or None, got {type(labels).__name__}"
        )
    for label in labels:
        if not isinstance(label, Label):
            raise TypeError(f"labels must be ints or names, got a {type(label).__name__} in them")
    return list(labels)


class _Observer:
    """What a block calls with its gates; copies of the block, pickled ones too, get None for it."""

    def __init__(self, record: GateRecord, name: str):
        self.record, self.name = record, name

    def __call__(self, g: Tensor):
        self.record._add(self.name, g)

    def __reduce__(self):
        return type(None), ()
