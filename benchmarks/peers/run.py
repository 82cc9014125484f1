"""`make bench-peers`: this package and its peers on the same models and shapes, float32, timed in turn A B A B.

Each peer runs in an environment and a process of its own and loads the model exported here; logits are compared first. A line is
the median of the paired ratios, with the medians of both and the quartiles of the ratio. End tokens are switched off: every row
has its full length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.peers.cases import SAMPLER, STEP, Case
from benchmarks.peers.ours import Ours, export_models
from benchmarks.timing import matmul_ceiling
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.transformer import text_logits

ROOT = Path(__file__).parents[2]


class Peer:
    """A peer's process."""

    def __init__(self, python: str, script: str, folder: Path):
        self._process = subprocess.Popen([python, str(Path(__file__).parent / script), str(folder)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        self._answer()

    def _answer(self):
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args}: the peer is gone (status {self._process.wait()})")
        return json.loads(line)

    def ask(self, what: str, case: str) -> dict:
        """{"seconds", "found"} of one call; raises RuntimeError with what the peer says if it failed."""
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


def against(name: str, ours: Callable[[], object], peer: Callable[[], float], repeats: int, tokens: int, note: str = "") -> None:
    """Prints one line: how many times faster `ours` is than `peer`, which returns its own seconds."""
    first = timed(ours), peer()
    pairs = [(timed(ours), peer()) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    print(f"  {name:34} {middle:5.2f} x faster ({low:.2f} - {high:.2f})   {mine:7.3f} s, {tokens / mine:9,.0f} tokens/s"
          f"   peer {theirs:7.3f} s, {tokens / theirs:9,.0f} tokens/s   first calls {first[0]:.1f}, {first[1]:.1f} s{note}",
          flush=True)  # fmt: skip


def same_logits(ours: Ours, peer: Peer, name: str) -> None:
    """Raises RuntimeError unless the peer computes the same model."""
    params, config, _ = ours.model(name)
    found = np.asarray(text_logits(params, config, np.arange(3, 35, dtype=np.int32)[None]))[0, -1, :8]
    expected = np.array(peer.ask("logits", name)["found"])
    if (error := np.abs(found - expected).max()) > 1e-3:
        raise RuntimeError(f"{name}: the peer's logits differ by {error}")
    print(f"  {name}: largest difference of logits {error:.1e}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default=sys.executable, help="Python of the environment with torch and transformers")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M-Instruct as a GGUF file; without it its lines are left out")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_models(folder)
        if options.smollm2:
            import prefixrl_jax as prl

            lm = prl.load(options.smollm2)
            export_hf(lm.params, lm.config, lm.tokenizer, folder / "smollm2")
            del lm
        compare(folder, options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """All cases against all peers."""
    ours, peer = Ours(folder), Peer(options.torch, "torch_peer.py", folder)
    here = lambda cases: {name: case for name, case in cases.items() if (folder / case.model).is_dir()}  # noqa: E731
    with jax.set_mesh(ours.mesh):
        print(f"float32 matmul ceiling {(ceiling := matmul_ceiling()) / 1e9:.0f} GFLOP/s")
        for name in sorted({case.model for case in here(SAMPLER).values()}):
            same_logits(ours, peer, name)
        print("sampler, prefill included, against transformers.generate:")
        for name, case in here(SAMPLER).items():
            repeats = options.repeats if case.model != "smollm2" else max(options.repeats // 2, 3)
            against(name, ours.sampler(case), lambda n=name: peer.ask("sampler", n)["seconds"], repeats, case.rows * case.new)
        print("policy-gradient step against PyTorch by hand:")
        for name, case in here(STEP).items():
            step(ours, peer, name, case, options.repeats, ceiling)
        print(f"float32 matmul ceiling {matmul_ceiling() / 1e9:.0f} GFLOP/s")
    peer.close()


def step(ours: Ours, peer: Peer, name: str, case: Case, repeats: int, ceiling: float) -> None:
    """The update with repeated contexts, and with shared ones where a group has more than one row."""
    for shared in (False, True)[: 1 + (case.group > 1)]:
        call, flops = ours.step(case, shared)
        label = f"{name}, {'shared' if shared else 'repeated'}"
        timed(call)
        seconds = statistics.median(timed(call) for _ in range(3))
        note = f"   {flops / seconds / ceiling:.0%} of the ceiling"
        against(label, call, lambda: peer.ask("step", name)["seconds"], repeats, case.rows * (case.context + case.new), note)


if __name__ == "__main__":
    main()
