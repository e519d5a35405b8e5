"""Pictures of every kind come out right, checked against values worked out without Pillow, or are refused by name."""

import os
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import pictures
from helpers.images.sources import folder_images

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # every 16-bit value once


def read(folder, size):
    """The only image of a folder, (size, size, 3)."""
    (image, _) = folder_images(folder, size)[0]
    return image.permute(1, 2, 0).numpy()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels, depth, kind, transparent=None, height=1):
    """A PNG of packed ``pixels``, written by hand: depth in bits, kind 0 grey, 2 colour, 6 colour and opacity."""
    row = len(pixels) // height
    width = row * 8 // (depth * {0: 1, 2: 3, 6: 4}[kind])
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels, bits, white_is_zero=False, number=1, height=1):
    """A grey TIFF; ``number``: 1 unsigned, 2 signed, 3 float."""
    width = len(pixels) * 8 // bits // height
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, int(not white_is_zero))]
    tags += [(273, 3, 8), (277, 3, 1), (278, 3, height), (279, 4, len(pixels)), (339, 3, number)]
    pixels += bytes(len(pixels) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


# --- kinds of pixels


@pytest.mark.fault("Images", "a picture of 16 bits", "its levels are scaled to 8 bits")
@pytest.mark.parametrize("kind", ["tif", "pgm", "grey.png", "colour.png", "opaque.png"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, kind):
    """A ramp of 16 bits has all 256 levels of 8 bits, equally often; clipped at 255 nearly all of it was white."""
    high = RAMP.astype(">u2")
    colour = np.stack([high, high[::-1], high, np.full_like(high, 65535)], -1).astype(">u2")
    contents = {
        "tif": lambda: tiff(RAMP.astype("<u2").tobytes(), 16, height=256),
        "pgm": lambda: b"P5 256 256 65535\n" + high.tobytes(),
        "grey.png": lambda: png(high.tobytes(), 16, 0, height=256),
        "colour.png": lambda: png(colour[..., :3].tobytes(), 16, 2, height=256),
        "opaque.png": lambda: png(colour.tobytes(), 16, 6, height=256),
    }
    (tmp_path / f"ramp.{kind}").write_bytes(contents[kind]())
    found = read(tmp_path, 256).astype(int)
    assert np.abs(found[..., 0] - RAMP / 257).max() <= 1  # 65535 / 255 = 257
    assert np.array_equal(np.bincount(found[..., 0].ravel()), [256] * 256)
    in_colour = kind in ("colour.png", "opaque.png")
    assert np.array_equal(found[..., 1], found[::-1, :, 0] if in_colour else found[..., 0])


HALF = np.array([[0, 64, 128, 255]] * 4, np.uint8)  # opacity


def over_white(colour, alpha):
    """Porter and Duff's over: what is seen of a colour in front of white."""
    alpha = alpha[..., None] / 255
    return colour * alpha + 255 * (1 - alpha)


@pytest.mark.fault("Images", "a transparent picture", "laid on white, and counted")
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_transparent_pictures_lie_on_white(tmp_path, suffix):
    colour = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(np.dstack([colour, HALF])).save(tmp_path / f"a.{suffix}", **options)
    assert np.abs(read(tmp_path, 4) - over_white(colour, HALF)).max() <= 1
    about = folder_images(tmp_path, 4).describe()
    assert about["transparent"] == 1 and about["background"] == "white"


def test_grey_with_transparency_lies_on_white(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    Image.merge("LA", (Image.fromarray(grey), Image.fromarray(HALF))).save(tmp_path / "a.png")
    assert np.abs(read(tmp_path, 4) - over_white(np.dstack([grey] * 3), HALF)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path, suffix):
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
    picture.putpalette([200, 0, 0, 0, 100, 0])
    picture.save(tmp_path / f"a.{suffix}", transparency=1)
    white, red = [255, 255, 255], [200, 0, 0]
    assert read(tmp_path, 2).tolist() == [[red, white], [white, red]]


def test_a_transparent_grey_value_or_colour_lies_on_white(tmp_path):
    (tmp_path / "a.png").write_bytes(png(bytes([10]), 8, 0, struct.pack(">H", 10)))
    assert read(tmp_path, 1).tolist() == [[[255, 255, 255]]]
    (tmp_path / "a.png").write_bytes(png(bytes([9, 8, 7]), 8, 2, struct.pack(">3H", 9, 8, 7)))
    assert read(tmp_path, 1).tolist() == [[[255, 255, 255]]]
    (tmp_path / "a.png").write_bytes(png(bytes([9, 8, 6]), 8, 2, struct.pack(">3H", 9, 8, 7)))
    assert read(tmp_path, 1).tolist() == [[[9, 8, 6]]]


def test_an_opaque_picture_with_an_alpha_channel_is_as_without(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(np.dstack([colour, np.full((64, 64), 255, np.uint8)])).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path, 64), colour)


def test_print_colours_black_and_white_and_grey(tmp_path):
    Image.new("CMYK", (8, 8), (10, 20, 30, 40)).save(tmp_path / "a.tif")
    wanted = [(255 - ink) * (255 - 40) / 255 for ink in (10, 20, 30)]
    assert np.abs(read(tmp_path, 8) - wanted).max() <= 1
    (tmp_path / "a.tif").unlink()
    bits = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(read(tmp_path, 8), np.dstack([bits * 255] * 3))
    (tmp_path / "bits.png").unlink()
    (tmp_path / "grey.tif").write_bytes(tiff(bytes([55]), 8, white_is_zero=True))
    assert read(tmp_path, 1).tolist() == [[[200] * 3]]


@pytest.mark.fault("Images", "pixels that are floats, signed or inverted", "refused, naming the file")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("int32.tif", Image.fromarray(np.full((4, 4), 70000, np.int32)), "kind I, whose black and white are unknown"),
        ("float.tif", Image.fromarray(np.full((4, 4), 0.5, np.float32)), "kind F, whose black and white are unknown"),
        ("lab.tif", Image.new("LAB", (4, 4)), "kind LAB"),
        ("float.pgm", b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5), "kind F"),
        ("signed16.tif", tiff(struct.pack("<h", -5), 16, number=2), "kind I"),
        ("signed8.tif", tiff(struct.pack("<2b", -5, 5), 8, number=2), "signed, inverted or of an odd number of bits"),
        ("inverted16.tif", tiff(struct.pack("<H", 9), 16, white_is_zero=True), "signed, inverted or of an odd"),
        ("twelve.tif", tiff(bytes([0, 0xFF, 0xFF]), 12), "signed, inverted or of an odd number of bits"),
        ("key16.png", png(struct.pack(">H", 65535), 16, 0, struct.pack(">H", 65535)), "marks one value of 2, 4 or 16"),
        ("key4.png", png(bytes([0xF0]), 4, 0, struct.pack(">H", 15)), "marks one value of 2, 4 or 16 bits"),
        ("colour16.png", png(struct.pack(">3H", 0, 255, 9), 16, 2, struct.pack(">3H", 0, 255, 9)), "marks one value"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify image file"),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
        ("empty.gif", b"", "cannot identify image file"),
    ],
)
def test_what_cannot_be_read_faithfully_is_refused_by_name(tmp_path, name, content, reason):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content.save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} as an image .*{reason}"):
        folder_images(tmp_path, 4)


