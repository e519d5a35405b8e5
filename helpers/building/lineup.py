"""What the paper's networks take at their own size: weights, operations, activations, time and memory of a heat-map.

    python -m helpers.building.lineup              # counts all, measures what is not yet measured: data/lineup.csv
    python -m helpers.building.lineup --again      # measures all again: some minutes on one core

Operations and activations are counted on torch's ``meta`` device, where a forward pass computes shapes and no numbers.
Time and memory are those of one pass of ``cka_heatmap`` over all places, with random weights and noise for images, on
one thread, each network in a process of its own. Time is that of the processor and not of the clock, so that other work
on the machine counts little. ``tests/building/test_lineup.py`` counts again, by closed forms.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import results
from helpers.files import ROOT
from helpers.markup import code
from helpers.measures.heatmap import cka_heatmap
from helpers.networks.taps import capture, taps_for

FOLDER = ROOT / "data"
IMAGES, REPEATS, BATCH = 10_240, 20, 1024  # of each heat-map of Raghu et al. (2021)
MEASURED = ["images", "batch", "seconds", "memory"]


@dataclass(frozen=True)
class Network:
    """A network of the paper, or what stands for it: timm's name, images to measure it on, images a batch."""

    timm: str
    images: int = 8
    batch: int = 8


LINEUP = {
    "ViT-B/32": Network("vit_base_patch32_224.orig_in21k", 64, 32),
    "ViT-B/16": Network("vit_base_patch16_224.orig_in21k", 32, 16),
    "ViT-L/16": Network("vit_large_patch16_224.orig_in21k", 256, 32),
    "ViT-H/14": Network("vit_huge_patch14_224.orig_in21k"),
    "ResNet-50x1 (BiT)": Network("resnetv2_50x1_bit.goog_in21k", 32, 16),
    "ResNet-152x2 (BiT)": Network("resnetv2_152x2_bit.goog_in21k"),
    "Mixer-B/16": Network("mixer_b16_224.goog_in21k", 32, 16),
    "Mixer-L/16": Network("mixer_l16_224.goog_in21k", 16, 16),
    "ViT-B/16, MAE": Network("vit_base_patch16_224.mae", 0),
    "ViT-B/16, DINO": Network("vit_base_patch16_224.dino", 0),
    "ViT-B/16, supervised on ImageNet": Network("vit_base_patch16_224.augreg_in1k", 0),
}
_ALL = tuple(LINEUP)[:6]  # the paper's ViTs and ResNets
_CKA, _FIELD = IMAGES * REPEATS, 0.8 * 32  # 0.8: of a forward pass, what a backward pass to a middle place takes here
FIGURES: dict[str, dict[str, float]] = {  # network → images that it is shown, or passes that take as long
    "1 and 2": dict.fromkeys(("ViT-L/16", "ViT-H/14", "ResNet-50x1 (BiT)", "ResNet-152x2 (BiT)"), _CKA),
    "3 and 4": {"ViT-L/16": 2 * 5_000, "ViT-H/14": 5_000, "ViT-B/32": 2 * 5_000},
    "5": {"ViT-L/16": 2 * IMAGES / 24, "ViT-H/14": IMAGES / 32, "ResNet-50x1 (BiT)": 2 * IMAGES},
    "6": {"ViT-B/32": _FIELD * 5 * 768, "ResNet-50x1 (BiT)": _FIELD * (64 + 256 + 512 + 1024 + 2048)},
    "7": {"ViT-B/16": 5_000, "ResNet-50x1 (BiT)": 5_000, "ViT-B/32": 5_000},
    "9 and 10": {"ViT-B/32": IMAGES, "ViT-L/16": IMAGES, "ViT-H/14": IMAGES, "ResNet-50x1 (BiT)": IMAGES},
    "11 and 13": dict.fromkeys((*_ALL[:1], *_ALL[2:]), 100_000),
    "G.1 and G.2": {"ViT-B/16": 2 * _CKA, "ViT-B/32": _CKA, "ViT-L/16": _CKA, "ViT-H/14": _CKA},
    "H.2": {"Mixer-L/16": _CKA, "ViT-L/16": _CKA, "ResNet-50x1 (BiT)": _CKA},
}


