"""PrefixRL in JAX."""
