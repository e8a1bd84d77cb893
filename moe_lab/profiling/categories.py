"""What an operator or a kernel is for, told from its name: the one place that knows."""

import re

CATEGORIES = ("matrix product", "activation", "gather and scatter", "sort and routing", "copy and fill", "other")
"""In the order of tables, legends and colours; "other" is what no rule below knows."""

_PRODUCTS = r"gemm|gemv|cutlass|xmma|nvjet|matmul|linear|grouped_up|weight_gradient|decode_(up|down)|grouped_mm|_mlp"
_ACTIVATIONS = r"silu|gelu|relu|sigmoid|threshold|activation|(?<![a-z])mul_?(?![a-z])|mulfunctor"
_GATHERS = r"gather|scatter|index|(?<![a-z])take|embedding|permute|combine"
_ROUTING = (
    r"sort|topk|assign_|sinkhorn|softmax|softplus|bincount|histc|cumsum|scan"
    r"|unique|one_hot|nonzero|searchsorted|isfinite"
    r"|_count_kernel|_place_kernel|_prefix_kernel|_column_kernel|_block_kernel|(?<![a-z])(eq|ne|lt|le|gt|ge|any|all|abs"
    r"|min|max|aminmax|amax|amin|argmax|clamp|clamp_min|clamp_max|where|floor_divide|item)_?(?![a-z_])"
)
_COPIES = r"copy|fill|zero|ones|memcpy|memset|(?<![a-z])(cat|clone|arange|full|empty|stack)(?![a-z])"

RULES = (
    ("matrix product", rf"{_PRODUCTS}|(?<![a-z])(add|badd|b)?(mm|mv|bmm)_?(?![a-z])|(?<![a-z])dot(?![a-z])"),
    ("gather and scatter", _GATHERS),
    ("sort and routing", _ROUTING),
    ("activation", _ACTIVATIONS),
    ("copy and fill", _COPIES),
)
"""Category and the words of its names, a regular expression for lower case; the first that is found counts."""


def category_of(name: str) -> str:
    """The category of an operator or a kernel, by the first of `RULES` that finds its words in the name.

    A name does not say what its numbers are: a product element by element is taken for the activation's, gate times up,
    though the router's weights may be multiplied in by the same operator; comparisons and extremes are taken for
    routing's.

    Example:
        >>> category_of("aten::addmm"), category_of("aten::index_add_"), category_of("aten::add")
        ('matrix product', 'gather and scatter', 'other')
    """
    return next((category for category, words in RULES if re.search(words, name.lower())), CATEGORIES[-1])
