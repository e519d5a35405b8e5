"""A report as it lies on the disk: its plan, and the tables that were measured, for whoever draws them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from helpers import recorded, results
from helpers.measures.cka_result import CKAResult

TOGETHER = "together"  # the folder of what is measured on all networks at once


class Report:
    """The report in a folder. Raises FileNotFoundError where there is none."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "plan.json").exists():
            raise FileNotFoundError(f"no report in {self.folder}: `make report MODEL=…` makes one")
        self.plan: dict[str, Any] = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        self.networks: dict[str, dict[str, Any]] = {one["name"]: one for one in self.plan["networks"]}

    @property
    def name(self) -> str:
        """The model's."""
        return self.plan["networks"][0]["name"]

    @property
    def images(self) -> dict[str, Any]:
        """What the model's images are, as ``ImageSet.describe`` says."""
        return self.plan["networks"][0]["images"]

    @property
    def on_scenes(self) -> bool:
        """Whether it was measured on scenes, and not on photographs."""
        return self.images["source"].startswith("scenes")

    def beside(self) -> list[str]:
        """The networks that the model stands beside, trained."""
        return [one["name"] for one in self.plan["networks"] if one["role"] == "reference"]

    def reason(self, recording: str, network: str) -> str:
        """Why a measure was not made of a network; "" if it was."""
        for measure in self.plan["measures"]:
            alone = measure["folder"] != TOGETHER
            if measure["recording"] == recording and (not alone or measure["networks"] == [network]):
                if not measure["reason"] and network not in measure["networks"]:
                    return "its layers could not be read"
                return measure["reason"]
        return "it was not asked for"

    def table(self, recording: str, network: str | None = None, file: str | None = None) -> pd.DataFrame | None:
        """A measured table of a network, by default the model; None where there is none.

        ``file``: the table's name, where the recording has others beside the one that is called as it is.
        """
        network = network or self.name
        folder = self.networks[network]["folder"]
        if self.reason(recording, network):
            return None
        return results.read(file or recording, self.folder / folder)[0]

    def cka(self) -> CKAResult | None:
        """CKA of all networks; None where it was not measured."""
        if self.reason("similarity", self.name):
            return None
        return recorded.recorded_cka("similarity", self.folder / TOGETHER)[0]

    def fields(self, network: str | None = None) -> tuple[pd.DataFrame, Tensor] | None:
        """Receptive fields of a network: their table, and their maps (places, 56, 56) of mean 1."""
        network = network or self.name
        if self.reason("receptive_fields", network):
            return None
        table, maps, _ = recorded.recorded_fields(self.folder / self.networks[network]["folder"])
        return table, maps[network]
