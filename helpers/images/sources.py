"""Images from anywhere behind one contract: a dataset of (uint8 RGB image, label) and what it is.

Everything downstream takes batches of uint8 images and lets each model normalise them itself
(``normalise``), so that several models can be shown the very same pixels.
"""

import hashlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import VisionDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from helpers.images import pictures, scenes

_NOTES = {".txt", ".csv", ".json", ".md", ".xml", ".yaml", ".yml"}  # left out without a warning


class ImageSet(Dataset):
    """Images (3, H, W) uint8 with labels, and a description of what they are for the provenance of a result.

    Args:
        count: how many there are.
        get: position from 0 → (image, label).
        description: what they are, as JSON can hold it; ``describe`` gives it with the count.
        names: the images' file names, where they are files.
        labels: their labels, where these are known without reading the images.
        classes: the names of the classes in the order of their labels, where they have names.
        digests: the SHA-256 of the images' files, where they are files.
    """

    def __init__(
        self,
        count: int,
        get: Callable[[int], tuple[torch.Tensor, int]],
        description: dict,
        names: Sequence[str] = (),
        labels: Sequence[int] = (),
        classes: Sequence[str] = (),
        digests: Sequence[bytes] = (),
    ):
        self._count, self._get, self._description = count, get, description
        self.names, self.labels, self.classes = list(names), list(labels), tuple(classes)
        self.digests = list(digests)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        if not -self._count <= position < self._count:
            raise IndexError(f"there are {self._count} images; got position {position}")
        return self._get(position % self._count)

    def describe(self) -> dict:
        """Source, count, size in pixels and a hash that pins the list of images and its order.

        Where there are any, also how many files repeat another (``duplicates``), are of kinds that are not read
        (``left_out``, by extension) and have transparency (``transparent``, laid on ``background``).
        """
        return {**self._description, "count": self._count}

    def first(self, count: int) -> "ImageSet":
        """The first ``count`` images, described as such; the set itself where it has no more."""
        if len(self) <= count:
            return self
        about = {**self._description, "first_of": len(self)}
        known = self.names[:count], self.labels[:count], self.classes, self.digests[:count]
        return ImageSet(count, self._get, about, *known)


def match_classes(images: ImageSet, to: ImageSet, subset: bool = False) -> ImageSet:
    """``images`` with the labels that its classes have in ``to``, matched by the classes' names.

    What was learnt on one folder and is tested on another needs this, since each folder numbers its own classes.

    Args:
        images: the set to relabel, such as the images to test on.
        to: the set whose labels count, such as the images learnt from.
        subset: whether ``images`` may lack classes of ``to``.

    Returns:
        ``images`` itself where the labels agree already, or where neither set has names for its classes.

    Raises:
        ValueError: ``images`` has classes that ``to`` lacks, or lacks some that ``to`` has and ``subset`` is false, and
            these are named; only one of the sets has names; a set has one name twice.
    """
    if images.classes == to.classes:
        return images
    if not images.classes or not to.classes:
        raise ValueError("the classes of only one of the two sets have names; they cannot be matched")
    if any(len(set(names)) < len(names) for names in (images.classes, to.classes)):
        raise ValueError("two classes of one set have the same name; they cannot be matched by name")
    if extra := sorted(set(images.classes) - set(to.classes)):
        raise ValueError(f"the images to match have classes that are not among those matched to: {', '.join(extra)}")
    if not subset and (missing := sorted(set(to.classes) - set(images.classes))):
        raise ValueError(f"the images to match have none of {', '.join(missing)}; if that is meant, give subset=True")
    number = [to.classes.index(name) for name in images.classes]

    def get(position: int) -> tuple[torch.Tensor, int]:
        image, label = images[position]
        return image, number[label]

    about = {key: value for key, value in images.describe().items() if key != "count"}
    labels = [number[label] for label in images.labels]
    about["classes"] = list(to.classes)
    return ImageSet(len(images), get, about, images.names, labels, to.classes, images.digests)


def scene_images(count: int, split: str = "test", corpus: scenes.Corpus | None = None) -> ImageSet:
    """The first ``count`` scenes of a split ("train", "validation", "test") of a corpus, 64 × 64."""
    corpus = corpus or scenes.Corpus()
    indices = scenes.split(split, count)
    data = scenes.SceneDataset(corpus, indices)
    pinned = hashlib.sha256(repr((corpus, indices)).encode()).hexdigest()
    about = {"source": f"scenes, {split} split", "size": scenes.SIZE, "sha256": pinned}
    return ImageSet(count, data.__getitem__, about)


def folder_images(
    path: str | Path,
    size: int = 224,
    limit: int | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    crop: float = pictures.CROP_SHARE,
) -> ImageSet:
    """All images below a folder, in an order shuffled by ``seed``; the label is the number of the sub-folder.

    The order is shuffled because CKA needs the batches to mix the classes. How a picture becomes pixels is told at
    ``pictures.square``; every file is looked at at once (``pictures.inspect``), its pixels are made when asked for.

    Args:
        path: the folder; links are followed, hidden files and folders left out.
        size: side of the square images, in px.
        limit: how many images to take from the shuffled order; all by default.
        seed: of the order.
        classes: names of the class folders, relative to ``path``, in the order of their labels; by default those
            found there, sorted. Give the ``classes`` of another set to label alike.
        crop: share of the shorter side that is kept of a picture of another size (timm's ``crop_pct``).

    Returns:
        images (3, size, size) uint8; its hash covers the names, the bytes and the order of the files.

    Raises:
        ValueError: no such folder, no image in it, a class folder that is not among ``classes``, a file that cannot be
            read or is refused (``pictures.inspect``), a size or limit below 1, or a crop that is no share; the message
            names the file and says what to do. Damage inside a picture, and a file that changed since, show when it
            is read.

    Warns of files with the same bytes, of files that may be pictures but are of no kind that is read, and of folders
    that look as if they were not those of the classes. ``describe`` counts the first two.
    """
    root = Path(path).expanduser()
    _check_size(size)
    if not 0 < crop <= 1:
        raise ValueError(f"crop is the share of a picture's shorter side to keep, above 0 and up to 1; got {crop}")
    if not root.is_dir():
        raise ValueError(f"no folder of images at {pictures.shown(root)}")
    files, left_out = pictures.find(root)
    if not files:
        found = f"; found {_counted(left_out)}" if left_out else ""
        raise ValueError(f"no image below {root}; looked for {', '.join(sorted(pictures.EXTENSIONS))}{found}")
    label_of, names = _label_folders(files, root, classes)
    files = _shuffled(files, limit, seed)
    seen = [pictures.inspect(file) for file in files]
    pinned = hashlib.sha256()
    for file, (digest, _) in zip(files, seen, strict=True):
        pinned.update(file.relative_to(root).as_posix().encode() + b"\0" + digest)

    def get(position: int) -> tuple[torch.Tensor, int]:
        file, (digest, _) = files[position], seen[position]
        return pil_to_tensor(pictures.read(file, size, digest, crop)), label_of[file.parent]

    about = {"source": f"folder {root.name}", "size": size, "crop": crop, "shuffled_with_seed": seed}
    about["sha256"] = pinned.hexdigest()
    digests = [digest for digest, _ in seen]
    about |= _copies(files, digests) | _left_out(root, left_out)
    if transparent := sum(can_be for _, can_be in seen):
        about |= {"transparent": transparent, "background": pictures.BACKGROUND}
    if classes is not None:
        about["classes"] = list(names)
    labels = [label_of[file.parent] for file in files]
    return ImageSet(len(files), get, about, [file.name for file in files], labels, names, digests)


