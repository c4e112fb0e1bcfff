"""Two webcams, seen live. Still to come: list cameras, calibrate the rig, and show metric depth with its confidence.

The package never imports torch or mlflow; of `foundation_stereo_depth` it sees only the pure-arithmetic modules.
"""
