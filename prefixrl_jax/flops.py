"""FLOPs that a run has spent, in four accountings, by phase.

- `paper`: 2N a token sampled or scored and 6N a token trained, where every rollout pays for its
  own prompt and prefix.
- `actual`: the tokens that the method needs. A context is encoded once for its group, and a group
  whose rollouts are all correct or all wrong is not trained on.
- `hardware`: what the device was given to compute, which is `actual` plus padding, idle slots and
  rematerialisation.
- `attention`: the products of attention itself, which 2N leaves out and no other accounting has.

N is the number of matmul parameters, with the output head and without the embedding look-up
(`model.weights.count_params`).
"""

from __future__ import annotations

import dataclasses
import math

ACCOUNTINGS = ("paper", "actual", "hardware", "attention")
PHASES = ("select", "collect", "prefill", "decode", "score", "train")  # make up the total
OUTSIDE = ("base", "eval")  # recorded, and no part of the total
SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


@dataclasses.dataclass(frozen=True)
class Costs:
    """FLOPs that tokens and attention cost in one model.

    Attributes:
        matmul_params: N.
        attention_pair: FLOPs of one (query, key) pair: scores and values, in all heads and layers.
        remat: Whether the backward pass computes the layers' forward pass again.
    """

    matmul_params: int
    attention_pair: int
    remat: bool = False

    def tokens(self, count: float, train: bool = False) -> float:
        """Return the FLOPs of `count` tokens: 2N each, or 6N with the backward pass."""
        return (6.0 if train else 2.0) * self.matmul_params * count

    def trained_positions(self, count: float) -> float:
        """Return the hardware FLOPs of training on `count` positions, padding included.

        A position costs 6N, or 8N with rematerialisation.
        """
        return (8.0 if self.remat else 6.0) * self.matmul_params * count

    def pairs(self, count: float, train: bool = False) -> float:
        """Return the FLOPs of `count` (query, key) pairs, with the backward pass if `train`."""
        return (3.0 if train else 1.0) * self.attention_pair * count


def costs(
    matmul_params: int, num_layers: int, num_heads: int, head_dim: int, remat: bool = False
) -> Costs:
    """Return the costs of a model of these sizes.

    A (query, key) pair takes 2·head_dim multiply-adds in each head and layer: 4·head_dim FLOPs.
    """
    return Costs(matmul_params, 4 * num_layers * num_heads * head_dim, remat)


def causal_pairs(context: int, continuations: list[int]) -> float:
    """Count the (query, key) pairs of a group whose context is encoded once.

    All of the context but its last token is encoded for the group. Each continuation feeds that
    last token and its own tokens but the last, so a continuation of n tokens has n queries, and
    query i (from 0) sees context - 1 + i + 1 keys.

    Args:
        context: Tokens of the context.
        continuations: Tokens of each continuation.
    """
    encoded = context - 1
    in_context = encoded * (encoded + 1) / 2
    return in_context + sum(n * encoded + n * (n + 1) / 2 for n in continuations)


class Ledger:
    """FLOPs by accounting and phase.

    `state` is {accounting: {phase: FLOPs}}, plain floats, and is saved with every checkpoint.
    """

    def __init__(self, state: dict[str, dict[str, float]] | None = None):
        self.state = {name: dict.fromkeys((*PHASES, *OUTSIDE), 0.0) for name in ACCOUNTINGS}
        for accounting, phases in (state or {}).items():
            # A summary is a state with totals, which follow from the rest.
            self.state[accounting].update({k: float(v) for k, v in phases.items() if k != "total"})

    def add(self, accounting: str, phase: str, flops: float) -> None:
        """Add FLOPs to a phase.

        Raises:
            ValueError: `flops` is negative or not finite.
        """
        if not (flops >= 0 and math.isfinite(flops)):
            raise ValueError(f"flops[{accounting}][{phase}]: cannot add {flops}")
        self.state[accounting][phase] += flops

    def add_group(
        self, cost: Costs, phases: tuple[str, str], context: int, rows: list[int]
    ) -> None:
        """Charge the cost of sampling one group.

        Args:
            cost: Costs of the model that was sampled.
            phases: The phase that pays for the context, and the one that pays for the rows.
            context: Tokens of the context.
            rows: Tokens of each continuation.
        """
        prefill, decode = phases
        sampled = sum(rows)
        self.add("paper", prefill, cost.tokens(len(rows) * context))
        self.add("paper", decode, cost.tokens(sampled))
        self.add("actual", prefill, cost.tokens(context - 1))
        self.add("actual", decode, cost.tokens(sampled))
        context_pairs = causal_pairs(context, [])
        row_pairs = causal_pairs(context, rows) - context_pairs
        self.add("attention", prefill, cost.pairs(context_pairs))
        self.add("attention", decode, cost.pairs(row_pairs))

    def add_training(
        self, cost: Costs, phase: str, context: int, rows: list[int], informative: bool = True
    ) -> None:
        """Charge the cost of training on one group once.

        Args:
            cost: Costs of the model that was trained.
            phase: The phase that pays.
            context: Tokens of the context.
            rows: Tokens of each continuation.
            informative: False if all advantages are 0. Such a group is left out of the update and
                costs something in the paper's accounting alone.
        """
        trained = sum(rows)
        self.add("paper", phase, cost.tokens(len(rows) * context + trained, train=True))
        if informative:
            self.add("actual", phase, cost.tokens(context - 1 + trained, train=True))
            self.add("attention", phase, cost.pairs(causal_pairs(context, rows), train=True))

    def add_scoring(self, cost: Costs, context: int, rows: list[int]) -> None:
        """Charge the cost of one group's log-probs under another model of the same size."""
        self.add("paper", "score", cost.tokens(len(rows) * context + sum(rows)))
        self.add("actual", "score", cost.tokens(context - 1 + sum(rows)))
        self.add("attention", "score", cost.pairs(causal_pairs(context, rows)))

    def without(self, phase: str) -> Ledger:
        """Return a copy in which the FLOPs of `phase` are left out."""
        ledger = self.copy()
        for phases in ledger.state.values():
            phases[phase] = 0.0
        return ledger

    def total(self, accounting: str = "paper") -> float:
        """Return the sum over `PHASES`, which leaves out base training and evaluation."""
        return sum(self.state[accounting][phase] for phase in PHASES)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return a copy of `state` in which each accounting also has its "total"."""
        return {name: {**phases, "total": self.total(name)} for name, phases in self.state.items()}

    def copy(self) -> Ledger:
        """Return an independent copy of the ledger."""
        return Ledger(self.state)


def si_unit(largest: float) -> tuple[float, str]:
    """Return the SI scale and prefix in which `largest` is written: 2e12 -> (1e12, "T").

    They leave it one to three digits before the decimal point.
    """
    # 6e-4 short of the next power, a number rounded to three digits would already read 1000.
    power = int((math.log10(largest) + 3e-4) // 3) if largest >= 1 else 0
    power = min(power, len(SI_PREFIXES) - 1)
    return 10.0 ** (3 * power), SI_PREFIXES[power]


def format_flops(flops: float) -> str:
    """Return FLOPs as text with three significant digits: 1.234e12 -> "1.23 TFLOP".

    The smallest unit is MFLOP: a run that has spent nothing reads "0 MFLOP".
    """
    rounded = float(f"{flops:.3g}")  # 999.7e9 is written in TFLOP
    scale, prefix = si_unit(max(rounded, 1e6))
    return f"{flops / scale:.3g} {prefix}FLOP"
