"""Published weights for our models, and our own weights as safetensors.

A file is read (:func:`read`), its arrays are converted into the layers of a model
(:func:`import_arrays`) and written as one safetensors file (:func:`save`), whose arrays
have our names: ``params/backbone/conv1_1/kernel``. :func:`load` reads it back into a
whole model; :func:`start` begins a model with it, or with another training run, and
leaves other heads as they are. ``python -m experiments.import_weights`` and
``--config.init_from`` do all of this.

Nothing here uses JAX: trees are nested dicts of arrays.
"""

from segjax.weights.images import Images
from segjax.weights.importing import (
    Imported,
    describe,
    heads_of,
    import_arrays,
    rename,
    summary,
)
from segjax.weights.readers import read
from segjax.weights.saved import ModelInfo, Weights, load, read_saved, save
from segjax.weights.start import Report, start
from segjax.weights.tables import published
from segjax.weights.tree import Shapes, Tree, flatten, replace

__all__ = [
    "Images",
    "Imported",
    "ModelInfo",
    "Report",
    "Shapes",
    "Tree",
    "Weights",
    "describe",
    "flatten",
    "heads_of",
    "import_arrays",
    "load",
    "published",
    "read",
    "read_saved",
    "rename",
    "replace",
    "save",
    "start",
    "summary",
]
