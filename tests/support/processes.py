"""Two processes of torch.distributed on the CPU, and what each of them found."""

import os
import time
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES, SECONDS = 2, 120


def run_cases(cases, rank: int, folder: str):
    """Keeps the result of each, or what it raised, for the process that asks."""
    found = {}
    for name, case in cases.items():
        try:
            found[name] = case()
        except Exception:
            found[name] = traceback.format_exc()
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def in_processes(work, folder: str) -> list[dict]:
    processes = mp.start_processes(
        work, (folder,), nprocs=PROCESSES, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + SECONDS
    while not processes.join(timeout=1):  # raises what a process raised
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"two processes have not finished in {SECONDS} seconds")
    return [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(PROCESSES)]


def of_case(found, name) -> list[dict]:
    for result in found:
        assert not isinstance(result[name], str), result[name]
    return [result[name] for result in found]
