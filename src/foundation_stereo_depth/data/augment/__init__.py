"""Augmentation of stereo pairs, in batches, on the training device."""
