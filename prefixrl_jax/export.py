"""`python -m prefixrl_jax.export --workdir=DIR --out=HF_DIR [--step=N] [--dtype=bfloat16]`: a
Hugging Face folder of a run.

The newest checkpoint by default, or that of a training step which is still kept; made on any number
of devices.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging

WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.", required=True)
OUT = flags.DEFINE_string(
    "out", None, "The folder to write; an earlier export there is replaced.", required=True
)
STEP = flags.DEFINE_integer("step", None, "Training step of the checkpoint; the newest by default.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Of the stored weights; as trained by default.",
)


def export(workdir: Path, out: Path, step: int | None, dtype: str | None) -> int:
    """Writes the folder and returns the step; raises ValueError naming the steps there are when
    `step` is none of them.
    """
    import jax

    from prefixrl_jax.config import saved_config
    from prefixrl_jax.experiment.build import resolve
    from prefixrl_jax.model.hf import export_hf
    from prefixrl_jax.rl.step import abstract_state, make_optimizer
    from prefixrl_jax.runtime.checkpoint import Checkpoints

    config = saved_config(workdir / "config.json")
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})  # whatever it was trained on
    s = resolve(config)
    with jax.set_mesh(s.mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
        if not (kept := checkpoints.steps()):
            raise ValueError(f"{workdir}: no checkpoint of the train stage here")
        if step is not None and step not in kept:
            raise ValueError(
                f"--step={step}: the checkpoints kept are those of steps"
                f" {', '.join(map(str, kept))}"
            )
        found = checkpoints.restore(
            abstract_state(s.model, make_optimizer(s.optimizer("train", 1)), s.mesh), step
        )
        assert found is not None
        card = f"PrefixRL, training step {found[0]}.\n{_figures(workdir)}"
        export_hf(
            found[1].params,
            s.model,
            s.task.tokenizer,
            out,
            dtype,
            generation=s.generation_config(),
            card=card,
        )
    return found[0]


def _figures(workdir: Path) -> str:
    """Plain accuracy in the run's summary, which is of its last step."""
    path = workdir / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return "\n".join(
        f"- plain pass@1 of the finished run, {name} hard set: {x['before']:.4f} ->"
        f" {x['after']:.4f}"
        for name, x in summary.get("plain_pass_at_1", {}).items()
    )


def run(argv: list[str]) -> None:
    """Exports as the flags say; bad input ends with one line and status 2."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed to copy weights
    # that PyTorch is not there is as it should be
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        step = export(Path(WORKDIR.value), Path(OUT.value), STEP.value, DTYPE.value)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"step {step} of {WORKDIR.value} is in {OUT.value}")


if __name__ == "__main__":
    app.run(run)
