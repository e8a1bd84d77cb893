"""Tensors as users have them: the same values, laid out in memory in other ways."""

from ..poison import fill_with_poison

LAYOUTS = ("plain", "plain", "transposed", "every other", "within", "backwards", "expanded")


def lay_out(values, how: str):
    """The values of a matrix or a stack, laid out otherwise; where a layout cannot hold them, as they are."""
    values = values.detach()
    if how == "transposed":
        return values.mT.contiguous().mT
    if how == "every other":  # strides of twice the size
        wide = fill_with_poison(values.new_zeros(*values.shape[:-1], 2 * values.shape[-1]))
        wide[..., ::2] = values
        return wide[..., ::2]
    if how == "within":  # an offset, and a row that is longer than it looks
        wide = fill_with_poison(values.new_zeros(*values.shape[:-1], values.shape[-1] + 3))
        wide[..., 2:-1] = values
        return wide[..., 2:-1]
    if how == "backwards":
        return values.flip(-1).flip(-1)
    if how == "expanded" and values.shape[0]:  # one row again and again, without memory of its own
        return values[:1].expand(values.shape)
    return values.clone()
