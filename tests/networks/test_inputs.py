"""From a batch to a model's input: right in every precision, refused for every other kind, size and range."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from helpers.networks import zoo
from helpers.networks.inputs import float64, image_size, labelled, normalise, pixels, resize_for

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)


class Normalised(nn.Module):
    """Something with a parameter and a configuration, as timm's models have."""

    def __init__(self, **config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        if config:
            self.pretrained_cfg = config


def test_normalise_uses_the_models_own_mean_and_deviation():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    model = Normalised(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), input_size=(3, 8, 8))
    expected = (pixels.float() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 1.0]
    ).view(3, 1, 1)
    assert torch.allclose(normalise(model, pixels), expected, atol=1e-6)
    assert torch.allclose(normalise(model, pixels.float() / 255), expected, atol=1e-6)
    assert normalise(model, pixels).dtype == torch.float32


@pytest.mark.fault("Images", "images of another size than the network takes", "refused, with what to do")
def test_normalise_says_what_does_not_fit():
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"does not say how its input is normalised: set model\.pretrained_cfg"):
        normalise(Normalised(), pixels)
    small = Normalised(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 16, 16))
    with pytest.raises(ValueError, match=r"takes images of shape \(3, 16, 16\) and was given \(3, 8, 8\).*size=16"):
        normalise(small, pixels)


def test_the_size_that_counts_is_the_one_the_network_was_made_for():
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", **small)
    with pytest.raises(ValueError, match=r"\(3, 224, 224\) and was given \(3, 64, 64\).*with img_size=64"):
        normalise(vit, pixels)
    takes = [
        timm.create_model("vit_tiny_patch16_224", img_size=64, **small),  # what the error says
        timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **small),
        timm.create_model("mixer_s32_224", img_size=64),
        timm.create_model("resnet10t"),
    ]
    assert [image_size(model) for model in takes] == [(64, 64), None, (64, 64), None]
    for model in takes:
        model(normalise(model, pixels))
    with pytest.raises(ValueError, match=r"takes images of shape \(3, 64, 64\)"):
        normalise(takes[0], torch.zeros(1, 3, 224, 224))
    with pytest.raises(ValueError, match=r"was given \(1, 64, 64\); convert them to RGB"):
        normalise(takes[3], pixels[:, :1])
    zoos = zoo.load("resnet", pretrained=False)
    with pytest.raises(ValueError, match=r"takes images of shape \(3, 64, 64\).*input_size'\] = \(3, 224, 224\)"):
        normalise(zoos, torch.zeros(1, 3, 224, 224))


# --- the images of a batch


def images_of(*shape):
    return torch.zeros(*shape, dtype=torch.uint8)


def test_the_images_of_a_batch_are_it_or_its_first():
    images, labels = images_of(2, 3, 8, 8), torch.tensor([0, 1])
    for batch in (images, (images, labels), [images, labels], (images,), [images, labels, "a"]):
        assert pixels(batch) is images
    assert pixels(images_of(2, 1, 8, 8)).shape == (2, 1, 8, 8)  # of other models: normalise asks for three


@pytest.mark.fault("Images", "a batch that is a dict, a NumPy array or a list of pictures", "refused, with what to do")
@pytest.mark.parametrize(
    ("batch", "error", "remedy"),
    [
        (
            {"image": images_of(2, 3, 8, 8), "label": 0},
            TypeError,
            r"pick the images out of it, such as batch\['image'\]",
        ),
        (({"image": 0}, 0), TypeError, r"a tuple whose first entry that is a dict; pick"),
        (np.zeros((2, 3, 8, 8), np.uint8), TypeError, r"ndarray; use torch\.from_numpy"),
        ([Image.new("RGB", (8, 8))], TypeError, r"a list whose first entry that is a Image; .*pil_to_tensor"),
        ("photographs", TypeError, r"folder_images\(path\)"),
        (None, TypeError, r"NoneType"),
        ([[images_of(3, 8, 8)]], TypeError, r"torch\.stack"),
        ((), ValueError, "the batch is empty"),
        ([], ValueError, "the batch is empty"),
        (images_of(0, 3, 8, 8), ValueError, r"no image in a batch of shape \(0, 3, 8, 8\)"),
        (images_of(3, 8, 8), ValueError, r"four axes .*got \(3, 8, 8\); add one: images\[None\]"),
        ([images_of(3, 8, 8), images_of(3, 8, 8)], ValueError, r"got \(3, 8, 8\)"),
        (images_of(2, 192), ValueError, r"four axes .*got \(2, 192\)"),
        (images_of(2, 8, 8, 3), ValueError, r"got \(2, 8, 8, 3\); use images\.permute\(0, 3, 1, 2\)"),
    ],
)
def test_any_other_batch_is_refused_with_what_to_do(batch, error, remedy):
    with pytest.raises(error, match=remedy):
        pixels(batch)
    model = Normalised(mean=MEAN, std=STD, input_size=(3, 8, 8))
    with pytest.raises(error, match=remedy):
        normalise(model, batch)


# --- range and precision


