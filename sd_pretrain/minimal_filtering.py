"""3x3 convolutions on maps of 2 to 4 pixels a side with fewer products, in float32, for CPUs.

On such a map a convolution with padding 1 is, along each axis, a banded Toeplitz matrix times a vector. Of
the 10 products that it takes for 4 pixels 6 suffice, of 7 for 3 pixels 5, of 4 for 2 pixels 3 (Winograd,
"Arithmetic Complexity of Computations", 1980; for networks: Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016); along both axes 36 of 100, 25 of 49, 9 of 16. They are taken of
transformed kernels, and to transform one takes as long as is saved: this is for kernels that stay, those of a
frozen network.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Of the interpolation. Around 1 they round least: with 4 pixels 2e-6 of the largest output; 0, 1, 2: 1e-5.
_POINTS = {3: (0, 3 / 4, -3 / 4, 2), 4: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}


class MinimalFilter:
    """A 3x3 convolution with padding 1, stride 1, and its bias, for square maps of one size.

    It takes 9, 25 or 36 numbers for each 9 of the kernel.

    Args:
        weight: ``(F, C, 3, 3)``, float32.
        bias: ``(F,)``.
        size: pixels a side: 2, 3 or 4.
    """

    sizes = (2, 3, 4)

    def __init__(self, weight: Tensor, bias: Tensor, size: int):
        kernel, before, after = (torch.from_numpy(np.kron(one, one)) for one in transforms(size))
        taps = weight.permute(2, 3, 1, 0).reshape(9, -1).double()
        self._kernel = (kernel @ taps).to(weight.dtype).view(len(kernel), weight.shape[1], weight.shape[0])
        self._before, self._after = before.to(weight.dtype), after.to(weight.dtype)
        self._bias, self._size = bias, size

    def __call__(self, maps: Tensor) -> Tensor:
        """``(N, C, size, size)`` to ``(N, F, size, size)``, channels-last."""
        count, channels = maps.shape[:2]
        pixels = maps.permute(2, 3, 0, 1).reshape(self._size**2, count * channels)
        products = torch.bmm((self._before @ pixels).view(-1, count, channels), self._kernel)
        out = (self._after @ products.flatten(1)).view(self._size, self._size, count, -1)
        return out.add_(self._bias).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def transforms(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices ``G``, ``B``, ``A`` with ``A @ ((G @ w) * (B @ x))`` the convolution of ``x`` by ``w``.

    Args:
        size: length of ``x``, which zeros surround, and of the outcome: 2, 3 or 4; ``w`` has 3 taps.

    Returns:
        ``(n, 3)``, ``(n, size)`` and ``(size, n)``, float64; ``n`` products are taken.
    """
    if size == 2:
        # w1 (x0 + x1) is in both outputs.
        kernel = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
        before = np.array([[1, 1], [0, 1], [1, 0]])
        return kernel.astype(float), before.astype(float), np.array([[1.0, 1, 0], [1, 0, 1]])
    # The transposed product of polynomials (Toom-Cook): values at the points, and at infinity.
    inputs = size + 2
    kernel, before = _values(size, 3), np.linalg.inv(_values(size, inputs)).T
    scale = np.abs(before).max(1, keepdims=True)
    # The first and the last input are the padding.
    return kernel * scale, (before / scale)[:, 1:-1], _values(size, size).T


def _values(size: int, terms: int) -> np.ndarray:
    """What gives the values of a polynomial of ``terms`` coefficients."""
    last = np.eye(terms)[-1:]
    return np.concatenate([np.vander(np.array(_POINTS[size], float), terms, increasing=True), last])
