"""Streams of prefixed and plain problems, and traces for their schedules to cut."""

from prefixrl_jax.prefixes.contexts import ContextStream
from prefixrl_jax.prefixes.schedules import Band, TraceCutter
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem


class LeaksAtTheEnd:
    """The part of a task that schedules need: only a whole trace of 40 tokens leaks."""

    def leaks(self, problem, prefix):
        return len(prefix) >= 40


def traces_of(count=5, length=40) -> TraceCutter:
    traces = [(Problem(f"p{i}", {}), list(range(length))) for i in range(count)]
    return TraceCutter(LeaksAtTheEnd(), traces)


def make_stream(prefixed=9, plain=5, share=0.75, batch=8, seed=0, schedule=None):
    """Return a stream of prefixed problems p0, p1, ... and plain problems q0, q1, ...."""
    prefixed_prompts = [Prompt(Problem(f"p{i}", {}), (1,), i) for i in range(prefixed)]
    plain_prompts = [Prompt(Problem(f"q{i}", {})) for i in range(plain)]
    schedule = schedule or Band(prefixed_prompts, seed)
    return ContextStream(schedule, plain_prompts, share, batch, seed)
