"""Two webcams, live: list cameras, calibrate the rig, and show metric depth with its confidence.

The package imports neither torch nor mlflow; only `cli` opens a network, inside the function that needs one.
"""
