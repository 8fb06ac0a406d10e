"""The Trimtab server. A request passes through its folders in this order:

fronts -> tasks (as policies plan) -> engine/admission -> inputs -> engine/queue -> engine/fleet ->
engine/runners -> outputs -> fronts
"""

import os

# ONNX Runtime reports its use to its makers unless it is told not to before it is imported: a server opens
# no connection that nobody asked for. Its own switch in Python comes too late, and leaves a device id behind.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# gRPC's core writes a line for each call with a header that it cannot read, and each handshake that fails:
# strangers would fill the disk. Whoever looks for such a fault sets it to ERROR.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
