"""Calibrations of two-camera rigs: what they are, and every file format that holds one."""
