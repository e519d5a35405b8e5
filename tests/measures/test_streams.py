"""What measures take for a stream of images, and how they tell the same images apart."""

import warnings

import pytest
import torch

from helpers.images.sources import scene_images
from helpers.measures.localization import PixelTokens, token_patches
from helpers.measures.probes import features
from helpers.measures.streams import hashes, in_batches, warn_of_repeated
from helpers.networks.taps import taps_named

IMAGES = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_sets_tensors_and_tuples_that_begin_with_one_come_in_batches():
    for images in (IMAGES, (IMAGES, torch.zeros(10))):
        parts = list(in_batches(images, 4))
        assert [len(part) for part in parts] == [4, 4, 2] and torch.equal(torch.cat(parts), IMAGES)
    assert [len(images) for images, _ in in_batches(scene_images(6), 4)] == [4, 2]
    for images in (IMAGES, scene_images(6)):
        with pytest.raises(ValueError, match="batch is a whole number, at least 1; got 0"):
            in_batches(images, 0)


@pytest.mark.fault(
    "Measures", "images in a dict, or a path, for probes and token-to-patch CKA", "refused, with the remedy"
)
def test_what_is_no_stream_of_images_is_named():
    model = PixelTokens(8)
    places = taps_named(model, ["tokens"])
    for images, message in (({"image": IMAGES}, r"batch\['image'\]"), ("photos", "folder_images")):
        with pytest.raises(TypeError, match=message):
            token_patches(model, images, places)
        with pytest.raises(TypeError, match=message):
            features(model, images, places=places)


def test_images_have_one_hash_if_they_have_the_same_pixels():
    found = hashes(torch.cat([IMAGES, IMAGES[3:4]]))
    assert len(set(found)) == 10 and found[3] == found[10]


@pytest.mark.fault("Measures", "images that are there twice in token-to-patch CKA", "counted in a warning")
def test_images_that_are_there_twice_are_counted_at_the_line_that_asked():
    model = PixelTokens(8)
    places = taps_named(model, ["tokens"])
    with pytest.warns(UserWarning, match="4 of 12 images have exactly the pixels of earlier ones") as caught:
        token_patches(model, torch.cat([IMAGES[:8], IMAGES[:5]]), places, batch=4)  # the last one is left out
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_patches(model, IMAGES, places, batch=4)
        warn_of_repeated(0, 10, stacklevel=1)
