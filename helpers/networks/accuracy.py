"""How well a model tells the scenes apart: on the same held-out scenes, with all cues and with each cue ablated."""

import torch
from torch import nn

from helpers.images.scenes import Corpus, render, split
from helpers.networks.inputs import normalise

TEST_SCENES = 4096  # held-out scenes on which a card's accuracies are measured
CUES = ("shape", "texture", "palette")


def measure(model: nn.Module, corpus: Corpus, count: int = TEST_SCENES) -> dict[str, dict[str, float]]:
    """Accuracies on the test split: of the pair, of the shape and of the texture; as it is and with each cue ablated.

    ``{"all cues": {"pair": …, "shape": …, "texture": …}, "without shape": …, "without texture": …,
    "without palette": …}``. An answer is scored against the scene's label; where a cue is ablated the
    label says nothing about it, so that its score falls to what the other cues give away.
    """
    table = {"all cues": accuracy(model, corpus, count)}
    for cue in CUES:
        table[f"without {cue}"] = accuracy(model, corpus.without(cue), count)
    return table


@torch.inference_mode()
def accuracy(model: nn.Module, corpus: Corpus, count: int = TEST_SCENES, batch: int = 256) -> dict[str, float]:
    """Share of ``count`` test scenes whose label, label's shape and label's texture the model names."""
    kinds, right = len(corpus.textures), torch.zeros(3)
    indices = split("test", count)
    for start in range(0, count, batch):
        drawn = render(corpus, indices[start : start + batch])
        answer = model(normalise(model, drawn.images)).argmax(1).cpu()
        same = (answer == drawn.label, answer // kinds == drawn.label // kinds, answer % kinds == drawn.label % kinds)
        right += torch.stack([hit.sum() for hit in same])
    shares = [round(hits / count, 4) for hits in right.tolist()]
    return dict(zip(("pair", "shape", "texture"), shares, strict=True))
