"""Which token ids a call of a model has, and which of its tokens are padding."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tokens:
    """The tokens of one call: their ids without padding, and where those stand among all ``many`` of them."""

    ids: Tensor  # -1 where not known
    many: int
    real: Tensor | None  # None: all of them
    before: int = 0  # how many ids were seen before this call


def read_tokens(given: dict, args: tuple, encoder_decoder: bool, count_padding: bool) -> Tokens | None:
    """The tokens of a call with these arguments; None where its layers may get others than those that it names.

    Ids are ``input_ids``, or the first argument if that is whole numbers (batch, length). Of a mask (batch, at least
    length) the last columns are those of the ids: before them stand the tokens of a cache.
    """
    if encoder_decoder:
        return None
    ids = given.get("input_ids", args[0] if args else None)
    if not _is_matrix(ids) or ids.is_floating_point():
        ids = None
    embeds = given.get("inputs_embeds")
    if ids is None and not (isinstance(embeds, Tensor) and embeds.dim() == 3):
        return None
    shape = embeds.shape[:2] if ids is None else ids.shape
    like = embeds if ids is None else ids
    flat = torch.full((shape.numel(),), -1, device=like.device) if ids is None else ids.reshape(-1)
    mask, real = given.get("attention_mask"), None
    if not count_padding and _is_matrix(mask) and len(mask) == shape[0] and mask.shape[1] >= shape[1]:
        here = mask[:, mask.shape[1] - shape[1] :].reshape(-1) != 0
        if not bool(here.all()):
            real = here.nonzero()[:, 0].to(like.device)
    return Tokens(flat if real is None else flat[real], shape.numel(), real)


def _is_matrix(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2
