"""Weights from files: pinned by their hash, complete, finite, and never a pickle.

The names of weights tell how they were kept. What a wrapper (``module.`` of DataParallel, ``_orig_mod.`` of
torch.compile) or a nested checkpoint (``model.``, ``state_dict.``) has added to them is left out, with a warning.
"""

import os
import re
import shlex
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

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle")
CONVERT = (  # arguments: a pickle of weights, as they are or nested in what training scripts keep; a safetensors file
    "import sys, functools, torch, safetensors.torch as s; "
    "d = torch.load(open(sys.argv[1], 'rb'), map_location='cpu', weights_only=True); "
    "d = functools.reduce(lambda d, k: d.get(k, d), ('state_dict', 'model', 'model_state_dict', 'state_dict'), d); "
    "w = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in d.items() if torch.is_tensor(v)}; "
    "s.save_file(w, sys.argv[2])"
)
# what names hold of a network that was compiled, checkpointed or sharded, at their start or between two of its modules
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# what training scripts keep beside the weights, by the first part of its name
FOREIGN = re.compile(r"(epoch|step|global_step|optim|lr_scheduler|scheduler|scaler|args)")


def load_into(model: nn.Module, file: Path, expected: str | None, remedy: str) -> None:
    """Read a safetensors file into a network, in single precision; BatchNorm's counters of batches may be missing.

    Args:
        model: the network; it is changed in place, also if its weights then turn out not to be finite.
        file: the file of weights.
        expected: the file's sha256; None if it is not pinned.
        remedy: what to do if something is wrong, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it has another sha256, is a pickle or corrupt, does not fit the architecture, or is not finite.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; {remedy}")
    if expected is not None and sha256(file) != expected.lower():
        raise OSError(f"the weights in {file} are not those of their card (sha256 differs); {remedy}")
    state = _unwrapped(_read_weights(file, remedy), model, file)
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


def _read_weights(file: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. A pickle is refused: to read it may run any code."""
    try:
        return load_file(file)
    except SafetensorError as error:
        with file.open("rb") as stream:
            pickled = file.suffix in PICKLES or stream.read(4).startswith((b"PK\x03\x04", b"\x80"))
        if not pickled:
            raise OSError(f"the weights in {file} are corrupt or no safetensors ({error}); {remedy}") from error
    new = file.with_name(f"{file.stem}.converted.safetensors")
    command = f'python -c "{CONVERT}" {shlex.quote(str(file))} {shlex.quote(str(new))}'
    raise OSError(
        f"{file} is a pickle, which is not read, because that may run any code. Convert it to safetensors, and name "
        f"{new.name} (and its sha256, if there was one) in cards.json:\n{command}"
    )


def _unwrapped(state: dict[str, Tensor], model: nn.Module, file: Path) -> dict[str, Tensor]:
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
        warnings.warn(left, stacklevel=5)
    if short.keys() != kept.keys():
        was, now = min((a, b) for a, b in zip(kept, short, strict=True) if a != b)
        message = f"names in {file} are longer than those of {type(model).__name__}: {was!r} is read as {now!r}"
        warnings.warn(f"{message}, and so on, as left by a wrapper or a nested checkpoint", stacklevel=5)
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
