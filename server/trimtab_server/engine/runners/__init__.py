"""Graphs in ONNX Runtime, in this process or in another one."""
