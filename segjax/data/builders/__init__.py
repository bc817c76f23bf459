"""TFDS builders: raw folders to array_record."""
