"""Files of public data sets that are not part of the package: from a local folder, else downloaded once and cached."""

import os
from dataclasses import dataclass
from pathlib import Path

import pooch

FOLDER_VARIABLE = "LATENT_ZOO_DATA"


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Attributes:
        title: the data set's name in messages.
        folder: the sub-folder for its files, below the one that LATENT_ZOO_DATA names, and in the cache.
        what: the files in words, such as ``"its four .gz files"``.
        mirrors: URLs of public folders that hold them, tried in this order.
    """

    title: str
    folder: str
    what: str
    mirrors: tuple[str, ...]

    def fetch(self, name: str, sha256: str | None, *others: str) -> Path:
        """The path of a file: in the folder named by LATENT_ZOO_DATA, else downloaded and cached.

        Args:
            name: of the file on the mirrors.
            sha256: its checksum; None leaves it to the caller to verify the content.
            others: names of other files with the same content, which may lie in the local folder instead.

        Raises:
            FileNotFoundError: LATENT_ZOO_DATA is set, and its folder does not contain the file.
            ValueError: the file there has the wrong checksum.
            ConnectionError: the file cannot be downloaded from any mirror.
        """
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder:
            return self._local((*others, name), sha256, Path(folder).expanduser())
        failures = []
        for mirror in self.mirrors:
            try:
                cache = pooch.os_cache("latent-zoo") / self.folder
                known = None if sha256 is None else f"sha256:{sha256}"
                return Path(pooch.retrieve(mirror + name, known, fname=name, path=cache))
            except (OSError, ValueError) as error:  # no connection, or the wrong checksum
                failures.append(f"{mirror}: {error}")
        raise ConnectionError(
            f"cannot download {self.title}'s {name}: set {FOLDER_VARIABLE} to a folder with {self.what}, "
            f"directly or under {self.folder}/. Attempts: {'; '.join(failures)}"
        )

    def _local(self, names: tuple[str, ...], sha256: str | None, folder: Path) -> Path:
        """The first of the named files in the sub-folder of ``folder``, or in ``folder`` itself."""
        for name in names:
            for path in (folder / self.folder / name, folder / name):
                if path.is_file():
                    if sha256 is not None and pooch.file_hash(path, alg="sha256") != sha256:
                        raise ValueError(
                            f"{path} has the wrong checksum: it is not {self.title}'s {name}, or it is damaged"
                        )
                    return path
        listed = " nor ".join(f"{self.folder}/{name} nor {name}" for name in names)
        raise FileNotFoundError(
            f"{FOLDER_VARIABLE}={folder} contains neither {listed}: "
            f"put {self.title}'s {self.what.removeprefix('its ')} there, or unset the variable to download them"
        )
