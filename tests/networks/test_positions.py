"""Layouts and geometry: of networks inside other modules, of images that are not square, of blurred strides."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import Resize

from helpers.measures.localization import token_patches
from helpers.measures.probes import features
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.skip_ratios import skip_ratios
from helpers.networks.geometry import Centres
from helpers.networks.positions import has_class_token, positions, prefix_tokens, token_grid
from helpers.networks.taps import Tap, capture, taps_for, taps_named

CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "fixed_input_size": False}
SMALL_SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24}


class Wrapped(nn.Module):
    """A network inside a module of one's own."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.pretrained_cfg = body, CONFIG

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Both(nn.Module):
    """Two networks that see the same images."""

    def __init__(self, **networks: nn.Module):
        super().__init__()
        self.networks, self.pretrained_cfg = nn.ModuleDict(networks), CONFIG

    def forward(self, x: Tensor) -> list[Tensor]:
        return [network(x) for network in self.networks.values()]


def make(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    model.pretrained_cfg = CONFIG
    return model


def vit(**options) -> nn.Module:
    return make("vit_tiny_patch16_224", **{"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2, **options})


def photographs(count: int, *size: int) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def reached(model: nn.Module, tap: Tap, token: int, x: Tensor) -> tuple[float, float, float, float]:
    """First and last row and column of the pixels on which a token depends: by autograd alone."""
    x = x.clone().requires_grad_()
    with capture(model, [tap]) as out:
        model(x)
    field = torch.autograd.grad(out[tap.name][:, token].abs().sum(), x)[0].abs().sum((0, 1))
    rows, columns = (field.sum(1 - axis).nonzero().flatten() for axis in (0, 1))
    return rows[0].item(), rows[-1].item(), columns[0].item(), columns[-1].item()


@pytest.mark.fault(
    "Measures",
    "a ViT that takes images of any size, given 144 × 256 pixels (as many patches as a square has)",
    "the grid is 9 × 16: receptive fields, tokens and patches lie where they are",
)
def test_a_vit_of_any_size_has_the_grid_of_its_images():
    model = vit(img_size=224, dynamic_img_size=True)
    images, embed = photographs(4, 144, 256), taps_for(model, ["embed"])
    assert token_grid(model, (144, 256)) == (9, 16)
    found = effective_receptive_fields(model, images, embed, groups=2)
    row, column = found.places[["row", "column"]].iloc[0]
    assert (row, column) == (72, 136)
    assert reached(model, embed[0], 1 + 4 * 16 + 8, images) == (64, 79, 128, 143)  # row 4 of 9, column 8 of 16
    field = found.mean()[0]
    assert field[64:80, 128:144].sum() == pytest.approx(field.sum()) and field.sum() > 0
    place = token_patches(model, (images * 255).byte(), embed, batch=4)["embed"]
    assert place.grid == (9, 16)
    assert [(place.patches == token).nonzero().tolist()[0] for token in (0, 15, 16)] == [[0, 0], [0, 240], [16, 0]]
    coarse = features(model, images, ["tokens"], embed, grid=(3, 4))["tokens"]["embed"]  # (12, images, d)
    tokens = features(model, images, ["tokens"], embed)["tokens"]["embed"].view(9, 16, 4, -1)
    torch.testing.assert_close(coarse[1], tokens[:3, 4:8].mean((0, 1)))


@pytest.mark.fault(
    "Measures", "tokens of a ViT that takes any size, and no size of the images", "refused: it asks for it"
)
def test_tokens_alone_do_not_say_where_they_lie():
    with pytest.raises(ValueError, match=r"takes images of any size.*size=\(H, W\)"):
        positions(vit(img_size=224, dynamic_img_size=True), torch.zeros(2, 145, 24))
    padded = vit(img_size=224, dynamic_img_size=True, dynamic_img_pad=True)
    assert token_grid(padded, (60, 100)) == (4, 7)


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("mixer_s32_224", {"img_size": (64, 256)}, (2, 8)),  # 16 tokens, as a square of 4 × 4 has
        ("pit_ti_224", {"img_size": (64, 128)}, (2, 4)),  # 7 × 15, halved twice
        ("swin_tiny_patch4_window7_224", {**SMALL_SWIN, "img_size": (64, 256)}, (2, 8)),
        ("xcit_nano_12_p16_224", {}, (4, 16)),  # says nothing of its grid: squares of 16 pixels
    ],
)
@pytest.mark.fault("Measures", "images that are not square (Mixer, PiT, Swin, XCiT)", "the grid has their shape")
def test_grids_of_images_that_are_not_square(name, options, grid):
    model, size = make(name, **options), options.get("img_size", (64, 256))
    last = taps_for(model, ["channel_mix", "mlp", "block"])[-1:]
    with torch.inference_mode(), capture(model, last) as out:
        model(photographs(2, *size))
    assert positions(model, out[last[0].name], size=size, tap=last[0]).grid == grid


def test_tokens_that_fit_no_grid_are_refused():
    with pytest.raises(ValueError, match="11 tokens are not the 4 × 4 patches"):
        positions(vit(), torch.zeros(2, 11, 24))
    with pytest.raises(ValueError, match=r"17 tokens make up no grid of squares on 64 × 96 px"):
        positions(make("xcit_nano_12_p16_224"), torch.zeros(2, 17, 24), size=(64, 96))


@pytest.mark.fault("Measures", "a Swin inside a module of one's own", "its channels-last maps are read as such")
@pytest.mark.fault("Measures", "a Swin made with features_only=True", "its channels-last maps are read as such")
@pytest.mark.parametrize(
    "wrap", [Wrapped, lambda model: make("swin_tiny_patch4_window7_224", features_only=True, **SMALL_SWIN)]
)
def test_channels_last_are_seen_inside_other_modules(wrap):
    bare = make("swin_tiny_patch4_window7_224", **SMALL_SWIN)
    wrapped = wrap(bare)
    if wrapped.__class__ is not Wrapped:
        wrapped.load_state_dict({name.replace("layers.", "layers_"): v for name, v in bare.state_dict().items()}, False)
    images, tables = photographs(2, 64, 64), []
    for model in (bare, wrapped):
        model.pretrained_cfg = CONFIG
        taps = taps_for(model, ["embed", "resid_mid", "resid_post"])[:3]
        found = effective_receptive_fields(model, images, taps, groups=2).table(4)
        tables.append(found[["row", "column", "radius", "share"]])
    torch.testing.assert_close(*(torch.tensor(table.to_numpy()) for table in tables))
    assert (tables[1]["radius"] > 0).all() and tables[1]["share"].iloc[0] == pytest.approx(1)  # the patch embedding's


def test_channels_within_a_block_are_those_of_the_layer_that_was_tapped():
    model = make("convnext_atto")
    taps = taps_for(model)[:5]
    assert [tap.kind for tap in taps] == ["stem", "conv", "norm", "mlp_hidden", "branch"]  # the third and fourth: last
    with (
        torch.inference_mode(),
        capture(model, taps, lambda x, tap: positions(model, x, tap=tap), with_tap=True) as out,
    ):
        model(photographs(2, 64, 128))
    assert {at.grid for at in out.values()} == {(16, 32)}
    assert [at.tokens.shape[-1] for at in out.values()] == [40, 40, 40, 160, 40]


def by_hand(model: nn.Module, block: nn.Module, images: Tensor, patches: slice) -> float:
    """Mean over images and patches of ‖z‖ / ‖f(z)‖ at an attention, from the block's own parts."""
    seen = []
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        model((images - 0.5) / 0.25)
        handle.remove()
        z = seen[0]
        f = block.attn(block.norm1(z))
    return float((z.norm(dim=-1) / f.norm(dim=-1))[:, patches].mean())


@pytest.mark.parametrize(
    "wrap",
    [Wrapped, lambda model: make("vit_tiny_patch16_224", features_only=True, img_size=64, num_heads=2, embed_dim=24)],
)
@pytest.mark.fault("Measures", "a ViT inside a module of one's own", "its CLS token is not counted among the patches")
@pytest.mark.fault("Measures", "a ViT made with features_only=True", "its CLS token is not counted among the patches")
def test_prefix_tokens_are_seen_inside_other_modules(wrap):
    model = wrap(vit())
    model.pretrained_cfg, images = CONFIG, photographs(4, 64, 64)
    assert prefix_tokens(model) == 1 and has_class_token(model) and token_grid(model) == (4, 4)
    block = next(module for name, module in model.named_modules() if name.endswith("blocks.0"))
    found = skip_ratios(model, [images], 1).table()
    first = found[found["sublayer"].str.endswith("blocks.0.attn")].set_index("tokens")["ratio"]
    assert first["patches"] == pytest.approx(by_hand(model, block, images, slice(1, None)), rel=1e-5)
    assert first["CLS"] == pytest.approx(by_hand(model, block, images, slice(0, 1)), rel=1e-5)
    assert abs(first["all"] - first["patches"]) > 1e-3


@pytest.mark.fault(
    "Measures", "a module that holds several networks", "each tap is read as its own; else it is refused"
)
def test_two_networks_in_one_module_are_told_apart_by_the_tap():
    model = Both(
        vit=vit(reg_tokens=4),
        swin=make("swin_tiny_patch4_window7_224", **SMALL_SWIN),
        mixer=make("mixer_s32_224", img_size=64),
        cnn=make("resnet10t"),
    )
    taps = [
        *taps_for(model, ["embed"])[:1],
        *taps_named(model, ["networks.swin.layers.0", "networks.mixer.blocks.0", "networks.cnn.layer1"]),
    ]
    read = lambda x, tap: positions(model, x, size=(64, 64), tap=tap)  # noqa: E731
    with torch.inference_mode(), capture(model, taps, read, with_tap=True) as out:
        model(photographs(2, 64, 64))
    assert [at.grid for at in out.values()] == [(4, 4), (16, 16), (2, 2), (16, 16)]
    assert [at.prefix.shape[1] for at in out.values()] == [5, 0, 0, 0]
    with pytest.raises(
        ValueError,
        match=r"different grids of patches \(networks.vit, networks.swin, networks.mixer\): say which by a tap",
    ):
        token_grid(model)
    with pytest.raises(ValueError, match="different numbers of prefix tokens"):
        prefix_tokens(Both(one=vit(), other=vit(reg_tokens=4)))


def support(model: nn.Module, name: str, size: int) -> float:
    """Middle of the rows of pixels on which the middle position of a map depends: by autograd, all weights positive.

    Non-linearities and norms are left out, so that nothing but kernels, strides and padding decides.
    """
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm2d, nn.ReLU)) or type(child).__name__ == "BatchNormAct2d":
                setattr(parent, key, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                setattr(
                    parent, key, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, count_include_pad=True)
                )
    for weight in model.parameters():
        nn.init.constant_(weight, 1e-2)
    x = torch.rand(1, 3, size, size, requires_grad=True)
    with capture(model.double(), taps_named(model, [name])) as out:
        model(x.double())
    middle = out[name][0, :, out[name].shape[2] // 2, out[name].shape[3] // 2].sum()
    inside = torch.autograd.grad(middle, x)[0].abs().sum((0, 1, 3)).nonzero().flatten()
    assert inside[0] > 0 and inside[-1] < size - 1, "the field is cut by the rim: take a larger image"
    return float(inside[0] + inside[-1] + 1) / 2


@pytest.mark.parametrize(
    ("name", "place", "size"),
    [
        ("resnetblur18", "layer3.0", 448),
        ("resnet18", "layer3.0", 448),
        pytest.param(
            "dla34",
            "level3",
            448,
            marks=pytest.mark.fault("Measures", "parallel paths of different middles", "the middle is that of both"),
        ),
        pytest.param(
            "resnetaa50",
            "layer2.0",
            448,
            marks=pytest.mark.fault("Measures", "strides made by average pools", "their centres count"),
        ),
    ],
)
@pytest.mark.fault(
    "Measures", "a network that blurs before it strides (resnetblur18)", "the blur is part of the geometry"
)
def test_centres_are_where_gradients_say(name, place, size):
    model = timm.create_model(name).eval()
    with torch.inference_mode(), Centres(model) as centres, capture(model, taps_named(model, [place])) as out:
        model(torch.rand(1, 3, size, size))
    n = out[place].shape[2]
    assert centres.centre(n, n // 2, size, 0) == support(model, place, size)


def test_the_middle_of_a_blurred_network():
    model = make("resnetblur18", zero_init_last=False)
    found = effective_receptive_fields(
        model, photographs(2, 448, 448), taps_named(model, ["layer3.0"]), groups=2, channels=2
    )
    assert found.places["row"].item() == found.places["column"].item() == 224.5


@pytest.mark.parametrize(
    ("layer", "centre"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2), 2 * 8 - 2 + 2 + 0.5),
        (nn.Conv2d(3, 4, 2, stride=2), 2 * 8 + 1),
        (nn.PixelUnshuffle(4), 4 * 4 + 2),
        (nn.ReflectionPad2d((3, 0, 1, 0)), None),
    ],
)
def test_the_centre_of_one_layer(layer, centre):
    model = nn.Sequential(layer)
    with torch.inference_mode(), Centres(model) as centres:
        n = model(torch.rand(1, 3, 32, 32)).shape[2]
    position = n // 2
    wanted = position - 1 + 0.5 if centre is None else centre  # one row of padding above
    assert centres.centre(n, position, 32, 0) == wanted


