"""From a batch to a model's input: the images in it, checked, of the size, scale and precision the model takes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

SLACK = 1e-3  # how far beyond 0 and 1 rounding may take a float pixel


def pixels(batch: Tensor | Sequence) -> Tensor:
    """The images (n, 3, H, W) of a batch: the batch itself, or the first entry of a tuple or list.

    Raises TypeError for anything else, such as a dict, a NumPy array or PIL pictures, and ValueError for an empty
    batch or a tensor of another shape; both say what to do.
    """
    images, where = batch, "a batch"
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise ValueError("the batch is empty; give images (n, 3, H, W), or a tuple that begins with them")
        images, where = batch[0], f"a {type(batch).__name__} whose first entry"
    if not isinstance(images, Tensor):
        raise TypeError(
            f"a batch is a tensor of images (n, 3, H, W) or a tuple that begins with one; "
            f"got {where} that is a {type(images).__name__}; {_remedy(images)}"
        )
    if images.ndim == 3:
        raise ValueError(
            f"a batch of images has four axes (n, 3, H, W); got {tuple(images.shape)}; add one: images[None]"
        )
    if images.ndim != 4:
        raise ValueError(f"a batch of images has four axes (n, 3, H, W); got {tuple(images.shape)}")
    if images.shape[-1] == 3 != images.shape[1]:
        raise ValueError(
            f"colours come second, (n, 3, H, W); got {tuple(images.shape)}; use images.permute(0, 3, 1, 2)"
        )
    if not images.numel():
        raise ValueError(f"there is no image in a batch of shape {tuple(images.shape)}")
    return images


def labelled(batch: Sequence) -> tuple[Tensor, Tensor]:
    """The images (n, 3, H, W) of a batch and their labels (n,), these on the CPU.

    Raises what ``pixels`` raises, and ValueError for a batch without a label for each image.
    """
    images = pixels(batch)
    labels = torch.as_tensor(batch[1]).cpu() if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if labels is None or labels.shape != (len(images),):
        raise ValueError("accuracies need labels: each batch is (images, labels), with a label for each image")
    return images, labels


def normalise(model: nn.Module, images: Tensor) -> Tensor:
    """Images as the model was trained to see them.

    Mean and standard deviation are those of ``model.pretrained_cfg``, which timm's models and the zoo's carry. A model
    marked by ``resize_for`` takes images of any size, which are resized.

    Args:
        model: the model that will take them.
        images: (B, 3, H, W), uint8, or float in [0, 1].

    Returns:
        (B, 3, H, W) on the model's device, computed in float32 and cast to the precision of the model's weights.

    Raises:
        ValueError: the model's normalisation is missing or has not three finite means and positive deviations, the
            images are of another size than the model takes (``image_size``), or pixels are neither uint8 nor float in
            [0, 1]; all say what to do.
    """
    images = pixels(images)
    mean, std = _statistics(model)
    size = getattr(model, "resizes_images", None)
    if size is None:
        _check_shape(model, images)
    _check_range(images)
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    images = images.to(weight.device)
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if size is not None and size != images.shape[2:]:
        images = resized(images, size)
    return ((images - _channels(mean, images.device)) / _channels(std, images.device)).to(weight.dtype)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, 3, H, W) of floats at another height and width in px: bilinear, smoothed where they become smaller."""
    return interpolate(images, size, mode="bilinear", antialias=True)


