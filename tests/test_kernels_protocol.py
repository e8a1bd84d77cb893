"""Every file in kernels/ is complete: reference, inputs, cost, shapes, words, and a test of its own name."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch

import moe_lab.kernels

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "kernels").glob("*.py") if not path.name.startswith("_"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def kernel(request):
    return request.param, importlib.import_module(f"moe_lab.kernels.{request.param.stem}")


def test_a_kernel_file_is_complete(kernel):
    path, module = kernel
    for name in (path.stem, f"{path.stem}_reference", "make_inputs", "cost", "SHAPES"):
        assert hasattr(module, name), f"{path.name} lacks {name}"
    for word in ("Traffic:", "Source:"):
        assert word in module.__doc__, f"the docstring of {path.name} lacks {word}"
    assert (ROOT / "tests" / f"test_kernel_{path.stem}.py").exists(), f"no test for {path.name}"
    assert f"`{path.name}`" in (ROOT / "kernels" / "README.md").read_text(), f"kernels/README.md lacks {path.name}"


def test_it_reads_from_top_to_bottom(kernel):
    """Reference, then kernel, then launcher, then what tests and benchmarks share."""
    path, _ = kernel
    defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    order = [f"{path.stem}_reference", path.stem, "make_inputs", "cost"]
    assert [name for name in defined if name in order] == order
    device = [name for name in defined if name.startswith("_") and name.endswith("_kernel")]
    assert device, f"{path.name} has no kernel"
    assert all(defined.index(order[0]) < defined.index(name) < defined.index(order[1]) for name in device)


def test_inputs_fit_launcher_and_reference(kernel):
    path, module = kernel
    assert {"tiny", "qwen3"} <= set(module.SHAPES)
    inputs = module.make_inputs(**module.SHAPES["tiny"], dtype=torch.float32, device="cpu")
    inspect.signature(getattr(module, path.stem)).bind(*inputs)
    inspect.signature(getattr(module, f"{path.stem}_reference")).bind(*inputs)
    again = module.make_inputs(**module.SHAPES["tiny"], dtype=torch.float32, device="cpu")
    for one, other in zip(tensors(inputs), tensors(again), strict=True):
        assert torch.equal(one, other), "the seed decides"


def tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from tensors(value)


def test_cost_is_of_whole_numbers_and_grows(kernel):
    _, module = kernel
    flops, traffic = module.cost(**module.SHAPES["qwen3"], itemsize=2)
    assert isinstance(flops, int) and isinstance(traffic, int) and flops >= 0 and traffic > 0
    assert module.cost(**module.SHAPES["qwen3"], itemsize=4)[1] >= traffic


def test_the_bridge_answers_to_one_name():
    assert moe_lab.kernels.__path__ == [str(ROOT / "kernels")]
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would hide Hugging Face's package of that name"
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                roots = [node.module]
            assert {root.split(".")[0] for root in roots} <= {"torch", "triton", "typing"}, (path.name, roots)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU kernels are compiled, and nothing comes too late")
def test_triton_imported_too_early_says_so(fresh):
    done = fresh.run("import triton\nimport moe_lab.kernels", without=("TRITON_INTERPRET",))
    assert "start again with `import moe_lab.kernels` first" in done.stderr
