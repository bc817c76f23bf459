"""Padded shapes for many sizes, against all partitions of small collections."""

import math
import random

import numpy as np
import pytest

from segjax.data import batching


def partitions(items):
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]


def optimum(counts, padding, free):
    """The number of shapes and their pixels, of the best of all partitions."""
    best = {}
    for groups in partitions(list(counts)):
        pixels = 0
        for group in groups:
            h, w = np.max(group, axis=0).tolist()
            pixels += h * w * sum(counts[size] for size in group)
        best[len(groups)] = min(best.get(len(groups), math.inf), pixels)
    images = sum(h * w * number for (h, w), number in counts.items())
    for number in range(min(free, len(counts)), len(counts) + 1):
        if best[number] <= (1 + padding) * images:
            return number, best[number]


@pytest.mark.parametrize("seed", range(40))
def test_as_few_shapes_as_possible_and_nearly_the_fewest_pixels(seed):
    rng = random.Random(seed)
    counts = {
        (rng.randint(8, 60), rng.randint(8, 60)): rng.randint(1, 9)
        for _ in range(rng.randint(2, 7))
    }
    padding, free = rng.choice([0.05, 0.1, 0.25, 0.5]), rng.choice([1, 2, 3])
    sizes = [size for size, number in counts.items() for _ in range(number)]
    rng.shuffle(sizes)
    found = batching.padded_shapes(sizes, padding, free_shapes=free)
    assert found == batching.padded_shapes(sizes[::-1], padding, free_shapes=free)
    assert found.keys() == counts.keys()
    for (h, w), (shape_h, shape_w) in found.items():
        assert h <= shape_h and w <= shape_w
    number, pixels = optimum(counts, padding, free)
    assert len(set(found.values())) == number
    assert sum(math.prod(found[size]) for size in sizes) <= 1.04 * pixels


def test_shapes_stay_below_the_limit_of_pixels():
    """Two images across each other would share 9 megapixels rather than compile."""
    sizes = (
        [(3000, 333), (333, 3000)] + [(1000, 1000)] * 20 + [(10, 10), (9, 9), (8, 8)]
    )
    limit = 1_000_000
    assert (
        max(map(math.prod, batching.padded_shapes(sizes, 1.0, free_shapes=2).values()))
        > limit
    )
    found = batching.plan(sizes, batch_size=8, padding=1.0, max_pixels=limit)
    assert max(math.prod(bucket.padded_shape) for bucket in found) <= limit


def test_shapes_do_not_depend_on_what_is_left():
    sizes = [(20 + i, 30 - i) for i in range(12)]
    shapes = {bucket.padded_shape for bucket in batching.plan(sizes, 4)}
    left = {
        bucket.padded_shape for bucket in batching.plan(sizes[7:], 4, others=sizes[:7])
    }
    assert left <= shapes and sizes[8] not in left


def test_no_padding_and_few_sizes_keep_every_size():
    sizes = [(9, 9), (10, 9), (9, 9), (50, 3)]
    assert batching.padded_shapes(sizes) == {size: size for size in sizes}
    many = [(20 + i, 30) for i in range(9)]
    assert batching.padded_shapes(many, padding=0) == {size: size for size in many}
    assert len(set(batching.padded_shapes(many).values())) == 4
    assert batching.padded_shapes([]) == {}


def test_thousands_of_sizes_take_few_shapes():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(300, 500, (3000, 2)).tolist()]
    found = batching.padded_shapes(sizes)
    assert len(set(found.values())) <= 6
    padded = sum(math.prod(found[size]) for size in sizes)
    assert padded <= 1.25 * sum(map(math.prod, sizes))
    assert all(np.all(np.array(found[size]) >= size) for size in sizes)


def test_many_images_are_worth_more_shapes():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(300, 500, (300, 2)).tolist()]
    padding = [
        sum(math.prod(found[size]) for size in many) / sum(map(math.prod, many)) - 1
        for many in (sizes, 100 * sizes)
        for found in [batching.padded_shapes(many)]
    ]
    assert 0.1 < padding[0] <= 0.25 and padding[1] < 0.15


def test_batches_of_a_shape_are_equally_full():
    sizes = [(8, 8)] * 9 + [(100, 100)] * 3
    small, large = batching.plan(sizes, batch_size=8, devices=1, max_pixels=20_000)
    assert (small.padded_shape, small.batch_size) == ((8, 8), 5)
    assert small.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert (large.padded_shape, large.batch_size) == (
        (100, 100),
        2,
    )  # as many as the limit allows
    assert large.batches == [[9, 10], [11]]
    groups = batching.plan(sizes, batch_size=8, devices=1, batch_pixels=300)
    assert [group.batch_size for group in groups] == [3, 1]
    near = [(10, 10), (10, 11), (11, 10), (10, 12), (12, 10)]
    whole = batching.plan(near, batch_size=8)
    parts = batching.plan(near, batch_size=8, batch_pixels=1)
    assert {g.padded_shape for g in whole} == {g.padded_shape for g in parts}
    (spread,) = batching.plan([(8, 8)] * 9, batch_size=8, devices=4)
    assert spread.batch_size == 8 and [len(b) for b in spread.batches] == [8, 1]
    (alone,) = batching.plan([(100, 100)], batch_size=8, devices=4, max_pixels=1)
    assert alone.batch_size == 4  # an image per device, however large
