"""Where activations are read: named places in a network, and hooks that read them.

A ``Tap`` is one place: the input or the output of one module. ``taps_for(model)`` lists the places that
Raghu et al. (2021, Section 3) compare, in the order in which a forward pass reaches them; ``taps_named``
makes taps of any modules by name. ``capture`` reads them during a forward pass and hands each activation
to a function at once, inside the hook, so that

* what is kept is what the function returns (for CKA a row of n² numbers), never the activations;
* a later in-place operation (timm's ReLUs, the ``x += shortcut`` of its ResNets) cannot change what was read.

Two quantities that no module returns are read as inputs. The residual stream of a pre-norm transformer
block after attention is the input of ``norm2``; the embedding is the input of the first block, after the
position embedding, dropout and any norm before the blocks. Branch outputs are read at ``drop_path1`` and
``drop_path2``, after LayerScale, so that ``resid_mid = block input + attn`` and ``resid_post = resid_mid + mlp``.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from timm.layers import Mlp
from timm.models import beit, convnext, eva, mlp_mixer, swin_transformer, vision_transformer, vision_transformer_relpos
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from helpers.networks.adapter import Adapter

KINDS = {
    "embed": "tokens on entering the first block",
    "norm": "output of a normalisation layer (in ResNetV2 with its ReLU)",
    "attn": "output of the attention branch, before it is added",
    "token_mix": "output of a Mixer's token-mixing branch, before it is added",
    "resid_mid": "residual stream after attention or token mixing",
    "mlp_hidden": "hidden activations of the MLP, after its non-linearity",
    "mlp": "output of the MLP branch, before it is added",
    "channel_mix": "output of a Mixer's channel-mixing branch, before it is added",
    "resid_post": "residual stream after the MLP: the block's output",
    "stem": "output of a convolutional stem",
    "conv": "output of a convolution",
    "act": "output of an activation function",
    "branch": "output of a residual block's long branch, before it is added",
    "block": "output of a residual block",
    "other": "a module asked for by name",
}

# Blocks that compute x = x + drop_path1(attn(norm1(x))); x = x + drop_path2(mlp(norm2(x))), LayerScale included.
# Of a block that is not one of these (post-norm, parallel branches) only the output is tapped.
PRE_NORM_BLOCKS = (
    vision_transformer.Block,
    vision_transformer_relpos.RelPosBlock,
    beit.Block,
    eva.EvaBlock,
    swin_transformer.SwinTransformerBlock,
)


@dataclass(frozen=True)
class Tap:
    """One place where activations are read.

    ``name``: label, unique within a model. ``module``: the module's name in ``model.named_modules()``
    ("" is the model itself). ``where``: "input" (its first positional argument) or "output". ``kind``: one
    of ``KINDS``. ``call``: which call of the module to read, counting from 0, where one forward pass calls it
    several times (the one ``drop_path`` of a Mixer block); None asks for a module that is called once.
    """

    name: str
    module: str
    where: str = "output"
    kind: str = "other"
    call: int | None = None

    def __post_init__(self) -> None:
        if self.where not in ("input", "output"):
            raise ValueError(f"tap {self.name!r}: where is 'input' or 'output', not {self.where!r}")
        if self.kind not in KINDS:
            raise ValueError(f"tap {self.name!r}: unknown kind {self.kind!r}; kinds are {', '.join(KINDS)}")


def taps_for(model: nn.Module, kinds: Iterable[str] | None = None) -> list[Tap]:
    """The taps of a timm model in the order of depth, those of the given kinds or all.

    Transformers (ViT, DeiT, BEiT, EVA, Swin, PiT; with or without registers): embedding, then for each block
    norm1, attn, resid_mid, norm2, mlp_hidden, mlp, resid_post, then the final norm: six kinds, seven places a
    block, where the paper counts about six (Raghu et al. 2021, ticks of Fig. 1). Mixers: the same with
    token_mix and channel_mix. ResNets (v1 and v2): stem, the convolutions, norms and activations of each block,
    its branch and its output. ConvNeXt: likewise. Other timm models with ``blocks``: the blocks' outputs. Others still,
    such as RegNets and DenseNets: the outputs of their stages, as their ``feature_info`` names them.

    Names are the module's, ``blocks.3.resid_mid`` for the stream within block 3. Of a module that holds the network,
    names begin with where it lies (``body.blocks.3.resid_mid``, ``body.embed``); ResNets are known by themselves alone.

    Raises:
        ValueError: an unknown kind, a string, a model that nothing is known about, or no tap of the kinds left.
    """
    if isinstance(kinds, str):
        raise ValueError(f"kinds are several, as in [{kinds!r}]; got the string {kinds!r}, which is a list of letters")
    wanted = set(KINDS if kinds is None else kinds)
    unknown = wanted - set(KINDS)
    if unknown:
        close = nearest(sorted(unknown)[0], KINDS)
        raise ValueError(f"unknown kind of tap {sorted(unknown)}{close}; kinds are {', '.join(KINDS)}")
    taps = list(_resnet(model) if isinstance(model, (ResNet, ResNetV2)) else _blocks(model)) or _stages(model)
    if not taps:
        raise ValueError(
            f"{type(model).__name__}: nothing is known about where to read it; name the modules yourself with "
            "taps_named(model, names), where the names are those of model.named_modules()"
        )
    chosen = [tap for tap in taps if tap.kind in wanted]
    if not chosen:
        have = dict.fromkeys(tap.kind for tap in taps)
        raise ValueError(f"{type(model).__name__} has no tap of kind {sorted(wanted)}; it has {', '.join(have)}")
    return chosen


def taps_named(model: nn.Module, names: Iterable[str], where: str = "output") -> list[Tap]:
    """Taps at any modules, by their names in ``model.named_modules()``, in the order given; ``where`` as of a ``Tap``.

    Raises:
        ValueError: a name that the model does not have, with the nearest ones; another ``where``.
    """
    taps = [Tap(name if where == "output" else f"{name}.{where}", name, where) for name in names]
    for tap in taps:
        _module(model, tap)
    return taps


def _is_there(module: Any) -> bool:
    """Whether a module is one that does something: not None, and not what timm puts in the place of one left out."""
    return module is not None and not isinstance(module, nn.Identity)


def _blocks(model: nn.Module) -> Iterator[Tap]:
    """Taps of models made of ``blocks``: transformers, Mixers, ConvNeXts, and the block outputs of others."""
    modules: dict[str, Any] = dict(model.named_modules())
    names = [name for name in modules if re.search(r"(^|\.)blocks(\.\d+)+$", name)]
    names = [name for name in names if not any(other.startswith(name + ".") for other in names)]  # the innermost
    if isinstance(model, Adapter):  # it says itself what its blocks are
        names = [f"blocks.{i}" for i in range(len(model.blocks))]
    homes = [_home(name) for name in names]  # of the network that each block belongs to
    for i, (name, home) in enumerate(zip(names, homes, strict=True)):
        block = modules[name]
        first, last = home not in homes[:i], home not in homes[i + 1 :]
        if sublayers := _two_sublayers(name, block):
            if first:
                yield Tap(f"{home}embed", name, "input", "embed")
            yield from sublayers
        elif isinstance(block, convnext.ConvNeXtBlock):
            if first:
                yield Tap(f"{home}stem", f"{home}stem", "output", "stem")
            yield Tap(f"{name}.conv_dw", f"{name}.conv_dw", "output", "conv")
            yield Tap(f"{name}.norm", f"{name}.norm", "output", "norm")
            yield _hidden(name, block.mlp, "mlp")
            yield Tap(f"{name}.branch", f"{name}.drop_path", "output", "branch")
            yield Tap(name, name, "output", "block")
        else:
            yield Tap(name, name, "output", "block")
        ends = last and isinstance(block, (*PRE_NORM_BLOCKS, mlp_mixer.MixerBlock))
        if ends and _is_there(modules.get(f"{home}norm")):
            yield Tap(f"{home}norm", f"{home}norm", "output", "norm")


def _two_sublayers(name: str, block: Any) -> list[Tap]:
    """Taps of a pre-norm block of two sublayers: timm's, torch's own or a Mixer's; none for another block."""
    calls: tuple[int | None, int | None] = (None, None)
    if isinstance(block, PRE_NORM_BLOCKS):
        kinds, ends, hidden = ("attn", "mlp"), ("drop_path1", "drop_path2"), _hidden(name, block.mlp, "mlp")
    elif isinstance(block, nn.TransformerEncoderLayer) and block.norm_first:
        kinds, ends = ("attn", "mlp"), ("dropout1", "dropout2")
        hidden = Tap(f"{name}.mlp_hidden", f"{name}.linear2", "input", "mlp_hidden")
    elif isinstance(block, mlp_mixer.MixerBlock):
        kinds, ends, calls = ("token_mix", "channel_mix"), ("drop_path", "drop_path"), (0, 1)
        hidden = _hidden(name, block.mlp_channels, "mlp_channels")
    else:
        return []
    first, second = (
        Tap(f"{name}.{kind}", f"{name}.{end}", "output", kind, call)
        for kind, end, call in zip(kinds, ends, calls, strict=True)
    )
    return [
        Tap(f"{name}.norm1", f"{name}.norm1", "output", "norm"),
        first,
        Tap(f"{name}.resid_mid", f"{name}.norm2", "input", "resid_mid"),
        Tap(f"{name}.norm2", f"{name}.norm2", "output", "norm"),
        hidden,
        second,
        Tap(f"{name}.resid_post", name, "output", "resid_post"),
    ]


