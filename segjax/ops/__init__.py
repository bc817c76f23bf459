"""Pure array functions; imports jax only."""
