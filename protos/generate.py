"""Generate the Python stubs of every .proto under protos/ into a folder: `generate.py client`."""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent


def generate(out: Path) -> None:
    """Write *_pb2.py, *_pb2_grpc.py and their .pyi below `out`, mirroring the folders of protos/."""
    files = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    # protoc finds the mypy plug-ins on PATH: those beside the interpreter that runs this.
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    kinds = ["python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out"]
    code = protoc.main(["protoc", f"-I{PROTOS}", *plugins, *(f"--{kind}={out}" for kind in kinds), *files])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
