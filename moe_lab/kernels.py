"""The Triton kernels: one a file, in the top-level folder ``kernels/``, imported as ``moe_lab.kernels.<name>``.

That folder has no ``__init__.py`` on purpose. Hugging Face publishes a package that is also imported as ``kernels``,
and Transformers imports it where it can; ours answers to ``moe_lab.kernels`` and to no other name.

Without a GPU the kernels run in Triton's interpreter: the same code, slowly, in NumPy. Triton decides that when it is
first imported, so this module has to come before it.
"""

import os
import sys

import torch

from moe_lab.folders import find_folder

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    if "triton" in sys.modules:
        raise ImportError(
            "there is no GPU, and triton was imported (torch.compile does that) before its interpreter was switched "
            "on; start again with `import moe_lab.kernels` first, or with TRITON_INTERPRET=1 in the environment"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["MOE_LAB_SWITCHED_ON"] = "1"  # processes started from here inherit both

SWITCHED_ON = "MOE_LAB_SWITCHED_ON" in os.environ
"""Whether this module switched the interpreter on, for there is no GPU; if not, and it is on, then somebody asked."""

__path__ = [str(find_folder("kernels"))]