# --- kinds of files


@pytest.mark.fault("Images", "gif, tif, jfif, bmp, webp and other common kinds", "read")
@pytest.mark.parametrize(
    "name", ["a.jfif", "a.JPE", "a.bmp", "a.gif", "a.TIF", "a.tiff", "a.webp", "a.ppm", "a.PNG", "photo.of.a.png"]
)
def test_every_common_kind_of_file_is_read(tmp_path, name):
    kind = {"JFIF": "JPEG", "JPE": "JPEG", "TIF": "TIFF"}.get(name.split(".")[-1].upper(), None)
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / name, format=kind)
    assert np.abs(read(tmp_path, 16).astype(int) - [200, 100, 50]).max() <= 4
    assert "left_out" not in folder_images(tmp_path, 16).describe()


def test_the_content_counts_and_not_the_extension(tmp_path):
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "a.jpg", format="PNG")
    assert (read(tmp_path, 8) == [9, 8, 7]).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "jpg"])
def test_of_several_pictures_the_first_is_taken(tmp_path, suffix):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    kind = "MPO" if suffix == "jpg" else None  # what telephones write
    red.save(tmp_path / f"a.{suffix}", format=kind, save_all=True, append_images=[blue])
    assert np.abs(read(tmp_path, 8).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.fault(
    "Images", "pictures of other kinds (heic, avif, svg, raw)", "left out; a warning counts and names them"
)
def test_what_is_not_read_is_counted_and_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.svg", "e"):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / "labels.csv").write_text("a,1")
    with pytest.warns(
        UserWarning, match=r"left out below .*: \.heic \(2\), \.svg \(1\), no extension \(1\), such as .*b\.heic"
    ):
        about = folder_images(tmp_path, 8).describe()
    assert about["count"] == 1
    assert about["left_out"] == {".csv": 1, ".heic": 2, ".svg": 1, "no extension": 1}
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"no image below .*; found \.csv \(1\), \.heic \(2\)"):
        folder_images(tmp_path)


