"""Stereo data: files, cache, synthetic scenes, augmentation, batches."""
