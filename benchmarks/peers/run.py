"""`make bench-peers`: this package and its peers on the same models and shapes, in float32.

The two are timed in turn, AA BB AA BB. Each peer runs in an environment and a process of its own
and loads the model that is exported here; logits are compared first. A line is the median of the
paired ratios with its quartiles, and the medians of both; the first calls, in which compilers run,
stand apart. End tokens are switched off, so that every row has its full length.

Here sampling and whole steps run on a CPU device a core, as JAX_NUM_CPU_DEVICES gives them to every
command, and updates alone and SmolLM2 on one device of all cores. `make peers` makes the
environments; a peer without one is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import prefixrl_jax as prl
from benchmarks.peers.cases import CASES, PROBE, SHAPES, Case
from benchmarks.peers.client import Peer
from benchmarks.peers.ours import Ours, export_models
from benchmarks.timing import matmul_ceiling
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.transformer import text_logits
from prefixrl_jax.model.weights import count_params

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A peer.

    Attributes:
        environment: What its virtual environment is named after, .venv-NAME.
        script: The module of this folder that runs in it.
        work: What is timed against it, and under which heading.
        models: Names of the models that it can load.
    """

    environment: str
    script: str
    work: dict[str, str]
    models: tuple[str, ...] = tuple(SHAPES)


KINDS = {
    "transformers": Kind(
        "torch",
        "torch_peer.py",
        {
            "sampler": "sampler, prefill included, against transformers.generate",
            "step": "policy-gradient step against PyTorch by hand",
        },
        (*SHAPES, "smollm2"),
    ),
    "trl": Kind(
        "torch",
        "trl_peer.py",
        {"rl": "whole RL step, sampling and update, against TRL's GRPOTrainer"},
    ),
    "tunix": Kind(
        "tunix",
        "tunix_peer.py",
        {
            "sampler": "sampler, prefill included, against Tunix's Sampler",
            "rl": "whole RL step, sampling and update, against Tunix's GRPOLearner",
        },
    ),
}


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def settled(seconds: Callable[[], float]) -> float:
    """Return the second of two measurements.

    Right after the other program's, the first has taken twice as long on a virtual machine, in
    system time for memory; and some programs compile once more for their own outputs as inputs.
    """
    seconds()
    return seconds()


def against(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], float],
    repeats: int,
    tokens: int,
    note: str = "",
) -> None:
    """Print how many times faster `ours` is than `peer`, which returns its own seconds.

    Args:
        name: Of the case.
        ours: The call to time.
        peer: Makes a call and returns its seconds.
        repeats: Pairs of measurements.
        tokens: Of a call, for tokens/s.
        note: What else the line says.
    """
    our_first, peer_first = timed(ours), peer()
    pairs = [(settled(lambda: timed(ours)), settled(peer)) for _ in range(repeats)]
    our_seconds, peer_seconds = (statistics.median(x) for x in zip(*pairs, strict=True))
    low, median, high = statistics.quantiles([theirs / mine for mine, theirs in pairs], n=4)
    print(
        f"  {name:34} {median:5.2f} x faster ({low:.2f} - {high:.2f})  "
        f" {our_seconds:7.3f} s, {tokens / our_seconds:9,.0f} tokens/s  "
        f" peer {peer_seconds:7.3f} s, {tokens / peer_seconds:9,.0f} tokens/s  "
        f" first calls {our_first:.1f}, {peer_first:.1f} s{note}",
        flush=True,
    )


def same_logits(ours: Ours, peer: Peer, name: str) -> None:
    """Print how far the peer's logits are from ours.

    Raises:
        RuntimeError: So far that it computes another model.
    """
    model = ours.model(name)
    logits = text_logits(model.params, model.config, np.array([PROBE], np.int32))
    peer_logits = np.array(peer.ask("logits", name)["result"])
    error = np.abs(np.asarray(logits)[0, -1] - peer_logits).max()
    if not error < 1e-3:
        raise RuntimeError(f"{name}: the peer's logits differ by {error}")
    print(f"  {name}: largest difference of logits {error:.1e}")