@pytest.mark.fault("Images", ".ipynb_checkpoints, and other hidden files and folders", "no images, and no classes")
def test_hidden_files_are_no_images_and_no_classes(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8), (int(name[2]), 0, 0)).save(tmp_path / name)
    plain = folder_images(tmp_path, 8)
    for name in ("a/.ipynb_checkpoints/1.png", "a/@eaDir/1.png", "__MACOSX/a/1.png", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (99, 0, 0)).save(tmp_path / name)
    for name in ("a/._1.png", "a/.DS_Store", "b/Thumbs.db", "desktop.ini", ".png"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = folder_images(tmp_path, 8)
    assert found.describe() == plain.describe() and found.labels == plain.labels and found.classes == ("a", "b")


def test_a_hidden_folder_may_be_asked_for(tmp_path):
    (tmp_path / ".cache").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / ".cache" / "a.png")
    assert len(folder_images(tmp_path / ".cache", 8)) == 1


# --- links, folders, pipes and names


def photographs(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)


@pytest.mark.fault("Images", "a class folder or a file that is a symbolic link", "followed")
def test_linked_folders_and_files_are_followed(tmp_path):
    photographs(tmp_path, "elsewhere/2.png", "elsewhere/3.png", "set/a/1.png", "set/c/4.png", "far.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "linked.png").symlink_to(tmp_path / "far.png")
    found = folder_images(tmp_path / "set", 8)
    assert found.classes == ("a", "b", "c")
    assert sorted(zip(found.labels, found.names, strict=True)) == [
        (0, "1.png"),
        (0, "linked.png"),
        (1, "2.png"),
        (1, "3.png"),
        (2, "4.png"),
    ]
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert len(folder_images(tmp_path / "link", 8)) == 5


@pytest.mark.fault("Images", "a link to nothing, or round in a circle", "refused, naming the link")
@pytest.mark.parametrize("target", [".", "..", "../b", "../.."])
def test_links_round_in_a_circle_are_refused(tmp_path, target):
    photographs(tmp_path / "set", "a/1.png", "b/2.png")
    (tmp_path / "set" / "a" / "again").symlink_to(target)
    (tmp_path / "set" / "b" / "back").symlink_to("../a")
    with pytest.raises(ValueError, match=r"leads back, by a link, to a folder that contains it; remove the link"):
        folder_images(tmp_path / "set", 8)


@pytest.mark.fault("Images", "a link to nothing, or round in a circle", "refused, naming the link")
@pytest.mark.parametrize("name", ["b.png", "class"])
def test_links_to_nothing_are_refused(tmp_path, name):
    photographs(tmp_path, "a.png")
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(ValueError, match=f"{name} is a link to nothing; mend it or remove it"):
        folder_images(tmp_path, 8)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)  # to itself
    with pytest.raises(ValueError, match=f"{name} is a link to nothing"):
        folder_images(tmp_path, 8)


@pytest.mark.fault("Images", "a folder called x.jpg", "a folder like any other")
def test_a_folder_may_be_called_like_a_picture(tmp_path):
    photographs(tmp_path, "x.jpg/1.png", "y.jpg/2.png")
    found = folder_images(tmp_path, 8)
    assert found.classes == ("x.jpg", "y.jpg") and len([image for image, _ in found]) == 2


@pytest.mark.fault("Images", "a pipe among the pictures", "refused, not waited for")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    photographs(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    answer = []

    def look():
        try:
            folder_images(tmp_path, 8)
        except ValueError as error:
            answer.append(str(error))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert answer and "b.png is a pipe or a device, not a picture; remove it" in answer[0]


@pytest.mark.fault("Images", "a file or folder that may not be read", "refused, naming it")
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Root may read everything, so the refusals are put in by hand."""
    photographs(tmp_path, "a/1.png", "b/2.png")

    def refuse(what):
        def refused(path, real):
            if path.name == what:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        return refused

    with monkeypatch.context() as patch:
        listed = pictures.Path.iterdir
        patch.setattr(pictures.Path, "iterdir", lambda path: refuse("b")(path, listed))
        with pytest.raises(ValueError, match=r"cannot look into .*b \(.*Permission denied.*make it readable or remove"):
            folder_images(tmp_path, 8)
    with monkeypatch.context() as patch:
        content = pictures.Path.read_bytes
        patch.setattr(pictures.Path, "read_bytes", lambda path: refuse("2.png")(path, content))
        with pytest.raises(ValueError, match=r"cannot read .*2\.png as an image .*Permission denied"):
            folder_images(tmp_path, 8)


@pytest.mark.fault("Images", "a file name in Latin-1", "refused, naming the file")
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"caf\xe9/a.png"])
def test_a_name_in_latin_1_is_refused_and_can_be_printed(tmp_path, name):
    file = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    photographs(tmp_path, "plain.png")
    with open(tmp_path / "plain.png", "rb") as source, open(file, "wb") as copy:
        copy.write(source.read())
    with pytest.raises(ValueError, match=r"the name of .*caf.*udce9.* is not UTF-8; rename it") as caught:
        folder_images(tmp_path, 8)
    assert str(caught.value).encode()


def test_names_in_any_script_are_read(tmp_path):
    photographs(tmp_path, "köpfe/Ä é.png", "猫/写真.png", "b\nc/\U0001f408.png")
    assert len(folder_images(tmp_path, 8)) == 3


# --- size


def bomb(width, height):
    """A PNG that says it is so large, and holds nearly nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.fault("Images", "a picture of 180 megapixels or more", "refused without decoding it, naming the file")
@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (15_000, 12_000)])
def test_a_picture_of_too_many_pixels_is_refused_undecoded(tmp_path, width, height):
    (tmp_path / "huge.png").write_bytes(bomb(width, height))
    with pytest.raises(
        ValueError, match=r"huge\.png is too large \(.*\d+ pixels.*make the picture smaller or remove it"
    ):
        folder_images(tmp_path, 8)