def _home(block: str) -> str:
    """Where the network of a block lies within a model, with a dot at the end; "" if the model is that network.

    "body.blocks.3" and "body.stages.0.blocks.3" lie in "body.".
    """
    return re.split(r"(?<![^.])(?:(?:stages|layers|transformers)[._]\d+\.)?blocks\.", block, maxsplit=1)[0]


def _hidden(block: str, mlp: nn.Module, attribute: str) -> Tap:
    """Hidden activations: after the non-linearity; in gated MLPs what enters the last layer."""
    if isinstance(mlp, Mlp):
        return Tap(f"{block}.mlp_hidden", f"{block}.{attribute}.act", "output", "mlp_hidden")
    return Tap(f"{block}.mlp_hidden", f"{block}.{attribute}.fc2", "input", "mlp_hidden")


def _resnet(model: ResNet | ResNetV2) -> Iterator[Tap]:
    """Taps of timm's ResNets: v1 (``layer1`` … ``layer4``) and v2 (``stages``), BiT among them."""
    first = isinstance(model, ResNet)  # v1
    kinds = {"conv": "conv", "bn": "norm", "norm": "norm", "act": "act"}
    if first:
        for name in ("conv1", "bn1", "act1"):
            yield Tap(name, name, "output", kinds[name[:-1]])
    yield Tap("stem", "maxpool" if first else "stem", "output", "stem")
    prefix = r"layer\d" if first else r"stages\.\d+\.blocks"
    for name, block in model.named_modules():
        if not re.fullmatch(prefix + r"\.\d+", name):
            continue
        parts = [part for part, child in block.named_children() if _is_there(child)]
        parts = [part for part in parts if re.fullmatch(r"(conv|bn|norm|act)\d", part)]
        if hasattr(block, "act3") or (first and hasattr(block, "act2")):
            parts.remove("act3" if hasattr(block, "act3") else "act2")  # the block's output
        last = parts.pop()  # the branch's output, unless squeeze-and-excitation or drop path come after it
        for part in parts:
            yield Tap(f"{name}.{part}", f"{name}.{part}", "output", kinds[part[:-1]])
        after = [part for part in ("se", "drop_path") if isinstance(getattr(block, part, None), nn.Module)]
        yield Tap(f"{name}.branch", f"{name}.{after[-1] if after else last}", "output", "branch")
        yield Tap(name, name, "output", "block")
    if not first and _is_there(model.norm):
        yield Tap("norm", "norm", "output", "norm")