@pytest.mark.fault(
    "Images", "normalised pixels, floats of 0 … 255, whole numbers other than uint8", "refused, with what to do"
)
@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda x: (x.float() / 255 - 0.5) / 0.25, r"float32 -2 … 2; if they are normalised already, undo it"),
        (lambda x: x.float() / 255 * 1.1, r"divide them by 255; if resizing went beyond 1, use images\.clamp"),
        (lambda x: x.float(), r"float32 0 … 255; if they are 0 … 255, divide them by 255"),
        (lambda x: x.half(), r"float16 0 … 255; if they are 0 … 255, divide them by 255"),
        (lambda x: x.float() * 257, r"float32 0 … 6\.554e\+04"),
        (lambda x: x.long(), r"got torch\.int64; if they are 0 … 255, use images\.to\(torch\.uint8\)"),
        (lambda x: x.int(), r"got torch\.int32"),
        (lambda x: x > 100, r"got torch\.bool; .*if they are 0 and 1, use images\.float\(\)"),
        (lambda x: (x.float() / 255).where(x != 7, torch.nan), r"not finite"),
        (lambda x: (x.float() / 255).where(x != 7, torch.inf), r"not finite"),
        (lambda x: x.to(torch.complex64), r"got torch\.complex64"),
    ],
)
def test_pixels_of_another_range_are_refused(change, remedy):
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    model = Normalised(mean=MEAN, std=STD, input_size=(3, 16, 16))
    assert torch.equal(normalise(model, every.float() / 255), normalise(model, every))
    with pytest.raises(ValueError, match=r"pixels are uint8, or float in \[0, 1\]; .*" + remedy):
        normalise(model, change(every))


def test_rounding_beyond_the_range_is_taken():
    model = Normalised(mean=MEAN, std=STD, input_size=(3, 8, 8))
    images = torch.nn.functional.interpolate(torch.ones(1, 3, 5, 5), 8, mode="bicubic") * (1 + 1e-6)
    assert images.max() > 1 and normalise(model, images).isfinite().all()


@pytest.mark.fault(
    "Networks and weights", "a network in half, bfloat16 or double precision", "images are cast to its precision"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_models_of_every_precision_run(name, dtype):
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, **small).eval().to(dtype)
    every = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    prepared = normalise(model, every)
    mean, std = (np.array(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    wanted = torch.from_numpy((every.numpy() / 255 - mean) / std)  # in double precision
    assert prepared.dtype == dtype and torch.allclose(
        prepared.double(), wanted, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6
    )
    with torch.inference_mode():
        assert model(prepared).isfinite().all()


def test_the_gradient_reaches_the_pixels():
    model = Normalised(mean=MEAN, std=STD, input_size=(3, 4, 4))
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    gradient = torch.autograd.grad(normalise(model, images).sum(), images)[0]
    assert torch.allclose(gradient, (1 / torch.tensor(STD)).view(1, 3, 1, 1).expand_as(gradient))


def test_a_model_without_weights_is_given_float32():
    model = nn.Flatten()
    model.pretrained_cfg = {"mean": MEAN, "std": STD}
    assert normalise(model, images_of(1, 3, 8, 8)).dtype == torch.float32


@pytest.mark.fault(
    "Networks and weights", "a mean or deviation that cannot be, such as a deviation of 0", "refused, naming it"
)
@pytest.mark.parametrize(
    "statistics",
    [
        {"mean": MEAN, "std": (0.5, 0.0, 0.5)},
        {"mean": MEAN, "std": (0.5, -0.5, 0.5)},
        {"mean": MEAN, "std": (0.5, 1e-60, 0.5)},  # 0 in single precision
        {"mean": (0.5, float("nan"), 0.5), "std": STD},
        {"mean": (0.5,), "std": (0.5,)},
    ],
)
def test_a_normalisation_that_cannot_be_is_refused(statistics):
    with pytest.raises(ValueError, match=r"Normalised says its input has mean .* set model\.pretrained_cfg"):
        normalise(Normalised(**statistics), images_of(1, 3, 8, 8))


@pytest.mark.fault("Images", "images in 8-bit floats, sparse, or without values (meta)", "refused, naming the kind")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.to(torch.float8_e4m3fn), r"float8_e4m3fn; use images\.float"),
        (lambda x: x.to_sparse(), r"stored as torch\.sparse_coo; .*images\.to_dense"),
        (lambda x: x.to("meta"), "on the meta device, without values"),
    ],
)
def test_images_that_hold_no_plain_pixels_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        normalise(Normalised(mean=MEAN, std=STD, input_size=(3, 4, 4)), change(torch.ones(1, 3, 4, 4)))


def test_a_marked_model_is_given_its_own_size_of_images():
    model = resize_for(Normalised(mean=(0.0,) * 3, std=(1.0,) * 3, input_size=(3, 4, 4)), (4, 4))
    flat = normalise(model, torch.full((2, 3, 10, 10), 51, dtype=torch.uint8))
    assert flat.shape == (2, 3, 4, 4) and torch.allclose(flat, torch.tensor(0.2))
    same = torch.rand(2, 3, 4, 4)
    assert torch.equal(normalise(model, same), same)
    halves = torch.zeros(1, 3, 8, 8)
    halves[..., 4:] = 1  # right half bright: each half keeps its brightness away from the edge between them
    small = normalise(model, halves)
    assert small[..., 0].max() < 0.01 and small[..., -1].min() > 0.99


def test_double_precision_is_had_on_the_host_where_the_device_has_none():
    class Apple:
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(2)

        def double(self):
            raise TypeError("MPS has no float64")

    assert float64(Apple()).dtype == float64(torch.ones(2)).dtype == torch.float64


def test_labels_come_one_an_image_or_are_asked_for():
    images, labels = labelled((torch.rand(2, 3, 4, 4), [3, 1]))
    assert images.shape == (2, 3, 4, 4) and torch.equal(labels, torch.tensor([3, 1]))
    for batch in (images, (images,), (images, torch.tensor(3)), (images, [1, 2, 3])):
        with pytest.raises(ValueError, match="a label for each image"):
            labelled(batch)
