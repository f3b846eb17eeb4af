"""The cache of encodings (docs/design.md, contract 7): what a frozen part of a model makes of an image or a caption.

Training never depends on it: what is not found, or is damaged, is encoded anew.
"""
