"""Recordings of the shape of the loss of the zoo's networks: Hessian spectra, rays and planes, in a quarter hour.

    python -m helpers.recording.curvature --out data/recorded [vit resnet-16000 …]

Without names all networks are measured whose weights are stored. Three tables are made piece by piece, a piece for
each network: what is there already, measured in the same way on the same weights, is not measured again, so that an
interrupted run goes on where it was and a network trained later is added. The sidecar's ``pieces`` say of each what it
was made from. ``helpers.recorded`` reads the tables.

``torchrun --nproc-per-node 2 -m helpers.recording.curvature …`` lets several processes share the batches and the points
of each piece; the first of them writes.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import nn

from helpers import results
from helpers.measures import hessian, landscape, objective
from helpers.measures.distributed import gathered, joined
from helpers.networks import zoo
from helpers.networks.catalogue import ZOO, Card
from helpers.recording import store

VERSION = 1  # of the way of measuring: to be raised where that changes, so that all is measured again
TOLERANCE = 0.1  # of a residual, in eigenvalues; a value's own error is about its square
RADII = tuple(sign * radius for radius in (0.1, 0.25, 0.5, 1.0) for sign in (-1, 1))
RAYS = (0, 1, 2, 3, 4)
AXIS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
LOOKED_AT = 128  # training images on which a loss is taken along rays and over planes
TABLES = {
    "hessian": "Eigenvalues of largest magnitude of the Hessian of loss and penalty on batches of training images",
    "landscape_rays": "Loss and penalties along random rays from a network's weights, on training images",
    "landscape_planes": "Loss and penalties over a plane of two random directions, on training images",
}
UNITS = {
    "hessian": {"eigenvalue": "1", "residual": "1", "loss": "nats"},
    "landscape_rays": {"radius": "filter lengths", "loss": "nats", "penalty": "nats", "published_penalty": "nats"},
}
UNITS["landscape_planes"] = {
    "x": "filter lengths", "y": "filter lengths", **{key: "nats" for key in ("loss", "penalty", "published_penalty")}
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """A network of the zoo at one time: ``seen`` images, all of its recipe's (None), or untrained (−1)."""

    network: str
    seen: int | None = None

    @property
    def name(self) -> str:
        """Such as "vit", "resnet-16000" or "vit-untrained"."""
        return self.network + {None: "", -1: "-untrained"}.get(self.seen, f"-{self.seen}")

    @property
    def card(self) -> Card:
        return ZOO[self.network]

    def load(self) -> nn.Module:
        """The network. Raises as ``zoo.load`` and ``zoo.load_step``."""
        if self.seen is None:
            return zoo.load(self.network)
        return zoo.load(self.network, pretrained=False) if self.seen < 0 else zoo.load_step(self.network, self.seen)


ENDS = tuple(State(f"{network}{seed}") for network in ("vit", "resnet") for seed in ("", "-seed1", "-seed2"))
POOLED = (State("vit-gap"), State("vit-gap-seed1"))
SHORT = tuple(State(f"{network}{seed}") for network in ("vit-short", "resnet-short") for seed in ("", "-seed1"))
SCARCE = (State("vit-data10"),)
UNTRAINED = (State("vit", -1), State("resnet", -1))
EARLY = (State("vit", 16_000), State("resnet", 16_000))  # the kept steps nearest to the end of warm-up
# The small ViT with one thing changed, and networks with stages, all on one recipe: what claims ask for comes first.
_CHANGED = ("heads1", "heads2", "heads8", "head-width8", "head-width32", "patch4", "patch16", "strong")
_NETWORKS = ("vit-small", *(f"vit-small-{what}" for what in _CHANGED), "pit", "swin")
SMALL = tuple(State(f"{network}{seed}") for seed in ("", "-seed1") for network in _NETWORKS)
SMALL += tuple(State(network) for network in ("convnext", "convnext-seed1"))
WARM = tuple(State(f"{network}{seed}", 16_000) for seed in ("", "-seed1") for network in ("vit-small", "pit", "swin"))
SMALL_UNTRAINED = tuple(State(network, -1) for network in _NETWORKS if network != "vit-small-strong")
WINDOWED = tuple(State(f"vit-small-window{side}{seed}") for side in (3, 5) for seed in ("", "-seed1"))
LATER = tuple(State("vit", seen) for seen in (0, 64_000, 128_000)) + tuple(
    State("resnet", seen) for seen in (2_560, 6_400, 32_000, 64_000, 128_000)
)


@dataclass(frozen=True)
class Piece:
    """Rows of a table: what is measured of one network, with settings of ``spectra``, ``rays`` or ``planes``."""

    table: str
    state: State
    settings: tuple[tuple[str, int | str], ...]

    @property
    def key(self) -> str:
        return " ".join([self.state.name, *(f"{value}" for _, value in self.settings)])


def spectra(model: nn.Module, card: Card, batches: int, size: int, top: int) -> pd.DataFrame:
    """Hessian spectra on ``batches`` of ``size`` training images: as ``hessian.hessian_spectra`` gives them."""
    drawn = objective.training_batches(card, batches, size)
    return hessian.hessian_spectra(model, drawn, card.recipe.weight_decay, top, TOLERANCE, progress=card.name)


