"""A task that judges the first token of a response: its problems, samples, and a tiny sampler."""

import dataclasses
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from tiny_models import TINY

from prefixrl_jax.flops import costs
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.runtime.mesh import make_mesh
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import Sample
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.tasks.task import Problem, Verdict

HEADER = {"model": "tiny"}
COST = costs(1000, 1, 4, 8)
CONFIG = dataclasses.replace(TINY, num_layers=1, unroll_layers=True)
SAMPLING = Sampling(max_new_tokens=7, stop_ids=(0, 1, 2, 3, 4, 5))
CONTEXTS = {"a": [3], "bb": [4, 5, 6], "ccc": [9, 8, 7, 6], "d": [1, 2], "e": [30, 31, 32]}
PROBLEMS = [Problem(name, {}) for name in CONTEXTS]


class FirstToken:
    """A task in which a response is correct if it begins with a token below `limit`."""

    stop_ids = (0, 1)
    tokenizer = word_tokenizer(["a", "b"])
    grades_aside = False

    def __init__(self, limit: int = 2):
        self.limit = limit

    def render(self, problem):
        return [5, 6, *(ord(c) % 37 for c in problem.id)]

    def grade(self, problem, response):
        return Verdict.CORRECT if response[0] < self.limit else Verdict.WRONG


class Aside(FirstToken):
    """The same task, graded in a thread; response i takes `delay(i)` seconds."""

    grades_aside = True

    def __init__(self, limit: int, delay=lambda i: 0.001 * (i % 3)):
        super().__init__(limit)
        self._delay = delay
        self._count = itertools.count()
        self._thread = ThreadPoolExecutor(1)

    def grade(self, problem, response):
        verdict = super().grade(problem, response)
        return self._thread.submit(self._return_late, next(self._count), verdict)

    def _return_late(self, i, verdict):
        time.sleep(self._delay(i))
        return verdict


def sample(i: int, correct: bool) -> Sample:
    """Return a finished sample of i + 1 tokens."""
    first = 1 if correct else 9
    token_ids = np.array([first, *range(i)], np.int32)
    return Sample(i, token_ids, np.full(i + 1, -0.5, np.float32), "stop")


def make_engine(rows=2, slots=3, chunk=2):
    return Engine(CONFIG, make_mesh(devices=jax.devices()[:1]), COST, rows, slots, chunk, (4, 8))
