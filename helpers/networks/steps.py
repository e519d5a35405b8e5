"""What was kept of a training on its way: the steps of a network of the zoo, from its first weights to its last.

A network that starts from another one, as the ViTs do from masked autoencoders, has that one's steps before its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from helpers.networks import zoo


@dataclass(frozen=True)
class Step:
    """A network on its way. ``model`` had seen ``images``; with those of the model it started from, ``seen`` in all."""

    model: str
    images: int
    seen: int
    objective: str

    def load(self) -> nn.Module:
        """The network as it was, in eval mode. Raises as ``zoo.load_step``."""
        return zoo.load_step(self.model, self.images)


def steps(name: str) -> list[Step]:
    """The steps of a model of the zoo in order, from untrained to trained. Raises as ``zoo.card``."""
    return list(_steps(name))


def _steps(name: str) -> Iterator[Step]:
    card = zoo.card(name)
    recipe, before = card["recipe"], steps(card["start"]) if card.get("start") else []
    yield from before
    seen = before[-1].seen if before else 0
    kept = sorted({int(images) for images in card.get("steps", {})} | {recipe["images_seen"]})
    for images in kept if before else [0, *kept]:  # its first weights are the last ones of the model before
        yield Step(name, images, seen + images, recipe.get("objective", "labels"))
