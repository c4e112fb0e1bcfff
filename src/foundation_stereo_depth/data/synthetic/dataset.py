"""A pool of synthetic scenes as a data set: numbered, always the same ones, to be cached or mixed with others."""

from dataclasses import dataclass

from foundation_stereo_depth.data.sample import Incomplete, SampleNames, SourceStamp, StereoSample
from foundation_stereo_depth.data.synthetic.torch_scenes import SCENES_STAMP, scene_names
from foundation_stereo_depth.errors import DataError

NATIVE_SIZE = (480, 640)
"""Height and width where no other is asked for: scenes have none of their own."""


@dataclass(frozen=True, kw_only=True)
class SyntheticDataset:
    """The first scenes of the pool.

    Attributes:
        names: a hundred scenes to a folder.
        incomplete: none.
    """

    names: SampleNames
    incomplete: tuple[Incomplete, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        """Render scene i at (height, width). The first call on a machine compiles the renderer."""
        from foundation_stereo_depth.data.synthetic.scenes import pool_sample  # noqa: PLC0415 (numba, for pools alone)

        return pool_sample(i, *(size or NATIVE_SIZE))

    def stamp(self, i: int) -> SourceStamp:  # noqa: ARG002 (one version of the renderer draws all scenes)
        """Return the renderer's version, in place of the files that other samples come from."""
        return SCENES_STAMP


def open_synthetic(count: str) -> SyntheticDataset:
    """Return the first `count` scenes of the pool.

    Raises:
        DataError: `count` is no whole number above 0.
    """
    if not (count.isascii() and count.isdigit() and 0 < int(count) < 10**9):
        raise DataError(f"synthetic={count}: has to be a number of scenes, such as synthetic=800")
    return SyntheticDataset(names=scene_names(int(count)))
