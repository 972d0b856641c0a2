"""How far two pictures are apart: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy
import torch
import torch.nn.functional as F
from PIL import Image


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise in dB over all channels of 8-bit pictures."""
    difference = numpy.asarray(one, dtype=float) - numpy.asarray(other, dtype=float)
    error = float((difference**2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity, mean over channels and pixels (Wang et al. 2004: 11 px Gaussian of 1.5)."""
    a, b = (
        torch.from_numpy(numpy.asarray(p, dtype=numpy.float64)).permute(2, 0, 1)[:, None]
        for p in (one, other)
    )
    x = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def blur(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, window)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())
