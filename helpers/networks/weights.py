"""Weights from files: pinned by their hash, complete, finite, and nothing but tensors.

A file is in the safetensors format, or one that ``torch.save`` wrote (``.pth``, ``.pt``, ``.bin``, ``.ckpt``). Of the
latter tensors and plain containers are read, and nothing in it is run.

The names of weights tell how they were kept. What a wrapper (``module.`` of DataParallel, ``_orig_mod.`` of
torch.compile) or a nested checkpoint (``model.``, ``state_dict.``) has added to them is left out, with a warning.
"""

import os
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.files import sha256

# under which keys training scripts keep the weights, from the outside inwards; averaged ones (EMA) first, as timm does
NESTS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "state_dict")
# what names hold of a network that was compiled, checkpointed or sharded, at their start or between two of its modules
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# what training scripts keep beside the weights, by the first part of its name
FOREIGN = re.compile(r"(epoch|step|global_step|optim|lr_scheduler|scheduler|scaler|args)")


def load_into(model: nn.Module, file: Path, expected: str | None, remedy: str) -> None:
    """Read a file of weights into a network, in single precision; BatchNorm's counters of batches may be missing.

    Args:
        model: the network; it is changed in place, also if its weights then turn out not to be finite.
        file: the file of weights.
        expected: the file's sha256; None if it is not pinned.
        remedy: what to do if something is wrong, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it has another sha256, is corrupt or holds more than tensors, does not fit the architecture, or is not
            finite.
    """
    state = own_state(model, read_weights(file, expected, remedy), file)
    try:
        missing, unexpected = model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    except RuntimeError as error:  # a tensor of another size
        raise OSError(f"the weights in {file} do not fit the architecture: {error}; {remedy}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        tops = Counter(key.split(".")[0] for key in state)
        unexpected = sorted(unexpected, key=lambda key: tops[key.split(".")[0]])  # the strangest first
        wrong = f"missing {_few(missing) or 'none'}, unexpected {_few(unexpected) or 'none'}"
        raise OSError(f"the weights in {file} do not fit the architecture: {wrong}; {remedy}")
    if broken := not_finite(state):
        raise OSError(f"the weights in {file} are not finite: {broken}; {remedy}")
    negative = [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]
    if negative:
        raise OSError(f"the weights in {file} have variances below zero: {_few(negative)}; {remedy}")


def read_weights(file: Path, expected: str | None, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file of weights by name. Arguments and errors as of ``load_into``."""
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; {remedy}")
    if expected is not None and sha256(file) != expected.lower():
        raise OSError(f"the weights in {file} are not those of their card (sha256 differs); {remedy}")
    try:
        return load_file(file)
    except SafetensorError as error:
        with file.open("rb") as stream:
            start = stream.read(4)
        if not start.startswith((b"PK\x03\x04", b"\x80")):  # a zip file, or a pickle
            raise OSError(f"the weights in {file} are corrupt or no safetensors ({error}); {remedy}") from error
    try:
        with file.open("rb") as stream:  # by its content, whatever its name
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OSError(
            f"{file} is a pickle that holds more than tensors, and is not read, because that may run any code: where "
            "you trust it, load it yourself and write model.state_dict() with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise OSError(f"the weights in {file} are corrupt ({error}); {remedy}") from error
    for key in NESTS:
        inside = content.get(key) if isinstance(content, Mapping) else None
        content = inside if isinstance(inside, Mapping) else content
    if not isinstance(content, Mapping) or not (found := {k: v for k, v in content.items() if torch.is_tensor(v)}):
        raise OSError(f"{file} holds no weights by name, but a {type(content).__name__}; {remedy}")
    return {str(key): value.detach() for key, value in found.items()}


def own_state(model: nn.Module, state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors by the names that ``model`` has for them: without what wrappers have put before or between them.

    A lead that all names share (``module.``, ``model.``, ``state_dict.`` …) goes where the model's own names lack it.
    Warns and says what was left out.
    """
    own_tops = {key.split(".")[0] for key in model.state_dict()}
    foreign = [key for key in state if (top := key.split(".")[0]) not in own_tops and FOREIGN.match(top)]
    if len(foreign) == len(state):
        return state
    kept = {key: value for key, value in state.items() if key not in foreign}
    short = {WRAPPERS.sub("", key): value for key, value in kept.items()}
    lead, own = _common_lead(short), _common_lead(model.state_dict())
    if lead.endswith(own):
        short = {key.removeprefix(lead.removesuffix(own)): value for key, value in short.items()}
    if len(short) < len(kept):  # two names would become one
        return state
    if foreign:
        left = f"{file} also holds {_few(foreign)}, which are no weights of {type(model).__name__} and are left out"
        warnings.warn(left, stacklevel=4)
    if short.keys() != kept.keys():
        was, now = min((a, b) for a, b in zip(kept, short, strict=True) if a != b)
        message = f"names in {file} are longer than those of {type(model).__name__}: {was!r} is read as {now!r}"
        warnings.warn(f"{message}, and so on, as left by a wrapper or a nested checkpoint", stacklevel=4)
    return short


def _common_lead(names: Mapping[str, Any]) -> str:
    """What all names share, up to a dot: "module." of "module.a" and "module.b.c"."""
    shared = os.path.commonprefix(list(names))
    return shared[: shared.rfind(".") + 1]


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The names of the tensors that hold NaN or infinity, the first few of them; "" if there are none."""
    broken = [name for name, value in state.items() if not torch.isfinite(value.float()).all()]
    return _few(broken)


def _few(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
