"""Audio on its way into a recognizer: augmentation and features."""