def rays(model: nn.Module, card: Card, per: str) -> pd.DataFrame:
    """The loss along rays: as ``landscape.rays`` gives it, with a column ``per``."""
    drawn = objective.training_batches(card, 1, LOOKED_AT)
    return landscape.rays(model, drawn, RADII, RAYS, card.recipe.weight_decay, per).assign(per=per)


def planes(model: nn.Module, card: Card, per: str) -> pd.DataFrame:
    """The loss over a plane: as ``landscape.plane`` gives it, with a column ``per``."""
    drawn = objective.training_batches(card, 1, LOOKED_AT)
    return landscape.plane(model, drawn, AXIS, (0, 1), card.recipe.weight_decay, per).assign(per=per)


MEASURES: dict[str, Callable[..., pd.DataFrame]] = {
    "hessian": spectra,
    "landscape_rays": rays,
    "landscape_planes": planes,
}


def _hessian(state: State, batches: int, size: int = 16, top: int = 5) -> Piece:
    return Piece("hessian", state, (("batches", batches), ("size", size), ("top", top)))


PIECES = (
    *(_hessian(state, 5) for state in (*EARLY, *ENDS, *POOLED, *SHORT, *SCARCE)),
    *(_hessian(state, 3) for state in (*UNTRAINED, *LATER)),
    *(_hessian(state, 5) for state in (*WARM, *SMALL)),
    *(_hessian(state, 3) for state in SMALL_UNTRAINED),
    *(_hessian(state, 5) for state in WINDOWED),
    *(Piece("landscape_rays", state, (("per", per),)) for per in landscape.FILTERS for state in ENDS),
    *(_hessian(state, 1, 128, 1) for state in (ENDS[0], ENDS[3])),
    *(Piece("landscape_planes", state, (("per", "output"),)) for state in (ENDS[0], ENDS[3])),
)


def record(piece: Piece, out: Path, model: nn.Module) -> bool:
    """Measure a piece and put its rows into its table; False where they are there already, from the same inputs.

    Raises ValueError for a table that is damaged.
    """
    settings = dict(piece.settings)
    made_from = _inputs(piece, model)
    table, pieces = pd.DataFrame(), {}
    if (out / f"{piece.table}.csv").exists():
        table, sidecar = results.read(piece.table, out)
        pieces = sidecar["pieces"]
    if gathered(pieces.get(piece.key, {}).get("inputs") == made_from)[0]:  # as the first process finds, which writes
        return False
    found = MEASURES[piece.table](model, piece.state.card, **settings)
    found.insert(0, "piece", piece.key)
    found.insert(1, "network", piece.state.name)
    kept = [table[table["piece"] != piece.key]] if len(table) else []
    table = pd.concat([*kept, found], ignore_index=True)
    code = results.code_version()
    pieces[piece.key] = {"inputs": made_from, "network": asdict(piece.state), "settings": settings, "code": code}
    networks = sorted({about["network"]["network"] for about in pieces.values()})
    command = "python -m helpers.recording.curvature --out data/recorded"
    about: dict[str, Any] = {"models": networks, "seed": 0, "where": out, "command": command, "pieces": pieces}
    results.write(piece.table, table, what=TABLES[piece.table], units=UNITS[piece.table], **about)
    return True


def _inputs(piece: Piece, model: nn.Module) -> str:
    """A sha256 of all that a piece depends on: weights, network, images, settings and the way of measuring."""
    card = piece.state.card
    strongly = ["strong"] if card.recipe.strong else []
    found = {
        "table": piece.table,
        "state": asdict(piece.state),
        "network": [card.family, card.architecture],
        "images": [card.recipe.distinct_images, card.recipe.augmented, repr(card.corpus), *strongly],
        "settings": [*piece.settings, card.recipe.weight_decay, TOLERANCE, RADII, RAYS, AXIS, LOOKED_AT],
        # the same draw differs in its last digits from processor to processor
        "weights": ["drawn", card.seed] if piece.state.seen == -1 else store.weights_hash(model),
        "version": VERSION,
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    states = {piece.state.name: piece.state for piece in PIECES}
    parser = argparse.ArgumentParser(description="Record the shape of the loss of the zoo's networks.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"all by default: {', '.join(states)}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to: data/recorded is the book's own")
    given = parser.parse_args(arguments)
    wanted, out = given.networks or list(states), given.out.expanduser().resolve()
    if unknown := [name for name in wanted if name not in states]:
        parser.error(f"not among the networks that are recorded: {', '.join(unknown)}; these are {', '.join(states)}")
    torch.set_num_threads(1)
    with joined() as (rank, _), TemporaryDirectory() as aside, redirect_stdout(None if rank else sys.stdout):
        out = Path(aside) if rank else out  # what others than the first write goes away
        _record_all(wanted, out)


def _record_all(wanted: Sequence[str], out: Path) -> None:
    """The pieces of the networks that are wanted, one after the other."""
    with store.alone(out):
        for piece in PIECES:
            if piece.state.name not in wanted:
                continue
            try:
                model = piece.state.load()
            except (FileNotFoundError, ValueError) as error:
                print(f"{piece.table}: left out {piece.key}: {error}", flush=True)
                continue
            done = "recorded" if record(piece, out, model) else "there already"
            print(f"{piece.table}: {piece.key} {done}", flush=True)


if __name__ == "__main__":
    main()
