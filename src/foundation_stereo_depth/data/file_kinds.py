"""Which files are images or videos of ours, by their names, and what other files are that people name instead."""

from collections.abc import Collection, Iterable
from pathlib import Path

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jps", ".mpo", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm",
    ".pbm",
)  # fmt: skip
VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv",
    ".f4v", ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".mk3d", ".divx", ".y4m", ".mjpeg", ".mjpg",
)  # fmt: skip

_OTHER_KINDS = {
    (".heic", ".heif", ".hif"): "a HEIC photograph, which OpenCV does not read; save it as PNG or JPEG",
    (".avif",): "an AVIF image, which is not read here; save it as PNG or JPEG",
    (".npy", ".npz"): "a NumPy file, not an image; save its views as PNG, 8 or 16 bits",
    (".svo", ".svo2"): "a ZED recording, which only Stereolabs' SDK reads; export it as a video or images",
    (".bag", ".db3", ".mcap"): "a ROS bag; export the images of both topics as PNG",
    (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"): (
        "a raw photograph, whose pixels are not developed; save it as PNG, 8 or 16 bits"
    ),
    (".raw", ".yuv", ".nv12", ".bin"): "pixels without a header, whose size is unknown; save them as PNG",
    (".exr", ".hdr", ".pfm"): "an image of floating-point values; save it as PNG, 8 or 16 bits",
    (".gif",): "a GIF of at most 256 colours; save its images as PNG, or its frames as a video",
    (".pdf",): "a PDF document; save its images as PNG",
    (".zip", ".tar", ".gz", ".7z"): "an archive; extract it",
    (".h264", ".264", ".h265", ".265", ".hevc"): (
        "a video stream without a container, which holds no times; wrap it (ffmpeg -i NAME -c copy NAME.mkv)"
    ),
}  # fmt: skip
"""Files that hold views but are not read, by suffix, and what to do."""

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it by `git lfs pull`",
    b"\x93NUMPY": "a NumPy file, not an image; save its views as PNG, 8 or 16 bits",
    b"PK\x03\x04": "an archive; extract it",
    b"%PDF": "a PDF document; save its images as PNG",
    b"<!doctype html": "a web page; the download asks for a login, or its address is that of a page",
    b"<html": "a web page; the download asks for a login, or its address is that of a page",
    b"\x1aE\xdf\xa3": "a video; give it the suffix .mkv or .webm",
}
_VIDEO_BEGINNINGS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"\0\0\1\xb3", b"\0\0\1\xba",  # MPEG
    b"FLV", b"OggS", b"YUV4MPEG2 ",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x06\x0e\x2b\x34",  # MXF
    b"\xff\xd8\xff",  # JPEGs one after the other
)  # fmt: skip
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_PACKETS = ((0, 188), (4, 192), (0, 204))
"""Of transport streams: offset of the first mark, b"G", and the distance to the next."""
_HEIF_BRANDS = (b"heic", b"heix", b"heif", b"hevc", b"mif1", b"msf1")


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Return True for a file name with one of these suffixes (lower case), in any capitals, that is not hidden.

    Every rule on which files of a folder are read goes through here: `0000.JPG` is an image; `._0000.jpg`, which macOS
    leaves beside each file on disks of other systems, and every other name that begins with a dot is not.

    >>> [has_suffix(name, IMAGE_SUFFIXES) for name in ("0000.JPG", "._0000.jpg", ".png", "notes.txt")]
    [True, False, False, False]
    """
    return not is_hidden(name) and Path(name).suffix.lower() in suffixes


def is_image(name: str) -> bool:
    """Return True for the name of an image that can be read."""
    return has_suffix(name, IMAGE_SUFFIXES)


def is_video(name: str) -> bool:
    """Return True for the name of a video that can be read; a name that the user typed may begin with a dot."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def begins_as_video(beginning: bytes) -> bool:
    """Return True for the first bytes (some hundred) of a file in one of the containers of `VIDEO_SUFFIXES`.

    >>> [begins_as_video(each) for each in (b"RIFF....AVI LIST", b"....ftypisom", b"#EXTM3U", b"")]
    [True, True, False, False]
    """
    if beginning[:4] in (b"RIFF", b"RIFX"):
        return beginning[8:11] == b"AVI"
    packets = any(beginning[at : at + 1] == beginning[at + step : at + step + 1] == b"G" for at, step in _PACKETS)
    return packets or beginning.startswith(_VIDEO_BEGINNINGS) or beginning[4:8] in _MP4_BOXES


def is_hidden(name: str) -> bool:
    """Return True for a name that begins with a dot: shells, too, leave such files out where a wildcard stands."""
    return name.startswith(".")


def all_capitals(suffix: str) -> list[str]:
    """Return a suffix in every mixture of small and capital letters, the small ones first.

    >>> all_capitals(".a1")
    ['.a1', '.A1']
    """
    variants = [""]
    for letter in suffix:
        variants = [before + each for before in variants for each in dict.fromkeys((letter, letter.upper()))]
    return variants


def describe_other_kind(name: str, encoded: bytes = b"") -> str | None:
    """Return what a file is that is neither an image nor a video that is read here; None where that is unknown.

    Args:
        name: of the file.
        encoded: its content, or the beginning of it.
    """
    head = encoded[:512].lstrip().lower()
    if encoded[4:8] == b"ftyp":
        heif = encoded[8:12] in _HEIF_BRANDS
        return _by_suffix(".heic") if heif else _by_suffix(".avif") if encoded[8:12] == b"avif" else _UNNAMED_VIDEO
    by_content = next((kind for begin, kind in _BEGINNINGS.items() if head.startswith(begin.lower())), None)
    return by_content or _by_suffix(Path(name).suffix.lower())


_UNNAMED_VIDEO = "a video; give it the suffix .mp4 or .mov"


def _by_suffix(suffix: str) -> str | None:
    return next((kind for suffixes, kind in _OTHER_KINDS.items() if suffix in suffixes), None)


def name_other_kinds(names: Iterable[str]) -> str | None:
    """Return what the first file of a known other kind is, with its name; None where there is none."""
    for name in names:
        kind = None if is_hidden(name) else _by_suffix(Path(name).suffix.lower())
        if kind is not None:
            return f"{name} is {kind}"
    return None
