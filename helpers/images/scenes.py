"""The procedural corpus: textured shapes on a background of dead leaves, with ground truth.

A scene is drawn from its corpus and its index alone, so any subset, in any order, on any number of
processes gives the same bytes, and index ranges make disjoint splits that never run out. The
background is a dead-leaves image, occluding discs whose radii follow a power law r⁻³ (Lee, Mumford &
Huang 2001). On it lies one object, whose *shape* can be told only from its whole outline (a global
cue), whose *texture* can be told from a few pixels (a local cue), and whose *palette* is a noisy prior
on the class. A class is a (shape, texture) pair.

Each cue has a reliability: the probability that it is drawn from the scene's label; otherwise it is
drawn from all values alike and tells nothing. Changing one reliability leaves every other choice in
the scene as it was, because each choice reads its own place of the scene's random stream.
"""

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from helpers.images.motifs import DISC, NOVEL_SHAPES, NOVEL_TEXTURES, OUTLINES, SHAPES, TEXTURES, pattern

SIZE = 64  # pixels, height and width

# Disjoint index ranges. "train" starts at 0; a training set of N scenes is range(N).
SPLITS = {"train": (0, 10_000_000), "validation": (10_000_000, 11_000_000), "test": (11_000_000, 12_000_000)}

LEAVES = 48  # background leaves a scene, drawn back to front
LEAF_RADIUS = (2.0, 32.0)  # pixels, the range of the power law
OBJECT_RADIUS = (17.0, 26.0)  # pixels, circumscribed circle of the object
TEXTURE_PERIOD = (5.5, 8.0)  # pixels
OCCLUDERS = 2  # at most, each over a random place
NOISE = 0.04  # standard deviation of the sensor noise, on a scale of 0 to 1
KEPT = 8192  # validation and test scenes that a process keeps once they are drawn: 130 MB

_CHOICES, _PER_LEAF = 64, 6  # uniform numbers a scene reads for its choices, and for each leaf
_CELLS = 16  # a "blobs" texture is a smoothed field of 16 × 16 random cells


@dataclass(frozen=True)
class Corpus:
    """Everything that decides what is drawn, but for the index.

    ``seed`` picks one of 2⁶⁴ unrelated corpora. ``shape``, ``texture`` and ``palette`` are the
    reliabilities of the three cues (0 to 1). ``shapes`` and ``textures`` list what can appear; label
    = position of the shape × number of textures + position of the texture.

    Raises ValueError for a reliability outside [0, 1], an unknown shape or texture, or a seed that is no
    whole number from 0 to 2⁶⁴ - 1.
    """

    seed: int = 0
    shape: float = 1.0
    texture: float = 1.0
    palette: float = 0.5
    shapes: tuple[str, ...] = SHAPES
    textures: tuple[str, ...] = TEXTURES

    def __post_init__(self) -> None:
        for cue in ("shape", "texture", "palette"):
            if not 0 <= getattr(self, cue) <= 1:
                raise ValueError(f"the reliability of {cue} is a probability, from 0 to 1; got {getattr(self, cue)}")
        if not 0 <= self.seed < 2**64 or self.seed != int(self.seed):
            raise ValueError(f"a corpus's seed is a whole number from 0 to 2**64 - 1; got {self.seed}")
        if not self.shapes or not self.textures:
            raise ValueError("a corpus needs at least one shape and one texture")
        for name in self.shapes:
            if name not in OUTLINES:
                raise ValueError(f"unknown shape {name!r}; known: {', '.join(OUTLINES)}")
        for name in self.textures:
            if name not in TEXTURES + NOVEL_TEXTURES:
                raise ValueError(f"unknown texture {name!r}; known: {', '.join(TEXTURES + NOVEL_TEXTURES)}")

    @property
    def classes(self) -> list[str]:
        """Class names in label order, as ``"shape texture"``."""
        return [f"{shape} {texture}" for shape in self.shapes for texture in self.textures]

    def without(self, cue: str) -> "Corpus":
        """The same corpus with one cue ("shape", "texture" or "palette") made to tell nothing."""
        if cue not in ("shape", "texture", "palette"):
            raise ValueError(f"a cue is shape, texture or palette; got {cue!r}")
        nothing: dict[str, Any] = {cue: 0.0}
        return replace(self, **nothing)


NOVEL = Corpus(shapes=NOVEL_SHAPES, textures=NOVEL_TEXTURES)
"""A corpus of shapes and textures that the zoo has never seen, for transfer."""


