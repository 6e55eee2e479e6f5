"""MNIST: four gzipped IDX files, downloaded once and always verified."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.data.fetching import Files
from zoo.data.table import ArrayTable

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = Files("MNIST", "mnist", "its four .gz files", MIRRORS)
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
    """The path of one of the four files; see :meth:`zoo.data.fetching.Files.fetch`."""
    return FILES.fetch(name, SHA256[name])


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