def count(network: nn.Module, side: int) -> dict[str, float]:
    """What one image takes of a network on the ``meta`` device, by shapes alone; ``side``: of the image, px.

    Returns ``parameters``; ``flops`` of a forward pass, two for each multiplication and addition of a matrix product or
    convolution; ``places``, at which a heat-map of all of them reads, and ``tapped``, the bytes of their activations in
    single precision; ``largest``, the bytes of what goes into and comes out of the one module where this is most.
    """
    image = torch.empty(1, 3, side, side, device="meta")
    places = taps_for(network)
    held: list[int] = []

    def hold(module: nn.Module, args: tuple, output: Tensor) -> None:
        held.append(4 * (output.numel() + sum(x.numel() for x in args if isinstance(x, Tensor))))

    parts = [part for part in network.modules() if not list(part.children())]
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(image)
        with capture(network, places, lambda x: 4 * x.numel()) as out:
            handles = [part.register_forward_hook(hold) for part in parts]
            network(image)
    for handle in handles:
        handle.remove()
    found = {"parameters": sum(p.numel() for p in network.parameters()), "flops": counter.get_total_flops()}
    return found | {"places": len(places), "tapped": sum(out.values()), "largest": max(held)}


def counted(name: str) -> dict[str, float]:
    """``count`` of a network of ``LINEUP``, and the ``side`` of its images."""
    with torch.device("meta"):
        network: Any = timm.create_model(LINEUP[name].timm).eval()
    side = network.pretrained_cfg["input_size"][1]
    return {"side": side, **count(network, side)}


