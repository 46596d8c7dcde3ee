"""What a run computes on."""

from __future__ import annotations

import warnings

import torch

from medpfl.errors import ConfigurationError
from medpfl.report.console import make_console


def pick_device(name: object) -> torch.device:
    """Return the device that ``device=`` names; ``auto`` is CUDA where it works.

    Raises:
        ConfigurationError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        return _best_device()
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = str(name).partition(":")
    # isdecimal alone takes the digits of every script, and numbers without end.
    numbered = number.isascii() and number.isdecimal() and len(number) < 4
    if kind != "cuda" or not (numbered or str(name) == "cuda"):
        raise ConfigurationError(f"device={name}: choose auto, cpu, cuda or, of several, cuda:1")
    count, complaint = _cuda_devices()
    if count == 0:
        raise ConfigurationError(
            f"device={name}: this machine has no CUDA device that torch can use{_why(complaint)}. "
            "Use device=cpu, or install a driver and a CUDA build of torch."
        )
    if int(number or 0) >= count:
        raise ConfigurationError(
            f"device={name}: this machine has {count} CUDA devices, counted from 0. "
            f"Use cuda:{count - 1} or a lower number."
        )
    device = torch.device(str(name))
    fault = _fault_of(device)
    if fault:
        raise ConfigurationError(
            f"device={name}: this CUDA device does not work{_why(fault)}. "
            "Use device=cpu, or mend the driver."
        )
    return device


def _best_device() -> torch.device:
    """Return CUDA where it works, else the CPU; say so where there is CUDA that does not."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    count, fault = _cuda_devices()
    if count:
        fault = _fault_of(cuda)
        if not fault:
            return cuda
    if fault:
        words = f"device=auto: CUDA does not work on this machine{_why(fault)}; the CPU is used"
        make_console().print(f"\n  note: {words}", soft_wrap=True)
    return cpu


def _cuda_devices() -> tuple[int, str]:
    """Return how many CUDA devices torch sees, and what it complains of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        except (RuntimeError, AssertionError, OSError) as error:
            return 0, _first_line(error)
    return count, " ".join(_first_line(warning.message) for warning in told)


def _fault_of(device: torch.device) -> str:
    """Try a device; return why it cannot be used, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.zeros(1, device=device).add(1)
    except (RuntimeError, AssertionError, OSError) as error:
        return _first_line(error) or type(error).__name__
    return ""


def _first_line(error: object) -> str:
    return " ".join(str(error).split("\n")[0].split())


def _why(fault: str) -> str:
    return f" ({fault})" if fault else ""
