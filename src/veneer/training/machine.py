"""What a run was measured on."""

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch

PACKAGES = ("veneer", "torch", "transformers", "accelerate", "safetensors", "scikit-learn", "numpy")


def describe_machine() -> dict[str, str | int | None]:
    """Return processor and what it computes with, cores this process may use, memory, accelerator and system."""
    return {
        "cpu": str(torch.cpu.get_capabilities().get("cpu_name", platform.machine())),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *_bfloat16_units()]),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def processor(machine: Mapping[str, Any]) -> str:
    """Return what of a described machine computed: its accelerator where it has one."""
    return str(machine.get("accelerator") or machine.get("cpu", "unknown processor"))


def has_bfloat16() -> bool:
    """Return whether the GPU, or else the processor, computes in bfloat16 and is faster for it."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_bfloat16_units())


def _bfloat16_units() -> list[str]:
    abilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return [name for name in ("avx512_bf16", "amx_bf16") if abilities.get(name)]


def describe_versions() -> dict[str, str]:
    """Return the versions that a run's figures depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def peak_memory_bytes() -> int:
    """Return the largest allocation on the GPU, or else the largest resident set of this process, so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
