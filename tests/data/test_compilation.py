import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from foundation_stereo_depth.data.synthetic import compiling, scenes
from foundation_stereo_depth.data.synthetic.scenes import Views


def test_compilation_is_announced_once_where_no_machine_code_is_kept(monkeypatch, caplog, tmp_path) -> None:
    caplog.set_level(logging.INFO)
    image, disparity_px = np.zeros((1, 2, 2, 3), np.uint8), np.ones((1, 2, 2), np.float32)
    monkeypatch.setattr(scenes, "render_scenes", lambda *_, **__: Views(image, image, disparity_px))
    monkeypatch.setattr(compiling, "_cache_folder", lambda: tmp_path)
    for kept, expected in ((False, 1), (True, 0)):
        if kept:
            (tmp_path / "machine_code.nbc").touch()
        scenes._announce_once.cache_clear()
        caplog.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: scenes.pool_sample(i, 2, 2), range(8)))
        assert len([record for record in caplog.records if "compiling the renderer" in record.message]) == expected
