"""Raw values of label masks and what they mean."""

import numpy as np
import pytest

from segjax.data import masks
from segjax.errors import UserError

TABLE = {0: 3, 7: 0, 200: 255, 255: 1}


def ids_of(values):
    return masks.to_train_ids(values, TABLE, path="m.png", name="set", expected="ids")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_train_ids(dtype):
    values = np.array([[0, 7, 200], [255, 0, 7]], dtype)
    found = ids_of(values)
    assert found.dtype == np.uint8
    assert found.tolist() == [[3, 0, 255], [1, 3, 0]]
    for odd in (1, 201, 254) + ((256, 999) if dtype != np.uint8 else ()):
        values[1, 2] = odd
        with pytest.raises(UserError, match=f"m.png holds the value {odd}; expected"):
            ids_of(values)


def test_raw_ids_above_one_byte():
    table = {1000: 2, 65535: 255}
    values = np.array([[1000, 65535]], np.uint16)
    how = dict(path="m.png", name="set", expected="ids")
    assert masks.to_train_ids(values, table, **how).tolist() == [[2, 255]]
    with pytest.raises(UserError, match="holds the value 0;"):
        masks.to_train_ids(np.zeros((1, 1), np.uint8), table, **how)
