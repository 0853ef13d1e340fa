"""Train, look inside and compare end-to-end speech recognizers on PyTorch Lightning."""
