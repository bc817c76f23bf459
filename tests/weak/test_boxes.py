"""Objects and boxes, GrabCut, the CRF in boxes, candidates, what BoxSup chooses."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure

from segjax.errors import UserError
from segjax.ops import mean_field
from segjax.weak import boxsup, candidates, in_boxes, objects
from segjax.weak.objects import Box, Object

CRF = mean_field.Settings(
    iterations=5,
    smoothness_weight=1.0,
    smoothness_sigma=1.0,
    appearance_weight=5.0,
    appearance_sigma_xy=20.0,
    appearance_sigma_rgb=10.0,
)


def random_label(seed=0, height=20, width=24, classes=4):
    """Blobs of classes, and some void pixels."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=(height, width)), 2)
    label = np.digitize(noise, np.quantile(noise, [0.5, 0.7, 0.9]))[:, :]
    label = label.astype(np.uint8) % classes
    label[rng.random(label.shape) < 0.03] = 255
    return label


def disk(height=40, width=48, center=(18, 22), radius=9):
    """A bright disk on dark ground, with noise; image, mask and box."""
    rows, columns = np.indices((height, width))
    mask = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    image = np.where(mask[..., None], (200, 80, 60), (60, 90, 120)) + noise
    return image.clip(0, 255).astype(np.uint8), mask, objects.box_of(mask)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_objects_are_the_connected_regions_of_scikit_image():
    label = random_label()
    expected = set()
    for k in (1, 2, 3):
        regions = skimage.measure.label(label == k, connectivity=1)
        expected |= {(k, r.bbox) for r in skimage.measure.regionprops(regions)}
    found = objects.find(label)
    assert {(x.class_id, tuple(x.box)) for x in found} == expected
    areas = [x.box.area for x in found]
    assert areas == sorted(areas, reverse=True) and len(found) > 3


def test_instances_have_the_class_of_most_of_their_pixels():
    label = np.zeros((6, 8), np.uint8)
    label[1:4, 1:5] = 2
    label[1, 1] = 3
    label[3, 4] = 255
    instance = np.zeros((6, 8), np.uint16)
    instance[1:4, 1:5] = 300
    instance[1:3, 2:4] = 7
    instance[5, 0:2] = 9  # background in the label map: no object
    instance[5, 7], label[5, 7] = 11, 255  # only void
    found = objects.find(label, instance)
    # Void pixels are of no object: the corner at (3, 4) is not in the box.
    assert found == [Object(2, Box(1, 1, 4, 5)), Object(2, Box(1, 2, 3, 4))]


def test_smaller_rectangles_lie_on_top():
    found = [Object(1, Box(0, 0, 4, 5)), Object(2, Box(1, 1, 3, 3))]
    expected = [[1, 1, 1, 1, 1, 0], [1, 2, 2, 1, 1, 0]]
    label = objects.rectangles(found, (5, 6))
    assert label[:2].tolist() == expected and not label[4].any()
    masks = [label > 0, label == 2]
    assert (objects.paint(found, masks, (5, 6)) == label).all()


@pytest.mark.parametrize("method", ["grabcut", "crf"])
def test_colors_find_a_disk_in_its_box(method):
    image, mask, box = disk()
    if method == "grabcut":
        found = in_boxes.grabcut(image, box)
    else:
        found = in_boxes.dense_crf(image, box, settings=CRF)
    filled = np.zeros_like(mask)
    filled[box.pixels] = True
    assert iou(found, mask) > 0.97 > 0.8 > iou(filled, mask)
    assert not found[~filled].any()


def test_the_crf_obeys_what_is_known():
    """Without colors to go by, the center is of the object and the outside is not."""
    image = np.full((40, 48, 1), 90, np.uint8)
    box = Box(4, 6, 34, 46)
    known = CRF._replace(smoothness_weight=0.0, appearance_weight=0.0)
    found = in_boxes.dense_crf(image, box, settings=known, center=0.25)
    # Half of each side; the rest of the box is undecided.
    assert objects.box_of(found) == Box(12, 16, 26, 36)
    assert found.sum() == 14 * 20
    more = in_boxes.dense_crf(image, box, settings=known, center=1.0)
    assert objects.box_of(more) == box and more.sum() == box.area


def test_boxes_that_cannot_be_segmented_are_filled():
    image, _, _ = disk()
    whole = Box(0, 0, *image.shape[:2])
    assert in_boxes.grabcut(image, whole).all()
    with pytest.raises(UserError, match="images have 4 channels"):
        in_boxes.grabcut(np.zeros((8, 8, 4), np.uint8), Box(1, 1, 3, 3))


def test_candidates_are_regions_and_unions_of_neighbors():
    """Four stripes: all three merges are of neighbors, and the last is everything."""
    regions = np.repeat(np.arange(4), 3)[None].repeat(5, 0)
    gray = np.array([0, 10, 200, 220], np.uint8)[regions]
    masks = candidates.group(np.repeat(gray[..., None], 3, -1), regions)
    assert masks.shape == (7, 4) and (masks[:4] == np.eye(4)).all()
    assert masks[6].all()
    merged = {tuple(np.flatnonzero(mask)) for mask in masks[4:]}
    assert all(np.diff(m).max() == 1 for m in merged)  # connected
    # Two masks of the tree are nested or disjoint.
    for a in masks:
        for b in masks:
            shared = (a & b).sum()
            assert shared in (0, a.sum(), b.sum())


