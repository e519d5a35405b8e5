"""The claims of the papers that a report can be held against: those about one trained ViT, or a ViT beside a ResNet.

Statistics and criteria are those of ``book/claims.yml``, verdicts are made as there (``claims.judgement``), and nothing
is written to the book's own records. The model takes the part of the ViT or of the ResNet, whichever it is like: a
network with attention maps over one grid is taken for a ViT, one of stages without attention for a ResNet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from helpers.claims.judgement import Verdict, judge
from helpers.claims.registry import Claim, load
from helpers.claims.verdicts import estimated, numbers
from helpers.measures import attention, receptive_field, skip_ratios, structure
from helpers.measures.structure import places
from helpers.reporting.stored import Report

FIELD_PHOTOGRAPHS = 256  # that claim R12 asks for


@dataclass(frozen=True)
class Asked:
    """A claim, and how a report answers it.

    ``statistic``: a function of the tables of ``recording``, of the ViT and, for a ``pair``, of the ResNet; or of a
    matrix of CKA and the places of both. ``jumps``: whether its interval is a bootstrap's.
    """

    claim: str
    recording: str
    statistic: Callable[..., Any]
    figure: str
    pair: bool = False
    jumps: bool = False


def _lowest(table: pd.DataFrame, blocks: list[int]) -> list[float]:
    return [attention.smallest(table, blocks), attention.largest(table, blocks)]


def _highest_blocks(table: pd.DataFrame) -> float:
    top = table["block"].max()
    return attention.smallest(table, [top - 1, top])


def _radii(vit: pd.DataFrame, resnet: pd.DataFrame) -> np.ndarray:
    until = min(vit["depth"].max(), resnet["depth"].max())
    early = receptive_field.early_radius(vit) - receptive_field.early_radius(resnet)
    return np.array([early, receptive_field.largest_step(vit, until) - receptive_field.largest_step(resnet, until)])


def _kept(vit: pd.DataFrame, resnet: pd.DataFrame) -> list[float]:
    late = vit.loc[(vit["kind"] == "resid_mid") & (vit["depth"] >= 2 / 3 - 1e-9), "name"].tolist()
    inner = resnet.loc[(resnet["kind"] == "block") & ~resnet["name"].str.endswith(".0"), "name"].tolist()
    return [
        receptive_field.kept_by_skip(vit, "attn", late),
        receptive_field.kept_by_skip(resnet, "branch", inner),
    ]


def _skips(vit: pd.DataFrame, resnet: pd.DataFrame) -> float:
    return skip_ratios.median_ratio(vit) - skip_ratios.median_ratio(resnet)


def _last(rows: pd.DataFrame) -> pd.Series:
    """The last block of a network in a table of localisation."""
    return rows.loc[rows[rows["model"] != "pixels"]["depth"].idxmax()]


def _located(vit: pd.DataFrame, resnet: pd.DataFrame) -> list[float]:
    own, other = _last(vit), _last(resnet)
    return [own["hit_rate"] / own["chance"], own["hit_rate"] - other["hit_rate"]]


def _rim(rows: pd.DataFrame) -> list[float]:
    raw = rows.loc[rows["model"] == "pixels"].iloc[0]
    return [_last(rows)["border_confusion"], _last(rows)["relative_confusion"] - raw["relative_confusion"]]


ASKED = (
    Asked("R1", "similarity", structure.uniformity, "similarity", pair=True),
    Asked("R2", "similarity", lambda m, v, r: structure.ends(m, v) - structure.ends(m, r), "similarity", pair=True),
    Asked(
        "R3",
        "similarity",
        lambda m, v, r: structure.contrast(m, r, r) - structure.contrast(m, v, r),
        "similarity",
        pair=True,
    ),
    Asked("R4", "similarity", structure.half_way, "similarity", pair=True, jumps=True),
    Asked("R5", "similarity", structure.upper_half, "similarity", pair=True, jumps=True),
    Asked("R6", "similarity", structure.last_third, "similarity", pair=True),
    Asked("R7", "attention_distance", partial(_lowest, blocks=[0, 1]), "attention"),
    Asked("R8", "attention_distance", _highest_blocks, "attention"),
    Asked("C3", "attention_distance", partial(_lowest, blocks=[0]), "attention"),
    Asked("C4", "attention_distance", attention.growth, "attention", jumps=True),
    Asked("R12", "receptive_fields", _radii, "fields", pair=True),
    Asked("R13", "receptive_fields", _kept, "fields", pair=True),
    Asked("R14", "skip_ratios", _skips, "skips", pair=True),
    Asked("R15", "skip_ratios", skip_ratios.halves, "skips", jumps=True),
    Asked("R16", "skip_ratios", skip_ratios.late_mlp, "skips"),
    Asked("R18", "token_patches", _located, "localisation", pair=True),
    Asked("R19", "token_patches", _rim, "localisation"),
)


def parts(report: Report) -> tuple[str | None, str | None]:
    """Which network of a report takes the part of the ViT, and which that of the ResNet; None where none can.

    The model comes first, then the networks beside it in their order.
    """
    names = [report.name, *report.beside()]
    vit = [name for name in names if _is_vit(report, name)]
    staged = [name for name in names if not _is_vit(report, name) and _has_stages(report, name)]
    return (vit[0] if vit else None), (staged[0] if staged else None)


def verdicts(report: Report) -> tuple[list[Verdict], dict[str, str]]:
    """The verdicts on the claims that apply, and of each other one of ``ASKED`` the reason why it does not."""
    claims, found, not_asked = load(), [], {}
    track = "scenes" if report.on_scenes else "imagenet"
    for asked in ASKED:
        claim = claims[asked.claim]
        try:
            found.append(_answer(report, asked, claim, track))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            not_asked[asked.claim] = f"{claim.sentence} {_sentence(error)}"
    return found, not_asked


def _answer(report: Report, asked: Asked, claim: Claim, track: str) -> Verdict:
    """The verdict on a claim. Raises ValueError, with the reason, where it does not apply."""
    vit, resnet = parts(report)
    if vit is None:
        raise ValueError("Neither the model nor a network beside it has attention maps over one grid of patches")
    if asked.pair and resnet is None:
        raise ValueError("No network of stages without attention is among those measured")
    names = [vit, resnet] if asked.pair and resnet else [vit]
    if report.name not in names:
        raise ValueError(f"It is about a ViT, which {report.name} is not")
    if reasons := [reason for name in names if (reason := report.reason(asked.recording, name))]:
        raise ValueError(report.reason(asked.recording, report.name) or reasons[0])
    n = min(measure["images"] for measure in report.plan["measures"] if measure["recording"] == asked.recording)
    if asked.claim == "R12" and track == "imagenet" and n < FIELD_PHOTOGRAPHS:
        raise ValueError(f"It asks for {FIELD_PHOTOGRAPHS} photographs, and receptive fields were taken of {n}")
    entry: dict[str, Any] = {"figure": asked.figure, "n": n, "units": "images", "note": ""}
    entry["parts"] = _numbers(report, asked, claim, names)
    twins = [f"{name}, untrained" for name in names]
    if asked.recording == "similarity" or all(
        twin in report.networks and not report.reason(asked.recording, twin) for twin in twins
    ):
        try:
            label = "untrained twins" if asked.pair else "untrained twin"
            entry["controls"] = {label: _numbers(report, asked, claim, twins)}
        except (ValueError, KeyError):
            entry["note"] = "Of the untrained twins this number does not exist."
    return judge(claim, track, entry)


def _numbers(report: Report, asked: Asked, claim: Claim, names: list[str]) -> dict[str, dict[str, float]]:
    """Value and 95 % interval of each part of a claim, of the networks with these names."""
    if asked.recording == "similarity":
        result = report.cka()
        assert result is not None
        own = [places(result, name) for name in names]
        return _parts(claim, [result], lambda matrix: asked.statistic(matrix, *own), asked.jumps)
    tables = [report.table(asked.recording, name) for name in names]
    return _parts(claim, tables, asked.statistic, asked.jumps)


def _parts(claim: Claim, measured: Any, statistic: Callable[..., Any], jumps: bool) -> dict[str, dict[str, float]]:
    found = estimated(statistic, measured, jumps)
    if not np.isfinite(np.asarray(found["value"], dtype=float)).all():
        raise ValueError("Its number does not exist here")
    return numbers(claim, found)


def _is_vit(report: Report, name: str) -> bool:
    table = report.table("attention_distance", name)
    return table is not None and not table["windowed"].any() and table["uniform"].nunique() == 1


def _has_stages(report: Report, name: str) -> bool:
    if report.reason("similarity", name) or "has no attention" not in report.reason("attention_distance", name):
        return False
    result = report.cka()
    if result is None or name not in result.models:
        return False
    stage = places(result, name).stage
    return bool((stage >= 0).any()) and len(set(stage[stage >= 0])) > 1


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:1].upper() + text[1:].rstrip(".") + "."
