"""What is drawn and written of finished runs."""
