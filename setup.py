"""Packaging of prefixrl_jax."""

from setuptools import find_packages, setup

setup(
    name="prefixrl_jax",
    version="0.2.0.dev0",
    description=(
        "PrefixRL in JAX: reinforcement learning on hard problems by conditioning on prefixes of"
        " correct traces"
    ),
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configurations stand at the top of the repository, and are installed inside the package.
    package_dir={"prefixrl_jax.configs": "configs"},
    packages=[*find_packages(include=["prefixrl_jax", "prefixrl_jax.*"]), "prefixrl_jax.configs"],
    package_data={"prefixrl_jax.report": ["*.html.jinja"]},
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12.8",
        "importlib_resources>=6.0",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10.2",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "psutil>=6.0",
        "pyarrow>=18.0",  # Parquet
        "rich>=13.7",
        "safetensors>=0.8",
        "sentencepiece>=0.2",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.22",
        "transformers>=5.0",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2"],
        "dev": ["mypy>=1.15", "ruff>=0.15"],
        "gguf": ["gguf>=0.17"],
        "hf": ["datasets>=4.0"],
        "math": ["mpmath>=1.3"],
        # What the tests compare with; apart from the others, as pip's default build of PyTorch
        # brings gigabytes of CUDA.
        "reference": [
            "accelerate>=1.10",  # transformers reads GGUF files with it
            "torch>=2.13",
        ],
        "test": [
            "datasets>=4.0",
            "gguf>=0.17",
            "hypothesis>=6.120",
            "math-verify>=0.8",  # which the graders are compared with
            "mpmath>=1.3",
            "pytest>=8.3",
            "pytest-cov>=6.0",
            "pytest-xdist>=3.6",
        ],
        "tpu": ["jax[tpu]>=0.10.2"],
    },
)
