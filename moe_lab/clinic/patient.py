"""What a patient of the bug clinic is: a function with a mistake, its symptom, and what tells ill from well."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable
Law = Callable[[Function], str | None]
"""What holds of every right function: None, or what is wrong in words."""


@dataclass(frozen=True)
class Patient:
    """A mistake from a public thread, in code of our own.

    - ``symptom`` tells in a sentence with numbers what a function does, whichever function it is given;
    - ``sick`` has the mistake; ``healthy`` are right functions by the way they are written, the plainest first;
    - ``variants`` are wrong in other ways, by name;
    - ``laws`` hold of every healthy function, and each of the others breaks one at least (tests say so).

    Example:
        >>> def law(double):
        ...     return None if double(3) == 6 else f"yours {double(3)}, spec 6"
        >>> ill = lambda n: n * n
        >>> case = Patient("squares", ("owner/name#1",), lambda f: f"2 -> {f(2)}", ill, {}, {}, {"three": law})
        >>> case.symptom(ill), case.broken_laws(ill)
        ('2 -> 4', {'three': 'yours 9, spec 6'})
    """

    title: str
    threads: tuple[str, ...]
    symptom: Callable[[Function], str]
    sick: Function
    healthy: dict[str, Function]
    variants: dict[str, Function]
    laws: dict[str, Law]

    @property
    def ill(self) -> dict[str, Function]:
        """Every wrong function by name, the patient first."""
        return {"the patient": self.sick} | self.variants

    def broken_laws(self, function: Function) -> dict[str, str]:
        """The laws that a function breaks, and how.

        Raises what the function raises.
        """
        faults = {name: law(function) for name, law in self.laws.items()}
        return {name: fault for name, fault in faults.items() if fault is not None}

    def notes(self) -> str:
        """What the doctor sees first: the complaint, where it happened, the symptom, the code."""
        code = inspect.getsource(self.sick).rstrip()
        return f"{self.title}\n({', '.join(self.threads)})\n\n{self.symptom(self.sick)}\n\n{code}"


def near(yours: Tensor | float | int, spec: Tensor | float | int, tolerance: float = 1e-4) -> bool:
    """Whether two numbers, or two tables of numbers, agree: same shape, within a tolerance, no NaN."""
    yours, spec = torch.as_tensor(yours).double(), torch.as_tensor(spec).double()
    return yours.shape == spec.shape and torch.allclose(yours, spec, rtol=tolerance, atol=tolerance)


def compare(yours: Tensor | float | int, spec: Tensor | float | int, where: str = "", tolerance: float = 1e-4):
    """None if two numbers agree, or a sentence with both; of tables their values if few."""
    return None if near(yours, spec, tolerance) else f"{where}yours {say(yours)}, spec {say(spec)}"


def say(value: Tensor | float | int) -> str:
    """A number with four digits, a short table with its values, a long one with its shape."""
    value = torch.as_tensor(value)
    if value.numel() > 8:
        return f"{tuple(value.shape)} numbers that sum to {float(value.double().sum()):.4g}"
    if value.dtype in (torch.bool, torch.int32, torch.int64):
        return str(value.tolist())
    return f"{value:.4g}" if value.ndim == 0 else str([float(f"{one:.4g}") for one in value.flatten().tolist()])


def draw(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal numbers, the same for the same seed."""
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def favour(expert: int, tokens: int, num_experts: int, margin: float = 20.0) -> Tensor:
    """Router logits by which every token wants the same expert.

    Example:
        >>> favour(1, tokens=2, num_experts=3)
        tensor([[ 0., 20.,  0.],
                [ 0., 20.,  0.]])
    """
    logits = torch.zeros(tokens, num_experts)
    logits[:, expert] = margin
    return logits


def spread_evenly(tokens: int, num_experts: int, margin: float = 2.0) -> Tensor:
    """Router logits by which token t wants expert t mod num_experts.

    Example:
        >>> spread_evenly(3, 2)
        tensor([[2., 0.],
                [0., 2.],
                [2., 0.]])
    """
    return margin * torch.eye(num_experts)[torch.arange(tokens) % num_experts]


def gradient(loss: Function, logits: Tensor, *arguments: object) -> Tensor:
    """The gradient of a loss in its first argument; zeros where none arrives."""
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, *arguments)
    if not isinstance(value, Tensor) or not value.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found
