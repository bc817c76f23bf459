"""Programs that measure time and memory."""
