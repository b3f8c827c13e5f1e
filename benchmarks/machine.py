"""What the numbers of a run depend on: processor, cores, versions, device, date and commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from experiments.harness import store

__all__ = ["describe"]

PEERS = ("jaxlib", "neural-tangents", "kymatio")


def describe() -> dict[str, Any]:
    """The run's conditions; loads JAX's backend, so call it when nothing else needs the device."""
    described = store.environment()
    packages = described["packages"] | {name: _version(name) for name in PEERS}
    kept = {name: described[name] for name in ("python", "device", "commit")}
    now = datetime.datetime.now(datetime.UTC)
    return kept | {
        "packages": packages,
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "date": now.strftime("%Y-%m-%d"),
        "uncommitted": _uncommitted(),
    }


def _processor() -> str:
    try:
        names = [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return (
        names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _uncommitted() -> bool:
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "status",
        "--porcelain",
        "--untracked-files=no",
    ]
    try:
        return bool(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return False
