"""Frey faces: 1965 grey images of one face, from frames of a video; downloaded once and always verified."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use

from zoo.data.fetching import FOLDER_VARIABLE, Files
from zoo.data.table import ArrayTable

SHAPE = (1965, 28, 20)
ARRAY = "frey_faces.npz"  # key images, uint8 (1965, 28, 20)
MATLAB = "frey_rawface.mat"  # key ff, uint8 (560, 1965), as the author of the page put it there
FILES = Files(
    "Frey Face",
    "frey_faces",
    f"its file {MATLAB}, or {ARRAY}",
    ("https://cs.nyu.edu/~roweis/data/", "http://www.cs.nyu.edu/~roweis/data/"),
)
SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"  # of the bytes of all images, in order


def read_frey_faces() -> ArrayTable:
    """560 pixels in [0, 1], row by row of images of 28 rows and 20 columns.

    The checksum is that of the images themselves, so that it holds for both formats of the file.
    """
    path = FILES.fetch(MATLAB, None, ARRAY)
    pixels = read_images(path).reshape(SHAPE[0], -1)
    columns = tuple(f"pixel_{i}_{j}" for i in range(SHAPE[1]) for j in range(SHAPE[2]))
    return ArrayTable(pixels, columns, "Frey faces", np.full(pixels.shape[1], 255.0))


def read_images(path: Path) -> npt.NDArray[np.uint8]:
    """The images (1965, 28, 20) of an NPZ or a MATLAB file.

    Raises:
        ValueError: the file cannot be read, or its images are not Frey's.
    """
    try:
        images = _decoded(path)
    except Exception as error:  # the reader of MATLAB files raises all kinds of them
        raise ValueError(f"{path} cannot be read, it may be damaged: {error}; {_way_out(path)}") from error
    if (
        images.dtype != np.uint8
        or images.shape != SHAPE
        or hashlib.sha256(np.ascontiguousarray(images).data).hexdigest() != SHA256
    ):
        raise ValueError(f"{path} has the wrong checksum: it does not hold Frey's faces; {_way_out(path)}")
    return images


def _decoded(path: Path) -> npt.NDArray[Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive["images"])
    return np.asarray(scipy.io.loadmat(path)["ff"]).T.reshape(SHAPE)


def _way_out(path: Path) -> str:
    return f"remove it to download it anew, or set {FOLDER_VARIABLE} to a folder with {FILES.what}"
