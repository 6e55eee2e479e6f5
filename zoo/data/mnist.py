"""MNIST: four gzipped IDX files, downloaded once and always verified."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pooch

from zoo.data.table import ArrayTable

FOLDER_VARIABLE = "LATENT_ZOO_DATA"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def read_mnist(prefix: str, rows: int) -> ArrayTable:
    """The files ``prefix``-images and ``prefix``-labels: 784 pixels in [0, 1], then the digit."""
    pixels = read_idx(fetch(f"{prefix}-images-idx3-ubyte.gz"), (rows, 28, 28)).reshape(rows, 784)
    digits = read_idx(fetch(f"{prefix}-labels-idx1-ubyte.gz"), (rows,))
    columns = *(f"pixel_{i}_{j}" for i in range(28) for j in range(28)), "digit"
    divisor = np.append(np.full(784, 255.0), 1.0)
    return ArrayTable(np.column_stack([pixels, digits]), columns, f"MNIST {prefix}", divisor)


def fetch(name: str) -> Path:
    """The path of a verified file: in the folder named by LATENT_ZOO_DATA, else downloaded and cached.

    Raises:
        FileNotFoundError: LATENT_ZOO_DATA is set, and its folder does not contain the file.
        ValueError: the file there has the wrong checksum.
        ConnectionError: the file cannot be downloaded from any mirror.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return find(name, Path(folder).expanduser())
    failures = []
    for mirror in MIRRORS:
        try:
            cache = pooch.os_cache("latent-zoo") / "mnist"
            return Path(pooch.retrieve(mirror + name, f"sha256:{SHA256[name]}", fname=name, path=cache))
        except (OSError, ValueError) as error:  # no connection, or the wrong checksum
            failures.append(f"{mirror}: {error}")
    raise ConnectionError(
        f"cannot download MNIST's {name}: set {FOLDER_VARIABLE} to a folder with its four .gz files, "
        f"directly or under mnist/. Attempts: {'; '.join(failures)}"
    )


def find(name: str, folder: Path) -> Path:
    """The path of a verified file in ``folder/mnist`` or in ``folder``."""
    for path in (folder / "mnist" / name, folder / name):
        if path.is_file():
            if pooch.file_hash(path, alg="sha256") != SHA256[name]:
                raise ValueError(f"{path} has the wrong checksum: it is not MNIST's {name}, or it is damaged")
            return path
    raise FileNotFoundError(
        f"{FOLDER_VARIABLE}={folder} contains neither mnist/{name} nor {name}: "
        "put MNIST's four .gz files there, or unset the variable to download them"
    )


def read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Reads a gzipped IDX file of unsigned bytes with the given shape.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions; then each size as a big-endian 32-bit
    integer; then the data.

    Raises:
        ValueError: the file is damaged, or has another format or shape.
    """
    expected = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    length = math.prod(shape)
    try:
        with gzip.open(path) as stream:
            header = stream.read(len(expected))
            data = stream.read(length + 1) if header == expected else b""
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not gzipped: {error}") from error
    if header[:4] != expected[:4]:
        raise ValueError(f"{path}: magic number {header[:4].hex()}, expected {expected[:4].hex()}")
    if header != expected:
        sizes = tuple(np.frombuffer(header[4 : len(header) // 4 * 4], dtype=">u4").tolist())
        raise ValueError(f"{path} has sizes {sizes}, expected {shape}")
    if len(data) != length:
        raise ValueError(f"{path} has {'less' if len(data) < length else 'more'} than {length} bytes of data")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
