"""Small real data sets that a package ships, written as image files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from raytrain.errors import ConfigError, DataError

VALIDATION_SHARE = 0.2
SIDE = 32
JPEG_QUALITY = 95


def write_digits(folder: Path) -> dict[str, int]:
    """scikit-learn's 1,797 handwritten digits (8 x 8, 16 grey levels) as 32 x 32 JPEG files in class folders.

    Writes `folder/{train,validation}/<digit>/<number>.jpg`; every fifth of a class, shuffled with a fixed seed, is
    for validation. Returns the number of files by split. Running it again writes the same files.

    Source: UCI "Optical Recognition of Handwritten Digits", test part, as `sklearn.datasets.load_digits` has it.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: the folder cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("sample-data digits needs scikit-learn: pip install 'raytrain[demo]'") from None
    digits = load_digits()
    rng = np.random.default_rng(0)
    counts = {"train": 0, "validation": 0}
    try:
        for digit in range(10):
            numbers = rng.permutation(np.flatnonzero(digits.target == digit))
            held_out = set(numbers[: round(len(numbers) * VALIDATION_SHARE)].tolist())
            for number in numbers.tolist():
                split = "validation" if number in held_out else "train"
                path = folder / split / str(digit) / f"{number:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_jpeg(digits.images[number]))
                counts[split] += 1
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}") from None
    return counts


def _jpeg(image: np.ndarray) -> bytes:
    grey = np.rint(image * (255 / 16)).astype(np.uint8)
    large = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
