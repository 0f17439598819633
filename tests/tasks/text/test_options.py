"""Options of text tasks as they are read from a command line."""

from pathlib import Path

from rankwise.tasks.text.options import parse_folders


def test_folders_with_commas_in_their_names(tmp_path: Path) -> None:
    """Runs of `rankwise.sweep` are named after their targets: r4-q_proj,v_proj-lr0.001-s0."""
    for name in ("r4-q,v", "r4-q,v,k", "b"):
        (tmp_path / name).mkdir()
    one, two, three = (str(tmp_path / name) for name in ("r4-q,v", "r4-q,v,k", "b"))
    assert parse_folders(one) == (one,)
    assert parse_folders(f"{one},{two}, {three}") == (one, two, three)
    assert parse_folders(f"{three},elsewhere") == (three, "elsewhere")
