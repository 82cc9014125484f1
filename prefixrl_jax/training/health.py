"""Checks of a training run's own metrics: signs that it no longer optimises what it samples."""

from __future__ import annotations

import dataclasses

from absl import logging

LOGP_DIFF, ENTROPY = "sampler_trainer/logp_diff_max", "entropy"


class Unhealthy(RuntimeError):
    """A metric was out of bounds for several steps. The state is saved; look before going on."""


@dataclasses.dataclass
class HealthCheck:
    """Called with every step's metrics; a bound of 0 is off.

    Attributes:
        max_logp_diff: largest |log p(sampler) - log p(trainer)| of a token, in nats. Above it a
            warning; after `patience` such steps in a row the run stops, since rollouts are then
            not samples of the policy that is trained.
        min_entropy: in nats a token. Below it one warning: a policy this sure explores nothing.
        patience: steps in a row.
    """

    max_logp_diff: float
    min_entropy: float
    patience: int = 3
    _steps_above: int = 0
    _warned: bool = False

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Warn, or raise Unhealthy, about the metrics of `step` (from 1)."""
        self._check_logp_diff(step, metrics.get(LOGP_DIFF, 0.0))
        entropy = metrics.get(ENTROPY, float("inf"))
        if entropy < self.min_entropy and not self._warned:
            logging.warning(
                "step %d: entropy is %.3g nats a token, below train.min_entropy=%g",
                step,
                entropy,
                self.min_entropy,
            )
            self._warned = True

    def _check_logp_diff(self, step: int, logp_diff: float) -> None:
        if not 0 < self.max_logp_diff < logp_diff:
            self._steps_above = 0
            return
        self._steps_above += 1
        message = (
            f"step {step}: {LOGP_DIFF} is {logp_diff:.3g}, above"
            f" train.max_logp_diff={self.max_logp_diff}"
        )
        if self._steps_above >= self.patience:
            raise Unhealthy(
                f"{message}, for {self.patience} steps in a row: sampler and trainer no longer"
                " agree on the policy"
            )
        logging.warning("%s", message)
