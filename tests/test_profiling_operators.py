"""From PyTorch's profiler to events: what becomes one, what it is for, what it costs. Made-up results, no clock."""

import itertools

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from moe_lab import flop_counter
from moe_lab.operators.products import multiply_by_onednn
from moe_lab.profiling import CATEGORIES, category_of
from moe_lab.profiling.counting import count_operator
from moe_lab.profiling.operators import cpu_events, gpu_events

# ---------------------------------------------------------------- categories


@pytest.mark.parametrize(
    ("category", "names"),
    [
        (
            "matrix product",
            "aten::mm aten::bmm aten::addmm aten::addmm_ aten::baddbmm aten::mv aten::dot aten::linear aten::matmul "
            "aten::_grouped_mm aten::_scaled_mm transformers::grouped_mm_fallback nvjet_hsh_128x256_64x4_1x2_h_bz_TNT "
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1 _grouped_up_kernel "
            "_grouped_gemm_kernel _grouped_weight_gradient_kernel _decode_up_kernel _decode_down_kernel "
            "moe_lab::grouped_mlp",
        ),
        (
            "activation",
            "aten::silu aten::silu_backward aten::gelu aten::relu aten::sigmoid aten::mul aten::mul_ "
            "_activation_backward_kernel vectorized_elementwise_kernel<4,at::native::(anonymous)::silu_kernel> "
            "vectorized_elementwise_kernel<4,at::native::BinaryFunctor<at::native::binary_internal::MulFunctor>>",
        ),
        (
            "gather and scatter",
            "aten::index aten::index_select aten::index_add_ aten::_index_put_impl_ aten::gather aten::scatter_add_ "
            "aten::index_copy_ _permute_kernel _combine_kernel at::native::vectorized_gather_kernel",
        ),
        (
            "sort and routing",
            "aten::sort aten::argsort aten::topk aten::softmax aten::_softmax_backward_data aten::bincount "
            "aten::cumsum aten::nonzero aten::eq aten::lt aten::any aten::aminmax aten::item aten::where "
            "aten::histc aten::one_hot _topk_gate_kernel _topk_gate_backward_kernel "
            "_count_kernel _prefix_kernel _place_kernel "
            "at_cuda_detail::cub::DeviceRadixSortOnesweepKernel moe_lab::assign_evenly",
        ),
        (
            "copy and fill",
            "aten::copy_ aten::fill_ aten::zero_ aten::zeros aten::new_zeros aten::ones_like aten::clone aten::cat "
            "aten::arange aten::masked_fill_ aten::_to_copy aten::full Memcpy:DtoD Memset:(Device) "
            "at::native::CatArrayBatchedCopy",
        ),
        ("other", "aten::add aten::add_ aten::sum aten::div aten::sub aten::rsqrt something at::native::reduce_kernel"),
    ],
)
def test_categories_of_names(category, names):
    assert {name: category_of(name) for name in names.split()} == dict.fromkeys(names.split(), category)
    assert category in CATEGORIES


# ---------------------------------------------------------------- FLOPs and bytes


def profiled(function, name):
    """Shapes and dtypes of an operator as PyTorch's own profiler writes them down."""
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profiler:
        function()
    (event,) = [event for event in profiler.events() if event.name == name]
    return event.input_shapes, event.input_dtypes


def draw(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "function", "moved"),
    [
        ("aten::mm", lambda: torch.mm(draw(3, 4), draw(4, 5)), 4 * (12 + 20 + 15)),
        ("aten::mm", lambda: torch.mm(draw(3, 4), draw(4, 5), out=draw(3, 5)), 4 * (12 + 20 + 15)),
        ("aten::bmm", lambda: torch.bmm(draw(2, 3, 4), draw(2, 4, 5)), 4 * 2 * (12 + 20 + 15)),
        ("aten::addmm", lambda: torch.addmm(draw(5), draw(3, 4), draw(4, 5)), 4 * (5 + 12 + 20 + 15)),
        ("aten::addmm_", lambda: draw(3, 5).addmm_(draw(3, 4), draw(4, 5)), 4 * (15 + 12 + 20 + 15)),
        ("aten::mv", lambda: torch.mv(draw(3, 4), draw(4)), 4 * (12 + 4 + 3)),
        ("aten::dot", lambda: torch.dot(draw(4), draw(4)), 4 * (4 + 4 + 1)),
        ("aten::mm", lambda: torch.mm(draw(3, 4, dtype=torch.bfloat16), draw(4, 5, dtype=torch.bfloat16)), 2 * 47),
    ],
)
def test_products_are_counted_as_the_flop_counter_counts_them(name, function, moved):
    with flop_counter() as counter:
        function()
    assert count_operator(name, *profiled(function, name)) == (counter.total_flops, moved)


