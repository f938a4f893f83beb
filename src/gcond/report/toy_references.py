"""End points (x_1, x_2) on the two-dimensional problem to compare with, per start, and whether they are on the front.

From separate float64 code, run before this package was written: 35,000 steps of Adam at 1e-3 on (0.1 f_1, f_2); FAMO
50,000. They agree with what the papers show: LS stalls (Nash-MTL's Figure 1, FAMO's README), MGDA leans to the task
with the smaller gradient, Nash-MTL is balanced, every FAMO run reaches the front.
"""

from __future__ import annotations

Reference = tuple[float, float, bool]

SOURCE = "separate float64 code, run before this package was written"

REFERENCES: dict[str, tuple[Reference, ...]] = {
    "baseline": (
        (-5.727, -6.242, False),
        (-5.727, -8.409, True),
        (5.001, 3.978, False),
        (-5.727, -8.409, True),
        (-5.727, -8.409, True),
    ),
    "pcgrad": (
        (-4.379, -8.387, True),
        (-3.349, -8.374, True),
        (5.855, 0.600, False),
        (-3.817, -8.380, True),
        (5.038, -8.398, True),
    ),
    "cagrad": (
        (-5.528, -6.564, False),
        (-5.727, -8.409, True),
        (5.980, 0.550, False),
        (-5.727, -8.409, True),
        (-5.727, -8.409, True),
    ),
    "mgda": (
        (-1.924, -8.361, True),
        (6.096, -8.416, True),
        (6.979, -8.434, True),
        (-4.260, -8.386, True),
        (6.995, -8.434, True),
    ),
    "nash_mtl": (
        (-2.936, -8.370, True),
        (0.0, -8.355, True),
        (2.939, -8.370, True),
        (-3.295, -8.374, True),
        (4.909, -8.395, True),
    ),
    "imtl_g": (
        (-2.203, -8.363, True),
        (0.0, -8.355, True),
        (2.434, -8.365, True),
        (-3.392, -8.375, True),
        (5.300, -8.402, True),
    ),
    "aligned_mtl": (
        (-5.727, -8.40, True),
        (-5.727, -8.42, True),
        (4.987, 4.784, False),
        (-5.727, -8.40, True),
        (-5.727, -8.40, True),
    ),
    "config": (
        (-2.765, -4.291, False),
        (0.0, -8.355, True),
        (5.974, -0.875, False),
        (-3.697, -8.378, True),
        (5.018, -8.397, True),
    ),
    "gcond_pure": (
        (-4.610, -8.391, True),
        (-3.768, -8.379, True),
        (5.782, 0.651, False),
        (-4.296, -8.386, True),
        (2.891, -8.369, True),
    ),
    "sam_gs": (
        (-5.727, -8.409, True),
        (-5.727, -8.409, True),
        (6.996, -0.096, False),
        (-5.727, -8.409, True),
        (-5.727, -7.51, False),
    ),
    "famo": (
        (-0.486, -8.353, True),
        (0.078, -8.355, True),
        (0.341, -8.357, True),
        (-0.951, -8.351, True),
        (1.761, -8.352, True),
    ),
}
REFERENCES["gcond_accumulated"] = REFERENCES["gcond_pure"]  # two starts agree to 0.001, so this it was
REFERENCES["gcond_as_pcgrad"] = REFERENCES["pcgrad"]  # two tasks: the same method
REFERENCES["gradops"] = REFERENCES["pcgrad"]  # two tasks, alpha = 0: the same method
