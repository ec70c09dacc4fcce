"""That a call is refused before it computes anything."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Every operator that is called, ours or PyTorch's."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.promote_types.default:  # dtypes only
            self.called.append(str(func))
        return func(*args, **(kwargs or {}))


def assert_raises_before_any_operator(error, words, function, *args, **kwargs):
    with Recorder() as recorder, pytest.raises(error) as raised:
        function(*args, **kwargs)
    assert recorder.called == []
    for word in words:
        assert word in str(raised.value), f"{word!r} is not in: {raised.value}"
