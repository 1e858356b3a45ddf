"""Is this machine fit to train?"""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

import psutil
import torch
from pydantic import BaseModel

from pcrl_cli.stages.cost import machine_rate
from pcrl_cli.stages.results import Result

PACKAGES = ("torch", "torchio", "typer", "rich", "SimpleITK", "pandas", "h5py", "pydantic", "numpy", "safetensors")
LEAST_MEMORY, LEAST_DISK = 4e9, 10e9
TOLERANCE, GRADIENT_TOLERANCE = 2e-2, 5e-2
"""Relative errors allowed to a bf16 convolution and its weight gradient: 8 bits of mantissa give some 4e-3."""


class Check(BaseModel):
    name: str
    state: Literal["ok", "warning", "failed"]
    detail: str


class DoctorResult(Result):
    schema_name: ClassVar[str] = "pcrl.doctor/1"
    fit: bool
    checks: list[Check]
    facts: dict[str, Any]


def doctor(workspace: Path = Path()) -> DoctorResult:
    """Looks at versions, GPU, memory and disk, and runs a convolution in bf16 against float32 where training would."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    checks = [_torch(), _gpu(cuda), _convolution(device), _memory(), _disk(workspace), _packages()]
    facts = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": psutil.cpu_count(logical=True),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "conv3d GFLOP/s (float32)": round(machine_rate(device) / 1e9, 1),
    }
    return DoctorResult(fit=all(c.state != "failed" for c in checks), checks=checks, facts=facts)


def convolution_error(device: torch.device) -> float:
    """Largest error of a bf16 3D convolution, relative to float32's largest value, on this device."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 16, 16, 16, generator=generator).to(device)
    w = torch.randn(32, 32, 3, 3, 3, generator=generator).to(device) / 30
    exact = torch.nn.functional.conv3d(x, w, padding=1)
    with torch.autocast(device.type, torch.bfloat16):
        low = torch.nn.functional.conv3d(x, w, padding=1)
    return float((low.float() - exact).abs().max() / exact.abs().max())


def gradient_error(device: torch.device, tries: int = 8) -> float:
    """Largest error of a bf16 3D convolution's weight gradient at 2x2x1, the size of F_0, relative to float32's; inf if NaN.

    Some CPU builds read memory there that nobody wrote (docs/LOG.md, 2026-11-23), and not at every try.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 2, 2, 1, generator=generator).to(device)
    w = (torch.randn(64, 64, 3, 3, 3, generator=generator) / 40).to(device).requires_grad_()
    (exact,) = torch.autograd.grad(torch.nn.functional.conv3d(x, w, padding=1).square().mean(), w)
    worst = 0.0
    for _ in range(tries):
        with torch.autocast(device.type, torch.bfloat16):
            y = torch.nn.functional.conv3d(x, w, padding=1)
        (low,) = torch.autograd.grad(y.float().square().mean(), w)
        error = float((low - exact).abs().max() / exact.abs().max())
        worst = max(worst, error) if error == error else float("inf")
    return worst


def _torch() -> Check:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    good = (major, minor) >= (2, 11)
    return Check(
        name="torch",
        state="ok" if good else "failed",
        detail=f"{torch.__version__}" + ("" if good else "; 2.11 or newer is needed"),
    )


def _gpu(cuda: bool) -> Check:
    if not cuda:
        return Check(
            name="gpu",
            state="warning",
            detail="no CUDA GPU: fine for trying things out, months for the paper's settings",
        )
    free, total = torch.cuda.mem_get_info()
    return Check(
        name="gpu",
        state="ok",
        detail=f"{torch.cuda.get_device_name(0)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}",
    )


def _convolution(device: torch.device) -> Check:
    forward, gradient = convolution_error(device), gradient_error(device)
    good = forward < TOLERANCE and gradient < GRADIENT_TOLERANCE
    detail = f"relative error {forward:.1e}, of the weight gradient {gradient:.1e}, against float32 on {device.type}"
    if good:
        return Check(name="bf16 conv3d", state="ok", detail=detail)
    if device.type == "cpu" and forward < TOLERANCE:  # networks convolve such small maps in float32 there
        return Check(
            name="bf16 conv3d",
            state="warning",
            detail=f"{detail}: wrong, so maps of that size stay in float32 on this CPU",
        )
    return Check(
        name="bf16 conv3d", state="failed", detail=f"{detail}: train with --precision fp32, or change torch or cuDNN"
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    good = memory.available >= LEAST_MEMORY
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    return Check(
        name="memory",
        state="ok" if good else "warning",
        detail=detail + ("" if good else "; preparing a large scan needs 3 GB"),
    )


def _disk(folder: Path) -> Check:
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    good = free >= LEAST_DISK
    detail = f"{free / 1e9:.0f} GB free in {existing}"
    return Check(
        name="disk",
        state="ok" if good else "warning",
        detail=detail + ("" if good else "; LUNA16's cache needs about 11 GB"),
    )


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(name="packages", state="failed", detail=f"missing: {', '.join(missing)}; install pcrl again")
    return Check(name="packages", state="ok", detail=", ".join(found))
