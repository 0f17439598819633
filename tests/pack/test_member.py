"""A member's arguments under their names in earlier versions."""

import pytest

from rankwise.pack.member import Member


def test_names_of_earlier_versions() -> None:
    old = Member(name="a", whole=("head",), whole_rate=2.0, whole_rate_for=("head",))  # pyright: ignore[reportCallIssue]
    assert old == Member(name="a", modules_to_save=("head",), head_lr_multiplier=2.0, head_lr_multiplier_for=("head",))
    with pytest.raises(TypeError, match="wholes"):
        Member(name="a", wholes=())  # pyright: ignore[reportCallIssue]
