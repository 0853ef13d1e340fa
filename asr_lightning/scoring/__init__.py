"""What a recognition result is worth."""