@dataclass
class Scenes:
    """A batch of rendered scenes with their ground truth; B scenes, sizes in pixels."""

    images: torch.Tensor  # (B, 3, 64, 64) uint8, RGB
    label: torch.Tensor  # (B,) class the cues are drawn for
    shape: torch.Tensor  # (B,) shape that is drawn (equal to the label's, where the cue is reliable)
    texture: torch.Tensor  # (B,) texture that is drawn
    palette: torch.Tensor  # (B,) class whose palette is drawn
    mask: torch.Tensor  # (B, 64, 64) bool, pixels where the object is seen
    centre: torch.Tensor  # (B, 2) float, x and y of the object's centre
    scale: torch.Tensor  # (B,) float, radius of its circumscribed circle


def render(corpus: Corpus, indices: Iterable[int]) -> Scenes:
    """Draw the scenes ``indices`` of ``corpus``. Raises ValueError for a negative index or no index at all."""
    scenes = [_scene(corpus, int(index)) for index in indices]
    if not scenes:
        raise ValueError("no scene was asked for: indices is empty")
    images, label, shape, texture, palette, mask, centre, scale = zip(*scenes, strict=True)
    return Scenes(
        images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        label=torch.tensor(label),
        shape=torch.tensor(shape),
        texture=torch.tensor(texture),
        palette=torch.tensor(palette),
        mask=torch.from_numpy(np.stack(mask)),
        centre=torch.tensor(centre, dtype=torch.float32),
        scale=torch.tensor(scale, dtype=torch.float32),
    )


