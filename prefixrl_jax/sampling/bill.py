"""Where the FLOPs of sampling are charged, in select, collect, rollouts and evaluation alike."""

from __future__ import annotations

import dataclasses

import jax

from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.sampling.job import Job


@dataclasses.dataclass(frozen=True)
class Bill:
    """The ledger that sampling charges, with its phases of prefill and of decoding.

    The two phases may be the same.
    """

    cost: Costs
    ledger: Ledger
    phases: tuple[str, str]  # of prefill, of decoding

    def charge_context(self, job: Job, lengths: list[int]) -> None:
        """Charge the cost of a context and of all its samples, the dropped ones included.

        The `paper` accounting takes a prefill for each sample, the `actual` one a single prefill.

        Args:
            job: the job of the context.
            lengths: tokens of each sample; those decoded so far if it was dropped.
        """
        if lengths:
            self.ledger.add_group(self.cost, self.phases, len(job.context_ids), lengths)

    def charge_hardware(self, prefilled: int = 0, decoded: int = 0) -> None:
        """Charge the tokens that all devices have processed, padding and idle slots included.

        Every process charges its part; the parts are summed when ledgers are merged.
        """
        share = 1 / jax.process_count()
        prefill, decode = self.phases
        self.ledger.add("hardware", prefill, share * self.cost.tokens(prefilled))
        self.ledger.add("hardware", decode, share * self.cost.tokens(decoded))
