"""Answers to the exercises of lesson 00: right ones, and wrong ones that must be refused with a reason."""


def busiest(routing):
    return int(routing.load.argmax())


def share_used(routing):
    return float((routing.load > 0).sum()) / routing.num_experts


RIGHT = {"00.1": busiest, "00.2": share_used}
ALSO_RIGHT = {
    "00.1": lambda routing: max(range(routing.num_experts), key=lambda e: int((routing.experts == e).sum())),
    "00.2": lambda routing: len(set(routing.experts.flatten().tolist()) - {-1}) / routing.num_experts,
}
WRONG = {
    "00.1": {
        "the expert of the first token": lambda routing: int(routing.experts[0, 0]),
        "the most frequent value, empty slots included": lambda routing: int(routing.experts.flatten().mode().values),
        "the load, not the expert": lambda routing: int(routing.load.max()),
        "the idlest": lambda routing: int(routing.load.argmin()),
        "always 3": lambda routing: 3,
        "the expert with the most weight in one slot": lambda routing: int(
            routing.experts.flatten()[routing.weights.argmax()]
        ),
    },
    "00.2": {
        "distinct values, -1 among them": lambda routing: len(routing.experts.unique()) / routing.num_experts,
        "share of slots in use": lambda routing: float((routing.experts >= 0).float().mean()),
        "share of the experts seen": lambda routing: 1.0,
        "by the highest id": lambda routing: (int(routing.experts.max()) + 1) / routing.num_experts,
        "a count, not a share": lambda routing: int((routing.load > 0).sum()),
        "first choices only": lambda routing: len(routing.experts[:, 0].unique()) / routing.num_experts,
    },
}

HINT_NAMES = {}
ARGUMENTS = {"00.1": "routing", "00.2": "routing"}
