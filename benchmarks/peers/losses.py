"""`make bench-losses`, or `python -m benchmarks.peers.losses` after `make peers`: are our losses
those that TRL publishes?

The same random log-probs, masks and advantages go through `group_loss` here and through TRL's own
trainers in their environment, in float64; values are compared, and gradients with respect to the
log-probs. The exit status is 1 if a pair that should be equal differs by more than 1e-9 relative, 2
if TRL's environment is missing. It takes seconds on a CPU. "clipped" is TRL's count: the share of
tokens (rows, where the ratio is a row's) beyond a bound, so that both sides of it are met.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.loss_cases import ADVANTAGES, CASES, REWARDS, Case, G, P, T
from benchmarks.peers.run import ROOT, Peer
from prefixrl_jax.group import Context, Group
from prefixrl_jax.rl import loss as losses
from prefixrl_jax.rl.advantage import advantages

TOLERANCE = 1e-9


def draw(case: Case) -> dict[str, Any]:
    """Log-probs now, when sampled, and of the reference [P, G, T], and advantages [P, G]; the same
    for every case.
    """
    rng = np.random.default_rng(1)
    now = -np.abs(rng.normal(size=(P, G, T)))
    old, reference = now + 0.4 * rng.normal(size=now.shape), now + 0.4 * rng.normal(size=now.shape)
    weights = rng.normal(size=(P, G))
    weights[0] *= not case.uniform
    return {
        "now": now,
        "old": None if case.on_policy else old,
        "reference": reference,
        "advantages": weights,
    }


def request(case: Case) -> dict[str, Any]:
    """What TRL is given: rows, not groups."""
    rows = {
        key: None if x is None else x.reshape(P * G, *x.shape[2:]).tolist()
        for key, x in draw(case).items()
    }
    return {
        "trainer": case.trainer,
        "fields": case.theirs,
        "lengths": case.lengths.ravel().tolist(),
        **rows,
    }


def our_loss(case: Case) -> tuple[float, np.ndarray]:
    """Value and gradient [P, G, T] of `group_loss`, whose log-probs are the given ones instead of a
    model's.
    """
    settings, given = losses.LossSettings(**case.ours), draw(case)
    old = jnp.asarray(given["now"] if case.on_policy else given["old"])
    group = Group(
        Context(np.zeros((P, 1), np.int32), np.ones(P, np.int32)),
        np.zeros((P, G, T), np.int32),
        case.lengths,
        old,
        np.zeros((P, G)),
        reference=jnp.asarray(given["reference"]),
    )
    weights = jnp.asarray(given["advantages"])
    total = losses.denominators(group, weights, settings)

    def value(now):
        with mock.patch.object(losses, "_logprobs_and_states", lambda *_: (now, None)):
            found = losses.group_loss(None, None, group, weights, total, settings)[0]
        return case.times * found

    found, gradient = jax.value_and_grad(value)(jnp.asarray(given["now"]))
    return float(found), np.asarray(gradient)


def difference(found, expected) -> float:
    """The largest one, relative to the largest expected."""
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(expected).max())


def line(name: str, numbers: str, should: str, apart: float, note: str) -> bool:
    """Prints a line; whether it is as it should be.

    `apart` is the difference that counts, NaN being one.
    """
    same = apart <= TOLERANCE
    verdict = {"equal": "equal", "gradient": "gradient equal", "differ": "another formula"}[should]
    if same is (should == "differ"):
        verdict = "EQUAL BY NOW" if same else "DIFFERS"
    print(f"{name:38}{numbers}  {verdict:16} {note}".rstrip())
    return same or should == "differ"


def compare(peer: Peer) -> bool:
    """Prints the tables; whether all that should be equal is."""
    good = []
    print(f"{'loss':38}{'value':>9}{'gradient':>10}{'clipped':>9}  verdict")
    for name, case in CASES.items():
        (value, gradient), answer = our_loss(case), peer.ask("loss", name)["found"]
        apart = (
            difference(value, answer["value"]),
            difference(gradient.reshape(P * G, T), answer["gradient"]),
        )
        numbers = f"{apart[0]:9.1e}{apart[1]:10.1e}{answer['clipped']:9.0%}"
        good.append(
            line(
                name,
                numbers,
                case.should,
                apart[1] if case.should == "gradient" else float(np.max(apart)),
                case.note,
            )
        )
    print(f"\n{'advantage':38}{'value':>9}{'':19}  verdict")
    for name, (kind, eps, times, _, _, note, should) in ADVANTAGES.items():
        apart = difference(
            times * advantages(REWARDS, kind, eps).ravel(), peer.ask("advantages", name)["found"]
        )
        good.append(line(name, f"{apart:9.1e}{'':19}", should, apart, note))
    return all(good)


def main() -> None:
    """Asks TRL, prints, and exits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=ROOT, help="where .venv-torch is")
    environment = parser.parse_args().environments / ".venv-torch"
    if not (environment / "stamp").exists():
        print(f"{environment} is not complete; `make peers` makes it")
        sys.exit(2)
    wanted = {
        name: {"trainer": c[3], "fields": c[4], "rewards": REWARDS.tolist()}
        for name, c in ADVANTAGES.items()
    }
    with tempfile.TemporaryDirectory() as temporary, jax.enable_x64(True):
        folder = Path(temporary)
        asked = {
            "loss": {name: request(case) for name, case in CASES.items()},
            "advantages": wanted,
        }
        (folder / "losses.json").write_text(json.dumps(asked))
        peer = Peer(environment / "bin/python", "trl_losses.py", folder, folder / "trl.log")
        try:
            good = compare(peer)
        finally:
            peer.close()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
