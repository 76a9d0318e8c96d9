"""Images: where they come from, how they are decoded, checked, split and augmented. The home of Albumentations."""
