"""Stereo data: files, cache, made-up scenes, augmentation, batches."""