def test_similar_colors_are_merged_first():
    regions = np.repeat(np.arange(4), 3)[None].repeat(5, 0)
    gray = np.array([0, 5, 200, 205], np.uint8)[regions]
    masks = candidates.group(np.repeat(gray[..., None], 3, -1), regions)
    assert {tuple(np.flatnonzero(m)) for m in masks[4:6]} == {(0, 1), (2, 3)}


def test_masks_over_several_segmentations():
    a, b = np.indices((4, 6))[0] // 2, np.indices((4, 6))[1] // 3
    both = np.array([[True, False], [False, True], [True, True]])
    found = candidates.combine([(a, both), (b, both)])
    masks = {found.mask(i).tobytes() for i in range(len(found.members))}
    expected = {(m == k).tobytes() for m in (a, b) for k in (0, 1)}
    expected.add(np.ones((4, 6), bool).tobytes())  # once, though it is in both
    assert masks == expected and len(found.members) == 5


def test_a_disk_is_among_its_candidates():
    image, mask, _ = disk()
    found = candidates.propose(image)
    best = max(iou(found.mask(i), mask) for i in range(len(found.members)))
    assert best > 0.95


def with_masks(masks):
    """Candidates that are exactly these masks [P, H, W]."""
    kinds, pieces = np.unique(
        masks.reshape(len(masks), -1).T, axis=0, return_inverse=True
    )
    return candidates.Candidates(pieces.reshape(masks.shape[1:]), kinds.T)


def random_masks(count=12, seed=3):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 20, 24), bool)
    for mask in masks:
        top, left = rng.integers(0, 12, 2)
        mask[top : top + rng.integers(3, 9), left : left + rng.integers(3, 12)] = True
        mask &= rng.random(mask.shape) < 0.8
    return masks


def test_costs_against_loops_over_pixels():
    masks, item = random_masks(), Object(2, Box(3, 4, 14, 17))
    found = with_masks(masks)
    logits = np.random.default_rng(0).normal(size=(20, 24, 4))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    overlap = boxsup.overlaps(found, item.box)
    entropy = boxsup.cross_entropies(found, item, log_p)
    filled = np.zeros((20, 24), bool)
    filled[3:14, 4:17] = True
    for i, mask in enumerate(masks):
        box = objects.box_of(mask)
        around = np.zeros_like(mask)
        around[box.pixels] = True
        assert overlap[i] == pytest.approx(iou(around, filled))
        total = 0.0
        for y in range(3, 14):
            for x in range(4, 17):
                total -= log_p[y, x, 2 if mask[y, x] else 0]
        assert entropy[i] == pytest.approx(total / item.box.area)


def choose(found, item, *, log_p=None, seed=0, **settings):
    return boxsup.choose(
        found,
        item,
        log_probabilities=log_p,
        rng=np.random.default_rng(seed),
        settings=boxsup.Settings(**settings),
    )


def test_the_perfect_candidate_has_no_cost_and_is_chosen():
    _, mask, box = disk(20, 24, (9, 11), 6)
    masks = np.concatenate([random_masks(), mask[None]])
    found = with_masks(masks)
    costs = 1 - boxsup.overlaps(found, box)
    assert costs[-1] == 0 and (costs[:-1] > 0).all()
    for seed in range(3):  # the best one alone: nothing is drawn
        assert (choose(found, Object(1, box), top=1, seed=seed) == mask).all()


def test_one_of_the_best_is_drawn():
    box = Box(2, 2, 12, 12)
    masks = np.zeros((6, 20, 24), bool)
    for i, mask in enumerate(masks):
        mask[2 : 12 - i, 2:12] = True
    found, item = with_masks(masks), Object(1, box)
    rows = {
        top: {choose(found, item, top=top, seed=s).any(1).sum() for s in range(30)}
        for top in (1, 3)
    }
    assert rows == {1: {10}, 3: {10, 9, 8}}
    # The last masks overlap by less.
    rows = {
        choose(found, item, top=6, seed=s, smallest_overlap=0.85).any(1).sum()
        for s in range(20)
    }
    assert rows == {10, 9}


def test_the_network_decides_between_candidates_by_its_weight():
    box, masks = Box(2, 2, 12, 12), np.zeros((2, 20, 24), bool)
    masks[0, 2:12, 2:12] = True
    masks[1, 2:11, 2:12] = True
    found, item = with_masks(masks), Object(1, box)
    p = np.full((20, 24, 2), (0.9, 0.1))
    p[2:11, 2:12] = (0.1, 0.9)
    for weight, rows in ((0.0, 10), (3.0, 9)):
        mask = choose(found, item, log_p=np.log(p), top=1, weight=weight)
        assert mask.any(1).sum() == rows


def test_masks_are_clipped_and_boxes_without_candidates_filled():
    masks = np.zeros((1, 20, 24), bool)
    masks[0, 0:12, 1:13] = True
    found = with_masks(masks)
    items = [Object(3, Box(1, 2, 12, 12)), Object(2, Box(15, 15, 18, 19))]
    label = boxsup.labels(
        found,
        items,
        log_probabilities=None,
        rng=np.random.default_rng(0),
        settings=boxsup.DEFAULT,
    )
    assert (label == objects.rectangles(items, (20, 24))).all()


def test_grabcut_does_not_depend_on_what_ran_before():
    image, _, box = disk()
    first = in_boxes.grabcut(image, box)
    cv2.setRNGSeed(5)
    assert (in_boxes.grabcut(image, box) == first).all()
