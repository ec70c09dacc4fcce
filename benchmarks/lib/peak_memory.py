"""Peak memory of a training step, above what is held between steps."""

import os

import torch
from torch.profiler import ProfilerActivity, profile

MEANING = "allocated by PyTorch in one forward and backward: activations, gradients, temporaries"


def peak_memory(run, batch) -> int:
    """Bytes, as ``MEANING`` says: parameters, optimiser state and the batch are not counted."""
    images, labels = run.to_device(batch)
    run.network.train()

    def step():
        run.network.zero_grad()
        with run.autocast():
            loss = torch.nn.functional.cross_entropy(run.network(images).float(), labels)
        loss.backward()

    step()
    run.network.zero_grad()
    return peak_of(step, run.device)


def peak_of(step, device) -> int:
    """Bytes that a call has allocated at its peak, above what was held before."""
    return _peak_on_cuda(step, device) if device.type == "cuda" else _peak_on_cpu(step)


def _peak_on_cuda(step, device):
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(step):
    """The highest running total of the profiler's record of allocations and releases."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it logs each start and a missing GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak
