"""Picture files: which are found below a folder, which are refused, and how one becomes a square of RGB pixels.

Every file is looked at before anything is measured, so that what cannot be read is refused by name at once.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # by content; no other decoder is given a file
CROP_SHARE = 0.875  # of the shorter side, the usual evaluation crop of ImageNet models
BACKGROUND = "white"  # what shows through where a picture is transparent

_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}  # what file managers leave behind, beside hidden files
_EIGHT_BIT = {"1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}  # the last bytes of a file that is whole
_LONG = 16  # a picture whose sides differ more than so many times is cropped while it is resized


def find(root: Path) -> tuple[list[Path], list[Path]]:
    """The picture files below ``root``, in order, and the other files there.

    Links are followed. Hidden files and folders (``.ipynb_checkpoints``, ``._a.jpg``) and what file managers leave
    behind are neither. Raises ValueError, naming the file, for links that lead nowhere or round in a circle, folders
    that cannot be listed and names that are not UTF-8.
    """
    files = sorted(_walk(root, (root.resolve(),)))
    read = [file for file in files if file.suffix.lower() in EXTENSIONS]
    return read, [file for file in files if file.suffix.lower() not in EXTENSIONS]


def inspect(file: Path) -> tuple[bytes, bool]:
    """The SHA-256 of a picture file, and whether it can be transparent.

    Of a JPEG or PNG that ends as such files do, only the header is decoded; of any other file, the whole picture.

    Raises ValueError, naming the file and what to do, where it is not a regular file, cannot be opened, is no picture,
    is of a kind that cannot be read faithfully (``square``), has more pixels than Pillow allows
    (2 × ``PIL.Image.MAX_IMAGE_PIXELS``, 179 million), or is cut off.
    """
    if not file.is_file():
        raise ValueError(f"{shown(file)} is a pipe or a device, not a picture; remove it")
    with naming(file):
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_kind(picture)
            transparent = picture.has_transparency_data
            end = _ENDS.get(picture.format or "")
            if end is None or not content.endswith(end):
                picture.load()  # bytes after the end do no harm: only decoding tells
    return hashlib.sha256(content).digest(), transparent


def read(file: Path, size: int, digest: bytes, crop: float = CROP_SHARE) -> Image.Image:
    """The picture in a file, made ``square``.

    Raises ValueError, naming the file, if it cannot be read or its SHA-256 is no longer ``digest``.
    """
    with naming(file):
        content = file.read_bytes()
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{shown(file)} has changed since the set of images was made; make the set again")
    with naming(file), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        return square(picture, size, crop)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turns whatever goes wrong with a file from elsewhere into a ValueError that names it and says what to do."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{shown(file)} is too large ({error}); make the picture smaller or remove it") from error
    except UnidentifiedImageError as error:  # its own message names the buffer, not the file
        reason = f"cannot identify image file: it is damaged or none of {', '.join(FORMATS)}"
        raise ValueError(f"cannot read {shown(file)} as an image ({reason}); mend it or remove it") from error
    except Exception as error:  # of damaged files Pillow raises nearly every kind
        raise ValueError(f"cannot read {shown(file)} as an image ({error}); mend it or remove it") from error


def square(picture: Image.Image, size: int, crop: float = CROP_SHARE) -> Image.Image:
    """The middle of a picture, size × size, upright as its EXIF orientation says, in RGB of 8 bits.

    A picture that is size × size already is taken as it is; any other is resized on its shorter side to
    size / ``crop`` (a share, 0.875 by default) and cropped in the middle. Of 16 bits, grey or colour, the upper 8 are
    kept; what is transparent is laid on white; of an animation or a file of several pages the first picture is taken;
    colour profiles are not applied. Raises ValueError for kinds whose black and white are not known, such as floats or
    signed numbers.
    """
    _check_kind(picture)
    picture = _rgb(ImageOps.exif_transpose(picture))
    if picture.size == (size, size):
        return picture
    scale = size / crop / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    if max(picture.size) > _LONG * min(picture.size):  # resized as a whole, it could fill the memory
        across, down = picture.width / width, picture.height / height
        kept = (left * across, top * down, (left + size) * across, (top + size) * down)
        return picture.resize((size, size), Image.Resampling.BICUBIC, box=kept)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size, top + size))


def shown(file: Path) -> str:
    """The path of a file, with bytes that are not UTF-8 escaped, so that it can be printed."""
    return str(file).encode("utf-8", "backslashreplace").decode()


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files below ``folder`` but hidden ones; ``above``: the real paths of the folders that lead to it."""
    try:
        entries = list(folder.iterdir())
        folders = {entry for entry in entries if entry.is_dir()}
    except OSError as error:
        raise ValueError(f"cannot look into {shown(folder)} ({error}); make it readable or remove it") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _LITTER:
            continue
        if shown(entry) != str(entry):
            raise ValueError(f"the name of {shown(entry)} is not UTF-8; rename it (convmv renames a whole folder)")
        if entry in folders:
            real = entry.resolve()
            if real in above:
                raise ValueError(f"{entry} leads back, by a link, to a folder that contains it; remove the link")
            yield from _walk(entry, (*above, real))
        elif entry.is_symlink() and not entry.exists():
            raise ValueError(f"{entry} is a link to nothing; mend it or remove it")
        else:
            yield entry


def _check_kind(picture: Image.Image) -> None:
    """Raises ValueError where 8 bits of red, green and blue cannot be had faithfully."""
    grey16 = _is_grey16(picture)
    if not grey16 and picture.mode not in _EIGHT_BIT:
        raise ValueError(f"its pixels are of kind {picture.mode}, whose black and white are unknown; save it as 8 bits")
    tags = getattr(picture, "tag_v2", None) or {}  # of a TIFF
    bits, white_is_zero = tags.get(258, ()), tags.get(262) == 0
    signed = any(kind in (2, 3) for kind in tags.get(339, ()))
    if signed or (grey16 and tags and (white_is_zero or tuple(bits) != (16,))):
        raise ValueError("its pixels are signed, inverted or of an odd number of bits; save it as 8 bits")
    if "transparency" in picture.info and picture.mode != "P":
        tiles = getattr(picture, "tile", ())  # how the pixels are stored, of a picture that was read from a file
        raw = tiles[0][3] if picture.format == "PNG" and tiles else picture.mode
        if grey16 or raw != picture.mode:
            raise ValueError("it marks one value of 2, 4 or 16 bits as transparent; save it with an alpha channel")


def _is_grey16(picture: Image.Image) -> bool:
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey; of 16 bits of colour Pillow keeps the upper 8 itself
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
