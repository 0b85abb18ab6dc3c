"""`python -m bestiary`: the command line."""

from .cli import main

main()
