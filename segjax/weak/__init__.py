"""Training from weaker labels than masks: classes of images, boxes of objects."""
