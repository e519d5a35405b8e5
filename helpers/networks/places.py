"""Which kinds of taps make up a question: one vocabulary of places for all measures.

A place is a point of a network where an activation is read; the kinds are those of ``taps.KINDS``. A network has some
of the kinds of a group: a ViT has an embedding and two sums a block, a ResNet a stem and one sum a block.
"""

import re

STREAM = ("embed", "resid_mid", "resid_post", "stem", "block")  # the residual stream, block by block
OUTPUTS = ("resid_post", "block")  # the output of each full block, as in the paper
BRANCH_OUTPUTS = ("attn", "mlp", "token_mix", "channel_mix", "branch")  # what is about to be added to the stream
LENGTH = {"resnet50": 16, "resnet152": 50}  # model → residual blocks of the complete network, if ours may lack some


def stage(name: str) -> int:
    """The number of the stage in the name of a place or a module, as timm counts it; −1 where it lies in none.

    A ResNet calls its stages ``layer1``, a Swin ``layers.0``, a PiT ``transformers.0``, most others ``stages.0``. An
    embedding, a stem and the blocks of a network without stages lie in none.
    """
    found = re.search(r"(?:^|\.)(?:layer|(?:stages|layers|transformers)[._])(\d+)(?:\.|$)", name)
    return int(found[1]) if found else -1
