"""Synthetic stereo scenes with exact disparity, in two implementations.

`torch_scenes` renders floating primitives in batches on the training device: training and export use it.
`scenes` renders the same floating primitives, rooms and repetition by loops that numba compiles: cached pools and
`--dataset synthetic` use it, where a minute of compiling is repaid.
"""
