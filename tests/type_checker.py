"""What checks shapes and types while the tests run: beartype, for which a whole number is a number, as in PEP 484."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
