"""Two webcams, live: list cameras, calibrate the rig, and see metric depth with its confidence.

The package never imports torch or mlflow, but for `cli`, inside the functions that open a network.
"""
