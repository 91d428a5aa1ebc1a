"""Models as ONNX: folders of graphs that need nothing but ONNX Runtime, written, checked and read again."""
