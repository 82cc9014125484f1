"""FLOPs: what a run has spent, in three accountings. Pure arithmetic.

`paper`     2N per token sampled or scored, 6N per token trained, every rollout paying its own
prompt and prefix. `actual`    the tokens this method needs: a context once per group, and no update
for groups all right or all wrong.
            Attention's own products, which 2N leaves out, are counted apart.
`hardware`  actual plus padding, idle slots and rematerialisation: what the device was given to
compute.

N is the number of matmul parameters, output head included and embedding look-up left out
(`weights.count_params`). The total is select + collect + prefill + decode + score + train; base
training and evaluation are listed, not in the total.
"""

from __future__ import annotations

import dataclasses
import math

ACCOUNTINGS = ("paper", "actual", "hardware", "attention")
PHASES = ("select", "collect", "prefill", "decode", "score", "train")
OUTSIDE = ("base", "eval")


@dataclasses.dataclass(frozen=True)
class Costs:
    """FLOPs per token of one model.

    attention_pair: per (query, key) pair, all layers, scores and values.
    """

    matmul_params: int
    attention_pair: int
    remat: bool = False  # whether the backward pass runs the layers' forward pass again

    def tokens(self, count: float, train: bool = False) -> float:
        """FLOPs of passing `count` tokens through the weights: 2N each, or 6N with the backward
        pass.
        """
        return (6.0 if train else 2.0) * self.matmul_params * count

    def trained_positions(self, count: float) -> float:
        """Hardware FLOPs of training on `count` positions, padding included: 6N each, 8N with
        rematerialisation.
        """
        return (8.0 if self.remat else 6.0) * self.matmul_params * count

    def pairs(self, count: float, train: bool = False) -> float:
        """FLOPs of `count` (query, key) pairs of attention."""
        return (3.0 if train else 1.0) * self.attention_pair * count


def costs(
    matmul_params: int, num_layers: int, num_heads: int, head_dim: int, remat: bool = False
) -> Costs:
    """Costs of a model from its sizes: a pair costs 2·D multiply-adds per head and layer, i.e. 4·D
    FLOPs.
    """
    return Costs(matmul_params, 4 * num_layers * num_heads * head_dim, remat)


def format_flops(flops: float) -> str:
    """Three digits and a unit: 1.234e12 -> "1.23 TFLOP"."""
    for scale, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


def causal_pairs(context: int, continuations: list[int]) -> float:
    """(query, key) pairs of one group: a causal context of `context` tokens and rows that see it
    and themselves.

    A row of n tokens has n queries; the i-th (from 0) sees context - 1 + i + 1 keys, the context's
    last token being its own.
    """
    encoded = context - 1
    return encoded * (encoded + 1) / 2 + sum(n * encoded + n * (n + 1) / 2 for n in continuations)


class Ledger:
    """FLOPs by accounting and phase.

    Its `state` is a plain nested dict of floats, saved with every checkpoint.
    """

    def __init__(self, state: dict[str, dict[str, float]] | None = None):
        self.state = {a: dict.fromkeys((*PHASES, *OUTSIDE), 0.0) for a in ACCOUNTINGS}
        for accounting, phases in (state or {}).items():
            self.state[accounting].update({k: float(v) for k, v in phases.items() if k != "total"})

    def add(self, accounting: str, phase: str, flops: float) -> None:
        """Adds FLOPs; raises ValueError for a negative or non-finite amount."""
        if not (flops >= 0 and math.isfinite(flops)):
            raise ValueError(f"flops[{accounting}][{phase}]: cannot add {flops}")
        self.state[accounting][phase] += flops

    def add_group(
        self, cost: Costs, phases: tuple[str, str], context: int, rows: list[int]
    ) -> None:
        """One sampled group: a context of `context` tokens, rows of `rows` tokens; phases = (of
        prefill, of decode).
        """
        prefill, decode = phases
        sampled = sum(rows)
        self.add("paper", prefill, cost.tokens(len(rows) * context))
        self.add("paper", decode, cost.tokens(sampled))
        self.add("actual", prefill, cost.tokens(context - 1))
        self.add("actual", decode, cost.tokens(sampled))
        own = causal_pairs(context, rows) - causal_pairs(context, [])
        self.add("attention", prefill, cost.pairs(causal_pairs(context, [])))
        self.add("attention", decode, cost.pairs(own))

    def add_training(
        self, cost: Costs, phase: str, context: int, rows: list[int], informative: bool = True
    ) -> None:
        """One group trained on once.

        A group that is not informative (all advantages 0) is not computed.
        """
        trained = sum(rows)
        self.add("paper", phase, cost.tokens(len(rows) * context + trained, train=True))
        if informative:
            self.add("actual", phase, cost.tokens(context - 1 + trained, train=True))
            self.add("attention", phase, cost.pairs(causal_pairs(context, rows), train=True))

    def add_scoring(self, cost: Costs, context: int, rows: list[int]) -> None:
        """One group's tokens passed through another model of the same size, for their log-probs."""
        self.add("paper", "score", cost.tokens(len(rows) * context + sum(rows)))
        self.add("actual", "score", cost.tokens(context - 1 + sum(rows)))
        self.add("attention", "score", cost.pairs(causal_pairs(context, rows)))

    def without(self, phase: str) -> Ledger:
        """A copy in which a phase has cost nothing."""
        out = self.copy()
        for phases in out.state.values():
            phases[phase] = 0.0
        return out

    def total(self, accounting: str = "paper") -> float:
        """Sum over the phases that count (not base, not eval)."""
        return sum(self.state[accounting][p] for p in PHASES)

    def summary(self) -> dict[str, dict[str, float]]:
        """The state with a total per accounting."""
        return {a: {**phases, "total": self.total(a)} for a, phases in self.state.items()}

    def copy(self) -> Ledger:
        """An independent copy."""
        return Ledger(self.state)
