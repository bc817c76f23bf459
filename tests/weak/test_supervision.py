"""Weak labels on their way into the training step, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import weak_folder
from image_folders import error_of, lists, make_folder, write
from weak_folder import CLASSES, SIDE, masks

from experiments.shared import run_description, training_run
from segjax import config as config_lib
from segjax import training
from segjax import workdir as workdir_lib
from segjax.data import datasets, images, pipeline, transforms
from segjax.models import deeplab
from segjax.ops import geometry
from segjax.weak import latent, objects, pseudo_labels, supervision


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return weak_folder.make(tmp_path_factory.mktemp("weak") / "own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pseudo-labels: the dog is everywhere, the first row is void."""
    folder = tmp_path_factory.mktemp("pseudo") / "labels"
    folder.mkdir()
    label = np.full((SIDE, SIDE), 2, np.uint8)
    label[0] = 255
    for i in range(6):
        pseudo_labels.write(folder, f"i{i}", label, images.voc_palette(3))
    content = {"classes": list(CLASSES), "images": 6, "complete": True}
    pseudo_labels.describe(folder, content)
    return folder


def make(root, loss=None, **data):
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "widths": (2,)},
        data={"name": "folder", "root": str(root), **data},
        loss=loss or {},
        augment={"flip": 0.0},
        batch_size=4,
        threads=1,
    )


def source_of(config):
    config_lib.check(config)
    return training_run.load_data(config)[0]


def by_id(source):
    return {source[i]["id"]: source[i] for i in range(len(source))}


IMAGE = {"supervision": "image"}
FIXED = {"em": "fixed"}


def test_images_have_their_classes_and_no_masks(root):
    for name, example in by_id(source_of(make(root, FIXED, **IMAGE))).items():
        truth = masks()[name]
        assert not example["label"].any()
        expected = [1, int((truth == 1).any()), int((truth == 2).any())]
        assert example["present"].tolist() == expected


def test_boxes_are_filled(root):
    for name, example in by_id(source_of(make(root, supervision="box"))).items():
        truth = masks()[name]
        found = objects.rectangles(objects.find(truth), truth.shape)
        assert (example["label"] == found).all() and (found != truth).any()
        assert example["present"][0] == 1


