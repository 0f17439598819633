"""Plain text tables."""

from rankwise.tables import text_table


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert text_table(["name", "n"], [["a", 1], ["long name", 12345]]).splitlines() == [
        "name            n",
        "a               1",
        "long name  12,345",
    ]


def test_a_table_without_rows_is_its_header():
    assert text_table(["a", "b"], []) == "a  b"