def resize_for(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The model, marked: ``normalise`` from now on resizes its images to this height and width in px.

    For a network that stands beside another one and is shown the same images; where its positions lie in these, the
    measures of places cannot know.
    """
    model.resizes_images = size  # type: ignore[assignment]
    return model


def float64(x: Tensor) -> Tensor:
    """A tensor in double precision, on its device, or on the host where that device has none (MPS)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def image_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width in px of the images that a model takes; None where it takes any, as timm's ResNets do.

    The size that its patch embedding was made for, where it has one; otherwise that of ``model.pretrained_cfg``,
    unless timm says there that it is not fixed.
    """
    embed: Any = _embedding(model)
    config = getattr(model, "pretrained_cfg", None)
    if embed is not None:
        height, width = embed.img_size
        return (height, width) if getattr(embed, "strict_img_size", True) else None
    if not config or "input_size" not in config or not config.get("fixed_input_size", True):
        return None
    _, height, width = config["input_size"]
    return height, width


def _remedy(images: object) -> str:
    """What to do with ``images`` that are no tensor."""
    kind = type(images).__module__.partition(".")[0]
    if isinstance(images, dict):
        return f"pick the images out of it, such as batch['image']; its keys are {', '.join(map(str, images))}"
    if kind == "numpy":
        return "use torch.from_numpy(array), with the colours second"
    if kind == "PIL":
        return "turn pictures into tensors: torchvision.transforms.v2.functional.pil_to_tensor"
    if isinstance(images, str):
        return "helpers.images.sources.folder_images(path) reads pictures from files"
    return "stack the images into one tensor with torch.stack"


def _statistics(model: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of red, green and blue that a model was trained with, of pixels in [0, 1]."""
    config = getattr(model, "pretrained_cfg", None) or {}
    remedy = "set model.pretrained_cfg = {'mean': (r, g, b), 'std': (r, g, b), 'input_size': (3, H, W)}"
    if "mean" not in config or "std" not in config:
        raise ValueError(f"{type(model).__name__} does not say how its input is normalised: {remedy}")
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != 3 or len(std) != 3 or not all(math.isfinite(value) for value in mean + std) or not _positive(std):
        raise ValueError(f"{type(model).__name__} says its input has mean {mean} and deviation {std}: {remedy}")
    return mean, std


def _positive(std: Sequence[float]) -> bool:
    """Whether deviations are above zero in the precision in which images are normalised."""
    return bool((torch.tensor(std, dtype=torch.float32) > 0).all())


def _check_shape(model: nn.Module, images: Tensor) -> None:
    wanted, given = (3, *(image_size(model) or images.shape[2:])), tuple(images.shape[1:])
    if given == wanted:
        return
    other = f"create the model with img_size={given[-1]}"
    if _embedding(model) is None:
        other = f"if it takes these too, set model.pretrained_cfg['input_size'] = {given}"
    remedy = f"make the image set with size={wanted[-1]}, or {other}" if given[0] == 3 else "convert them to RGB"
    raise ValueError(f"{type(model).__name__} takes images of shape {wanted} and was given {given}; {remedy}")


def _check_range(images: Tensor) -> None:
    """Pixels are uint8, or float in [0, 1], and lie in memory one by one."""
    if images.layout != torch.strided or images.is_meta:
        kind = "on the meta device, without values" if images.is_meta else f"stored as {images.layout}"
        raise ValueError(f"images are {kind}; give them as a dense tensor with values, such as images.to_dense()")
    if images.is_floating_point() and images.element_size() < 2:
        raise ValueError(f"pixels are uint8, or float of 16 bits or more; got {images.dtype}; use images.float()")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        remedy = "if they are 0 … 255, use images.to(torch.uint8); if they are 0 and 1, use images.float()"
        raise ValueError(f"pixels are uint8, or float in [0, 1]; got {images.dtype}; {remedy}")
    least, largest = (value.item() for value in images.detach().aminmax())
    if -SLACK <= least and largest <= 1 + SLACK:  # false for NaN
        return
    remedy = "if they are normalised already, undo it, or give the function of your own that prepares them"
    if math.isnan(least) or math.isinf(least) or math.isinf(largest):
        remedy = "look for the image whose pixels are not finite"
    elif least >= 0 and largest <= 255:
        remedy = "if they are 0 … 255, divide them by 255; if resizing went beyond 1, use images.clamp(0, 1)"
    raise ValueError(f"pixels are uint8, or float in [0, 1]; got {images.dtype} {least:.4g} … {largest:.4g}; {remedy}")


def _embedding(model: nn.Module) -> nn.Module | None:
    """The patch embedding of a model that has one made for a size: a transformer's, or a Mixer's stem."""
    embed = getattr(model, "patch_embed", getattr(model, "stem", None))
    return embed if getattr(embed, "img_size", None) is not None else None


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
