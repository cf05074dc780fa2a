"""What a registered model may not pass yet, and why: `{(test function, variant): reason}`.

A test named here must fail for that variant. Once it passes, the build fails until the line is
taken out, so this list is never longer than the truth.
"""

_SIZE = "its poolings pad by whether the map's size is even, so the image size must be fixed"
_CELLS = "each cell takes the outputs of the two before it: no one map separates the network"
_HALF = "with the random weights of the tests its maps pass the largest number of float16"

KNOWN_GAPS: dict[tuple[str, str], str] = {
    (test, name): reason
    for name in ("nasnet_mobile", "nasnet_large")
    for test, reason in (("test_04_taps", _SIZE), ("test_cut_anywhere", _CELLS))
} | {("test_10_mixed_precision", "xception"): _HALF}
