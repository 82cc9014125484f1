"""The smoke configuration with some of its fields changed."""

from prefixrl_jax.configs import smoke


def changed(**fields):
    """Return the smoke configuration with some fields set, each as section__name=value."""
    config = smoke.get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        with config.ignore_type():
            config[section][field] = value
    return config
