"""`make bench-peers`: this package and its peers on the same models and shapes, float32, timed in
turn AA BB AA BB.

Each peer runs in an environment and a process of its own and loads the model exported here; logits
are compared first. A line is the median of the paired ratios, with the medians of both and the
quartiles of the ratio; the first calls, in which compilers run, stand apart. End tokens are
switched off: every row has its full length. Sampling and whole steps here run on a CPU device a
core, as JAX_NUM_CPU_DEVICES gives them to every command; updates alone, and SmolLM2, on one of all
cores. `make peers` makes the environments; a peer that has none is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import prefixrl_jax as prl
from benchmarks.peers.cases import CASES, PROBE, SHAPES, Case
from benchmarks.peers.ours import Ours, export_models
from benchmarks.timing import matmul_ceiling
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.transformer import text_logits
from prefixrl_jax.model.weights import count_params

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A peer: the environment it lives in, its script, what is timed against it and under which
    heading, and which models.
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


class Peer:
    """A peer's process. What it says goes into `log`."""

    def __init__(self, python: Path, script: str, folder: Path, log: Path):
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).parent / script), str(folder)],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
            )
        self._answer()

    def _answer(self):
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            status, said = self._process.wait(), self._log.read_text().splitlines()[-3:]
            raise RuntimeError(
                "\n".join([f"{self._process.args}: the peer is gone (status {status})", *said])
            )
        return json.loads(line)

    def ask(self, what: str, case: str) -> dict:
        """{"seconds", "found"} of one call; raises RuntimeError with what the peer says if it
        failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, case]) + "\n")
        self._process.stdin.flush()
        if "error" in (answer := self._answer()):
            raise RuntimeError(f"{what}, {case}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def settled(seconds: Callable[[], float]) -> float:
    """Of two calls the second: right after the other program's the first has taken twice as long on
    a virtual machine, in system time for memory; and some compile once more for their own outputs
    as inputs.
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
    """Prints one line: how many times faster `ours` is than `peer`, which returns its own
    seconds.
    """
    first = timed(ours), peer()
    pairs = [(settled(lambda: timed(ours)), settled(peer)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    print(
        f"  {name:34} {middle:5.2f} x faster ({low:.2f} - {high:.2f})   {mine:7.3f} s,"
        f" {tokens / mine:9,.0f} tokens/s   peer {theirs:7.3f} s, {tokens / theirs:9,.0f} tokens/s "
        f"  first calls {first[0]:.1f}, {first[1]:.1f} s{note}",
        flush=True,
    )


def same_logits(ours: Ours, peer: Peer, name: str) -> None:
    """Raises RuntimeError unless the peer computes the same model."""
    params, config, _ = ours.model(name)
    found = np.asarray(text_logits(params, config, np.array([PROBE], np.int32)))[0, -1]
    expected = np.array(peer.ask("logits", name)["found"])
    if not (error := np.abs(found - expected).max()) < 1e-3:
        raise RuntimeError(f"{name}: the peer's logits differ by {error}")
    print(f"  {name}: largest difference of logits {error:.1e}")


def main() -> None:
    """Prints the tables."""
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
    options = parser.parse_args()
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


def export_smollm2(file: Path, folder: Path) -> None:
    """Exports the model of a GGUF file, and prints how long that and reading it back take."""
    lm = prl.load(file)
    out = timed(lambda: export_hf(lm.params, lm.config, lm.tokenizer, folder))
    back = timed(lambda: jax.block_until_ready(prl.load(folder).params))
    print(
        f"SmolLM2, {count_params(lm.config)['total']:,} parameters: export {out:.1f} s, import"
        f" {back:.1f} s",
        flush=True,
    )


def compare(ours: Ours, folder: Path, name: str, options: argparse.Namespace) -> None:
    """All cases against one peer."""
    kind = KINDS[name]
    environment = options.environments / f".venv-{kind.environment}"
    if not (environment / "stamp").exists():
        print(
            f"{name} is left out: {environment} is not complete; `make peers` makes it", flush=True
        )
        return
    wanted = {work: chosen(work, kind, folder, options) for work in kind.work}
    if not (models := {case.model for cases in wanted.values() for case in cases.values()}):
        return
    print(f"{name}: float32 matmul ceiling {(ceiling := matmul_ceiling()) / 1e9:.0f} GFLOP/s")
    peer = Peer(environment / "bin/python", kind.script, folder, folder / f"{name}.log")
    try:
        for model in sorted(models):
            same_logits(ours, peer, model)
        for work, cases in wanted.items():
            if cases:
                print(f"{kind.work[work]}:", flush=True)
            for label, case in cases.items():
                repeats = (
                    options.repeats if case.model != "smollm2" else max(options.repeats // 2, 3)
                )
                MEASURES[work](ours, peer, label, case, repeats, ceiling)
    finally:
        peer.close()


def chosen(work: str, kind: Kind, folder: Path, options: argparse.Namespace) -> dict[str, Case]:
    """The cases that are asked for, that the peer can load and that are exported."""
    if work not in options.work:
        return {}
    known = [model for model in kind.models if (folder / model).is_dir()]
    return {
        name: case
        for name, case in CASES[work].items()
        if name.startswith(options.cases) and case.model in known
    }


def sampler(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """Prefill and decoding."""

    def theirs() -> float:
        answer = peer.ask("sampler", name)
        if answer["found"] != case.new:
            raise RuntimeError(f"{name}: the peer drew {answer['found']} tokens, not {case.new}")
        return answer["seconds"]

    against(name, ours.sampler(case), theirs, repeats, case.rows * case.new)


def step(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """The update with repeated contexts, and with shared ones where a group has more than one
    row.
    """
    for shared in (False, True)[: 1 + (case.group > 1)]:
        call, flops = ours.step(case, shared)
        label = f"{name}, {'shared' if shared else 'repeated'}"
        timed(call)
        seconds = statistics.median(timed(call) for _ in range(3))
        note = f"   {flops / seconds / ceiling:.0%} of the ceiling"
        against(
            label,
            call,
            lambda: peer.ask("step", name)["seconds"],
            repeats,
            case.rows * (case.context + case.new),
            note,
        )


def rl(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """Rollouts, rewards and the update."""
    against(
        name, ours.rl(case), lambda: peer.ask("rl", name)["seconds"], repeats, case.rows * case.new
    )


MEASURES = {"sampler": sampler, "step": step, "rl": rl}


if __name__ == "__main__":
    main()
