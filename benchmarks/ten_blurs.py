"""A dear stage without random numbers, which prediction would leave out; without torch, since workers import it."""

from __future__ import annotations

import cv2
import numpy as np


def blurred(image: np.ndarray) -> np.ndarray:
    for _ in range(10):
        image = cv2.GaussianBlur(image, (23, 23), 1.0)
    return image
