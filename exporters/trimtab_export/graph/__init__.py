"""The ONNX graph of an encoder as it is: converted, its head on it, its padding out, its inner states."""