def test_boxes_of_instances(root, tmp_path):
    """Two instances of one region have two boxes."""
    data = make_folder(tmp_path / "own", {k: masks()[k] for k in ("i0", "i1", "i2")})
    (tmp_path / "own" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    lists(tmp_path / "own", "i0\ni1\n", "i2\n")
    for stem in ("i0", "i1", "i2"):
        instance = np.zeros((SIDE, SIDE), np.uint16)
        instance[2:9, 1:4], instance[3:7, 4:7] = 1, 2
        write(tmp_path / "own" / "instances" / f"{stem}.png", instance)
    config = make(data["root"], supervision="box", instances=True)
    example = by_id(source_of(config))["i0"]
    assert "instance" not in example
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[2:9, 1:4] = expected[3:7, 4:7] = 1
    assert (example["label"] == expected).all()
    whole = by_id(source_of(make(data["root"], supervision="box")))["i0"]["label"]
    assert (whole != expected).any()


def test_pseudo_labels_replace_the_masks(root, folder):
    config = make(root, supervision="pseudo", pseudo_labels=str(folder))
    for example in by_id(source_of(config)).values():
        assert (example["label"][1:] == 2).all() and (example["label"][0] == 255).all()


def test_strong_images_keep_their_masks_and_fewer_are_a_part_of_more(root):
    chosen = {}
    for count in (1, 3):
        config = make(root, supervision="box", strong_images=count)
        examples = by_id(source_of(config))
        strong = {n for n, e in examples.items() if not e["present"].any()}
        assert all((examples[n]["label"] == masks()[n]).all() for n in strong)
        assert len(strong) == count
        only = source_of(make(root, supervision="none", strong_images=count))
        assert set(by_id(only)) == strong and len(only.sizes) == count
        chosen[count] = strong
    assert chosen[1] < chosen[3]


def test_a_share_of_each_batch_is_strong(root):
    config = make(root, supervision="box", strong_images=2, strong_share=0.5)
    setup = training_run.build_run(config)
    batches = setup.batches(0)
    drawn = [next(batches) for _ in range(6)]
    counts = [(~b["present"].any(1)).sum() for b in drawn]
    assert counts == [2] * 6
    weak = np.concatenate([b["id"][b["present"].any(1)] for b in drawn])
    strong = np.concatenate([b["id"][~b["present"].any(1)] for b in drawn])
    assert len(set(weak)) == 4 and len(set(strong)) == 2
    # Batch k is a function of k alone.
    again = setup.batches(3)
    assert next(again)["id"].tolist() == drawn[3]["id"].tolist()
    plain = training_run.build_run(make(root, supervision="box", strong_images=2))
    ids = np.concatenate([next(plain.batches(0))["id"]])
    assert len(set(ids)) == 4


def test_processes_share_a_mixture(root):
    source = source_of(make(root, supervision="box", strong_images=2))
    mixture = datasets_mixture(source)
    parts = []
    for process in ((0, 1), (0, 2), (1, 2)):
        batches = pipeline.train_batches(
            source,
            transforms.NO_AUGMENTATION,
            batch_size=4,
            seed=0,
            process=process,
            threads=1,
            mixture=mixture,
        )
        parts.append(next(batches)["id"].tolist())
    assert parts[0] == parts[1] + parts[2]


def datasets_mixture(source):
    return supervision.mixture(source, {"strong_share": 0.25, "strong_images": 2})


def test_weak_labels_do_not_change_which_images_a_run_has(root, folder, tmp_path):
    """Evaluation compares the images; continuing compares the masks, too."""
    config = make(root, supervision="pseudo", pseudo_labels=str(folder))
    source, info = training_run.load_data(config)
    full, _ = datasets.load(config.data, "train")
    assert datasets.fingerprint(source) == datasets.fingerprint(full)
    splits = training_run.splits(config, source, full)
    assert set(splits) == {"train", "validation", "pseudo_labels"}
    run = tmp_path / "run"
    run.mkdir()
    run_description.write_description(config, info, splits, workdir=run)
    run_description.check_same_run(config, info, splits, workdir=run)
    other = workdir_lib.Split(6, "another")
    message = error_of(
        run_description.check_same_run,
        config,
        info,
        splits | {"pseudo_labels": other},
        workdir=run,
    )
    assert "the split 'pseudo_labels' are not those" in message


# --- the training step ----------------------------------------------------------------


class Linear(nn.Module):
    """Scores of a pixel that are linear in its three channels."""

    num_classes = 3
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32) / 255
        main = self.param("main", nn.initializers.normal(2.0), (3, 3))
        return x @ main, {"aux_logits": 2 * (x @ main)}


def batch():
    rng = np.random.default_rng(0)
    label = np.zeros((4, 5, 6), np.uint8)
    label[:, 1:4, 2:5] = 2
    label[2] = rng.integers(0, 3, (5, 6))
    label[:, 0] = 255
    return {
        "image": rng.integers(0, 256, (4, 5, 6, 3)).astype(np.uint8),
        "label": label,
        "present": np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], np.uint8),
    }


def loss_of(scores, labels, weights):
    log_p = scores - scipy.special.logsumexp(scores, axis=-1, keepdims=True)
    picked = np.take_along_axis(log_p, labels.clip(0, 2)[..., None], -1)[..., 0]
    return -(picked * weights).sum() / weights.sum()


