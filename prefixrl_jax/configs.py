"""The configurations in `configs/` as a package: `from prefixrl_jax.configs import demo`.

In a checkout they stand beside this package. In an installed wheel they are inside it, as a package
of this name, which Python then takes instead of this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "configs")]
