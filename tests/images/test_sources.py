"""Image sources: one contract, pinned lists, errors that name the file."""

import warnings

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from helpers.images import sources as images
from helpers.images.scenes import Corpus, render, split


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Six pictures in two classes: four of 32 × 32, one wide, one grey."""
    for k in range(4):
        place = tmp_path / "pictures" / ("cat" if k % 2 else "ant")
        place.mkdir(parents=True, exist_ok=True)
        picture(32, 32, k).save(place / f"{k}.png")
    picture(90, 60).save(tmp_path / "pictures" / "ant" / "wide.jpg")
    picture(40, 40).convert("L").save(tmp_path / "pictures" / "cat" / "grey.PNG")
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


def content(image_set):
    return [(image.numpy().tobytes(), label) for image, label in (image_set[k] for k in range(len(image_set)))]


# --- scenes


def test_scene_images_are_the_scenes_of_the_split():
    found, drawn = images.scene_images(5, "validation"), render(Corpus(), split("validation", 5))
    assert len(found) == 5
    for position in range(5):
        image, label = found[position]
        assert torch.equal(image, drawn.images[position]) and label == drawn.label[position]


def test_the_description_of_scenes_pins_corpus_split_and_count():
    about = images.scene_images(8).describe()
    assert about["count"] == 8 and about["size"] == 64 and about["source"] == "scenes, test split"
    assert about == images.scene_images(8).describe()
    others = [
        images.scene_images(9),
        images.scene_images(8, "train"),
        images.scene_images(8, corpus=Corpus().without("shape")),
    ]
    assert len({about["sha256"], *(other.describe()["sha256"] for other in others)}) == 4


# --- folders


@pytest.mark.fault("Images", "a photograph taken on its side", "turned upright")
def test_photographs_are_turned_upright(tmp_path):
    upright, exif = picture(16, 16), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: to be shown a quarter turn clockwise
    (tmp_path / "ant").mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "ant" / "turned.png", exif=exif)
    wanted = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert torch.equal(images.folder_images(tmp_path, size=16)[0][0], wanted)
    assert torch.equal(images.torchvision_images(ImageFolder(tmp_path), size=16)[0][0], wanted)


def test_a_folder_gives_all_its_images_as_uint8_rgb(folder):
    found = images.folder_images(folder, size=32)
    assert len(found) == 6
    for k in range(6):
        image, label = found[k]
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
        assert label in (0, 1)
    assert sorted(label for _, label in content(found)) == [0, 0, 0, 1, 1, 1]


def test_an_image_that_has_the_size_is_taken_as_it_is(folder):
    found = {bytes_ for bytes_, _ in content(images.folder_images(folder, size=32))}
    for k in range(4):
        assert np.asarray(picture(32, 32, k)).transpose(2, 0, 1).tobytes() in found


def test_other_images_are_cropped_in_the_middle(tmp_path):
    """Of a picture three times as wide as high, black but for a white middle third, the crop shows white alone."""
    pixels = np.zeros((128, 384, 3), np.uint8)
    pixels[:, 128:256] = 255
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    image, _ = images.folder_images(tmp_path, size=112)[0]  # 112 = 0.875 × 128: no change of scale
    assert image.shape == (3, 112, 112) and (image == 255).all()
    image, _ = images.folder_images(tmp_path, size=64)[0]  # the shorter side to 64 / 0.875 = 73 pixels
    assert image.shape == (3, 64, 64) and (image[:, :, 4:-4] > 250).all()
    image, _ = images.folder_images(tmp_path, size=224)[0]  # enlarged where it is too small
    assert image.shape == (3, 224, 224)


def test_the_order_is_shuffled_by_the_seed_alone(folder):
    first, again = images.folder_images(folder, size=32), images.folder_images(folder, size=32)
    assert content(first) == content(again)
    orders = {tuple(content(images.folder_images(folder, size=32, seed=seed))) for seed in range(5)}
    assert len(orders) > 1 and len({frozenset(order) for order in orders}) == 1


def test_a_limit_keeps_the_first_of_the_order(folder):
    assert content(images.folder_images(folder, size=32, limit=3)) == content(images.folder_images(folder, size=32))[:3]
    assert images.folder_images(folder, size=32, limit=3).describe()["count"] == 3


def test_the_hash_pins_names_bytes_and_order(folder):
    def pinned(**options):
        return images.folder_images(folder, size=32, **options).describe()["sha256"]

    whole = pinned()
    assert whole == pinned()
    assert len({whole, pinned(limit=3), pinned(seed=1)}) == 3
    (folder / "ant" / "0.png").rename(folder / "ant" / "00.png")
    renamed = pinned()
    assert renamed != whole
    picture(32, 32, 77).save(folder / "ant" / "00.png")
    assert pinned() not in (whole, renamed)


def test_the_description_has_no_path_of_this_machine(folder):
    about = images.folder_images(folder, size=32, seed=3).describe()
    assert about["source"] == "folder pictures" and about["shuffled_with_seed"] == 3
    assert str(folder.parent) not in repr(about)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "garbled"])
def test_an_unreadable_image_is_named_before_any_is_read(folder, damage):
    file = folder / "cat" / "1.png"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "text": b"no picture at all",
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "garbled": whole[:60] + bytes(len(whole) - 60),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"cannot read .*cat.*1\.png as an image .*; mend it or remove it"):
        images.folder_images(folder, size=32)


def test_errors_of_folders_say_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no folder of images at .*nowhere"):
        images.folder_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no image below .*; looked for \.bmp"):
        images.folder_images(tmp_path)
    picture(8, 8).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="limit is a number of images, at least 1; got 0"):
        images.folder_images(tmp_path, limit=0)
    with pytest.raises(ValueError, match="limit is a number of images, at least 1; got 1.5"):
        images.folder_images(tmp_path, limit=1.5)


# --- copies and classes


def classed(root, **classes):
    """A folder of class folders; every picture differs, and shows the first letter of its class in red."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (ord(name[0]), number, 0)).save(root / name / f"{number}.png")
    return root


