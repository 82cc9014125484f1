"""The paper's theory, executed on small tables: `python -m prefixrl_jax.theory --out=DIR`.

`hidden_string.py` is Proposition 3.4, `objective.py` Theorem 3.2.
"""
