import doctest
import subprocess
import sys

import pytest

import foundation_stereo_depth
from foundation_stereo_depth.inference import predictor


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, foundation_stereo_depth\n"
        "heavy = {'torch', 'numpy', 'cv2', 'mlflow', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_public_names_are_loaded_when_used() -> None:
    assert foundation_stereo_depth.Predictor is predictor.Predictor
    assert foundation_stereo_depth.open_network is predictor.open_network
    for name in foundation_stereo_depth.__all__:
        assert name in dir(foundation_stereo_depth)
        assert getattr(foundation_stereo_depth, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        _ = foundation_stereo_depth.Predicter


def test_predicting_from_python_takes_the_documented_lines() -> None:
    assert doctest.testmod(predictor) == (0, 6)
