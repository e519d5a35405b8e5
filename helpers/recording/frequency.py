"""Recordings of feature maps over frequency and depth, and of noise in bands of frequency (Park & Kim 2022).

``helpers.recording.record`` makes those on photographs with the others (``make record``). Noise on the book's own
scenes needs tens of thousands of forward passes, too many for a build. It is recorded by

    python -m helpers.recording.frequency --out data/recorded

of all networks that ``SCENES`` names and the zoo has.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from safetensors.numpy import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn
from tqdm import tqdm

from helpers import files, results
from helpers.files import ROOT
from helpers.images import scenes
from helpers.images.sources import ImageSet, batches, scene_images
from helpers.measures.distributed import Share, gathered, joined
from helpers.measures.feature_variance import FeatureVariance, moments
from helpers.measures.fourier import LEAST, Spectra, amplitudes, shuffled_pixels
from helpers.measures.frequency_noise import STRENGTHS, UnderNoise, answers_under_noise
from helpers.measures.stream_maps import stream_sums
from helpers.networks import zoo
from helpers.networks.inputs import normalise
from helpers.recording import store as recording
from helpers.uncertainty import GROUPS

MAP_IMAGES = 96  # in as many batches as the jackknife has groups; blocks are the units, and not images
NOISE_IMAGES = 500  # photographs
NOISE_SCENES = 128
BATCH = 50
TRUE = "ILSVRC2012_val"  # photographs so named were in no training set of ImageNet
SCENES = ("vit", "vit-seed1", "vit-seed2", "resnet", "resnet-seed1", "resnet-seed2")
WITHOUT = ("vit", "resnet")  # measured on scenes without sensor noise as well


def attempt_maps(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Maps of the first two networks on a few images (4, 3, H, W). Raises ValueError for networks without any."""
    for network in list(networks.values())[:2]:
        _both(network, [few[:1]], 1)


