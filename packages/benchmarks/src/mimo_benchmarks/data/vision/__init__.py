"""Read image data sets, and vary their images in training."""
