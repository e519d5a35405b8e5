"""What a report will measure: which measures apply to which network, what each lacks, and what it will take.

The measures are those of ``helpers.recording``, with the same tables and sidecars. Each is tried on four images first,
so that one that makes no sense for a network is told before anything is measured, with the reason.
"""

import math
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.measures.attention_maps import attention_maps
from helpers.measures.distributed import alone
from helpers.networks.inputs import normalise
from helpers.networks.places import BRANCH_OUTPUTS, STREAM
from helpers.networks.taps import evaluating, taps_for
from helpers.recording import attention, frequency, layers, similarity, spatial
from helpers.recording.record import FEW, RECORDINGS
from helpers.recording.store import batch_size
from helpers.reporting.stored import TOGETHER
from helpers.reporting.subjects import Subject, halves

TIMED = 8  # images on which a forward pass is timed
ALONE = "the model has no such measurement that it could stand beside"
MISFITS = (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError, IndexError, KeyError)


@dataclass(frozen=True)
class Measure:
    """A measure of a report: a recording, what it is called, forward passes an image it costs, images at most.

    ``tried``: images on which its trial does all that is done on an image in earnest, so that its time tells too; 0
    where a trial does less.
    """

    recording: str
    title: str
    passes: float
    most: int
    tried: int = 0
    roles: tuple[str, ...] = ("model", "model twin", "reference")


MEASURES = (
    Measure("attention_distance", "attention distance and prefix mass", 1.6, attention.HEAD_IMAGES, FEW),
    Measure("skip_ratios", "skip ratios", 1.5, layers.SKIP_IMAGES, FEW),
    Measure("token_patches", "localisation", 2.5, spatial.IMAGES),
    Measure("receptive_fields", "receptive fields", 0, layers.FIELD_IMAGES),
    Measure("probes", "probes over depth", 2.5, 10**9),
    Measure("spectra", "frequencies and variance of feature maps", 10, frequency.MAP_IMAGES, 1),
)
SIMILARITY = Measure("similarity", "CKA within and between networks", 2.0, 10**9)


@dataclass(frozen=True)
class Job:
    """One recording of one network, or of all together: what it takes, or why it is not made (``reason``)."""

    measure: Measure
    subjects: tuple[Subject, ...]
    images: int
    seconds: float = 0.0
    memory: float = 0.0  # bytes
    reason: str = ""

    @property
    def folder(self) -> Path:
        """Where its tables go, within the report's folder."""
        return Path(TOGETHER if len(self.subjects) > 1 else self.subjects[0].folder)

    @property
    def title(self) -> str:
        """What it measures, of which network."""
        return self.measure.title if len(self.subjects) > 1 else f"{self.measure.title} of {self.subjects[0].name}"


@dataclass(frozen=True)
class Cost:
    """What a forward pass takes: seconds an image; bytes of the weights, and, an image, of the largest output of a
    module, of all of them, and of the largest attention map."""

    seconds: float
    weights: float
    largest: float
    total: float
    attention: float = 0.0


def jobs(subjects: list[Subject]) -> list[Job]:
    """All that a report asks, in the order in which it is measured; of what does not apply, the reason."""
    with alone():  # a measure that is refused is refused before processes wait for each other
        return _jobs(subjects)


def _jobs(subjects: list[Subject]) -> list[Job]:
    costs = {}
    for subject in subjects:
        try:
            costs[subject.name] = cost(subject)
        except MISFITS as error:
            raise ValueError(f"{subject.name} cannot be run on its images: {error}") from error
    found = [_similarity(subjects, costs)]
    for measure in MEASURES:
        own, *others = (one for one in subjects if one.role in measure.roles)  # the model is the first
        first = _single(measure, own, costs[own.name])
        found.append(first)
        for one in others:
            needless = first.reason and one.role == "reference"
            if needless and measure.recording != "attention_distance":  # which tells ViTs from CNNs, for the claims
                found.append(Job(measure, (one,), first.images, reason=ALONE))
            else:
                found.append(_single(measure, one, costs[one.name]))
    return found


