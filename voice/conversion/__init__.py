"""FunASR's models rewritten as ONNX graphs, once, so that the running service needs neither torch nor FunASR."""
