"""A reward made of another one's encoders and a newly trained head, and which of its inputs the head is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.errors import InputError
from tunejury.head import RewardHead
from tunejury.model import RewardModel


def block_label(block: InputBlock) -> str:
    """What an input block is called on command lines: its encoder, or `audio*text` for their product."""
    return "*".join(block.encoders)


def select_blocks(config: RewardConfig, labels: Sequence[str] | None = None) -> tuple[RewardConfig, Tensor]:
    """Leave input blocks out (input ablation).

    Args:
        config: of a reward.
        labels: of the blocks that stay, see `block_label`; None for all.

    Returns:
        The config with those blocks, in their old order, and without the encoders nothing needs any more; and the
        places [D'] of their values among the features [D] of the whole.

    Raises:
        InputError: there is no such block, or none stays.
    """
    known = [block_label(block) for block in config.inputs]
    chosen = known if labels is None else list(labels)
    unknown = [label for label in chosen if label not in known]
    if unknown or not chosen:
        raise InputError(
            f"{f'unknown input block {unknown[0]!r}' if unknown else 'no input block'}, expected some of: "
            f"{', '.join(known)}"
        )
    columns: list[Tensor] = []
    start = 0
    for block, label in zip(config.inputs, known, strict=True):
        if label in chosen:
            columns.append(torch.arange(start, start + block.dim))
        start += block.dim
    inputs = tuple(block for block, label in zip(config.inputs, known, strict=True) if label in chosen)
    needed = {name for block in inputs for name in block.encoders}
    encoders = {name: encoder for name, encoder in config.encoders.items() if name in needed}
    return replace(config, inputs=inputs, encoders=encoders), torch.cat(columns)


def assemble_reward(
    base: RewardModel, head: RewardHead, *, name: str, license: str, blocks: Sequence[str] | None = None
) -> RewardModel:
    """A reward with the encoders, products and protocol of `base` and another head.

    Args:
        base: where the encoders come from; it is not changed.
        head: trained on `base.features(...)`, or on the columns of them that `select_blocks` gives.
        name: of the new reward.
        license: of the new head and of the products, which are those of `base`.
        blocks: labels of the input blocks the head was trained on; None for all.

    Returns:
        The reward, frozen, on the device and in the precision of `base`.

    Raises:
        InputError: the head's size is not that of the blocks, or an encoder the base needs cannot be built.
    """
    config, columns = select_blocks(base.config, blocks)
    if head.input_dim != len(columns):
        raise InputError(f"the head takes {head.input_dim} values, the input blocks give {len(columns)}")
    widths = [layer.out_features for layer in head.net if isinstance(layer, nn.Linear)][:-1]
    dropout = next((layer.p for layer in head.net if isinstance(layer, nn.Dropout)), 0.0)
    # the ensemble of the base says nothing about another head
    config = replace(config, name=name, license=license, head=HeadConfig(tuple(widths), dropout), ensemble=0)
    with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten at once
        model = RewardModel(config)
    for encoder in config.encoders:
        model.encoders[encoder].load_state_dict(base.encoders[encoder].state_dict())
    places = {block: str(place) for place, block in enumerate(base.config.inputs)}
    for place, block in enumerate(config.inputs):
        if block.kind == "product":
            model.products[str(place)].load_state_dict(base.products[places[block]].state_dict())
    model.head.load_state_dict(head.state_dict())
    return model.to(base.device, base.dtype)