def measure(name: str) -> dict[str, float]:
    """One pass of ``cka_heatmap`` over all places of a network with random weights, on noise, on one thread.

    Returns ``images``, ``batch``; ``seconds`` of the processor an image; ``memory``, the most bytes that the process
    took, in which it should be alone.
    """
    about = LINEUP[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network: Any = timm.create_model(about.timm).eval()
    side = network.pretrained_cfg["input_size"][1]
    images = torch.randint(0, 256, (about.images, 3, side, side), dtype=torch.uint8)
    start = time.process_time()
    cka_heatmap({name: network}, images.split(about.batch))
    found = {"images": about.images, "batch": about.batch, "seconds": (time.process_time() - start) / about.images}
    return found | {"memory": _most_memory()}


def _most_memory() -> float:
    """The most bytes that this process has taken so far; on Linux and macOS."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def make(again: bool = False, where: Path = FOLDER) -> None:
    """Count all networks, measure those that are not measured yet (or all), and write the table."""
    version = results.code_version()  # before the table is written, which git would call a change
    known = stored(where).set_index("network") if not again and (where / "lineup.csv").exists() else pd.DataFrame()
    rows = {}
    for name, about in LINEUP.items():
        rows[name] = {"network": name, "timm": about.timm, **counted(name), **dict.fromkeys(MEASURED, 0)}
        if name in known.index and known.loc[name, "images"] == about.images:
            rows[name] |= known.loc[name, MEASURED].to_dict()
    _write(rows, where, version)
    for name, about in LINEUP.items():
        if rows[name]["images"] == about.images:
            continue
        print(f"{name}: measuring {about.images} images", flush=True)
        command = [sys.executable, "-m", "helpers.building.lineup", "--one", name]
        rows[name] |= json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
        _write(rows, where, version)


def _write(rows: dict[str, dict[str, Any]], where: Path, version: dict[str, Any]) -> None:
    """Keep the table; it is written after each measurement, so that an interrupted run goes on from there."""
    table = pd.DataFrame(rows.values())
    whole = ["side", "parameters", "flops", "places", "tapped", "largest", "images", "batch", "memory"]
    table = table.astype(dict.fromkeys(whole, "int64") | {"seconds": "float64"})
    results.write(
        "lineup",
        table,
        what="What the paper's networks take: counted for one image, and measured in one CKA heat-map of all places",
        units={"seconds": "s of the processor an image"},
        models={name: {"source": "timm", "name": row["timm"], "weights": "random"} for name, row in rows.items()},
        where=where,
        machine=f"one thread of {_processor()}",
        command="python -m helpers.building.lineup",
        code=version,
    )


def _processor() -> str:
    """What the processor says it is."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def stored(where: Path = FOLDER) -> pd.DataFrame:
    """The table as it is kept; 0 ``images`` where nothing was measured, since another network has the same shape."""
    return results.read("lineup", where)[0]


def like(table: pd.DataFrame, row: Any) -> Any:
    """The row of the network that was measured for ``row``: itself, or the first with as many places and FLOPs.

    Raises ValueError where there is none.
    """
    measured = table[table["images"] > 0]
    near = (measured["flops"] / row.flops - 1).abs()
    alike = measured[(measured["places"] == row.places) & (near < 0.01)]
    if row.images:
        alike = measured[measured["network"] == row.network]
    if alike.empty:
        raise ValueError(f"{row.network} was not measured, nor a network like it")
    return next(alike.itertuples())


def at_scale(row: Any) -> tuple[float, float]:
    """Estimates of what a heat-map takes at the paper's scale from a measured row: seconds, and bytes at the least.

    Seconds: those of an image, times images and repeats. Bytes: weights, the largest input and output of a module for a
    batch, and two times a row of n² numbers for each place, by itself and stacked.
    """
    rows = 2 * 4 * row.places * BATCH**2
    return row.seconds * IMAGES * REPEATS, 4 * row.parameters + row.largest * BATCH + rows


def text(where: Path = FOLDER) -> str:
    """The table as it stands on the page, in MyST markdown, with what it was measured on."""
    table, sidecar = results.read("lineup", where)
    head = ("Network", "timm", "Parameters (M)", "GFLOPs an image", "Places", "Activations (MB an image)",
            "Network", "Measured on images (a batch)", "s an image", "GB", "Core-hours at the paper's scale",
            "GB at a batch of 1,024, at least")  # fmt: skip
    lines = [head, (":--", ":--", *["--:"] * 4, ":--", *["--:"] * 5)]
    for row in table.itertuples():
        own = like(table, row)
        seconds, memory = at_scale(own)
        on = f"{own.images} ({own.batch})" if row.images else f"as {own.network}"
        lines.append((
            row.network, code(row.timm, in_table=True), f"{row.parameters / 1e6:.0f}", f"{row.flops / 1e9:.1f}",
            f"{row.places}", f"{row.tapped / 1e6:.0f}", row.network, on, f"{own.seconds:.2f}",
            f"{own.memory / 1e9:.1f}", f"{seconds / 3600:,.0f}", f"{memory / 1e9:.0f}",
        ))  # fmt: skip
    halves = (slice(0, 6), slice(6, None))  # what is counted, and what is measured and estimated
    tables = ("\n".join(f"| {' | '.join(line[part])} |" for line in lines) for part in halves)
    body = "\n\n".join(f":::{{div}} named\n\n{table}\n\n:::" for table in tables)
    takes = {row.network: like(table, row) for row in table.itertuples()}
    figures = ["| Figure | Core-hours | Operations of forward passes (10¹⁵) |", "|:--|--:|--:|"]
    for figure, passes in FIGURES.items():
        hours = sum(images * takes[name].seconds for name, images in passes.items()) / 3600
        flops = sum(images * takes[name].flops for name, images in passes.items()) / 1e15
        figures.append(f"| {figure} | {hours:,.1f} | {flops:,.1f} |")
    versions = sidecar["versions"]
    told = f"""
        Counted: parameters (without a head where timm's weights have none), operations of a forward pass, places that a
        heat-map of all of them reads, and their activations in single precision. Measured, with random weights, on
        {sidecar["machine"]}, torch {versions["torch"]}, timm {versions["timm"]}: seconds of the processor an image, in
        one heat-map of all places, and the most memory that the process took. Estimated: {REPEATS} passes over
        {IMAGES:,} images, at the time that one took; and what a batch of {BATCH:,} takes at the least, which is the
        weights, what goes into and comes out of the largest module, and two rows of Gram matrices for each place."""
    rough = """
        What each figure takes by that, as the next sections measure it, is an estimate as well: the images that each
        network is shown, times what one takes in a heat-map of all places, which is more than a forward pass takes. The
        last column is in 10¹⁵ operations: as many seconds, at the least, on a GPU that does so many in one."""
    told, rough = (
        "\n".join(textwrap.wrap(" ".join(part.split()), 118, break_on_hyphens=False)) for part in (told, rough)
    )
    return "\n\n".join([body, told, rough, "\n".join(figures)]) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Count and measure what the paper's networks take.")
    parser.add_argument("--again", action="store_true", help="measure all again")
    parser.add_argument("--one", choices=LINEUP, help="measure one, in this process, and print what was found")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
    else:
        make(given.again)


if __name__ == "__main__":
    main()
