"""CKA between all layers of several networks, from minibatches, at little more than the cost of the forward passes.

The unbiased HSIC can be averaged over minibatches before the ratio is taken (Nguyen, Raghu & Kornblith 2021), which
is what Raghu et al. (2021) do. Each tapped activation is turned into a row of n² numbers inside its hook
(``cka.gram_row``); one matrix product of the stacked rows gives the HSICs of all pairs of layers of all networks;
the sums of these L × L products over batches are all that is kept.

The batches are dealt to sixteen groups, and leaving out one group at a time (the jackknife) gives any number made from
a CKA matrix its standard error: ``result.statistic(fn)``.
"""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.measures.cka import LEAST, MinibatchCKA, gram_row
from helpers.measures.cka_result import SUMMED, CKAResult
from helpers.measures.distributed import meet, process
from helpers.measures.streams import hashes, warn_of_repeated
from helpers.networks.inputs import normalise, pixels
from helpers.networks.taps import Tap, capture, evaluating, taps_for

__all__ = ["CKAResult", "cka_heatmap"]


def cka_heatmap(
    models: Mapping[str, nn.Module],
    loader: Iterable,
    kinds: Iterable[str] | Mapping[str, Iterable[Tap | str] | None] | None = None,
    *,
    batches: int | None = None,
    progress: bool = False,
    shuffle: int | None = None,
    debiased: bool = True,
    gram_dtype: torch.dtype = torch.float32,
    preprocess: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> CKAResult:
    """CKA between all taps of all models in one pass over one stream of images (Raghu et al. 2021, Figs. 1, 2, B.1).

    Args:
        models: label → network; run in eval mode where its weights are, its modes restored at the end.
        loader: batches of images (n, 3, H, W), or tuples that begin with them. Read once, so it may shuffle. A last,
            smaller batch counts by its number of images; below 4 images it is left out (``result.skipped``).
        kinds: kinds of taps (``taps.KINDS``) for all models, or label → kinds or taps (``Tap``); all taps by default.
        batches: how many batches to read; all by default.
        progress: show a bar with images a second.
        shuffle: a seed; ``result.control`` is then CKA with the images of each batch permuted on one side: near 0.
        debiased: False for the biased estimate, for teaching alone.
        gram_dtype: precision of the Gram matrices; bfloat16 is an option for GPUs.
        preprocess: label → function of a batch of images, in place of ``images.normalise``.

    Returns:
        The result, whose ``taps`` are in the order of models and depth. In distributed runs (torchrun) each rank reads
        the loader, computes whole batches in turn and gets the full result. Where images have the pixels of earlier
        ones, a warning says how many: they are alike to every network, which raises CKA.

    Raises:
        ValueError: no models, no batch of 4 images, and, naming the model and the tap, activations that are not
            finite or whose first axis is not the images.
    """
    if not models:
        raise ValueError("no models to compare")
    strangers = sorted({*(kinds if isinstance(kinds, Mapping) else ()), *(preprocess or ())} - set(models))
    if strangers:
        raise ValueError(f"kinds or preprocess for {strangers}, but the models are {', '.join(models)}")
    taps = {
        label: _taps(model, kinds.get(label) if isinstance(kinds, Mapping) else kinds)
        for label, model in models.items()
    }
    prepare = {label: (preprocess or {}).get(label) or partial(normalise, model) for label, model in models.items()}
    row = partial(gram_row, debiased=debiased, dtype=gram_dtype)
    places = _places(taps)
    device = next(next(iter(models.values())).parameters(), torch.empty(0)).device
    metric, control = (MinibatchCKA(len(places), others).on(device) for others in (None, len(places)))
    rank, world = process()
    size = skipped = used = 0
    seen: set[int] = set()
    with evaluating(*models.values()), torch.inference_mode(), _bar(loader, batches, progress and rank == 0) as bar:
        for index, batch in enumerate(islice(loader, batches)):
            images = pixels(batch)
            n = len(images)
            bar.update(n)
            if n < LEAST:
                skipped += n
                continue
            size, used = max(size, n), used + 1
            seen.update(hashes(images))
            if index % world != rank:
                continue
            rows = torch.stack(
                [
                    found.to(device)
                    for label, model in models.items()
                    for found in _rows(label, model, prepare[label](images), n, taps[label], row)
                ]
            )
            _check_finite(rows, places)
            metric.update(rows, batch_index=index)
            if shuffle is not None:
                control.update(rows, _shuffled(rows, (shuffle, index)), batch_index=index)
    if not used:
        raise ValueError(f"no batch of at least {LEAST} images was read; CKA needs one")
    meet()  # which names a process that is lost; the sums would not
    sums, everything = metric.sums(), np.arange(len(places))
    warn_of_repeated(int(sums.images.sum()) - len(seen), int(sums.images.sum()), stacklevel=2)
    result = CKAResult(
        sums, places, everything, everything,
        n_images=int(sums.images.sum()), batch=size, batches=used, skipped=skipped,
        estimator=f"HSIC, {'unbiased' if debiased else 'biased'}, {SUMMED}",
        dtype=str(gram_dtype).removeprefix("torch."), shuffle=shuffle,
    )  # fmt: skip
    return result if shuffle is None else replace(result, control=replace(result, sums=control.sums()))


def _taps(model: nn.Module, wanted: Iterable[Tap | str] | None) -> list[Tap]:
    """The taps of a model: those given, those of the kinds given, or all."""
    if wanted is None or isinstance(wanted, str):  # which refuses a string
        return taps_for(model, wanted)
    wanted = list(wanted)
    taps = [one for one in wanted if isinstance(one, Tap)]
    return taps or taps_for(model, [one for one in wanted if isinstance(one, str)])


def _places(taps: Mapping[str, list[Tap]]) -> pd.DataFrame:
    """The table of all models' taps: model, name, kind, depth from 0 to 1 along the taps of its model."""
    rows = [
        (model, tap.name, tap.kind, i / max(len(of_model) - 1, 1))
        for model, of_model in taps.items()
        for i, tap in enumerate(of_model)
    ]
    return pd.DataFrame(rows, columns=["model", "name", "kind", "depth"])


def _bar(loader: Iterable, batches: int | None, shown: bool) -> tqdm:
    """A bar that counts images; it knows how many there are where the loader says so."""
    if isinstance(loader, Sized):
        batches = len(loader) if batches is None else min(batches, len(loader))
    batch = getattr(loader, "batch_size", None)
    return tqdm(total=batches * batch if batches and batch else None, desc="CKA", unit=" images", disable=not shown)


def _rows(
    label: str, model: nn.Module, x: Tensor, n: int, taps: list[Tap], row: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The ``gram_row`` (n²,) of each tap of a model that is given the ``n`` images ``x``."""
    with capture(model, taps, row) as out:
        model(x)
    for name, found in out.items():
        if len(found) != n * n:
            raise ValueError(f"{label}/{name}: its first axis is not the {n} images; CKA cannot use it")
    return list(out.values())


def _check_finite(rows: Tensor, places: pd.DataFrame) -> None:
    """Raise ValueError for rows (L, n²) that are not finite, naming the first place."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        bad = places.iloc[int(finite.int().argmin())]
        raise ValueError(
            f"{bad['model']}/{bad['name']}: activations are not finite; look at the weights and at what the network "
            "was given"
        )


def _shuffled(rows: Tensor, seed: tuple[int, int]) -> Tensor:
    """The rows (L, n²) of the same representations with the images in another order."""
    n = round(rows.shape[1] ** 0.5)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n)).to(rows.device)
    return rows.view(-1, n, n)[:, order][:, :, order].flatten(1)