def lacking(measure: Measure, subject: Subject) -> Iterator[str]:
    """What a measure lacks: images, labels."""
    if len(subject.images) < (least := RECORDINGS[measure.recording].least):
        yield f"it needs {least} images ({RECORDINGS[measure.recording].why}), and there are {len(subject.images)}"
    if measure.recording == "probes":
        parts = halves(subject)
        lack = spatial.lacking(parts[1]) if parts else ""
        if parts is None:
            yield "the images have no labels: sort them into a sub-folder for each class"
        elif lack:
            yield textwrap.shorten(lack, 160, placeholder=" …")
        elif strange := sorted(set(parts[0].labels) - set(parts[1].labels)):
            yield f"nothing can be learnt of {len(strange)} classes that are scored"


def few(subject: Subject) -> Tensor:
    """The first images of a subject, (4, 3, H, W); the same again where there are fewer."""
    return torch.stack([subject.images[i % len(subject.images)][0] for i in range(FEW)])


@torch.inference_mode()
def cost(subject: Subject) -> Cost:
    """What a forward pass of a network takes here, from one that is timed. Raises as the network does."""
    network = subject.network
    images = torch.stack([subject.images[i % len(subject.images)][0] for i in range(TIMED)])
    sizes: list[int] = []

    def see(module: nn.Module, args: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim:
            sizes.append(output.element_size() * output.numel() // max(len(output), 1))

    with evaluating(network):
        handles = [part.register_forward_hook(see) for part in network.modules() if not list(part.children())]
        try:
            network(normalise(network, images[:1]))
        finally:
            for handle in handles:
                handle.remove()
        seconds = min(_timed(network, images) for _ in range(2)) / TIMED  # the first may choose how layers compute
        try:
            with attention_maps(network, lambda A: A[0].numel() * A.element_size()) as maps:
                network(normalise(network, images[:1]))
            attended = max(maps.values())
        except MISFITS:
            attended = 0
    weights = sum(value.element_size() * value.numel() for value in network.state_dict().values())
    return Cost(seconds, weights, max(sizes, default=0), sum(sizes), attended)


def _timed(network: nn.Module, images: Tensor) -> float:
    """Seconds of a forward pass."""
    start = time.perf_counter()
    network(normalise(network, images)).sum().item()  # which waits for an accelerator
    return time.perf_counter() - start


def _single(measure: Measure, subject: Subject, takes: Cost) -> Job:
    """The job of a measure for one network."""
    count = min(len(subject.images), measure.most)
    job = Job(measure, (subject,), count)
    if lacks := "; ".join(lacking(measure, subject)):
        return replace(job, reason=lacks)
    recording, images = RECORDINGS[measure.recording], few(subject)
    start = time.perf_counter()
    try:
        recording.attempt({subject.name: subject.network}, images)
    except MISFITS as error:
        return replace(job, reason=" ".join(str(error).split()))
    trial = (time.perf_counter() - start) / measure.tried if measure.tried else math.inf
    seconds, memory = count * min(measure.passes * takes.seconds, trial), 64 * (3 * takes.largest + 3 * takes.attention)
    if measure.recording == "receptive_fields":
        places = len(taps_for(subject.network, [*STREAM, *BRANCH_OUTPUTS]))
        seconds = 0.8 * count * places * layers.FIELD_CHANNELS * takes.seconds
        memory = 16 * 1.5 * takes.total
    elif measure.recording in ("token_patches", "probes"):
        memory = spatial.BATCH * 3 * takes.largest
    return replace(job, seconds=seconds, memory=takes.weights + memory)


def _similarity(subjects: list[Subject], costs: dict[str, Cost]) -> Job:
    """The job of CKA, within and between all networks: each is shown the model's images, resized to its own size."""
    images = subjects[0].images
    job = Job(SIMILARITY, tuple(subjects), len(images))
    if lacks := "; ".join(lacking(SIMILARITY, subjects[0])):
        return replace(job, reason=lacks)
    kept = []
    for subject in subjects:
        try:
            similarity.attempt({subject.name: subject.network}, few(subjects[0]))
            kept.append(subject)
        except MISFITS as error:
            if subject.role == "model":
                return replace(job, reason=" ".join(str(error).split()))
    n = batch_size(len(images), similarity.BATCH)
    taps = sum(len(taps_for(subject.network, STREAM)) for subject in kept)
    takes = [costs[subject.name] for subject in kept]
    memory = sum(one.weights for one in takes) + 3 * n * max(one.largest for one in takes) + 12 * taps * n * n
    seconds = SIMILARITY.passes * len(images) * sum(one.seconds for one in takes)
    return replace(job, subjects=tuple(kept), seconds=seconds, memory=memory)
