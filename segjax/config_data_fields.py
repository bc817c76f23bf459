"""The fields of ``config.data``: which data, how they are read and sampled."""

from segjax import config_ranges as ranges
from segjax import proposals
from segjax.config_ranges import Field
from segjax.data import datasets, images, object_crops, scenes
from segjax.labels import VOID
from segjax.weak import supervision

_SCENES = ranges.Range(
    f"two integers (height, width) from {scenes.MIN_SIDE} to {scenes.MAX_SIDE}",
    lambda value: ranges.is_size(value, scenes.MIN_SIDE, scenes.MAX_SIDE),
)
_DATA_NAME = ranges.Range(
    "one of " + ", ".join(datasets.NAMES) + ", or tfds:NAME[/CONFIG][:VERSION]",
    lambda value: value in datasets.NAMES or value.startswith("tfds:"),
    datasets.NAMES,
)

FIELDS = {
    "name": Field(
        "scenes",
        _DATA_NAME,
        "the data set; folder: own images and masks; tfds:NAME: one that TensorFlow "
        "Datasets has prepared",
    ),
    "root": Field(
        "",
        ranges.TEXT,
        "the raw folder as downloaded (docs/data.md has the layouts); tfds: its "
        "data_dir",
    ),
    "data_dir": Field(
        "~/.cache/segjax", ranges.TEXT, "where prepared records and counts are kept"
    ),
    "resize": Field(
        (0, 0),
        ranges.SIZE,
        "(h, w) to which images are resized when they are read; (0, 0): not resized",
    ),
    "resize_labels": Field(
        "nearest",
        ranges.one_of(*images.LABEL_RULES),
        "how labels are resized: by the nearest pixel, or to the majority of the area, "
        "void with at most a quarter of it (FRRN)",
    ),
    "instances": Field(
        False,
        ranges.SWITCH,
        "read the instance map of each image, which only some data sets have",
    ),
    "keep_classes": Field(
        (),
        ranges.NAMES,
        "names of classes, which become 0, 1, ..; all others are void; (): all",
    ),
    "objects": Field(
        "none",
        ranges.one_of(*object_crops.STAGES),
        "what is trained on: whole images, or DeconvNet's crops of objects (stage1: "
        "every object, all else is background; stage2: proposals that overlap one); "
        "docs/systems/deconvnet.md",
    ),
    "object_side": Field(
        250, ranges.integer(1, 2**13), "px, height and width that crops are resized to"
    ),
    "object_least": Field(
        16,
        ranges.integer(1, 2**16),
        "px, least side of the box of an object that is used",
    ),
    "object_balance": Field(
        0.0,
        ranges.FRACTION,
        "crops of rare classes are repeated up to this share of the crops of the most "
        "frequent class; 0: they are not repeated",
    ),
    "proposals": Field(
        "edge_boxes",
        ranges.one_of(*proposals.METHODS),
        "stage2: how boxes are proposed",
    ),
    "edge_model": Field(
        "",
        ranges.TEXT,
        "edge_boxes: file of a structured forest (OpenCV's model.yml.gz); '': edges "
        "are gradients",
    ),
    "supervision": Field(
        supervision.FULL,
        ranges.one_of(*supervision.KINDS),
        "labels of the training images: full masks; image: the classes that occur; "
        "box: filled boxes of the objects (of instances with data.instances, otherwise "
        "of connected regions); pseudo: the masks in pseudo_labels; none: only the "
        "strong_images are used",
    ),
    "pseudo_labels": Field(
        "",
        ranges.TEXT,
        "supervision=pseudo: a folder that experiments.pseudo_labels wrote",
    ),
    "strong_images": Field(
        0, ranges.integer(0, 10**7), "number of training images that keep their masks"
    ),
    "strong_share": Field(
        0.0,
        ranges.Range(
            "from 0 to below 1", lambda v: ranges.is_number(v, 0, 1) and v < 1
        ),
        "share of the strong_images in each batch; 0: they are as frequent as others",
    ),
    "train_split": Field("train", ranges.TEXT, "the split that is trained on"),
    "eval_split": Field("validation", ranges.TEXT, "the split that is evaluated"),
    "scenes_size": Field((96, 96), _SCENES, "scenes: (h, w) of the drawn images"),
    "scenes_train": Field(800, ranges.integer(1, 10**7), "scenes: images for training"),
    "scenes_validation": Field(
        100, ranges.integer(1, 10**7), "scenes: images for validation"
    ),
    "scenes_seed": Field(0, ranges.SEED, "scenes: random seed of the drawings"),
    "classes": Field(
        "",
        ranges.TEXT,
        "own data, tfds: a file of class names; '': root/classes.txt, if it exists",
    ),
    "void_values": Field(
        (VOID,),
        ranges.MASK_VALUES,
        "own data, tfds: raw mask values that mean no label",
    ),
    "image_feature": Field(
        "", ranges.TEXT, "tfds: the feature with the images; '': found by its type"
    ),
    "label_feature": Field(
        "", ranges.TEXT, "tfds: the feature with the label maps; '': found by its type"
    ),
    "label_offset": Field(
        0,
        ranges.integer(0, 2**16 - 1),
        "tfds: the value of the first class in label maps",
    ),
    "channels": Field(
        0,
        ranges.integer(0, ranges.MAX_CHANNELS),
        "own data: channels of the images; 0: 1 if all are gray, otherwise 3; with "
        "other numbers all channels of the files are used",
    ),
    "value_range": Field(
        (0, 0),
        ranges.VALUES,
        "own data and cell_tracking: (low, high), the values of the images that become "
        "0 and 255; (0, 0): the range of the type, 0 to 255 or 0 to 65535",
    ),
}
