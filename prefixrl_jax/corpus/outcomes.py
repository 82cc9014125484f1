"""What is kept of samples in memory: eight bytes of every one, and traces as arrays."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.tasks.task import Verdict

VERDICTS = tuple(Verdict)
LARGEST = 1 << 40  # sample id, and number of tokens
GAP = 64  # an id that lies further than this beyond twice the largest is kept apart

Value = TypeVar("Value")


class Outcomes:
    """A mapping from sample ids to (verdict, tokens).

    Sampling counts ids from 0; they are the places of an array. The ids of imported traces are line
    numbers, few a problem and far apart; those are kept in a dict.
    """

    __slots__ = ("_count", "_dense", "_sparse")

    def __init__(self) -> None:
        """Begin without samples."""
        self._dense = array("q")  # by id, 0 where there is no sample
        self._sparse: dict[int, int] = {}
        self._count = 0

    def add(self, sample_id: int, verdict: Verdict, tokens: int) -> bool:
        """Add a sample; return False, and change nothing, if its id is there already."""
        if self.code(sample_id):
            return False
        code = 1 + VERDICTS.index(verdict) + len(VERDICTS) * tokens
        if sample_id >= 2 * len(self._dense) + GAP:
            self._sparse[sample_id] = code
        else:
            missing = sample_id + 1 - len(self._dense)
            if missing > 0:
                self._dense.extend([0] * missing)
            self._dense[sample_id] = code
        self._count += 1
        return True

    def code(self, sample_id: int) -> int:
        """Return the number that stands for an outcome, or 0 for an id that is not there."""
        if sample_id < len(self._dense) and (code := self._dense[sample_id]):
            return code
        return self._sparse.get(sample_id, 0)

    def ids(self) -> list[int]:
        """Return the ids in ascending order."""
        dense = [i for i, code in enumerate(self._dense) if code]
        return sorted([*dense, *self._sparse])

    def count_below(self, sample_id: int) -> int:
        """Return how many ids are smaller than this one."""
        dense = sum(map(bool, self._dense[:sample_id]))
        return dense + sum(i < sample_id for i in self._sparse)

    def copy(self) -> Outcomes:
        """Return an independent copy."""
        copy = Outcomes()
        copy._dense = self._dense[:]
        copy._sparse = dict(self._sparse)
        copy._count = self._count
        return copy

    @property
    def verdicts(self) -> Mapping[int, Verdict]:
        """The verdicts by sample id, in ascending order; a view."""
        return _View(self, lambda code: VERDICTS[(code - 1) % len(VERDICTS)])

    @property
    def lengths(self) -> Mapping[int, int]:
        """The lengths in tokens by sample id, in ascending order; a view."""
        return _View(self, lambda code: (code - 1) // len(VERDICTS))

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcomes):
            return NotImplemented
        return {i: self.code(i) for i in self.ids()} == {i: other.code(i) for i in other.ids()}

    __hash__ = None  # type: ignore[assignment]  # it can be changed


class _View(Mapping[int, Value], Generic[Value]):
    """One of the two things that are known of each sample."""

    def __init__(self, outcomes: Outcomes, decode: Callable[[int], Value]):
        self._outcomes = outcomes
        self._decode = decode

    def __getitem__(self, sample_id: int) -> Value:
        if code := self._outcomes.code(sample_id):
            return self._decode(code)
        raise KeyError(sample_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self._outcomes.ids())

    def __len__(self) -> int:
        return len(self._outcomes)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclasses.dataclass(frozen=True, slots=True)
class PackedTrace:
    """A trace in a fifth of the memory: its lists as arrays."""

    trace: Trace  # without its lists
    context_ids: array
    token_ids: array
    logprobs: array

    @classmethod
    def of(cls, trace: Trace) -> PackedTrace:
        """Pack a trace; raise TypeError or OverflowError if a list holds other than numbers."""
        return cls(
            trace=dataclasses.replace(trace, context_ids=[], token_ids=[], logprobs=[]),
            context_ids=array("q", trace.context_ids),
            token_ids=array("q", trace.token_ids),
            logprobs=array("d", trace.logprobs),
        )

    def unpack(self) -> Trace:
        """Return the trace as it was."""
        return dataclasses.replace(
            self.trace,
            context_ids=self.context_ids.tolist(),
            token_ids=self.token_ids.tolist(),
            logprobs=self.logprobs.tolist(),
        )