@pytest.mark.parametrize(
    ("name", "function", "moved"),
    [
        ("aten::silu", lambda: torch.nn.functional.silu(draw(3, 4)), 4 * 24),
        ("aten::mul", lambda: draw(3, 4) * draw(3, 4), 4 * 36),
        ("aten::mul", lambda: draw(3, 4) * draw(3, 1), 4 * (12 + 3 + 12)),
        ("aten::mul", lambda: torch.mul(draw(3, 4), draw(3, 4), out=draw(3, 4)), 4 * 36),
        ("aten::mul_", lambda: draw(3, 4).mul_(draw(3, 1)), 4 * (12 + 3 + 12)),
        ("aten::add_", lambda: draw(3, 4).add_(draw(3, 4)), 4 * 36),
        ("aten::copy_", lambda: draw(3, 4).copy_(draw(3, 4, dtype=torch.float64)), 12 * 4 + 12 * 8),
        ("aten::fill_", lambda: torch.empty(3, 4).fill_(1.0), 48),
        ("aten::index_select", lambda: draw(9, 4).index_select(0, torch.tensor([1, 1, 8])), 3 * 4 * 4 * 2 + 3 * 8),
        ("aten::topk", lambda: draw(3, 4).topk(2), None),
        ("aten::sort", lambda: draw(3, 4).sort(), None),
        ("aten::index_add_", lambda: draw(3, 4).index_add_(0, torch.tensor([1]), draw(1, 4)), None),
    ],
)
def test_bytes_of_what_is_no_product(name, function, moved):
    assert count_operator(name, *profiled(function, name)) == (None, moved)


def test_products_by_onednn_are_counted_as_any_other():
    left, right = draw(3, 4), draw(4, 5)
    shapes, dtypes = profiled(lambda: multiply_by_onednn(left, right), "mkldnn::_linear_pointwise")
    assert count_operator("mkldnn::_linear_pointwise", shapes, dtypes) == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15))


def test_grouped_products_count_all_rows():
    left, right, offs = draw(8, 16, dtype=torch.bfloat16), draw(3, 16, 32, dtype=torch.bfloat16), [2, 5, 8]
    name = "aten::_grouped_mm"
    shapes, dtypes = profiled(lambda: torch._grouped_mm(left, right, offs=torch.tensor(offs, dtype=torch.int32)), name)
    assert count_operator(name, shapes, dtypes) == (2 * 8 * 16 * 32, None)


# ---------------------------------------------------------------- which operators become events


def event(name, start, end, children=(), thread=1, shapes=(), number=0):
    """An event of PyTorch's profiler, with those that it called."""
    made = FunctionEvent(
        id=number,
        name=name,
        thread=thread,
        start_us=start,
        end_us=end,
        input_shapes=[list(shape) for shape in shapes],
        input_dtypes=["float"] * len(shapes),
    )
    for child in children:
        made.append_cpu_child(child)
        child.set_cpu_parent(made)
    return made


def names(roots):
    return [one.name for one in cpu_events(roots, 0.0)]


def test_the_innermost_operators_are_events_with_times_from_the_call():
    view = event("aten::t", 101, 103, [event("aten::as_strided", 102, 103)])
    product = event("aten::mm", 105, 125, shapes=[(3, 4), (4, 5)])
    linear = event("aten::linear", 100, 130, [view, event("aten::matmul", 104, 128, [product])])
    (found,) = cpu_events([linear], 90.0)
    assert (found.name, found.lane, found.category) == ("aten::mm", "CPU", "matrix product")
    assert (found.start_us, found.duration_us, found.flops, found.bytes) == (15, 20, 120, 188)


def test_an_operator_that_works_itself_keeps_what_it_calls():
    sort = event("aten::sort", 0, 100, [event("aten::copy_", 5, 15), event("aten::arange", 20, 30)])
    (found,) = cpu_events([sort], 0.0)
    assert (found.name, found.duration_us) == ("aten::sort", 100)


def test_an_operator_that_has_others_work_does_not():
    zeros = event("aten::zeros", 0, 10, [event("aten::empty", 0, 1), event("aten::zero_", 2, 9)])
    assert names([zeros]) == ["aten::zero_"]