def shown_and_said(image_set):
    """The letter each image shows, and the name of the class that its label says."""
    return [(chr(image[0, 0, 0]), image_set.classes[label]) for image, label in image_set]


@pytest.mark.fault("Images", "copies of a picture in a folder", "a warning counts them and names one")
def test_copies_are_counted_and_named(tmp_path):
    root = classed(tmp_path / "set", a=3, b=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "duplicates" not in images.folder_images(root, 8).describe()
    for name in ("a/again.png", "b/again.png"):
        (root / name).write_bytes((root / "a" / "1.png").read_bytes())
    said = r"2 of 7 images are copies of others, such as .*(1|again)\.png of .*(1|again)\.png; .*remove them"
    with pytest.warns(UserWarning, match=said) as caught:
        assert images.folder_images(root, 8).describe()["duplicates"] == 2
    assert caught[0].filename == __file__


def test_classes_are_known_without_reading(tmp_path, monkeypatch):
    found = images.folder_images(classed(tmp_path, b=2, a=1, c=3), 8)
    monkeypatch.setattr(images.pictures, "square", None)
    assert found.classes == ("a", "b", "c") and sorted(found.labels) == [0, 1, 1, 2, 2, 2]
    assert found.first(2).classes == found.classes


def test_labels_follow_the_classes_that_are_given(tmp_path):
    learnt = images.folder_images(classed(tmp_path / "learn", a=2, b=2, c=2), 8)
    scored = classed(tmp_path / "score", a=1, c=2)
    assert sorted(images.folder_images(scored, 8).labels) == [0, 1, 1]  # by themselves
    found = images.folder_images(scored, 8, classes=learnt.classes)
    assert found.classes == ("a", "b", "c") and sorted(found.labels) == [0, 2, 2]
    assert sorted(shown_and_said(found)) == [("a", "a"), ("c", "c"), ("c", "c")]
    assert found.describe()["classes"] == ["a", "b", "c"]
    assert found.describe()["sha256"] == images.folder_images(scored, 8).describe()["sha256"]
    reverse = images.folder_images(scored, 8, classes=["c", "b", "a"])
    assert [2 - label for label in found.labels] == reverse.labels
    with pytest.raises(ValueError, match=r"class folders c below .*score are not among a, b"):
        images.folder_images(scored, 8, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"each class has a name of its own; got a, c, a"):
        images.folder_images(scored, 8, classes=["a", "c", "a"])


@pytest.mark.fault(
    "Images",
    "classes a, b, c to learn from, and a, c to be scored on",
    "labels follow the names of the folders; what is missing is named",
)
def test_sets_are_matched_by_the_names_of_their_classes(tmp_path):
    learnt = images.folder_images(classed(tmp_path / "learn", a=2, b=2, c=2), 8)
    scored = images.folder_images(classed(tmp_path / "score", a=1, c=2), 8)
    with pytest.raises(ValueError, match=r"the images to match have none of b; if that is meant, give subset=True"):
        images.match_classes(scored, learnt)
    found = images.match_classes(scored, learnt, subset=True)
    assert sorted(shown_and_said(found)) == [("a", "a"), ("c", "c"), ("c", "c")]
    assert found.labels == [label for _, label in found] and found.classes == learnt.classes
    assert found.names == scored.names and len(found) == len(scored)
    assert found.describe() == {**scored.describe(), "classes": ["a", "b", "c"]}
    assert found.first(2).labels == found.labels[:2]
    assert images.match_classes(learnt, learnt) is learnt
    with pytest.raises(ValueError, match=r"classes that are not among those matched to: b"):
        images.match_classes(learnt, scored, subset=True)


def test_sets_without_names_are_matched_only_to_each_other(tmp_path):
    named, scenes = images.folder_images(classed(tmp_path, a=1, b=1), 8), images.scene_images(2)
    assert images.match_classes(scenes, images.scene_images(3)) is scenes
    for pair in ((named, scenes), (scenes, named)):
        with pytest.raises(ValueError, match="the classes of only one of the two sets have names"):
            images.match_classes(*pair)
    twice = images.ImageSet(1, named.__getitem__, {}, classes=("crane", "crane"))
    with pytest.raises(ValueError, match="two classes of one set have the same name"):
        images.match_classes(named, twice)


def test_a_limit_leaves_the_labels_as_they_are(tmp_path):
    root = classed(tmp_path, a=1, b=20, c=1)
    whole, part = images.folder_images(root, 8), images.folder_images(root, 8, limit=3)
    assert part.classes == whole.classes and part.labels == whole.labels[:3]


@pytest.mark.fault(
    "Images", "pictures beside the class folders, or class folders in several places", "a warning says so"
)
def test_folders_that_are_not_those_of_the_classes_are_pointed_out(tmp_path):
    classed(tmp_path / "set" / "train", a=1, b=1)
    classed(tmp_path / "set" / "val", ab=1, b=2)
    with pytest.warns(UserWarning, match="train/b, val/b count as different classes; if they are one"):
        found = images.folder_images(tmp_path / "set", 8)
    assert found.classes == ("train/a", "train/b", "val/ab", "val/b")
    picture(8, 8).save(tmp_path / "set" / "train" / "stray.png")
    with pytest.warns(UserWarning, match=r"stray\.png lies beside the class folders: .* named '\.'; move them"):
        assert images.folder_images(tmp_path / "set" / "train", 8).classes == (".", "a", "b")


def test_a_set_ends_where_it_ends(tmp_path):
    found = images.folder_images(classed(tmp_path, a=4), 8)
    assert len(list(found.first(2))) == 2 and len(list(found)) == 4
    assert torch.equal(found.first(2)[-1][0], found[1][0])
    for position in (2, -3):
        with pytest.raises(IndexError, match="there are 2 images"):
            found.first(2)[position]


# --- torchvision sets


def test_a_torchvision_set_is_shuffled_cropped_and_pinned():
    from torchvision.datasets import FakeData

    data = FakeData(size=7, image_size=(3, 40, 48), num_classes=3)
    found = images.torchvision_images(data, size=32)
    assert len(found) == 7 and found[0][0].shape == (3, 32, 32) and found[0][0].dtype == torch.uint8
    assert sorted(label for _, label in content(found)) == sorted(int(label) for _, label in data)
    about = found.describe()
    assert about["source"] == "torchvision FakeData" and about["count"] == 7
    assert about["sha256"] != images.torchvision_images(data, size=32, seed=1).describe()["sha256"]
    assert content(images.torchvision_images(data, size=32, limit=2)) == content(found)[:2]


def test_the_classes_of_a_torchvision_set_have_its_names(tmp_path):
    data = ImageFolder(classed(tmp_path / "set", a=2, b=1))
    found = images.torchvision_images(data, 8)
    assert found.classes == ("a", "b") and sorted(shown_and_said(found)) == [("a", "a"), ("a", "a"), ("b", "b")]
    data.classes = [("ant", "emmet"), ("bee",)]  # as Imagenette has them
    assert images.torchvision_images(data, 8).classes == ("ant, emmet", "bee")


@pytest.mark.fault("Images", "a torchvision set with transforms of its own", "refused: make it without")
def test_a_torchvision_set_of_other_things_is_refused(tmp_path):
    root = classed(tmp_path / "set", a=1)
    made = images.torchvision_images(ImageFolder(root, transform=pil_to_tensor), 8)
    with pytest.raises(
        ValueError, match=r"ImageFolder gives \(Tensor, int\), not \(PIL image, label\); make it without"
    ):
        made[0]
    told = images.torchvision_images(ImageFolder(root, target_transform=str), 8)
    with pytest.raises(ValueError, match=r"ImageFolder gives \(Image, str\)"):
        told[0]
    deep = images.torchvision_images([(Image.new("F", (8, 8)), 0)], 8)
    with pytest.raises(
        ValueError, match=r"cannot read list\[0\] as an image .*kind F, whose black and white are unknown"
    ):
        deep[0]
    with pytest.raises(ValueError, match="size is the side"):
        images.torchvision_images(ImageFolder(root), (8, 8))


# --- batches and parts


def test_batches_come_in_order_and_the_last_is_kept():
    found = images.scene_images(10)
    loaded = list(images.batches(found, 4))
    assert [len(batch) for batch, _ in loaded] == [4, 4, 2]
    assert torch.equal(torch.cat([batch for batch, _ in loaded]), render(Corpus(), split("test", 10)).images)
    assert torch.cat([labels for _, labels in loaded]).tolist() == [label for _, label in content(found)]
    with pytest.raises(ValueError, match="at least 1 image; got 0"):
        images.batches(found, 0)


def test_the_first_images_of_a_set(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / name / f"{name}.png")
    photos = images.folder_images(tmp_path, 8)
    assert [f"{'abc'[label]}.png" for label in photos.labels] == photos.names
    assert [photos[i][1] for i in range(3)] == photos.labels
    two = photos.first(2)
    assert len(two) == 2 and two.names == photos.names[:2] and two.describe()["first_of"] == 3
    assert torch.equal(two[1][0], photos[1][0]) and photos.first(5) is photos
