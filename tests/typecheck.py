"""The run-time check of shapes and types that the tests put on every function of the package."""

from beartype import BeartypeConf, beartype

# PEP 484's numeric tower: an int is good where a float is asked for, as for pyright.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
