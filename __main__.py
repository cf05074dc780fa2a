"""`python -m dlzoo` is the `dlzoo` command."""

from .cli import main

main()