@pytest.mark.parametrize(("width", "height", "size"), [(1, 40_000, 8), (40_000, 1, 8), (2, 700, 56), (700, 9, 56)])
def test_of_a_very_long_picture_only_the_middle_is_resized(monkeypatch, width, height, size):
    """The same, but for rounding, as the middle of the picture resized as a whole."""
    values = np.random.default_rng(0).integers(80, 170, (height, width, 3), dtype=np.uint8)
    picture, made, resize = Image.fromarray(values), [], Image.Image.resize

    def watched(picture, to, *args, **options):
        made.append(to)
        return resize(picture, to, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    found = np.asarray(pictures.square(picture, size)).astype(int)
    assert made == [(size, size)]
    scale = size / 0.875 / min(width, height)
    whole = resize(picture, (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    wanted = np.asarray(whole)[top : top + size, left : left + size].astype(int)
    assert np.abs(found - wanted).max() <= 2


@pytest.mark.fault(
    "Images", "157 bytes that are a picture of 1 × 40,000 pixels", "cropped while it is resized, in little memory"
)
def test_a_tiny_file_of_a_very_long_picture_takes_little_memory(tmp_path):
    """157 bytes, 1 × 40,000: resized as a whole to 256 × 10,240,000 it took 10.9 GB."""
    Image.new("RGB", (1, 40_000), (9, 8, 7)).save(tmp_path / "long.png")
    resource = pytest.importorskip("resource", reason="Windows does not say how much memory a process had at most")

    def most() -> float:
        """Bytes of memory that this process has had at most."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    limit = most()
    assert (read(tmp_path, 224) == [9, 8, 7]).all()
    assert most() < limit + 100 * 2**20


@pytest.mark.parametrize("size", [0, -1, (144, 256), 22.5, None, "224"])
def test_a_size_is_the_side_of_a_square(tmp_path, size):
    photographs(tmp_path, "a.png")
    with pytest.raises(ValueError, match="size is the side of the square images in px, a whole number of at least 1"):
        folder_images(tmp_path, size)


# --- damage


@pytest.mark.fault("Images", "a picture file of any kind that is cut off", "refused before any picture is read")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp", "ppm"])
@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
def test_a_file_that_is_cut_off_is_refused_before_any_is_read(tmp_path, suffix):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(file)
    whole = file.read_bytes()
    for kept in (len(whole) - 500, len(whole) // 2, len(whole) // 20):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"cannot read .*a\.{suffix} as an image .*mend it or remove it"):
            folder_images(tmp_path, 64)
    file.write_bytes(whole + b"bytes after the end")
    assert torch.from_numpy(read(tmp_path, 64).copy()).float().std() > 20


@pytest.mark.fault("Images", "an empty file, or a web page, that is called x.jpg", "refused, naming the file alone")
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"])
def test_a_file_that_is_no_picture_is_named_by_its_path(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*x\.jpg as an image .*none of JPEG, PNG") as caught:
        folder_images(tmp_path, 8)
    assert "BytesIO" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.fault("Images", "a picture that changes after the set was made", "refused, naming the file")
def test_what_is_read_is_what_the_hash_says(tmp_path):
    photographs(tmp_path, "a.png")
    found = folder_images(tmp_path, 8)
    Image.new("RGB", (8, 8), (77, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has changed since the set of images was made; make the set again"):
        found[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*a\.png as an image .*No such file"):
        found[0]


@pytest.mark.fault("Images", "damage inside a picture", "refused by name when it is read, if it shows")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp", "ppm"])
def test_whatever_is_damaged_nothing_but_a_valueerror_that_names_it_comes_out(tmp_path, suffix):
    draw = np.random.default_rng(0)
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        where = draw.integers(0, min(len(whole), 400), 3)
        damaged[where] = draw.integers(0, 256, 3)
        file.write_bytes(damaged.tobytes())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = read(tmp_path, 12)
        except ValueError as error:
            assert f"a.{suffix}" in str(error)
        else:
            assert image.shape == (12, 12, 3)
