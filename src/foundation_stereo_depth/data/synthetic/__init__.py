"""Synthetic stereo scenes with exact disparity."""
