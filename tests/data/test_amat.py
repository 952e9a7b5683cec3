"""The text format of static MNIST: what is published is read, anything else is refused."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources import parse_amat
from runtime.errors import DataError


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_what_numpy_writes_is_read_back(n, pixels, seed):
    images = np.random.default_rng(seed).integers(0, 2, (n, pixels), np.uint8)
    text = io.BytesIO()
    np.savetxt(text, images, "%d")
    np.testing.assert_array_equal(parse_amat(text.getvalue(), pixels), images)


@given(st.one_of(st.binary(max_size=64), st.text("01 \n", max_size=64).map(str.encode)), st.integers(1, 8))
@settings(max_examples=500)
def test_any_bytes_are_images_or_a_data_error(content, pixels):
    try:
        images = parse_amat(content, pixels)
    except DataError:
        return
    text = io.BytesIO()
    np.savetxt(text, images, "%d")
    assert text.getvalue() == content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "0 bytes are no whole lines of 3 pixels"),
        (b"0 1 0\n1 1", "9 bytes are no whole lines of 3 pixels"),
        (b"0 1 0\n1 2 0\n", "line 2 has no 0 or 1 in its place 2"),
        (b"0 1\n0\n", "line 1 has no 0 or 1 in its place 2"),
        (b"0 1 0 1 0 1\n", "line 1 has no 0 or 1 in its place 3"),
        (b"0,1,0\n", "line 1 has no 0 or 1 in its place 1"),
    ],
)
def test_other_text_is_refused_by_line(content, complaint):
    with pytest.raises(DataError, match=complaint):
        parse_amat(content, 3)
