"""What was measured beforehand: the tables, arrays and heat-maps of ``data/recorded``, for whoever draws them.

Reading needs no program that records. Every reader checks that table, sidecar and arrays belong together; ``where``
names another folder than ``data/recorded``, such as one that ``make record`` has written.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import Tensor

from helpers import results
from helpers.measures.cka_result import CKAResult


def recorded_table(name: str, where: str | Path | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A recorded table and its sidecar. Raises as ``results.read``."""
    return results.read(name, where or results.RECORDED)


def recorded_arrays(name: str, where: str | Path | None = None) -> dict[str, np.ndarray]:
    """The arrays of a recording. Raises as ``results.read``; ValueError if they are not those of its sidecar."""
    return load_file(results.arrays(name, where))


def recorded_cka(name: str, where: str | Path | None = None) -> tuple[CKAResult, dict[str, Any]]:
    """A recorded heat-map, with its errors and controls, and its sidecar. Raises as ``recorded_arrays``."""
    return CKAResult.load(results.arrays(name, where)), recorded_table(name, where)[1]


def recorded_fields(where: str | Path | None = None) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """The recorded receptive fields: table, maps (places, 56, 56) of mean 1 by model, sidecar.

    Raises as ``recorded_arrays``.
    """
    table, sidecar = recorded_table("receptive_fields", where)
    maps = recorded_arrays("receptive_fields", where)
    return table, {name: torch.from_numpy(of_model).float() for name, of_model in maps.items()}, sidecar
