"""Models as ONNX: folders of graphs that need nothing but ONNX Runtime, written, checked and read again."""

META, WEIGHTS = "meta.json", "weights.bin"  # the files of an export folder, beside its graphs and tokenizer
FORMAT = 1
