"""float32 to float16, rounded to nearest even, by the numbers' bits.

A power of two is added to a number: 2^13 times the number's own, never less than that of the smallest normal float16.
The sum's last bits are then the number's float16 mantissa, rounded. The power's own last bits hold the float16's
exponent, a multiple of 2^10 that rounding doesn't see. So the sum ends in the whole float16. NumPy's own conversion
goes number by number, and takes many times as long on features, whose zeros and ordinary numbers mix.
"""

import numpy as np

_BLOCK = 2**17
_MAGNITUDE, _SIGN = np.uint32(0x7FFFFFFF), np.uint16(0x8000)
_LEAST = np.uint32(113)  # the exponent of 2^-14
# From an exponent to the bits of that power: 13 more, and the float16's exponent less one.
_SCALE, _OFFSET = np.uint32((1 << 23) + (1 << 10)), np.uint32((13 << 23) - (113 << 10))
_TOO_LARGE = int(np.float32(65520).view(np.uint32))  # rounds to infinity


def to_float16(values: np.ndarray, out: np.ndarray) -> bool:
    """Write `values`, float32, to `out`, float16 of the same shape, both C-contiguous.

    False, with `out` half written, if one of them is NaN, infinite or beyond 65,504.
    """
    bits, kept = values.reshape(-1).view(np.uint32), out.reshape(-1).view(np.uint16)
    a, b = np.empty((2, min(_BLOCK, bits.size)), np.uint32)
    for start in range(0, bits.size, _BLOCK):
        signed = bits[start : start + _BLOCK]
        number, power, half = signed, a[: len(signed)], kept[start : start + len(signed)]
        negative = int(signed.max()) >= _TOO_LARGE  # or else too large
        if negative:
            number = np.bitwise_and(signed, _MAGNITUDE, out=b[: len(signed)])
            if int(number.max()) >= _TOO_LARGE:
                return False
        np.right_shift(number, 23, out=power)
        np.maximum(power, _LEAST, out=power)
        np.multiply(power, _SCALE, out=power)
        np.add(power, _OFFSET, out=power)
        np.add(number.view(np.float32), power.view(np.float32), out=power.view(np.float32))
        np.copyto(half, power, casting="unsafe")
        if negative:
            half |= np.right_shift(signed, 16, out=power).astype(np.uint16) & _SIGN
    return True
