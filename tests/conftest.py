import os

from train import extension

# DeepSpeed's extension is compiled once for all tests, where runs have it too.
os.environ["TORCH_EXTENSIONS_DIR"] = str(extension.folder())
