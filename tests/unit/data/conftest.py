"""Beside `data_fakes`, so that the tests in the folders below can import it."""
