"""Experiments: each file is a short difference from prefixrl_jax/config.py, which names and
explains every field.
"""
