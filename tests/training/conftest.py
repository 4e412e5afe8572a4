"""Small teachers that end their reasonings, and trainers of them."""

from functools import partial

import pytest

from tests.training.helpers import lift, reasoner


@pytest.fixture
def ending_teacher(small_teacher, small_tokens):
    """The small teacher, inclined to write the marker: without it hardly a path has an answer to train."""
    lift(small_teacher, small_tokens.marker_id)
    return small_teacher


@pytest.fixture
def stepping_teacher(small_teacher, small_tokens):
    """The small teacher, inclined to break lines and to write the marker: several steps in a few tokens."""
    lift(small_teacher, small_tokens.marker_id, 3.0)
    (line_break,) = small_tokens.tokenizer.encode("\n", add_special_tokens=False)
    small_teacher.lm_head.bias.data[line_break] = 4.0
    return small_teacher


@pytest.fixture
def make_reasoner(ending_teacher, small_catalog, small_tokens, tmp_path):
    """Makes trainers of the ending teacher, by `tests.training.helpers.reasoner`."""
    return partial(reasoner, ending_teacher, small_catalog, small_tokens, tmp_path)


@pytest.fixture
def make_stepping(stepping_teacher, small_catalog, small_tokens, tmp_path):
    """Makes trainers of the stepping teacher, by `tests.training.helpers.reasoner`."""
    return partial(reasoner, stepping_teacher, small_catalog, small_tokens, tmp_path)
