"""`python -m asr_lightning …`, the same as `lightning …`."""

from asr_lightning.cli import main

if __name__ == "__main__":
    main()
