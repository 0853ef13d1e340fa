"""Audio on its way into a recogniser: augmentation and features."""
