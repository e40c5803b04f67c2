"""Peak memory of a process or a GPU; knows nothing about what takes it."""

from __future__ import annotations

from pathlib import Path


def reset_peak(device: str) -> None:
    """Start measuring the peak anew, where the system can."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    try:
        # 5 resets VmHWM to what is resident now (proc(5), /proc/pid/clear_refs)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes(device: str) -> int:
    """Largest memory in use since `reset_peak`: allocated on a GPU, resident on a CPU; 0 where the system does not say."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def resident_bytes(device: str) -> int:
    """Memory in use now."""
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    return _status("VmRSS")


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
