"""PyPI's nunchaku, as far as an import goes. Importing it is what must not happen."""

raise AssertionError("the unrelated package was imported")