def main() -> None:
    """Print the tables."""
    options = parse_options()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_models(folder)
        if options.smollm2:
            export_smollm2(options.smollm2, folder / "smollm2")
        ours = Ours(folder)
        for name in options.peers:
            compare(ours, folder, name, options)
        print(f"float32 matmul ceiling {matmul_ceiling() / 1e9:.0f} GFLOP/s")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--work",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        help="rl: a whole step, sampling and update",
    )
    parser.add_argument(
        "--cases", default="", help="only cases whose name begins so, 0.83M for example"
    )
    parser.add_argument(
        "--environments", type=Path, default=ROOT, help="where .venv-torch and .venv-tunix are"
    )
    parser.add_argument(
        "--smollm2",
        type=Path,
        help="SmolLM2-135M-Instruct as a GGUF file; without it its lines are left out",
    )
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def export_smollm2(file: Path, folder: Path) -> None:
    """Export the model of a GGUF file; print how long that and reading it back take."""
    lm = prl.load(file)
    export_seconds = timed(lambda: export_hf(lm.params, lm.config, lm.tokenizer, folder))
    import_seconds = timed(lambda: jax.block_until_ready(prl.load(folder).params))
    print(
        f"SmolLM2, {count_params(lm.config)['total']:,} parameters: export {export_seconds:.1f} s,"
        f" import {import_seconds:.1f} s",
        flush=True,
    )


def compare(ours: Ours, folder: Path, name: str, options: argparse.Namespace) -> None:
    """Print all cases against one peer."""
    kind = KINDS[name]
    environment = options.environments / f".venv-{kind.environment}"
    if not (environment / "stamp").exists():
        print(
            f"{name} is left out: {environment} is not complete; `make peers` makes it", flush=True
        )
        return
    cases_by_work = {work: chosen_cases(work, kind, folder, options) for work in kind.work}
    models = {case.model for cases in cases_by_work.values() for case in cases.values()}
    if not models:
        return
    ceiling = matmul_ceiling()
    print(f"{name}: float32 matmul ceiling {ceiling / 1e9:.0f} GFLOP/s")
    peer = Peer(environment / "bin/python", kind.script, folder, folder / f"{name}.log")
    try:
        for model in sorted(models):
            same_logits(ours, peer, model)
        for work, cases in cases_by_work.items():
            if cases:
                print(f"{kind.work[work]}:", flush=True)
            for label, case in cases.items():
                repeats = options.repeats
                if case.model == "smollm2":
                    repeats = max(repeats // 2, 3)
                MEASURES[work](ours, peer, label, case, repeats, ceiling)
    finally:
        peer.close()


def chosen_cases(
    work: str, kind: Kind, folder: Path, options: argparse.Namespace
) -> dict[str, Case]:
    """Return the cases that are asked for, that the peer can load and that are exported."""
    if work not in options.work:
        return {}
    models = [model for model in kind.models if (folder / model).is_dir()]
    return {
        name: case
        for name, case in CASES[work].items()
        if name.startswith(options.cases) and case.model in models
    }


def sampler(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """Compare prefill and decoding."""

    def peer_seconds() -> float:
        answer = peer.ask("sampler", name)
        if answer["result"] != case.new:
            raise RuntimeError(f"{name}: the peer drew {answer['result']} tokens, not {case.new}")
        return answer["seconds"]

    against(name, ours.sampler(case), peer_seconds, repeats, case.rows * case.new)


def step(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """Compare the update, with repeated contexts and, in groups of several rows, with shared ones.

    `ceiling`, in FLOP/s, is what our own rate is held against.
    """
    variants = {"repeated": False, "shared": True} if case.group > 1 else {"repeated": False}
    for label, shared in variants.items():
        call, flops = ours.step(case, shared)
        timed(call)
        seconds = statistics.median(timed(call) for _ in range(3))
        note = f"   {flops / seconds / ceiling:.0%} of the ceiling"
        tokens = case.rows * (case.context + case.new)
        against(
            f"{name}, {label}",
            call,
            lambda: peer.ask("step", name)["seconds"],
            repeats,
            tokens,
            note,
        )


def rl(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """Compare rollouts, rewards and the update together."""
    tokens = case.rows * case.new
    against(name, ours.rl(case), lambda: peer.ask("rl", name)["seconds"], repeats, tokens)


MEASURES = {"sampler": sampler, "step": step, "rl": rl}


if __name__ == "__main__":
    main()
