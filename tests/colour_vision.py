"""How colours look, to eyes with all cones and with fewer."""

import numpy as np

# What a reader without one kind of cones sees, in linear RGB (Machado, Oliveira & Fernandes 2009).
CONE_MATRICES = {
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def convert_to_lab(rgb: object) -> np.ndarray:
    """Convert linear RGB (..., 3) to CIELAB."""
    xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = np.moveaxis(np.clip(rgb, 0, 1) @ np.array(xyz).T / [0.95047, 1, 1.08883], -1, 0)
    fx, fy, fz = (
        np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116) for part in (x, y, z)
    )
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)
