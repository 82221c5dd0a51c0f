"""`limner doctor`: what is installed, what this machine has, and what it can run."""

from __future__ import annotations

import os
import platform
import re
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.output import print_json

if TYPE_CHECKING:
    from limner.registry import ModelSpec

HELP = """Say what is installed here, which weights and licences, and what this machine can run.

Fetches nothing and changes nothing. Put its output into a bug report: [bold]limner doctor --json[/bold]
"""

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "onnxruntime")
VARIABLES = ("LIMNER_CACHE", "LIMNER_ACCEPT_LICENSE", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("doctor", help=HELP)(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    from limner import __version__

    devices = find_devices()
    report = {
        "limner": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": find_extras(),
        "devices": devices,
        "memory": memory(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "models": [verdict(spec, devices) for spec in _models()],
        "weights": find_weights(),
    }
    if as_json:
        print_json(report)
    else:
        _tell(report)


def find_devices() -> list[dict[str, Any]]:
    """What torch can compute on: name, kind, memory in bytes; the CPU last."""
    import torch

    found: list[dict[str, Any]] = []
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        free, _ = torch.cuda.mem_get_info(i)
        found.append({"kind": "cuda", "name": facts.name, "memory": facts.total_memory, "free": free})
    if torch.backends.mps.is_available():
        free = memory()["available"] * 3 // 4  # it shares main memory with everything else
        found.append({"kind": "mps", "name": "Apple GPU", "memory": memory()["total"], "free": free})
    cpu = {"kind": "cpu", "name": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return [*found, {**cpu, "capability": torch.backends.cpu.get_cpu_capability()}]


def memory() -> dict[str, int]:
    """Bytes of main memory: total and available; 0 where the system does not say."""
    from limner.pipelines.fitting import main_memory

    return main_memory()


def find_extras() -> dict[str, bool]:
    """Limner's optional parts: whether everything that each needs is installed."""
    from importlib.metadata import PackageNotFoundError, requires

    needs: dict[str, list[str]] = {}
    try:
        for line in requires("limner") or []:
            found = re.match(r"([A-Za-z0-9_.-]+).*;\s*extra == ['\"](\w+)['\"]", line)
            if found:
                needs.setdefault(found[2], []).append(found[1])
    except PackageNotFoundError:
        return {}
    return {extra: all(_version(name) for name in names) for extra, names in needs.items()}


def find_weights() -> list[dict[str, Any]]:
    """Every file of weights that Limner knows: licence, size, where it is cached, whether its licence is accepted."""
    from limner.errors import LicenseNotAccepted
    from limner.registry import weight_files

    rows = []
    for file in weight_files():
        try:
            file.demand_license(False)
            accepted = True
        except LicenseNotAccepted:
            accepted = False
        rows.append(
            {
                "name": file.name, "license": file.license, "commercial": file.commercial, "accepted": accepted,
                "size": file.size, "path": str(file.cached() or "") or None, "variable": file.variable,
            }
        )  # fmt: skip
    return rows


def verdict(spec: ModelSpec, devices: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether this machine can paint with a model, where, in which memory mode (empty: none), and if not, why.

    The mode is the one that `--memory auto` takes when it finds as much memory free.
    """
    from limner.cli.models import facts, size_text
    from limner.pipelines.catalogue import SIZES
    from limner.pipelines.fitting import Sizes, fits, needed

    row, here, mode = facts(spec), memory()["total"], ""
    sizes = SIZES.get(spec.name) or Sizes(0, row["size"] // 2, 0, 128**2)
    gpu = max((d for d in devices if d["kind"] != "cpu"), key=lambda d: d["memory"], default=None)
    runs, why = False, ""
    if spec.shipped and not row["ready"]:
        why = f"its weights are missing from the {spec.shipped}"
    elif gpu and (mode := fits(gpu["kind"], gpu.get("free", gpu["memory"]), sizes, width=2)):
        runs, why = True, "on the GPU" + ("" if mode == "plain" else f" with --memory {mode}")
        if mode == "sequential":
            why += ", slowly; --memory nf4 is faster, with rounded weights"
    elif mode := fits("cpu", here, sizes, width=4):
        runs, why = True, "on the CPU" if spec.shipped else "on the CPU, in many minutes a picture"
    else:
        least, ram = (size_text(needed(m, sizes, w)) for m, w in (("sequential", 2), ("sliced", 4)))
        why = f"it needs a GPU with {least} free, or {ram} of main memory"
    if runs and spec.recipe and not row["ready"]:
        why += f"; it must be trained first: {spec.recipe}"
    elif runs and not row["ready"]:
        free = shutil.disk_usage(os.path.expanduser("~")).free
        why += f"; its weights must be fetched first ({size_text(row['size'])}, {size_text(free)} of disk free)"
    return {
        "name": spec.name, "runs": runs, "why": why, "memory": mode, "license": spec.license,
        "state": row["state"],
    }  # fmt: skip


def _models() -> list[ModelSpec]:
    """All models; everything that registers weights is imported on the way."""
    import limner.faces.yunet
    import limner.pipelines.catalogue  # noqa: F401
    from limner.registry import models

    return list(models())


def _tell(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from limner.cli.models import size_text

    console = Console()
    packages = ", ".join(f"{k} {v or 'missing'}" for k, v in report["packages"].items())
    console.print(f"Limner {report['limner']}, Python {report['python']}, {report['system']}", highlight=False)
    console.print(packages, highlight=False)
    for device in report["devices"]:
        what = size_text(device["memory"]) if "memory" in device else f"{device['cores']} cores, {device['capability']}"
        console.print(f"{device['kind']}: {device['name']}, {what}", highlight=False)
    ram = report["memory"]
    console.print(f"memory: {size_text(ram['available'])} of {size_text(ram['total'])} available", highlight=False)
    console.print("extras: " + ", ".join(f"{k} {'yes' if v else 'no'}" for k, v in report["extras"].items()))
    for name, value in report["environment"].items():
        console.print(f"{name}={value}", highlight=False)

    table = Table("model", "runs here", "how", "--memory", "licence", title="Models", title_justify="left")
    table.columns[0].no_wrap = True
    for m in report["models"]:
        table.add_row(m["name"], "yes" if m["runs"] else "no", m["why"], m["memory"], m["license"])
    console.print(table)
    table = Table("weights", "size", "licence", "commercial", "where", title="Weights", title_justify="left")
    for w in report["weights"]:
        use = "yes" if w["commercial"] else "no, accepted" if w["accepted"] else "no, to be accepted"
        table.add_row(w["name"], size_text(w["size"]), w["license"], use, w["path"] or "not on this machine")
    console.print(table)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
