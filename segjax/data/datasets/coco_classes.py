"""Names of the 80 objects of COCO and the 91 kinds of surroundings of COCO-Stuff."""

NO_THINGS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""The ids of 1..90 that no object has."""
NO_VALUES = tuple(raw - 1 for raw in NO_THINGS) + (90,)
"""The values of 0..181 that do not occur in the maps of COCO-Stuff: ids less 1."""

THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck"),
    *("boat", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
    *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup"),
    *("fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    *("toothbrush",),
)
"""In the order of their ids."""

STUFF = (
    *("banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet"),
    *("cage", "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth"),
    *("clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt"),
    *("door-stuff", "fence", "floor-marble", "floor-other", "floor-stone"),
    *("floor-tile", "floor-wood", "flower", "fog", "food-other", "fruit"),
    *("furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves"),
    *("light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin"),
    *("net", "paper", "pavement", "pillow", "plant-other", "plastic", "platform"),
    *("playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug"),
    *("salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow"),
    *("solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent"),
    *("textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete"),
    *("wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood"),
    *("water-other", "waterdrops", "window-blind", "window-other", "wood"),
)
"""In the order of their ids, which are 92..182."""