def attempt_noise(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Noise on an image for each network with a classifier. Raises ValueError where there is none."""
    _classifiers(networks, few)


def maps(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Spectra and variance of the feature maps of the first two networks (Figures 2a, 8 and 9).

    Of the photographs as they are, and as a control of the same with the pixels of each shuffled.
    """
    _write_maps("", networks, images, where, {"as they are": lambda x: x, "shuffled pixels": shuffled_pixels}, notes)


def maps_untrained(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same of untrained networks, and of the photographs as they are."""
    _write_maps("_untrained", networks, images, where, {"as they are": lambda x: x}, notes)


def noise(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """What networks with a classifier answer to photographs with noise in one band (Figure 2b).

    Only to photographs that were in no training set of ImageNet, where the folder holds any. What is right is the
    class that a folder names by its WordNet id, or else the answer without noise. Computed in bfloat16 with weights in
    single precision; what share of the answers without noise is that of single precision, the sidecar says.
    """
    chosen = [i for i, name in enumerate(images.names) if name.startswith(TRUE)] or list(range(len(images)))
    chosen = chosen[:NOISE_IMAGES]
    labels = _classes(images)
    pictures = torch.stack([images[i][0] for i in chosen])
    truth = None if labels is None else torch.tensor([labels[images.labels[i]] for i in chosen])
    found, agree = {}, {}
    for name, network in _classifiers(networks, pictures[:1]).items():
        stream: list = list(pictures.split(BATCH))
        if truth is not None:
            stream = list(zip(stream, truth.split(BATCH), strict=True))
        with torch.autocast(next(network.parameters()).device.type, dtype=torch.bfloat16):
            found[name] = answers_under_noise(network, tqdm(stream, desc=f"noise, {name}", unit="batch"))
        agree[name] = float((_answers(network, pictures) == found[name].clean).double().mean())
    about: dict[str, Any] = {
        "images": {**images.describe(), "of_these": len(chosen), "true_validation": _all_true(images, chosen)}
    }
    about |= {
        "precision": "bfloat16",
        "agree_with_float32": agree,
        "scored_by": "own answers" if truth is None else "labels",
    }
    _write_noise("frequency_noise", "Photographs", found, where, **about, **notes)


def noise_on_scenes(where: Path, networks: Iterable[str] = SCENES, count: int = NOISE_SCENES, **notes: Any) -> None:
    """What the zoo's networks answer to test scenes with noise in one band, and some also without sensor noise."""
    found: dict[str, UnderNoise] = {}
    names = [name for name in networks if zoo.is_stored(name)]
    sets = {"scenes": scene_images(count), "without sensor noise": noiseless_scenes(count)}
    for name in names:
        network = zoo.load(name)
        for kind, images in sets.items():
            if kind == "scenes" or name in WITHOUT:
                stream = tqdm(batches(images, BATCH), desc=f"noise, {name}, {kind}", unit="batch")
                found[f"{name}/{kind}"] = answers_under_noise(network, stream)
    about = {"images": sets["scenes"].describe(), "models": names, "scored_by": "labels"}
    _write_noise("frequency_noise_scenes", "Scenes", found, where, **about, **notes)


def noiseless_scenes(count: int, split: str = "test", corpus: scenes.Corpus | None = None) -> ImageSet:
    """As ``scene_images``, before sensor noise is put on them."""
    own, indices = corpus or scenes.Corpus(), scenes.split(split, count)
    noisy = scene_images(count, split, own)

    def get(position: int) -> tuple[Tensor, int]:
        return scenes.stages(own, indices[position])["occluders"], noisy[position][1]

    about = {key: value for key, value in noisy.describe().items() if key != "count"}
    return ImageSet(count, get, {**about, "source": f"{about['source']}, without sensor noise"})


def _both(network: nn.Module, loader: Iterable, groups: int) -> tuple[Spectra, FeatureVariance]:
    """Spectra and variances of a network in one pass over the images."""
    places, sums, images = stream_sums(network, loader, lambda x: amplitudes(x) | moments(x), groups, LEAST)
    spectra = Spectra(places, [of["log"] for of in sums], [of["power"] for of in sums], images)
    return spectra, FeatureVariance(places, [of["variance"] for of in sums], [of["square"] for of in sums], images)


def _write_maps(
    suffix: str,
    networks: dict[str, nn.Module],
    images: ImageSet,
    where: Path,
    kinds: dict[str, Callable[[Iterable], Iterable]],
    notes: dict[str, Any],
) -> None:
    """Tables of both measures by place, of each kind of images, and the curves over frequency."""
    images = images.first(MAP_IMAGES)
    tables: dict[str, list[pd.DataFrame]] = {"spectra": [], "spectra_curves": [], "feature_variance": []}
    for name, network in list(networks.items())[:2]:
        for kind, changed in kinds.items():
            loader = tqdm(batches(images, max(1, len(images) // GROUPS)), desc=f"maps, {name}, {kind}", unit="batch")
            spectra, variance = _both(network, changed(loader), GROUPS)
            about = {"model": name, "images": kind}
            tables["spectra"].append(spectra.table().assign(**about))
            tables["feature_variance"].append(variance.table().assign(**about))
            curves = [
                spectra.curve(place.tap.name).assign(place=place.tap.name, **about)
                for place, log in zip(spectra.places, spectra.logs, strict=True)
                if log.shape[1] == log.shape[2]
            ]
            tables["spectra_curves"] += curves
    what = {
        "spectra": "Log amplitudes and shares of power of feature maps by place, by group of images left out",
        "spectra_curves": "Relative log amplitude of feature maps over frequency, along the diagonal",
        "feature_variance": "Variance of feature maps over positions by place, by group of images left out",
    }
    made: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "seed": 0, "where": where}
    for name, parts in tables.items():
        if parts:
            table = pd.concat(parts, ignore_index=True)
            units = dict.fromkeys(table.select_dtypes("float"), "1") | {
                column: "π rad a position" for column in ("frequency", "top_frequency") if column in table
            }
            results.write(f"{name}{suffix}", table, what=what[name], units=units, **made, **notes)


def _write_noise(name: str, what: str, found: dict[str, UnderNoise], where: Path, **about: Any) -> None:
    """A table of losses by network, strength and band, and the answers themselves as arrays."""
    file = where / f"{name}.safetensors"
    with files.replacing(file) as (part,):
        save_file({key: of for label, one in found.items() for key, of in one.arrays(label).items()}, part)
    table = pd.concat([one.table().assign(network=label) for label, one in found.items()], ignore_index=True)
    units = {"strength": "range of a pixel", "low": "π", "high": "π", "accuracy": "share", "lost": "points"}
    results.write(
        name,
        table,
        what=f"{what} with noise of one root mean square in one band: accuracy, and what of it is lost",
        units={**units, "error": "points"},
        strengths=list(STRENGTHS),
        arrays=files.sha256(file),
        seed=0,
        where=where,
        **about,
    )


@torch.inference_mode()
def _classifiers(networks: dict[str, nn.Module], few: Tensor) -> dict[str, nn.Module]:
    """The networks that give scores of classes. Raises ValueError, with the last one's reason, where none does."""
    found, reason = {}, "there are no networks"
    for name, network in networks.items():
        try:
            answers_under_noise(network, [few[:1]], [0.1], bands=1)
        except ValueError as error:
            reason = str(error)
        else:
            found[name] = network
    if not found:
        raise ValueError(reason)
    return found


@torch.inference_mode()
def _answers(network: nn.Module, pictures: Tensor) -> Tensor:
    """A network's answers (n,) to pictures without noise, in single precision."""
    share = Share()
    found = {at: [network(normalise(network, part)).argmax(1).cpu()] for at, part in share.dealt(pictures.split(BATCH))}
    return torch.cat(share.in_order(found))


def _classes(images: ImageSet) -> list[int] | None:
    """The number in ImageNet-1k of each class of a set whose folders are named by WordNet ids; None for other names."""
    known = {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    names = [name.rpartition("/")[2] for name in images.classes]
    return [known[name] for name in names] if names and set(names) <= set(known) else None


def _all_true(images: ImageSet, chosen: list[int]) -> bool:
    return bool(images.names) and all(images.names[i].startswith(TRUE) for i in chosen)


def main() -> None:
    """Record the noise on scenes, unless it is there already, made from the same networks and code."""
    parser = argparse.ArgumentParser(
        description="Measure the zoo's networks on scenes with noise in bands of frequency."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "measured", help="folder to write to (measured/)")
    out = parser.parse_args().out.expanduser().resolve()
    name, stored = "frequency_noise_scenes", [network for network in SCENES if zoo.is_stored(network)]
    key = recording.inputs(name, {network: zoo.load(network) for network in stored}, scenes=NOISE_SCENES)
    with joined() as (rank, _), TemporaryDirectory() as aside, redirect_stdout(None if rank else sys.stdout):
        out = Path(aside) if rank else out  # what others than the first write goes away
        with recording.alone(out):
            recording.resume(out)
            if gathered(recording.is_done(name, key, out))[0]:
                print(f"{name}: there already, made from the same inputs")
                return
            notes: dict[str, Any] = {"recording": name, "inputs": key, "code": results.code_version()}
            recording.make(name, out, lambda where: noise_on_scenes(where, **notes))
        print(f"{name}: in {out}")


if __name__ == "__main__":
    main()
