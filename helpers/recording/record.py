"""Measurements on ImageNet-trained models and photographs (``make record``).

    make record WEIGHTS=folder IMAGES=folder MODELS="a ViT, a ResNet, any others"

``WEIGHTS`` is a folder with ``cards.json`` and ``weights/`` (or nothing, for timm's hub), ``IMAGES`` any folder of
photographs, ``MODELS`` the names of models, by default those of ``MODELS`` below, ``DEVICE`` cuda, mps or cpu (by
default the best there is; several processes take a GPU each). Each recording is a file of numbers
with a sidecar that says what it was made from; no weight and no image is stored. They are written to ``measured/``, or
to the folder that ``OUT`` names; the book's own measurements are replaced by ``OUT=data/recorded`` alone.

What is needed is asked for before anything is measured. An interrupted run goes on where it was: a recording that is
there, made from the same inputs, is not made again. ``helpers.recorded`` reads recordings.

``torchrun --nproc-per-node 2 -m helpers.recording.record …`` lets several processes share the batches of each recording
(``measures.distributed``); the first of them writes.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from helpers import results
from helpers.files import ROOT
from helpers.images.sources import ImageSet, folder_images, match_classes
from helpers.measures.distributed import LostProcess, alone, gathered, joined, own_device
from helpers.networks import local_weights, zoo
from helpers.networks.devices import device
from helpers.networks.inputs import normalise
from helpers.recording import attention as record_attention
from helpers.recording import embeddings as record_embeddings
from helpers.recording import frequency as record_frequency
from helpers.recording import layers as record_layers
from helpers.recording import similarity as record_similarity
from helpers.recording import spatial as record_spatial
from helpers.recording import store as recording
from helpers.uncertainty import GROUPS

MODELS = ("vit_tiny_patch16_224", "resnet50", "resnet152")
OUT = ROOT / "measured"
FREE = 200e6  # bytes that must be free: more than all recordings of a few networks take
OTHERS = "Name what to make without them in --only, or give others"
FEW = 4  # images on which every measure is tried before the first one is made


@dataclass(frozen=True)
class Recording:
    """How to make a recording.

    ``measure(networks, images, where, **notes)`` writes it. ``attempt(networks, few)`` puts a few images (4, 3, H, W)
    through what it does, so that networks it makes no sense for are refused at once. ``least``: images it needs, and
    ``why``. ``untrained``: of networks with random weights.
    """

    measure: Callable[..., None]
    attempt: Callable[[dict[str, nn.Module], Tensor], Any]
    least: int
    why: str
    untrained: bool = False


TWO_BATCHES = "two batches of 4, for an error"
RECORDINGS = {
    "similarity": Recording(record_similarity.similarity, record_similarity.attempt, 8, TWO_BATCHES),
    "twins": Recording(record_similarity.twins, record_similarity.attempt, 8, TWO_BATCHES, untrained=True),
    "tokens": Recording(record_similarity.tokens, record_similarity.attempt_tokens, 8, TWO_BATCHES),
    "batch_sizes": Recording(record_similarity.batch_sizes, record_similarity.attempt, 64, "two batches of 8 × 4"),
    "attention_distance": Recording(
        record_attention.heads, record_attention.attempt_heads, GROUPS, f"{GROUPS} groups for the jackknife"
    ),
    "attention_distance_without_corners": Recording(
        record_attention.heads_without_corners,
        record_attention.attempt_corners,
        GROUPS,
        f"{GROUPS} groups for the jackknife",
    ),
    "attention_distance_untrained": Recording(
        record_attention.heads_twins,
        record_attention.attempt_heads,
        GROUPS,
        f"{GROUPS} groups for the jackknife",
        untrained=True,
    ),
    "head_subsets": Recording(
        record_attention.subsets, record_attention.attempt_subsets, 4 * GROUPS, f"{GROUPS} jackknife groups of 4"
    ),
    "head_subsets_without_corners": Recording(
        record_attention.subsets_without_corners,
        record_attention.attempt_subsets,
        4 * GROUPS,
        f"{GROUPS} jackknife groups of 4",
    ),
    "head_subsets_untrained": Recording(
        record_attention.subsets_twins,
        record_attention.attempt_subsets,
        4 * GROUPS,
        f"{GROUPS} jackknife groups of 4",
        untrained=True,
    ),
    "rollout": Recording(record_attention.rollout, record_attention.attempt_rollout, 2, "a deviation between images"),
    "attended": Recording(record_attention.attended, record_attention.attempt_attended, 1, "an image"),
    "patch_filters": Recording(record_embeddings.patch_filters, record_embeddings.attempt_filters, 1, "an image"),
    "patch_filters_untrained": Recording(
        record_embeddings.patch_filters_untrained, record_embeddings.attempt_filters, 1, "an image", untrained=True
    ),
    "position_cosines": Recording(record_embeddings.positions, record_embeddings.attempt_positions, 1, "an image"),
    "class_attention": Recording(record_embeddings.class_token, record_embeddings.attempt_class, 1, "an image"),
    "patch_shuffle": Recording(
        record_embeddings.shuffled, record_embeddings.attempt_shuffled, GROUPS, f"{GROUPS} groups for the jackknife"
    ),
    "receptive_fields": Recording(
        record_layers.receptive_fields, record_layers.attempt_fields, GROUPS, f"{GROUPS} groups for the jackknife"
    ),
    "receptive_fields_without_corners": Recording(
        record_attention.fields_without_corners,
        record_attention.attempt_fields,
        GROUPS,
        f"{GROUPS} groups for the jackknife",
    ),
    "receptive_fields_many": Recording(
        record_layers.many_fields, record_layers.attempt_fields, GROUPS, f"{GROUPS} groups for the jackknife"
    ),
    "skip_ratios": Recording(
        record_layers.skips, record_layers.attempt_skips, GROUPS, f"{GROUPS} groups for the jackknife"
    ),
    "skip_ratios_untrained": Recording(
        record_layers.skips_twins,
        record_layers.attempt_skips,
        GROUPS,
        f"{GROUPS} groups for the jackknife",
        untrained=True,
    ),
    "token_patches": Recording(record_spatial.localisation, record_spatial.attempt_localisation, 8, TWO_BATCHES),
    "token_patches_clipped": Recording(
        record_spatial.localisation_clipped, record_spatial.attempt_localisation, 8, TWO_BATCHES
    ),
    "token_patches_untrained": Recording(
        record_spatial.localisation_twins, record_spatial.attempt_localisation, 8, TWO_BATCHES, untrained=True
    ),
    "spectra": Recording(
        record_frequency.maps, record_frequency.attempt_maps, GROUPS, f"{GROUPS} groups for the jackknife"
    ),
    "spectra_untrained": Recording(
        record_frequency.maps_untrained,
        record_frequency.attempt_maps,
        GROUPS,
        f"{GROUPS} groups for the jackknife",
        untrained=True,
    ),
    "frequency_noise": Recording(record_frequency.noise, record_frequency.attempt_noise, 2, "a deviation over images"),
    "probes": Recording(record_spatial.probes, record_spatial.attempt_probes, 2, "a mean over images"),
}


def main() -> None:
    """Measure what the command line asks for. Ends with one line and status 2 where the inputs do not do."""
    given = _arguments()
    out = given.out.expanduser().resolve()
    only = given.only or [name for name in RECORDINGS if name != "probes" or given.train_images]
    measuring = False
    try:
        with joined() as (rank, _), TemporaryDirectory() as aside, redirect_stdout(None if rank else sys.stdout):
            on = own_device(device(given.device))
            images, probed, networks, notes = _prepare(given, only, out, on)
            out, measuring = Path(aside) if rank else out, True  # what others than the first write goes away
            with recording.alone(out):
                recording.resume(out)
                for name in only:
                    shown = probed if name == "probes" else {"images": images}
                    _record(name, networks[RECORDINGS[name].untrained], shown, out, notes)
    except (ValueError, OSError, LostProcess) as error:
        stays = "; what was measured before stays, and the same command goes on from there"
        _stop(f"{error}{stays if measuring else ''}")


def _prepare(
    given: argparse.Namespace, only: list[str], out: Path, on: torch.device
) -> tuple[ImageSet, dict[str, ImageSet], dict[bool, dict[str, nn.Module]], dict[str, Any]]:
    """What is asked for before anything is measured, with the networks on the device ``on``.

    Returns:
        the images, those for probes, the networks (untrained or not → name → network), notes for the sidecars.

    Raises:
        ValueError, OSError: the inputs do not do.
    """
    images, probed = _images(given, only)
    _refuse(
        _complaint("these cannot be made:", [*_too_few(only, images, probed), *_shared(probed)], OTHERS),
        _complaint("nothing can be written:", _unwritable(out), "Make room there, or name another folder in --out"),
    )
    networks = {
        untrained: {model: _load(model, not untrained, given.weights, on) for model in given.models}
        for untrained in sorted({RECORDINGS[name].untrained for name in only})
    }
    few = torch.stack([images[i % len(images)][0] for i in range(FEW)])
    for network in next(iter(networks.values())).values():
        normalise(network, few)
    with alone():  # what is refused is refused before processes wait for each other
        _refuse(_complaint("these make no sense for these networks:", _attempts(only, networks, few), OTHERS))
    cards = {name: local_weights.local_notes(name, given.weights) for name in given.models}
    notes = {"models": cards, "device": str(on), "recorded": date.today().isoformat(), "code": results.code_version()}
    return images, probed, networks, notes


def _record(
    name: str,
    networks: dict[str, nn.Module],
    shown: dict[str, ImageSet],
    out: Path,
    notes: dict[str, Any],
) -> None:
    """Make one recording, unless it is there already, made from the same inputs.

    Args:
        name: of the recording, as in ``RECORDINGS``.
        networks: the networks to measure, by name.
        shown: "images", the images they are measured on; of probes also "train", those to learn from.
        out: the folder of recordings.
        notes: what the sidecars say of the run: models, device, date and code.

    Raises:
        ValueError, OSError: it cannot be made; the message begins with its name.
    """
    pinned = {what: data.describe() for what, data in shown.items()}
    key = recording.inputs(name, networks, cards=notes["models"], **pinned)
    if gathered(recording.is_done(name, key, out))[0]:  # as the first process finds, for it alone writes
        print(f"{name}: there already, made from the same inputs")
        return

    def measure(where: Path) -> None:
        RECORDINGS[name].measure(networks, where=where, recording=name, inputs=key, **shown, **notes)

    try:
        recording.make(name, out, measure)
    except (ValueError, OSError) as error:
        raise type(error)(f"{name}: {error}") from error
    print(f"{name}: in {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure ImageNet-trained models on photographs.")
    parser.add_argument("--weights", help="folder with cards.json and weights/; timm's hub without it")
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--train-images", help="folder of photographs of the same classes, that probes learn from")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="a ViT first, then a ResNet, then any others")
    parser.add_argument("--only", nargs="+", choices=RECORDINGS, help="recordings to make (all that can be made)")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--limit", type=int, help="number of images (all by default)")
    parser.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (measured/)")
    given = parser.parse_args()
    if len(given.models) < 2 and not given.only:
        _stop("recordings compare models: name a ViT and a ResNet at least, or choose what to record in --only")
    if twice := [name for name, count in Counter(given.models).items() if count > 1]:
        _stop(f"named twice: {', '.join(twice)}; name each model once")
    if given.only and "probes" in given.only and not given.train_images:
        _stop("probes learn from other images than they are scored on: name their folder in --train-images")
    return given


def _load(name: str, pretrained: bool, weights: str | None, on: torch.device) -> nn.Module:
    """A network on a device, whose maps lie in memory with their channels last, which is faster."""
    network: Any = zoo.load(name, pretrained, weights)  # the types that torch declares know of no memory_format
    return network.to(on, memory_format=torch.channels_last)


def _images(given: argparse.Namespace, only: list[str]) -> tuple[ImageSet, dict[str, ImageSet]]:
    """The images to measure on; and what probes are shown, where they are wanted: "images" and "train".

    The labels of these go by the names of the sub-folders. Raises ValueError, naming them, for sub-folders of the
    images that those to learn from lack; the other way round it says so, since a probe may know more than it is asked.
    """
    images = folder_images(given.images, given.size, given.limit)
    if "probes" not in only:
        return images, {}
    train = folder_images(given.train_images, given.size, given.limit)
    if unasked := sorted(set(train.classes) - set(images.classes)):
        print(f"probes: learnt, but not among the images to score on: {', '.join(unasked)}")
    return images, {"images": match_classes(images, to=train, subset=True), "train": train}


def _too_few(only: list[str], images: ImageSet, probed: dict[str, ImageSet]) -> Iterator[str]:
    """What lacks images, and how many it needs."""
    for name in only:
        if len(images) < (least := RECORDINGS[name].least):
            yield f"{name} needs {least} images ({RECORDINGS[name].why}), and there are {len(images)}"
        if name == "probes" and (lack := record_spatial.lacking(probed["train"])):
            yield f"{name}: {lack}"


def _shared(probed: dict[str, ImageSet]) -> Iterator[str]:
    """What probes would be scored on although they have learnt from it: pictures of the same bytes."""
    if not probed:
        return
    images, learnt = probed["images"], set(probed["train"].digests)
    if known := [i for i, digest in enumerate(images.digests) if digest in learnt]:
        example = f"{images.classes[images.labels[known[0]]]}/{images.names[known[0]]}"
        yield (
            f"probes: {len(known)} of the {len(images)} pictures to score on are among those to learn from, such as "
            f"{example}; give other pictures in --train-images"
        )


def _unwritable(out: Path) -> Iterator[str]:
    """What keeps recordings from being written to a folder."""
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        yield f"{there} cannot be written to"
    elif (free := shutil.disk_usage(there).free) < FREE:
        yield f"{there} has {free / 1e6:.0f} MB left, and {FREE / 1e6:.0f} MB must be free"


def _attempts(only: list[str], networks: dict[bool, dict[str, nn.Module]], few: Tensor) -> Iterator[str]:
    """What fails on a few images, and why."""
    for name in only:
        try:
            RECORDINGS[name].attempt(networks[RECORDINGS[name].untrained], few)
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            yield f"{name}: {error}"


def _complaint(what: str, problems: Iterable[str], remedy: str) -> str:
    """What is wrong, all problems, and what to do; "" if there are none."""
    listed = "; ".join(problems)
    return f"{what} {listed}. {remedy}" if listed else ""


def _refuse(*complaints: str) -> None:
    """Raise ValueError with all complaints in one message, if there are any."""
    if wrong := [complaint for complaint in complaints if complaint]:
        raise ValueError(". ".join(wrong))


def _stop(message: str) -> NoReturn:
    """End with one line that says what is wrong."""
    print(f"record: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
