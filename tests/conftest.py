"""Four fake CPU devices, and warnings are errors (see pyproject.toml)."""

import os

from absl import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read a flag of theirs