CASES = [
    {"em": "fixed"},
    {"em": "fixed", "em_background_bias": 4.0},
    {"em": "fixed", "em_foreground_bias": 5.0},
    {"em": "fixed", "em_suppress": False},
    {"em": "box_fixed", "em_foreground_bias": 3.0},
    {"em": "fixed", "weak_weight": 0.25},
    {"weak_weight": 0.5},
    {"em": "adapt"},
    {"em": "adapt", "em_background_share": 0.95},
    {"em": "adapt", "em_foreground_share": 0.7},
    {"em": "adapt", "em_foreground_share": 0.6, "em_iterations": 4},
]


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_every_field_reaches_the_loss(grad_accum_steps):
    """The loss and its gradient are those of the latent labels, held fixed."""
    state = training.create_state(
        Linear(), lambda _: optax.identity(), image_shape=(5, 6, 3), seed=2
    )
    weights = np.asarray(state.params["main"], np.float64)
    scores = batch()["image"] / 255 @ weights
    seen = set()
    for fields in CASES:
        options = config_lib.make(loss=fields).loss
        step = training.make_step(
            Linear(),
            optax.scale(-1.0),
            options=options,
            seed=0,
            grad_accum_steps=grad_accum_steps,
        )
        after, values = step(state, batch())
        seen.add(round(float(values["loss"]), 5))
        label, present = batch()["label"], batch()["present"]
        if options.em == "adapt":
            continue  # its order is random; tests of latent.py have its labels
        found = latent.infer(
            jnp.asarray(scores, jnp.float32),
            jnp.asarray(label),
            jnp.asarray(present),
            options=latent.options(options),
            key=jax.random.key(0),
        )
        found = np.asarray(found)
        if options.em != "none":
            assert (found != label).any()
        assert (found[2] == label[2]).all()
        pixels = np.where(present.any(1)[:, None, None], options.weak_weight, 1.0)
        pixels = pixels * (found != 255)
        main = loss_of(scores, found, pixels)
        assert values["main_loss"] == pytest.approx(main, rel=1e-4), fields
        # The auxiliary scores are compared with the same latent labels.
        aux = loss_of(2 * scores, found, pixels)
        assert values["loss"] == pytest.approx(main + 0.4 * aux, rel=1e-4), fields
        truth = np.eye(256)[found][..., :3]
        slope = sum(
            factor * (scipy.special.softmax(factor * scores, axis=-1) - truth) * share
            for factor, share in ((1, 1.0), (2, 0.4))
        )
        slope = slope * (pixels / pixels.sum())[..., None]
        slope = np.einsum("nhwc,nhwk->ck", batch()["image"] / 255, slope)
        moved = weights - np.asarray(after.params["main"])
        np.testing.assert_allclose(moved, slope, rtol=1e-3, atol=1e-5)
    assert len(seen) == len(CASES)
    varied = {name for fields in CASES for name in fields}
    assert varied == {*latent.Options._fields, "weak_weight"}


def test_the_order_of_adapt_changes_with_step_and_seed_only():
    fields = {"em": "adapt", "em_background_share": 0.5, "em_foreground_share": 0.5}
    state = training.create_state(
        Linear(), lambda _: optax.identity(), image_shape=(5, 6, 3), seed=0
    )
    options = config_lib.make(loss=fields).loss
    losses = []
    for seed in (0, 0, 1, 2, 3, 4):
        step = jax.jit(
            training.make_step(Linear(), optax.identity(), options=options, seed=seed)
        )
        losses.append(float(step(state, batch())[1]["loss"]))
    assert losses[0] == losses[1] and len(set(losses)) > 1


def test_scores_at_several_scales_are_refused_at_the_output_stride():
    model = deeplab.DeepLab(3, scales=(1.0, 0.5))
    fields = {"em": "fixed", "resolution": "output_stride"}
    message = error_of(training.check_loss, model, config_lib.make(loss=fields).loss)
    assert "a network of several scales" in message
    training.check_loss(model, config_lib.make(loss={"em": "fixed"}).loss)


