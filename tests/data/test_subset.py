"""Images are chosen and held out without chance, evenly, and from every class."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeconvnext.data.digits import digits_set, split_indices
from edgeconvnext.data.image_set import split_held_out
from edgeconvnext.data.subset import spread
from edgeconvnext.errors import ImageSetError


def test_an_even_choice_takes_the_middles() -> None:
    assert spread(10, 3) == [1, 5, 8]
    assert spread(5, 5) == [0, 1, 2, 3, 4]


def test_a_rare_class_gives_all_it_has_and_the_others_share_the_rest() -> None:
    labels = [0] * 50 + [1] * 2 + [2] * 50
    assert Counter(labels[index] for index in spread(len(labels), 30, labels)) == {0: 14, 1: 2, 2: 14}


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), share=st.floats(0.01, 1))
def test_every_choice_has_the_size_asked_for_and_is_balanced(sizes: list[int], share: float) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    count = max(1, round(share * len(labels)))
    chosen = spread(len(labels), count, labels)
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    taken = Counter(labels[index] for index in chosen)
    most = max(taken.values())
    # No class is short of the largest share by more than one image, unless it has no more to give.
    assert all(taken[label] >= min(most - 1, size) for label, size in enumerate(sizes))


@given(count=st.integers(2, 400))
def test_a_third_is_held_out_and_nothing_is_lost(count: int) -> None:
    digits = digits_set("calibration").take(count)
    fit, held_out = split_held_out(digits)
    assert sorted(fit + held_out) == list(range(len(digits)))
    assert abs(len(held_out) - len(digits) / 3) <= 2 / 3
    assert len(held_out) >= 1


def test_every_class_is_on_both_sides() -> None:
    digits = digits_set("calibration").take(90)
    for part in split_held_out(digits):
        counts = Counter(digits.labels[index] for index in part)  # type: ignore[index]
        assert set(counts) == set(range(10))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_one_image_is_on_both_sides() -> None:
    assert split_held_out(digits_set("test").take(1)) == ([0], [0])


def test_digits_are_split_once_and_for_all() -> None:
    train, calibration, test = (set(split_indices(split)) for split in ("train", "calibration", "test"))  # type: ignore[arg-type]
    assert (len(train), len(calibration), len(test)) == (1198, 400, 599)
    assert calibration < train
    assert not train & test
    assert len(train | test) == 1797
    counts = Counter(digits_set("test").labels)
    assert min(counts.values()) >= 58  # of 174 to 183 of each digit


def test_a_digit_looks_like_one() -> None:
    digits = digits_set("test")
    image = digits.read(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert image.getextrema() == ((0, 255),) * 3


def test_few_images_are_noted_and_none_is_an_error() -> None:
    digits = digits_set("calibration")
    assert digits.take(100).notes == ()
    assert "only 99 images" in digits.take(99).notes[0]
    assert "only 1 image:" in digits.take(1).notes[0]
    with pytest.raises(ImageSetError, match="at least 1"):
        digits.take(0)


def test_more_than_there_are_gives_all() -> None:
    digits = digits_set("calibration")
    assert digits.take(10_000) == digits