def _stages(model: nn.Module) -> list[Tap]:
    """Taps of another timm model at the outputs of its stages, by its own ``feature_info``; none if it has none."""
    listed = getattr(model, "feature_info", [])
    names = [about["module"] for about in listed] if isinstance(listed, list) else []
    there = dict(model.named_modules())
    return [Tap(name, name, "output", "block") for name in names if name in there]


def nearest(name: str, names: Iterable[str]) -> str:
    """The nearest of some names, in brackets, for a message; "" if none is near."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f" (nearest: {', '.join(close)})" if close else ""


def _module(model: nn.Module, tap: Tap) -> nn.Module:
    """The module of a tap. Raises ValueError, with the nearest names, where the model has no such module."""
    try:
        return model.get_submodule(tap.module)
    except AttributeError:
        names = [name for name, _ in model.named_modules()]
        raise ValueError(
            f"tap {tap.name!r}: {type(model).__name__} has no module {tap.module!r}{nearest(tap.module, names)}; "
            "names are those of model.named_modules()"
        ) from None


@contextmanager
def capture(
    model: nn.Module, taps: Iterable[Tap], fn: Callable[..., Any] | None = None, *, with_tap: bool = False
) -> Iterator[dict[str, Any]]:
    """Read ``taps`` in each forward pass within the context::

        with capture(model, taps_for(model), fn=gram_row) as out:
            model(images)
        out["blocks.3.resid_mid"]

    The dictionary is filled anew by each ``model(images)``, in the order of ``taps`` whatever the order of
    execution: name → ``fn(activation)``, or a copy of the activation without ``fn``. ``fn`` runs inside the hook; where
    it returns the activation itself or a view of it, a copy is kept. ``with_tap``: call ``fn(activation, tap)``.
    Gradients, modes and devices are left alone. The hooks are removed in every case.

    Raises:
        ValueError: a module that does not exist, or a label used twice.
        TypeError: a tapped module hands over something else than a tensor.
        RuntimeError: a tap, which is named, fired twice, never, or outside ``model(images)``.
    """
    taps = list(taps)
    names = [tap.name for tap in taps]
    if len(set(names)) < len(names):
        raise ValueError(f"taps share a label: {sorted({name for name in names if names.count(name) > 1})}")
    modules = [_module(model, tap) for tap in taps]
    captured: dict[str, Any] = {}
    fresh: dict[str, Any] = {}
    calls = dict.fromkeys(names, 0)
    running = False

    def begin(module: nn.Module, args: tuple) -> None:
        nonlocal running
        captured.clear()
        fresh.clear()
        calls.update(dict.fromkeys(names, 0))
        running = True

    def read(tap: Tap, value: Any) -> None:
        if not running:
            raise RuntimeError(f"tap {tap.name!r} fired outside model(images): call the captured model, not a part")
        call = calls[tap.name]
        calls[tap.name] += 1
        if tap.call is not None and call != tap.call:
            return
        if call and tap.call is None:
            raise RuntimeError(f"tap {tap.name!r} fired twice: say which call of {tap.module!r} with Tap(call=…)")
        if not isinstance(value, Tensor):
            what = f"the {tap.where} of {tap.module!r} is a {type(value).__name__}, not a tensor"
            raise TypeError(f"tap {tap.name!r}: {what}; tap a module inside it")
        result = value
        if fn is not None:
            result = fn(value, tap) if with_tap else fn(value)
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
            result = result.clone()
        fresh[tap.name] = result

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        nonlocal running
        running = False
        silent = [name for name in names if name not in fresh]
        if silent:
            raise RuntimeError(f"taps that never fired: {', '.join(silent)}; this forward pass calls no such module")
        captured.update((name, fresh.pop(name)) for name in names)

    def hook(tap: Tap, module: nn.Module) -> RemovableHandle:
        if tap.where == "output":
            return module.register_forward_hook(lambda module, args, output: read(tap, output))
        return module.register_forward_pre_hook(lambda module, args: read(tap, args[0] if args else None))

    handles = [model.register_forward_pre_hook(begin)]
    try:
        handles += [hook(tap, module) for tap, module in zip(taps, modules, strict=True)]
        handles.append(model.register_forward_hook(end))
        yield captured
        if not captured and names:
            raise RuntimeError(f"taps that never fired: {', '.join(names)}; no forward pass was completed")
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode; afterwards each module as it was."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
