"""Operations, bytes and programs of small networks against the file of counts."""

from pathlib import Path

import jax
import pytest

from experiments.benchmarks import counts, measuring
from segjax import files

FILE = Path(counts.__file__).with_name("counts.json")
RENEW = f"python -m experiments.benchmarks.counts --json={FILE}"


def stored():
    values = files.read_json(FILE, "counts", measuring.SCHEMA)
    for name, result in values["results"].items():
        files.check_json(result, path=FILE, what=name, schema=counts.SCHEMA)
    return values


def test_the_file_has_every_network():
    assert stored()["results"].keys() == set(counts.NETWORKS)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", counts.NETWORKS)
def test_counts_are_those_of_the_file(name):
    values = stored()
    expected, found = values["results"][name], counts.count(name)
    assert found["further_programs"] == expected["further_programs"]
    same_compiler = values["conditions"] == counts.conditions()
    for program in ("predict", "step"):
        for key, value in found[program].items():
            # Bytes depend on what the compiler fuses.
            if key == "flops" or same_compiler:
                meant = pytest.approx(expected[program][key], rel=0.05)
                assert value == meant, f"{name}, {program}, {key}; if meant: {RENEW}"
    jax.clear_caches()
