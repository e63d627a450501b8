"""`python -m janus_train`, which is what torchrun starts."""

from janus_train.cli import main

main()