def test_no_product_hides_in_an_operator_however_slow_that_was():
    matmul = event("aten::matmul", 0, 1000, [event("aten::mm", 400, 410, shapes=[(3, 4), (4, 5)])])
    assert names([event("aten::linear", 0, 1000, [matmul])]) == ["aten::mm"]


def test_labels_and_steps_of_autograd_are_no_events():
    node = event("MmBackward0", 1, 20, [event("aten::t", 2, 3), event("aten::mm", 4, 19)])
    engine = event("autograd::engine::evaluate_function: MmBackward0", 0, 30, [node])
    empty = event("torch::autograd::AccumulateGrad", 30, 31)
    label = event("my label", 31, 60, [event("aten::silu", 40, 50)])
    assert names([engine, empty, label]) == ["aten::mm", "aten::silu"]


def test_views_alone_are_no_events():
    assert names([event("aten::reshape", 0, 9, [event("aten::view", 1, 8)]), event("aten::empty", 9, 10)]) == []
    copied = event("aten::reshape", 0, 9, [event("aten::clone", 1, 9, [event("aten::copy_", 1, 9)])])
    assert names([copied]) == ["aten::copy_"]


def test_each_thread_has_a_lane():
    found = cpu_events([event("aten::mm", 0, 5), event("aten::mm", 1, 4, thread=9), event("aten::mm", 6, 7)], 0.0)
    assert [one.lane for one in found] == ["CPU", "CPU thread 2", "CPU"]


def test_no_moment_is_in_two_events():
    """A random tree of calls: events of a lane never overlap, and their sum is within the root's time."""
    draw = torch.Generator().manual_seed(0)

    def tree(start, end, depth):
        cuts = sorted(torch.rand(6, generator=draw, dtype=torch.float64).mul(end - start).add(start).tolist())
        parts = [tree(low, high, depth - 1) for low, high in zip(cuts[::2], cuts[1::2], strict=True)] if depth else []
        which = ("aten::mm", "aten::sort", "aten::t", "label", "aten::zeros")
        return event(which[int(torch.randint(5, (), generator=draw))], start, end, parts)

    for _ in range(20):
        found = sorted(cpu_events([tree(0.0, 100.0, 3)], 0.0), key=lambda one: one.start_us)
        for before, after in itertools.pairwise(found):
            assert before.end_us <= after.start_us


# ---------------------------------------------------------------- a GPU


def kernel(name, start, end, stream=7, launched_by=0, label=False):
    return FunctionEvent(
        id=1000 + launched_by,
        name=name,
        thread=0,
        start_us=start,
        end_us=end,
        device_type=DeviceType.CUDA,
        device_resource_id=stream,
        linked_correlation_id=launched_by,
        is_user_annotation=label,
    )


def test_kernels_lie_on_their_streams_with_the_cost_of_what_launched_them():
    operators = [
        event("aten::mm", 100, 110, number=1, shapes=[(3, 4), (4, 5)]),
        event("aten::mm", 110, 120, number=2, shapes=[(3, 4), (4, 5)]),
        event("cudaLaunchKernel", 101, 102, number=3),
    ]
    kernels = [
        kernel("nvjet_tst", 130, 150, launched_by=1),
        kernel("splitK_reduce", 150, 151, stream=9, launched_by=2),
        kernel("nvjet_tst", 151, 160, launched_by=2),
        kernel("Memset (Device)", 160, 161),
        kernel("my label", 130, 160, label=True),
        kernel("nvjet_tst", 50, 60, launched_by=1),
        kernel("nvjet_tst", 300, 301, launched_by=1),
    ]
    found = gpu_events([*operators, *kernels], 100.0, 200.0)
    assert [(one.name, one.lane, one.start_us, one.duration_us) for one in found] == [
        ("nvjet_tst", "GPU stream 7", 30, 20),
        ("splitK_reduce", "GPU stream 9", 50, 1),
        ("nvjet_tst", "GPU stream 7", 51, 9),
        ("Memset (Device)", "GPU stream 7", 60, 1),
    ]
    assert [one.flops for one in found] == [120, None, None, None], "two kernels share one product: nobody knows how"


def test_launches_have_no_cost_of_their_own():
    (found,) = cpu_events([event("aten::mm", 0, 5, shapes=[(3, 4), (4, 5)])], 0.0, with_flops=False)
    assert found.flops is None and found.bytes is None