class Before(nn.Module):
    """Something done to the images before a network."""

    def __init__(self, first, body: nn.Module):
        super().__init__()
        self.first, self.body = first, body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.first(x))


@pytest.mark.parametrize(
    ("first", "size", "said"),
    [
        (
            lambda x: nn.functional.interpolate(x, scale_factor=2),
            128,
            "first layer is given 128 rows of an image of 64",
        ),
        (lambda x: nn.functional.pad(x, (16, 16, 16, 16)), 96, "first layer is given 96 rows of an image of 64"),
        (lambda x: x[:, :, 16:48, 16:48], 32, "first layer is given 32 rows of an image of 64"),
        (nn.Upsample(scale_factor=2), 128, "where the 8 rows of this map lie is not known"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 128, "where the 8 rows of this map lie is not known"),
        (Resize(224, antialias=True), 224, "where the 14 rows of this map lie is not known"),
        (Resize(48, antialias=True), 48, "where the 3 rows of this map lie is not known"),
    ],
)
@pytest.mark.fault(
    "Measures",
    "a module that resizes, pads or crops the images before its network",
    "refused: where its positions lie is not known",
)
def test_images_that_are_resized_inside_of_a_model_are_refused(first, size, said):
    model = Before(first, vit(img_size=size))
    with torch.inference_mode(), Centres(model) as centres:
        model(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=said):
        centres.centre(size // 16, 2, 64, 0)


def test_images_that_a_model_leaves_as_they_are_have_their_centres():
    model = Before(nn.Identity(), vit())
    with torch.inference_mode(), Centres(model) as centres:
        model(torch.rand(1, 3, 64, 64))
    assert centres.centre(4, 2, 64, 0) == 40


class Subsampled(nn.Module):
    """A convolution behind a stride that is no module."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.avg_pool2d(self.first(x), 3, 2, 1))


@pytest.mark.fault(
    "Measures", "a convolution behind a stride that is no module of its own", "refused: its geometry is unknown"
)
def test_a_stride_that_no_layer_shows_is_refused():
    model = Subsampled()
    with torch.inference_mode(), Centres(model) as centres:
        model(torch.rand(1, 3, 32, 32))
    assert centres.centre(32, 3, 32, 0) == 3.5
    with pytest.raises(ValueError, match="where the 16 rows of this map lie is not known"):
        centres.centre(16, 8, 32, 0)
