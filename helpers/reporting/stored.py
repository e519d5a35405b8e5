"""A report as it lies on the disk: its plan, and the tables that were measured, for whoever draws them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from helpers import recorded, results
from helpers.measures.cka_result import CKAResult
from helpers.measures.result import ABOUT_THE_FILE, Result

TOGETHER = "together"  # the folder of what is measured on all networks at once
TABLES = {  # that are kept of all networks as one ``Result`` → the recording they are of
    **{name: name for name in ("attention_distance", "receptive_fields", "skip_ratios", "token_patches", "probes")},
    "spectra": "spectra",
    "feature_variance": "spectra",
}
OF_PARTS = (*ABOUT_THE_FILE, "recording", "inputs", "tables", "arrays")  # what is said of one network's files alone


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

    def result(self, name: str) -> Result | None:
        """One of ``TABLES``, of all networks that were measured, the model first; None where the model was not.

        Networks are told apart by the column ``model``; ``side`` is that of their images, in px. The patches' own
        pixels, a control of localisation, are those of the model's images.
        """
        recording = TABLES[name]
        tables: list[pd.DataFrame] = []
        sidecars: dict[str, dict[str, Any]] = {}
        for network, about in self.networks.items():
            if self.reason(recording, network):
                if network == self.name:
                    return None
                continue
            table, sidecars[network] = results.read(name, self.folder / about["folder"])
            if network != self.name:
                table = table[table["model"] != "pixels"]
            tables.append(table.assign(side=int(about["card"]["images"].split()[0])))
        own = sidecars[self.name]
        provenance = {key: value for key, value in own.items() if key not in OF_PARTS}
        provenance["models"] = {key: about for one in sidecars.values() for key, about in one["models"].items()}
        provenance["parts"] = {network: one["sha256"] for network, one in sidecars.items()}
        units = {**own["units"], "side": "px"}
        return Result(name, pd.concat(tables, ignore_index=True), own["what"], units, provenance)

    def keep_results(self) -> None:
        """Write each of ``TABLES`` to the report's folder, where ``Result.load`` finds it, unless it is there."""
        for name in TABLES:
            made = self.result(name)
            if made is None:  # though an earlier run may have had it
                for ending in (".json", ".csv"):
                    (self.folder / f"{name}{ending}").unlink(missing_ok=True)
                continue
            try:
                there = Result.load(self.folder, name).provenance.get("parts") == made.provenance["parts"]
            except (OSError, ValueError):
                there = False
            if not there:
                made.save(self.folder)

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
