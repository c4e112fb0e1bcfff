"""Use a trained network: backends, prediction, export and evaluation."""
