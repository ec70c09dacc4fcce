"""Options and places of the benchmarks that pytest runs: ``pytest benchmarks``."""

import malloc
import pytest
import torch
from lib import devices

from se_fused import backends


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every row, not only the quick ones")
    parser.addoption("--bench-device", help="default: cuda where there is one, else cpu")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: a row that runs with --full only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        kept = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def device_of(config) -> torch.device:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(config.getoption("--bench-device") or default)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    """So that the JSON says what measured it."""
    facts = devices.facts(device_of(config))
    machine_info["se_fused"] = {**facts, "malloc": malloc.in_use()}


@pytest.fixture
def device(request):
    return device_of(request.config)


def pytest_generate_tests(metafunc):
    """Every backend that this device has, but for eager, which is among the contenders; networks
    in fp32, on a GPU under autocast too."""
    if "network_dtype" in metafunc.fixturenames:
        on_gpu = device_of(metafunc.config).type == "cuda"
        metafunc.parametrize("network_dtype", ["fp32", "bf16 autocast"] if on_gpu else ["fp32"])
    if "fused_backend" in metafunc.fixturenames:
        device = device_of(metafunc.config)
        names = [
            name
            for name in backends.preferred(device.type)
            if name != "eager" and backends.why_not(name, device) is None
        ]
        metafunc.parametrize("fused_backend", names)
