"""The type checker that the suite runs under: whole numbers are floats, too."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
