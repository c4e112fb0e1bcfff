import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import command_of, shifted_pair

import foundation_stereo_depth
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.inference import predictor
from foundation_stereo_depth.inference.backends import import_openvino

ROOT = Path(__file__).parent.parent


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


PACKAGE_OF = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}
"""Names of distributions that differ from what is imported."""


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split("[><=]", line)[0] for line in project["dependencies"]]
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    modules = {name: PACKAGE_OF.get(name, name.replace("-", "_")) for name in names}
    assert not [
        name
        for name, module in modules.items()
        if not re.search(rf'(import|from) {module}\b|_optional\("{module}"', sources)
    ]


def test_openvino_is_imported_in_one_place_without_its_telemetry() -> None:
    paths = [path for folder in ("src", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    importing = re.compile(r"""(^|\n)\s*(import|from) openvino|(import_module|_optional)\(["']openvino""")
    found = [path.name for path in paths if importing.search(path.read_text())]
    assert found == ["backends.py"]
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    import_openvino()
    assert sys.modules["openvino_telemetry"] is None


def test_onnxruntime_writes_no_identifier(tmp_path: Path) -> None:
    code = "import foundation_stereo_depth, onnxruntime; onnxruntime.get_available_providers()"
    hidden = ("CI", "ORT_", "PYTEST", "GITHUB", "TF_BUILD")  # where it would be silent by itself
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    homes = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment | homes, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_predicting_needs_no_mlflow(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = shifted_pair(48, 64, 4)
    write_rgb(Path("left.png"), left)
    write_rgb(Path("right.png"), right)
    code = (
        "import sys; sys.modules['mlflow'] = sys.modules['pandas'] = sys.modules['pyarrow'] = None\n"
        "from foundation_stereo_depth.cli import predict_command\n"
        f"sys.exit(predict_command(['left.png', 'right.png', '-o', 'out', '--checkpoint', '{tiny_checkpoint}']))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def without_network() -> list[str]:
    """Return what stands before a command that is to have no network at all, not even that of this machine."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not available")
    return words


@pytest.mark.slow
def test_training_and_prediction_need_no_network(tiny) -> None:
    prefix = without_network()
    for name, image in zip(("left.png", "right.png"), shifted_pair(96, 128, 4), strict=True):
        write_rgb(Path(name), image)
    predict = str(Path(sys.executable).with_name("foundation-stereo-predict"))
    for command in (
        command_of(tiny(epochs=1, mlflow_tracking_uri="sqlite:///mlflow.db")),
        [predict, "left.png", "right.png", "--checkpoint", "out/last.pt", "-o", "predictions"],
    ):
        answer = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
    assert any(Path("predictions").iterdir())


SITE = """
import os, socket, threading
def refuse(host, *rest, **more):
    with open(os.environ["LOOKED_UP"], "a") as file: print(host, file=file)
    raise socket.gaierror(-2, "not here")
socket.getaddrinfo = socket.gethostbyname = refuse
connect = socket.socket.connect
def refuse_connection(self, address):
    if self.family != socket.AF_UNIX: refuse(address)
    return connect(self, address)
socket.socket.connect = refuse_connection
"""
"""A sitecustomize module that notes each host and address that Python asks for, and lets nothing out."""


OWN_CACHES = {"foundation-stereo-depth", "matplotlib", "fontconfig"}
"""Folders in ~/.cache: compiled scenes, and lists of fonts."""


@pytest.mark.slow
def test_no_command_looks_up_a_name_or_writes_into_the_home_folder(tiny, tmp_path: Path) -> None:
    home, site, looked_up = tmp_path / "home", tmp_path / "site", tmp_path / "looked_up"
    home.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    for name, image in zip(("left.png", "right.png"), shifted_pair(96, 128, 4), strict=True):
        write_rgb(Path(name), image)
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(site), "LOOKED_UP": str(looked_up)}
    hidden = ("PYTEST", "MLFLOW", "ORT_", "CI", "GITHUB", "XDG_")  # in CI some programs are silent by themselves
    environment = {name: value for name, value in environment.items() if not name.startswith(hidden)}
    images = ["left.png", "right.png", "--checkpoint", "net.onnx"]
    views = ["--left", "left.png", "--right", "right.png", "--headless", "--frames", "2"]
    commands = [
        command_of(tiny(epochs=1, mlflow_tracking_uri="sqlite:///mlflow.db", dataset_root="fsd")),
        [
            "foundation-stereo-cache",
            "--procedural-samples",
            "1",
            "--cache-root",
            "c",
            "--height",
            "32",
            "--width",
            "48",
        ],
        ["foundation-stereo-export", "-o", "net.onnx", "--checkpoint", "out/last.pt"],
        *(
            ["foundation-stereo-predict", *images, "-o", backend, "--backend", backend, "--write", "disparity,figure"]
            for backend in ("auto", "openvino", "onnxruntime")
        ),
        ["foundation-stereo-evaluate", "--checkpoint", "net.onnx", "--dataset-root", "fsd", "--baseline", "sgbm"],
        ["foundation-stereo-live-view", *views, "--checkpoint", "net.onnx", "--record", "r.mkv"],
        ["foundation-stereo-list-cameras"],
    ]
    tree = tiny()["dataset_root"]
    Path("fsd").symlink_to(tree)
    for command in commands:
        program = Path(sys.executable).with_name(Path(command[0]).name)
        answer = subprocess.run(
            [program, *command[1:]], env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert answer.returncode == 0 or "list-cameras" in command[0], answer.stderr
        assert not looked_up.exists(), f"{command[0]} looked up {looked_up.read_text()}"
        written = [path for path in home.rglob("*") if path.is_file() and not OWN_CACHES & set(path.parts)]
        assert not written, f"{command[0]} wrote {written}"


def test_predicting_from_python_takes_the_documented_lines() -> None:
    assert doctest.testmod(predictor) == (0, 7)
    assert Path("depth.png").read_bytes().startswith(b"\x89PNG")
