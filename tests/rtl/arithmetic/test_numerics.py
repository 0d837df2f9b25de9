"""Scalars and tables against real arithmetic: stated errors hold, on generated input."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.rtl.arithmetic import numerics
from intaglio.rtl.arithmetic.numerics import Scalar, normalise, rotary_increment, rotary_pair

scalars = st.builds(Scalar, st.integers(1 << 15, (1 << 16) - 1), st.integers(-100, 100))
STEP = 2.0**-15  # one truncation loses less than this share


def close(scalar, real, steps=1):
    """The scalar is at most ``steps`` truncations below the real number, and never above it."""
    assert real * (1 - steps * STEP) <= float(scalar) <= real * (1 + 1e-12)
    assert 1 << 15 <= scalar.m < 1 << 16


@given(scalars, scalars)
def test_products_quotients_and_sums_truncate_once(a, b):
    close(a * b, float(a) * float(b))
    close(a / b, float(a) / float(b))
    close(a + b, float(a) + float(b), steps=2)  # the smaller term is cut too


@given(scalars)
def test_roots_truncate_once(a):
    close(a.sqrt(), math.sqrt(float(a)))


@given(st.integers(0, 1 << 60), st.integers(-100, 100))
def test_integers_keep_their_top_bits(n, e):
    scalar = Scalar.of_int(n, e)
    if n == 0:
        assert scalar == Scalar(0, 0)
    else:
        close(scalar, math.ldexp(n, e))


@given(st.floats(2.0**-200, 2.0**200))
def test_constants_are_rounded_to_nearest(x):
    assert abs(float(Scalar.of_float(x)) / x - 1) <= 2.0**-16


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_constants_must_be_finite_and_not_negative(bad):
    with pytest.raises(ValueError, match="must be finite and not negative"):
        Scalar.of_float(bad)


@given(scalars)
def test_zero_absorbs_and_is_neutral(a):
    zero = Scalar(0, 0)
    assert a * zero == zero * a == zero / a == a / zero == zero
    assert a + zero == zero + a == a
    assert zero.sqrt() == zero and zero.scaled(5) == zero


@given(st.integers(1, 1 << 46))
def test_normalised_numbers_have_17_bits(n):
    mantissa, shift = normalise(n)
    assert 1 << 16 <= mantissa < 1 << 17
    assert mantissa == (n >> shift if shift >= 0 else n << -shift)


@given(st.integers(1 << 16, (1 << 17) - 1), st.data())
def test_quantised_elements_are_within_one_step_of_exact_division(mantissa, data):
    ts = data.draw(st.integers(-mantissa, mantissa))
    for numerator, shift, limit in (
        (numerics.INT8_NUMERATOR, numerics.INT8_SHIFT, 127),
        (numerics.INT16_NUMERATOR, numerics.INT16_SHIFT, 32767),
    ):
        reciprocal = numerator // mantissa
        assert reciprocal < 1 << 17
        q = (ts * reciprocal + (1 << (shift - 1))) >> shift
        assert abs(q - limit * ts / mantissa) <= 0.5 + limit * 2.0**-15
        assert abs(q) <= limit


def test_exponential_table():
    for f, value in enumerate(numerics.EXP_TABLE):
        assert abs(value / 32768 - 2 ** (-f / 256)) <= 2.0**-15
    assert max(numerics.EXP_TABLE) < 1 << 15  # so that a probability fits a signed 16-bit operand


@given(st.integers(0, 2**32 - 1))
def test_rotary_pair_is_within_a_table_step(phase):
    cosine, sine = (x / numerics.ROTARY_ONE for x in rotary_pair(phase))
    angle = phase / 2**32 * 2 * math.pi
    bound = math.pi / 4096 + 2.0**-15  # half a table interval, and rounding
    assert abs(cosine - math.cos(angle)) <= bound and abs(sine - math.sin(angle)) <= bound


def test_rotary_increments_are_the_published_frequencies():
    for i in range(16):
        turns = rotary_increment(i, 32, 10000.0) / 2**32
        assert turns * 2 * math.pi == pytest.approx(10000.0 ** (-2 * i / 32), abs=1e-9)