def test_training_without_the_classes_of_the_images_fails():
    state = training.create_state(
        Linear(), lambda _: optax.identity(), image_shape=(5, 6, 3), seed=0
    )
    options = config_lib.make(loss=FIXED).loss
    step = training.make_step(Linear(), optax.identity(), options=options, seed=0)
    with pytest.raises(KeyError, match="present"):
        step(state, {k: v for k, v in batch().items() if k != "present"})


# --- what is refused ------------------------------------------------------------------

BOX = {"supervision": "box"}


@pytest.mark.parametrize(
    "data, loss, message",
    [
        ({}, FIXED, "loss.em is 'fixed'; expected none with"),
        (IMAGE, {}, "loss.em is 'none'; expected fixed or adapt with"),
        (IMAGE, {"em": "box_fixed"}, "loss.em is 'box_fixed'; expected fixed or adapt"),
        (BOX, {"em": "adapt"}, "loss.em is 'adapt'; expected none or box_fixed with"),
        (BOX, {"weak_weight": 0.5}, "loss.weak_weight is 0.5; expected 1.0 with --con"),
        ({"strong_images": 2}, {}, "data.strong_images is 2; expected 0 with --config"),
        ({"supervision": "none"}, {}, "data.strong_images is 0; expected 1 or more w"),
        (
            BOX | {"strong_share": 0.5},
            {},
            "data.strong_share is 0.5; expected 0.0",
        ),
        ({"supervision": "pseudo"}, {}, "data.pseudo_labels is ''; expected a folder"),
        (BOX | {"objects": "stage1"}, {}, "data.objects is 'stage1'; expected 'none'"),
        (
            BOX | {"pseudo_labels": "x"},
            {},
            "data.pseudo_labels is 'x'; expected ''",
        ),
        (
            IMAGE,
            FIXED | {"border_weight": 5.0},
            "loss.border_weight is 5.0; exp",
        ),
        (
            IMAGE,
            FIXED | {"class_weights": (1.0, 1.0, 2.0)},
            r"loss.class_weights is \(1.0, 1.0, 2.0\); expected \(\) with",
        ),
    ],
)
def test_fields_that_do_not_go_together(data, loss, message):
    config = config_lib.make(data=data, loss=loss)
    with pytest.raises(ValueError, match=f"^--config.{message}"):
        config_lib.check(config)


def test_data_that_do_not_fit(root, folder, tmp_path):
    message = error_of(source_of, make(root, supervision="box", strong_images=6))
    assert message.startswith("--config.data.strong_images is 6; expected fewer than")
    scenes = config_lib.make(data={"supervision": "box"})
    assert "class 0 of scenes is 'sky'" in error_of(training_run.load_data, scenes)
    wrong = {"supervision": "pseudo", "pseudo_labels": str(tmp_path)}
    assert "pseudo_labels.json" in error_of(source_of, make(root, **wrong))
    found = dict(pseudo_labels.description(folder))
    for change, expected in (
        ({"classes": ["background", "cat", "cow"]}, "has the classes background, cat,"),
        ({"images": 5}, "has masks of 5 images; expected those of the 6"),
        ({"complete": False}, "is not complete"),
    ):
        pseudo_labels.describe(tmp_path, found | change)
        assert expected in error_of(source_of, make(root, **wrong))
    pseudo_labels.describe(tmp_path, found)
    source = source_of(make(root, **wrong))
    assert "i0.png not found: expected a mask for" in error_of(source.__getitem__, 0)
    label = np.full((SIDE, SIDE), 3, np.uint8)
    pseudo_labels.write(tmp_path, "i0", label, images.voc_palette(3))
    assert "holds the value 3; expected 0 to 2" in error_of(source.__getitem__, 0)
    pseudo_labels.write(tmp_path, "i0", label[1:], images.voc_palette(3))
    assert "shape (15, 16), expected (16, 16)" in error_of(source.__getitem__, 0)