def stages(corpus: Corpus, index: int) -> dict[str, torch.Tensor]:
    """How a scene comes about: images (3, 64, 64) uint8 after its "background", "object", "occluders" and "noise"."""
    kept: dict[str, np.ndarray] = {}
    kept["noise"] = _draw(corpus, index, kept)[0]
    return {
        name: torch.from_numpy(np.clip(np.rint(scene), 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
        for name, scene in kept.items()
    }


def split(name: str, count: int) -> range:
    """The first ``count`` indices of the split "train", "validation" or "test"."""
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; known: {', '.join(SPLITS)}")
    start, stop = SPLITS[name]
    if not 0 < count <= stop - start:
        raise ValueError(f"the {name} split has indices for 1 to {stop - start:,} scenes; got {count:,}")
    return range(start, start + count)


class SceneDataset(Dataset):
    """Scenes as a torch dataset of (image, label): image (3, 64, 64) uint8, label int."""

    def __init__(self, corpus: Corpus, indices: Sequence[int]):
        self.corpus, self.indices = corpus, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        image, label, *_ = _scene(self.corpus, self.indices[position])
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), label


def _scene(corpus: Corpus, index: int) -> tuple:
    """What ``_draw`` gives; scenes to measure on, which are asked for again and again, are drawn once."""
    return _kept(corpus, index) if index >= SPLITS["validation"][0] else _draw(corpus, index)


@lru_cache(maxsize=KEPT)
def _kept(corpus: Corpus, index: int) -> tuple:
    drawn = _draw(corpus, index)
    for array in (drawn[0], drawn[5]):  # image and mask
        array.setflags(write=False)
    return drawn


_GRID = np.arange(SIZE, dtype=np.float32) + 0.5
_X, _Y = np.meshgrid(_GRID, _GRID)


def _draw(corpus: Corpus, index: int, kept: dict[str, np.ndarray] | None = None) -> tuple:
    """One scene: image (64, 64, 3) uint8, label, shape, texture, palette, mask (64, 64), centre, scale.

    Where ``kept`` is given, it receives the picture (64, 64, 3) after each stage but the last.
    """

    def keep(stage: str) -> None:
        if kept is not None:
            kept[stage] = scene.copy()

    if index < 0:
        raise ValueError(f"a scene's index is 0 or more; got {index}")
    bits = np.random.Philox(key=np.array([corpus.seed, index], dtype=np.uint64))
    choice = _uniform(bits, _CHOICES).tolist()
    leaves = _uniform(bits, LEAVES * _PER_LEAF).reshape(LEAVES, _PER_LEAF)

    kinds = len(corpus.textures)
    label = int(choice[0] * len(corpus.shapes) * kinds)
    shape = label // kinds if choice[1] < corpus.shape else int(choice[2] * len(corpus.shapes))
    texture = label % kinds if choice[3] < corpus.texture else int(choice[4] * kinds)
    palette = label if choice[5] < corpus.palette else int(choice[6] * len(corpus.shapes) * kinds)

    # Pose. The object's circumscribed circle may stand out of the picture by a fifth of its radius.
    scale = _between(OBJECT_RADIUS, choice[7])
    room = max(SIZE / 2 - 0.8 * scale, 0.0)
    centre = (SIZE / 2 + room * (2 * choice[8] - 1), SIZE / 2 + room * (2 * choice[9] - 1))
    angle = 2 * math.pi * choice[10]

    scene = np.asarray(_dead_leaves(leaves), dtype=np.float32)  # (64, 64, 3), 0 to 255
    keep("background")

    alpha = _alpha(OUTLINES[corpus.shapes[shape]], centre, scale, angle)
    turn = 2 * math.pi * choice[11]
    period = _between(TEXTURE_PERIOD, choice[12])
    u = ((_X - centre[0]) * math.cos(turn) + (_Y - centre[1]) * math.sin(turn)) / period + choice[13]
    v = ((_Y - centre[1]) * math.cos(turn) - (_X - centre[0]) * math.sin(turn)) / period + choice[14]
    cells = (bits.random_raw(_CELLS * _CELLS // 8)).view(np.uint8).reshape(_CELLS, _CELLS)
    drawn = pattern(corpus.textures[texture], u, v, cells)[..., None]
    light, dark = _palette(palette, choice[15:20])
    scene += alpha[..., None] * (drawn * light + (1 - drawn) * dark - scene)
    keep("object")

    for k in range(int(choice[20] * (OCCLUDERS + 1))):
        x, y, size, hue, saturation, value = choice[24 + 6 * k : 30 + 6 * k]
        cover = _alpha([(DISC, 255)], (x * SIZE, y * SIZE), 3 + 5 * size, 0.0)
        scene += cover[..., None] * (255 * np.array(_background_colour(hue, saturation, value), np.float32) - scene)
        alpha = alpha * (1 - cover)
    keep("occluders")

    # Sensor noise: the sum of four random bytes is close to normal (Irwin–Hall), and cheap.
    noise = bits.random_raw(SIZE * SIZE * 3 // 2).view(np.uint8).reshape(SIZE, SIZE, 3, 4).sum(axis=3, dtype=np.uint16)
    scene += (noise.astype(np.float32) - 510) * (255 * NOISE / 147.8)  # 147.8 = √4 · √((256² − 1)/12)
    image = np.clip(np.rint(scene), 0, 255).astype(np.uint8)
    return image, label, shape, texture, palette, alpha > 0.5, centre, scale


def _uniform(bits: np.random.BitGenerator, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1). Read from the raw stream, which numpy keeps the same for ever."""
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u


def _background_colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """RGB in [0, 1]; muted, so that the object is seen against it."""
    return colorsys.hsv_to_rgb(hue, 0.5 * saturation, 0.15 + 0.75 * value)


def _dead_leaves(leaves: np.ndarray) -> Image.Image:
    """(LEAVES, 6) uniform numbers → a dead-leaves picture, drawn at twice its size and averaged down."""
    low, high = LEAF_RADIUS
    radius = 2 * (low**-2 - leaves[:, 2] * (low**-2 - high**-2)) ** -0.5  # inverse of the distribution of density r⁻³
    centre, radius = leaves[:, :2] * 2 * SIZE, radius[:, None]
    boxes = np.concatenate([centre - radius, centre + radius], axis=1).tolist()
    colours = [tuple(int(255 * channel) for channel in _background_colour(*row)) for row in leaves[:, 3:].tolist()]
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), colours[0])
    pen = ImageDraw.Draw(picture)
    for box, colour in zip(boxes[1:], colours[1:], strict=True):
        pen.ellipse(box, fill=colour)
    return picture.reduce(2)


def _alpha(
    outline: list[tuple[np.ndarray, int]], centre: tuple[float, float], scale: float, angle: float
) -> np.ndarray:
    """Coverage (64, 64) in [0, 1] of an outline at a pose, drawn at four times its size and averaged down."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    stencil = Image.new("L", (4 * SIZE, 4 * SIZE), 0)
    pen = ImageDraw.Draw(stencil)
    for corners, fill in outline:
        pen.polygon((4 * (scale * corners @ turn + centre)).ravel().tolist(), fill=fill)
    return np.asarray(stencil.reduce(4), dtype=np.float32) / 255


def _palette(palette: int, u: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The light and the dark colour (RGB, 0 to 255) of a class's palette, blurred by the uniform numbers ``u``.

    The hues of the classes are spread evenly, in an order in which neighbours in label are far apart;
    the two colours of a class stand a fixed step apart on the circle.
    """
    hue = palette * 0.381966 % 1.0  # golden angle
    blur = 0.12 * (u[0] + u[1] - 1)
    second = hue + 0.25 + 0.5 * (palette % 3) / 3 + 0.12 * (u[2] + u[3] - 1)
    light = colorsys.hsv_to_rgb((hue + blur) % 1.0, 0.35 + 0.4 * u[4], 1.0)
    dark = colorsys.hsv_to_rgb(second % 1.0, 0.9, 0.15 + 0.3 * u[4])
    return 255 * np.array(light, np.float32), 255 * np.array(dark, np.float32)
