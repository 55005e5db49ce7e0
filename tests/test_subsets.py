"""Places as bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketanet.kernels.subsets import packed, unpacked


@given(st.lists(st.integers(0, 5000)))
def test_places_come_back(places: list[int]) -> None:
    wanted = np.array(places, np.int64)
    for own in (wanted, np.unique(wanted)):
        back = unpacked(packed(own))
        assert back.dtype == np.int64
        np.testing.assert_array_equal(back, own)


@pytest.mark.parametrize("voxels", [1, 8, 70_831])
def test_places_in_order_take_a_bit_each(voxels: int) -> None:
    assert packed(np.arange(voxels)).nbytes == -(-voxels // 8)
