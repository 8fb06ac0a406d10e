"""The device that is measured: what it is, whether ONNX Runtime can use it, which rows were made on it."""

import argparse
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from bench import processes
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.onnx import PROVIDERS

Row: TypeAlias = dict[str, Any]

MIB = 1 << 20
KINDS = ("cuda", "cpu")
# What nvidia-smi is asked, by our names.
ASKED = {
    "name": "name",
    "memory_mib": "memory.total",
    "used_mib": "memory.used",
    "driver": "driver_version",
    "compute": "compute_cap",
    "power_limit_w": "power.limit",
}


@dataclass(frozen=True, slots=True)
class Device:
    """A CPU or a GPU; `kind` is as in the server's configuration."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def provider(self) -> str:
        """The execution provider that must run its graphs."""
        return PROVIDERS[self.kind][0]

    def settings(self, options: Mapping[str, str]) -> list[Any]:
        """The providers of a session, as the server asks for them, with further options for the first."""
        if self.kind == "cpu":
            return [self.provider]
        first, *others = PROVIDERS[self.kind]
        own = {"device_id": str(self.index)}
        return [(first, {**own, **options}), *((other, own) for other in others)]

    def memory_mib(self) -> float | None:
        """The memory in use: of the GPU, by whatever process; of this process on a CPU. None: unknown."""
        if self.kind == "cpu":
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / MIB
        used = asked(self.index).get("used_mib", "")
        return float(used) if used.replace(".", "", 1).isdecimal() else None


CPU = Device("cpu")


class FellBackError(RuntimeError):
    """A session runs elsewhere than it was asked to."""


def parse(name: str) -> Device:
    """A device by its name: cpu, cuda, cuda:1. ArgumentTypeError if it is none."""
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and (kind == "cpu" or not index.isdecimal())):
        raise argparse.ArgumentTypeError(f"{name!r} is no device: give cuda, cuda:1 or cpu")
    return Device(kind, int(index or 0))


def proved(session: Any, device: Device) -> str:
    """The provider that runs a session, by what it got. FellBackError if it is not the device's."""
    got = session.get_providers()[0]
    if got != device.provider:
        raise FellBackError(f"ONNX Runtime fell back from {device.provider} to {got}")
    return str(got)


def believed(row: Row, device: Device) -> Row:
    """The row, if it shows that its figures were made on this device, or has none; else one that says so.

    Rows of sessions say which provider ran them (see `proved`), rows of servers which device was busy.
    """
    shown = {str(device), device.provider}
    if device.kind == "cuda":
        shown.add(PROVIDERS["tensorrt"][0])
    if "reason" in row or row.get("on") in shown:
        return row
    where = row.get("on") or "nothing that it names"
    return {"row": row["row"], "reason": f"it ran on {where}, and not on {device}"}


def refusal(device: Device) -> str:
    """Why ONNX Runtime cannot use a device; "" if it has just computed something there."""
    available = ort.get_available_providers()
    if device.provider not in available:
        return (
            f"ONNX Runtime {ort.__version__} has {', '.join(available)} here, and not {device.provider}: "
            "pip uninstall onnxruntime, then pip install 'trimtab[gpu]'"
        )
    ones = np.ones((2, 2), np.float32)
    try:
        session = ort.InferenceSession(_product(), providers=device.settings({}), enable_fallback=0)
        proved(session, device)
        (result,) = session.run(None, {"x": ones})
    except FellBackError as error:
        return f"{error}, for the reason that it gives above: check the driver, CUDA and cuDNN"
    except Exception as error:
        return f"a first session on {device} failed: {runtime.told(error)}"
    if not np.array_equal(result, ones @ ones):
        return f"{device} multiplies ones, and gets {result.tolist()}"
    return ""


def _product() -> bytes:
    """A graph of one matrix product."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "product", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def seen(device: Device) -> Row:
    """What is measured, for the record: the device, and the ONNX Runtime that uses it."""
    return {
        "device": str(device),
        **({} if device.kind == "cpu" else asked(device.index)),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "host": processes.machine(),
        "onnxruntime": {
            "package": ort.package_name,
            "version": ort.__version__,
            "cuda": ort.cuda_version,
            "providers": ort.get_available_providers(),
            "devices": sorted({each.ep_name for each in ort.get_ep_devices()}),
        },
    }


def asked(index: int) -> dict[str, str]:
    """What nvidia-smi says of a GPU, by our names; empty without it."""
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    which = visible[index] if index < len(visible) else str(index)
    command = ["nvidia-smi", "-i", which, f"--query-gpu={','.join(ASKED.values())}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    first = done.stdout.partition("\n")[0]
    return dict(zip(ASKED, (cell.strip() for cell in first.split(",")), strict=False))
