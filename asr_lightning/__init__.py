"""Train, look inside and compare end-to-end speech recognisers on PyTorch Lightning."""
