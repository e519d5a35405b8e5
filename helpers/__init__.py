"""The library of the book *How Vision Transformers See*: one room for each thing that is measured."""

from helpers import _torchvision

__version__ = "0.2.0"

_torchvision.make_importable()
