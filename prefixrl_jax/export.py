"""Export a run to a Hugging Face folder.

    python -m prefixrl_jax.export --workdir=DIR --out=HF_DIR [--step=N] [--dtype=bfloat16]

It takes the newest checkpoint, or that of a training step which is still kept, on any number of
devices.
"""

from __future__ import annotations

from prefixrl_jax.runtime import startup

if __name__ == "__main__":  # before the imports, which take seconds
    startup.begin(startup.UNFINISHED)

import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from prefixrl_jax import cli

WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.")
OUT = flags.DEFINE_string("out", None, "The folder to write; an earlier export is replaced.")
STEP = flags.DEFINE_integer("step", None, "Training step of the checkpoint; else the newest.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Of the stored weights; else as trained.",
)


def export(workdir: Path, out: Path, step: int | None, dtype: str | None) -> int:
    """Write the folder and return the step.

    Raises ValueError naming the steps that are kept when `step` is none of them.
    """
    import jax

    from prefixrl_jax.config import saved_config
    from prefixrl_jax.experiment.build import resolve
    from prefixrl_jax.model.hf import export_hf
    from prefixrl_jax.rl.step import abstract_state, make_optimizer
    from prefixrl_jax.runtime.checkpoint import Checkpoints

    config = saved_config(workdir / "config.json")
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})  # whatever it was trained on
    settings = resolve(config)
    optimizer = make_optimizer(settings.optimizer("train", 1))
    with jax.set_mesh(settings.mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
        kept = checkpoints.steps()
        if not kept:
            raise ValueError(f"{workdir}: no checkpoint of the train stage here")
        if step is not None and step not in kept:
            steps = ", ".join(map(str, kept))
            raise ValueError(f"--step={step}: the checkpoints kept are those of steps {steps}")
        saved = checkpoints.restore(abstract_state(settings.model, optimizer, settings.mesh), step)
        assert saved is not None
        restored_step, state, _ = saved
        export_hf(
            state.params,
            settings.model,
            settings.task.tokenizer,
            out,
            dtype=dtype,
            generation=settings.generation_config(),
            card=f"PrefixRL, training step {restored_step}.\n{_accuracy_lines(workdir)}",
        )
    return restored_step


def _accuracy_lines(workdir: Path) -> str:
    """Plain accuracy in the run's summary, which is of its last step."""
    path = workdir / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    lines = [
        f"- plain pass@1 of the finished run, {name} hard set: {accuracy['before']:.4f} ->"
        f" {accuracy['after']:.4f}"
        for name, accuracy in summary.get("plain_pass_at_1", {}).items()
    ]
    return "\n".join(lines)


def run() -> None:
    """Export as the flags say."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed to copy weights
    step = export(Path(str(WORKDIR.value)), Path(str(OUT.value)), STEP.value, DTYPE.value)
    print(f"step {step} of {WORKDIR.value} is in {OUT.value}")


if __name__ == "__main__":
    cli.start(run, str(__doc__), required=("workdir", "out"))
