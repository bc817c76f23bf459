"""For which platform a program is being traced."""

import jax


def traced_for() -> str:
    """The platform, such as "cpu" or "tpu".

    That is where this process computes, or the device of ``jax.default_device``: a
    program may be compiled for devices that are elsewhere. For gradients, and for forms
    of the same numbers: an exported program may run elsewhere after all. Not
    ``jax.lax.platform_dependent``, which would trace every form.
    """
    # A device, the name of a platform, or None; JAX adds its options at run time.
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(chosen, "platform", chosen) or jax.default_backend()