def torchvision_images(dataset: VisionDataset, size: int = 224, limit: int | None = None, seed: int = 0) -> ImageSet:
    """A torchvision set of (PIL image, label), such as ``torchvision.datasets.Imagenette(root, download=True)``.

    Resized, cropped and shuffled as by ``folder_images``. The hash covers the set's name and the order.
    Raises ValueError for a size or limit below 1 and, when it is read, for entries that are not (PIL image, label).
    """
    _check_size(size)
    order, name = _shuffled(range(len(dataset)), limit, seed), type(dataset).__name__

    def get(position: int) -> tuple[torch.Tensor, int]:
        picture, label = dataset[order[position]]
        if not isinstance(picture, Image.Image) or not isinstance(label, Integral):
            kinds = f"({type(picture).__name__}, {type(label).__name__})"
            raise ValueError(f"{name} gives {kinds}, not (PIL image, label); make it without transforms")
        with pictures.naming(Path(f"{name}[{order[position]}]")):
            return pil_to_tensor(pictures.square(picture, size)), int(label)

    pinned = hashlib.sha256(repr((name, len(dataset), order)).encode()).hexdigest()
    about = {"source": f"torchvision {name}", "size": size, "shuffled_with_seed": seed, "sha256": pinned}
    named = getattr(dataset, "classes", ())  # Imagenette's names are tuples of synonyms
    classes = [", ".join(entry) if isinstance(entry, tuple) else str(entry) for entry in named]
    return ImageSet(len(order), get, about, classes=classes)


def batches(images: Dataset, batch: int, workers: int = 0) -> DataLoader:
    """Batches of (images (B, 3, H, W) uint8, labels (B,)), in order; the last one may be smaller."""
    if batch < 1:
        raise ValueError(f"a batch holds at least 1 image; got {batch}")
    return DataLoader(images, batch_size=batch, num_workers=workers, persistent_workers=False)


def _label_folders(
    files: Sequence[Path], root: Path, classes: Sequence[str] | None
) -> tuple[dict[Path, int], tuple[str, ...]]:
    """Label of each folder that holds files, and the classes' names in the order of their labels."""
    name_of = {folder: folder.relative_to(root).as_posix() for folder in sorted({file.parent for file in files})}
    classes = tuple(name_of.values() if classes is None else classes)
    if len(set(classes)) < len(classes):
        raise ValueError(f"each class has a name of its own; got {', '.join(classes)}")
    if unknown := [name for name in name_of.values() if name not in classes]:
        raise ValueError(f"class folders {', '.join(unknown)} below {root} are not among {', '.join(classes)}")
    if root in name_of and len(name_of) > 1:
        stray = next(file for file in files if file.parent == root)
        _warn(f"{stray} lies beside the class folders: such images are a class of their own, named '.'; move them")
    alike = [folder for folder, count in Counter(folder.name for folder in name_of).items() if count > 1]
    if alike:
        places = ", ".join(name for folder, name in name_of.items() if folder.name == alike[0])
        _warn(f"{places} count as different classes; if they are one, give the folder that holds the class folders")
    return {folder: classes.index(name) for folder, name in name_of.items()}, classes


def _copies(files: Sequence[Path], digests: Sequence[bytes]) -> dict:
    """How many files have the bytes of an earlier one, with a warning; nothing where all differ."""
    earliest: dict[bytes, Path] = {}
    copies = [file for file, digest in zip(files, digests, strict=True) if earliest.setdefault(digest, file) != file]
    if not copies:
        return {}
    original = earliest[digests[files.index(copies[0])]]
    _warn(
        f"{len(copies)} of {len(files)} images are copies of others, such as {copies[0]} of {original}; "
        "copies bias CKA, and images learnt from must not be tested on: remove them"
    )
    return {"duplicates": len(copies)}


def _left_out(root: Path, files: Sequence[Path]) -> dict:
    """How many files are of kinds that are not read, with a warning if they may be pictures."""
    if strange := [file for file in files if file.suffix.lower() not in _NOTES]:
        _warn(f"left out below {root}: {_counted(strange)}, such as {strange[0]}; save those that are pictures as PNG")
    return {"left_out": _kinds(files)} if files else {}


def _kinds(files: Sequence[Path]) -> dict[str, int]:
    """Number of files of each extension."""
    return dict(sorted(Counter(file.suffix.lower() or "no extension" for file in files).items()))


def _counted(files: Sequence[Path]) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in _kinds(files).items())


def _check_size(size: int) -> None:
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"size is the side of the square images in px, a whole number of at least 1; got {size}")


def _shuffled(items: Iterable, limit: int | None, seed: int) -> list:
    """The first ``limit`` of the items (all, by default) in an order that depends on ``seed`` alone."""
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"limit is a number of images, at least 1; got {limit}")
    items = list(items)
    random.Random(seed).shuffle(items)
    return items[:limit]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # at the line that asked for the images
