import unicodedata

from mtl.core.names import normal


def test_the_two_spellings_of_an_accent_are_one_name():
    assert normal(unicodedata.normalize("NFD", "\u00c9tude")) == normal("\u00e9tude")


def test_different_letters_stay_different():
    assert normal("etude") != normal("\u00e9tude")
