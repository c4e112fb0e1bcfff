"""The geometry of a stereo pair, in NumPy and OpenCV: disparity, depth, matches, semi-global matching."""
