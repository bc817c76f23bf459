"""What published files call the layers of our models."""
