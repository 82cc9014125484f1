"""The paper's theory on small tables: `python -m prefixrl_jax.theory --out=DIR`.

`hidden_string` measures Proposition 3.4, `objective` checks Theorem 3.2.
"""
