"""Images from anywhere behind one contract: a dataset of (uint8 RGB image, label) and what it is.

Everything downstream takes batches of uint8 images and lets each model normalise them itself
(``normalise``), so that several models can be shown the very same pixels.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from helpers import scenes
from helpers.inputs import image_size, normalise, pixels  # noqa: F401  (moved to the room of inputs)

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
CROP_SHARE = 0.875  # of the shorter side, the usual evaluation crop of ImageNet models


class ImageSet(Dataset):
    """Images (3, H, W) uint8 with labels, and a description of what they are for the provenance of a result.

    ``names`` and ``labels``: the images' file names and labels, known without reading them, where they are files.
    """

    def __init__(
        self,
        count: int,
        get: Callable[[int], tuple[torch.Tensor, int]],
        description: dict,
        names: Sequence[str] = (),
        labels: Sequence[int] = (),
    ):
        self._count, self._get, self._description = count, get, description
        self.names, self.labels = list(names), list(labels)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self._get(position)

    def describe(self) -> dict:
        """Source, count, size in pixels and a hash that pins the list of images and its order."""
        return {**self._description, "count": self._count}

    def first(self, count: int) -> "ImageSet":
        """The first ``count`` images, described as such; the set itself where it has no more."""
        if len(self) <= count:
            return self
        about = {**self._description, "first_of": len(self)}
        return ImageSet(count, self._get, about, self.names[:count], self.labels[:count])


def scene_images(count: int, split: str = "test", corpus: scenes.Corpus | None = None) -> ImageSet:
    """The first ``count`` scenes of a split ("train", "validation", "test") of a corpus, 64 × 64."""
    corpus = corpus or scenes.Corpus()
    indices = scenes.split(split, count)
    data = scenes.SceneDataset(corpus, indices)
    pinned = hashlib.sha256(repr((corpus, indices)).encode()).hexdigest()
    about = {"source": f"scenes, {split} split", "size": scenes.SIZE, "sha256": pinned}
    return ImageSet(count, data.__getitem__, about)


def folder_images(path: str | Path, size: int = 224, limit: int | None = None, seed: int = 0) -> ImageSet:
    """All images below a folder, in an order shuffled by ``seed``; the label is the number of the sub-folder.

    Photographs are turned upright as their EXIF orientation says. An image that is already ``size`` × ``size``
    is taken as it is; any other is resized on its shorter side to size / 0.875 and cropped in the middle. The
    order is shuffled because CKA needs the batches to mix the classes. The hash covers the names and the bytes
    of the files.

    Raises ValueError if there is no such folder, no image in it or a limit below 1, and, when it is read,
    for a file that is no image, naming the file.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"no folder of images at {root}")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise ValueError(f"no image below {root}; looked for {', '.join(sorted(EXTENSIONS))}")
    classes = {folder: label for label, folder in enumerate(sorted({file.parent for file in files}))}
    files = _shuffled(files, limit, seed)
    pinned = hashlib.sha256()
    for file in files:
        pinned.update(file.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())

    def get(position: int) -> tuple[torch.Tensor, int]:
        file = files[position]
        try:
            with Image.open(file) as picture:
                return pil_to_tensor(_crop(picture, size)), classes[file.parent]
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:  # Pillow raises all of these
            raise ValueError(f"cannot read {file} as an image ({error}); mend it or remove it") from error

    about = {"source": f"folder {root.name}", "size": size, "shuffled_with_seed": seed, "sha256": pinned.hexdigest()}
    names, labels = [file.name for file in files], [classes[file.parent] for file in files]
    return ImageSet(len(files), get, about, names, labels)


def torchvision_images(dataset: Dataset, size: int = 224, limit: int | None = None, seed: int = 0) -> ImageSet:
    """A torchvision set of (PIL image, label), such as ``torchvision.datasets.Imagenette(root, download=True)``.

    Resized, cropped and shuffled as by ``folder_images``. The hash covers the set's name and the order.
    Raises ValueError for a limit below 1.
    """
    order = _shuffled(range(len(dataset)), limit, seed)

    def get(position: int) -> tuple[torch.Tensor, int]:
        picture, label = dataset[order[position]]
        return pil_to_tensor(_crop(picture, size)), int(label)

    name = type(dataset).__name__
    pinned = hashlib.sha256(repr((name, len(dataset), order)).encode()).hexdigest()
    about = {"source": f"torchvision {name}", "size": size, "shuffled_with_seed": seed, "sha256": pinned}
    return ImageSet(len(order), get, about)


def batches(images: Dataset, batch: int, workers: int = 0) -> DataLoader:
    """Batches of (images (B, 3, H, W) uint8, labels (B,)), in order; the last one may be smaller."""
    if batch < 1:
        raise ValueError(f"a batch holds at least 1 image; got {batch}")
    return DataLoader(images, batch_size=batch, num_workers=workers, persistent_workers=False)


def _shuffled(items: Iterable, limit: int | None, seed: int) -> list:
    """The first ``limit`` of the items (all, by default) in an order that depends on ``seed`` alone."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of images, at least 1; got {limit}")
    items = list(items)
    random.Random(seed).shuffle(items)
    return items[:limit]


def _crop(picture: Image.Image, size: int) -> Image.Image:
    """``picture``, upright as its EXIF says and in RGB: itself if it is size × size, otherwise its middle."""
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    if picture.size == (size, size):
        return picture
    scale = size / CROP_SHARE / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size, top + size))
