"""NIH thin blood smears and the single cells cut from them."""
