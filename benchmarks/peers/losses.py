"""`make bench-losses`: whether our losses are those that TRL publishes.

The same random log-probs, masks and advantages go through `group_loss` here and through TRL's own
trainers in their environment (`make peers`), in float64; values are compared, and gradients with
respect to the log-probs. The exit status is 1 if a pair that should be equal differs by more than
1e-9 relative, 2 if TRL's environment is missing. It takes seconds on a CPU. "clipped" is TRL's
count: the share of tokens (rows, where the ratio is a row's) beyond a bound, so that both sides of
it are met.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.client import Peer
from benchmarks.peers.loss_cases import ADVANTAGES, CASES, REWARDS, Case, G, P, T
from prefixrl_jax.group import Context, Group
from prefixrl_jax.rl import loss as losses
from prefixrl_jax.rl.advantage import advantages

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-9


class Numbers(NamedTuple):
    """What goes into a loss: log-probs [P, G, T] and advantages [P, G].

    Attributes:
        now: Log-probs under the policy as it is now.
        old: Those when the tokens were sampled; None: the same.
        reference: Those under the reference model.
        advantages: One for each row.
    """

    now: np.ndarray
    old: np.ndarray | None
    reference: np.ndarray
    advantages: np.ndarray


def draw(case: Case) -> Numbers:
    """Draw the numbers of a case, which are the same for every case."""
    rng = np.random.default_rng(1)
    now = -np.abs(rng.normal(size=(P, G, T)))
    old = now + 0.4 * rng.normal(size=now.shape)
    reference = now + 0.4 * rng.normal(size=now.shape)
    weights = rng.normal(size=(P, G))
    weights[0] *= not case.uniform
    return Numbers(now, None if case.on_policy else old, reference, weights)


def request(case: Case) -> dict[str, Any]:
    """Return what TRL is given: rows, not groups."""
    rows = {
        name: None if x is None else x.reshape(P * G, *x.shape[2:]).tolist()
        for name, x in draw(case)._asdict().items()
    }
    return {
        "trainer": case.trainer,
        "fields": case.theirs,
        "lengths": case.lengths.ravel().tolist(),
        **rows,
    }


def our_loss(case: Case) -> tuple[float, np.ndarray]:
    """Return the value of `group_loss` and its gradient [P, G, T].

    Its log-probs are the drawn ones instead of a model's.
    """
    settings = losses.LossSettings(**case.ours)
    numbers = draw(case)
    group = Group(
        Context(np.zeros((P, 1), np.int32), np.ones(P, np.int32)),
        np.zeros((P, G, T), np.int32),
        case.lengths,
        jnp.asarray(numbers.now if numbers.old is None else numbers.old),
        np.zeros((P, G)),
        reference=jnp.asarray(numbers.reference),
    )
    weights = jnp.asarray(numbers.advantages)
    total = losses.denominators(group, weights, settings)

    def value(now):
        with mock.patch.object(losses, "_logprobs_and_states", lambda *_: (now, None)):
            return case.times * losses.group_loss(None, None, group, weights, total, settings)[0]

    loss, gradient = jax.value_and_grad(value)(jnp.asarray(numbers.now))
    return float(loss), np.asarray(gradient)


def difference(ours, theirs) -> float:
    """Return the largest difference, relative to the largest of their numbers."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(theirs).max())


def print_line(name: str, numbers: str, should: str, error: float, note: str) -> bool:
    """Print a line of a table; return whether it is as it should be.

    `error` is the difference that counts; a NaN is one.
    """
    same = error <= TOLERANCE
    verdict = {"equal": "equal", "gradient": "gradient equal", "differ": "another formula"}[should]
    as_expected = same is not (should == "differ")
    if not as_expected:
        verdict = "EQUAL BY NOW" if same else "DIFFERS"
    print(f"{name:38}{numbers}  {verdict:16} {note}".rstrip())
    return same or should == "differ"


def compare(peer: Peer) -> bool:
    """Print the tables; return whether all that should be equal is."""
    good = []
    print(f"{'loss':38}{'value':>9}{'gradient':>10}{'clipped':>9}  verdict")
    for name, case in CASES.items():
        value, gradient = our_loss(case)
        theirs = peer.ask("loss", name)["result"]
        value_error = difference(value, theirs["value"])
        gradient_error = difference(gradient.reshape(P * G, T), theirs["gradient"])
        numbers = f"{value_error:9.1e}{gradient_error:10.1e}{theirs['clipped']:9.0%}"
        error = gradient_error
        if case.should != "gradient":
            error = float(np.max([value_error, gradient_error]))  # NaN if one of them is
        good.append(print_line(name, numbers, case.should, error, case.note))
    print(f"\n{'advantage':38}{'value':>9}{'':19}  verdict")
    for name, case in ADVANTAGES.items():
        ours = case.times * advantages(REWARDS, case.kind, case.eps).ravel()
        error = difference(ours, peer.ask("advantages", name)["result"])
        good.append(print_line(name, f"{error:9.1e}{'':19}", case.should, error, case.note))
    return all(good)


def main() -> None:
    """Ask TRL, print the tables, and exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=ROOT, help="where .venv-torch is")
    environment = parser.parse_args().environments / ".venv-torch"
    if not (environment / "stamp").exists():
        print(f"{environment} is not complete; `make peers` makes it")
        sys.exit(2)
    requests = {
        "loss": {name: request(case) for name, case in CASES.items()},
        "advantages": {
            name: {"trainer": case.trainer, "fields": case.theirs, "rewards": REWARDS.tolist()}
            for name, case in ADVANTAGES.items()
        },
    }
    with tempfile.TemporaryDirectory() as temporary, jax.enable_x64(True):
        folder = Path(temporary)
        (folder / "losses.json").write_text(json.dumps(requests))
        peer = Peer(environment / "bin/python", "trl_losses.py", folder, folder / "trl.log")
        try:
            good = compare(peer)
        finally:
            peer.close()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
