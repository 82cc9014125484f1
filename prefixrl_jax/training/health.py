"""What a training run checks of its own figures: signs that it no longer optimises what it
samples.
"""

from __future__ import annotations

import dataclasses

from absl import logging

GAP, ENTROPY = "sampler_trainer/logp_diff_max", "entropy"


class Unsound(RuntimeError):
    """A figure has been out of bounds for several steps. The state is saved; look before going
    on.
    """


@dataclasses.dataclass
class Gates:
    """Called with every step's metrics. A bound of 0 is off.

    Attributes:
        max_logp_diff: largest |log p(sampler) - log p(trainer)| of a token, nats. Above it a
            warning; at `patience` steps in a row the run stops: rollouts are then not samples of
            the policy that is trained.
        min_entropy: nats a token. Below it one warning: a policy this sure explores nothing.
    """

    max_logp_diff: float
    min_entropy: float
    patience: int = 3
    _in_a_row: int = 0
    _warned: bool = False

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Warns, or raises Unsound, about the metrics of `step` (from 1)."""
        gap, entropy = values.get(GAP, 0.0), values.get(ENTROPY, float("inf"))
        self._in_a_row = self._in_a_row + 1 if 0 < self.max_logp_diff < gap else 0
        if self._in_a_row:
            found = (
                f"step {step}: {GAP} is {gap:.3g}, above train.max_logp_diff={self.max_logp_diff}"
            )
            if self._in_a_row >= self.patience:
                raise Unsound(
                    f"{found}, for {self.patience} steps in a row: sampler and trainer no longer"
                    " agree on the policy"
                )
            logging.warning("%s", found)
        if entropy < self.min_entropy and not self._warned:
            logging.warning(
                "step %d: entropy is %.3g nats a token, below train.min_entropy=%g",
                step,
                entropy,
                self.min_entropy,
            )
            self._warned = True
