"""A hierarchy of segments: neighboring superpixels merged two by two, static shapes."""

import jax
import jax.numpy as jnp


def merge(means: jax.Array, sizes: jax.Array, near: jax.Array) -> jax.Array:
    """Merges neighbors in the order of Ward's criterion, until one segment is left.

    Of all pairs of segments that touch, the two are merged whose union adds least to
    the squared deviation from the means: n m / (n + m) |a - b|^2 for sizes n, m and
    means a, b (Ward 1963). Of equal pairs the first is merged.

    Args:
      means: [N, S, C] of the superpixels, such as their L*a*b* colors.
      sizes: [N, S], their pixels; those with 0 are left out.
      near: bool [N, S, S], which of them touch.

    Returns:
      bool [N, 2 S - 1, S]: which superpixels are in each segment. The first S segments
      are the superpixels, each of the others is the union of two before it, the largest
      last. Segments of empty superpixels are empty, and so are as many at the end as
      there is nothing left to merge.
    """
    return jax.vmap(_merge)(means, sizes, near)


def _merge(means: jax.Array, sizes: jax.Array, near: jax.Array) -> jax.Array:
    count = len(sizes)
    index = jnp.arange(count)
    means, sizes = means.astype(jnp.float32), sizes.astype(jnp.float32)
    leaves = jnp.eye(count, dtype=bool) & (sizes > 0)[:, None]

    def costs(mean, size, touching, means, sizes):
        """Of merging one segment with each of the others; infinite where it cannot."""
        total = jnp.maximum(size + sizes, 1)
        cost = size * sizes / total * ((means - mean) ** 2).sum(axis=-1)
        return jnp.where(touching & (size > 0) & (sizes > 0), cost, jnp.inf)

    def step(state, _):
        means, sizes, near, members, cost = state
        i, j = jnp.unravel_index(jnp.argmin(cost), cost.shape)
        found = jnp.isfinite(cost[i, j])
        union = members[i] | members[j]
        touching = near[i] | near[j]
        size = sizes[i] + sizes[j]
        mean = (means[i] * sizes[i] + means[j] * sizes[j]) / jnp.maximum(size, 1)
        # The union takes the place of i, and j is left out from now on. Where nothing
        # was found there is nothing left to do, and the rest stays as it is.
        means = means.at[i].set(jnp.where(found, mean, means[i]))
        new = sizes.at[j].set(0).at[i].set(size)
        sizes = jnp.where(found, new, sizes)
        near = near.at[i].set(touching).at[:, i].set(touching)
        members = members.at[i].set(union)
        row = costs(mean, size, touching, means, sizes)
        cost = cost.at[i].set(jnp.where(index > i, row, jnp.inf))
        cost = cost.at[:, i].set(jnp.where(index < i, row, jnp.inf))
        cost = cost.at[j].set(jnp.inf).at[:, j].set(jnp.inf)
        return (means, sizes, near, members, cost), union & found

    cost = jax.vmap(costs, in_axes=(0, 0, 0, None, None))(
        means, sizes, near, means, sizes
    )
    cost = jnp.where(index[:, None] < index, cost, jnp.inf)
    state = means, sizes, near, leaves, cost
    _, unions = jax.lax.scan(step, state, length=count - 1)
    return jnp.concatenate([leaves, unions])
