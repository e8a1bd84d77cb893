"""What every launcher needs to know of the machine: interpreter or GPU, its family, and what it cannot compute."""

import torch
import triton

INTERPRET = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter: decided once, when triton is first imported."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_tensors(dtypes=DTYPES, **tensors):
    """Refuse tensors that a kernel cannot take: another dtype, two devices, or bfloat16 in the interpreter.

    Triton's interpreter multiplies the bit patterns of bfloat16 as if they were whole numbers, without a word.
    """
    check_places(**tensors)
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(f"{name} must be {allowed}; got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.dtype == torch.bfloat16 and INTERPRET:
            raise TypeError(
                f"{name} is bfloat16, which Triton's interpreter computes wrongly; "
                "use float32 or float16 where there is no GPU"
            )


def check_places(**tensors):
    """Refuse what is no dense tensor, and tensors that are not all on one device, where a kernel can run."""
    first, device = None, None
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got the layout {tensor.layout}")
        first, device = first or name, device or tensor.device
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and {first} on {device}; they must be on one device")
    if device.type == "cpu" and not INTERPRET:
        raise ValueError(f"{first} is on cpu, where Triton kernels run only under TRITON_INTERPRET=1")


def check_dims(dims, **tensors):
    """Refuse tensors of another number of dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, got {tuple(tensor.shape)}")


def family(device):
    """The name of the GPU's generation in `CONFIGS`: what decides tiles, stages and whether there is TMA.

    "hopper" is compute capability 9 and 10, which have 227 KB of shared memory for a program. GeForce's Blackwell, 12,
    has 99 KB, as Ada and the smaller Amperes do.
    """
    if INTERPRET:
        return "interpreter"
    if torch.version.hip:
        return "cdna"
    return "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"


def choose_config(configs, block_m, x, config=None):
    """The launch parameters for tiles of ``block_m`` rows: by name, or the device's own.

    float32 tiles are smaller, since they take twice the memory; so are those for few rows.
    """
    if block_m < 16 or block_m & (block_m - 1):
        raise ValueError(f"block_m must be a power of two, at least 16; got {block_m}")
    if config is None:
        config = family(x.device)
        if config != "interpreter":
            config = "float32" if x.dtype == torch.float32 else config + ("_small" if block_m < 64 else "")
    if config not in configs:
        raise ValueError(f"config must be one of {', '.join(configs)}; got {config!r}")
    return dict(configs[config])


def num_programs(device):
    """How many programs a persistent kernel launches: one a multiprocessor; a few in the interpreter."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 3 if INTERPRET else 132  # 132: compiled for an H100 that is not here


def normal(*shape, seed, dtype, device, scale=1.0):
    """N(0, scale^2) from a seed, the same on every device; on "meta" only the shape."""
    if torch.device(device).type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=draw) * scale).to(device, dtype)
