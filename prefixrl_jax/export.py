"""Export a run to a Hugging Face folder.

    python -m prefixrl_jax.export --workdir=DIR --out=HF_DIR [--step=N] [--dtype=bfloat16]

It takes the checkpoint that the run ended with (of one that is still training, the newest), or that
of a training step which is kept, on any number of devices. The run may go on beside it.
"""

from __future__ import annotations

from prefixrl_jax.runtime import startup

if __name__ == "__main__":  # before the imports, which take seconds
    startup.begin(startup.UNFINISHED)

import os
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from prefixrl_jax import cli
from prefixrl_jax.runtime.files import read_object

if TYPE_CHECKING:
    from prefixrl_jax.experiment.build import Settings
    from prefixrl_jax.model.weights import Params

SETS = ("train", "heldout")
ATTEMPTS = 3  # to read the newest checkpoint of a run that goes on, and replaces it

WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.")
OUT = flags.DEFINE_string(
    "out", None, "The folder to write: a new or empty one, or an earlier export, which is replaced."
)
STEP = flags.DEFINE_integer("step", None, "Training step of the checkpoint; else the last.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Of the stored weights; else as trained.",
)


def export(workdir: Path, out: Path, step: int | None, dtype: str | None) -> int:
    """Write the folder and return the step.

    Raises ValueError naming the steps that are kept when `step` is none of them, and for a folder
    that `check_target` refuses.
    """
    import jax

    from prefixrl_jax.config import saved_config
    from prefixrl_jax.experiment.build import resolve
    from prefixrl_jax.model.export_folder import check_target
    from prefixrl_jax.model.hf import export_hf

    config = saved_config(workdir / "config.json")
    check_target(out)
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})  # whatever it was trained on
    settings = resolve(config)
    with jax.set_mesh(settings.mesh):
        step, params = trained_params(workdir, settings, step)
        export_hf(
            params,
            settings.model,
            settings.task.tokenizer,
            out,
            dtype=dtype,
            generation=settings.generation_config(),
            card=f"PrefixRL, training step {step}.\n{_accuracy_lines(workdir)}",
        )
    return step


def trained_params(workdir: Path, settings: Settings, step: int | None) -> tuple[int, Params]:
    """Return the step and the parameters of a checkpoint; a run may be going on beside.

    Args:
        workdir: of the run.
        settings: its configuration, resolved.
        step: None for the step that the run ended with, or, if it goes on, for the newest.

    Raises ValueError if that checkpoint is not there or damaged.
    """
    from prefixrl_jax.experiment.records import StageRecords
    from prefixrl_jax.rl.step import abstract_state, make_optimizer
    from prefixrl_jax.runtime.checkpoint import Checkpoints

    ended = StageRecords(workdir, settings.config).params("train")
    wanted = ended["step"] if ended and step is None else step
    abstract = abstract_state(
        settings.model, make_optimizer(settings.optimizer("train", 1)), settings.mesh
    )
    failure: ValueError | None = None
    for _ in range(ATTEMPTS):
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            kept = checkpoints.steps()
            if not kept:
                raise ValueError(f"{workdir}: no checkpoint of the train stage here")
            if wanted is not None and wanted not in kept:
                steps = ", ".join(map(str, kept))
                raise ValueError(
                    f"--step={wanted}: the checkpoints kept are those of steps {steps}"
                )
            newest = kept[-1] if wanted is None else wanted
            try:
                saved = checkpoints.restore(abstract, newest)
            except (ValueError, OSError) as error:
                # A run that goes on may have removed it in the meantime, for a newer one.
                failure = ValueError(f"{error}; --step=N takes another one that is kept")
                continue
            assert saved is not None
            return newest, saved[1].params
    assert failure is not None
    raise failure


def _accuracy_lines(workdir: Path) -> str:
    """Plain accuracy in the run's summary, which is of its last step; as far as it is there."""
    path = workdir / "summary.json"
    summary = read_object(path) if path.exists() else {}
    plain = summary.get("plain_pass_at_1")
    lines = []
    for name in SETS:
        accuracy = plain.get(name) if isinstance(plain, dict) else None
        values = accuracy if isinstance(accuracy, dict) else {}
        before, after = values.get("before"), values.get("after")
        if isinstance(before, float) and isinstance(after, float):
            lines.append(
                f"- plain pass@1 of the finished run, {name} hard set: {before:.4f} -> {after:.4f}"
            )
    return "\n".join(lines)


def run() -> None:
    """Export as the flags say."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed to copy weights
    step = export(Path(str(WORKDIR.value)), Path(str(OUT.value)), STEP.value, DTYPE.value)
    print(f"step {step} of {WORKDIR.value} is in {OUT.value}")


if __name__ == "__main__":
    cli.start(run, str(__doc__), required=("workdir", "out"))
