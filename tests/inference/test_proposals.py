"""Instance-wise prediction against NumPy and OpenCV, box by box."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax import inference
from segjax.errors import UserError
from segjax.inference import PredictOptions, large, predictors, proposals
from segjax.ops import geometry
from segjax.proposals import Settings, boxes

SIZE, PADDED, CROP = (17, 23), (20, 26), (8, 6)
BOXES = np.array(
    [
        (2, 3, 12, 11),
        (-4, -2, 7, 9),  # beyond the image, left above
        (10, 6, 25, 18),  # right below, into the padding
        (5, 5, 5, 5),
        (14, 0, 22, 4),
        (1, 12, 9, 16),
    ],
    np.int32,
)


class Linear(nn.Module):
    """Scores that are weighted sums of the channels, negative ones, too."""

    num_classes: int = 3
    tiling = geometry.Tiling(step=1, offset=0, margin=0, minimum=1)

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32) / 64 - 1.5
        return nn.Conv(self.num_classes, (3, 3), name="score")(x), {}


MODEL = Linear()


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(3)
    kernel = rng.normal(0, 0.4, (3, 3, 3, 3)).astype(np.float32)
    return {"params": {"score": {"kernel": kernel, "bias": np.array([-0.3, 0, 0.2])}}}


@pytest.fixture(scope="module")
def image():
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def rows_of(found, count):
    rows = np.tile(np.array(boxes.NONE, np.int32), (1 + count, 1))
    rows[0] = (0, 0, SIZE[1] - 1, SIZE[0] - 1)
    rows[1 : 1 + len(found)] = found
    return rows


def padded(image):
    around = [(0, PADDED[0] - SIZE[0]), (0, PADDED[1] - SIZE[1]), (0, 0)]
    return np.pad(image, around, mode="reflect")


def expected_scores(image, variables, rule, found=BOXES):
    """Crop by crop, with OpenCV; the aggregated map of scores [H, W, K]."""
    apply = jax.jit(lambda crop: MODEL.apply(variables, crop, train=False)[0])
    total = np.zeros((*SIZE, 3))
    covered = np.zeros(SIZE, bool)
    for box in found:
        crop = boxes.cut(image, box, 0).astype(np.float32)
        crop = cv2.resize(crop, CROP[::-1], interpolation=cv2.INTER_LINEAR)
        scores = np.asarray(apply(crop[None]))[0]
        left, top, right, bottom = box
        whole = cv2.resize(scores, (right - left + 1, bottom - top + 1))
        for y in range(max(top, 0), min(bottom + 1, SIZE[0])):
            for x in range(max(left, 0), min(right + 1, SIZE[1])):
                own = whole[y - top, x - left]
                if rule == "sum":
                    total[y, x] += own
                elif rule == "max" and not covered[y, x]:
                    total[y, x] = own
                else:
                    total[y, x] = np.maximum(total[y, x], own)
                covered[y, x] = True
    return total, covered


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("rule", proposals.RULES)
def test_scores_go_back_to_their_boxes_and_are_joined(image, variables, rule):
    run = jax.jit(proposals.instance_wise(MODEL, CROP, rule))
    images = np.stack([padded(image), padded(image[::-1])])
    # 7 places: a run of 5 and one that is filled up.
    rows = np.stack([rows_of(BOXES, 7), rows_of(BOXES[:2], 7)])
    found = np.asarray(run(variables, images, rows))
    assert found.shape == (2, *PADDED, 3)
    for row, (own, some) in enumerate([(image, BOXES), (image[::-1], BOXES[:2])]):
        total, covered = expected_scores(own, variables, rule, some)
        assert 0.1 < covered.mean() < 0.95
        inside = found[row, : SIZE[0], : SIZE[1]]
        np.testing.assert_allclose(inside, softmax(total), atol=1e-4)
        np.testing.assert_allclose(inside[~covered], 1 / 3, atol=1e-6)


def test_the_rules_differ_where_scores_are_negative_or_boxes_overlap(image, variables):
    totals = [expected_scores(image, variables, rule)[0] for rule in proposals.RULES]
    assert (totals[0] < 0).any() and (totals[2] >= 0).all()
    np.testing.assert_array_equal(np.maximum(totals[0], 0), totals[2])
    assert np.abs(totals[0] - totals[1]).max() > 0.1


def test_crops_are_those_of_opencv(image):
    frame = rows_of(BOXES, 6)[None, :1]
    crops = proposals.crop_bilinear(
        padded(image)[None].astype(np.float32), frame, rows_of(BOXES, 7)[None, 1:], CROP
    )
    assert crops.shape == (1, 7, *CROP, 3)
    for box, crop in zip(BOXES, np.asarray(crops)[0]):
        own = boxes.cut(image, box, 0).astype(np.float32)
        expected = cv2.resize(own, CROP[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(crop, expected, atol=1e-2)
    assert not np.asarray(crops)[0, 6].any()


def test_boxes_are_chosen_by_their_enlarged_side():
    found = np.array([(0, 0, 3, 9), (5, 5, 14, 14), (0, 0, 9, 4), (2, 2, 19, 13)])
    rows = proposals.select(found.astype(np.int32), (30, 40), count=3, least=12)
    expected = [(0, 0, 39, 29), (4, 4, 15, 15), (0, 1, 21, 14), boxes.NONE]
    assert rows.tolist() == [list(row) for row in expected]
    assert rows.dtype == np.int32
    # The first ones count, and never so many that are too small.
    one = proposals.select(found.astype(np.int32), (30, 40), count=1, least=0)
    assert one[1].tolist() == [0, -1, 3, 10]
    for few, least in ((found[:1], 12), (found[:0], 0)):
        rows = proposals.select(few.astype(np.int32), (30, 40), count=2, least=least)
        assert rows.tolist() == [[0, 0, 39, 29], [0, 0, 39, 29], list(boxes.NONE)]


def test_members_that_saw_whole_images_predict_whole_images(image, variables):
    models, crops = (MODEL, MODEL), (CROP, (0, 0))
    run = inference.compose(models, PredictOptions(proposals=6), crops)
    rows = rows_of(BOXES, 6)[None]
    found = jax.jit(run)((variables, variables), image[None], rows)
    first = softmax(expected_scores(image, variables, "max")[0])
    second = predictors.whole(MODEL)(variables, image[None])[0]
    np.testing.assert_allclose(found[0], (first + second) / 2, atol=1e-4)
    options = PredictOptions(proposals=6, ensemble_rule="product", proposal_rule="sum")
    found = jax.jit(inference.compose(models, options, crops))(
        (variables, variables), image[None], rows
    )
    first = softmax(expected_scores(image, variables, "sum")[0])
    product = np.sqrt(first * np.asarray(second))
    expected = product / product.sum(-1, keepdims=True)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"proposals": -1}, "--proposals: found -1, expected 0 .none. to 2000"),
        ({"proposals": 2001}, "--proposals: found 2001"),
        ({"proposals": 5, "tile": 8}, "--proposals=5 cannot be combined with --tile"),
        ({"proposals": 5, "window": (8,)}, "cannot be combined with --window"),
        ({"proposals": 5, "flip": True}, "cannot be combined with --flip"),
        ({"proposals": 5, "rotations": 4}, "cannot be combined with --rotations"),
        ({"proposals": 5, "scales": (1.0, 2.0)}, "cannot be combined with --scales"),
        ({"proposals": 5, "scale_rule": "max"}, "combined with --scale_rule"),
        ({"proposal_rule": "sum"}, "--proposal_rule=sum .* there are none"),
        ({"proposal_method": "selective_search"}, "--proposal_method=selective_sear"),
        ({"proposal_side": 0.1}, "--proposal_side=0.1 .* there are none"),
        ({"proposals": 5, "proposal_side": -1.0}, "--proposal_side: found -1.0"),
        ({"proposals": 5, "proposal_rule": "mean"}, "--proposal_rule: found 'mean'"),
        ({"proposals": 5, "proposal_method": "x"}, "--proposal_method: found 'x'"),
    ],
)
def test_what_cannot_be_is_said(fields, message):
    with pytest.raises(UserError, match=message):
        inference.compose((MODEL,), PredictOptions(**fields), (CROP,))


def test_proposals_need_a_model_of_crops_and_whole_images():
    options = PredictOptions(proposals=5)
    for crops in ((), ((0, 0),)):
        with pytest.raises(UserError, match="no model was trained on crops of objects"):
            inference.compose((MODEL,), options, crops)
    with pytest.raises(UserError, match="needs the whole image: raise --max_pixels"):
        large.layout((MODEL,), options, (3000, 3000))


def test_regions_come_from_the_kept_boxes(image, tmp_path):
    search = proposals.Search(Settings("selective_search"), tmp_path, 4, 5)
    rows = proposals.regions(image, search)
    assert rows.shape == (5, 4) and rows[0].tolist() == [0, 0, 22, 16]
    assert list(tmp_path.rglob("*.npy"))
    np.testing.assert_array_equal(proposals.regions(image, search), rows)
