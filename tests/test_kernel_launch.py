"""What every launcher shares: refusals, the choice of launch parameters, which tensors can have a descriptor."""

import pytest
import torch
from moe_lab.kernels._activations import FUNCTIONS, find_function
from moe_lab.kernels._launch import check_tensors, choose_config, family, normal, num_programs
from moe_lab.kernels._tiles import aligned, describe

from moe_lab.kernels import _launch, grouped_gemm, grouped_up, grouped_weight_gradient

BLOCKED = [grouped_gemm, grouped_up, grouped_weight_gradient]


@pytest.mark.skipif(not _launch.INTERPRET, reason="bfloat16 is wrong in the interpreter only")
def test_bfloat16_is_refused_in_the_interpreter():
    with pytest.raises(TypeError, match=r"w is bfloat16, which Triton's interpreter computes wrongly; use float32 or"):
        check_tensors(x=torch.zeros(1), w=torch.zeros(1, dtype=torch.bfloat16))


def test_refuses_by_name():
    check_tensors(x=torch.zeros(1), w=torch.zeros(1).half())
    with pytest.raises(TypeError, match=r"w must be float32, float16, bfloat16; got int32"):
        check_tensors(x=torch.zeros(1), w=torch.zeros(1).int())
    with pytest.raises(TypeError, match=r"experts must be int64; got float32"):
        check_tensors((torch.int64,), experts=torch.zeros(1))
    with pytest.raises(ValueError, match=r"w is on meta and x on cpu; they must be on one device"):
        check_tensors(x=torch.zeros(1), w=torch.zeros(1, device="meta"))


def test_without_the_interpreter_a_cpu_is_refused_and_bfloat16_is_not(monkeypatch):
    monkeypatch.setattr(_launch, "INTERPRET", False)
    with pytest.raises(ValueError, match=r"x is on cpu, where Triton kernels run only under TRITON_INTERPRET=1"):
        check_tensors(x=torch.zeros(1))
    check_tensors(x=torch.zeros(1, dtype=torch.bfloat16, device="meta"))


@pytest.fixture
def pretend(monkeypatch):
    """Stand on a GPU of a compute capability, or on one of AMD's."""

    def become(capability, hip=None):
        monkeypatch.setattr(_launch, "INTERPRET", False)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return become


@pytest.mark.parametrize(
    ("capability", "hip", "name"),
    [
        ((8, 0), None, "ampere"),
        ((8, 9), None, "ampere"),
        ((9, 0), None, "hopper"),
        ((10, 0), None, "hopper"),
        ((12, 0), None, "ampere"),
        ((9, 4), "6.4", "cdna"),
    ],
)
@pytest.mark.parametrize("module", BLOCKED, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_device_chooses(capability, hip, name, module, pretend):
    pretend(capability, hip)
    x = torch.zeros(1, dtype=torch.bfloat16)
    assert family(x.device) == name
    assert choose_config(module.CONFIGS, 128, x) == choose_config(module.CONFIGS, 64, x) == module.CONFIGS[name]
    assert choose_config(module.CONFIGS, 32, x) == module.CONFIGS[name + "_small"]
    assert choose_config(module.CONFIGS, 32, x.float()) == module.CONFIGS["float32"]
    assert choose_config(module.CONFIGS, 128, x, "ampere") == module.CONFIGS["ampere"]


@pytest.mark.parametrize("module", BLOCKED, ids=lambda module: module.__name__.rpartition(".")[2])
def test_choosing_a_config(module):
    chosen = choose_config(module.CONFIGS, 16, torch.zeros(1), "hopper")
    chosen.clear()
    assert module.CONFIGS["hopper"], "the caller gets a copy"
    with pytest.raises(ValueError, match=r"config must be one of interpreter, hopper, .*float32; got 'fast'"):
        choose_config(module.CONFIGS, 16, torch.zeros(1), "fast")
    for block_m in (0, 8, 24, 48, -16):
        with pytest.raises(ValueError, match=rf"block_m must be a power of two, at least 16; got {block_m}"):
            choose_config(module.CONFIGS, block_m, torch.zeros(1))


def test_who_can_have_a_descriptor():
    whole = torch.zeros(4, 8)
    assert aligned(whole) and aligned(whole, whole.half()) and aligned()
    assert aligned(torch.zeros(2, 3, 4)) and aligned(torch.empty(4, 8, device="meta"))
    for tensor in (whole.T, whole[:, :4], torch.zeros(4, 7), torch.zeros(4, 4).half(), torch.zeros(0, 8)):
        assert not aligned(tensor)
        assert not aligned(whole, tensor), "one is enough"
    odd = torch.zeros(16, 8, 1).permute(2, 0, 1)  # contiguous, whatever its first stride
    assert odd.is_contiguous() and odd.stride() == (1, 8, 1) and not aligned(odd)
    assert not aligned(torch.zeros(33)[1:].view(4, 8)), "it starts 4 bytes behind a multiple of 16"
    assert aligned(torch.zeros(36)[4:].view(4, 8))
    assert describe(whole, [2, 8], False) is whole
    assert describe(whole, [2, 8], True).block_shape == [2, 8]


def test_activations_are_those_of_the_library():
    from moe_lab.activations import ACTIVATIONS

    assert set(FUNCTIONS) == set(ACTIVATIONS)
    with pytest.raises(ValueError, match=r"activation must be one of swiglu, geglu, relu, gelu, silu; got 'tanh'"):
        find_function("tanh")


def test_random_numbers_depend_on_the_seed_alone():
    one = normal(50, 40, seed=3, dtype=torch.float32, device="cpu", scale=2.0)
    assert torch.equal(one, normal(50, 40, seed=3, dtype=torch.float32, device="cpu", scale=2.0))
    assert not torch.equal(one, normal(50, 40, seed=4, dtype=torch.float32, device="cpu", scale=2.0))
    assert float(one.std()) == pytest.approx(2.0, rel=0.1)
    assert normal(10**6, 10**6, seed=0, dtype=torch.float32, device="meta").shape == (10**6, 10**6)


def test_some_programs_are_launched():
    assert num_programs(torch.device("cpu")) >= 1
